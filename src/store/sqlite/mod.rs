//! The embedded store: one SQLite file, owned by one process, changed by one thread.
//!
//! [`Sqlite`] is the handle that the streets hold: what changes something goes through a bounded
//! queue to the [`Writer`], what only looks goes to a connection of its own beside it. `app` opens
//! both and gives the writer a thread; the command line opens a [`Sqlite::look`] beside a running
//! process.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::Connection;
use secrecy::SecretString;
use tokio::sync::{mpsc, oneshot};

use super::rows::nanos;
use super::{
    Append, Appended, Backlog, DeadLetter, DeadSelection, Delivery, EventId, EventQuery, Leased,
    Opened, Settlement, Store, StoreError, StoredEvent, Subscription, Tally,
};
use crate::clock::earlier;
use crate::sns::KnownCertificate;

mod append;
mod digest;
mod faults;
mod lease;
mod read;
mod schema;
mod settle;
mod tables;
mod upkeep;
mod writer;

use faults::translate;
use tables::{Known, Tables};
use upkeep::Step;
pub use writer::Writer;
use writer::{Job, Reserve, Task};

/// How many jobs may wait for the writer; more are turned away.
const QUEUE: usize = 4096;

/// Room laid by for recording what was sent when the disk is full: a large batch of settlements
/// changes less than this.
const RESERVE: u64 = 8 << 20;

/// How many connections look at the file at once; more are opened and closed again.
const READERS: usize = 4;

/// Opens the file for a copy into another store, under the lock that keeps everybody else from it.
pub(super) fn open_to_copy(path: &Path) -> Result<(Connection, std::fs::File), StoreError> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(StoreError::Gone(Some(error.into())));
    }
    let (connection, lock, _) = schema::open(path)?;
    Ok((connection, lock))
}

/// A handle on the store; all clones share one writer.
#[derive(Clone)]
pub struct Sqlite {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    readers: Arc<Readers>,
    pruned_upto: Arc<AtomicI64>,
}

struct Readers {
    path: std::path::PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Sqlite {
    /// Opens the file at `path`, or makes it. Nothing can be changed before the writer runs.
    ///
    /// # Errors
    /// When the file cannot be opened, is another program's, damaged, or in use.
    pub fn open(path: &Path) -> Result<(Self, Writer, Opened), StoreError> {
        let (connection, lock, opened) = schema::open(path)?;
        let (sender, jobs) = mpsc::channel(QUEUE);
        let mut reserve = path.as_os_str().to_owned();
        reserve.push(".reserve");
        let writer = Writer {
            connection,
            _lock: lock,
            jobs,
            reserve: Reserve::new(reserve.into(), RESERVE),
            known: Known::default(),
        };
        Ok((Self::over(path, Some(sender)), writer, opened))
    }

    /// Opens the file to look at it only, beside the process that owns it.
    ///
    /// # Errors
    /// When there is none, or it is not a store of ours.
    pub fn look(path: &Path) -> Result<Self, StoreError> {
        let store = Self::over(path, None);
        store.readers.give_back(schema::open_to_read(path)?);
        Ok(store)
    }

    fn over(path: &Path, jobs: Option<mpsc::Sender<Box<dyn Job>>>) -> Self {
        Self {
            jobs,
            readers: Arc::new(Readers {
                path: path.to_owned(),
                idle: Mutex::default(),
            }),
            pruned_upto: Arc::default(),
        }
    }

    /// Has the writer do something and waits for the commit. What is `owed` waits for room in the
    /// queue; anything else is turned away when there is none.
    async fn write<T, F>(&self, is_owed: bool, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Tables<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let jobs = self.jobs.as_ref().ok_or(StoreError::Gone(None))?;
        let (reply, answer) = oneshot::channel();
        let task = Box::new(Task {
            work,
            made: None,
            reply,
            is_owed,
        });
        if is_owed {
            jobs.send(task).await.map_err(|_| StoreError::Gone(None))?;
        } else {
            jobs.try_send(task).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => StoreError::Busy,
                mpsc::error::TrySendError::Closed(_) => StoreError::Gone(None),
            })?;
        }
        answer.await.map_err(|_| StoreError::Gone(None))?
    }

    /// Does something to many rows, a bounded step at a time, so that whatever else is to be written
    /// waits for one step only. Says how many it did.
    async fn in_steps<F>(&self, step: F) -> Result<u64, StoreError>
    where
        F: Fn(&mut Tables<'_>, i64) -> rusqlite::Result<Step> + Send + Sync + 'static,
    {
        let step = Arc::new(step);
        let (mut after, mut count) = (0, 0);
        loop {
            let step = Arc::clone(&step);
            let done = self.write(false, move |tables| step(tables, after)).await?;
            count += done.count;
            match done.upto {
                Some(upto) => after = upto,
                None => return Ok(count),
            }
        }
    }

    async fn read<T, F>(&self, look: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        let looked = tokio::task::spawn_blocking(move || {
            let connection = readers.take()?;
            let found = look(&connection).map_err(translate);
            readers.give_back(connection);
            found
        });
        looked.await.map_err(|_| StoreError::Gone(None))?
    }
}

