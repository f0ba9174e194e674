//! The state that all handles of one replica share: connections, transactions over them, and how it
//! stands among the others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_postgres::Error;

use super::beat::Beats;
use super::connect::Settings;
use super::errors::{is_over, is_passing, lacks_a_day, no_connection, too_late, translate};
use super::forget::Forgetting;
use super::lease::Low;
use super::silence::Others;
use super::tables::{Names, Path, Tables};
use crate::clock::Clock;
use crate::fault::causes;
use crate::store::register::Register;
use crate::store::rules::dead::Progress;
use crate::store::{StoreError, Terms};

/// How long a transaction may take, with all its tries.
const DEADLINE: Duration = Duration::from_secs(6);

/// How long the server works on one statement, and waits for one lock or for us, at most. A replica
/// that is paused in the middle of a transaction must not hold its locks.
///
/// Statements are planned at each use, since they have no name. A plan for the values at hand takes
/// long arrays as a reason to read whole tables, which hold mostly dead rows under load: three
/// times as slow as by the index. A generic plan does not look at the values.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = '5s'; SET LOCAL lock_timeout = '4s';
    SET LOCAL idle_in_transaction_session_timeout = '5s';
    SET LOCAL plan_cache_mode = force_generic_plan";

/// How often a transaction is tried that gets in the way of others.
const TRIES: u32 = 5;

/// The identity of one replica, from its start to its end.
pub(super) struct Own {
    pub(super) name: String,
    /// 63 random bits for each start; 0 of one that only looks.
    pub(super) holder: i64,
    pub(super) wall: Clock,
    /// Logical time.
    pub(super) clock: Clock,
    pub(super) terms: Terms,
    pub(super) register: Arc<Register>,
}

/// Shared by the handles and the keeper.
pub(super) struct Shared {
    pools: Pools,
    pub(super) own: Own,
    pub(super) names: Names,
    /// The settings by which events are judged from now on, by number; 0: none were named.
    pub(super) generation: AtomicI64,
    /// The database did not answer when it was asked last.
    pub(super) is_gone: AtomicBool,
    /// Up to which day there are partitions.
    pub(super) days_upto: AtomicI64,
    /// How many replicas are alive, as far as is known.
    pub(super) alive: AtomicI64,
    beats: Mutex<Beats>,
    others: Mutex<Others>,
    forgetting: Mutex<Forgetting>,
    lows: Mutex<HashMap<i64, Low>>,
}

/// Connections, opened when they are needed.
pub(super) struct Pools {
    pub(super) all: Pool,
    /// One connection for signs of life: a replica that has none to spare must not seem dead.
    vital: Pool,
}

impl Pools {
    pub(super) fn of(settings: &Settings) -> Result<Self, StoreError> {
        Ok(Self {
            all: settings.pool(settings.connections)?,
            vital: settings.pool(1)?,
        })
    }
}

/// A connection in use. One that is let go in the middle of something is closed, since nobody knows
/// what the next user would find.
struct Session {
    object: Option<Object>,
    is_clean: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_clean
            && let Some(object) = self.object.take()
        {
            drop(Object::take(object));
        }
    }
}

/// The future of one try of a transaction.
pub(super) type Work<'t, T> = BoxFuture<'t, Result<T, Error>>;

impl Shared {
    pub(super) fn new(pools: Pools, own: Own) -> Self {
        Self {
            pools,
            own,
            names: Names::default(),
            generation: AtomicI64::default(),
            is_gone: AtomicBool::default(),
            days_upto: AtomicI64::default(),
            alive: AtomicI64::new(1),
            beats: Mutex::default(),
            others: Mutex::default(),
            forgetting: Mutex::default(),
            lows: Mutex::default(),
        }
    }

