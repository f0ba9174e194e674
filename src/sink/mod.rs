//! Where notices go: the contract of a sink, and one file per kind.
//!
//! `deliver` sends through [`Sink`]; `config` gathers [`Configured`] sinks; `app` opens them. A sink
//! knows its vendor and nothing of stores, lanes or routes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Clock;
use crate::render::{Notice, Template};
use crate::retry::{Patience, Verdict};

pub mod alertmanager;
pub mod discord;
pub mod email;
pub mod exec;
pub mod file;
pub mod google_chat;
pub mod http;
pub mod mattermost;
pub mod ntfy;
pub mod pagerduty;
mod permit;
pub mod record;
pub mod slack;
pub mod stdout;
pub mod teams;
pub mod telegram;
pub mod webhook;

pub use permit::Permit;

/// How a sink wants its notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// How many notices one `send` takes at most.
    pub per_send: usize,
    /// How many `send`s may be under way at once, of different lanes.
    pub at_once: usize,
}

/// A configured destination.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// How it wants its notices.
    fn capacity(&self) -> Capacity;

    /// How long until it may be given the next notice: services count how many they get.
    fn free_in(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether later notices of a command may refer to the first: to answer it, or to take its place.
    /// It then calls everything that it sends of one command by the id of that message.
    fn keeps_threads(&self) -> bool {
        false
    }

    /// Whether it tells people what happened, in words that they can choose, or machines, as data.
    fn speaks_to_people(&self) -> bool {
        false
    }

    /// How long it is worth trying.
    fn patience(&self) -> Patience {
        Patience::default()
    }

    /// Sends notices in the order given. Answers one verdict for each; after the first that is not
    /// [`Verdict::Sent`] the rest of the same lane must not have been sent.
    ///
    /// Asks `permit` each time right before bytes of a notice can leave, after every wait. Once it is
    /// refused nothing more is sent, and the verdicts on what was held back mean nothing.
    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict>;

    /// A notice as it would be sent, for people to look at; without secrets.
    fn preview(&self, notice: &Notice) -> String {
        let mut line = Vec::new();
        record::write_line(notice, &mut line);
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Lets go of what it holds open, so that it is opened anew: a log file that was rotated.
    async fn reopen(&self) {}
}

/// A checked sink: its name and the settings of its kind.
#[derive(Clone, Debug)]
pub struct Configured {
    /// Its name, unique among sinks.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The one replica that brings notices to it; any, if none is named.
    pub on: Option<String>,
    /// Who brings what it cannot.
    pub fallback: Option<Fallback>,
    /// Words in place of the usual ones, where a route has none.
    pub template: Option<Arc<Template>>,
}

/// Another sink that brings what one cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// Its name.
    pub to: String,
    /// After how long without a success it takes over what waits.
    pub after: Duration,
}

/// The kinds of sink there are.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Lines in a file.
    File(file::Checked),
    /// Lines on standard output.
    Stdout(stdout::Settings),
    /// Calls of a web service.
    Http(http::Checked),
    /// Mail.
    Email(email::Checked),
    /// Runs of a program.
    Exec(exec::Checked),
}

impl Configured {
    /// Whether it has a place for a notice that tells of many events at once.
    #[must_use]
    pub fn takes_digests(&self) -> bool {
        match &self.kind {
            Kind::File(_) | Kind::Stdout(_) | Kind::Exec(_) => false,
            Kind::Http(checked) => checked.vendor.takes_digests(),
            Kind::Email(_) => true,
        }
    }

    /// Whether it tells people what happened, in words that they can choose, or machines, as data.
    #[must_use]
    pub fn speaks_to_people(&self) -> bool {
        match &self.kind {
            Kind::File(_) | Kind::Stdout(_) | Kind::Exec(_) => false,
            Kind::Http(checked) => checked.vendor.speaks_to_people(),
            Kind::Email(_) => true,
        }
    }

    /// The longest that one try takes.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        match &self.kind {
            // A disk that hangs longer than a lease lasts costs a mark, and no line.
            Kind::File(_) | Kind::Stdout(_) => Duration::ZERO,
            Kind::Http(checked) => checked.connection.timeout(),
            Kind::Email(checked) => checked.timeout(),
            Kind::Exec(checked) => checked.timeout(),
        }
    }

    /// The sink itself. What it needs outside is opened when the first notice comes, so that a sink
    /// in trouble keeps nobody from starting.
    #[must_use]
    pub fn open(&self, clock: &Clock, paces: &mut http::Paces) -> Arc<dyn Sink> {
        match &self.kind {
            Kind::File(settings) => Arc::new(file::FileSink::new(settings.clone(), clock.clone())),
            Kind::Stdout(_) => Arc::new(stdout::StdoutSink),
            Kind::Email(checked) => Arc::new(email::Email::new(
                checked.clone(),
                &self.name,
                clock.clone(),
            )),
            Kind::Exec(checked) => Arc::new(exec::Exec::new(checked.clone())),
            Kind::Http(checked) => {
                Arc::new(http::HttpSink::new(checked.clone(), clock.clone(), paces))
            }
        }
    }
}
