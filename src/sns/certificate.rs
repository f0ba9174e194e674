//! The certificates that SNS signs with: where they may lie, what they must be, how they are got.

use jiff::Timestamp;

/// A certificate that was fetched and checked, as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownCertificate {
    /// Where it was fetched.
    pub url: String,
    /// The certificate, PEM.
    pub pem: Vec<u8>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}
