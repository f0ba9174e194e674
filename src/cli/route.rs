//! `runbell route`: which routes would take a message. Nothing is verified, kept or sent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{Stop, output, settings, verify};
use crate::clock::Clock;
use crate::delivery::Marks;
use crate::event::{EnvelopeKind, Event, Source};
use crate::render::{self, Template};
use crate::route::{Route, Routes};
use crate::sink::Sink;
use crate::sink::http::Paces;
use crate::sns::TopicArn;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An envelope, or a message alone; `-` for standard input
    file: PathBuf,
    /// The topic that a message alone came on; the first of the settings when left out
    #[arg(long, value_name = "ARN")]
    topic: Option<TopicArn>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What of an envelope matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope {
    #[serde(rename = "Type")]
    kind: String,
    topic_arn: String,
    message: String,
    subject: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer {
    kind: &'static str,
    routes: Vec<Asked>,
}

#[derive(Serialize)]
struct Asked {
    route: String,
    takes: bool,
    why_not: Option<String>,
    to: Vec<String>,
    already: Vec<String>,
    /// What each of its sinks would send.
    notices: BTreeMap<String, String>,
}

pub(super) fn run(config: &Path, args: &Args) -> Result<(), Stop> {
    let config = settings(config)?;
    let text = String::from_utf8(verify::read(&args.file)?).context("the file is no text")?;
    let first = config.topics.first().map(|topic| topic.arn.clone());
    let event = event(&text, args.topic.clone().or(first))?;
    let routes = Routes::new(config.routes);
    let explained = routes.explain(&event);
    let (clock, mut paces) = (Clock::system(), Paces::default());
    let opened = config.sinks.iter();
    let sinks: Vec<_> = opened
        .map(|sink| Opened {
            sink: sink.open(&clock, &mut paces),
            name: &sink.name,
            template: sink.template.as_deref(),
        })
        .collect();
    let answer = Answer {
        kind: event.kind.word(),
        routes: explained
            .into_iter()
            .map(|it| Asked {
                takes: it.why_not.is_none(),
                notices: it
                    .to
                    .iter()
                    .filter_map(|name| {
                        Some((
                            name.clone(),
                            preview(routes.route(&it.route)?, name, &event, &sinks)?,
                        ))
                    })
                    .collect(),
                route: it.route,
                why_not: it.why_not,
                to: it.to,
                already: it.already,
            })
            .collect(),
    };
    if args.json {
        return output::json(&answer);
    }
    output::line(&format!("it is: {}", described(&event)))?;
    for asked in &answer.routes {
        let what = match (&asked.why_not, asked.to.as_slice()) {
            (Some(why), _) => format!("does not take it: {why}"),
            (None, []) => "takes it, but its sinks have it already".to_owned(),
            (None, to) => format!("brings it to {}", to.join(", ")),
        };
        output::line(&format!("route {}: {}", asked.route, output::plain(&what)))?;
        for (sink, notice) in &asked.notices {
            output::line(&format!("  as {sink} would send it:"))?;
            for line in notice.lines() {
                output::line(&format!("    {}", output::plain(line)))?;
            }
        }
    }
    if answer.routes.iter().all(|asked| !asked.takes) {
        output::line("no route takes it: it would be kept, and counted as unrouted")?;
    }
    Ok(())
}

/// A sink that is to show what it would send.
struct Opened<'c> {
    name: &'c str,
    sink: Arc<dyn Sink>,
    template: Option<&'c Template>,
}

fn preview(route: &Route, name: &str, event: &Event, sinks: &[Opened<'_>]) -> Option<String> {
    let opened = sinks.iter().find(|opened| opened.name == name)?;
    let template = route.template.as_deref().or(opened.template);
    let template = template.filter(|_| opened.sink.speaks_to_people());
    let received_at = event.sent_at;
    let notice = render::notice(
        &route.name,
        name,
        event.clone(),
        received_at,
        Marks::default(),
    );
    Some(opened.sink.preview(&notice.in_words_of(template)))
}

fn event(text: &str, topic: Option<TopicArn>) -> Result<Event, Stop> {
    let envelope: Option<Envelope> = serde_json::from_str(text).ok();
    let (kind, body, subject, topic) = match &envelope {
        Some(envelope) => {
            let kind = match envelope.kind.as_str() {
                "SubscriptionConfirmation" => EnvelopeKind::SubscriptionConfirmation,
                "UnsubscribeConfirmation" => EnvelopeKind::UnsubscribeConfirmation,
                _ => EnvelopeKind::Notification,
            };
            let topic = envelope.topic_arn.parse().ok();
            (
                kind,
                envelope.message.as_str(),
                envelope.subject.as_deref(),
                topic,
            )
        }
        None => (EnvelopeKind::Notification, text.trim_end(), None, topic),
    };
    let topic = topic.ok_or_else(|| Stop::Usage("its topic is no topic's ARN".to_owned()))?;
    let now = Clock::system().now();
    // A message from last week shall be ordered by its own time here, as it was then.
    let at = |sent_at| {
        Event::read(&Source {
            topic: topic.as_str(),
            account: topic.account(),
            region: topic.region(),
            message_id: "",
            sent_at,
            subject,
            body,
            envelope: kind,
        })
    };
    let told = at(now).command().and_then(|command| command.event_time);
    Ok(at(told.unwrap_or(now)))
}

fn described(event: &Event) -> String {
    let Some(command) = event.command() else {
        return event.kind.word().to_owned();
    };
    let on = command
        .instance
        .as_ref()
        .map_or_else(String::new, |instance| {
            format!(" on {}", output::plain(instance))
        });
    format!(
        "{} {} of {} {}{on}",
        event.kind.word(),
        output::plain(command.status.as_str()),
        output::plain(&command.document),
        output::plain(&command.command)
    )
}
