//! The embedded store: one SQLite file, owned by one process, changed by one thread.
//!
//! [`Sqlite`] is the handle that the paths hold: whatever changes something goes through a bounded
//! queue to the [`Writer`], whatever only looks goes to a connection of its own beside it. `app`
//! opens both and gives the writer a thread; the command line opens a [`Sqlite::look`] beside a
//! running process.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use rusqlite::Connection;
use secrecy::SecretString;
use tokio::sync::{mpsc, oneshot};

use super::isolate::settle_each;
use super::register::{Register, Take};
use super::rules::columns::{STEP, length, nanos};
use super::rules::dead::Progress;
use super::rules::time::{Look, latest_wait, tick};
use super::{
    Append, Appended, Ending, EventId, Generation, Intake, Lanes, Leased, Opened, Settlement,
    StoreError, Subscription, Terms,
};
use crate::clock::Clock;
use crate::delivery::from_nanos;
use crate::sns::KnownCertificate;

mod append;
mod care;
mod digest;
mod errors;
mod forget;
mod history;
mod lease;
mod read;
mod recover;
mod schema;
mod settle;
mod tables;
mod upkeep;
mod writer;

use errors::translate;
use lease::Asked;
use tables::{Known, Tables};
pub use writer::Writer;
use writer::{Job, Reserve, Task};

/// How many jobs may wait for the writer; more are turned away.
const QUEUE: usize = 4096;

/// Room laid by for recording what was sent when the disk is full: a large batch of settlements
/// changes less than this.
const RESERVE: u64 = 8 << 20;

/// How many connections look at the file at once; more are opened and closed again.
const READERS: usize = 4;

/// How long whoever can ask again waits for a commit.
const DEADLINE: Duration = Duration::from_secs(6);

/// Opens the file for a copy into another store, under the lock that keeps everybody else from it.
/// Leases of the process before it are freed, with their marks. The clock's row stays as it is, so
/// that it tells whether the store was used since.
pub(super) fn open_to_copy(path: &Path) -> Result<(Connection, std::fs::File), StoreError> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(StoreError::Gone(Some(error.into())));
    }
    let (mut connection, lock, _) = schema::open(path)?;
    recover_all(&mut connection).map_err(translate)?;
    Ok((connection, lock))
}

/// A handle on the store; all clones share one writer.
#[derive(Clone)]
pub struct Sqlite {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    readers: Arc<Readers>,
    own: Arc<Own>,
}

/// What all clones of a handle share.
struct Own {
    wall: Clock,
    /// Logical time.
    clock: Clock,
    terms: Terms,
    register: Arc<Register>,
    /// 63 random bits, for each start.
    holder: i64,
    beats: Mutex<Beats>,
    forgetting: Mutex<Forgetting>,
    /// The boot time of the last new event, in nanoseconds.
    heard: AtomicI64,
}

#[derive(Default)]
struct Beats {
    last: Option<Look>,
    noted_at: Duration,
}

/// How far forgetting has come in its round.
#[derive(Default)]
struct Forgetting {
    upto: i64,
    began_at: Option<i64>,
}

struct Readers {
    path: std::path::PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// Looks are made by whoever asks, and not by threads beside.
    inline: bool,
}

impl Sqlite {
    /// Opens the file at `path`, or makes it, and frees whatever the process before this one held.
    /// Nothing can be changed before the writer runs.
    ///
    /// # Errors
    /// When the file cannot be opened, is another program's, damaged, or in use.
    pub fn open(
        path: &Path,
        terms: Terms,
        wall: &Clock,
    ) -> Result<(Self, Writer, Opened), StoreError> {
        Self::open_as(path, terms, wall, false)
    }

