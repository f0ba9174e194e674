//! What is kept, and the contract of keeping it.
//!
//! **Deliveries are at-least-once; the lease only saves duplicate work.** Everything else here
//! serves the promise that what was appended reaches its sinks or becomes a dead letter: `append`
//! returns after the commit, `lease` hands out the prefix of a lane that may go, `settle` moves
//! what was done out of the way, and `sweep` repairs what a fault left behind.
//!
//! The store knows no sink and no network. Both engines pass one contract suite.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;

use crate::delivery::{Digest, Marks, Outcome, Owed, SortKey};
use crate::event::Event;
use crate::sns::KnownCertificate;

pub mod postgres;
mod rows;
pub mod sqlite;

/// Number of a stored event; grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub i64);

/// Number of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub i64);

/// One event with what is owed for it, to be kept in one transaction.
#[derive(Clone, Debug)]
pub struct Append {
    /// What happened.
    pub event: Event,
    /// To whom it is owed; empty when no route matches.
    pub owed: Vec<Owed>,
    /// When it arrived here.
    pub received_at: Timestamp,
}

/// What `append` did. The transaction has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is new.
    Stored {
        /// Its number.
        id: EventId,
        /// The earlier event that told the same step.
        repeat_of: Option<EventId>,
        /// Another terminal status of the same thing is stored, and it differs.
        conflict: bool,
        /// For each delivery owed: its sink, and when the delivery's lane has something to do.
        due: Vec<(Arc<str>, Timestamp)>,
    },
    /// This very notification is stored already; nothing was changed.
    Known {
        /// Its number.
        id: EventId,
    },
}

/// Deliveries that are ours for now, in order. Made by `lease`, consumed by `settle`.
#[derive(Debug)]
pub struct Lane {
    /// Its number.
    pub id: LaneId,
    /// The route that owes.
    pub route: String,
    /// The sink it is owed to.
    pub sink: String,
    /// Fences an older lease of the same lane.
    pub epoch: i64,
    /// The greatest key that was sent from this lane, or may have been.
    pub high: Option<SortKey>,
    /// What may go, in ascending order of `key`. Of a digest the last one only: it stands for all
    /// before it, which share its outcome.
    pub waiting: Vec<Waiting>,
    /// How the command stands, of a lane whose batch becomes one notice.
    pub digest: Option<Digest>,
}

/// A delivery of a leased lane.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Number of its event.
    pub event_id: EventId,
    /// The event.
    pub event: Event,
    /// When that arrived.
    pub received_at: Timestamp,
    /// Its place in the lane.
    pub key: SortKey,
    /// The earlier event that told the same step to the same sink by the same route, or is going to.
    pub repeat_of: Option<EventId>,
    /// Another terminal status of the same thing is stored.
    pub conflict: bool,
    /// This lane sent the terminal status of the same command and instance; asked for only where
    /// the event is an `InProgress`.
    pub terminal_sent: bool,
    /// It goes by itself: it was parked, or taken from the dead letters.
    pub alone: bool,
    /// It was sent again by hand from the dead letters.
    pub resent: bool,
    /// An earlier try may have reached the sink.
    pub possible_repeat: bool,
    /// If so, the greatest key that had been sent before that try.
    pub high_then: Option<SortKey>,
    /// The sink that it was owed to first, which could not bring it.
    pub instead_of: Option<String>,
    /// Attempts so far.
    pub tries: u32,
    /// When the first failure of notice scope was.
    pub failing_since: Option<Timestamp>,
    /// What part of it arrived, in the sink's own words.
    pub progress: Option<String>,
    /// What the sink calls the message to which this route's notices of the same command refer.
    pub thread: Option<String>,
}

/// What `lease` found.
#[derive(Debug, Default)]
pub struct Leased {
    /// Lanes that are ours until settled.
    pub lanes: Vec<Lane>,
    /// When the next lane of this sink is due, as far as is known now.
    pub next_due: Option<Timestamp>,
    /// Since when the sink has rested again and again without a success.
    pub in_trouble_since: Option<Timestamp>,
}

impl Leased {
    /// How many deliveries there are, of all lanes.
    #[must_use]
    pub fn deliveries(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.len()).sum()
    }
}

/// What became of a leased lane. The epoch goes back with it.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The lane.
    pub lane: LaneId,
    /// The lease it was taken under.
    pub epoch: i64,
    /// What became of each delivery that was tried or decided; the others wait on.
    pub results: Vec<Settled>,
    /// Nothing of the lane goes before this moment.
    pub not_before: Option<Timestamp>,
}

/// What became of one delivery.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Its event.
    pub event: EventId,
    /// Its place in the lane.
    pub key: SortKey,
    /// What happened.
    pub outcome: Outcome,
    /// When.
    pub at: Timestamp,
    /// With which marks it went.
    pub marks: Marks,
    /// What the sink answered, trimmed.
    pub answer: Option<String>,
    /// How long the sink took for it, if it was asked.
    pub took: Option<Duration>,
    /// When a parked delivery is tried again.
    pub again_at: Option<Timestamp>,
    /// When the first failure of notice scope was, if it waits on.
    pub failing_since: Option<Timestamp>,
    /// What part of it arrived, if it waits on.
    pub progress: Option<String>,
    /// What the sink calls the message that later notices of the same command refer to.
    pub thread: Option<String>,
    /// The sink that is to bring it now, if it was diverted.
    pub divert_to: Option<String>,
}

