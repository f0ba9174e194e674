//! What goes over the line between the admin door and the command line, as JSON.
//!
//! Both ends use these; they are a format and change only by addition. Times are RFC 3339, lengths
//! of time are seconds. Nothing secret is in them: a subscription's token never leaves the store.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::delivery;
use crate::receive;
use crate::store;

/// Whether the process is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Nothing stands in the way.
    pub ready: bool,
    /// What does.
    pub reasons: Vec<Reason>,
}

/// One thing that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The part that says it.
    pub part: String,
    /// What is wrong.
    pub why: String,
}

/// The settings were read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What changed.
    pub message: String,
}

/// A page of events, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// The events, without their messages.
    pub events: Vec<Event>,
    /// What to give as `before` for the next page; absent when this is the last.
    pub next: Option<i64>,
}

/// An event as it is kept. Fields that its kind does not have are null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "EventTime is AWS's word")]
pub struct Event {
    /// Its number.
    pub id: i64,
    /// What it is: `summary`, `invocation`…
    pub kind: String,
    /// The command.
    pub command: Option<String>,
    /// The instance.
    pub instance: Option<String>,
    /// The document that ran.
    pub document: Option<String>,
    /// The status.
    pub status: Option<String>,
    /// The detailed status.
    pub detail: Option<String>,
    /// When it happened.
    pub event_time: Option<Timestamp>,
    /// The moment that orders it.
    pub sort_time: Timestamp,
    /// Its time was not credible, and is not what orders it.
    pub time_doubted: bool,
    /// When SNS signed it.
    pub sent_at: Timestamp,
    /// When it arrived.
    pub received_at: Timestamp,
    /// The earlier event that told the same step.
    pub repeat_of: Option<i64>,
    /// ARN of its topic.
    pub topic: String,
    /// The topic's account.
    pub account: String,
    /// The topic's region.
    pub region: String,
    /// What SNS calls it.
    pub message_id: String,
    /// Its subject.
    pub subject: Option<String>,
    /// The message as it was signed; only where one event is asked for.
    pub message: Option<String>,
}

/// One event, and everything owed for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventShown {
    /// The event, with its message.
    pub event: Event,
    /// To whom it is owed, and what came of that.
    pub deliveries: Vec<Delivery>,
}

/// What is owed to one sink, and what came of it so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// The route that owes it.
    pub route: String,
    /// The sink.
    pub sink: String,
    /// When it may go, while it waits.
    pub waits_until: Option<Timestamp>,
    /// It is among the dead letters.
    pub dead: bool,
    /// Its history, oldest first.
    pub history: Vec<Outcome>,
}

/// One line of a delivery's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// When.
    pub at: Timestamp,
    /// What happened: `sent`, `retry`, `dead`…
    pub result: String,
    /// What a reader has to know besides: `late`, `repeat`, `possible-repeat`, `resent`,
    /// `conflict`.
    pub marks: Vec<String>,
    /// By how many seconds it left after something that happened later.
    pub late_seconds: Option<f64>,
    /// What the sink answered.
    pub answer: Option<String>,
    /// How long the sink took for it, if it was asked.
    pub took_seconds: Option<f64>,
}

/// Dead letters, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetters {
    /// The dead letters; their events are without messages.
    pub dead: Vec<DeadLetter>,
}

/// A delivery that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its number.
    pub id: i64,
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
    /// The event.
    pub event: Event,
}

/// Which dead letters to retry or drop: exactly one of `all`, `sink` and `ids`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadAct {
    /// All of them, when true.
    pub all: bool,
    /// Those of one sink.
    pub sink: Option<String>,
    /// These.
    pub ids: Option<Vec<i64>>,
    /// For a retry: the sink to send to, in place of their own.
    pub to: Option<String>,
}

/// Which sink's waiting deliveries become dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bury {
    /// Its name; usually one that the settings no longer have.
    pub sink: String,
}

/// How many were meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// So many.
    pub count: u64,
}

/// Subscriptions that asked to be confirmed, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscriptions {
    /// The subscriptions.
    pub subscriptions: Vec<Subscription>,
}

/// A subscription that asked to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Its number.
    pub id: i64,
    /// ARN of the topic.
    pub topic: String,
    /// When it asked.
    pub asked_at: Timestamp,
    /// When it was confirmed.
    pub confirmed_at: Option<Timestamp>,
}

/// The refused envelopes that are kept, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedList {
    /// The envelopes.
    pub refused: Vec<Refused>,
}

/// A refused envelope of an allowed topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its number, as long as the process lives.
    pub id: u64,
    /// When it was refused.
    pub at: Timestamp,
    /// ARN of the topic it claims.
    pub topic: String,
    /// The stable word of the refusal.
    pub word: String,
    /// Why, in one sentence.
    pub sentence: String,
}

