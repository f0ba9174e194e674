//! The contract of the deliver path: lanes are leased, carried, and settled.
//!
//! A lease is a value. It is made by [`Lanes::lease`] alone, and consumed by [`Lease::settle`]; one
//! that is dropped on the way, by an error or a cancelled task, is given back at the next sign of
//! life. Nothing a caller does or leaves undone can make a lane stand still.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::register::Hold;
use super::{EventId, LaneId, StoreError};
use crate::clock::Clock;
use crate::delivery::{Digest, Marks, Outcome, SortKey};
use crate::event::Event;

/// Deliveries that are ours for now, in order.
#[derive(Debug)]
pub struct Lane {
    /// The right to carry them.
    pub lease: Lease,
    /// The route that owes.
    pub route: String,
    /// The sink it is owed to.
    pub sink: String,
    /// The greatest key that was sent from this lane, or may have been.
    pub high: Option<SortKey>,
    /// The deliveries that may go, in ascending order of `key`. Of a digest the last one only: it
    /// stands for all before it, which share its outcome.
    pub waiting: Vec<Waiting>,
    /// How the command stands, of a lane whose batch becomes one notice.
    pub digest: Option<Digest>,
}

/// A delivery of a leased lane.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Number of its event.
    pub event_id: EventId,
    /// The event; none when its row is missing or cannot be read, which costs this delivery alone.
    pub event: Option<Event>,
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
    /// If so, the greatest key that the lane had sent when that became possible.
    pub high_then: Option<SortKey>,
    /// The sink that it was owed to first, which could not bring it.
    pub instead_of: Option<String>,
    /// Attempts so far.
    pub tries: u32,
    /// When the first failure of notice scope was, in logical time.
    pub failing_since: Option<Timestamp>,
    /// What part of it arrived, in the sink's own words.
    pub progress: Option<String>,
    /// What the sink calls the message to which this route's notices of the same command refer.
    pub thread: Option<String>,
}

impl Waiting {
    /// The watermark that it is held against, in a lane with this one. A possible repeat may have
    /// raised the lane's itself, so for it the one of when it became one counts.
    #[must_use]
    pub fn high<'h>(&'h self, lane: Option<&'h SortKey>) -> Option<&'h SortKey> {
        if self.possible_repeat {
            self.high_then.as_ref()
        } else {
            lane
        }
    }
}

/// The findings of a look at a sink's lanes.
#[derive(Debug, Default)]
pub struct Leased {
    /// Lanes that are ours until settled.
    pub lanes: Vec<Lane>,
    /// When the next lane of this sink is due, in logical time, as far as is known now.
    pub next_due: Option<Timestamp>,
    /// Since when the sink has backed off again and again without a success, in logical time.
    pub failing_since: Option<Timestamp>,
}

impl Leased {
    /// How many deliveries there are, of all lanes.
    #[must_use]
    pub fn deliveries(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.len()).sum()
    }
}

/// The right to carry one lane for a while. It ends with the lease's time, with [`Lease::settle`],
/// or when it is dropped.
#[derive(Debug)]
pub struct Lease {
    pub(super) lane: LaneId,
    /// The fence: with the holder it names this lease and no other.
    pub(super) epoch: i64,
    /// The numbers of its route and sink: what was sent is found by them, wherever it went.
    pub(super) route: i64,
    pub(super) sink: i64,
    /// The lane's count of what was put into it, at the moment of the lease.
    pub(super) fed: i64,
    /// One notice tells of all that was taken in turn.
    pub(super) batch: bool,
    /// How many troubles of the command that notice tells of.
    pub(super) troubles: i64,
    pub(super) hold: Hold,
}

impl Lease {
    /// A lease as an engine makes it, with what every engine needs to end it.
    #[must_use]
    pub const fn new(hold: Hold, lane: LaneId, epoch: i64, fed: i64) -> Self {
        Self {
            lane,
            epoch,
            route: 0,
            sink: 0,
            fed,
            batch: false,
            troubles: 0,
            hold,
        }
    }

    /// The lane's count of what was put into it, at the moment of the lease.
    #[must_use]
    pub const fn fed(&self) -> i64 {
        self.fed
    }

    /// Its place in the register.
    #[must_use]
    pub const fn hold(&self) -> &Hold {
        &self.hold
    }

    /// The number of its lane.
    #[must_use]
    pub const fn lane(&self) -> LaneId {
        self.lane
    }

