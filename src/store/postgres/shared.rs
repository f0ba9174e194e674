//! What the handles of one replica share: connections, transactions over them, what it remembers, and
//! how it stands among the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_postgres::Error;

use super::connect::Settings;
use super::faults::{is_passing, no_connection, too_late, translate};
use super::schema;
use super::tables::{Known, Street, Tables};
use crate::store::StoreError;
use crate::store::rows::SLACK;

/// How long a transaction may take, with all its tries.
const DEADLINE: Duration = Duration::from_secs(6);

/// How long the server works on one statement, and waits for one lock or for us, at most. A replica
/// that is paused in the middle of a transaction must not hold its locks.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = '5s'; SET LOCAL lock_timeout = '4s';
    SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// How often a transaction is tried that gets in the way of others.
const TRIES: u32 = 5;

/// What the handles and the keeper share.
pub(super) struct Shared {
    pub(super) pool: Pool,
    /// One connection for signs of life: whoever has none to spare must not seem dead.
    vital: Pool,
    pub(super) name: String,
    pub(super) replica: i64,
    pub(super) known: Known,
    /// The latest time that a lease was asked at.
    pub(super) latest: AtomicI64,
    /// The database did not answer when it was asked last.
    pub(super) is_gone: AtomicBool,
    /// Up to which day there are partitions.
    pub(super) days_upto: AtomicI64,
    /// How many deliveries were settled since it was tidied up.
    pub(super) settled: AtomicU64,
    /// How many replicas are alive, as far as is known.
    pub(super) alive: AtomicI64,
    /// Since when this replica's signs of life have come without a gap.
    pub(super) unbroken_since: AtomicI64,
    /// Until when the others believe it to be alive.
    pub(super) alive_until: AtomicI64,
}

/// A connection in use. One that is let go in the middle of something is closed, since nobody knows
/// what the next would find.
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

impl Shared {
    pub(super) async fn connect(
        settings: &Settings,
        may_change: bool,
    ) -> Result<(Self, bool), StoreError> {
        let shared = Self::over(settings)?;
        let client = shared.pool.get().await.map_err(no_connection)?;
        let mut is_new = false;
        if may_change {
            is_new = schema::migrate(&client).await?;
        } else if !schema::is_current(&client).await? {
            return Err(schema::unusable(
                "it has no tables of this version: they are made when a replica starts",
            ));
        }
        drop(client);
        Ok((shared, is_new))
    }

    /// Not connected yet.
    pub(super) fn over(settings: &Settings) -> Result<Self, StoreError> {
        Ok(Self {
            pool: settings.pool(settings.connections)?,
            vital: settings.pool(1)?,
            name: settings.replica.clone(),
            replica: 0,
            known: Known::default(),
            latest: AtomicI64::default(),
            is_gone: AtomicBool::default(),
            days_upto: AtomicI64::default(),
            settled: AtomicU64::default(),
            alive: AtomicI64::new(1),
            unbroken_since: AtomicI64::new(i64::MIN),
            alive_until: AtomicI64::new(i64::MAX),
        })
    }

    /// Does something in one transaction; again when it gets in the way of others.
    pub(super) async fn write<T, F>(&self, street: Street, work: F) -> Result<T, StoreError>
    where
        T: Send,
        F: for<'t, 'c> Fn(&'t mut Tables<'c>) -> BoxFuture<'t, Result<T, Error>> + Send + Sync,
    {
        self.try_write(street, work).await?.map_err(translate)
    }

