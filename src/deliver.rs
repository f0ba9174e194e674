//! The deliver street: a reconciler between the store and one sink.
//!
//! A [`Worker`] has no input but the store and the clock, is woken by a hint and by time, and does
//! the same after a crash, beside a second replica, and every day: lease what may go, decide, render,
//! send, settle. `app` runs one for each sink, so that a bad sink never slows another. Everything
//! may happen twice; nothing is struck off before the sink said that it has it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, later, since};
use crate::delivery::Outcome;
use crate::event::Status;
use crate::metrics::Metrics;
use crate::order::{self, Candidate, Decision};
use crate::render::{self, Notice};
use crate::retry::{self, History, Patience, Verdict};
use crate::route::Routes;
use crate::sink::Sink;
use crate::store::{Lane, Leased, Settled, Settlement, Store, StoreError, Waiting};
use crate::wake::Wake;

/// How long a worker rests when the store does not answer.
const STORE_TROUBLE: Duration = Duration::from_secs(1);
/// How long a worker goes without looking at the store, whatever it was told.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
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
    /// What was done and could not be written yet; nothing more is leased before it is.
    unsettled: Mutex<Vec<Settlement>>,
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
        }
    }

    /// Delivers until `stop`, then finishes what is under way.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut under_way = FuturesUnordered::new();
        let mut done = Vec::new();
        let capacity = self.sink.capacity();
        let (mut look_at, mut not_before) = (Timestamp::MIN, Timestamp::MIN);
        loop {
            let free = capacity.at_once.saturating_sub(under_way.len());
            let may_lease = free > 0 && !stop.is_cancelled();
            if may_lease && look_at.max(not_before) <= self.clock.now() {
                let limit = free.saturating_mul(capacity.per_send);
                match self.turn(std::mem::take(&mut done), limit).await {
                    Ok(leased) => {
                        let now = self.clock.now();
                        let many = leased.deliveries();
                        look_at = if many > 0 {
                            Timestamp::MIN
                        } else {
                            let longest = later(now, LONGEST_SLEEP);
                            leased.next_due.map_or(longest, |due| due.min(longest))
                        };
                        not_before = if many < limit {
                            later(now, SHORTEST_TURN)
                        } else {
                            Timestamp::MIN
                        };
                        let loads = self.loads(leased.lanes);
                        under_way.extend(loads.into_iter().map(|load| self.carry(load)));
                    }
                    Err(error) => {
                        self.complain("cannot lease", &error);
                        look_at = later(self.clock.now(), STORE_TROUBLE);
                    }
                }
                continue;
            }
            if stop.is_cancelled() && !done.is_empty() {
                self.settle(std::mem::take(&mut done)).await;
            }
            tokio::select! {
                biased;
                Some(settlements) = under_way.next() => {
                    done.extend(settlements);
                    look_at = Timestamp::MIN;
                }
                () = stop.cancelled(), if under_way.is_empty() && done.is_empty() => return,
                () = stop.cancelled(), if !done.is_empty() => {}
                () = async {
                    self.wake.wait(&self.clock, Some(look_at)).await;
                    self.clock.sleep_until(not_before).await;
                }, if may_lease => look_at = Timestamp::MIN,
            }
        }
    }

    /// Looks at the store once, and carries what may go to its end.
    ///
    /// # Errors
    /// When the store cannot lease, or cannot be told what was done.
    pub async fn step(&self) -> Result<Looked, StoreError> {
        let capacity = self.sink.capacity();
        let wanted = capacity.at_once.saturating_mul(capacity.per_send);
        let leased = self.turn(Vec::new(), wanted).await?;
        let lanes = leased.lanes.len();
        let mut done = Vec::new();
        for load in self.loads(leased.lanes) {
            done.extend(self.carry(load).await);
        }
        self.unsettled.lock().await.extend(done);
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
        let lease = self.store.lease(&self.name, self.clock.now(), limit);
        let (settled, leased) = tokio::join!(biased; self.write_off(), lease);
        if let Err(error) = settled {
            self.complain(
                "cannot record what was sent; it is kept and tried again",
                &error,
            );
        }
        leased
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

    /// Writes down what was done, or keeps it to be written later.
    async fn settle(&self, settlements: Vec<Settlement>) {
        self.unsettled.lock().await.extend(settlements);
        if let Err(error) = self.write_off().await {
            self.complain(
                "cannot record what was sent; it is kept and tried again",
                &error,
            );
        }
    }

    async fn write_off(&self) -> Result<(), StoreError> {
        let mut unsettled = self.unsettled.lock().await;
        if unsettled.is_empty() {
            return Ok(());
        }
        tracing::trace!(target: "runbell::point", "settling");
        self.store.settle(unsettled.clone()).await?;
        for settled in unsettled.drain(..).flat_map(|lane| lane.results) {
            self.metrics.delivered(&self.name, settled.outcome.word());
        }
        Ok(())
    }

    /// Sends what may go of some lanes; a lane whose head fails is left where it stands.
    async fn carry(&self, lanes: Vec<Lane>) -> Vec<Settlement> {
        let mut load = self.decide(lanes);
        let per_send = self.sink.capacity().per_send;
        let mut blocked = HashSet::new();
        while !load.going.is_empty() {
            let mut batch = Vec::with_capacity(per_send.min(load.going.len()));
            while batch.len() < per_send
                && let Some(going) = load.going.pop_front()
            {
                if !blocked.contains(&going.lane) {
                    batch.push(going);
                }
            }
            let notices: Vec<Notice> = batch.iter().map(|going| going.notice.clone()).collect();
            if notices.is_empty() {
                break;
            }
            let verdicts = self.sink.send(&notices).await;
            tracing::trace!(target: "runbell::point", "sent");
            let now = self.clock.now();
            let mut rest_until = None;
            for (at, going) in batch.into_iter().enumerate() {
                if blocked.contains(&going.lane) {
                    continue;
                }
                let verdict = verdicts.get(at).cloned().unwrap_or_else(|| Verdict::Retry {
                    why: "the sink gave no verdict".to_owned(),
                    after: None,
                    scope: retry::Scope::Notice,
                    progress: None,
                });
                let (settled, next) = self.judge(&going, &verdict, now);
                if settled.outcome == Outcome::Retry {
                    blocked.insert(going.lane);
                }
                rest_until = rest_until.max(next.sink_rests_until);
                if let Some(settlement) = load.settlements.get_mut(going.lane) {
                    if settled.outcome == Outcome::Retry {
                        settlement.not_before = next.again_at;
                    }
                    settlement.results.push(settled);
                }
            }
            if rest_until.is_some() {
                if let Err(error) = self.store.rest(&self.name, rest_until).await {
                    self.complain("cannot let the sink rest", &error);
                }
                break;
            }
        }
        load.settlements
    }

    /// Decides about everything that was leased, and renders what goes.
    fn decide(&self, lanes: Vec<Lane>) -> Load {
        let routes = self.routes.load();
        let now = self.clock.now();
        let mut load = Load::default();
        for (at, lane) in lanes.into_iter().enumerate() {
            let route = routes.route(&lane.route);
            let mut patience = self.sink.patience();
            if let Some(block_for) = route.and_then(|route| route.block_for) {
                patience.block_for = Some(block_for);
            }
            // Of a route that is gone nobody knows: better told twice than not at all.
            let send_redundant = route.is_none_or(|route| route.send_redundant);
            let mut results = Vec::new();
            for waiting in lane.waiting {
                let candidate = candidate(&waiting);
                // What may have gone already went in the order of that time.
                let high = if waiting.possible_repeat {
                    waiting.high_then.as_ref()
                } else {
                    lane.high.as_ref()
                };
                match order::decide(&candidate, high, send_redundant) {
                    Decision::Redundant(marks) => results.push(Settled {
                        event: waiting.event_id,
                        key: waiting.key,
                        outcome: Outcome::Redundant,
                        at: now,
                        marks,
                        answer: None,
                        again_at: None,
                        failing_since: None,
                        progress: None,
                    }),
                    Decision::Go(marks) => load.going.push_back(Going {
                        lane: at,
                        event: waiting.event_id,
                        key: waiting.key,
                        history: History {
                            tries: waiting.tries,
                            failing_since: waiting.failing_since,
                        },
                        patience,
                        notice: render::notice(
                            &lane.route,
                            &lane.sink,
                            waiting.event,
                            waiting.received_at,
                            marks,
                        ),
                    }),
                }
            }
            load.settlements.push(Settlement {
                lane: lane.id,
                epoch: lane.epoch,
                results,
                not_before: None,
            });
        }
        load
    }

    /// Turns a verdict into what is recorded, and says what happens next.
    fn judge(&self, going: &Going, verdict: &Verdict, now: Timestamp) -> (Settled, retry::Next) {
        self.metrics.attempted(&self.name, verdict.word());
        let jitter = fastrand::f64();
        let next = retry::next(verdict, going.history, &going.patience, now, jitter);
        let mut marks = going.notice.marks.clone();
        let (answer, progress) = match verdict {
            Verdict::Sent { remote_id } => {
                self.metrics
                    .reached(&self.name, since(going.notice.received_at, now));
                if let Some(by) = marks.late {
                    self.metrics.late_by(by);
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
                route = going.notice.route,
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
            outcome: next.outcome.clone(),
            at: now,
            marks,
            answer,
            again_at: next.again_at,
            failing_since: next.history.failing_since,
            progress,
        };
        (settled, next)
    }

    fn complain(&self, what: &str, error: &StoreError) {
        let error: &dyn std::error::Error = error;
        tracing::warn!(sink = &*self.name, error, "{what}");
    }
}

/// What one round carries: settlements by lane, and what is still to be sent, in order.
#[derive(Default)]
struct Load {
    settlements: Vec<Settlement>,
    going: VecDeque<Going>,
}

/// A delivery on its way.
struct Going {
    /// Index of its lane's settlement.
    lane: usize,
    event: crate::store::EventId,
    key: crate::delivery::SortKey,
    history: History,
    patience: Patience,
    notice: Notice,
}

fn candidate(waiting: &Waiting) -> Candidate<'_> {
    let status = waiting.event.command().map(|command| &command.status);
    Candidate {
        key: &waiting.key,
        repeat: waiting.repeat_of.is_some(),
        ended: waiting.terminal_sent,
        in_progress: status == Some(&Status::InProgress),
        conflict: waiting.conflict,
        resent: waiting.resent,
        possible_repeat: waiting.possible_repeat,
    }
}
