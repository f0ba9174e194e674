//! Answers a subscription confirmation, by a call built from topic and token alone.
//!
//! The envelope's `SubscribeURL` is never followed: it is an address that somebody else chose.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};

use super::{Http, TopicSettings};
use crate::fault::causes;

/// The most that is read of an answer, in bytes.
const LARGEST: usize = 64 * 1024;

/// What came of asking SNS to confirm.
#[derive(Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// It is confirmed.
    Confirmed {
        /// What SNS calls the subscription.
        subscription_arn: String,
    },
    /// SNS refuses the token, for good: the code it gave.
    TokenRefused(String),
    /// It could not be done now; why.
    Failed(String),
}

impl Http {
    /// Confirms the subscription of `topic` that `token` stands for. The token is in no error.
    pub async fn confirm(&self, topic: &TopicSettings, token: &SecretString) -> Confirmation {
        let base = match &topic.endpoint {
            Some(base) => base.trim_end_matches('/').to_owned(),
            None => match topic.arn.host("sns") {
                Some(host) => format!("https://{host}"),
                None => {
                    return Confirmation::Failed("nothing is known of its partition".to_owned());
                }
            },
        };
        let asked = match self.get(&format!("{base}/")).await {
            Ok(asked) => asked,
            Err(error) => return Confirmation::Failed(failure(error)),
        };
        let asked = asked
            .query(&[
                ("Action", "ConfirmSubscription"),
                ("Version", "2010-03-31"),
                ("TopicArn", topic.arn.as_str()),
                ("Token", token.expose_secret()),
            ])
            .send();
        let mut answer = match asked.await {
            Ok(answer) => answer,
            Err(error) => return Confirmation::Failed(failure(error)),
        };
        let status = answer.status();
        let mut text = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) if text.len() + chunk.len() <= LARGEST => {
                    text.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => return Confirmation::Failed("its answer has no end".to_owned()),
                Ok(None) => break,
                Err(error) => return Confirmation::Failed(failure(error)),
            }
        }
        let text = String::from_utf8_lossy(&text);
        if status.is_success() {
            // Something else may have answered in its place.
            return match element(&text, "SubscriptionArn") {
                Some(subscription_arn) => Confirmation::Confirmed { subscription_arn },
                None => Confirmation::Failed("its answer names no subscription".to_owned()),
            };
        }
        let code = element(&text, "Code");
        match code.as_deref() {
            Some(code) if status.is_client_error() && is_final(code) => {
                Confirmation::TokenRefused(code.to_owned())
            }
            _ => Confirmation::Failed(format!("it answered {status} {}", Shown(code.as_deref()))),
        }
    }
}

/// Codes that will be the same at every try. Source: the SNS API's page on `ConfirmSubscription`.
fn is_final(code: &str) -> bool {
    [
        "InvalidParameter",
        "AuthorizationError",
        "NotFound",
        "SubscriptionLimitExceeded",
        "FilterPolicyLimitExceeded",
        "ReplayLimitExceeded",
    ]
    .contains(&code.trim_end_matches("Exception"))
}

/// The text of the first element of that name; codes and ARNs have nothing that is escaped.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once('<')?;
    let is_plain = |byte: u8| byte.is_ascii_graphic();
    (text.len() <= 512 && text.bytes().all(is_plain)).then(|| text.to_owned())
}

struct Shown<'a>(Option<&'a str>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.unwrap_or("and said nothing more"))
    }
}

/// An error without its URL, which holds the token.
fn failure(error: reqwest::Error) -> String {
    causes(&error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_in_what_sns_answers() {
        let xml = "<ConfirmSubscriptionResponse xmlns=\"x\"><ConfirmSubscriptionResult>\
            <SubscriptionArn>arn:aws:sns:us-east-1:123456789012:t:guid</SubscriptionArn>";
        assert_eq!(
            element(xml, "SubscriptionArn").as_deref(),
            Some("arn:aws:sns:us-east-1:123456789012:t:guid")
        );
        assert_eq!(element(xml, "Code"), None);
        assert_eq!(element("<Code>a b</Code>", "Code"), None);
        assert!(is_final("InvalidParameter") && is_final("NotFoundException"));
        assert!(!is_final("Throttled") && !is_final("InternalError"));
    }
}
