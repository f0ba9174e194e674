//! `runbell subscription`: topics that asked to be confirmed.

use std::path::Path;

use anyhow::anyhow;
use clap::Subcommand;

use super::admin::{Running, look};
use super::{Stop, block_on, output, settings};
use crate::web::admin::wire;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List subscriptions that asked, newest first
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Confirm one, through the running process
    Confirm {
        /// Its number
        id: i64,
    },
}

pub(super) fn run(path: &Path, command: &Command) -> Result<(), Stop> {
    let config = settings(path)?;
    match *command {
        Command::List { json } => {
            let found = block_on(async { Ok(look(&config).await?.subscriptions().await?) })?;
            let found: Vec<_> = found.into_iter().map(wire::Subscription::from).collect();
            if json {
                return output::json(&found);
            }
            let rows = found.iter().map(|one| {
                vec![
                    one.id.to_string(),
                    output::plain(&one.topic),
                    output::time(one.asked_at),
                    one.confirmed_at
                        .map_or_else(|| "not yet".to_owned(), output::time),
                ]
            });
            let header = ["SUBSCRIPTION", "TOPIC", "ASKED", "CONFIRMED"];
            output::table(&header, rows.collect(), "no subscription asked")
        }
        Command::Confirm { id } => {
            let Some(running) = Running::find(&config)? else {
                return Err(anyhow!("nobody serves: start `runbell serve`, then confirm").into());
            };
            block_on(async {
                let path = format!("subscriptions/{id}/confirm");
                let () = running.post(&path, &()).await?;
                Ok(())
            })?;
            output::line(&format!("subscription {id} is confirmed"))
        }
    }
}
