//! The deliver path: a reconciler between the store and one sink.
//!
//! A [`Worker`] has no input but the store and the clock, is woken by a hint and by time, and does
//! the same after a crash, beside a second replica, and every day: lease lanes that may go, decide,
//! render, send, settle. `app` runs one for each sink, so that a bad sink never slows another.
//! Everything may happen twice; nothing is settled as sent before the sink said that it has it.
//!
//! Two clocks are at work: the store's logical time decides when anything goes, and wall time is
//! written down for people.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, later, since};
use crate::delivery::Outcome;
use crate::fault::causes;
use crate::metrics::Metrics;
use crate::render::Template;
use crate::route::Routes;
use crate::sink::{Fallback, Permit, Sink};
use crate::store::{Lane, Lanes, Leased, Settlement, StoreError};
use crate::wake::Wake;

mod judge;
mod load;

use load::Load;

/// How long a worker waits when the store does not answer.
const STORE_TROUBLE: Duration = Duration::from_secs(1);
/// How long a worker goes without looking at the store, whatever it was told.
const LONGEST_SLEEP: Duration = Duration::from_secs(2);
/// How far apart looks at the store are, unless more waits than a look may bring: events that come
/// in between share one commit and one send. The first of a burst does not wait.
const SHORTEST_TURN: Duration = Duration::from_millis(10);

/// Delivers to one sink.
pub struct Worker {
    name: Arc<str>,
    sink: Arc<dyn Sink>,
    lanes: Arc<dyn Lanes>,
    routes: Arc<ArcSwap<Routes>>,
    wake: Wake,
    /// Wall time, for people.
    clock: Clock,
    /// Logical time, for everything that waits.
    time: Clock,
    metrics: Arc<Metrics>,
    /// Settlements that are not known to be written.
    unsettled: Mutex<Vec<Settlement>>,
    /// The sink as a whole failed at the last attempt.
    is_failing: AtomicBool,
    /// The sink that brings notices in place of this one, and the hint to its worker.
    fallback: Option<(Fallback, Wake)>,
    /// The sink's own words.
    template: Option<Arc<Template>>,
}

/// The parts of its surroundings that a worker needs.
#[derive(Clone)]
pub struct Surroundings {
    /// Where the deliveries wait.
    pub lanes: Arc<dyn Lanes>,
    /// The routes in force.
    pub routes: Arc<ArcSwap<Routes>>,
    /// What time it is for people.
    pub clock: Clock,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// The outcome of a look at the store.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// How many lanes were carried.
    pub lanes: usize,
    /// When to look again, in logical time, as far as is known.
    pub next_due: Option<Timestamp>,
}

impl Worker {
    /// A worker that brings to `sink` the deliveries owed to the sink called `name`.
    #[must_use]
    pub fn new(name: &str, sink: Arc<dyn Sink>, wake: Wake, around: Surroundings) -> Self {
        Self {
            name: name.into(),
            sink,
            time: around.lanes.clock().clone(),
            lanes: around.lanes,
            routes: around.routes,
            wake,
            clock: around.clock,
            metrics: around.metrics,
            unsettled: Mutex::default(),
            is_failing: AtomicBool::default(),
            fallback: None,
            template: None,
        }
    }

    /// The same, with words for notices whose route has none of its own.
    #[must_use]
    pub fn with_template(self, template: Option<Arc<Template>>) -> Self {
        Self { template, ..self }
    }

    /// The same, with another sink that brings notices in place of this one; `wake` wakes its worker.
    #[must_use]
    pub fn with_fallback(self, fallback: Fallback, wake: Wake) -> Self {
        Self {
            fallback: Some((fallback, wake)),
            ..self
        }
    }

