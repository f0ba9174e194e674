//! The contract of whoever looks: the command line, the admin listener, metrics.
//!
//! Nothing here changes anything. Times are wall times.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;

use super::{DeadSelection, EventId, StoreError};
use crate::delivery::{LaneKey, Marks, Outcome};
use crate::event::Event;
use crate::sns::KnownCertificate;

/// Which events to list; newest first.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Of this command only.
    pub command: Option<String>,
    /// Of this instance only.
    pub instance: Option<String>,
    /// Of this topic only.
    pub topic: Option<String>,
    /// Older than this event only; for paging.
    pub before: Option<EventId>,
    /// At most so many.
    pub limit: usize,
}

/// An event as it is kept.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Its number.
    pub id: EventId,
    /// The event.
    pub event: Event,
    /// When it arrived.
    pub received_at: Timestamp,
    /// The earlier event that told the same step.
    pub repeat_of: Option<EventId>,
    /// Another terminal status of the same thing is stored, and it differs.
    pub conflict: bool,
}

/// What is owed for an event to one sink, and what came of it so far.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The route that owes it.
    pub route: String,
    /// The sink it is owed to.
    pub sink: String,
    /// When it may go, while it waits.
    pub waits_until: Option<Timestamp>,
    /// It is among the dead letters.
    pub dead: bool,
    /// What came of it, oldest first.
    pub outcomes: Vec<PastOutcome>,
}

/// One line of a delivery's history.
#[derive(Clone, Debug)]
pub struct PastOutcome {
    /// When.
    pub at: Timestamp,
    /// What happened.
    pub outcome: Outcome,
    /// With which marks it went.
    pub marks: Marks,
    /// What the sink answered.
    pub answer: Option<String>,
    /// How long the sink took for it, if it was asked.
    pub took: Option<Duration>,
}

/// A delivery that was given up.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its number; grows.
    pub id: i64,
    /// The event, with its number. Of an event whose row is missing this says so.
    pub event: StoredEvent,
    /// The route that owed it.
    pub route: String,
    /// The sink that did not take it.
    pub sink: String,
    /// When it was given up.
    pub died_at: Timestamp,
    /// After how many tries.
    pub tries: u32,
    /// What the sink said last.
    pub answer: Option<String>,
}

/// A subscription that asked to be confirmed.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Its number.
    pub id: i64,
    /// ARN of the topic.
    pub topic: String,
    /// The token to confirm it with; never shown.
    pub token: SecretString,
    /// When it asked.
    pub asked_at: Timestamp,
    /// When it was confirmed, if it was.
    pub confirmed_at: Option<Timestamp>,
}

/// How much waits for a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Its name.
    pub sink: String,
    /// Deliveries that wait.
    pub waiting: u64,
    /// When the oldest of them arrived.
    pub oldest: Option<Timestamp>,
    /// Deliveries among the dead letters.
    pub dead: u64,
    /// Until when its backoff lasts.
    pub backoff_until: Option<Timestamp>,
}

/// The deliveries of one route that wait in lanes of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteBacklog {
    /// Its name.
    pub route: String,
    /// The kind of the lanes, which is the order that they were put in.
    pub lanes: LaneKey,
    /// Deliveries that wait.
    pub waiting: u64,
}

/// How many deliveries of a sink went which way, ever since the store began.
/// Conservation: owed = sent + muted + redundant + dropped + dead + waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Its name.
    pub sink: String,
    /// Owed at append.
    pub owed: u64,
    /// Reached the sink.
    pub sent: u64,
    /// Covered by a silence.
    pub muted: u64,
    /// Told nothing new.
    pub redundant: u64,
    /// Let go.
    pub dropped: u64,
    /// Among the dead letters now.
    pub dead: u64,
    /// Waiting now.
    pub waiting: u64,
}

/// Shows what is kept.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Lists events, newest first.
    async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, StoreError>;

    /// Shows one event and what came of everything owed for it.
    async fn event(&self, id: EventId) -> Result<Option<(StoredEvent, Vec<Delivery>)>, StoreError>;

    /// Lists dead letters, newest first; at most `limit`.
    async fn dead(
        &self,
        selection: DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError>;

    /// Lists subscriptions that asked, newest first.
    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError>;

    /// Lists the certificates kept.
    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError>;

    /// Counts what waits, for each sink that has anything waiting or dead, or is in backoff.
    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError>;

    /// Counts what waits of each route, in lanes of which kind.
    async fn route_backlog(&self) -> Result<Vec<RouteBacklog>, StoreError>;

    /// Shows the books, for each sink.
    async fn tally(&self) -> Result<Vec<Tally>, StoreError>;
}