/// What came of judging an envelope again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// It is kept now, or was already.
    pub accepted: bool,
    /// Why, in one sentence.
    pub sentence: String,
}

/// How much waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlogs {
    /// For each sink that has anything waiting or dead, or rests.
    pub sinks: Vec<Backlog>,
}

/// How much waits for one sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// The sink.
    pub sink: String,
    /// Deliveries that wait.
    pub waiting: u64,
    /// When the oldest of them arrived.
    pub oldest: Option<Timestamp>,
    /// Deliveries among the dead letters.
    pub dead: u64,
    /// Until when it rests.
    pub backoff_until: Option<Timestamp>,
}

/// The books: owed = sent + muted + redundant + dropped + dead + waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tallies {
    /// For each sink.
    pub sinks: Vec<Tally>,
}

/// The books of one sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// The sink.
    pub sink: String,
    /// Ever owed.
    pub owed: u64,
    /// Reached it.
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

impl Event {
    /// The event without its message.
    #[must_use]
    pub fn brief(stored: store::StoredEvent) -> Self {
        Self {
            message: None,
            ..Self::whole(stored)
        }
    }

    /// The event with its message.
    #[must_use]
    pub fn whole(stored: store::StoredEvent) -> Self {
        let event = stored.event;
        let command = event.command();
        Self {
            id: stored.id.0,
            kind: event.kind.word().to_owned(),
            command: command.map(|it| it.command.clone()),
            instance: command.and_then(|it| it.instance.clone()),
            document: command.map(|it| it.document.clone()),
            status: command.map(|it| it.status.as_str().to_owned()),
            detail: command.and_then(|it| it.detail.clone()),
            event_time: command.and_then(|it| it.event_time),
            sort_time: event.sort_time,
            time_doubted: event.time_doubted,
            sent_at: event.sent_at,
            received_at: stored.received_at,
            repeat_of: stored.repeat_of.map(|id| id.0),
            topic: event.topic,
            account: event.account,
            region: event.region,
            message_id: event.message_id,
            subject: event.subject,
            message: Some(event.body),
        }
    }
}

impl From<receive::Refused> for Refused {
    fn from(refused: receive::Refused) -> Self {
        Self {
            id: refused.id,
            at: refused.at,
            topic: refused.topic,
            word: refused.word.to_owned(),
            sentence: refused.sentence,
        }
    }
}

impl From<store::Delivery> for Delivery {
    fn from(delivery: store::Delivery) -> Self {
        Self {
            route: delivery.route,
            sink: delivery.sink,
            waits_until: delivery.waits_until,
            dead: delivery.dead,
            history: delivery.outcomes.into_iter().map(Outcome::from).collect(),
        }
    }
}

impl From<store::PastOutcome> for Outcome {
    fn from(past: store::PastOutcome) -> Self {
        let delivery::Marks {
            late,
            repeat,
            possible_repeat,
            resent,
            conflict,
            // The history of the other sink says to whom it was diverted.
            instead_of: _,
        } = past.marks;
        let marks = [
            ("late", late.is_some()),
            ("repeat", repeat),
            ("possible-repeat", possible_repeat),
            ("resent", resent),
            ("conflict", conflict),
        ];
        Self {
            at: past.at,
            result: past.outcome.word().to_owned(),
            marks: marks
                .iter()
                .filter(|(_, set)| *set)
                .map(|(word, _)| (*word).to_owned())
                .collect(),
            late_seconds: late.map(|late| late.as_secs_f64()),
            answer: past.answer,
            took_seconds: past.took.map(|took| took.as_secs_f64()),
        }
    }
}

impl From<store::DeadLetter> for DeadLetter {
    fn from(letter: store::DeadLetter) -> Self {
        Self {
            id: letter.id,
            route: letter.route,
            sink: letter.sink,
            died_at: letter.died_at,
            tries: letter.tries,
            answer: letter.answer,
            event: Event::whole(letter.event),
        }
    }
}

impl From<store::Subscription> for Subscription {
    fn from(subscription: store::Subscription) -> Self {
        Self {
            id: subscription.id,
            topic: subscription.topic,
            asked_at: subscription.asked_at,
            confirmed_at: subscription.confirmed_at,
        }
    }
}

impl From<store::Backlog> for Backlog {
    fn from(backlog: store::Backlog) -> Self {
        Self {
            sink: backlog.sink,
            waiting: backlog.waiting,
            oldest: backlog.oldest,
            dead: backlog.dead,
            backoff_until: backlog.backoff_until,
        }
    }
}

impl From<store::Tally> for Tally {
    fn from(tally: store::Tally) -> Self {
        Self {
            sink: tally.sink,
            owed: tally.owed,
            sent: tally.sent,
            muted: tally.muted,
            redundant: tally.redundant,
            dropped: tally.dropped,
            dead: tally.dead,
            waiting: tally.waiting,
        }
    }
}
