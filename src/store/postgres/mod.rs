//! The shared store: one PostgreSQL, or what speaks its protocol, for any number of replicas.
//!
//! [`Postgres`] is the handle that the streets hold. What is appended goes through a bounded queue to
//! the [`Keeper`], which makes one transaction of whatever waits; everything else asks the database
//! at once, over a few connections. `app` runs the keeper, which also gives the replica's signs of
//! life, frees what dead replicas had leased, and leads the clock by that of the database, so that
//! holds and leases mean the same everywhere.
//!
//! A transaction that got in another's way is tried anew. A database that does not answer is given up
//! on within seconds, and intake is refused at once until it answers again. Nothing depends on the
//! session of a connection, and nothing is used that the engines which speak PostgreSQL's protocol
//! lack: see `docs/scale.md`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio_postgres::Error;

use super::rows::nanos;
use super::{
    Append, Appended, Backlog, DeadLetter, DeadSelection, Delivery, EventId, EventQuery, Leased,
    Opened, Settlement, Store, StoreError, StoredEvent, Subscription, Tally,
};
use crate::clock::earlier;
use crate::sns::KnownCertificate;

mod append;
mod connect;
mod copy;
mod digest;
mod faults;
mod keeper;
mod lease;
mod read;
mod replicas;
mod retention;
mod schema;
mod settle;
mod shared;
mod tables;
mod upkeep;

pub use connect::Settings;
pub use copy::{Progress, copy};
use faults::too_late;
use keeper::Job;
pub use keeper::Keeper;
use shared::Shared;
use tables::{COMMAND_IS_SURE, Street, Tables, day_of};
use upkeep::Step;

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
    pub async fn open(settings: &Settings) -> Result<(Self, Keeper, Opened), StoreError> {
        let shared = Shared::connect(settings, true).await?;
        let (mut shared, is_new) = shared;
        shared.replica = shared
            .write(Street::Deliver, |tables| {
                async move { tables.enter().await }.boxed()
            })
            .await?;
        let shared = Arc::new(shared);
        let possible_repeats = shared.take_back().await?;
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
        let (shared, _) = Shared::connect(settings, false).await?;
        Ok(Self {
            jobs: None,
            shared: Arc::new(shared),
        })
    }

    async fn write<T, F>(&self, street: Street, work: F) -> Result<T, StoreError>
    where
        T: Send,
        F: for<'t, 'c> Fn(&'t mut Tables<'c>) -> BoxFuture<'t, Result<T, Error>> + Send + Sync,
    {
        self.shared.write(street, work).await
    }

    /// Does something to many rows, a bounded step at a time, so that nobody waits for long. Says how
    /// many it did.
    async fn in_steps<F>(&self, step: F) -> Result<u64, StoreError>
    where
        F: for<'t, 'c> Fn(&'t mut Tables<'c>, i64) -> BoxFuture<'t, Result<Step, Error>>
            + Send
            + Sync
            + 'static,
    {
        let step = Arc::new(step);
        let (mut after, mut count) = (0, 0);
        loop {
            let step = Arc::clone(&step);
            let done = self
                .write(Street::Deliver, move |tables| step(tables, after))
                .await?;
            count += done.count;
            match done.upto {
                Some(upto) => after = upto,
                None => return Ok(count),
            }
        }
    }
}

