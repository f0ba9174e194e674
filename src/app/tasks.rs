//! Tasks that have a name, so that one that ends by itself can be called by it.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinError, JoinSet};

/// A set of named tasks; dropping it ends them.
#[derive(Default)]
pub(super) struct Tasks {
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

    /// Waits until all of them have ended.
    pub(super) async fn finish(&mut self) {
        while let Some(ended) = self.set.join_next_with_id().await {
            if ended.is_err() {
                tracing::error!("{} ended by a panic", self.name(&ended));
            }
        }
    }

    /// Ends all of them, and waits until they are gone.
    pub(super) async fn abort(mut self) {
        self.set.shutdown().await;
    }

    fn name(&self, ended: &Result<(Id, ()), JoinError>) -> String {
        let id = match ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        self.names.get(&id).cloned().unwrap_or_default()
    }
}
