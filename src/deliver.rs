//! The deliver street: a reconciler between the store and one sink.
//!
//! A [`Worker`] has no input but the store and the clock, is woken by a hint and by time, and does
//! the same after a crash, beside a second replica, and every day: lease what may go, decide, render,
//! send, settle. `app` runs one for each sink, so that a bad sink never slows another. Everything
//! may happen twice; nothing is struck off before the sink said that it has it.

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
use crate::render::{Notice, Template};
use crate::retry::{self, Verdict};
use crate::route::Routes;
use crate::sink::{Fallback, Sink};
use crate::store::{Lane, Leased, Settled, Settlement, Store, StoreError};
use crate::wake::Wake;

mod load;

use load::{Going, Load};

/// How long a worker rests when the store does not answer.
const STORE_TROUBLE: Duration = Duration::from_secs(1);
/// How long a worker goes without looking at the store, whatever it was told.
const LONGEST_SLEEP: Duration = Duration::from_secs(2);
/// How far apart looks at the store are, unless more waits than a look may bring: what comes in
/// between shares one commit and one send. The first of a burst does not wait.
const SHORTEST_TURN: Duration = Duration::from_millis(10);

/// Delivers to one sink.
pub struct Worker {
    name: Arc<str>,
    sink: Arc<dyn Sink>,
    store: Arc<dyn Store>,
    routes: Arc<ArcSwap<Routes>>,
    wake: Wake,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// What was done and is not written yet.
    unsettled: Mutex<Vec<Settlement>>,
    /// The sink as a whole failed at the last attempt.
    in_trouble: AtomicBool,
    /// Who brings what this sink cannot, and what wakes its worker.
    fallback: Option<(Fallback, Wake)>,
    /// The sink's own words.
    template: Option<Arc<Template>>,
}

/// What a worker needs from its surroundings.
#[derive(Clone)]
pub struct Surroundings {
    /// Where the deliveries wait.
    pub store: Arc<dyn Store>,
    /// The routes in force.
    pub routes: Arc<ArcSwap<Routes>>,
    /// What time it is.
    pub clock: Clock,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// What a look at the store led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// How many lanes were carried.
    pub lanes: usize,
    /// When to look again, as far as is known.
    pub next_due: Option<Timestamp>,
}

impl Worker {
    /// A worker that brings to `sink` what is owed to the sink called `name`.
    #[must_use]
    pub fn new(name: &str, sink: Arc<dyn Sink>, wake: Wake, around: Surroundings) -> Self {
        Self {
            name: name.into(),
            sink,
            store: around.store,
            routes: around.routes,
            wake,
            clock: around.clock,
            metrics: around.metrics,
            unsettled: Mutex::default(),
            in_trouble: AtomicBool::default(),
            fallback: None,
            template: None,
        }
    }

    /// The same, with words for notices whose route has none of its own.
    #[must_use]
    pub fn in_the_words_of(self, template: Option<Arc<Template>>) -> Self {
        Self { template, ..self }
    }

    /// The same, with another sink that brings what this one cannot; `wake` wakes its worker.
    #[must_use]
    pub fn falling_back_to(self, fallback: Fallback, wake: Wake) -> Self {
        Self {
            fallback: Some((fallback, wake)),
            ..self
        }
    }

