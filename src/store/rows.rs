//! What both engines keep alike: how events, lanes, marks and books look in their tables.

use std::time::Duration;

use jiff::Timestamp;

use super::{EventId, Lane, Leased, Settled, StoredEvent, Waiting};
use crate::clock::later;
use crate::delivery::{
    Digest, LaneKey, Marks, Outcome, Owed, Release, SortKey, clamped_nanos, from_nanos,
};
use crate::event::{EnvelopeKind, Event, Kind, Source, Status};
use crate::sns::TopicArn;

/// How many bytes of messages a lease takes at most, beyond the first.
pub(super) const LARGEST_LEASE: usize = 4 << 20;

/// How far the clock may go back before it counts as set back.
pub(super) const SLACK: i64 = 1_000_000_000;

/// How many instances that did not end well a digest names at most.
pub(super) const MOST_TROUBLED: i64 = 100;

/// How many commands' numbers are remembered; what is forgotten is looked up.
pub(super) const MOST_COMMANDS: usize = 4096;

/// How many rows one step of a long work looks at.
pub(super) const STEP: i64 = 500;

/// A moment as the tables keep it: nanoseconds since the epoch.
pub(super) fn nanos(at: Timestamp) -> i64 {
    clamped_nanos(at)
}

/// A limit as databases take it.
pub(super) fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The day of a moment, counted from the epoch.
pub(super) fn day(at: Timestamp) -> i64 {
    at.as_second().div_euclid(86_400)
}

/// What an event says about a command, as the step table keeps it.
pub(super) struct Step<'a> {
    pub(super) command_no: i64,
    pub(super) instance: &'a str,
    pub(super) status: &'a Status,
    pub(super) event_time: i64,
}

impl<'a> Step<'a> {
    /// The step that an event tells, if it tells one; `command_no` numbers its command.
    pub(super) fn of(event: &'a Event, command_no: i64) -> Option<Self> {
        let command = event.command()?;
        let is_invocation = matches!(event.kind, Kind::Invocation(_));
        Some(Self {
            command_no,
            instance: command
                .instance
                .as_deref()
                .filter(|_| is_invocation)
                .unwrap_or_default(),
            status: &command.status,
            event_time: nanos(command.event_time.unwrap_or(event.sort_time)),
        })
    }
}

/// What the steps told before say about this one.
#[derive(Clone, Default)]
pub(super) struct Told {
    /// The event that told the same step.
    pub(super) before: Option<i64>,
    /// The `InProgress` of the same thing is stored.
    pub(super) started: bool,
    /// Another terminal status of the same thing is stored.
    pub(super) conflict: bool,
}

/// Which lane, in columns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LaneColumns<'a> {
    pub(super) kind: i64,
    pub(super) number: i64,
    pub(super) instance: &'a str,
}

pub(super) const KIND_COMMAND: i64 = 0;
pub(super) const KIND_INSTANCE: i64 = 1;
pub(super) const KIND_TOPIC: i64 = 2;
pub(super) const KIND_OWN: i64 = 3;
pub(super) const KIND_DIGEST: i64 = 4;

impl<'a> LaneColumns<'a> {
    pub(super) fn new(key: LaneKey, step: Option<&Step<'a>>, topic: i64, event: i64) -> Self {
        let (kind, number, instance) = match (key, step) {
            (LaneKey::Command, Some(step)) => (KIND_COMMAND, step.command_no, ""),
            (LaneKey::Instance, Some(step)) => (KIND_INSTANCE, step.command_no, step.instance),
            (LaneKey::Digest, Some(step)) => (KIND_DIGEST, step.command_no, ""),
            (LaneKey::Topic, _) => (KIND_TOPIC, topic, ""),
            (LaneKey::Own, _) | (_, None) => (KIND_OWN, event, ""),
        };
        Self {
            kind,
            number,
            instance,
        }
    }
}

/// When a delivery may go, of which more is known once its lane is.
pub(super) struct Times {
    /// When its lane is looked at first.
    pub(super) look_at: i64,
    /// When its hold runs out.
    pub(super) at_end: i64,
    /// When it goes from a lane that releases early.
    when_early: i64,
    /// It does not switch early release off for its lane.
    pub(super) goes_early: bool,
    /// It is one of many that go together when nothing more is expected.
    pub(super) gathers: bool,
}

