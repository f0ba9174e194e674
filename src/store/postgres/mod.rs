//! The shared store: one PostgreSQL, or what speaks its protocol, for any number of replicas.
//!
//! [`Postgres`] is the handle that the paths hold. Events go through a bounded queue to the
//! [`Keeper`], which makes one transaction of whatever waits; everything else asks the database at
//! once, over a few connections. `app` runs the keeper and calls [`super::Care::beat`] once a second.
//!
//! A transaction that got in another's way is tried anew. A database that does not answer is given up
//! on within seconds, and intake is refused at once until a beat comes through again. Nothing depends
//! on the session of a connection, and no statement has a name (`values`), so that a pooler may give
//! each transaction another session. Nothing is used that the engines which speak PostgreSQL's
//! protocol lack: see `docs/scale.md`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::mpsc;

use super::isolate::settle_each;
use super::register::Register;
use super::rules::columns::{length, nanos};
use super::rules::number::generation_no;
use super::rules::time::{Look, latest_wait, tick};
use super::{
    Append, Appended, EventId, Generation, Intake, Lanes, Leased, Opened, Settlement, StoreError,
    Subscription, Terms,
};
use crate::clock::Clock;
use crate::delivery::from_nanos;
use crate::sns::KnownCertificate;

mod append;
mod beat;
mod care;
mod clear;
mod connect;
mod dead;
mod digest;
mod elsewhere;
mod errors;
mod forget;
mod history;
mod keeper;
mod lanes;
mod lease;
mod outcome;
mod over;
mod owe;
mod read;
mod recover;
mod schema;
mod settle;
mod shared;
mod silence;
mod tables;
mod target;
mod upkeep;
mod values;
mod waiting;

pub use connect::Settings;
use errors::{no_connection, too_late};
use keeper::Job;
pub use keeper::Keeper;
use shared::{Own, Pools, Shared};
use tables::Path;
pub(super) use target::{Column, CopyStep, Finish, Reached, Target};

/// How many events may wait to be kept; more are turned away.
const QUEUE: usize = 4096;

/// A handle on the store; all clones share its connections.
#[derive(Clone)]
pub struct Postgres {
    jobs: Option<mpsc::Sender<Job>>,
    shared: Arc<Shared>,
}

impl Postgres {
    /// Connects, makes or upgrades the tables, and enters this replica. Nothing can be appended
    /// before the keeper runs.
    ///
    /// # Errors
    /// When the database cannot be reached, is another program's, or was upgraded by a newer Runbell.
    pub async fn open(
        settings: &Settings,
        terms: Terms,
        wall: &Clock,
    ) -> Result<(Self, Keeper, Opened), StoreError> {
        let (shared, is_new) = connect(settings, terms, wall, fastrand::i64(1..)).await?;
        let shared = Arc::new(shared);
        shared.beat().await?;
        let possible_repeats = shared.free_left().await?;
        // In steps, as all that grows with what waits.
        let latest = latest_wait(nanos(shared.own.clock.now()), terms.longest_wait);
        while shared
            .write(Path::Upkeep, |tables| tables.cut_waits(latest).boxed())
            .await?
        {}
        let (sender, jobs) = mpsc::channel(QUEUE);
        let opened = Opened {
            is_new,
            possible_repeats,
        };
        let keeper = Keeper::new(jobs, Arc::clone(&shared));
        let store = Self {
            jobs: Some(sender),
            shared,
        };
        Ok((store, keeper, opened))
    }

    /// Connects to look and to act on dead letters only, beside the replicas that run.
    ///
    /// # Errors
    /// When the database cannot be reached, or is not a store of this version.
    pub async fn look(settings: &Settings) -> Result<Self, StoreError> {
        let (shared, _) = connect(settings, Terms::default(), &Clock::system(), 0).await?;
        Ok(Self {
            jobs: None,
            shared: Arc::new(shared),
        })
    }
}

