//! A wrapper around a store: at every call something may go wrong, in each way in which it can.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use runbell::clock::Clock;
use runbell::sns::KnownCertificate;
use runbell::store::{
    Append, Appended, Backlog, Care, DeadLetter, DeadSelection, Delivery, EventId, EventQuery,
    Generation, History, Intake, LaneId, Lanes, Lease, Leased, RouteBacklog, Settlement, Store,
    StoreError, StoredEvent, Subscription, Tally,
};
use secrecy::SecretString;

use crate::world::{Planted, World};

/// The deadline of a call.
const DEADLINE: Duration = Duration::from_secs(6);

/// The round trip of a database that is not next door.
const FAR: Duration = Duration::from_millis(5);

/// How many round trips a call takes, about.
const ROUND_TRIPS: u32 = 4;

/// A store in trouble.
pub struct Faulty {
    inner: Arc<dyn Store>,
    world: Arc<World>,
    /// The start of the process that holds it.
    start: u64,
}

/// The way in which a call goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// It fails, and nothing was done.
    Before,
    /// It fails, and it was done.
    After,
    /// Its future is dropped after so many steps; nobody hears what came of it.
    Dropped(u32),
    /// It is done, and the answer never comes.
    HangsAfter,
    /// Nothing is done, and no answer comes.
    HangsBefore,
    /// It hangs, and is done when nobody waits any more.
    HangsAround(u32),
    /// It takes a while.
    Slow,
}

/// Whether the call only takes note of what happened, and so passes when the disk is full.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disk {
    Owed,
    New,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Store>, world: Arc<World>, start: u64) -> Self {
        Self {
            inner,
            world,
            start,
        }
    }

    fn draw(&self, call: &'static str, disk: Disk) -> Result<Option<Fault>, StoreError> {
        let mut state = self.world.state();
        if disk == Disk::New && state.is_full {
            drop(state);
            self.world.inject("disk full");
            return Err(StoreError::Full("no room left".into()));
        }
        let rate = state.rates.store;
        if !state.strikes(rate) {
            return Ok(None);
        }
        let kinds = state.rates.store_kinds.clone();
        let steps = state.rng.u32(1..4);
        let kind = kinds
            .get(state.rng.usize(..kinds.len()))
            .copied()
            .unwrap_or("slow");
        drop(state);
        let fault = match kind {
            "error before" => Fault::Before,
            "error after" => Fault::After,
            "drop" => Fault::Dropped(steps),
            "hang after" => Fault::HangsAfter,
            "hang before" => Fault::HangsBefore,
            "hang around" => Fault::HangsAround(steps),
            _ => Fault::Slow,
        };
        self.world.note(format_args!("  {call}"));
        self.world.inject(kind);
        Ok(Some(fault))
    }

    fn error(&self) -> StoreError {
        match self.world.state().rng.u32(0..3) {
            0 => StoreError::Busy,
            1 => StoreError::Gone(None),
            _ => StoreError::Database("a fault was injected".into()),
        }
    }

    /// Makes a call, and lets it go wrong. `lose` gets an answer that nobody is to hear.
    async fn call<T: Send>(
        &self,
        name: &'static str,
        disk: Disk,
        call: impl Future<Output = Result<T, StoreError>> + Send,
        lose: impl Fn(T) + Send + Sync,
    ) -> Result<T, StoreError> {
        let latency = self.world.state().rates.latency;
        if !latency.is_zero() {
            self.world.sleep(latency * ROUND_TRIPS).await;
        }
        let Some(fault) = self.draw(name, disk)? else {
            return call.await;
        };
        match fault {
            Fault::Before => {}
            Fault::After => {
                if let Ok(made) = call.await {
                    lose(made);
                }
            }
            Fault::Dropped(steps) => {
                if let Some(Ok(made)) = begin(call, steps).await {
                    lose(made);
                }
            }
            Fault::HangsAfter => {
                if let Ok(made) = call.await {
                    lose(made);
                }
                self.world.sleep(DEADLINE).await;
            }
            Fault::HangsBefore => self.world.sleep(DEADLINE).await,
            Fault::HangsAround(steps) => {
                self.world.sleep(DEADLINE).await;
                if let Some(Ok(made)) = begin(call, steps).await {
                    lose(made);
                }
            }
            Fault::Slow => {
                self.world.sleep(FAR).await;
                let answer = call.await;
                self.world.sleep(FAR).await;
                return answer;
            }
        }
        Err(self.error())
    }

    fn is_planted(&self, bug: Planted) -> bool {
        self.world.planted == Some(bug)
    }
}

