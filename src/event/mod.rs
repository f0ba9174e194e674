//! What happened: one verified message, read into typed fields. Reading never fails.
//!
//! Pure, and knows no SNS: `receive` hands over the pieces of a verified message as [`Source`].
//! A message that is no Run Command status keeps its text and is an event all the same; nothing
//! verified is refused for its content. Facts about payloads: AWS's Run Command documentation
//! (2018–2026) and captured notifications.

use std::fmt;

use jiff::Timestamp;

mod message;
mod read;

/// The pieces of a verified message that reading looks at.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// ARN of the topic it arrived on.
    pub topic: &'a str,
    /// Account of that topic, twelve digits.
    pub account: &'a str,
    /// Region of that topic.
    pub region: &'a str,
    /// What the sender calls the message; unique within its topic.
    pub message_id: &'a str,
    /// When it was signed.
    pub sent_at: Timestamp,
    /// Its subject, if it has one.
    pub subject: Option<&'a str>,
    /// Its text.
    pub body: &'a str,
    /// What the envelope says it is.
    pub envelope: EnvelopeKind,
}

/// The envelope a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeKind {
    /// An ordinary notification.
    Notification,
    /// Somebody asks whether this endpoint wants the topic.
    SubscriptionConfirmation,
    /// Somebody ended the subscription.
    UnsubscribeConfirmation,
}

/// One verified thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// ARN of the topic it arrived on.
    pub topic: String,
    /// Account of that topic, twelve digits.
    pub account: String,
    /// Region of that topic.
    pub region: String,
    /// What the sender calls the message; unique within its topic.
    pub message_id: String,
    /// When it was signed.
    pub sent_at: Timestamp,
    /// Its subject, if it has one.
    pub subject: Option<String>,
    /// The message as it was signed, whole.
    pub body: String,
    /// What it is.
    pub kind: Kind,
    /// Which moment orders it: its event time when that is credible, else `sent_at`.
    pub sort_time: Timestamp,
    /// Whether an event time was there but not credible, or could not be read.
    pub time_doubted: bool,
}

/// What an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command changed its status.
    Summary(CommandStatus),
    /// A command changed its status on one instance.
    Invocation(CommandStatus),
    /// A `CloudWatch` alarm changed its state.
    Alarm,
    /// An `EventBridge` event that is not about Run Command.
    EventBridge,
    /// A topic asked to be confirmed.
    Subscribe,
    /// A subscription of ours was ended.
    Unsubscribe,
    /// Anything else.
    Other,
}

/// What a Run Command notification says. Unset texts are `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandStatus {
    /// The command's id.
    pub command: String,
    /// The instance, of an invocation; also of a summary in the spelling of 2018.
    pub instance: Option<String>,
    /// The instances a summary lists; empty when the command was targeted by tags.
    pub instances: Vec<String>,
    /// Name, or ARN, of the document that ran.
    pub document: String,
    /// The status.
    pub status: Status,
    /// The detailed status, of real invocations only.
    pub detail: Option<String>,
    /// When it happened, with whatever precision it came.
    pub event_time: Option<Timestamp>,
    /// When the command was asked for; differs between the notifications of one invocation.
    pub requested_at: Option<Timestamp>,
    /// When a summary's command gives up starting.
    pub expires_at: Option<Timestamp>,
    /// Where a summary's command writes its output.
    pub output_bucket: Option<String>,
    /// Under which key prefix it writes there.
    pub output_prefix: Option<String>,
    /// Whether `EventBridge` told it, to the second only.
    pub from_event_bridge: bool,
}

/// A status of a command or an invocation, in whatever spelling it came.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It was sent; no proof that the node started.
    InProgress,
    /// It succeeded.
    Success,
    /// It failed.
    Failed,
    /// It ran out of time, waiting or running.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// A status that this version does not know; not terminal.
    Other(String),
}

impl Status {
    /// Reads a status in any of its spellings: `Canceled`, `Timed Out`, `EXECUTION_TIMED_OUT`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match letters(text).as_str() {
            "inprogress" => Self::InProgress,
            "success" => Self::Success,
            "failed" => Self::Failed,
            "timedout" | "deliverytimedout" | "executiontimedout" => Self::TimedOut,
            "cancelled" | "canceled" => Self::Cancelled,
            _ => Self::Other(text.to_owned()),
        }
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(
            self,
            Self::Success | Self::Failed | Self::TimedOut | Self::Cancelled
        )
    }

    /// The status as Run Command spells it on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::InProgress => "InProgress",
            Self::Success => "Success",
            Self::Failed => "Failed",
            Self::TimedOut => "TimedOut",
            Self::Cancelled => "Cancelled",
            Self::Other(text) => text,
        }
    }
}

/// A detailed status in the one spelling that Systems Manager uses; others are kept as they are.
#[must_use]
pub fn detail(text: &str) -> &str {
    match letters(text).as_str() {
        "inprogress" => "InProgress",
        "success" => "Success",
        "failed" => "Failed",
        "executiontimedout" => "ExecutionTimedOut",
        "deliverytimedout" => "DeliveryTimedOut",
        "undeliverable" => "Undeliverable",
        "terminated" => "Terminated",
        "invalidplatform" => "InvalidPlatform",
        "accessdenied" => "AccessDenied",
        "cancelled" | "canceled" => "Cancelled",
        _ => text,
    }
}

/// Only what distinguishes one spelling's word from another word.
#[must_use]
pub fn letters(text: &str) -> String {
    text.chars()
        .filter(|each| each.is_alphanumeric())
        .map(|each| each.to_ascii_lowercase())
        .collect()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Event {
    /// Reads a verified message. What it does not understand it keeps as [`Kind::Other`].
    #[must_use]
    pub fn read(source: &Source<'_>) -> Self {
        read::read(source)
    }

    /// What Run Command says in it, if it is a summary or an invocation.
    #[must_use]
    pub const fn command(&self) -> Option<&CommandStatus> {
        match &self.kind {
            Kind::Summary(status) | Kind::Invocation(status) => Some(status),
            _ => None,
        }
    }

    /// Its place among events of one moment: summary `InProgress` 0, invocation `InProgress` 1,
    /// anything else of an invocation 2, anything else 3.
    #[must_use]
    pub const fn rank(&self) -> u8 {
        match &self.kind {
            Kind::Summary(status) if matches!(status.status, Status::InProgress) => 0,
            Kind::Invocation(status) if matches!(status.status, Status::InProgress) => 1,
            Kind::Invocation(_) => 2,
            _ => 3,
        }
    }
}

impl Kind {
    /// The word that routes match and tables show.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Summary(_) => "summary",
            Self::Invocation(_) => "invocation",
            Self::Alarm => "alarm",
            Self::EventBridge => "eventbridge",
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Other => "other",
        }
    }
}