    /// Does something in one transaction; again when it got in the way of others, and when the day of
    /// an event had no partition, which somebody removed by hand.
    pub(super) async fn write<'a, T, F>(&'a self, path: Path, work: F) -> Result<T, StoreError>
    where
        T: Send + 'a,
        F: for<'t, 'c> Fn(&'t mut Tables<'c, 'a>) -> Work<'t, T> + Send + Sync,
    {
        match self.try_write(path, &work).await? {
            Err(error) if lacks_a_day(&error) => {
                self.make_owed_days().await?;
                self.try_write(path, &work).await?.map_err(translate)
            }
            done => done.map_err(translate),
        }
    }

    /// The same, with the database's own error.
    pub(super) async fn try_write<'a, T, F>(
        &'a self,
        path: Path,
        work: &F,
    ) -> Result<Result<T, Error>, StoreError>
    where
        T: Send + 'a,
        F: for<'t, 'c> Fn(&'t mut Tables<'c, 'a>) -> Work<'t, T> + Send + Sync,
    {
        let attempts = async {
            let mut tries = 1;
            loop {
                match self.attempt(path, work).await? {
                    Ok(done) => return Ok(Ok(done)),
                    Err(error) if is_passing(&error) && tries < TRIES => tries += 1,
                    Err(error) => return Ok(Err(error)),
                }
            }
        };
        tokio::time::timeout(DEADLINE, attempts)
            .await
            .unwrap_or_else(|_| Err(too_late()))
    }

    async fn attempt<'a, T, F>(
        &'a self,
        path: Path,
        work: &F,
    ) -> Result<Result<T, Error>, StoreError>
    where
        F: for<'t, 'c> Fn(&'t mut Tables<'c, 'a>) -> Work<'t, T> + Send + Sync,
    {
        let mut session = self.session(path).await?;
        let Some(client) = session.object.as_deref() else {
            return Err(StoreError::Gone(None));
        };
        let mut tables = Tables::new(client, self, path);
        // Nothing goes out before this is answered: if it fails, whatever followed would be committed
        // statement by statement.
        let done = match client.batch_execute(BEGIN).await {
            Ok(()) => work(&mut tables).await,
            Err(error) => Err(error),
        };
        let done = match done {
            Ok(done) => client.batch_execute("COMMIT").await.map(|()| done),
            Err(error) => Err(error),
        };
        match done {
            Ok(done) => {
                session.is_clean = true;
                Ok(Ok(done))
            }
            Err(error) => {
                // Else the connection is not worth keeping.
                session.is_clean =
                    is_over(&error) && client.batch_execute("ROLLBACK").await.is_ok();
                Ok(Err(error))
            }
        }
    }

    /// Asks something that changes nothing, without a transaction.
    pub(super) async fn read<'a, T, F>(&'a self, look: F) -> Result<T, StoreError>
    where
        T: Send + 'a,
        F: for<'t, 'c> Fn(&'t mut Tables<'c, 'a>) -> Work<'t, T> + Send + Sync,
    {
        let read = async {
            let mut session = self.session(Path::Deliver).await?;
            let Some(client) = session.object.as_deref() else {
                return Err(StoreError::Gone(None));
            };
            let mut tables = Tables::new(client, self, Path::Deliver);
            let found = look(&mut tables).await;
            session.is_clean = found.is_ok();
            found.map_err(translate)
        };
        tokio::time::timeout(DEADLINE, read)
            .await
            .unwrap_or_else(|_| Err(too_late()))
    }

    /// Asks something that grows with the tables, in a transaction, since that is where the server has
    /// a time limit: a statement of which the answer is no longer awaited would go on there, and be
    /// asked again beside itself.
    pub(super) async fn read_long<'a, T, F>(&'a self, look: F) -> Result<T, StoreError>
    where
        T: Send + 'a,
        F: for<'t, 'c> Fn(&'t mut Tables<'c, 'a>) -> Work<'t, T> + Send + Sync,
    {
        self.write(Path::Deliver, look).await
    }

    /// Does something to many rows, a bounded step at a time. Each step is committed by itself and has
    /// the deadline for itself, so that what is large is only long. Says how many rows there were.
    pub(super) async fn in_steps<'a, F>(&'a self, step: F) -> Result<u64, StoreError>
    where
        F: for<'t, 'c> Fn(&'t mut Tables<'c, 'a>, i64) -> Work<'t, Progress> + Send + Sync,
    {
        let (mut after, mut count) = (0, 0);
        loop {
            let done = self
                .write(Path::Deliver, |tables| step(tables, after))
                .await?;
            count += done.count;
            match done.upto {
                Some(upto) => after = upto,
                None => return Ok(count),
            }
        }
    }

    async fn session(&self, path: Path) -> Result<Session, StoreError> {
        let pool = match path {
            Path::Receive | Path::Deliver => &self.pools.all,
            Path::Upkeep => &self.pools.vital,
        };
        let object = pool.get().await.map_err(no_connection)?;
        Ok(Session {
            object: Some(object),
            is_clean: false,
        })
    }

    /// Notes that the database did not answer.
    pub(super) fn gone(&self, error: &StoreError) {
        let cause = causes(error);
        if matches!(error, StoreError::Busy) {
            tracing::warn!(error = cause, "the database is busy");
        } else if !matches!(error, StoreError::Gone(_)) {
            tracing::error!(error = cause, "the database refused");
        } else if !self.is_gone.swap(true, Ordering::Relaxed) {
            tracing::error!(
                error = cause,
                "the database is gone; nothing is taken in until it is back"
            );
        }
    }

    /// Makes sure that there are partitions for some days.
    pub(super) async fn make_days(&self, days: &[i64]) -> Result<(), StoreError> {
        let made = self
            .try_write(Path::Deliver, &|tables| tables.make_days(days).boxed())
            .await?;
        made.map_err(translate)?;
        let last = days.last().copied().unwrap_or_default();
        self.days_upto.fetch_max(last, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the partitions of all days for which something waits.
    async fn make_owed_days(&self) -> Result<(), StoreError> {
        let days = self.read(|tables| tables.owed_days().boxed()).await?;
        self.make_days(&days).await
    }

    pub(super) fn beats(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forgetting(&self) -> MutexGuard<'_, Forgetting> {
        self.forgetting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lows(&self) -> MutexGuard<'_, HashMap<i64, Low>> {
        self.lows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
