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
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::TopicArn;

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

/// An envelope whose every field has the form that SNS gives it.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub(super) message_type: MessageType,
    pub(super) message: Cow<'a, str>,
    pub(super) message_id: Cow<'a, str>,
    pub(super) topic: TopicArn,
    timestamp: Cow<'a, str>,
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
        let mut raw: Raw<'a> =
            serde_json::from_slice(body).map_err(|error| Malformed::of("json", error))?;
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

    /// What AWS signed. Source: AWS's page on verifying the signatures of SNS messages.
    pub(super) fn string_to_sign(&self) -> String {
        let pairs: [(Key, Option<&str>); 8] = [
            (Key::Message, Some(&self.message)),
            (Key::MessageId, Some(&self.message_id)),
            (Key::Subject, self.subject.as_deref()),
            (Key::SubscribeUrl, self.subscribe_url.as_deref()),
            (Key::Timestamp, Some(&self.timestamp)),
            (Key::Token, self.token.as_deref()),
            (Key::TopicArn, Some(self.topic.as_str())),
            (Key::Type, Some(self.message_type.as_str())),
        ];
        let mut text = String::with_capacity(self.message.len() + 512);
        for (key, value) in pairs {
            if let Some(value) = value {
                text.push_str(key.name());
                text.push('\n');
                text.push_str(value);
                text.push('\n');
            }
        }
        text
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

/// `2012-05-02T00:54:06.655Z`, and nothing else that a lenient reader would take.
fn moment(text: &str) -> Result<Timestamp, Malformed> {
    let has_form = text.len() == 24
        && text
            .bytes()
            .zip("0000-00-00T00:00:00.000Z".bytes())
            .all(|(byte, form)| match form {
                b'0' => byte.is_ascii_digit(),
                other => byte == other,
            });
    let parsed = has_form.then(|| text.parse().ok()).flatten();
    parsed.ok_or_else(|| {
        let what = format!("Timestamp {} is not as SNS writes it", shown(text));
        Malformed::of("timestamp", what)
    })
}

fn signature(text: &str) -> Result<Vec<u8>, Malformed> {
    let bytes = (text.len() <= LONGEST_SIGNATURE)
        .then(|| BASE64_STANDARD.decode(text).ok())
        .flatten();
    bytes.ok_or_else(|| Malformed::of("base64", "Signature is not standard base64"))
}

/// The keys that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Type,
    MessageId,
    TopicArn,
    Message,
    Subject,
    Timestamp,
    SignatureVersion,
    Signature,
    SigningCertUrl,
    SubscribeUrl,
    Token,
    UnsubscribeUrl,
    MessageAttributes,
}

const KEYS: [Key; 13] = [
    Key::Type,
    Key::MessageId,
    Key::TopicArn,
    Key::Message,
    Key::Subject,
    Key::Timestamp,
    Key::SignatureVersion,
    Key::Signature,
    Key::SigningCertUrl,
    Key::SubscribeUrl,
    Key::Token,
    Key::UnsubscribeUrl,
    Key::MessageAttributes,
];

impl Key {
    const fn name(self) -> &'static str {
        match self {
            Self::Type => "Type",
            Self::MessageId => "MessageId",
            Self::TopicArn => "TopicArn",
            Self::Message => "Message",
            Self::Subject => "Subject",
            Self::Timestamp => "Timestamp",
            Self::SignatureVersion => "SignatureVersion",
            Self::Signature => "Signature",
            Self::SigningCertUrl => "SigningCertURL",
            Self::SubscribeUrl => "SubscribeURL",
            Self::Token => "Token",
            Self::UnsubscribeUrl => "UnsubscribeURL",
            Self::MessageAttributes => "MessageAttributes",
        }
    }

    /// Whether its value is a text. Attributes are of no use, since nobody signed them.
    const fn is_text(self) -> bool {
        !matches!(self, Self::MessageAttributes)
    }

    /// Whether AWS has been seen to write null.
    const fn may_be_null(self) -> bool {
        matches!(self, Self::Subject | Self::UnsubscribeUrl)
    }
}

