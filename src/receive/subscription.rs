//! Subscriptions that ask to be confirmed: answered at once when the settings say so, else kept for a
//! person to decide.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::Receiver;
use crate::clock::since;
use crate::sns::{Answer, MessageType, Refusal, TopicSettings, Verified, confirm};
use crate::store::{StoreError, Subscription};

/// Why a subscription was not confirmed at an operator's word.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmError {
    /// There is none with that number.
    #[error("no such subscription")]
    Unknown,
    /// Its topic is no longer allowed.
    #[error("its topic is not among the settings")]
    ForeignTopic,
    /// The token is too old, or was never good.
    #[error("the token was refused: {0}")]
    TokenRefused(String),
    /// The call did not succeed.
    #[error("the call failed: {0}")]
    Call(String),
    /// The store did not answer.
    #[error("cannot look it up")]
    Store(#[from] StoreError),
}

/// Why a subscription is not confirmed.
enum Unconfirmed {
    Token(String),
    Call(String),
    Store(StoreError),
}

impl Receiver {
    /// Confirms a subscription that was kept for a person to decide.
    ///
    /// # Errors
    /// When there is none of that number, or AWS does not take the confirmation.
    pub async fn confirm(&self, id: i64) -> Result<(), ConfirmError> {
        let subscription = self.store.subscription(id).await?;
        let subscription = subscription.ok_or(ConfirmError::Unknown)?;
        let topic = self
            .topics
            .get(&subscription.topic)
            .ok_or(ConfirmError::ForeignTopic)?;
        match self.call(topic, &subscription).await {
            Ok(()) => Ok(()),
            Err(Unconfirmed::Token(why)) => Err(ConfirmError::TokenRefused(why)),
            Err(Unconfirmed::Call(why)) => Err(ConfirmError::Call(why)),
            Err(Unconfirmed::Store(error)) => Err(error.into()),
        }
    }

    /// Confirms a subscription when the settings say so, or keeps it for a person to decide.
    pub(super) async fn answer_confirmation(
        &self,
        verified: &Verified,
        is_new: bool,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let (Some(token), MessageType::SubscriptionConfirmation) =
            (verified.token(), verified.message_type())
        else {
            return Ok(());
        };
        let Some(topic) = self.topics.get(verified.topic().as_str()) else {
            return Ok(());
        };
        let put = self
            .store
            .put_subscription(topic.arn.as_str(), token, now)
            .await;
        let subscription = put.map_err(|error| self.store_trouble(&error, now))?;
        if subscription.confirmed_at.is_some() {
            return Ok(());
        }
        if !topic.confirm {
            if is_new {
                tracing::warn!(
                    topic = topic.arn.as_str(),
                    subscription = subscription.id,
                    "a subscription waits for `runbell subscription confirm`"
                );
            }
            return Ok(());
        }
        // SNS repeats what was not answered with 200; so may anybody who has seen it.
        match self.calls().begin(subscription.id, now) {
            Begun::Now => {}
            Begun::TooSoon => {
                return Err(Refusal {
                    word: "confirmation-soon",
                    sentence: "the subscription was tried to be confirmed just now".to_owned(),
                    answer: Answer::Later,
                    topic: None,
                });
            }
            Begun::Refused => return Ok(()),
        }
        match self.call(topic, &subscription).await {
            Ok(()) => Ok(()),
            Err(Unconfirmed::Token(why)) => {
                self.calls().refused(subscription.id);
                tracing::warn!(topic = topic.arn.as_str(), why, "AWS refused the token");
                Ok(())
            }
            Err(Unconfirmed::Call(why)) => Err(Refusal {
                word: "confirmation-failed",
                sentence: format!("the subscription could not be confirmed now: {why}"),
                answer: Answer::Later,
                topic: None,
            }),
            Err(Unconfirmed::Store(error)) => Err(self.store_trouble(&error, now)),
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(
        &self,
        topic: &TopicSettings,
        subscription: &Subscription,
    ) -> Result<(), Unconfirmed> {
        match self.http.confirm(topic, &subscription.token).await {
            confirm::Confirmation::Confirmed { subscription_arn } => {
                tracing::info!(
                    topic = topic.arn.as_str(),
                    subscription_arn,
                    "subscription confirmed"
                );
                let at = self.clock.now();
                let noted = self.store.subscription_confirmed(subscription.id, at).await;
                noted.map_err(Unconfirmed::Store)
            }
            confirm::Confirmation::TokenRefused(why) => Err(Unconfirmed::Token(why)),
            confirm::Confirmation::Failed(why) => Err(Unconfirmed::Call(why)),
        }
    }
}

/// The subscriptions that AWS was asked to confirm, by number; as few as AWS signed.
#[derive(Default)]
pub(super) struct Calls(HashMap<i64, Call>);

enum Call {
    At(Timestamp),
    Refused,
}

enum Begun {
    Now,
    TooSoon,
    Refused,
}

/// How far apart two calls for one subscription are: less than SNS's 20 s between retries.
const APART: Duration = Duration::from_secs(15);

impl Calls {
    fn begin(&mut self, id: i64, now: Timestamp) -> Begun {
        match self.0.get(&id) {
            Some(Call::Refused) => return Begun::Refused,
            Some(Call::At(at)) if *at <= now && since(*at, now) < APART => return Begun::TooSoon,
            _ => {}
        }
        self.0.insert(id, Call::At(now));
        Begun::Now
    }

    /// AWS will never take its token.
    fn refused(&mut self, id: i64) {
        self.0.insert(id, Call::Refused);
    }
}
