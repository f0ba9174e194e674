//! Looking at what is kept: the contract of history.

use async_trait::async_trait;

use super::{Sqlite, read};
use crate::sns::KnownCertificate;
use crate::store::{
    Backlog, DeadLetter, DeadSelection, Delivery, EventId, EventQuery, History, RouteBacklog,
    StoreError, StoredEvent, Subscription, Tally,
};

#[async_trait]
impl History for Sqlite {
    async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, StoreError> {
        self.read(move |connection| read::events(connection, &query))
            .await
    }

    async fn event(&self, id: EventId) -> Result<Option<(StoredEvent, Vec<Delivery>)>, StoreError> {
        self.read(move |connection| read::event(connection, id))
            .await
    }

    async fn dead(
        &self,
        selection: DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.read(move |connection| read::dead(connection, &selection, limit))
            .await
    }

    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError> {
        self.read(read::subscriptions).await
    }

    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError> {
        self.read(read::certificates).await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        self.read(read::backlog).await
    }

    async fn route_backlog(&self) -> Result<Vec<RouteBacklog>, StoreError> {
        self.read(read::route_backlog).await
    }

    async fn tally(&self) -> Result<Vec<Tally>, StoreError> {
        self.read(read::tally).await
    }
}