impl Times {
    /// Of what arrived at `received_at`; `started` when the `InProgress` of the same thing is stored.
    pub(super) fn of(owed: &Owed, received_at: Timestamp, started: bool) -> Self {
        let now = nanos(received_at);
        let at_end = nanos(later(received_at, owed.hold.at_most));
        let when_early = match owed.hold.release {
            Release::First => now,
            Release::AfterFirst if started => now,
            Release::AtEnd | Release::AfterFirst | Release::Never | Release::WhenOver(_) => at_end,
        };
        let look_at = match owed.hold.release {
            Release::WhenOver(wait) => nanos(later(received_at, wait)).min(at_end),
            _ => when_early,
        };
        Self {
            look_at,
            at_end,
            when_early,
            goes_early: owed.hold.release != Release::Never,
            gathers: matches!(owed.hold.release, Release::WhenOver(_)),
        }
    }

    /// When it goes, from a lane that is new or not, and releases early or not.
    pub(super) const fn release_at(&self, is_new: bool, early: bool) -> i64 {
        if self.gathers && is_new {
            // That something has begun is told soon.
            self.look_at
        } else if early {
            self.when_early
        } else {
            self.at_end
        }
    }
}

pub(super) const fn envelope_number(kind: &Kind) -> i64 {
    match kind {
        Kind::Subscribe => 1,
        Kind::Unsubscribe => 2,
        _ => 0,
    }
}

/// The envelope that [`envelope_number`] made into a number.
const fn envelope(number: i64) -> EnvelopeKind {
    match number {
        1 => EnvelopeKind::SubscriptionConfirmation,
        2 => EnvelopeKind::UnsubscribeConfirmation,
        _ => EnvelopeKind::Notification,
    }
}

/// An event's row.
pub(super) struct RawEvent {
    pub(super) id: i64,
    pub(super) topic: String,
    pub(super) sns_time: i64,
    pub(super) message_id: String,
    pub(super) envelope: i64,
    pub(super) received_at: i64,
    pub(super) command_no: Option<i64>,
    pub(super) instance: Option<String>,
    pub(super) status: Option<String>,
    pub(super) repeat_of: Option<i64>,
    pub(super) conflict: bool,
    pub(super) subject: Option<String>,
    pub(super) body: Vec<u8>,
}

impl RawEvent {
    /// How much there is to parse, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Reads the event from what was signed: the one truth about it.
    pub(super) fn read(self) -> StoredEvent {
        let arn = self.topic.parse::<TopicArn>().ok();
        let event = Event::read(&Source {
            topic: &self.topic,
            account: arn.as_ref().map_or("", TopicArn::account),
            region: arn.as_ref().map_or("", TopicArn::region),
            message_id: &self.message_id,
            sent_at: from_nanos(self.sns_time),
            subject: self.subject.as_deref(),
            body: &String::from_utf8_lossy(&self.body),
            envelope: envelope(self.envelope),
        });
        StoredEvent {
            id: EventId(self.id),
            event,
            received_at: from_nanos(self.received_at),
            repeat_of: self.repeat_of.map(EventId),
            conflict: self.conflict,
        }
    }
}

/// What a lease found, with the messages still to be parsed.
#[derive(Default)]
pub(super) struct RawLeased {
    pub(super) lanes: Vec<RawLane>,
    pub(super) next_due: Option<i64>,
    pub(super) in_trouble_since: Option<i64>,
}

pub(super) struct RawLane {
    pub(super) lane: Lane,
    pub(super) waiting: Taken,
    /// What said last of the whole command.
    pub(super) summary: Option<RawEvent>,
}

pub(super) struct RawWaiting {
    pub(super) key: SortKey,
    pub(super) event: i64,
    pub(super) alone: bool,
    pub(super) tries: u32,
    pub(super) failing_since: Option<i64>,
    pub(super) resent: bool,
    pub(super) possible_repeat: bool,
    pub(super) high_then: Option<SortKey>,
    pub(super) progress: Option<String>,
    pub(super) terminal_sent: bool,
    pub(super) thread: Option<String>,
    /// By number, and then by name.
    pub(super) instead_of: (Option<i64>, Option<String>),
}

/// Deliveries with their events.
pub(super) type Taken = Vec<(RawWaiting, RawEvent)>;

/// How much more a lease may take.
pub(super) struct Room {
    pub(super) deliveries: usize,
    pub(super) bytes: usize,
}

impl Room {
    pub(super) const fn new(deliveries: usize) -> Self {
        Self {
            deliveries,
            bytes: LARGEST_LEASE,
        }
    }

    /// One delivery more, of so many bytes.
    pub(super) const fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.deliveries = self.deliveries.saturating_sub(1);
    }

    pub(super) const fn is_full(&self) -> bool {
        self.deliveries == 0 || self.bytes == 0
    }
}

/// What one notice tells of a whole command.
pub(super) struct Batch {
    pub(super) waiting: Taken,
    pub(super) digest: Option<Digest>,
    pub(super) summary: Option<RawEvent>,
}