/// The texts of an envelope by key, and the first thing that is wrong with its keys.
#[derive(Default)]
struct Raw<'a> {
    texts: [Option<Cow<'a, str>>; KEYS.len()],
    problem: Option<Malformed>,
}

impl<'a> Raw<'a> {
    fn take(&mut self, key: Key) -> Result<Cow<'a, str>, Malformed> {
        self.slot(key)
            .take()
            .ok_or_else(|| Malformed::of("field", format!("{} is missing", key.name())))
    }

    #[expect(clippy::indexing_slicing, reason = "there is a place for every key")]
    const fn slot(&mut self, key: Key) -> &mut Option<Cow<'a, str>> {
        &mut self.texts[key as usize]
    }

    fn complain(&mut self, word: &'static str, sentence: String) {
        self.problem.get_or_insert(Malformed { word, sentence });
    }
}

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys)
    }
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Raw<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut raw = Raw::default();
        let mut seen = Vec::with_capacity(KEYS.len());
        while let Some(Value(name)) = map.next_key::<Value<'de>>()? {
            let name = name.unwrap_or_default();
            let Some(key) = KEYS.into_iter().find(|key| key.name() == name) else {
                if let Some(key) = KEYS
                    .iter()
                    .find(|key| key.name().eq_ignore_ascii_case(&name))
                {
                    let what = format!("{} is written {}", key.name(), shown(&name));
                    raw.complain("spelling", what);
                }
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&key) {
                raw.complain("duplicate", format!("{} is there twice", key.name()));
            }
            seen.push(key);
            if !key.is_text() {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let Value(text) = map.next_value()?;
            if text.is_none() && !key.may_be_null() {
                raw.complain("field", format!("{} is no text", key.name()));
            }
            *raw.slot(key) = text;
        }
        Ok(raw)
    }
}

