//! Amazon SNS over HTTP/S: from bytes that anybody may have posted to a message that AWS signed.
//!
//! `receive` calls [`verify::Verifier`]; nothing else can make a [`Verified`]. This part knows no
//! Run Command and no store: it takes the certificates known at start and hands back those that it
//! fetched. Rules and attacks: AWS's documentation of SNS message verification, and what public
//! verifiers got wrong.
//!
//! Reading order: [`arn`], `envelope`, [`certificate`], [`verify`], [`confirm`]; [`signer`] plays
//! SNS for the demo, the tests and the benchmark.

pub mod arn;
pub mod certificate;
pub mod confirm;
mod envelope;
mod http;
mod self_test;
pub mod signer;
pub mod verify;

pub use arn::TopicArn;
pub use certificate::KnownCertificate;
pub use envelope::MessageType;
pub use http::Http;
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
