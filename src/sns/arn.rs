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

/// The domain that ends the host names of a partition. Source: the partition tables of AWS's SDKs.
const SUFFIXES: [(&str, &str); 8] = [
    ("aws", "amazonaws.com"),
    ("aws-us-gov", "amazonaws.com"),
    ("aws-cn", "amazonaws.com.cn"),
    ("aws-eusc", "amazonaws.eu"),
    ("aws-iso", "c2s.ic.gov"),
    ("aws-iso-b", "sc2s.sgov.gov"),
    ("aws-iso-e", "cloud.adc-e.uk"),
    ("aws-iso-f", "csp.hci.ic.gov"),
];

impl TopicArn {
    /// The whole ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The partition: `aws`, `aws-cn`, …
    #[must_use]
    pub fn partition(&self) -> &str {
        self.part(1)
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &str {
        self.part(3)
    }

    /// The account, twelve digits.
    #[must_use]
    pub fn account(&self) -> &str {
        self.part(4)
    }

    /// The topic's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.part(5)
    }

    /// The host name that ends in the partition's domain; `None` for a partition that this version
    /// does not know, whose hosts nothing is known of either.
    #[must_use]
    pub(super) fn host(&self, service: &str) -> Option<String> {
        let suffix = SUFFIXES
            .iter()
            .find(|(partition, _)| *partition == self.partition())?
            .1;
        Some(format!("{service}.{}.{suffix}", self.region()))
    }

    fn part(&self, at: usize) -> &str {
        self.text.split(':').nth(at).unwrap_or_default()
    }
}

impl FromStr for TopicArn {
    type Err = InvalidArn;

    fn from_str(text: &str) -> Result<Self, InvalidArn> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(InvalidArn);
        let well_formed = next()? == "arn"
            && is_partition(next()?)
            && next()? == "sns"
            && is_region(next()?)
            && is_account(next()?)
            && is_name(next()?);
        if well_formed && parts.next().is_none() {
            Ok(Self {
                text: text.to_owned(),
            })
        } else {
            Err(InvalidArn)
        }
    }
}

fn is_partition(text: &str) -> bool {
    text.strip_prefix("aws").is_some_and(|rest| {
        rest.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
    })
}

/// Two to four letters, words of letters, a number of one or two digits; joined by hyphens.
fn is_region(text: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|it| it.is_ascii_lowercase());
    let words: Vec<&str> = text.split('-').collect();
    let [first, middle @ .., number] = words.as_slice() else {
        return false;
    };
    is_word(first)
        && (2..=4).contains(&first.len())
        && !middle.is_empty()
        && middle.iter().all(|word| is_word(word))
        && (1..=2).contains(&number.len())
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_name(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

impl fmt::Display for TopicArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_arns_give_their_parts() {
        for (arn, host) in [
            (
                "arn:aws:sns:us-east-1:123456789012:a",
                Some("sns.us-east-1.amazonaws.com"),
            ),
            (
                "arn:aws-cn:sns:cn-north-1:123456789012:a_b-C9",
                Some("sns.cn-north-1.amazonaws.com.cn"),
            ),
            (
                "arn:aws-us-gov:sns:us-gov-west-1:123456789012:a",
                Some("sns.us-gov-west-1.amazonaws.com"),
            ),
            (
                "arn:aws-eusc:sns:eusc-de-east-1:123456789012:a",
                Some("sns.eusc-de-east-1.amazonaws.eu"),
            ),
            (
                "arn:aws-iso:sns:us-iso-east-1:123456789012:a",
                Some("sns.us-iso-east-1.c2s.ic.gov"),
            ),
            ("arn:aws-future:sns:xx-east-12:123456789012:a", None),
        ] {
            let parsed: TopicArn = arn.parse().unwrap();
            assert_eq!(parsed.to_string(), arn);
            assert_eq!(parsed.account(), "123456789012");
            assert_eq!(parsed.host("sns").as_deref(), host, "{arn}");
        }
        let arn: TopicArn = "arn:aws:sns:eu-central-1:123456789012:run-command"
            .parse()
            .unwrap();
        assert_eq!(
            (arn.partition(), arn.region(), arn.name()),
            ("aws", "eu-central-1", "run-command")
        );
    }

    #[test]
    fn anything_else_is_no_arn() {
        let name = "x".repeat(257);
        for arn in [
            "",
            "arn:aws:sns:us-east-1:123456789012",
            "arn:aws:sns:us-east-1:123456789012:",
            "arn:aws:sns:us-east-1:123456789012:a:b",
            "arn:aws:sns:us-east-1:123456789012:a.fifo",
            "arn:aws:sns:us-east-1:123456789012:ä",
            "arn:aws:sns:us-east-1:123456789012:a\n",
            " arn:aws:sns:us-east-1:123456789012:a",
            "ARN:aws:sns:us-east-1:123456789012:a",
            "arn:AWS:sns:us-east-1:123456789012:a",
            "arn:evil:sns:us-east-1:123456789012:a",
            "arn:aws.evil:sns:us-east-1:123456789012:a",
            "arn:aws:sqs:us-east-1:123456789012:a",
            "arn:aws:sns:us-east-:123456789012:a",
            "arn:aws:sns:us-1:123456789012:a",
            "arn:aws:sns:us-east-100:123456789012:a",
            "arn:aws:sns:us--1:123456789012:a",
            "arn:aws:sns:u-east-1:123456789012:a",
            "arn:aws:sns:useas-east-1:123456789012:a",
            "arn:aws:sns:us-east-1.evil.com/:123456789012:a",
            "arn:aws:sns:us-east-1:12345678901:a",
            "arn:aws:sns:us-east-1:12345678901x:a",
            &format!("arn:aws:sns:us-east-1:123456789012:{name}"),
        ] {
            assert_eq!(arn.parse::<TopicArn>(), Err(InvalidArn), "{arn:?}");
        }
    }
}
