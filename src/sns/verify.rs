//! Whether AWS signed it, for a topic of ours. The only place that makes a [`Verified`].
//!
//! The order of checks is fixed, and nothing is fetched before the topic is known to be allowed and
//! the URL to be right: strict reading → headers equal the body → topic → certificate's URL →
//! certificate → signature. Freshness is asked afterwards, by whoever knows what is stored.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Public};
use openssl::sign;
use secrecy::SecretString;

use super::certificate::{Certificates, Checked, may_lie_at};
use super::envelope::{Envelope, Version, is_snss, odd, shown};
use super::{Http, KnownCertificate, MessageType, Proof, TopicArn, TopicSettings};

mod topics;

use topics::Topics;

/// How old a message may be: the longest that SNS retries is an hour; and our clock may be wrong.
pub const OLDEST: Duration = Duration::from_mins(90);
/// How far in our future it may have been signed.
const NEWEST: Duration = Duration::from_mins(5);

/// Says whether AWS signed an envelope, for a topic that the settings allow.
pub struct Verifier {
    topics: Topics,
    certificates: Certificates,
}

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
    topic: TopicArn,
    message_id: String,
    sent_at: Timestamp,
    subject: Option<String>,
    message: String,
    token: Option<SecretString>,
    trust: Arc<str>,
    proof: Proof,
    fetched: Option<KnownCertificate>,
}

impl Verified {
    /// What it is.
    #[must_use]
    pub const fn message_type(&self) -> MessageType {
        self.message_type
    }

    /// The topic it is for.
    #[must_use]
    pub const fn topic(&self) -> &TopicArn {
        &self.topic
    }

    /// What SNS calls it; constant over retries.
    #[must_use]
    pub fn message_id(&self) -> &str {
        &self.message_id
    }

    /// When it was signed.
    #[must_use]
    pub const fn sent_at(&self) -> Timestamp {
        self.sent_at
    }

    /// Its subject, if it has one.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// Its text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The token of a confirmation.
    #[must_use]
    pub const fn token(&self) -> Option<&SecretString> {
        self.token.as_ref()
    }

    /// The name of the authority that vouches for it: `aws`, or the compatible service's base URL.
    #[must_use]
    pub const fn trust(&self) -> &Arc<str> {
        &self.trust
    }

    /// What proves its origin for good: signature, version, Timestamp where it is odd, certificate.
    #[must_use]
    pub const fn proof(&self) -> &Proof {
        &self.proof
    }

