//! Whether AWS signed it, for a topic of ours. The only place that makes a [`Verified`].

use std::net::IpAddr;

use jiff::Timestamp;
use secrecy::SecretString;

use super::{KnownCertificate, MessageType, TopicArn, TopicSettings};

/// Says whether AWS signed an envelope, for a topic that the settings allow.
pub struct Verifier {}

/// What the request headers say about the envelope. Not signed: they may only contradict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a> {
    /// `x-amz-sns-message-type`.
    pub message_type: Option<&'a str>,
    /// `x-amz-sns-message-id`.
    pub message_id: Option<&'a str>,
    /// `x-amz-sns-topic-arn`.
    pub topic_arn: Option<&'a str>,
    /// `x-amz-sns-rawdelivery` is there and says true.
    pub raw: bool,
}

/// A message that was signed, for a topic that is allowed: what you read is what was signed.
#[derive(Debug)]
pub struct Verified {
    message_type: MessageType,
}

impl Verified {
    /// What it is.
    #[must_use]
    pub const fn message_type(&self) -> MessageType {
        self.message_type
    }

    /// The topic it is for.
    #[must_use]
    pub fn topic(&self) -> &TopicArn {
        todo!()
    }

    /// What SNS calls it; constant over retries.
    #[must_use]
    pub fn message_id(&self) -> &str {
        todo!()
    }

    /// When it was signed.
    #[must_use]
    pub fn sent_at(&self) -> Timestamp {
        todo!()
    }

    /// Its subject, if it has one.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        todo!()
    }

    /// Its text.
    #[must_use]
    pub fn message(&self) -> &str {
        todo!()
    }

    /// The token of a confirmation.
    #[must_use]
    pub fn token(&self) -> Option<&SecretString> {
        todo!()
    }

    /// A certificate that had to be fetched for it, to be kept for the next start.
    #[must_use]
    pub fn fetched(&self) -> Option<&KnownCertificate> {
        todo!()
    }
}

/// Why an envelope was not believed.
#[derive(Debug)]
pub struct Refusal {
    /// One stable word for machines, such as `signature` or `foreign-topic`.
    pub word: &'static str,
    /// One sentence for people; holds no more than a bounded, escaped piece of what was posted.
    pub sentence: String,
    /// What to answer.
    pub answer: Answer,
    /// The topic, when it is an allowed one: worth keeping to be judged again.
    pub topic: Option<TopicArn>,
}

/// What a refusal means to the one who posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 400: that is no envelope.
    Malformed,
    /// 403: proved wrong, for good.
    Forbidden,
    /// 503: cannot tell now; try again.
    Later,
}

impl Verifier {
    /// A verifier for `topics` that fetches with `http`, trusting the certificates in `known` as if
    /// it had fetched them itself.
    #[must_use]
    pub fn new(
        _topics: Vec<TopicSettings>,
        _http: reqwest::Client,
        _known: Vec<KnownCertificate>,
    ) -> Self {
        todo!()
    }

    /// Judges one request. `client` pays for a fetch that it causes.
    ///
    /// # Errors
    /// When it is not proved that AWS signed it for an allowed topic.
    pub async fn verify(
        &self,
        _body: &[u8],
        _headers: Headers<'_>,
        _client: IpAddr,
        _now: Timestamp,
    ) -> Result<Verified, Refusal> {
        todo!()
    }
}