    /// The same, for whoever drives the writer by [`Writer::turn`]: no thread is used for looks.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub fn open_inline(
        path: &Path,
        terms: Terms,
        wall: &Clock,
    ) -> Result<(Self, Writer, Opened), StoreError> {
        Self::open_as(path, terms, wall, true)
    }

    fn open_as(
        path: &Path,
        terms: Terms,
        wall: &Clock,
        inline: bool,
    ) -> Result<(Self, Writer, Opened), StoreError> {
        let (mut connection, lock, is_new) = schema::open(path)?;
        let (now, look, possible_repeats) =
            take_over(&mut connection, terms, wall).map_err(translate)?;
        let (sender, jobs) = mpsc::channel(QUEUE);
        let mut reserve = path.as_os_str().to_owned();
        reserve.push(".reserve");
        let clock = wall.steady(from_nanos(now));
        let writer = Writer {
            clock: clock.clone(),
            noted: now,
            connection,
            _lock: lock,
            jobs,
            reserve: Reserve::new(reserve.into(), RESERVE),
            known: Known::default(),
        };
        let opened = Opened {
            is_new,
            possible_repeats,
        };
        let store = Self::over(path, Some(sender), (wall, clock, terms), inline);
        // A leap before the first sign of life is a leap, and no time that passed.
        store.beats().last = Some(look);
        Ok((store, writer, opened))
    }

    /// Opens the file to look at it only, beside the process that owns it.
    ///
    /// # Errors
    /// When there is none, or it is not a store of ours.
    pub fn look(path: &Path) -> Result<Self, StoreError> {
        let wall = Clock::system();
        let clock = wall.steady(wall.now());
        let store = Self::over(path, None, (&wall, clock, Terms::default()), false);
        store.readers.give_back(schema::open_to_read(path)?);
        Ok(store)
    }

    fn over(
        path: &Path,
        jobs: Option<mpsc::Sender<Box<dyn Job>>>,
        (wall, clock, terms): (&Clock, Clock, Terms),
        inline: bool,
    ) -> Self {
        let own = Own {
            wall: wall.clone(),
            register: Register::new(clock.clone(), terms, false),
            heard: AtomicI64::new(length(clock.boot())),
            clock,
            terms,
            holder: fastrand::i64(1..),
            beats: Mutex::default(),
            forgetting: Mutex::default(),
        };
        Self {
            jobs,
            readers: Arc::new(Readers {
                path: path.to_owned(),
                idle: Mutex::default(),
                inline,
            }),
            own: Arc::new(own),
        }
    }

    /// Has the writer do something and waits for the commit. Work that is `owed` waits for room in
    /// the queue; anything else is turned away when there is none.
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
            return answer.await.map_err(|_| StoreError::Gone(None))?;
        }
        jobs.try_send(task).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Gone(None),
        })?;
        // A disk that hangs must not make SNS wait: it comes again, and finds it kept or not.
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| StoreError::Gone(None))?,
            () = self.own.clock.sleep(DEADLINE) => {
                Err(StoreError::Gone(Some("it does not answer in time".into())))
            }
        }
    }

    /// Does something to many rows, a bounded step at a time, so that whatever else is to be written
    /// waits for one step only. Says how many it did.
    async fn in_steps<F>(&self, step: F) -> Result<u64, StoreError>
    where
        F: Fn(&mut Tables<'_>, i64) -> rusqlite::Result<Progress> + Send + Sync + 'static,
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
        if readers.inline {
            return readers.look(look);
        }
        let looked = tokio::task::spawn_blocking(move || readers.look(look));
        looked.await.map_err(|_| StoreError::Gone(None))?
    }

    async fn clear(&self, sink: &str, ending: Ending) -> Result<u64, StoreError> {
        let (sink, wall) = (sink.to_owned(), self.own.wall.now());
        self.in_steps(move |tables, _| tables.clear(&sink, &ending, wall))
            .await
    }

    fn take(&self) -> (Take, Asked) {
        let take = self.own.register.ask();
        let asked = Asked {
            holder: self.own.holder,
            call: take.call,
            terms: self.own.terms,
        };
        (take, asked)
    }
}