#[async_trait]
impl Store for Postgres {
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
        let (topic, id) = (topic.to_owned(), message_id.to_owned());
        self.shared
            .read(move |tables| {
                let (topic, id) = (topic.clone(), id.clone());
                async move { tables.known_event(&topic, nanos(sent_at), &id).await }.boxed()
            })
            .await
    }

    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError> {
        self.shared.watch_clock(nanos(now)).await?;
        let sink = self.shared.number(sink).await?;
        let look = self
            .shared
            .read(move |tables| async move { tables.look(sink).await }.boxed())
            .await?;
        let (is_due, answer) = look.answer(nanos(now));
        if !is_due {
            return Ok(answer.read());
        }
        let leased = self
            .write(Street::Deliver, move |tables| {
                async move { tables.lease(sink, now, limit).await }.boxed()
            })
            .await?;
        let mut leased = leased.read();
        leased.in_trouble_since = answer.read().in_trouble_since;
        Ok(leased)
    }

    fn replicas(&self) -> u32 {
        u32::try_from(self.shared.alive.load(Ordering::Relaxed)).unwrap_or(1)
    }

    fn holds(&self, leased_at: Timestamp, now: Timestamp) -> bool {
        nanos(leased_at) >= self.shared.unbroken_since.load(Ordering::Relaxed)
            && nanos(now) < self.shared.alive_until.load(Ordering::Relaxed)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), StoreError> {
        let results = settlements.iter().flat_map(|it| &it.results);
        let others: Vec<_> = results.filter_map(|it| it.divert_to.as_deref()).collect();
        let names = self.shared.numbers(&others).await?;
        let many = settlements.iter().map(|it| it.results.len() as u64).sum();
        let work = Arc::new((settlements, names));
        self.write(Street::Deliver, move |tables| {
            let work = Arc::clone(&work);
            async move { tables.settle(&work.0, &work.1).await }.boxed()
        })
        .await?;
        self.shared.settled.fetch_add(many, Ordering::Relaxed);
        Ok(())
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

    async fn sweep(&self) -> Result<u64, StoreError> {
        self.shared.take_back().await?;
        let forgotten = self
            .shared
            .read(|tables| async move { tables.forgotten_lanes().await }.boxed())
            .await?;
        if forgotten.is_empty() {
            return Ok(0);
        }
        let forgotten = Arc::new(forgotten);
        self.write(Street::Deliver, move |tables| {
            let forgotten = Arc::clone(&forgotten);
            async move { tables.rescue(&forgotten).await }.boxed()
        })
        .await
    }

    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError> {
        let days = retention::days_around(nanos(now));
        if days.last().copied() > Some(self.shared.days_upto.load(Ordering::Relaxed)) {
            self.shared.make_days(days).await?;
        }
        let before = day_of(earlier(now, keep));
        let silent_since = nanos(earlier(earlier(now, keep), COMMAND_IS_SURE));
        let forgot = self
            .write(Street::Deliver, move |tables| {
                async move {
                    // Even when there is nothing to forget: so it shows that it can be written.
                    tables.forget_replicas().await?;
                    Ok(tables.forget_commands(silent_since).await?
                        || tables.forget_day(before).await?)
                }
                .boxed()
            })
            .await;
        match forgot {
            // Somebody reads what was to go; the next round comes soon.
            Err(StoreError::Gone(Some(why))) if is_locked(&*why) => Ok(false),
            forgot => forgot,
        }
    }

    async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, StoreError> {
        self.shared
            .read(move |tables| {
                let query = query.clone();
                async move { tables.events(&query).await }.boxed()
            })
            .await
    }

    async fn event(&self, id: EventId) -> Result<Option<(StoredEvent, Vec<Delivery>)>, StoreError> {
        self.shared
            .read(move |tables| async move { tables.event(id).await }.boxed())
            .await
    }

    async fn dead(
        &self,
        selection: DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.shared
            .read(move |tables| {
                let selection = selection.clone();
                async move { tables.dead(&selection, limit).await }.boxed()
            })
            .await
    }

    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let to = match to {
            Some(to) => Some(self.shared.number(&to).await?),
            None => None,
        };
        self.in_steps(move |tables, after| {
            let selection = selection.clone();
            async move { tables.retry_dead(&selection, to, after, now).await }.boxed()
        })
        .await
    }

    async fn bury(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError> {
        let sink = self.shared.number(sink).await?;
        self.in_steps(move |tables, _| async move { tables.clear(sink, None, now).await }.boxed())
            .await
    }

    async fn drop_dead(&self, selection: DeadSelection, now: Timestamp) -> Result<u64, StoreError> {
        self.in_steps(move |tables, after| {
            let selection = selection.clone();
            async move { tables.drop_dead(&selection, after, now).await }.boxed()
        })
        .await
    }

    async fn divert(&self, sink: &str, to: &str, now: Timestamp) -> Result<u64, StoreError> {
        let sink = self.shared.number(sink).await?;
        let to = (to.to_owned(), self.shared.number(to).await?);
        self.in_steps(move |tables, _| {
            let to = to.clone();
            async move { tables.clear(sink, Some(&to), now).await }.boxed()
        })
        .await
    }

    async fn rest(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sink = self.shared.number(sink).await?;
        self.write(Street::Deliver, move |tables| {
            async move { tables.rest(sink, until, now).await }.boxed()
        })
        .await
    }

    async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, StoreError> {
        let (topic, token) = (topic.to_owned(), token.clone());
        self.write(Street::Receive, move |tables| {
            let (topic, token) = (topic.clone(), token.clone());
            async move { tables.put_subscription(&topic, &token, at).await }.boxed()
        })
        .await
    }

    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.write(Street::Receive, move |tables| {
            async move { tables.subscription_confirmed(id, at).await }.boxed()
        })
        .await
    }

    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError> {
        self.shared
            .read(|tables| async move { tables.subscriptions().await }.boxed())
            .await
    }

    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError> {
        self.write(Street::Receive, move |tables| {
            let certificate = certificate.clone();
            async move { tables.put_certificate(&certificate).await }.boxed()
        })
        .await
    }

    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError> {
        self.shared
            .read(|tables| async move { tables.certificates().await }.boxed())
            .await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        self.shared
            .read(|tables| async move { tables.backlog().await }.boxed())
            .await
    }

    async fn tally(&self) -> Result<Vec<Tally>, StoreError> {
        self.shared
            .read(|tables| async move { tables.tally().await }.boxed())
            .await
    }
}

/// Whether a lock could not be had in time.
fn is_locked(why: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    why.downcast_ref::<Error>().is_some_and(|error| {
        error.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE)
    })
}
