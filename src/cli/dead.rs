//! `runbell dead`: deliveries that were given up.

use std::path::Path;

use anyhow::anyhow;
use clap::{Args, Subcommand};

use super::admin::{Changer, look};
use super::{Stop, block_on, output, settings};
use crate::store::{Care, DeadSelection, History};
use crate::web::admin::{api, wire};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters, newest first
    List {
        /// Of this sink only
        #[arg(long)]
        sink: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter
    Show {
        /// Its number
        id: i64,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters again, at once, marked resent
    Retry {
        #[command(flatten)]
        which: Which,
        /// To this sink in place of their own
        #[arg(long, value_name = "SINK")]
        to: Option<String>,
    },
    /// Make dead letters of what waits for a sink that will not come back
    Bury {
        /// Its name
        #[arg(long)]
        sink: String,
    },
    /// Let dead letters go for good
    Drop {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// Their numbers
    ids: Vec<i64>,
    /// Those of this sink
    #[arg(long)]
    sink: Option<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

pub(super) fn run(path: &Path, command: Command) -> Result<(), Stop> {
    let config = settings(path)?;
    match command {
        Command::List { sink, limit, json } => {
            let selection = sink.map_or(DeadSelection::All, DeadSelection::Sink);
            let letters = letters(&config, selection, limit)?;
            if json {
                return output::json(&letters);
            }
            let rows = letters.iter().map(row).collect();
            let header = [
                "DEAD", "SINK", "SINCE", "TRIES", "STATUS", "INSTANCE", "ANSWER",
            ];
            output::table(&header, rows, "no dead letters")
        }
        Command::Show { id, json } => {
            let letters = letters(&config, DeadSelection::Ids(vec![id]), 1)?;
            let letter = letters
                .first()
                .ok_or_else(|| anyhow!("there is no dead letter {id}"))?;
            if json {
                return output::json(letter);
            }
            let header = [
                "DEAD", "SINK", "SINCE", "TRIES", "STATUS", "INSTANCE", "ANSWER",
            ];
            output::table(&header, vec![row(letter)], "")?;
            let event = letter.event.id;
            output::line(&format!(
                "\n`runbell event show {event}` has its whole history"
            ))
        }
        Command::Retry { which, to } => {
            if let Some(sink) = &to
                && !config.sinks.iter().any(|known| known.name == *sink)
            {
                return Err(anyhow!("the settings name no sink `{sink}`").into());
            }
            let count = change(&config, "dead/retry", which, to)?;
            output::line(&format!("{count} to be sent again"))
        }
        Command::Bury { sink } => {
            let count = bury(&config, sink)?;
            output::line(&format!("{count} given up: `runbell dead list` has them"))
        }
        Command::Drop { which } => {
            let count = change(&config, "dead/drop", which, None)?;
            output::line(&format!("{count} dropped"))
        }
    }
}

fn letters(
    config: &crate::config::Config,
    selection: DeadSelection,
    limit: usize,
) -> Result<Vec<wire::DeadLetter>, Stop> {
    let letters = block_on(async { Ok(look(config).await?.dead(selection, limit).await?) })?;
    Ok(letters.into_iter().map(Into::into).collect())
}

fn change(
    config: &crate::config::Config,
    act: &str,
    which: Which,
    to: Option<String>,
) -> Result<u64, Stop> {
    block_on(async move {
        match Changer::find(config).await? {
            Changer::Running(running) => {
                let body = wire::DeadAct {
                    all: which.all,
                    sink: which.sink,
                    ids: (!which.ids.is_empty()).then_some(which.ids),
                    to,
                };
                let count: wire::Count = running.post(act, &body).await?;
                Ok(count.count)
            }
            Changer::Alone(alone) => {
                let now = alone.store.clock().now();
                let selection = match which {
                    Which { all: true, .. } => DeadSelection::All,
                    Which {
                        sink: Some(sink), ..
                    } => DeadSelection::Sink(sink),
                    Which { ids, .. } => DeadSelection::Ids(ids),
                };
                let done = if act == "dead/retry" {
                    let runs = |name: &str| config.sinks.iter().any(|sink| sink.name == name);
                    let store: (&dyn History, &dyn Care) = (&*alone.store, &*alone.store);
                    api::retry(store, selection, to, &runs, now)
                        .await
                        .map_err(|problem| anyhow!(problem.detail))
                } else {
                    let dropped = alone.store.drop_dead(selection, now).await;
                    dropped.map_err(Into::into)
                };
                alone.close().await;
                Ok(done?)
            }
        }
    })
}

fn bury(config: &crate::config::Config, sink: String) -> Result<u64, Stop> {
    block_on(async move {
        match Changer::find(config).await? {
            Changer::Running(running) => {
                let count: wire::Count = running.post("dead/bury", &wire::Bury { sink }).await?;
                Ok(count.count)
            }
            Changer::Alone(alone) => {
                let done = alone.store.bury(&sink, alone.store.clock().now()).await;
                alone.close().await;
                Ok(done?)
            }
        }
    })
}

fn row(letter: &wire::DeadLetter) -> Vec<String> {
    vec![
        letter.id.to_string(),
        output::plain(&letter.sink),
        output::time(letter.died_at),
        letter.tries.to_string(),
        output::or_dash(letter.event.status.as_deref()),
        output::or_dash(letter.event.instance.as_deref()),
        output::or_dash(letter.answer.as_deref()),
    ]
}
