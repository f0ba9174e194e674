//! Looking at what is kept.

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::Postgres;
use crate::sns::KnownCertificate;
use crate::store::{
    Backlog, DeadLetter, DeadSelection, Delivery, EventId, EventQuery, History, RouteBacklog,
    StoreError, StoredEvent, Subscription, Tally,
};

#[async_trait]
impl History for Postgres {
    async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, StoreError> {
        let query = &query;
        self.shared
            .read_long(|tables| tables.events(query).boxed())
            .await
    }

    async fn event(&self, id: EventId) -> Result<Option<(StoredEvent, Vec<Delivery>)>, StoreError> {
        self.shared.read(|tables| tables.event(id).boxed()).await
    }

    async fn dead(
        &self,
        selection: DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let selection = &selection;
        self.shared
            .read_long(|tables| tables.dead(selection, limit).boxed())
            .await
    }

    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError> {
        self.shared
            .read(|tables| tables.subscriptions().boxed())
            .await
    }

    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError> {
        self.shared
            .read(|tables| tables.certificates().boxed())
            .await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        self.shared
            .read_long(|tables| tables.backlog().boxed())
            .await
    }

    async fn route_backlog(&self) -> Result<Vec<RouteBacklog>, StoreError> {
        self.shared
            .read_long(|tables| tables.route_backlog().boxed())
            .await
    }

    async fn tally(&self) -> Result<Vec<Tally>, StoreError> {
        self.shared.read_long(|tables| tables.tally().boxed()).await
    }
}
