//! The proof that AWS signed a message, in the form that lasts for years.
//!
//! `verify` makes a [`Proof`] of each message, `receive` hands it to the store with the event. From
//! both, [`Signed::string_to_sign`] rebuilds the signed text byte for byte, so that OpenSSL alone can
//! verify an event long after SNS has forgotten it. Pure.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;

use super::MessageType;
use super::envelope::Key;

/// What proves the origin of one message, besides the message itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The signature's bytes.
    pub signature: Vec<u8>,
    /// The signature's version: 1 (SHA-1) or 2 (SHA-256).
    pub version: u8,
    /// The literal Timestamp, where it is not [`canonical`] of its moment.
    pub timestamp: Option<String>,
    /// The certificate that the signature was verified with; `None` once nobody keeps it any more.
    pub certificate: Option<Arc<Certificate>>,
}

/// A certificate that verified signatures. All messages that it verified share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// SHA-256 of its DER: blanks and line ends of the PEM file that SNS serves do not count.
    pub sha256: [u8; 32],
    /// The certificate, PEM as OpenSSL writes it: decoding it gives the very DER that was hashed.
    pub pem: Vec<u8>,
}

/// The fields of a message that may be signed. The type decides which of them are.
///
/// A notification's fields all stand in its event and its [`Proof`]. Those of a confirmation do not:
/// whoever has its `Token` can confirm the subscription, and `SubscribeURL` repeats the token, so
/// that neither is part of an event. Its text can be rebuilt only from the envelope as it came.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// `Type`.
    pub message_type: MessageType,
    /// `TopicArn`.
    pub topic: &'a str,
    /// `MessageId`.
    pub message_id: &'a str,
    /// `Subject`; signed in notifications only.
    pub subject: Option<&'a str>,
    /// `Message`.
    pub message: &'a str,
    /// The moment of signing.
    pub sent_at: Timestamp,
    /// `Timestamp` to the letter, where it is not [`canonical`] of `sent_at`.
    pub timestamp: Option<&'a str>,
    /// `Token`; signed in confirmations only.
    pub token: Option<&'a str>,
    /// `SubscribeURL`; signed in confirmations only.
    pub subscribe_url: Option<&'a str>,
}

impl Signed<'_> {
    /// Builds the text that was signed. Source: AWS's page on verifying the signatures of SNS
    /// messages. `None` for a confirmation without its token or its URL.
    #[must_use]
    pub fn string_to_sign(&self) -> Option<String> {
        let canonical = self.timestamp.is_none().then(|| canonical(self.sent_at));
        let (subject, token, subscribe_url) = match self.message_type {
            MessageType::Notification => (self.subject, None, None),
            MessageType::SubscriptionConfirmation | MessageType::UnsubscribeConfirmation => {
                (None, Some(self.token?), Some(self.subscribe_url?))
            }
        };
        let pairs: [(Key, Option<&str>); 8] = [
            (Key::Message, Some(self.message)),
            (Key::MessageId, Some(self.message_id)),
            (Key::Subject, subject),
            (Key::SubscribeUrl, subscribe_url),
            (Key::Timestamp, self.timestamp.or(canonical.as_deref())),
            (Key::Token, token),
            (Key::TopicArn, Some(self.topic)),
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
        Some(text)
    }
}

/// Writes a moment as SNS does: `2012-05-02T00:54:06.655Z`, milliseconds always, what is finer cut
/// off.
#[must_use]
pub fn canonical(moment: Timestamp) -> String {
    let mut text = String::with_capacity(24);
    // Writing to a text cannot fail.
    let _ = write!(text, "{moment:.3}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(message_type: MessageType) -> Signed<'static> {
        Signed {
            message_type,
            topic: "arn:aws:sns:us-east-1:123456789012:t",
            message_id: "m-1",
            subject: Some("s"),
            message: "hello\n",
            sent_at: "2026-11-23T10:00:00Z".parse().unwrap(),
            timestamp: None,
            token: Some("0af"),
            subscribe_url: Some("https://u/"),
        }
    }

    #[test]
    fn moments_are_written_as_sns_writes_them() {
        for (moment, expected) in [
            ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00.000Z"),
            ("2026-11-23T10:00:00.5Z", "2026-11-23T10:00:00.500Z"),
            ("2026-11-23T10:00:00.12Z", "2026-11-23T10:00:00.120Z"),
            ("2026-11-23T10:00:00.868954789Z", "2026-11-23T10:00:00.868Z"),
            ("2026-11-23T10:00:00.999999999Z", "2026-11-23T10:00:00.999Z"),
            ("0001-01-01T00:00:00.001Z", "0001-01-01T00:00:00.001Z"),
        ] {
            assert_eq!(canonical(moment.parse().unwrap()), expected);
        }
    }

    #[test]
    fn each_type_signs_its_own_fields() {
        let notification = signed(MessageType::Notification);
        assert_eq!(
            notification.string_to_sign().unwrap(),
            "Message\nhello\n\nMessageId\nm-1\nSubject\ns\nTimestamp\n2026-11-23T10:00:00.000Z\n\
             TopicArn\narn:aws:sns:us-east-1:123456789012:t\nType\nNotification\n"
        );
        let confirmation = signed(MessageType::UnsubscribeConfirmation);
        assert_eq!(
            confirmation.string_to_sign().unwrap(),
            "Message\nhello\n\nMessageId\nm-1\nSubscribeURL\nhttps://u/\n\
             Timestamp\n2026-11-23T10:00:00.000Z\nToken\n0af\n\
             TopicArn\narn:aws:sns:us-east-1:123456789012:t\nType\nUnsubscribeConfirmation\n"
        );
    }

    #[test]
    fn a_literal_timestamp_is_signed_as_it_came() {
        let literal = Signed {
            timestamp: Some("2026-11-23T11:00:00+01:00"),
            ..signed(MessageType::Notification)
        };
        let text = literal.string_to_sign().unwrap();
        assert!(
            text.contains("\nTimestamp\n2026-11-23T11:00:00+01:00\nTopicArn\n"),
            "{text}"
        );
    }

    #[test]
    fn a_confirmation_without_token_or_url_cannot_be_rebuilt() {
        let whole = signed(MessageType::SubscriptionConfirmation);
        for cut in [
            Signed {
                token: None,
                ..whole
            },
            Signed {
                subscribe_url: None,
                ..whole
            },
        ] {
            assert_eq!(cut.string_to_sign(), None);
        }
    }
}