    /// Delivers until `stop`, then finishes the calls under way and writes down what they did.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut under_way = FuturesUnordered::new();
        // At most one: the store is asked beside the calls under way. If they waited for a database
        // that hangs, they would find their own time over, and what arrived would be sent again.
        let mut turning = FuturesUnordered::new();
        // At most one: it goes on where it was broken off, so it may be dropped at any time.
        let mut handing_over = FuturesUnordered::new();
        let mut done = Vec::new();
        // In logical time, which never goes back, so that neither can lie beyond the longest wait.
        let (mut look_at, mut not_before) = (Timestamp::MIN, Timestamp::MIN);
        loop {
            let now = self.time.now();
            let free_at = later(now, self.sink.free_in());
            let limit = self.room(under_way.len());
            let can_lease = limit > 0 && !stop.is_cancelled();
            let is_owed = !done.is_empty();
            if turning.is_empty() && not_before <= now {
                let limit = if can_lease && free_at <= now {
                    limit
                } else {
                    0
                };
                // Results share a commit with the next lease, and wait for none that may not follow.
                if is_owed || (limit > 0 && look_at <= now) {
                    let done = std::mem::take(&mut done);
                    turning.push(async move { (limit, self.turn(done, limit).await) });
                }
            }
            tokio::select! {
                // Results first: the next turn writes them down, and makes room.
                biased;
                Some(settlements) = under_way.next() => {
                    done.extend(settlements);
                    look_at = Timestamp::MIN;
                }
                Some((limit, turned)) = turning.next() => match turned {
                    Ok(_) if limit == 0 => {}
                    Ok(mut leased) => {
                        let (now, many) = (self.time.now(), leased.deliveries());
                        not_before = if many < limit { later(now, SHORTEST_TURN) } else { now };
                        look_at = if many > 0 || !done.is_empty() {
                            Timestamp::MIN
                        } else {
                            let longest = later(now, LONGEST_SLEEP);
                            leased.next_due.map_or(longest, |due| due.min(longest))
                        };
                        if handing_over.is_empty() && self.is_to_hand_over(leased.failing_since) {
                            handing_over.push(self.hand_over());
                        }
                        // Something may have failed meanwhile, or all come to its end: what is dropped
                        // here is given back.
                        let is_over = stop.is_cancelled();
                        let room = if is_over { 0 } else { self.room(under_way.len()) };
                        leased.lanes.truncate(room);
                        let loads = self.loads(leased.lanes);
                        under_way.extend(loads.into_iter().map(|load| self.carry(load)));
                    }
                    Err(error) => {
                        self.complain("cannot lease", &error);
                        not_before = later(self.time.now(), STORE_TROUBLE);
                    }
                },
                Some(()) = handing_over.next() => {}
                // Nothing is given up that may still be told; nothing new is begun.
                () = stop.cancelled(), if under_way.is_empty() && turning.is_empty() => break,
                // A hint, a due time, or the next look, but never before the sink can take more.
                () = async {
                    if !is_owed {
                        self.wake.wait(&self.time, Some(look_at)).await;
                        self.time.sleep_until(free_at).await;
                    }
                    self.time.sleep_until(not_before).await;
                }, if turning.is_empty() && (is_owed || can_lease) => look_at = Timestamp::MIN,
            }
        }
        self.keep(done).await;
        while let Err(error) = self.write_off().await {
            self.complain("cannot record what was sent; it is tried again", &error);
            self.time.sleep(STORE_TROUBLE).await;
        }
    }

    /// How many deliveries may be leased beside so many loads under way. A failing sink is probed
    /// with the oldest delivery alone.
    fn room(&self, under_way: usize) -> usize {
        let capacity = self.sink.capacity();
        if self.is_failing.load(Ordering::Relaxed) {
            usize::from(under_way == 0)
        } else {
            let free = capacity.at_once.saturating_sub(under_way);
            free.saturating_mul(capacity.per_send)
        }
    }

    /// Looks at the store once, and carries what may go to its end.
    ///
    /// # Errors
    /// When the store cannot lease, or cannot be told what was done.
    pub async fn step(&self) -> Result<Looked, StoreError> {
        let leased = self.turn(Vec::new(), self.room(0)).await?;
        let (lanes, failing_since) = (leased.lanes.len(), leased.failing_since);
        let mut done = Vec::new();
        for load in self.loads(leased.lanes) {
            done.extend(self.carry(load).await);
        }
        self.keep(done).await;
        self.write_off().await?;
        if self.is_to_hand_over(failing_since) {
            self.hand_over().await;
        }
        Ok(Looked {
            lanes,
            next_due: leased.next_due,
        })
    }

    /// Writes down what was done and leases up to `limit` deliveries. The store is asked for both at
    /// once, so that they may share one commit, unless something could not be written before: then
    /// nothing more is leased until it is. Without a limit nothing is leased.
    async fn turn(&self, done: Vec<Settlement>, limit: usize) -> Result<Leased, StoreError> {
        if self.keep(done).await || limit == 0 {
            self.write_off().await?;
        }
        if limit == 0 {
            return Ok(Leased::default());
        }
        // Before the store is asked: an append from here on rings again.
        self.wake.clear();
        let was_failing = self.is_failing.load(Ordering::Relaxed);
        let (settled, leased) = {
            let mut unsettled = self.unsettled.lock().await;
            if !unsettled.is_empty() {
                tracing::trace!(target: "runbell::point", "settling");
            }
            let (settled, leased) = self
                .lanes
                .settle_and_lease(unsettled.clone(), &self.name, self.time.now(), limit)
                .await;
            if settled.is_ok() {
                self.count(unsettled.drain(..));
            }
            (settled, leased)
        };
        if let Err(error) = settled {
            self.complain(
                "cannot record what was sent; it is kept and tried again",
                &error,
            );
        }
        if let Ok(leased) = &leased {
            // Whatever a call has found out since then is newer.
            let is_failing = leased.failing_since.is_some();
            let _ = self.is_failing.compare_exchange(
                was_failing,
                is_failing,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        leased
    }

    /// Whether the sink has failed for so long that its fallback takes over.
    fn is_to_hand_over(&self, failing_since: Option<Timestamp>) -> bool {
        let (Some((fallback, _)), Some(begin)) = (&self.fallback, failing_since) else {
            return false;
        };
        since(begin, self.time.now()) >= fallback.after
    }

    /// Hands what waits to the fallback. An error costs nothing: what was handed over is committed,
    /// and the next turn goes on from there.
    async fn hand_over(&self) {
        let Some((fallback, wake)) = &self.fallback else {
            return;
        };
        let now = self.time.now();
        match self.lanes.divert(&self.name, &fallback.to, now).await {
            Ok(0) => {}
            Ok(count) => {
                tracing::warn!(
                    sink = &*self.name,
                    to = fallback.to,
                    count,
                    "a failing sink handed over what waits"
                );
                self.metrics
                    .delivered(&self.name, Outcome::Diverted.word(), count);
                wake.at(now);
            }
            Err(error) => {
                self.complain(
                    "cannot hand over to the fallback; it is tried again",
                    &error,
                );
                // Some of it may have been handed over before the error.
                wake.at(now);
            }
        }
    }

    /// Keeps what was done until it is written down; whether something was kept before.
    async fn keep(&self, done: Vec<Settlement>) -> bool {
        let mut unsettled = self.unsettled.lock().await;
        let was_kept = !unsettled.is_empty();
        unsettled.extend(done);
        was_kept
    }

    /// Splits what was leased into loads that may be carried side by side.
    fn loads(&self, lanes: Vec<Lane>) -> Vec<Vec<Lane>> {
        if self.sink.capacity().at_once > 1 {
            lanes.into_iter().map(|lane| vec![lane]).collect()
        } else if lanes.is_empty() {
            Vec::new()
        } else {
            vec![lanes]
        }
    }

    async fn write_off(&self) -> Result<(), StoreError> {
        let mut unsettled = self.unsettled.lock().await;
        if unsettled.is_empty() {
            return Ok(());
        }
        tracing::trace!(target: "runbell::point", "settling");
        self.lanes.settle(unsettled.clone()).await?;
        self.count(unsettled.drain(..));
        Ok(())
    }

    /// Counts what was written down.
    fn count(&self, settled: impl Iterator<Item = Settlement>) {
        for settlement in settled {
            for settled in settlement.results() {
                let outcome = settled.ending.outcome();
                self.metrics.delivered(&self.name, outcome.word(), 1);
            }
        }
    }

    /// Sends what may go of some lanes. A lane whose head fails is left where it stands. A lane that
    /// may be somebody else's by now is dropped: what was sent of it is recorded, and the rest given
    /// back.
    async fn carry(&self, lanes: Vec<Lane>) -> Vec<Settlement> {
        let patience = self.sink.patience();
        let routes = self.routes.load_full();
        let mut load = Load::decide(lanes, &routes, patience, self.clock.now());
        let per_send = self.sink.capacity().per_send;
        loop {
            let (batch, notices) = load.next(per_send);
            if notices.is_empty() {
                break;
            }
            let each = notices.into_iter();
            let notices: Vec<_> = each.map(|notice| self.in_words(notice, &routes)).collect();
            // The sink asks when all its own waiting is over; other sinks may have taken turns of a
            // pace that it shares.
            load.works_for(&batch, self.sink.free_in());
            let permit = Permit::new(load.permission(&batch));
            let sent_at = self.time.boot();
            let mut verdicts = self.sink.send(&notices, &permit).await;
            let took = self.time.boot().saturating_sub(sent_at);
            tracing::trace!(target: "runbell::point", "sent");
            verdicts.resize_with(notices.len(), judge::no_verdict);
            let mut backoff_until = None;
            for ((going, notice), verdict) in batch.iter().zip(&notices).zip(&verdicts) {
                // Of a lane that is no longer ours only an arrival is worth writing down.
                if permit.is_refused() && !verdict.is_sent() {
                    load.lose(going);
                    continue;
                }
                // A sink stops at the first failure in a lane; a later verdict counts only if the
                // notice may have arrived.
                if load.is_blocked(going) && !verdict.may_have_arrived() {
                    continue;
                }
                // One failure of the whole sink is enough to learn it from; the others of the batch
                // were not tried for themselves.
                if backoff_until.is_some() && verdict.is_of_the_sink() {
                    continue;
                }
                let mut it = self.judge(going, notice, verdict);
                it.settled.took = Some(took);
                backoff_until = backoff_until.max(it.backoff_until);
                load.record(going, it.settled, it.again_at);
            }
            if permit.is_refused() {
                tracing::warn!(
                    sink = &*self.name,
                    "a lease ended before its deliveries could be sent; they go again"
                );
                load.lose_the_rest();
                break;
            }
            self.back_off(backoff_until).await;
            if backoff_until.is_some() {
                break;
            }
        }
        load.settle(self.time.now())
    }

    /// Notes the sink's backoff, or its end, where something changed.
    async fn back_off(&self, until: Option<Timestamp>) {
        let was_failing = self.is_failing.swap(until.is_some(), Ordering::Relaxed);
        if until.is_none() && !was_failing {
            return;
        }
        let now = self.time.now();
        if let Err(error) = self.lanes.back_off(&self.name, until, now).await {
            self.complain("cannot let the sink back off", &error);
        }
    }

    fn complain(&self, what: &str, error: &StoreError) {
        let error = causes(error);
        tracing::warn!(sink = &*self.name, error, "{what}");
    }
}
