//! Upkeep and the acts of operators.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use jiff::Timestamp;

use super::Postgres;
use super::tables::Path;
use crate::store::{Care, DeadSelection, StoreError};

#[async_trait]
impl Care for Postgres {
    async fn beat(&self) -> Result<(), StoreError> {
        self.shared.beat().await
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        let forgotten = self
            .shared
            .read_long(|tables| tables.forgotten_lanes().boxed())
            .await?;
        if forgotten.is_empty() {
            return Ok(0);
        }
        let forgotten = &forgotten;
        self.shared
            .write(Path::Deliver, |tables| tables.rescue(forgotten).boxed())
            .await
    }

    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError> {
        self.shared.forget(now, keep).await
    }

    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (selection, to) = (&selection, to.as_deref());
        let now = (now, self.shared.own.wall.now());
        self.shared
            .in_steps(|tables, after| tables.retry_dead(selection, to, after, now).boxed())
            .await
    }

    async fn bury(&self, sink: &str, _now: Timestamp) -> Result<u64, StoreError> {
        let (sink, wall) = (self.shared.names.number(sink), self.shared.own.wall.now());
        self.shared
            .in_steps(|tables, after| tables.clear(sink, None, after, wall).boxed())
            .await
    }

    async fn drop_dead(
        &self,
        selection: DeadSelection,
        _now: Timestamp,
    ) -> Result<u64, StoreError> {
        let (selection, wall) = (&selection, self.shared.own.wall.now());
        self.shared
            .in_steps(|tables, after| tables.drop_dead(selection, after, wall).boxed())
            .await
    }
}