    /// The same, with what the database itself said.
    pub(super) async fn try_write<T, F>(
        &self,
        street: Street,
        work: F,
    ) -> Result<Result<T, Error>, StoreError>
    where
        T: Send,
        F: for<'t, 'c> Fn(&'t mut Tables<'c>) -> BoxFuture<'t, Result<T, Error>> + Send + Sync,
    {
        let attempts = async {
            let mut tries = 1;
            loop {
                match self.attempt(street, &work).await? {
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

    async fn attempt<T, F>(&self, street: Street, work: &F) -> Result<Result<T, Error>, StoreError>
    where
        F: for<'t, 'c> Fn(&'t mut Tables<'c>) -> BoxFuture<'t, Result<T, Error>> + Send + Sync,
    {
        let mut session = self.session(street).await?;
        let Some(client) = session.object.as_deref() else {
            return Err(StoreError::Gone(None));
        };
        let mut tables = Tables::new(client, &self.known, (self.replica, &self.name), street);
        // The first question goes out right behind, without waiting.
        let (begun, done) = tokio::join!(biased; client.batch_execute(BEGIN), work(&mut tables));
        let done = match begun.and(done) {
            Ok(done) => client.batch_execute("COMMIT").await.map(|()| done),
            Err(error) => Err(error),
        };
        match done {
            Ok(done) => {
                session.is_clean = true;
                Ok(Ok(done))
            }
            Err(error) => {
                let is_settled = error.code().is_some_and(|code| {
                    ["22", "23", "40", "54", "P0"].contains(&code.code().get(..2).unwrap_or(""))
                });
                // Else the connection is not worth keeping.
                session.is_clean = is_settled && client.batch_execute("ROLLBACK").await.is_ok();
                Ok(Err(error))
            }
        }
    }

    /// Asks something that one statement answers.
    pub(super) async fn read<T, F>(&self, look: F) -> Result<T, StoreError>
    where
        T: Send,
        F: for<'t, 'c> Fn(&'t mut Tables<'c>) -> BoxFuture<'t, Result<T, Error>> + Send + Sync,
    {
        let read = async {
            let mut session = self.session(Street::Deliver).await?;
            let Some(client) = session.object.as_deref() else {
                return Err(StoreError::Gone(None));
            };
            let mut tables = Tables::new(
                client,
                &self.known,
                (self.replica, &self.name),
                Street::Deliver,
            );
            let found = look(&mut tables).await;
            session.is_clean = found.is_ok();
            found.map_err(translate)
        };
        tokio::time::timeout(DEADLINE, read)
            .await
            .unwrap_or_else(|_| Err(too_late()))
    }

    async fn session(&self, street: Street) -> Result<Session, StoreError> {
        let pool = match street {
            Street::Receive | Street::Deliver => &self.pool,
            Street::Upkeep => &self.vital,
        };
        let object = pool.get().await.map_err(no_connection)?;
        Ok(Session {
            object: Some(object),
            is_clean: false,
        })
    }

    /// The numbers of topics, routes and sinks, given when they are first met; in a transaction of
    /// their own, so that they are certain before anybody remembers them.
    pub(super) async fn numbers(&self, names: &[&str]) -> Result<HashMap<String, i64>, StoreError> {
        let mut numbers = HashMap::new();
        let mut new = Vec::new();
        for name in names {
            match self.known.number(name) {
                Some(number) => {
                    numbers.insert((*name).to_owned(), number);
                }
                None => new.push((*name).to_owned()),
            }
        }
        if new.is_empty() {
            return Ok(numbers);
        }
        new.sort_unstable();
        new.dedup();
        let new = Arc::new(new);
        let asked = Arc::clone(&new);
        let rows = self
            .write(Street::Deliver, move |tables| {
                let new = Arc::clone(&asked);
                async move {
                    let put = "INSERT INTO name (text) SELECT * FROM unnest($1::text[])
                       ON CONFLICT DO NOTHING";
                    tables.execute(put, &[&*new]).await?;
                    let get = "SELECT text, id FROM name WHERE text = ANY($1)";
                    tables.query(get, &[&*new]).await
                }
                .boxed()
            })
            .await?;
        for row in rows {
            let (text, number): (String, i64) = (row.get(0), row.get(1));
            self.known.learn(&text, number);
            numbers.insert(text, number);
        }
        Ok(numbers)
    }

    pub(super) async fn number(&self, name: &str) -> Result<i64, StoreError> {
        let numbers = self.numbers(&[name]).await?;
        numbers.get(name).copied().ok_or(StoreError::Gone(None))
    }

    /// Frees what dead replicas had leased; how many deliveries were under way.
    pub(super) async fn take_back(&self) -> Result<u64, StoreError> {
        let mut all = 0;
        loop {
            let (lanes, marked) = self
                .write(Street::Upkeep, |tables| {
                    async move { tables.take_back().await }.boxed()
                })
                .await?;
            if lanes == 0 {
                return Ok(all);
            }
            all += marked;
            if self.replica != 0 {
                tracing::warn!(
                    lanes,
                    deliveries = marked,
                    "a replica gives no sign of life; its lanes were freed"
                );
            }
        }
    }

    /// Makes sure that there are partitions for some days.
    pub(super) async fn make_days(&self, days: Vec<i64>) -> Result<(), StoreError> {
        let last = days.last().copied().unwrap_or_default();
        let days = Arc::new(days);
        self.write(Street::Deliver, move |tables| {
            let days = Arc::clone(&days);
            async move { tables.make_days(&days).await }.boxed()
        })
        .await?;
        self.days_upto.fetch_max(last, Ordering::Relaxed);
        Ok(())
    }

    /// Notices at most once a second whether the database's clock was set back. A little is no matter:
    /// it may be how long this question waited.
    pub(super) async fn watch_clock(&self, now: i64) -> Result<(), StoreError> {
        let latest = self.latest.load(Ordering::Relaxed);
        if (now - latest).abs() <= SLACK {
            return Ok(());
        }
        self.write(Street::Deliver, move |tables| {
            async move { tables.notice_clock_set_back(now).await }.boxed()
        })
        .await?;
        self.latest.store(now, Ordering::Relaxed);
        Ok(())
    }
}
