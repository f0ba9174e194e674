//! Sinks that are objects of the simulator: they ask their permit before the bytes, and fail in each
//! way in which a service can.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runbell::render::Notice;
use runbell::retry::{Patience, Scope, Verdict};
use runbell::sink::{Capacity, Permit, Sink};

use crate::plan::SinkPlan;
use crate::world::{Planted, World};

/// How long a service is waited for.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call may be held up by what else its process does.
const HELD_UP: Duration = Duration::from_secs(1);

/// A sink of the simulator.
pub struct SimSink {
    plan: SinkPlan,
    world: Arc<World>,
}

/// One notice's fate, drawn before it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    Refused,
    Troubled,
    Rated,
    TakenUnknown,
    TakenHangs,
    LostHangs,
}

impl SimSink {
    pub fn new(plan: SinkPlan, world: Arc<World>) -> Arc<Self> {
        Arc::new(Self { plan, world })
    }

    fn fate(&self) -> Fate {
        let mut state = self.world.state();
        let rates = state.rates.clone();
        if !state.strikes(rates.sink) {
            return Fate::Taken;
        }
        let fates = [
            (Fate::Refused, "sink refuses"),
            (Fate::Troubled, "sink fails for one notice"),
            (Fate::Rated, "sink asks for a pause"),
            (Fate::TakenUnknown, "sink takes, the answer is lost"),
            (Fate::TakenHangs, "sink takes and hangs"),
            (Fate::LostHangs, "sink hangs"),
        ];
        let kinds = rates.fates.min(fates.len());
        let (fate, word) = fates[(rates.first_fate + state.rng.usize(..kinds)) % fates.len()];
        drop(state);
        self.world.inject(word);
        fate
    }

    fn is_down(&self) -> bool {
        let now = self.world.clock.boot();
        let state = self.world.state();
        state
            .down_until
            .get(&self.plan.name)
            .is_some_and(|until| now < *until)
    }

    fn millis(&self, range: std::ops::Range<u64>) -> Duration {
        self.world.state().millis(range)
    }

    /// Waits for the pace, a name server, a handshake: mostly for a moment, at times very long.
    async fn connect(&self) {
        let (time, is_slow) = {
            let mut state = self.world.state();
            let rate = state.rates.slow_connect;
            if state.strikes(rate) {
                (state.millis(1000..45_000), true)
            } else {
                (state.millis(0..30), false)
            }
        };
        if is_slow {
            self.world.inject("sink waits before the bytes");
        }
        self.waits(time).await;
    }

    /// Waits as a client waits for a service. Nobody may hold it up: a real client would find its own
    /// time over, and take for unknown what was answered long ago.
    async fn waits(&self, time: Duration) {
        let until = self.world.clock.boot() + time;
        self.world.sleep(time).await;
        let late = self.world.clock.boot().saturating_sub(until);
        let was_paused = self.world.state().injected.contains_key("pause");
        if late > HELD_UP && !was_paused {
            let name = &self.plan.name;
            self.world
                .accuse(format!("a call to {name} was held up for {late:?}"));
        }
    }

    fn take(&self, notice: &Notice) {
        let mut marks = notice.marks.clone();
        if self.world.planted == Some(Planted::LostMark) {
            marks.possible_repeat = false;
        }
        let name = &self.plan.name;
        let words = (&notice.route, &notice.event.message_id);
        let digest = notice.digest.as_ref();
        self.world
            .note(format_args!("{name} takes {words:?} {marks:?} {digest:?}"));
        let now = self.world.clock.boot();
        let wrong = self.world.state().truth.told(name, notice, marks, now);
        if let Some(wrong) = wrong {
            self.world.accuse(wrong);
        }
    }

    /// One notice; none when the permit was refused.
    async fn bring(&self, notice: &Notice, permit: &Permit) -> Option<Verdict> {
        let fate = self.fate();
        let is_deaf = self.world.planted == Some(Planted::DeafPermit);
        if !permit.begin() {
            self.world.inject("permit refused");
            if !is_deaf {
                return None;
            }
        }
        let notices = std::slice::from_ref(notice);
        self.world.state().truth.begins(&self.plan.name, notices);
        if !matches!(fate, Fate::Taken | Fate::TakenUnknown | Fate::TakenHangs) {
            let verdict = self.fails(fate).await;
            return Some(verdict);
        }
        self.take(notice);
        match fate {
            Fate::TakenHangs => self.waits(TIMEOUT).await,
            _ => self.waits(self.millis(0..200)).await,
        }
        Some(if fate == Fate::Taken {
            let remote_id = Some(format!("remote-{}", notice.id));
            Verdict::Sent { remote_id }
        } else {
            unknown()
        })
    }

    async fn fails(&self, fate: Fate) -> Verdict {
        let why = "a fault was injected".to_owned();
        let (after, scope) = match fate {
            Fate::LostHangs => {
                self.waits(TIMEOUT).await;
                return unknown();
            }
            Fate::Refused => {
                self.waits(self.millis(0..200)).await;
                return Verdict::Refused {
                    why,
                    content: false,
                };
            }
            Fate::Rated => (Some(self.millis(1000..15_000)), Scope::Sink),
            _ => (None, Scope::Notice),
        };
        self.waits(self.millis(0..200)).await;
        Verdict::Retry {
            why,
            after,
            scope,
            progress: None,
        }
    }
}

fn unknown() -> Verdict {
    Verdict::Unknown {
        why: "nobody knows".to_owned(),
    }
}

fn not_tried() -> Verdict {
    Verdict::Retry {
        why: "one before it failed".to_owned(),
        after: None,
        scope: Scope::Notice,
        progress: None,
    }
}

#[async_trait]
impl Sink for SimSink {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: self.plan.per_send,
            at_once: self.plan.at_once,
        }
    }

    fn keeps_threads(&self) -> bool {
        self.plan.keeps_threads
    }

    fn patience(&self) -> Patience {
        self.plan.patience
    }

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        let name = &self.plan.name;
        self.world
            .note(format_args!("{name} is given {}", notices.len()));
        self.connect().await;
        if self.is_down() {
            self.world.inject("sink is down");
            let why = "down".to_owned();
            return vec![Verdict::Broken { why }; notices.len()];
        }
        let mut verdicts = Vec::new();
        for notice in notices {
            if verdicts
                .last()
                .is_some_and(|last: &Verdict| !last.is_sent())
            {
                verdicts.push(not_tried());
                continue;
            }
            match self.bring(notice, permit).await {
                Some(verdict) => verdicts.push(verdict),
                None => break,
            }
        }
        let words: Vec<_> = verdicts.iter().map(Verdict::word).collect();
        self.world.note(format_args!("{name} answers {words:?}"));
        verdicts
    }
}
