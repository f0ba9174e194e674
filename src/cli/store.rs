//! `runbell store`: what is done to a store as a whole.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use secrecy::SecretString;

use super::{Stop, block_on, output, settings};
use crate::store::{self, Engine, postgres};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Copy an embedded store into a PostgreSQL that several replicas can share; broken off, the same
    /// command goes on where it was
    Copy(Copy),
}

#[derive(Debug, clap::Args)]
pub(super) struct Copy {
    /// The embedded store, which nobody may use meanwhile: sqlite:PATH
    #[arg(long, value_name = "URL")]
    from: String,
    /// The database, empty: postgres://…; that of the settings if it is left out
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// A file with the password for it
    #[arg(long, value_name = "FILE", requires = "to")]
    password_file: Option<PathBuf>,
}

pub(super) fn run(config: &Path, command: &Command) -> Result<(), Stop> {
    let Command::Copy(copy) = command;
    let Some(from) = copy.from.strip_prefix("sqlite:") else {
        let why = "`--from` is an embedded store: write sqlite:/path/to/runbell.db";
        return Err(Stop::Usage(why.to_owned()));
    };
    let to = target(config, copy)?;
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rows  {eta} left")
        .context("the bar cannot be drawn")?;
    let bar = ProgressBar::new(0).with_style(style);
    let copied = block_on(async {
        let tell = |progress: store::Progress| {
            bar.set_length(progress.of);
            bar.set_position(progress.rows);
        };
        let copied = store::copy(Path::new(from), &to, tell).await;
        Ok(copied.with_context(|| format!("cannot copy {from} into {}", to.place()))?)
    });
    bar.finish_and_clear();
    let rows = copied?
        .into_iter()
        .map(|(table, rows)| vec![table.to_owned(), rows.to_string()]);
    output::table(&["TABLE", "ROWS HERE AND THERE"], rows.collect(), "")?;
    output::line(&format!(
        "{from} is copied into {}; let `store.url` name that, and start",
        to.place()
    ))
}

fn target(config: &Path, copy: &Copy) -> Result<postgres::Settings, Stop> {
    let Some(to) = &copy.to else {
        let Engine::Postgres(to) = settings(config)?.store.engine else {
            let why = "the settings name no database: say with `--to` where to copy";
            return Err(Stop::Usage(why.to_owned()));
        };
        return Ok(*to);
    };
    if !to.starts_with("postgres://") && !to.starts_with("postgresql://") {
        return Err(Stop::Usage(
            "`--to` is a database: write postgres://…".to_owned(),
        ));
    }
    let password = match &copy.password_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Some(SecretString::from(text.trim_end_matches(['\r', '\n'])))
        }
        None => None,
    };
    let parsed = postgres::Settings::parse(to, password.as_ref(), 2, "copy".to_owned());
    parsed.map_err(|why| anyhow!("`--to` cannot be used: {why}").into())
}
