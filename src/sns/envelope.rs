//! The document that SNS posts, read strictly; still untrusted.
//!
//! Everything that could be read in two ways is refused here: a key twice or in another case, a
//! text that is none, a control character that would move a field's boundary in the string that was
//! signed. What is not signed decides nothing but how to verify.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;

use super::TopicArn;
use super::proof::{Signed, canonical};

mod fields;

pub(super) use fields::Key;
use fields::Raw;

/// What an envelope says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// A message that was published.
    Notification,
    /// Somebody subscribed this endpoint and asks whether that is wanted.
    SubscriptionConfirmation,
    /// A subscription was ended.
    UnsubscribeConfirmation,
}

impl MessageType {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Notification => "Notification",
            Self::SubscriptionConfirmation => "SubscriptionConfirmation",
            Self::UnsubscribeConfirmation => "UnsubscribeConfirmation",
        }
    }
}

/// How an envelope says it was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// SHA-1.
    One,
    /// SHA-256.
    Two,
}

impl Version {
    /// The number on the wire.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// An envelope whose every field has the form that SNS gives it.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub(super) message_type: MessageType,
    pub(super) message: Cow<'a, str>,
    pub(super) message_id: Cow<'a, str>,
    pub(super) topic: TopicArn,
    pub(super) timestamp: Cow<'a, str>,
    pub(super) sent_at: Timestamp,
    pub(super) subject: Option<Cow<'a, str>>,
    subscribe_url: Option<Cow<'a, str>>,
    pub(super) token: Option<Cow<'a, str>>,
    pub(super) version: Version,
    pub(super) signature: Vec<u8>,
    pub(super) certificate_url: Cow<'a, str>,
}

/// Why bytes are no envelope: a stable word, and a sentence.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) word: &'static str,
    pub(super) sentence: String,
}

const LONGEST_ID: usize = 256;
const LONGEST_TOKEN: usize = 1024;
/// RSA-8192 in base64, and more.
const LONGEST_SIGNATURE: usize = 2048;

impl<'a> Envelope<'a> {
    /// Reads an envelope.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut raw: Raw<'a> = serde_json::from_slice(body).map_err(|error| {
            // What serde says may repeat all of it.
            let what = match error.classify() {
                serde_json::error::Category::Data => "it is no object of texts",
                serde_json::error::Category::Eof => "it ends too early",
                _ => "it is no JSON",
            };
            let (line, column) = (error.line(), error.column());
            Malformed::of("json", format!("{what}, at line {line}, column {column}"))
        })?;
        if let Some(problem) = raw.problem.take() {
            return Err(problem);
        }
        let message_type = match raw.take(Key::Type)?.as_ref() {
            "Notification" => MessageType::Notification,
            "SubscriptionConfirmation" => MessageType::SubscriptionConfirmation,
            "UnsubscribeConfirmation" => MessageType::UnsubscribeConfirmation,
            other => {
                let what = format!("Type is {}, which SNS does not send", shown(other));
                return Err(Malformed::of("type", what));
            }
        };
        let confirms = message_type != MessageType::Notification;
        let subject = raw.slot(Key::Subject).take();
        if subject.as_deref() == Some("") {
            return Err(Malformed::of(
                "subject",
                "Subject is there and empty; SNS leaves it out",
            ));
        }
        let (token, subscribe_url) = if confirms {
            (
                Some(raw.take(Key::Token)?),
                Some(raw.take(Key::SubscribeUrl)?),
            )
        } else {
            (None, None)
        };
        let (message_id, timestamp) = (raw.take(Key::MessageId)?, raw.take(Key::Timestamp)?);
        let topic_arn = raw.take(Key::TopicArn)?;
        for (key, text) in [
            (Key::Subject, subject.as_deref().filter(|_| !confirms)),
            (Key::MessageId, Some(&*message_id)),
            (Key::Timestamp, Some(&*timestamp)),
            (Key::TopicArn, Some(&*topic_arn)),
            (Key::Token, token.as_deref()),
            (Key::SubscribeUrl, subscribe_url.as_deref()),
        ] {
            if text.is_some_and(|text| text.chars().any(char::is_control)) {
                let what = format!("{} has a control character", key.name());
                return Err(Malformed::of("control", what));
            }
        }
        if message_id.is_empty() || message_id.len() > LONGEST_ID {
            return Err(Malformed::of(
                "message-id",
                "MessageId is empty or too long",
            ));
        }
        if let Some(token) = &token
            && (token.is_empty()
                || token.len() > LONGEST_TOKEN
                || !token
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        {
            return Err(Malformed::of(
                "token",
                "Token is not lower-case hexadecimal",
            ));
        }
        let version = match raw.take(Key::SignatureVersion)?.as_ref() {
            "1" => Version::One,
            "2" => Version::Two,
            other => {
                let what = format!("SignatureVersion is {}, not 1 or 2", shown(other));
                return Err(Malformed::of("version", what));
            }
        };
        Ok(Self {
            message_type,
            message: raw.take(Key::Message)?,
            message_id,
            topic: topic_arn.parse().map_err(|_| {
                let what = format!("TopicArn {} is no topic's ARN", shown(&topic_arn));
                Malformed::of("topic", what)
            })?,
            sent_at: moment(&timestamp)?,
            timestamp,
            // Signed in notifications only; elsewhere anybody may have written it.
            subject: subject.filter(|_| !confirms),
            subscribe_url,
            token,
            version,
            signature: signature(&raw.take(Key::Signature)?)?,
            certificate_url: raw.take(Key::SigningCertUrl)?,
        })
    }

    /// The fields that may be signed, Timestamp to the letter.
    pub(super) fn signed(&self) -> Signed<'_> {
        Signed {
            message_type: self.message_type,
            topic: self.topic.as_str(),
            message_id: &self.message_id,
            subject: self.subject.as_deref(),
            message: &self.message,
            sent_at: self.sent_at,
            timestamp: Some(&self.timestamp),
            token: self.token.as_deref(),
            subscribe_url: self.subscribe_url.as_deref(),
        }
    }

    /// The literal Timestamp, where it is not the one that SNS itself writes for its moment.
    pub(super) fn odd_timestamp(&self) -> Option<&str> {
        Some(&*self.timestamp).filter(|text| *text != canonical(self.sent_at))
    }
}