    /// Delivers until `stop`, then finishes what is under way and writes it down.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut under_way = FuturesUnordered::new();
        let mut done = Vec::new();
        let (mut look_at, mut not_before) = (Timestamp::MIN, Timestamp::MIN);
        loop {
            let free_at = self.sink.free_at();
            let now = self.clock.now();
            // A clock that was set back must not make anybody wait for it to come round again.
            not_before = not_before.min(later(now, STORE_TROUBLE));
            let limit = self.room(under_way.len());
            let may_lease = limit > 0 && !stop.is_cancelled();
            if may_lease && look_at.max(not_before).max(free_at) <= now {
                let asked_at = now;
                match self.turn(std::mem::take(&mut done), limit).await {
                    Ok(leased) => {
                        let now = self.clock.now();
                        let many = leased.deliveries();
                        (look_at, not_before) = if many > 0 {
                            (Timestamp::MIN, Timestamp::MIN)
                        } else {
                            let longest = later(now, LONGEST_SLEEP);
                            let next = leased.next_due.map_or(longest, |due| due.min(longest));
                            (next, later(now, SHORTEST_TURN))
                        };
                        if (1..limit).contains(&many) {
                            not_before = later(now, SHORTEST_TURN);
                        }
                        let loads = self.loads(leased.lanes);
                        let carried = loads.into_iter().map(|load| self.carry(load, asked_at));
                        under_way.extend(carried);
                    }
                    Err(error) => {
                        self.complain("cannot lease", &error);
                        not_before = later(self.clock.now(), STORE_TROUBLE);
                    }
                }
                continue;
            }
            tokio::select! {
                biased;
                Some(settlements) = under_way.next() => {
                    done.extend(settlements);
                    look_at = Timestamp::MIN;
                }
                () = stop.cancelled(), if under_way.is_empty() => break,
                () = async {
                    self.wake.wait(&self.clock, Some(look_at)).await;
                    self.clock.sleep_until(not_before.max(free_at)).await;
                }, if may_lease => look_at = Timestamp::MIN,
            }
        }
        self.keep(done).await;
        while let Err(error) = self.write_off().await {
            self.complain("cannot record what was sent; it is tried again", &error);
            let again = later(self.clock.now(), STORE_TROUBLE);
            self.clock.sleep_until(again).await;
        }
    }

    /// How many deliveries may be leased beside so many loads under way. A sink in trouble is probed
    /// with the oldest delivery alone.
    fn room(&self, under_way: usize) -> usize {
        let capacity = self.sink.capacity();
        if self.in_trouble.load(Ordering::Relaxed) {
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
        let asked_at = self.clock.now();
        let leased = self.turn(Vec::new(), self.room(0)).await?;
        let lanes = leased.lanes.len();
        let mut done = Vec::new();
        for load in self.loads(leased.lanes) {
            done.extend(self.carry(load, asked_at).await);
        }
        self.keep(done).await;
        self.write_off().await?;
        Ok(Looked {
            lanes,
            next_due: leased.next_due,
        })
    }

    /// Writes down what was done and leases up to `limit` deliveries. The store is asked for both at
    /// once, so that they may share one commit, unless something could not be written before: then
    /// nothing more is leased until it is.
    async fn turn(&self, done: Vec<Settlement>, limit: usize) -> Result<Leased, StoreError> {
        if self.keep(done).await {
            self.write_off().await?;
        }
        // Before the store is asked: what is appended from here on rings again.
        self.wake.clear();
        let (settled, leased) = {
            let mut unsettled = self.unsettled.lock().await;
            if !unsettled.is_empty() {
                tracing::trace!(target: "runbell::point", "settling");
            }
            let (store, now) = (&self.store, self.clock.now());
            let (settled, leased) = store
                .settle_and_lease(unsettled.clone(), &self.name, now, limit)
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
        if let Ok(Leased {
            in_trouble_since, ..
        }) = &leased
        {
            self.in_trouble
                .store(in_trouble_since.is_some(), Ordering::Relaxed);
            self.hand_over(*in_trouble_since).await?;
        }
        leased
    }

    /// Hands what waits to the fallback, if the sink has been in trouble for long.
    async fn hand_over(&self, in_trouble_since: Option<Timestamp>) -> Result<(), StoreError> {
        let now = self.clock.now();
        let (Some((fallback, wake)), Some(since_when)) = (&self.fallback, in_trouble_since) else {
            return Ok(());
        };
        if since(since_when, now) < fallback.after {
            return Ok(());
        }
        let count = self.store.divert(&self.name, &fallback.to, now).await?;
        if count > 0 {
            tracing::warn!(
                sink = &*self.name,
                to = fallback.to,
                count,
                "a sink in trouble handed over what waits"
            );
            self.metrics
                .delivered(&self.name, Outcome::Diverted.word(), count);
            wake.at(now);
        }
        Ok(())
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
        self.store.settle(unsettled.clone()).await?;
        self.count(unsettled.drain(..));
        Ok(())
    }

    /// Counts what was written down.
    fn count(&self, settled: impl Iterator<Item = Settlement>) {
        for settled in settled.flat_map(|lane| lane.results) {
            self.metrics
                .delivered(&self.name, settled.outcome.word(), 1);
        }
    }

    /// Sends what may go of some lanes; a lane whose head fails is left where it stands, and so is
    /// everything when the lanes, asked for at `asked_at`, may be somebody else's by now.
    async fn carry(&self, lanes: Vec<Lane>, asked_at: Timestamp) -> Vec<Settlement> {
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
            let sent_at = self.clock.now();
            if !self.store.holds(asked_at, sent_at) {
                tracing::warn!(
                    sink = &*self.name,
                    "what was leased is left to the other replicas"
                );
                break;
            }
            let mut verdicts = self.sink.send(&notices).await;
            tracing::trace!(target: "runbell::point", "sent");
            verdicts.resize_with(notices.len(), no_verdict);
            let now = self.clock.now();
            let mut rests_until = None;
            for ((going, notice), verdict) in batch.iter().zip(&notices).zip(&verdicts) {
                // After a failure the rest of its lane was not sent, unless nobody knows.
                if load.is_blocked(going) && !verdict.may_have_arrived() {
                    continue;
                }
                // One is enough to learn it from; the others were not tried for themselves.
                if rests_until.is_some() && verdict.is_of_the_sink() {
                    continue;
                }
                let (mut settled, rests) = self.judge(going, notice, verdict, now);
                settled.took = Some(since(sent_at, now));
                rests_until = rests_until.max(rests);
                load.record(going, settled);
            }
            let was_in_trouble = self
                .in_trouble
                .swap(rests_until.is_some(), Ordering::Relaxed);
            if (rests_until.is_some() || was_in_trouble)
                && let Err(error) = self.store.rest(&self.name, rests_until, now).await
            {
                self.complain("cannot let the sink rest", &error);
            }
            if rests_until.is_some() {
                break;
            }
        }
        load.settlements
    }

    /// A notice in the words of its route's template, or the sink's.
    fn in_words(&self, notice: Notice, routes: &Routes) -> Notice {
        if !self.sink.speaks_to_people() {
            return notice;
        }
        let route = routes.route(&notice.route);
        let of_route = route.and_then(|route| route.template.as_deref());
        let notice = notice.in_words_of(of_route.or(self.template.as_deref()));
        if let Some(Err(error)) = &notice.texts {
            let route = &notice.route;
            tracing::warn!(sink = &*self.name, route, %error, "a template failed");
            self.metrics.template_failed(&self.name);
        }
        notice
    }

    /// Turns a verdict into what is recorded, and says until when the sink rests.
    fn judge(
        &self,
        going: &Going,
        notice: &Notice,
        verdict: &Verdict,
        now: Timestamp,
    ) -> (Settled, Option<Timestamp>) {
        self.metrics.attempted(&self.name, verdict.word());
        let jitter = fastrand::f64();
        let mut next = retry::next(verdict, going.history, &going.patience, now, jitter);
        if going.alone && next.outcome == Outcome::Retry && next.sink_rests_until.is_none() {
            // It had no turn to lose, and takes none from others.
            next.outcome = Outcome::Parked;
        }
        let divert_to = self
            .fallback
            .as_ref()
            .filter(|_| next.outcome == Outcome::Dead)
            .map(|(fallback, _)| fallback.to.clone());
        if divert_to.is_some() {
            next.outcome = Outcome::Diverted;
        }
        let mut marks = notice.marks.clone();
        let mut thread = None;
        let (answer, progress) = match verdict {
            Verdict::Sent { remote_id } => {
                self.metrics
                    .reached(&self.name, since(notice.received_at, now));
                if let Some(by) = marks.late {
                    self.metrics.late_by(by);
                }
                if self.sink.keeps_threads() {
                    thread.clone_from(remote_id);
                }
                (remote_id.clone(), None)
            }
            Verdict::Retry { why, progress, .. } => (Some(why.clone()), progress.clone()),
            Verdict::Refused { why, .. } | Verdict::Broken { why } => (Some(why.clone()), None),
            Verdict::Unknown { why } => {
                marks.possible_repeat = true;
                (Some(why.clone()), None)
            }
        };
        if !matches!(verdict, Verdict::Sent { .. }) {
            tracing::warn!(
                sink = &*self.name,
                route = notice.route,
                event = going.event.0,
                outcome = next.outcome.word(),
                again_at = next.again_at.map(tracing::field::display),
                why = answer,
                "a delivery failed"
            );
        }
        let settled = Settled {
            event: going.event,
            key: going.key.clone(),
            outcome: next.outcome,
            at: now,
            marks,
            answer,
            took: None,
            again_at: next.again_at,
            failing_since: next.history.failing_since,
            progress,
            thread,
            divert_to,
        };
        (settled, next.sink_rests_until)
    }

    fn complain(&self, what: &str, error: &StoreError) {
        let error = causes(error);
        tracing::warn!(sink = &*self.name, error, "{what}");
    }
}

fn no_verdict() -> Verdict {
    Verdict::Retry {
        why: "the sink gave no verdict".to_owned(),
        after: None,
        scope: retry::Scope::Notice,
        progress: None,
    }
}