    /// The number of this lease in its lane's life; grows with each lease and each end of one.
    #[must_use]
    pub const fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The question whether some leases are still good, all of them; its yes notes that the first
    /// byte of each is about to go out. To be asked right before the bytes, after every wait. It asks
    /// nobody but this process and its boot-time clock: a round trip for each notice would cap a
    /// sink at one in its time.
    ///
    /// Once it has said no, the lease is lost: it may be somebody else's by now.
    pub fn permission(leases: &[&Self]) -> impl Fn() -> bool + Send + Sync + use<> {
        let register = leases.first().map(|lease| lease.hold.register());
        let keys: Vec<_> = leases.iter().map(|lease| lease.hold.key()).collect();
        move || register.as_ref().is_none_or(|it| it.begin(&keys))
    }

    /// Says that its worker waits for something known, such as the pace of a service, and is not
    /// stuck.
    pub fn works_for(&self, time: Duration) {
        self.hold.register().works_for(&self.hold, time);
    }

    /// Ends the lease with what became of its deliveries; the others wait on. Nothing of the lane
    /// goes before `not_before`, in logical time.
    #[must_use]
    pub fn settle(
        self,
        results: Vec<Settled>,
        at: Timestamp,
        not_before: Option<Timestamp>,
    ) -> Settlement {
        Settlement(Arc::new(Ended {
            lease: Arc::new(self),
            results,
            at,
            not_before,
            refused_since: OnceLock::new(),
        }))
    }
}

/// The results of a lane, and its lease, which goes back with them. A copy is the same settlement:
/// it may be kept and recorded again until the store has said that it did.
#[derive(Clone, Debug)]
pub struct Settlement(Arc<Ended>);

#[derive(Debug)]
pub(super) struct Ended {
    /// Shared by all forms of the same settlement: it is lost when the last of them is dropped.
    pub(super) lease: Arc<Lease>,
    pub(super) results: Vec<Settled>,
    /// When the lane had its turn, in logical time.
    pub(super) at: Timestamp,
    pub(super) not_before: Option<Timestamp>,
    /// When the store first refused it as it is, in boot time.
    refused_since: OnceLock<Duration>,
}

impl Settlement {
    /// The results, in the order in which they came about.
    #[must_use]
    pub fn results(&self) -> &[Settled] {
        &self.0.results
    }

    /// The lease that it ends.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.0.lease
    }

    /// When the lane had its turn, in logical time.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.0.at
    }

    /// Before when nothing of the lane goes, in logical time, if it says so.
    #[must_use]
    pub fn not_before(&self) -> Option<Timestamp> {
        self.0.not_before
    }

    /// The same settlement without what others wrote: answers, progress, names of messages.
    pub(super) fn without_texts(&self) -> Self {
        let bare = self.0.results.iter().map(|settled| Settled {
            ending: settled.ending.without_text(),
            answer: None,
            ..settled.clone()
        });
        self.with_results(bare.collect())
    }

    /// The same settlement with some of its results given up, by their places: each of these
    /// deliveries becomes a dead letter that says why. The others lose their texts.
    pub(super) fn given_up(&self, is_given_up: impl Fn(usize) -> bool) -> Self {
        let bare = self.without_texts();
        let mut results = bare.0.results.clone();
        for (_, it) in results
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| is_given_up(*at))
        {
            it.answer = Some(it.ending.unkept().to_owned());
            it.ending = Ending::Dead;
        }
        self.with_results(results)
    }

    /// Since when the store has refused this settlement, in boot time: since now if it never did.
    pub(super) fn refused_since(&self, boot: Duration) -> Duration {
        *self.0.refused_since.get_or_init(|| boot)
    }

    fn with_results(&self, results: Vec<Settled>) -> Self {
        Self(Arc::new(Ended {
            lease: Arc::clone(&self.0.lease),
            results,
            at: self.0.at,
            not_before: self.0.not_before,
            refused_since: OnceLock::new(),
        }))
    }

    pub(super) fn ended(&self) -> &Ended {
        &self.0
    }
}

/// The result of one delivery.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Its event.
    pub event: EventId,
    /// Its place in the lane.
    pub key: SortKey,
    /// What happened, with what that needs.
    pub ending: Ending,
    /// When, in wall time.
    pub at: Timestamp,
    /// With which marks it went.
    pub marks: Marks,
    /// What the sink answered, trimmed.
    pub answer: Option<String>,
    /// How long the sink took for it, if it was asked.
    pub took: Option<Duration>,
}