impl Malformed {
    fn of(word: &'static str, sentence: impl fmt::Display) -> Self {
        Self {
            word,
            sentence: sentence.to_string(),
        }
    }
}

/// A piece of what somebody posted, bounded, without anything that a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 100;
    let mut piece: String = text.chars().take(MOST).collect();
    if piece.len() < text.len() {
        piece.push('…');
    }
    format!("{piece:?}")
}

/// Why a Timestamp is refused.
pub(super) fn odd(timestamp: &str) -> String {
    format!("Timestamp {} is not as SNS writes it", shown(timestamp))
}

/// Whether a Timestamp looks like `2012-05-02T00:54:06.655Z`: the only form of SNS itself.
pub(super) fn is_snss(timestamp: &str) -> bool {
    timestamp.len() == 24 && is_moment(timestamp)
}

/// RFC 3339 in capitals with up to nine digits of a second, and nothing else that a lenient reader
/// would take. Services compatible with SNS write whole seconds, nanoseconds and offsets.
fn is_moment(text: &str) -> bool {
    let has_form = |text: &str, form: &str| {
        text.len() == form.len()
            && text
                .bytes()
                .zip(form.bytes())
                .all(|(byte, form)| match form {
                    b'0' => byte.is_ascii_digit(),
                    other => byte == other,
                })
    };
    let Some((second, rest)) = text.split_at_checked(19) else {
        return false;
    };
    let offset = match rest.strip_prefix('.') {
        None => rest,
        Some(rest) => {
            let offset = rest.trim_start_matches(|it: char| it.is_ascii_digit());
            if !(1..=9).contains(&(rest.len() - offset.len())) {
                return false;
            }
            offset
        }
    };
    has_form(second, "0000-00-00T00:00:00")
        && (offset == "Z" || has_form(offset, "+00:00") || has_form(offset, "-00:00"))
}

fn moment(text: &str) -> Result<Timestamp, Malformed> {
    let parsed = is_moment(text).then(|| text.parse().ok()).flatten();
    parsed.ok_or_else(|| Malformed::of("timestamp", odd(text)))
}

fn signature(text: &str) -> Result<Vec<u8>, Malformed> {
    let bytes = (text.len() <= LONGEST_SIGNATURE)
        .then(|| BASE64_STANDARD.decode(text).ok())
        .flatten();
    bytes.ok_or_else(|| Malformed::of("base64", "Signature is not standard base64"))
}

#[cfg(test)]
mod tests;
