//! The contract of the receive path: what is verified is kept, once.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;

use super::{EventId, Generation, Proof, StoreError, Subscription};
use crate::delivery::Owed;
use crate::event::Event;
use crate::sns::KnownCertificate;

/// One event with the deliveries owed for it, to be kept in one transaction.
#[derive(Clone, Debug)]
pub struct Append {
    /// The event.
    pub event: Event,
    /// The deliveries owed; empty when no route matches.
    pub owed: Vec<Owed>,
    /// When it arrived here, in wall time: for people and for retention.
    pub received_at: Timestamp,
    /// When it arrived here, in logical time: holds are counted from it.
    pub now: Timestamp,
    /// Who vouches for its topic: `aws`, or the URL of the topic's endpoint. Commands are named by
    /// it as well, so that no topic says anything of another's.
    pub trust: Arc<str>,
    /// What proves its origin for good; none where nothing was signed.
    pub proof: Option<Proof>,
}

impl Append {
    /// An event that AWS vouches for, and that arrived at `now` by either clock.
    #[must_use]
    pub fn new(event: Event, owed: Vec<Owed>, now: Timestamp) -> Self {
        Self {
            event,
            owed,
            received_at: now,
            now,
            trust: Arc::from("aws"),
            proof: None,
        }
    }
}

/// The effect of an append. The transaction has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is new.
    Stored {
        /// Its number.
        id: EventId,
        /// The earlier event that told the same step.
        repeat_of: Option<EventId>,
        /// Another terminal status of the same thing is stored, and it differs.
        conflict: bool,
        /// For each delivery owed: its sink, and when the delivery's lane has something to do, in
        /// logical time.
        due: Vec<(Arc<str>, Timestamp)>,
    },
    /// This very notification is stored already; nothing was changed.
    Known {
        /// Its number.
        id: EventId,
    },
}

/// Keeps verified messages.
#[async_trait]
pub trait Intake: Send + Sync + 'static {
    /// Keeps one event with everything owed for it; returns after the commit. Calls that wait at
    /// the same time share one transaction. An event that the database cannot keep so, whatever is
    /// in it, is kept raw, and each delivery owed for it becomes a dead letter that says why.
    ///
    /// # Errors
    /// When nothing was kept, or nobody knows: the caller answers 503, and SNS asks again.
    async fn append(&self, append: Append) -> Result<Appended, StoreError>;

    /// Tells whether this very notification is stored, by what was signed together.
    async fn known(
        &self,
        topic: &str,
        sent_at: Timestamp,
        message_id: &str,
    ) -> Result<Option<EventId>, StoreError>;

    /// Remembers a subscription that asked; the same topic and token only once.
    async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, StoreError>;

    /// Shows a subscription that asked.
    async fn subscription(&self, id: i64) -> Result<Option<Subscription>, StoreError>;

    /// Remembers that a subscription was confirmed.
    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError>;

    /// Keeps a certificate, in place of an older one of the same URL.
    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError>;

    /// Keeps settings that are about to be in force, and that `replica` uses them from `at` on, in
    /// wall time. Events name them from here on as the settings that judged them.
    async fn put_generation(
        &self,
        generation: Generation,
        replica: &str,
        at: Timestamp,
    ) -> Result<(), StoreError>;
}