/// Takes at most so many steps of a call, then drops it; its answer, if it came by then.
async fn begin<T>(call: impl Future<Output = T>, steps: u32) -> Option<T> {
    let mut call = pin!(call);
    let mut left = steps;
    std::future::poll_fn(|context| {
        left = left.saturating_sub(1);
        match call.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[async_trait]
impl Intake for Faulty {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        self.call("append", Disk::New, self.inner.append(append), drop)
            .await
    }

    async fn known(
        &self,
        topic: &str,
        sent_at: Timestamp,
        message_id: &str,
    ) -> Result<Option<EventId>, StoreError> {
        self.inner.known(topic, sent_at, message_id).await
    }

    async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, StoreError> {
        self.inner.put_subscription(topic, token, at).await
    }

    async fn subscription(&self, id: i64) -> Result<Option<Subscription>, StoreError> {
        self.inner.subscription(id).await
    }

    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.inner.subscription_confirmed(id, at).await
    }

    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError> {
        self.inner.put_certificate(certificate).await
    }

    async fn put_generation(
        &self,
        generation: Generation,
        replica: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.inner.put_generation(generation, replica, at).await
    }
}

#[async_trait]
impl Lanes for Faulty {
    fn clock(&self) -> &Clock {
        self.inner.clock()
    }

    fn replicas(&self) -> u32 {
        self.inner.replicas()
    }

    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError> {
        let call = async {
            let mut unheard = Unheard(Some((&self.world, sink)));
            let leased = self.inner.lease(sink, now, limit).await;
            unheard.0 = None;
            if let Ok(leased) = &leased {
                let now = self.world.clock.boot();
                self.world.state().truth.handed_out(self.start, now, leased);
                for lane in &leased.lanes {
                    let (id, epoch) = (lane.lease.lane().0, lane.lease.epoch());
                    let go: Vec<_> = lane.waiting.iter().map(|it| it.event_id.0).collect();
                    self.world
                        .note(format_args!("  {sink}: lane {id} leased ({epoch}): {go:?}"));
                }
            }
            leased
        };
        let lose = |leased: Leased| {
            let keys: Vec<_> = leased
                .lanes
                .iter()
                .map(|lane| row_of(&lane.lease))
                .collect();
            let register = leased
                .lanes
                .first()
                .map(|lane| lane.lease.hold().register());
            if self.is_planted(Planted::ForgottenLease) {
                leased
                    .lanes
                    .into_iter()
                    .for_each(|lane| std::mem::forget(lane.lease));
            } else {
                drop(leased);
            }
            let lost = register.map_or(0, |register| register.unknown(&keys).len());
            if lost != keys.len() {
                self.world.accuse(format!(
                    "a lease that was lost counts as held: {sink} {keys:?}"
                ));
            }
        };
        self.call("lease", Disk::Owed, call, lose).await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), StoreError> {
        let is_dropped =
            self.is_planted(Planted::DroppedSettlement) && self.world.state().strikes(100);
        if !is_dropped {
            let call = self.inner.settle(settlements.clone());
            self.call("settle", Disk::Owed, call, drop).await?;
        }
        let mut state = self.world.state();
        state.truth.recorded(self.start, &settlements);
        drop(state);
        for it in &settlements {
            let (id, epoch) = (it.lease().lane().0, it.lease().epoch());
            let each = it.results().iter();
            let ends: Vec<_> = each
                .map(|it| (it.event.0, it.ending.outcome().word()))
                .collect();
            self.world
                .note(format_args!("  lane {id} settled ({epoch}): {ends:?}"));
        }
        Ok(())
    }

    async fn divert(&self, sink: &str, to: &str, now: Timestamp) -> Result<u64, StoreError> {
        let call = self.inner.divert(sink, to, now);
        self.call("divert", Disk::New, call, drop).await
    }

    async fn back_off(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let call = self.inner.back_off(sink, until, now);
        self.call("back_off", Disk::Owed, call, drop).await
    }
}

/// A lease as its row names it.
fn row_of(lease: &Lease) -> (LaneId, i64, i64) {
    (lease.lane(), lease.epoch(), lease.hold().key().0)
}

/// Notes a take that nobody hears of.
struct Unheard<'w>(Option<(&'w World, &'w str)>);

impl Drop for Unheard<'_> {
    fn drop(&mut self) {
        if let Some((world, sink)) = self.0 {
            let now = world.clock.boot();
            world.state().truth.unheard(sink, now);
        }
    }
}

#[async_trait]
impl Care for Faulty {
    async fn beat(&self) -> Result<(), StoreError> {
        self.call("beat", Disk::Owed, self.inner.beat(), drop).await
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        self.call("sweep", Disk::Owed, self.inner.sweep(), drop)
            .await
    }

    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError> {
        let call = self.inner.prune(now, keep);
        self.call("prune", Disk::New, call, drop).await
    }

    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let call = self.inner.retry_dead(selection, to, now);
        self.call("retry_dead", Disk::New, call, drop).await
    }

    async fn bury(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError> {
        self.call("bury", Disk::New, self.inner.bury(sink, now), drop)
            .await
    }

    async fn drop_dead(&self, selection: DeadSelection, now: Timestamp) -> Result<u64, StoreError> {
        let call = self.inner.drop_dead(selection, now);
        self.call("drop_dead", Disk::New, call, drop).await
    }
}

/// Looks are for the oracle, and never fail.
#[async_trait]
impl History for Faulty {
    async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.events(query).await
    }

    async fn event(&self, id: EventId) -> Result<Option<(StoredEvent, Vec<Delivery>)>, StoreError> {
        self.inner.event(id).await
    }

    async fn dead(
        &self,
        selection: DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.inner.dead(selection, limit).await
    }

    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError> {
        self.inner.subscriptions().await
    }

    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError> {
        self.inner.certificates().await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        self.inner.backlog().await
    }

    async fn route_backlog(&self) -> Result<Vec<RouteBacklog>, StoreError> {
        self.inner.route_backlog().await
    }

    async fn tally(&self) -> Result<Vec<Tally>, StoreError> {
        self.inner.tally().await
    }
}