    /// A certificate that had to be fetched for it, to be kept for the next start.
    #[must_use]
    pub const fn fetched(&self) -> Option<&KnownCertificate> {
        self.fetched.as_ref()
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

/// How a message's age compares with our clock.
#[derive(Debug)]
pub enum Freshness {
    /// It was signed lately.
    Fresh,
    /// It is too old, unless it is stored already.
    Stale(Refusal),
    /// It was signed in our future: our clock is the likelier fault.
    Ahead(Refusal),
}

/// Compares when a message was signed with `now`.
#[must_use]
pub fn freshness(sent_at: Timestamp, now: Timestamp) -> Freshness {
    use crate::clock::{earlier, later};
    let said = |word, answer| Refusal {
        word,
        sentence: format!("it was signed at {sent_at}, and it is {now} by our clock"),
        answer,
        topic: None,
    };
    if sent_at < earlier(now, OLDEST) {
        Freshness::Stale(said("stale", Answer::Forbidden))
    } else if sent_at > later(now, NEWEST) {
        Freshness::Ahead(said("clock", Answer::Later))
    } else {
        Freshness::Fresh
    }
}

impl Verifier {
    /// A verifier for `topics` that fetches with `http`, trusting the certificates in `known` as if
    /// it had fetched them itself.
    #[must_use]
    pub fn new(topics: Vec<TopicSettings>, http: Http, known: Vec<KnownCertificate>) -> Self {
        Self {
            topics: Topics::allowed(topics),
            certificates: Certificates::fetching(http, known),
        }
    }

    /// A verifier that fetches nothing: `pem` stands in for every certificate. Any well-formed topic
    /// will do when none is given.
    #[must_use]
    pub fn offline(topics: Vec<TopicSettings>, pem: Option<Vec<u8>>) -> Self {
        Self {
            topics: if topics.is_empty() {
                Topics::Any
            } else {
                Topics::allowed(topics)
            },
            certificates: Certificates::given(pem),
        }
    }

    /// Judges one request. `client` pays for a fetch that it causes.
    ///
    /// # Errors
    /// When it is not proved that AWS signed it for an allowed topic.
    pub async fn verify(
        &self,
        body: &[u8],
        headers: Headers<'_>,
        client: IpAddr,
        now: Timestamp,
    ) -> Result<Verified, Refusal> {
        if headers.raw {
            let why =
                "raw message delivery carries no signature: switch it off for this subscription";
            return Err(forbidden("raw", why));
        }
        let envelope = Envelope::read(body).map_err(|why| malformed(why.word, why.sentence))?;
        compare(headers, &envelope)?;
        let topic = self.topics.find(&envelope.topic)?;
        // SNS itself writes one form only; compatible services write others.
        if topic.endpoint.is_none() && !is_snss(&envelope.timestamp) {
            return Err(malformed("timestamp", odd(&envelope.timestamp)));
        }
        let verified = self.verify_for(&topic, &envelope, client, now).await;
        let (checked, fetched) = verified.map_err(|refusal| Refusal {
            topic: Some(topic.arn.clone()),
            ..refusal
        })?;
        let proof = Proof {
            version: envelope.version.number(),
            timestamp: envelope.odd_timestamp().map(str::to_owned),
            certificate: Some(Arc::clone(&checked.proof)),
            signature: envelope.signature,
        };
        Ok(Verified {
            trust: Arc::from(topic.trust()),
            proof,
            message_type: envelope.message_type,
            message_id: envelope.message_id.into_owned(),
            sent_at: envelope.sent_at,
            subject: envelope.subject.map(std::borrow::Cow::into_owned),
            message: envelope.message.into_owned(),
            token: envelope
                .token
                .map(|token| SecretString::from(token.into_owned())),
            topic: envelope.topic,
            fetched,
        })
    }

    /// Judges one envelope from a file, without a network.
    ///
    /// # Errors
    /// When it is not proved that AWS signed it for an allowed topic.
    pub async fn verify_file(&self, body: &[u8], now: Timestamp) -> Result<Verified, Refusal> {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.verify(body, Headers::default(), nobody, now).await
    }

    async fn verify_for(
        &self,
        topic: &TopicSettings,
        envelope: &Envelope<'_>,
        client: IpAddr,
        now: Timestamp,
    ) -> Result<(Arc<Checked>, Option<KnownCertificate>), Refusal> {
        if envelope.version == Version::One && !topic.allow_version_1 {
            let why = "it is signed with SHA-1, which the settings of this topic refuse";
            return Err(forbidden("version", why));
        }
        let url = &*envelope.certificate_url;
        if !may_lie_at(url, topic) {
            let why = format!("SNS keeps no certificate at {}", shown(url));
            return Err(forbidden("certificate-url", why));
        }
        // The envelope was read: a confirmation has its token and its URL.
        let text = envelope.signed().string_to_sign();
        let text = text.ok_or_else(|| malformed("field", "Token or SubscribeURL is missing"))?;
        let may_be_outdated = self.certificates.may_be_outdated(url, now);
        let (checked, fetched) = self
            .certificates
            .get(url, topic, client, now, false)
            .await?;
        match judge(&checked.key, envelope, &text) {
            // A compatible service may have begun anew, with another key at the same place.
            Err(refusal)
                if refusal.word == "signature" && may_be_outdated && topic.endpoint.is_some() =>
            {
                let (checked, fetched) =
                    self.certificates.get(url, topic, client, now, true).await?;
                judge(&checked.key, envelope, &text).map(|()| (checked, fetched))
            }
            judged => judged.map(|()| (checked, fetched)),
        }
    }
}

/// What the headers say, where they say anything, must be what the body says.
fn compare(headers: Headers<'_>, envelope: &Envelope<'_>) -> Result<(), Refusal> {
    for (name, header, body) in [
        (
            "x-amz-sns-message-type",
            headers.message_type,
            envelope.message_type.as_str(),
        ),
        (
            "x-amz-sns-message-id",
            headers.message_id,
            &*envelope.message_id,
        ),
        (
            "x-amz-sns-topic-arn",
            headers.topic_arn,
            envelope.topic.as_str(),
        ),
    ] {
        if header.is_some_and(|header| header != body) {
            return Err(forbidden("header", format!("{name} differs from the body")));
        }
    }
    Ok(())
}

fn judge(key: &PKey<Public>, envelope: &Envelope<'_>, text: &str) -> Result<(), Refusal> {
    match is_signed(key, envelope.version, &envelope.signature, text.as_bytes()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(forbidden(
            "signature",
            "the signature does not fit the message",
        )),
        Err(error) => Err(Refusal {
            word: "crypto",
            sentence: format!("OpenSSL could not verify: {error}"),
            answer: Answer::Later,
            topic: None,
        }),
    }
}

/// Whether `signature` was made over `text` with the other half of `key`.
pub(super) fn is_signed(
    key: &PKey<Public>,
    version: Version,
    signature: &[u8],
    text: &[u8],
) -> Result<bool, ErrorStack> {
    let digest = match version {
        Version::One => MessageDigest::sha1(),
        Version::Two => MessageDigest::sha256(),
    };
    // Of another length it fits no key of this size, and OpenSSL would call that an error.
    if signature.len() != key.size() {
        return Ok(false);
    }
    sign::Verifier::new(digest, key)?.verify_oneshot(signature, text)
}

fn malformed(word: &'static str, sentence: impl Into<String>) -> Refusal {
    Refusal {
        word,
        sentence: sentence.into(),
        answer: Answer::Malformed,
        topic: None,
    }
}

fn forbidden(word: &'static str, sentence: impl Into<String>) -> Refusal {
    Refusal {
        word,
        sentence: sentence.into(),
        answer: Answer::Forbidden,
        topic: None,
    }
}

#[cfg(test)]
mod proofs;
#[cfg(test)]
mod tests;