/// Takes a file over from the process before this one, which is dead: says what time it is there, by
/// which look at the clocks, and how many deliveries were under way.
fn take_over(
    connection: &mut Connection,
    terms: Terms,
    wall: &Clock,
) -> rusqlite::Result<(i64, Look, u64)> {
    let look = Look {
        wall: nanos(wall.now()),
        boot: length(wall.boot()),
        step: 0,
    };
    let it = tick(recover::clock(connection)?, None, None, look);
    if let Some(moved) = it.moved {
        let seconds = moved.saturating_abs() / 1_000_000_000;
        tracing::warn!(seconds, "the clock was set back while Runbell was down");
    }
    let mut known = Known::default();
    let transaction = connection.transaction()?;
    let tables = Tables::new(&transaction, &mut known);
    tables.write_clock(it.row)?;
    tables.cut_waits(latest_wait(it.now, terms.longest_wait))?;
    transaction.commit()?;
    let step = it.row.step;
    Ok((it.now, Look { step, ..look }, recover_all(connection)?))
}

/// Frees all leases of the process before this one; how many deliveries were under way.
fn recover_all(connection: &mut Connection) -> rusqlite::Result<u64> {
    let mut known = Known::default();
    let mut all = 0;
    loop {
        let transaction = connection.transaction()?;
        let (leases, marked) = Tables::new(&transaction, &mut known).recover_some()?;
        transaction.commit()?;
        all += marked;
        if leases < usize::try_from(STEP).unwrap_or_default() {
            return Ok(all);
        }
    }
}

impl Readers {
    fn look<T>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let connection = self.take()?;
        let found = look(&connection).map_err(translate);
        self.give_back(connection);
        found
    }

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
impl Intake for Sqlite {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        let append = Arc::new(append);
        let whole = Arc::clone(&append);
        let appended = match self.write(false, move |tables| tables.append(&whole)).await {
            Err(StoreError::Data(why)) => {
                let why = why.to_string();
                tracing::error!(
                    why,
                    topic = append.event.topic,
                    message_id = append.event.message_id,
                    "this cannot be kept as it is; it is kept raw, and what is owed for it becomes dead letters"
                );
                let why = format!("the store could not keep it as it is: {why}");
                self.write(false, move |tables| tables.append_raw(&append, &why))
                    .await
            }
            appended => appended,
        };
        if matches!(appended, Ok(Appended::Stored { .. })) {
            let boot = length(self.own.clock.boot());
            self.own.heard.store(boot, Ordering::Relaxed);
        }
        appended
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

    async fn subscription(&self, id: i64) -> Result<Option<Subscription>, StoreError> {
        self.read(move |connection| read::subscription_of(connection, id))
            .await
    }

    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.write(true, move |tables| tables.subscription_confirmed(id, at))
            .await
    }

    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError> {
        self.write(false, move |tables| tables.put_certificate(&certificate))
            .await
    }

    async fn put_generation(
        &self,
        generation: Generation,
        replica: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let replica = replica.to_owned();
        self.write(false, move |tables| {
            tables.put_generation(&generation, &replica, at)
        })
        .await
    }
}

#[async_trait]
impl Lanes for Sqlite {
    fn clock(&self) -> &Clock {
        &self.own.clock
    }

    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError> {
        let sink = sink.to_owned();
        let (take, asked) = self.take();
        let leased = self
            .write(true, move |tables| tables.lease(&sink, asked, now, limit))
            .await?;
        Ok(leased.read(take))
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), StoreError> {
        let boot = self.own.clock.boot();
        settle_each(settlements, boot, |some| self.settle_all(some).boxed()).await
    }

    async fn divert(&self, sink: &str, to: &str, _now: Timestamp) -> Result<u64, StoreError> {
        if sink == to {
            return Ok(0);
        }
        self.clear(sink, Ending::Diverted { to: to.to_owned() })
            .await
    }

    async fn back_off(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sink = sink.to_owned();
        self.write(true, move |tables| tables.back_off(&sink, until, now))
            .await
    }
}

impl Sqlite {
    /// Records settlements in one transaction, all or none.
    async fn settle_all(&self, settlements: Vec<Settlement>) -> Result<(), StoreError> {
        let (holder, all) = (self.own.holder, Arc::new(settlements));
        let work = Arc::clone(&all);
        self.write(true, move |tables| {
            work.iter()
                .try_for_each(|it| tables.settle(it.ended(), holder))
        })
        .await?;
        for settled in all.iter() {
            self.own.register.settled(settled.lease().hold());
        }
        Ok(())
    }
}