impl Batch {
    /// Deliveries that each tell of their own event.
    pub(super) const fn plain(waiting: Taken) -> Self {
        Self {
            waiting,
            digest: None,
            summary: None,
        }
    }
}

impl RawLeased {
    /// Reads the events.
    pub(super) fn read(self) -> Leased {
        let lanes = self.lanes.into_iter().map(RawLane::read).collect();
        Leased {
            lanes,
            next_due: self.next_due.map(from_nanos),
            in_trouble_since: self.in_trouble_since.map(from_nanos),
        }
    }
}

impl RawLane {
    fn read(self) -> Lane {
        let waiting = self.waiting.into_iter().map(|(raw, event)| {
            let stored = event.read();
            Waiting {
                event_id: stored.id,
                event: stored.event,
                received_at: stored.received_at,
                key: raw.key,
                repeat_of: stored.repeat_of,
                conflict: stored.conflict,
                terminal_sent: raw.terminal_sent,
                alone: raw.alone,
                resent: raw.resent,
                possible_repeat: raw.possible_repeat,
                high_then: raw.high_then,
                tries: raw.tries,
                failing_since: raw.failing_since.map(from_nanos),
                progress: raw.progress,
                thread: raw.thread,
                instead_of: raw.instead_of.1,
            }
        });
        let mut lane = Lane {
            waiting: waiting.collect(),
            ..self.lane
        };
        if let (Some(digest), Some(summary)) = (&mut lane.digest, self.summary) {
            let event = summary.read().event;
            digest.count_unheard(event.command().map_or(0, |it| it.instances.len()));
        }
        lane
    }
}

/// Adds so many instances that ended in such a way.
pub(super) fn count_ended(digest: &mut Digest, status: &str, count: u64) {
    match Status::parse(status) {
        Status::Success => digest.succeeded = count,
        Status::Failed => digest.failed = count,
        Status::TimedOut => digest.timed_out = count,
        Status::Cancelled => digest.cancelled = count,
        Status::InProgress | Status::Other(_) => digest.running += count,
    }
}

/// Whether a summary's status says more of the whole than what is known.
pub(super) fn says_more(status: &Status, known: Option<&Status>) -> bool {
    known.is_none_or(|known| status.is_terminal() && !known.is_terminal())
}

/// What one transaction adds to the books of a sink.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    pub(super) owed: i64,
    pub(super) sent: i64,
    pub(super) muted: i64,
    pub(super) redundant: i64,
    pub(super) dropped: i64,
    pub(super) dead: i64,
}

impl Change {
    /// Books so many deliveries that ended so; what waits on, or waits elsewhere, is not booked.
    pub(super) const fn count(&mut self, outcome: &Outcome, many: i64) {
        match outcome {
            Outcome::Sent => self.sent += many,
            Outcome::Muted => self.muted += many,
            Outcome::Redundant => self.redundant += many,
            Outcome::Dropped => self.dropped += many,
            Outcome::Dead => self.dead += many,
            Outcome::Retry | Outcome::Parked | Outcome::Diverted => {}
        }
    }
}

const REPEAT: i64 = 1;
const POSSIBLE_REPEAT: i64 = 2;
const RESENT: i64 = 4;
const CONFLICT: i64 = 8;

pub(super) fn mark_bits(marks: &Marks) -> i64 {
    [
        (marks.repeat, REPEAT),
        (marks.possible_repeat, POSSIBLE_REPEAT),
        (marks.resent, RESENT),
        (marks.conflict, CONFLICT),
    ]
    .iter()
    .filter(|(set, _)| *set)
    .map(|(_, bit)| bit)
    .sum()
}

/// How late it was, as a number.
pub(super) fn late_nanos(settled: &Settled) -> Option<i64> {
    let nanos = settled.marks.late?.as_nanos();
    Some(i64::try_from(nanos).unwrap_or(i64::MAX))
}

/// How long the sink took, as a number.
pub(super) fn took_nanos(settled: &Settled) -> Option<i64> {
    let nanos = settled.took?.as_nanos();
    Some(i64::try_from(nanos).unwrap_or(i64::MAX))
}

/// The time that [`took_nanos`] made into a number.
pub(super) fn took(nanos: Option<i64>) -> Option<Duration> {
    nanos.map(|nanos| Duration::from_nanos(nanos.unsigned_abs()))
}

/// The marks that [`mark_bits`] and [`late_nanos`] made into numbers.
pub(super) fn marks(bits: i64, late: Option<i64>) -> Marks {
    Marks {
        late: took(late),
        repeat: bits & REPEAT != 0,
        possible_repeat: bits & POSSIBLE_REPEAT != 0,
        resent: bits & RESENT != 0,
        conflict: bits & CONFLICT != 0,
        instead_of: None,
    }
}