impl Settled {
    /// Of a delivery of which nothing more is to be said.
    #[must_use]
    pub fn new(event: EventId, key: SortKey, outcome: Outcome, at: Timestamp) -> Self {
        Self {
            event,
            key,
            outcome,
            at,
            marks: Marks::default(),
            answer: None,
            took: None,
            again_at: None,
            failing_since: None,
            progress: None,
            thread: None,
            divert_to: None,
        }
    }
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The queue before the writer is full; try again soon.
    #[error("the store is busier than it can take")]
    Busy,
    /// There is no room on the disk.
    #[error("the disk is full")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database cannot be reached or has stopped.
    #[error("the store is not there")]
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
    /// The same again, for somebody else who waited for the same.
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
    /// What keeps it.
    pub engine: Engine,
    /// How long events are kept after nothing waits for them any more.
    pub retention: Duration,
}

/// What keeps a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// One SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL that several replicas share.
    Postgres(Box<postgres::Settings>),
}

impl Engine {
    /// Where it lies, to be named to people.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(settings) => settings.place(),
        }
    }
}

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
    /// The event, with its number.
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

/// Which dead letters are meant.
#[derive(Clone, Debug)]
pub enum DeadSelection {
    /// All of them.
    All,
    /// Those of one sink.
    Sink(String),
    /// These.
    Ids(Vec<i64>),
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
    /// Until when it rests.
    pub rests_until: Option<Timestamp>,
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

/// What was found when the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// There was none; it was made.
    pub is_new: bool,
    /// Deliveries that were under way when the process before this one ended: they may have been
    /// sent, go out again, and say so.
    pub possible_repeats: u64,
}

/// Keeps events and what is owed for them.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Keeps one event with everything owed for it; returns after the commit. Calls that wait at
    /// the same time share one transaction. What the database cannot keep so, for whatever is in
    /// it, it keeps raw: as it came, and owed to nobody.
    async fn append(&self, append: Append) -> Result<Appended, StoreError>;

    /// Whether this very notification is stored, by what was signed together.
    async fn known(
        &self,
        topic: &str,
        sent_at: Timestamp,
        message_id: &str,
    ) -> Result<Option<EventId>, StoreError>;

    /// Takes the due lanes of one sink, each with the prefix that may go at `now`; at most `limit`
    /// deliveries in all. A sink that rests is not leased.
    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError>;

    /// How many replicas share the store, as far as is known.
    fn replicas(&self) -> u32 {
        1
    }

    /// Whether what was leased at `leased_at` is still ours at `now`, as far as this replica can know
    /// by itself. One that was paused, or cut off from the others, learns here that it was given up.
    fn holds(&self, leased_at: Timestamp, now: Timestamp) -> bool {
        let _ = (leased_at, now);
        true
    }

    /// Records what became of leased lanes and gives them back. An old epoch may only record what
    /// was sent.
    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), StoreError>;

    /// Does both: records what became of lanes, and leases what may go then. The store is asked at
    /// once, so that both may share a commit.
    async fn settle_and_lease(
        &self,
        settlements: Vec<Settlement>,
        sink: &str,
        now: Timestamp,
        limit: usize,
    ) -> (Result<(), StoreError>, Result<Leased, StoreError>) {
        if settlements.is_empty() {
            return (Ok(()), self.lease(sink, now, limit).await);
        }
        tokio::join!(biased; self.settle(settlements), self.lease(sink, now, limit))
    }

    /// Repairs lanes that wait without being due, and says how many there were.
    async fn sweep(&self) -> Result<u64, StoreError>;

    /// Forgets events older than `keep` for which nothing waits, in small steps; says whether
    /// there is more to do.
    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError>;

    /// Events, newest first.
    async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, StoreError>;

    /// One event and what came of everything owed for it.
    async fn event(&self, id: EventId) -> Result<Option<(StoredEvent, Vec<Delivery>)>, StoreError>;

    /// Dead letters, newest first; at most `limit`.
    async fn dead(
        &self,
        selection: DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError>;

    /// Puts dead letters back to wait, marked resent, for their own sink or for `to`; says how many.
    /// They go at once, each by itself.
    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// Makes dead letters of what waits for a sink, which will not come back; says how many.
    async fn bury(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError>;

    /// Lets dead letters go; says how many.
    async fn drop_dead(&self, selection: DeadSelection, now: Timestamp) -> Result<u64, StoreError>;

    /// Hands what waits for a sink, and is not under way, to another: it joins the same lanes there,
    /// in its place, and says in place of whom. What that sink has been told already is redundant.
    /// Says how many were handed over.
    async fn divert(&self, sink: &str, to: &str, now: Timestamp) -> Result<u64, StoreError>;

    /// Lets a sink rest until `until`: it is not leased before. The first of such rests begins a
    /// time of trouble; `None` ends it.
    async fn rest(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Remembers a subscription that asked; the same topic and token only once.
    async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, StoreError>;

    /// Remembers that a subscription was confirmed.
    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError>;

    /// Subscriptions that asked, newest first.
    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError>;

    /// Keeps a certificate, in place of an older one of the same URL.
    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError>;

    /// The certificates kept.
    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError>;

    /// How much waits, for each sink that has anything waiting or dead, or rests.
    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError>;

    /// The books, for each sink.
    async fn tally(&self) -> Result<Vec<Tally>, StoreError>;
}
