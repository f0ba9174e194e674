//! Amazon SNS over HTTP/S: from bytes that anybody may have posted to a message that AWS signed.
//!
//! `receive` calls [`verify::Verifier`]; nothing else can make a [`Verified`]. This part knows no
//! Run Command and no store: it takes the certificates known at start and hands back those that it
//! fetched. Rules and attacks: AWS's documentation of SNS message verification, and what public
//! verifiers got wrong.
//!
//! Reading order: [`arn`], `envelope`, [`certificate`], [`verify`], [`proof`], [`confirm`]; [`signer`]
//! plays SNS for the demo, the tests and the benchmark.

pub mod arn;
pub mod certificate;
pub mod confirm;
mod envelope;
mod http;
pub mod proof;
mod self_test;
pub mod signer;
pub mod verify;

pub use arn::TopicArn;
pub use certificate::KnownCertificate;
pub use envelope::MessageType;
pub use http::Http;
pub use proof::{Certificate, Proof};
pub use self_test::{SelfTestError, self_test};
pub use verify::{Answer, Headers, Refusal, Verified, Verifier};

/// One topic that the settings allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Its ARN; nothing of any other topic is believed, or fetched for.
    pub arn: TopicArn,
    /// Whether a subscription confirmation is answered by itself, or kept for a person to decide.
    pub confirm: bool,
    /// Base URL of a service compatible with SNS, in place of AWS. Never set by default: who
    /// controls that URL can sign for this topic.
    pub endpoint: Option<String>,
    /// Whether signature version 1 (SHA-1), which is SNS's default, is accepted.
    pub allow_version_1: bool,
}

impl TopicSettings {
    /// The name of the authority that vouches for messages of this topic: `aws`, or the base URL of
    /// the compatible service. Two authorities may both use one account number, so a command of one
    /// is never that of the other.
    #[must_use]
    pub fn trust(&self) -> &str {
        // `lies_under` ignores slashes at the end as well: both spellings name one service.
        let endpoint = self.endpoint.as_deref();
        endpoint.map_or("aws", |base| base.trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topic_has_a_name_for_its_authority() {
        let named = |endpoint: Option<&str>| {
            let topic = TopicSettings {
                arn: "arn:aws:sns:us-east-1:123456789012:t".parse().unwrap(),
                confirm: true,
                endpoint: endpoint.map(str::to_owned),
                allow_version_1: true,
            };
            topic.trust().to_owned()
        };
        assert_eq!(named(None), "aws");
        assert_eq!(
            named(Some("http://localhost:4566")),
            "http://localhost:4566"
        );
        assert_eq!(
            named(Some("http://localhost:4566/")),
            "http://localhost:4566"
        );
        assert_eq!(named(Some("https://sns.test/a")), "https://sns.test/a");
    }
}