impl Readers {
    fn take(&self) -> Result<Connection, StoreError> {
        let idle = self.idle().pop();
        idle.map_or_else(|| schema::open_to_read(&self.path), Ok)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle();
        if idle.len() < READERS {
            idle.push(connection);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        let append = Arc::new(append);
        let whole = Arc::clone(&append);
        match self.write(false, move |tables| tables.append(&whole)).await {
            Err(StoreError::Data(why)) => {
                tracing::error!(
                    why,
                    topic = append.event.topic,
                    message_id = append.event.message_id,
                    "this cannot be kept as it should; it is kept raw, and goes nowhere"
                );
                self.write(false, move |tables| tables.append_raw(&append))
                    .await
            }
            appended => appended,
        }
    }

    async fn known(
        &self,
        topic: &str,
        sent_at: Timestamp,
        message_id: &str,
    ) -> Result<Option<EventId>, StoreError> {
        let (topic, message_id) = (topic.to_owned(), message_id.to_owned());
        self.read(move |connection| read::known(connection, &topic, nanos(sent_at), &message_id))
            .await
    }

    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError> {
        let sink = sink.to_owned();
        let leased = self
            .write(true, move |tables| tables.lease(&sink, now, limit))
            .await?;
        Ok(leased.read())
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), StoreError> {
        self.write(true, move |tables| {
            settlements
                .iter()
                .try_for_each(|settlement| tables.settle(settlement))
        })
        .await
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        let forgotten = self.read(read::forgotten_lanes).await?;
        if forgotten.is_empty() {
            return Ok(0);
        }
        self.write(true, move |tables| {
            forgotten.iter().map(|lane| tables.rescue(*lane)).sum()
        })
        .await
    }

    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError> {
        let after = self.pruned_upto.load(Ordering::Relaxed);
        let before = earlier(now, keep);
        let old = self
            .read(move |connection| upkeep::old(connection, after, before))
            .await?;
        // What was owed when it was passed by is looked at again on the next round.
        let upto = old.upto;
        // Even when there is nothing to forget: so it shows that the file can be written.
        self.write(false, move |tables| tables.forget(&old.over))
            .await?;
        self.pruned_upto
            .store(upto.unwrap_or_default(), Ordering::Relaxed);
        Ok(upto.is_some())
    }

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

    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.in_steps(move |tables, after| tables.retry_dead(&selection, to.as_deref(), after, now))
            .await
    }

    async fn bury(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError> {
        let sink = sink.to_owned();
        self.in_steps(move |tables, _| tables.bury(&sink, now))
            .await
    }

    async fn drop_dead(&self, selection: DeadSelection, now: Timestamp) -> Result<u64, StoreError> {
        self.in_steps(move |tables, after| tables.drop_dead(&selection, after, now))
            .await
    }

    async fn divert(&self, sink: &str, to: &str, now: Timestamp) -> Result<u64, StoreError> {
        let (sink, to) = (sink.to_owned(), to.to_owned());
        self.in_steps(move |tables, _| tables.divert(&sink, &to, now))
            .await
    }

    async fn rest(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sink = sink.to_owned();
        self.write(true, move |tables| tables.rest(&sink, until, now))
            .await
    }

    async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, StoreError> {
        let (topic, token) = (topic.to_owned(), token.clone());
        self.write(false, move |tables| {
            tables.put_subscription(&topic, &token, at)
        })
        .await
    }

    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.write(true, move |tables| tables.subscription_confirmed(id, at))
            .await
    }

    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError> {
        self.read(read::subscriptions).await
    }

    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError> {
        self.write(false, move |tables| tables.put_certificate(&certificate))
            .await
    }

    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError> {
        self.read(read::certificates).await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        self.read(read::backlog).await
    }

    async fn tally(&self) -> Result<Vec<Tally>, StoreError> {
        self.read(read::tally).await
    }
}
