//! Opening the store, whichever engine keeps it, and running what writes it.

use std::sync::Arc;
use std::thread::JoinHandle;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::clock::Clock;
use crate::store::postgres::Postgres;
use crate::store::sqlite::Sqlite;
use crate::store::{Engine, Opened, Settings, Store, StoreError};

/// What writes the store, and a sign that it has ended, in whatever way.
pub struct Keeping {
    work: Work,
    pub(super) ended: CancellationToken,
}

enum Work {
    /// The embedded store has a thread of its own, since it waits for the disk.
    Thread(JoinHandle<()>),
    /// The shared one waits for its network only.
    Task(JoinSet<()>),
    /// Nothing runs besides.
    Nothing,
}

/// Opens the store and runs what writes it.
///
/// # Errors
/// When it cannot be opened, or no thread can be started.
pub async fn open(
    settings: &Settings,
    clock: &Clock,
) -> Result<(Arc<dyn Store>, Keeping, Opened), AppError> {
    let ended = CancellationToken::new();
    let sign = ended.clone().drop_guard();
    let (store, work, opened): (Arc<dyn Store>, _, _) = match &settings.engine {
        Engine::Sqlite(path) => {
            let (store, writer, opened) = Sqlite::open(path, settings.terms, clock)?;
            let thread = std::thread::Builder::new()
                .name("store".to_owned())
                .spawn(move || {
                    let _sign = sign;
                    writer.run();
                })
                .map_err(AppError::Thread)?;
            (Arc::new(store), Work::Thread(thread), opened)
        }
        Engine::Postgres(database) => {
            let (store, keeper, opened) = Postgres::open(database, settings.terms, clock).await?;
            let mut task = JoinSet::new();
            task.spawn(async move {
                let _sign = sign;
                keeper.run().await;
            });
            (Arc::new(store), Work::Task(task), opened)
        }
    };
    Ok((store, Keeping { work, ended }, opened))
}

/// Opens the store for a single act, beside whoever runs if the engine allows it.
///
/// # Errors
/// When it cannot be opened.
pub async fn open_to_act(settings: &Settings) -> Result<(Arc<dyn Store>, Keeping), AppError> {
    match &settings.engine {
        Engine::Sqlite(_) => {
            let (store, keeping, _) = open(settings, &Clock::system()).await?;
            Ok((store, keeping))
        }
        Engine::Postgres(settings) => {
            let ended = CancellationToken::new();
            ended.cancel();
            let work = Work::Nothing;
            let store = Arc::new(Postgres::look(settings).await?);
            Ok((store, Keeping { work, ended }))
        }
    }
}

/// Opens the store to look at it, beside whoever runs.
///
/// # Errors
/// When there is none, or it cannot be read.
pub async fn look(settings: &Settings) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match &settings.engine {
        Engine::Sqlite(path) => Arc::new(Sqlite::look(path)?),
        Engine::Postgres(settings) => Arc::new(Postgres::look(settings).await?),
    })
}

impl Keeping {
    /// Waits until everything is written, once nobody holds the store any more; until `deadline` at
    /// most.
    pub async fn end(mut self, clock: &Clock, deadline: Timestamp) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = clock.sleep_until(deadline) => {
                tracing::error!("the store was not closed in time");
                return;
            }
        }
        let in_order = match &mut self.work {
            Work::Thread(_) | Work::Nothing => true,
            Work::Task(task) => task.join_next().await.is_none_or(|end| end.is_ok()),
        };
        let in_order = match self.work {
            Work::Thread(thread) => thread.join().is_ok(),
            Work::Task(_) | Work::Nothing => in_order,
        };
        if !in_order {
            tracing::error!("what writes the store did not end in order");
        }
    }
}
