//! `runbell event`: what is kept, and what came of it.

use std::path::Path;

use anyhow::anyhow;
use clap::Subcommand;

use super::{Stop, admin, block_on, output, settings};
use crate::store::{EventId, EventQuery};
use crate::web::admin::wire;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List events, newest first
    List {
        /// Of this command only
        #[arg(long, value_name = "ID")]
        command: Option<String>,
        /// Of this instance only
        #[arg(long, value_name = "ID")]
        instance: Option<String>,
        /// Of this topic only
        #[arg(long, value_name = "ARN")]
        topic: Option<String>,
        /// Older than this event only
        #[arg(long, value_name = "NUMBER")]
        before: Option<i64>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one event, to whom it was owed, and what came of that
    Show {
        /// Its number
        id: i64,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(config: &Path, command: Command) -> Result<(), Stop> {
    let config = settings(config)?;
    match command {
        Command::List {
            command,
            instance,
            topic,
            before,
            limit,
            json,
        } => {
            let query = EventQuery {
                command,
                instance,
                topic,
                before: before.map(EventId),
                limit,
            };
            let events = block_on(async { Ok(admin::look(&config).await?.events(query).await?) })?;
            let events: Vec<_> = events.into_iter().map(wire::Event::brief).collect();
            if json {
                return output::json(&events);
            }
            let rows = events.iter().map(row).collect();
            let header = [
                "EVENT", "TIME", "KIND", "STATUS", "DOCUMENT", "INSTANCE", "COMMAND",
            ];
            output::table(&header, rows, "no events")
        }
        Command::Show { id, json } => {
            let found =
                block_on(async { Ok(admin::look(&config).await?.event(EventId(id)).await?) })?;
            let (event, deliveries) = found.ok_or_else(|| anyhow!("there is no event {id}"))?;
            let shown = wire::EventShown {
                event: wire::Event::whole(event),
                deliveries: deliveries.into_iter().map(Into::into).collect(),
            };
            if json {
                return output::json(&shown);
            }
            show(&shown)
        }
    }
}

fn row(event: &wire::Event) -> Vec<String> {
    vec![
        event.id.to_string(),
        output::time(event.sort_time),
        event.kind.clone(),
        status(event),
        output::or_dash(event.document.as_deref()),
        output::or_dash(event.instance.as_deref()),
        output::or_dash(event.command.as_deref().or(event.subject.as_deref())),
    ]
}

fn status(event: &wire::Event) -> String {
    match (&event.status, &event.detail) {
        (Some(status), Some(detail)) if status != detail => {
            format!("{} ({})", output::plain(status), output::plain(detail))
        }
        (status, _) => output::or_dash(status.as_deref()),
    }
}

fn show(shown: &wire::EventShown) -> Result<(), Stop> {
    let event = &shown.event;
    let mut facts = vec![
        ("event", event.id.to_string()),
        ("kind", event.kind.clone()),
        ("status", status(event)),
        ("document", output::or_dash(event.document.as_deref())),
        ("command", output::or_dash(event.command.as_deref())),
        ("instance", output::or_dash(event.instance.as_deref())),
        (
            "event time",
            event
                .event_time
                .map_or_else(|| "-".to_owned(), |at| at.to_string()),
        ),
        ("sent by SNS", output::time(event.sent_at)),
        ("received", output::time(event.received_at)),
        ("topic", output::plain(&event.topic)),
        ("message id", output::plain(&event.message_id)),
    ];
    if event.time_doubted {
        facts.push((
            "note",
            "its time is not credible; SNS's orders it".to_owned(),
        ));
    }
    if let Some(first) = event.repeat_of {
        facts.push(("note", format!("event {first} told the same step before")));
    }
    for (name, value) in facts {
        output::line(&format!("{name:<12} {value}"))?;
    }
    if shown.deliveries.is_empty() {
        output::line("\nno route took it")?;
    }
    for delivery in &shown.deliveries {
        let state = match (delivery.dead, delivery.waits_until) {
            (true, _) => " — dead letter".to_owned(),
            (false, Some(until)) => format!(" — waits, may go at {}", output::time(until)),
            (false, None) => String::new(),
        };
        output::line(&format!(
            "\nsink {} by route {}{state}",
            delivery.sink, delivery.route
        ))?;
        for outcome in &delivery.history {
            let marks = outcome.marks.join(", ");
            let answer = output::or_dash(outcome.answer.as_deref());
            let took = outcome.took_seconds;
            let took = took.map_or_else(String::new, |took| format!("{:.0} ms", took * 1000.0));
            output::line(&format!(
                "  {}  {:<9}  {took:>8}  {marks}  {answer}",
                output::time(outcome.at),
                outcome.result
            ))?;
        }
    }
    if let Some(message) = &event.message {
        output::line("")?;
        for line in message.lines() {
            output::line(&output::plain(line))?;
        }
    }
    Ok(())
}