impl Settled {
    /// A result of which nothing more is to be said.
    #[must_use]
    pub fn new(event: EventId, key: SortKey, ending: Ending, at: Timestamp) -> Self {
        Self {
            event,
            key,
            ending,
            at,
            marks: Marks::default(),
            answer: None,
            took: None,
        }
    }
}

/// The end of one try, with what it needs and no more. Times are logical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It reached the sink.
    Sent {
        /// What the sink calls the message that later notices of the same command refer to.
        message: Option<String>,
    },
    /// It told nothing new, and was not sent.
    Redundant,
    /// A silence covered it.
    Muted,
    /// It failed and waits on in its place.
    Retry(Failure),
    /// It failed for long: it no longer blocks its lane, and is tried again by itself.
    Parked {
        /// When it is tried again.
        again_at: Timestamp,
        /// What is known of the failure.
        failure: Failure,
    },
    /// It was given up.
    Dead,
    /// Another sink is to bring it.
    Diverted {
        /// That sink's name.
        to: String,
    },
}

/// A failure after which a delivery waits on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// When the first failure of notice scope was.
    pub since: Option<Timestamp>,
    /// What part of it arrived, in the sink's own words.
    pub progress: Option<String>,
    /// Whether it may have arrived whole.
    pub may_have_arrived: bool,
}

impl Failure {
    fn without_text(&self) -> Self {
        Self {
            progress: None,
            ..self.clone()
        }
    }
}

impl Ending {
    /// A notice that arrived and that nothing refers to later.
    pub const SENT: Self = Self::Sent { message: None };

    /// The outcome that is recorded.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Sent { .. } => Outcome::Sent,
            Self::Redundant => Outcome::Redundant,
            Self::Muted => Outcome::Muted,
            Self::Retry(_) => Outcome::Retry,
            Self::Parked { .. } => Outcome::Parked,
            Self::Dead => Outcome::Dead,
            Self::Diverted { .. } => Outcome::Diverted,
        }
    }

    /// The failure after which the delivery waits on, if it does.
    #[must_use]
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Retry(failure) | Self::Parked { failure, .. } => Some(failure),
            _ => None,
        }
    }

    /// The same without what others wrote.
    fn without_text(&self) -> Self {
        match self {
            Self::Sent { .. } => Self::SENT,
            Self::Retry(failure) => Self::Retry(failure.without_text()),
            Self::Parked { again_at, failure } => Self::Parked {
                again_at: *again_at,
                failure: failure.without_text(),
            },
            other => other.clone(),
        }
    }

    /// Says in a dead letter that the store could not keep this. To send again what was sent is a
    /// repeat, so whoever decides on that is told.
    const fn unkept(&self) -> &'static str {
        match self {
            Self::Sent { .. } => "the sink took it, and the store could not keep that",
            _ => "the store could not keep what became of it",
        }
    }
}

/// Hands out lanes and records what became of them.
#[async_trait]
pub trait Lanes: Send + Sync + 'static {
    /// The logical time that everything here waits by. It never goes back, whatever becomes of the
    /// clocks that people read.
    fn clock(&self) -> &Clock;

    /// How many replicas share the store, as far as is known.
    fn replicas(&self) -> u32 {
        1
    }

    /// Leases the due lanes of one sink, each with the prefix that may go at `now`; at most `limit`
    /// deliveries in all. A lane that has nothing to send is passed over and given a later due time.
    /// A sink in backoff is not leased.
    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError>;

    /// Records what became of leased lanes and gives them back. Under a lease that is over only
    /// [`Ending::Sent`] is recorded: the rest is somebody else's by now. The same settlement twice
    /// changes nothing.
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

    /// Hands what waits for a sink, and is not under way, to another: it joins the same lanes there,
    /// in its place, with its marks, and says in place of whom. What that sink has been told already
    /// is redundant. Says how many were handed over. Each step is committed by itself, so that a
    /// call that breaks off is gone on with by the next.
    async fn divert(&self, sink: &str, to: &str, now: Timestamp) -> Result<u64, StoreError>;

    /// Lets a sink back off until `until`: it is not leased before. The first of such backoffs
    /// begins a time of failure; `None` ends it.
    async fn back_off(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError>;
}
