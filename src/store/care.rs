//! The contract of upkeep and of operators: signs of life, repairs, forgetting, dead letters.
//!
//! Whatever grows with what waits is done in steps that are committed one by one. A call that breaks
//! off has done part of it, and the same call goes on from there.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::StoreError;

/// Which dead letters are meant.
#[derive(Clone, Debug)]
pub enum DeadSelection {
    /// All of them.
    All,
    /// Those of one sink.
    Sink(String),
    /// These.
    Ids(Vec<i64>),
}

/// Keeps a store sound.
#[async_trait]
pub trait Care: Send + Sync + 'static {
    /// Gives a sign of life: corrects the clock, renews the leases that are at work, gives back
    /// those that were lost, and frees those of holders that give no sign. Called once a second.
    ///
    /// # Errors
    /// When the store did not answer. The next call makes up for it.
    async fn beat(&self) -> Result<(), StoreError>;

    /// Repairs lanes that wait without being due, and says how many there were. Anything but zero
    /// is a fault of ours.
    async fn sweep(&self) -> Result<u64, StoreError>;

    /// Forgets events that arrived longer than `keep` ago and for which nothing waits, in small
    /// steps; says whether there is more to do.
    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError>;

    /// Puts dead letters back to wait, marked resent, for their own sink or for `to`; says how many.
    /// They go at once, each by itself.
    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// Makes dead letters of what waits for a sink that will not come back; says how many.
    async fn bury(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError>;

    /// Lets dead letters go; says how many.
    async fn drop_dead(&self, selection: DeadSelection, now: Timestamp) -> Result<u64, StoreError>;
}
