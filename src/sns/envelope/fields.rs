//! The fields of an envelope, taken out of its JSON so that none can be read in two ways.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Malformed, shown};

/// The keys that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sns) enum Key {
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
    pub(in crate::sns) const fn name(self) -> &'static str {
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
pub(super) struct Raw<'a> {
    texts: [Option<Cow<'a, str>>; KEYS.len()],
    pub(super) problem: Option<Malformed>,
}

impl<'a> Raw<'a> {
    pub(super) fn take(&mut self, key: Key) -> Result<Cow<'a, str>, Malformed> {
        self.slot(key)
            .take()
            .ok_or_else(|| Malformed::of("field", format!("{} is missing", key.name())))
    }

    #[expect(clippy::indexing_slicing, reason = "there is a place for every key")]
    pub(super) const fn slot(&mut self, key: Key) -> &mut Option<Cow<'a, str>> {
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
