//! Values as the tables of both engines keep them.

use std::time::Duration;

use jiff::Timestamp;

use crate::delivery::{Marks, clamped_nanos, from_nanos};
use crate::event::{EnvelopeKind, Event, Kind, Source};
use crate::sns::TopicArn;
use crate::store::{EventId, Settled, StoredEvent};

/// How many rows one step of a long work changes.
pub(in crate::store) const STEP: i64 = 500;

/// A moment: nanoseconds since the epoch.
pub(in crate::store) fn nanos(at: Timestamp) -> i64 {
    clamped_nanos(at)
}

/// A time: nanoseconds.
pub(in crate::store) fn length(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// A limit as databases take it.
pub(in crate::store) fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The day of a moment, counted from the epoch.
pub(in crate::store) fn day(at: Timestamp) -> i64 {
    at.as_second().div_euclid(86_400)
}

pub(in crate::store) const fn envelope_number(kind: &Kind) -> i64 {
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
pub(in crate::store) struct RawEvent {
    pub(in crate::store) id: i64,
    pub(in crate::store) topic: String,
    pub(in crate::store) sns_time: i64,
    pub(in crate::store) message_id: String,
    pub(in crate::store) envelope: i64,
    pub(in crate::store) received_at: i64,
    pub(in crate::store) command_no: Option<i64>,
    pub(in crate::store) instance: Option<String>,
    pub(in crate::store) status: Option<String>,
    pub(in crate::store) repeat_of: Option<i64>,
    pub(in crate::store) conflict: bool,
    pub(in crate::store) subject: Option<String>,
    pub(in crate::store) body: Vec<u8>,
}

impl RawEvent {
    /// In place of an event whose row is missing: says so, and holds nothing else.
    pub(in crate::store) fn missing(id: i64) -> Self {
        Self {
            id,
            topic: String::new(),
            sns_time: 0,
            message_id: String::new(),
            envelope: 0,
            received_at: 0,
            command_no: None,
            instance: None,
            status: None,
            repeat_of: None,
            conflict: false,
            subject: None,
            body: b"the event's row is missing from the store".to_vec(),
        }
    }

    /// How much there is to parse, in bytes.
    pub(in crate::store) const fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Reads the event from what was signed: the one truth about it.
    pub(in crate::store) fn read(self) -> StoredEvent {
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

const REPEAT: i64 = 1;
const POSSIBLE_REPEAT: i64 = 2;
const RESENT: i64 = 4;
const CONFLICT: i64 = 8;

pub(in crate::store) fn mark_bits(marks: &Marks) -> i64 {
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
pub(in crate::store) fn late_nanos(settled: &Settled) -> Option<i64> {
    settled.marks.late.map(length)
}

/// How long the sink took, as a number.
pub(in crate::store) fn took_nanos(settled: &Settled) -> Option<i64> {
    settled.took.map(length)
}

/// The time that [`took_nanos`] made into a number.
pub(in crate::store) fn took(nanos: Option<i64>) -> Option<Duration> {
    nanos.map(|nanos| Duration::from_nanos(nanos.unsigned_abs()))
}

/// The marks that [`mark_bits`] and [`late_nanos`] made into numbers.
pub(in crate::store) fn marks(bits: i64, late: Option<i64>) -> Marks {
    Marks {
        late: took(late),
        repeat: bits & REPEAT != 0,
        possible_repeat: bits & POSSIBLE_REPEAT != 0,
        resent: bits & RESENT != 0,
        conflict: bits & CONFLICT != 0,
        instead_of: None,
    }
}