/// A text; `None` when the value is null. Anything else is refused as JSON that SNS does not send.
struct Value<'a>(Option<Cow<'a, str>>);

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Value<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Value(Some(Cow::Borrowed(text))))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Value(Some(Cow::Owned(text.to_owned()))))
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Value(None))
            }
        }

        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"Type":"Notification","MessageId":"m-1",
        "TopicArn":"arn:aws:sns:us-east-1:123456789012:t","Subject":"s","Message":"hello\n",
        "Timestamp":"2026-11-23T10:00:00.000Z","SignatureVersion":"1","Signature":"AAAA",
        "SigningCertURL":"https://example.com/","UnsubscribeURL":"https://example.com/",
        "MessageAttributes":{"a":{"Type":"String","Value":"b"}},"Future":[1]}"#;

    fn word(body: &str) -> &'static str {
        Envelope::read(body.as_bytes()).map_or_else(|error| error.word, |_| "good")
    }

    #[test]
    fn a_good_envelope_is_read_and_its_string_to_sign_is_literal() {
        let envelope = Envelope::read(GOOD.as_bytes()).unwrap();
        assert_eq!(
            envelope.string_to_sign(),
            "Message\nhello\n\nMessageId\nm-1\nSubject\ns\nTimestamp\n2026-11-23T10:00:00.000Z\n\
             TopicArn\narn:aws:sns:us-east-1:123456789012:t\nType\nNotification\n"
        );
    }

    #[test]
    fn a_confirmation_signs_token_and_url_and_no_subject() {
        let body = GOOD
            .replace("Notification", "SubscriptionConfirmation")
            .replace(
                "\"Future\":[1]",
                "\"Token\":\"0af\",\"SubscribeURL\":\"https://u/\"",
            );
        let envelope = Envelope::read(body.as_bytes()).unwrap();
        assert_eq!(
            envelope.string_to_sign(),
            "Message\nhello\n\nMessageId\nm-1\nSubscribeURL\nhttps://u/\n\
             Timestamp\n2026-11-23T10:00:00.000Z\nToken\n0af\n\
             TopicArn\narn:aws:sns:us-east-1:123456789012:t\nType\nSubscriptionConfirmation\n"
        );
        assert_eq!(word(&body.replace("0af", "0AF")), "token");
        assert_eq!(word(&body.replace("0af", "")), "token");
        assert_eq!(word(&body.replace("\"Token\":\"0af\",", "")), "field");
        assert_eq!(
            word(&body.replace("https://u/", "https://u/\\n")),
            "control"
        );
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let change = |from: &str, to: &str| {
            assert!(GOOD.contains(from), "{from}");
            GOOD.replace(from, to)
        };
        let tall = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for (body, expected) in [
            (GOOD.to_owned(), "good"),
            (change("\"Subject\":\"s\",", ""), "good"),
            (change("\"Subject\":\"s\"", "\"Subject\":null"), "good"),
            (
                change("\"UnsubscribeURL\":\"https://example.com/\",", ""),
                "good",
            ),
            (change("\"Subject\":\"s\"", "\"Subject\":\"\""), "subject"),
            (change("\"Subject\":\"s\"", "\"Subject\":1"), "json"),
            (
                change("\"Subject\":\"s\"", "\"Subject\":\"s\",\"Subject\":\"s\""),
                "duplicate",
            ),
            (change("\"Subject\"", "\"\\u0053ubject\""), "good"),
            (
                change(
                    "\"Subject\":\"s\"",
                    "\"Subject\":\"s\",\"\\u0053ubject\":\"t\"",
                ),
                "duplicate",
            ),
            (change("\"Subject\"", "\"subject\""), "spelling"),
            (change("SigningCertURL", "SigningCertUrl"), "spelling"),
            (
                change("\"Future\":[1]", "\"SigningCertUrl\":\"https://evil/\""),
                "spelling",
            ),
            (change("\"MessageId\":\"m-1\",", ""), "field"),
            (
                change("\"MessageId\":\"m-1\"", "\"MessageId\":null"),
                "field",
            ),
            (
                change("\"MessageId\":\"m-1\"", "\"MessageId\":\"\""),
                "message-id",
            ),
            (change("\"m-1\"", "\"m-1\\nSubject\\nforged\""), "control"),
            (change("\"m-1\"", "\"m-1\\u0000\""), "control"),
            (change("\"m-1\"", "\"m-1\\u0085\""), "control"),
            (
                change("\"Subject\":\"s\"", "\"Subject\":\"s\\nTimestamp\\n\""),
                "control",
            ),
            (change("\"Message\":\"hello\\n\",", ""), "field"),
            (change("10:00:00.000Z", "10:00:00Z"), "timestamp"),
            (change("10:00:00.000Z", "10:00:00.000+00:00"), "timestamp"),
            (change("2026-11-23T", "2026-13-23T"), "timestamp"),
            (change("2026-11-23T", "2026-11-23 "), "timestamp"),
            (change("\"1\"", "\"3\""), "version"),
            (
                change("\"SignatureVersion\":\"1\"", "\"SignatureVersion\":1"),
                "json",
            ),
            (change("AAAA", "AA_-"), "base64"),
            (change("AAAA", "AA\\nAA"), "base64"),
            (change("AAAA", "AAA"), "base64"),
            (change("\"Notification\"", "\"notification\""), "type"),
            (change("arn:aws:sns", "arn:aws:sqs"), "topic"),
            (change("[1]", &tall), "good"),
            (format!("\u{feff}{GOOD}"), "json"),
            (format!("{GOOD} {{}}"), "json"),
            (format!("[{GOOD}]"), "json"),
            (serde_json::to_string(GOOD).unwrap(), "json"),
            (String::new(), "json"),
            ("{}".to_owned(), "field"),
        ] {
            assert_eq!(word(&body), expected, "{body:.200}");
        }
        assert!(Envelope::read(b"{\"Type\":\"\xff\"}").is_err());
    }

    #[test]
    fn what_is_shown_of_a_stranger_is_bounded_and_escaped() {
        let piece = shown(&"\u{1b}[2J".repeat(1000));
        assert!(piece.len() < 1000 && !piece.contains('\u{1b}'), "{piece}");
    }
}
