//! The document that SNS posts, read strictly; still untrusted.

/// What an envelope says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// A message that was published.
    Notification,
    /// Somebody subscribed this endpoint and asks whether that is wanted.
    SubscriptionConfirmation,
    /// A subscription was ended.
    UnsubscribeConfirmation,
}
