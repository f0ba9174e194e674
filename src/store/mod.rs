//! Durable keeping of events and of the deliveries owed for them.
//!
//! **Deliveries are at-least-once; the lease only saves duplicate work.** There is one contract per
//! caller, so that none can do what is another's: [`Intake`] for the receive path, [`Lanes`] for the
//! deliver path, [`History`] for whoever looks, [`Care`] for upkeep and operators. The rules of
//! keeping are pure and stand once, in `rules`; `sqlite` and `postgres` turn them into statements,
//! `copy` carries one into the other. `register` is what a process knows of its own leases.
//!
//! The store knows no sink and no network. It waits by logical time ([`Lanes::clock`]), which never
//! goes back; people read wall time. Both engines pass one contract suite, and a twin test holds
//! their answers against a naive model.

use std::path::PathBuf;
use std::time::Duration;

mod care;
mod copy;
mod history;
mod intake;
mod isolate;
mod lanes;
mod leased;
pub mod postgres;
pub mod register;
mod rules;
pub mod sqlite;

pub use care::{Care, DeadSelection};
pub use copy::{Progress, copy};
pub use history::{
    Backlog, DeadLetter, Delivery, EventQuery, History, PastOutcome, RouteBacklog, StoredEvent,
    Subscription, Tally,
};
pub use intake::{Append, Appended, Intake};
pub use lanes::{Ending, Failure, Lane, Lanes, Lease, Leased, Settled, Settlement, Waiting};

pub use crate::sns::{Certificate, Proof};

/// Number of a stored event; grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub i64);

/// Number of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub i64);

/// All contracts of one engine. `app` holds it and hands each caller its own.
pub trait Store: Intake + Lanes + History + Care {}

impl<T: Intake + Lanes + History + Care> Store for T {}

/// Why the store could not do it. Every kind but [`StoreError::Data`] may pass by itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The queue before the writer is full, or transactions got in each other's way; try again soon.
    #[error("the store is busier than it can take")]
    Busy,
    /// There is no room on the disk.
    #[error("the disk is full")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database cannot be reached or has stopped.
    #[error("the store is unreachable")]
    Gone(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
    /// The file is not a store of ours, or is damaged.
    #[error("the store cannot be used")]
    Unusable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database can keep anything but this.
    #[error("the database cannot keep this")]
    Data(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Anything else the database said.
    #[error("the database refused")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    /// The same error, for somebody else who waited for the same transaction.
    pub(crate) fn alike(&self) -> Self {
        let why = |error: &(dyn std::error::Error + Send + Sync)| error.to_string().into();
        match self {
            Self::Busy => Self::Busy,
            Self::Full(error) => Self::Full(why(&**error)),
            Self::Gone(error) => Self::Gone(error.as_deref().map(why)),
            Self::Unusable(error) => Self::Unusable(why(&**error)),
            Self::Data(error) => Self::Data(why(&**error)),
            Self::Database(error) => Self::Database(why(&**error)),
        }
    }
}

/// Where the store lies and how long it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The engine, and where its data are.
    pub engine: Engine,
    /// How long events are kept after nothing waits for them any more.
    pub retention: Duration,
    /// The bounds of waiting.
    pub terms: Terms,
}

/// How long anything waits or is held at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a lease lasts unless it is renewed: more than two tries of the slowest sink.
    pub lease_for: Duration,
    /// The longest wait there is: hold, digest, backoff. A stored time further ahead is a fault, and
    /// is cut to this.
    pub longest_wait: Duration,
}

impl Terms {
    /// The shortest lease, in which several renewals find room.
    pub const SHORTEST_LEASE: Duration = Duration::from_secs(30);

    /// Terms for sinks that answer within `longest_timeout`, and lanes that wait no longer than
    /// `longest_wait`.
    #[must_use]
    pub fn new(longest_timeout: Duration, longest_wait: Duration) -> Self {
        let two_tries = longest_timeout.saturating_mul(2);
        let lease_for = two_tries.saturating_add(Duration::from_secs(5));
        let lease_for = lease_for.max(Self::SHORTEST_LEASE);
        Self {
            lease_for,
            longest_wait: longest_wait.max(Duration::from_hours(1)).max(lease_for),
        }
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self::new(Duration::ZERO, Duration::ZERO)
    }
}

/// An engine, and where its data are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// One SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL that several replicas share.
    Postgres(Box<postgres::Settings>),
}

impl Engine {
    /// The place, to be named to people.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(settings) => settings.place(),
        }
    }
}

/// Settings that were in force, as they are kept for those who look at an event years later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// SHA-256 of `text`.
    pub hash: [u8; 32],
    /// The settings, without secrets.
    pub text: String,
}

/// The state of a store at its opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// There was none; it was made.
    pub is_new: bool,
    /// Deliveries that were under way when the process before this one ended: they may have been
    /// sent, go out again, and say so.
    pub possible_repeats: u64,
}
