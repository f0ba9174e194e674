//! The settings: read from one file, checked, and handed to the parts as values.
//!
//! Two steps: `file` mirrors what is written, [`Config`] is what was checked; nothing that was not
//! checked gets out. Everything wrong is reported at once, each with its place ([`diagnostics`]).
//! Only here the environment and settings files are read; `check` does exactly what `serve` does
//! before it binds.

use std::path::Path;
use std::time::Duration;

use crate::route::Route;
use crate::sns::TopicSettings;
use crate::web::{AdminSettings, HookSettings};
use crate::{sink, store};

mod check;
pub mod diagnostics;
mod document;
mod file;
mod generation;
mod read;
mod secret;

pub use diagnostics::{Diagnostic, Faults};

/// Settings that were checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The listener for SNS, and what belongs to receiving.
    pub server: Server,
    /// The listener for people and their tools.
    pub admin: AdminSettings,
    /// The store.
    pub store: store::Settings,
    /// The topics allowed.
    pub topics: Vec<TopicSettings>,
    /// The sinks.
    pub sinks: Vec<sink::Configured>,
    /// The routes, in the order in which they are asked.
    pub routes: Vec<Route>,
    /// The log.
    pub log: LogSettings,
    /// These settings as they are kept beside the events that they judged: without secrets.
    pub generation: store::Generation,
}

/// What belongs to receiving.
#[derive(Clone, Debug)]
pub struct Server {
    /// What this replica is called, among those that share a store.
    pub replica: String,
    /// The listener for SNS.
    pub hook: HookSettings,
    /// The least hold in the first minute after a start or after trouble with the store.
    pub gap_hold: Duration,
    /// How long a stop goes on taking notifications after it said that it is not ready any more.
    pub leave_after: Duration,
    /// How long a stop waits for what is under way.
    pub drain: Duration,
}

/// How the log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// In which form.
    pub format: LogFormat,
    /// What is logged, in the words of `tracing`: `info`, `runbell=debug`…
    pub filter: String,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// Text.
    Text,
    /// JSON, one object a line.
    Json,
}

/// Where values come from that are not in the file.
pub struct Surroundings<'a> {
    /// The folder that relative paths start from: that of the settings file.
    pub folder: &'a Path,
    /// Looks a variable up.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Config {
    /// Reads and checks the file at `path`; also says what is allowed but probably not meant.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn load(path: &Path) -> Result<(Self, Vec<Diagnostic>), Faults> {
        let text =
            std::fs::read_to_string(path).map_err(|error| Faults::unreadable(path, &error))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that reads the environment"
        )]
        let variable = |name: &str| std::env::var(name).ok();
        let around = Surroundings {
            folder: path.parent().unwrap_or(Path::new("")),
            variable: &variable,
        };
        Self::parse(&text, path, &around)
    }

    /// Checks a text that was read from `path`.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn parse(
        text: &str,
        path: &Path,
        around: &Surroundings<'_>,
    ) -> Result<(Self, Vec<Diagnostic>), Faults> {
        let mut document = document::Document::parse(text, path)?;
        let config = check::config(&mut document, around);
        document.finish(config)
    }
}

#[cfg(test)]
mod tests;