/// Connects, and learns what time it is there; whether there were no tables. Only one that holds
/// something may make them.
async fn connect(
    settings: &Settings,
    terms: Terms,
    wall: &Clock,
    holder: i64,
) -> Result<(Shared, bool), StoreError> {
    let pools = Pools::of(settings)?;
    let client = pools.all.get().await.map_err(no_connection)?;
    let is_replica = holder != 0;
    let mut is_new = false;
    if is_replica {
        is_new = schema::migrate(&client).await?;
    } else if !schema::is_current(&client).await? {
        return Err(schema::unusable(
            "it has no tables of this version: they are made when a replica starts",
        ));
    }
    let boot = wall.boot();
    let (there, row) = beat::look_at_clock(&client, wall.wall_by_hand().map(nanos)).await?;
    drop(client);
    wall.follow(from_nanos(there));
    let look = Look {
        wall: there,
        boot: length(boot),
        step: row.step,
    };
    let it = tick(row, None, None, look);
    let clock = wall.steady(from_nanos(it.now));
    let own = Own {
        name: settings.replica.clone(),
        holder,
        wall: wall.clone(),
        register: Register::new(clock.clone(), terms, true),
        clock,
        terms,
    };
    let shared = Shared::new(pools, own);
    if is_replica && let Some(moved) = it.moved {
        let seconds = moved.saturating_abs() / 1_000_000_000;
        tracing::warn!(seconds, "the database's clock was set back");
        shared
            .write(Path::Upkeep, |tables| {
                tables.correct_clock(it, row.step).boxed()
            })
            .await?;
    }
    Ok((shared, is_new))
}

#[async_trait]
impl Intake for Postgres {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        if self.shared.is_gone.load(Ordering::Relaxed) {
            return Err(too_late());
        }
        let jobs = self.jobs.as_ref().ok_or(StoreError::Gone(None))?;
        let (job, answer) = Job::new(append);
        jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::Gone(None),
        })?;
        answer.await.map_err(|_| StoreError::Gone(None))?
    }

    async fn known(
        &self,
        topic: &str,
        sent_at: Timestamp,
        message_id: &str,
    ) -> Result<Option<EventId>, StoreError> {
        let sent_at = nanos(sent_at);
        self.shared
            .read(|tables| tables.known_event(topic, sent_at, message_id).boxed())
            .await
    }

    async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, StoreError> {
        self.shared
            .write(Path::Receive, |tables| {
                tables.put_subscription(topic, token, at).boxed()
            })
            .await
    }

    async fn subscription(&self, id: i64) -> Result<Option<Subscription>, StoreError> {
        self.shared
            .read(|tables| tables.subscription_of(id).boxed())
            .await
    }

    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.shared
            .write(Path::Receive, |tables| {
                tables.subscription_confirmed(id, at).boxed()
            })
            .await
    }

    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError> {
        let certificate = &certificate;
        self.shared
            .write(Path::Receive, |tables| {
                tables.put_certificate(certificate).boxed()
            })
            .await
    }

    async fn put_generation(
        &self,
        generation: Generation,
        replica: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let (number, generation) = (generation_no(&generation.hash), &generation);
        self.shared
            .write(Path::Receive, |tables| {
                tables
                    .put_generation(number, generation, replica, at)
                    .boxed()
            })
            .await?;
        self.shared.generation.store(number, Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait]
impl Lanes for Postgres {
    fn clock(&self) -> &Clock {
        &self.shared.own.clock
    }

    fn replicas(&self) -> u32 {
        u32::try_from(self.shared.alive.load(Ordering::Relaxed)).unwrap_or(1)
    }

    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError> {
        // Entered before the database is asked. Dropped on any way out of here but the last, it is
        // lost, and whatever was committed for it is given back at the next beat.
        let take = self.shared.own.register.ask();
        let sink = self.shared.names.number(sink);
        let leased = self.shared.lease(sink, take.call, now, limit).await?;
        Ok(leased.read(take))
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), StoreError> {
        let write = |some: Vec<Settlement>| async move { self.settle_all(&some).await }.boxed();
        settle_each(settlements, self.shared.own.clock.boot(), write).await
    }

    async fn settle_and_lease(
        &self,
        settlements: Vec<Settlement>,
        sink: &str,
        now: Timestamp,
        limit: usize,
    ) -> (Result<(), StoreError>, Result<Leased, StoreError>) {
        // One after the other: a lease beside it would not see what the settlement frees.
        let settled = if settlements.is_empty() {
            Ok(())
        } else {
            self.settle(settlements).await
        };
        (settled, self.lease(sink, now, limit).await)
    }

    async fn divert(&self, sink: &str, to: &str, _now: Timestamp) -> Result<u64, StoreError> {
        let (sink, wall) = (self.shared.names.number(sink), self.shared.own.wall.now());
        self.shared
            .in_steps(|tables, after| tables.clear(sink, Some(to), after, wall).boxed())
            .await
    }

    async fn back_off(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.shared
            .write(Path::Deliver, |tables| {
                tables.back_off(sink, until, now).boxed()
            })
            .await
    }
}

impl Postgres {
    async fn settle_all(&self, settlements: &[Settlement]) -> Result<(), StoreError> {
        self.shared
            .write(Path::Deliver, |tables| tables.settle(settlements).boxed())
            .await?;
        for settled in settlements {
            self.shared.own.register.settled(settled.lease().hold());
        }
        Ok(())
    }
}
