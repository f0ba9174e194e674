//! The topics whose messages are believed.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{Refusal, TopicArn, TopicSettings, forbidden, shown};

/// Which topics are believed.
pub(super) enum Topics {
    /// These.
    Allowed(HashMap<String, TopicSettings>),
    /// Any: somebody wants to know about one envelope.
    Any,
}

impl Topics {
    /// These topics and no others.
    pub(super) fn allowed(topics: Vec<TopicSettings>) -> Self {
        let by_arn = topics
            .into_iter()
            .map(|topic| (topic.arn.as_str().to_owned(), topic));
        Self::Allowed(by_arn.collect())
    }

    /// The settings of a topic, if messages of it are believed.
    pub(super) fn find(&self, arn: &TopicArn) -> Result<Cow<'_, TopicSettings>, Refusal> {
        match self {
            Self::Any => Ok(Cow::Owned(TopicSettings {
                arn: arn.clone(),
                confirm: false,
                endpoint: None,
                allow_version_1: true,
            })),
            Self::Allowed(topics) => topics.get(arn.as_str()).map(Cow::Borrowed).ok_or_else(|| {
                let why = format!("topic {} is not among the settings", shown(arn.as_str()));
                forbidden("foreign-topic", why)
            }),
        }
    }
}
