//! The ARN of a topic, in the one grammar that everything else may rely on.

use std::fmt;
use std::str::FromStr;

/// A topic's ARN: well-formed, its parts at hand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicArn {
    text: String,
}

/// Why a text is not a topic's ARN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the ARN of an SNS topic: expected arn:aws:sns:REGION:ACCOUNT:NAME")]
pub struct InvalidArn;

impl TopicArn {
    /// The whole ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The partition: `aws`, `aws-cn`, …
    #[must_use]
    pub fn partition(&self) -> &str {
        todo!()
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &str {
        todo!()
    }

    /// The account, twelve digits.
    #[must_use]
    pub fn account(&self) -> &str {
        todo!()
    }
}

impl FromStr for TopicArn {
    type Err = InvalidArn;

    fn from_str(_text: &str) -> Result<Self, InvalidArn> {
        todo!()
    }
}

impl fmt::Display for TopicArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
