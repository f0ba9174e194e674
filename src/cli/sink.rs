//! `runbell sink`: whether a sink takes what it is sent.

use std::path::Path;

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use super::{Stop, block_on, output, settings};
use crate::clock::{Clock, since};
use crate::config::Config;
use crate::delivery::Marks;
use crate::event::{EnvelopeKind, Event, Source};
use crate::fault::meant;
use crate::render;
use crate::retry::Verdict;
use crate::sink::Permit;
use crate::sink::http::Paces;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Send one made-up notice, and say what came of it
    Test {
        /// The sink's name
        name: String,
        /// The status that it tells
        #[arg(long, value_enum, default_value_t = Told::Failed)]
        status: Told,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which status the made-up notice tells.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Told {
    InProgress,
    Success,
    Failed,
    TimedOut,
    Cancelled,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Tested<'a> {
    sink: &'a str,
    verdict: &'static str,
    seconds: f64,
    answer: Option<String>,
}

pub(super) fn run(path: &Path, command: &Command) -> Result<(), Stop> {
    let config = settings(path)?;
    let Command::Test { name, status, json } = command;
    let Some(sink) = config.sinks.iter().find(|sink| sink.name == *name) else {
        let known = config.sinks.iter().map(|sink| sink.name.as_str());
        let suggestion = meant(name, known);
        return Err(anyhow!("the settings name no sink `{name}`{suggestion}").into());
    };
    let clock = Clock::system();
    let template = sink.template.clone();
    let sink = sink.open(&clock, &mut Paces::default());
    let now = clock.now();
    let event = made_up(&config, *status, &clock);
    let notice = render::notice("runbell sink test", name, event, now, Marks::default())
        .in_words_of(template.as_deref());
    let verdicts = block_on(async {
        let notices = std::slice::from_ref(&notice);
        Ok(sink.send(notices, &Permit::always()).await)
    })?;
    let verdict = verdicts
        .into_iter()
        .next()
        .ok_or_else(|| anyhow!("the sink gave no verdict"))?;
    let tested = Tested {
        sink: name,
        verdict: verdict.word(),
        seconds: since(now, clock.now()).as_secs_f64(),
        answer: answer(&verdict),
    };
    if *json {
        output::json(&tested)?;
    } else {
        let answer = tested.answer.as_deref().map(output::plain);
        let answer = answer.map_or_else(String::new, |answer| format!(": {answer}"));
        output::line(&format!(
            "sink {name}: {} after {:.2} s{answer}",
            tested.verdict, tested.seconds
        ))?;
    }
    if matches!(verdict, Verdict::Sent { .. }) {
        Ok(())
    } else {
        Err(Stop::No)
    }
}

/// An event that nobody can take for a real one.
fn made_up(config: &Config, status: Told, clock: &Clock) -> Event {
    let now = clock.now();
    let status = match status {
        Told::InProgress => "InProgress",
        Told::Success => "Success",
        Told::Failed => "Failed",
        Told::TimedOut => "TimedOut",
        Told::Cancelled => "Cancelled",
    };
    let body = serde_json::json!({
        "commandId": "00000000-0000-4000-8000-000000000000",
        "documentName": "Runbell-Test",
        "instanceId": "i-00000000000000000",
        "status": status,
        "detailedStatus": status,
        "requestedDateTime": now.to_string(),
        "eventTime": now.to_string(),
    });
    let topic = config.topics.first().map(|topic| &topic.arn);
    Event::read(&Source {
        topic: topic.map_or("", |arn| arn.as_str()),
        account: topic.map_or("000000000000", |arn| arn.account()),
        region: topic.map_or("", |arn| arn.region()),
        message_id: &format!("test-{}", now.as_nanosecond()),
        sent_at: now,
        subject: Some("Runbell: a test"),
        body: &body.to_string(),
        envelope: EnvelopeKind::Notification,
    })
}

fn answer(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Sent { remote_id } => remote_id.clone(),
        Verdict::Retry { why, .. }
        | Verdict::Refused { why, .. }
        | Verdict::Broken { why }
        | Verdict::Unknown { why } => Some(why.clone()),
    }
}
