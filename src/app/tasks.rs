//! Tasks that have a name, so that one that ends by itself can be called by it.

use std::collections::HashMap;
use std::future::Future;

use jiff::Timestamp;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// A set of named tasks that end together; dropping it ends them at once.
#[derive(Default)]
pub(super) struct Tasks {
    stop: CancellationToken,
    set: JoinSet<()>,
    names: HashMap<Id, String>,
}

impl Tasks {
    pub(super) fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let handle = self.set.spawn(task);
        self.names.insert(handle.id(), name.into());
    }

    /// Waits until one of them ends, and says which; for ever when there is none.
    pub(super) async fn any_ends(&mut self) -> String {
        match self.set.join_next_with_id().await {
            Some(ended) => self.name(&ended),
            None => std::future::pending().await,
        }
    }

    /// What tells them to end.
    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tells them to end, and ends those that have not by the deadline; whether all had.
    pub(super) async fn end(mut self, clock: &Clock, deadline: Timestamp) -> bool {
        self.stop.cancel();
        let in_time = tokio::select! {
            () = self.finish() => true,
            () = clock.sleep_until(deadline) => false,
        };
        self.set.shutdown().await;
        in_time
    }

    async fn finish(&mut self) {
        while let Some(ended) = self.set.join_next_with_id().await {
            if ended.is_err() {
                tracing::error!("{} ended by a panic", self.name(&ended));
            }
        }
    }

    fn name(&self, ended: &Result<(Id, ()), JoinError>) -> String {
        let id = match ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        self.names.get(&id).cloned().unwrap_or_default()
    }
}
