//! One seed, from its plan to the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fastrand::Rng;
use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use runbell::deliver::{Surroundings, Worker};
use runbell::metrics::Metrics;
use runbell::route::Routes;
use runbell::sink::{Fallback, Sink};
use runbell::store::{
    Append, Appended, Care as _, DeadSelection, History as _, Intake as _, Lanes as _,
};
use runbell::wake::Wake;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Pump};
use crate::faulty::Faulty;
use crate::oracle;
use crate::plan::{Act, FAULTS_FOR, Plan, SinkPlan};
use crate::sink::SimSink;
use crate::tasks::Tasks;
use crate::world::{Planted, World};

/// More steps than any seed takes: something spins.
const MOST_STEPS: u64 = 300_000;
/// How often the end is looked for.
const LOOK: Duration = Duration::from_secs(2);
/// How long events are kept: less than the clock is set forward by.
const KEEP: Duration = Duration::from_hours(3);

/// The findings of one seed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub broken: Vec<String>,
    pub injected: BTreeMap<&'static str, u64>,
    pub trace: (u64, u64),
    pub told: usize,
    pub repeats: usize,
    pub steps: u64,
    /// How much time passed there.
    pub passed: Duration,
}

/// A process.
#[derive(Default)]
struct Process {
    up: Option<Up>,
    paused_until: Option<Duration>,
}

struct Up {
    start: u64,
    store: Arc<Faulty>,
    pump: Box<dyn Pump>,
    /// The pump may have something to do.
    has_jobs: bool,
    wakes: BTreeMap<String, Wake>,
    stop: CancellationToken,
}

struct Sim<'e> {
    engine: &'e mut dyn Engine,
    world: Arc<World>,
    plan: Plan,
    routes: Arc<ArcSwap<Routes>>,
    metrics: Arc<Metrics>,
    processes: Vec<Process>,
    tasks: Tasks,
    agenda: BTreeMap<(Duration, u64), Act>,
    last_act: u64,
    last_start: u64,
    steps: u64,
    begin: Duration,
    /// The wall time of the beginning.
    start_at: Timestamp,
    next_look: Duration,
}

/// Plays one seed.
pub fn run(seed: u64, engine: &mut dyn Engine, planted: Option<Planted>, show: bool) -> Outcome {
    // The product draws jitter and the ids of holders from the generator of its thread.
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    engine.reset();
    let start_at = "2026-11-23T10:00:00Z".parse().unwrap();
    let plan = Plan::draw(&mut rng, start_at, engine.processes(), engine.latencies());
    let world = World::new(start_at, rng, plan.rates.clone(), planted, show);
    {
        let mut state = world.state();
        state.truth.know(plan.posts.clone(), engine.processes() > 1);
    }
    let begin = world.clock.boot();
    let processes = (0..engine.processes())
        .map(|_| Process::default())
        .collect();
    let mut sim = Sim {
        engine,
        routes: Arc::new(ArcSwap::from_pointee(plan.routes())),
        metrics: Arc::new(Metrics::new()),
        processes,
        tasks: Tasks::default(),
        agenda: BTreeMap::new(),
        last_act: 0,
        last_start: 0,
        steps: 0,
        begin,
        start_at,
        next_look: begin + FAULTS_FOR,
        plan,
        world,
    };
    if show {
        println!("{:#?}", sim.plan.sinks);
        println!("{:#?}\n{:#?}", sim.plan.routes, sim.plan.rates);
    }
    for (at, act) in std::mem::take(&mut sim.plan.acts) {
        sim.schedule(at, act);
    }
    sim.play();
    sim.end()
}

impl Sim<'_> {
    fn schedule(&mut self, after_begin: Duration, act: Act) {
        self.last_act += 1;
        self.agenda
            .insert((self.begin + after_begin, self.last_act), act);
    }

    fn passed(&self) -> Duration {
        self.world.clock.boot().saturating_sub(self.begin)
    }

    fn schedule_in(&mut self, time: Duration, act: Act) {
        self.schedule(self.passed() + time, act);
    }

    fn play(&mut self) {
        for process in 0..self.processes.len() {
            self.start(process);
        }
        loop {
            if self.step() {
                self.steps += 1;
                if self.steps > MOST_STEPS {
                    self.world.accuse("it spins".to_owned());
                    return;
                }
                continue;
            }
            if self.world.clock.boot() >= self.next_look {
                self.next_look = self.world.clock.boot() + LOOK;
                if self.is_over() {
                    return;
                }
                if self.passed() > FAULTS_FOR + self.plan.healing {
                    let (waiting, held) = (self.waiting(), self.held());
                    let rest = format!("{waiting:?} wait, {held} leases are held");
                    self.world
                        .accuse(format!("it does not come to rest: {rest}"));
                    return;
                }
            }
            self.move_time();
        }
    }

    /// Lets one task, or one pump, go on; whether any could.
    fn step(&mut self) -> bool {
        let now = self.world.clock.boot();
        let runs: Vec<bool> = self.processes.iter().map(|it| it.runs(now)).collect();
        let mut ready = self.tasks.ready(|process| runs[process]);
        let pumps: Vec<usize> = (0..self.processes.len())
            .filter(|it| {
                runs[*it]
                    && self.processes[*it]
                        .up
                        .as_ref()
                        .is_some_and(|up| up.has_jobs)
            })
            .collect();
        let many = ready.len() + pumps.len();
        if many == 0 {
            return false;
        }
        let which = self.world.state().rng.usize(..many);
        if which < ready.len() {
            let task = ready.swap_remove(which);
            let process = self.tasks.get(task).process;
            self.world
                .note(format_args!("{} {}", process, self.tasks.get(task).name));
            self.tasks.poll(task);
            if let Some(up) = &mut self.processes[process].up {
                up.has_jobs = true;
            }
            self.hear_answers();
        } else if let Some(up) = &mut self.processes[pumps[which - ready.len()]].up {
            if up.pump.turn() {
                self.world.note(format_args!("committed"));
            }
            up.has_jobs = false;
        }
        true
    }

    fn move_time(&mut self) {
        let now = self.world.clock.boot();
        let next = [
            self.agenda.keys().next().map(|(at, _)| *at),
            self.world.next_timer().filter(|at| *at > now),
            self.world.clock.next_wake().map(|left| now + left),
            self.processes
                .iter()
                .filter_map(|it| it.paused_until)
                .filter(|at| *at > now)
                .min(),
            Some(self.next_look),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(now).max(now);
        self.world.clock.advance(next.saturating_sub(now));
        self.world.fire();
        while let Some(first) = self.agenda.first_entry()
            && first.key().0 <= next
        {
            let act = first.remove();
            self.act(act);
        }
    }

    fn act(&mut self, act: Act) {
        if !matches!(act, Act::Post(_)) {
            self.world.note(format_args!("{act:?}"));
        }
        match act {
            Act::Post(post) => self.post(post),
            Act::Start(process) => self.start(process),
            Act::Kill(process, down) => {
                if self.processes[process].up.is_some() {
                    self.world.inject("kill");
                    self.kill(process, down);
                }
            }
            Act::Stop(process, down) => {
                if let Some(up) = &self.processes[process].up {
                    self.world.inject("orderly stop");
                    up.stop.cancel();
                    let down = down + Duration::from_secs(15);
                    self.schedule_in(Duration::from_secs(15), Act::Kill(process, down));
                }
            }
            Act::Pause(process, time) => {
                self.world.inject("pause");
                self.processes[process].paused_until = Some(self.world.clock.boot() + time);
            }
            Act::Leap(by) => {
                let is_up = self.processes.iter().all(|it| it.up.is_some());
                self.world.inject(match (is_up, by.is_negative()) {
                    (true, true) => "clock set back",
                    (true, false) => "clock leaps",
                    (false, true) => "clock set back while down",
                    (false, false) => "clock leaps while down",
                });
                self.world.clock.leap(by);
            }
            Act::DropWorker(process, sink) => self.drop_worker(process, &sink),
            Act::Down(sink, time) => {
                let until = self.world.clock.boot() + time;
                self.world.state().down_until.insert(sink, until);
            }
            Act::Full(is_full) => {
                let mut state = self.world.state();
                state.is_full = is_full && !state.is_healed;
            }
            Act::Heal => {
                let mut state = self.world.state();
                state.is_healed = true;
                state.is_full = false;
                state.down_until.clear();
            }
            Act::RetryDead => self.retry_dead(),
        }
    }

    fn start(&mut self, process: usize) {
        if self.processes[process].up.is_some() {
            return;
        }
        let (store, pump) = self.engine.open(&self.world.clock);
        self.last_start += 1;
        let start = self.last_start;
        let store = Arc::new(Faulty::new(store, Arc::clone(&self.world), start));
        let names = self.plan.sinks.iter().map(|sink| sink.name.clone());
        let wakes: BTreeMap<_, _> = names.map(|name| (name, Wake::default())).collect();
        let stop = CancellationToken::new();
        self.processes[process] = Process {
            up: Some(Up {
                start,
                store: Arc::clone(&store),
                pump,
                has_jobs: false,
                wakes,
                stop,
            }),
            paused_until: None,
        };
        for sink in self.plan.sinks.clone() {
            self.spawn_worker(process, &sink);
        }
        let (world, beating) = (Arc::clone(&self.world), Arc::clone(&store));
        self.tasks
            .spawn(process, "beat".to_owned(), None, async move {
                loop {
                    world.clock.sleep(Duration::from_secs(1)).await;
                    // The next one makes up for it.
                    let _ = beating.beat().await;
                }
            });
        let world = Arc::clone(&self.world);
        self.tasks
            .spawn(process, "upkeep".to_owned(), None, async move {
                loop {
                    world.clock.sleep(Duration::from_secs(5)).await;
                    if let Ok(lanes @ 1..) = store.sweep().await {
                        world.accuse(format!("{lanes} lanes had been forgotten"));
                    }
                    let now = world.clock.now().min(store.clock().now());
                    let _ = store.prune(now, KEEP).await;
                }
            });
    }

    fn spawn_worker(&mut self, process: usize, sink: &SinkPlan) {
        let Some(up) = &self.processes[process].up else {
            return;
        };
        let around = Surroundings {
            lanes: up.store.clone(),
            routes: Arc::clone(&self.routes),
            clock: self.world.clock.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        let object: Arc<dyn Sink> = SimSink::new(sink.clone(), Arc::clone(&self.world));
        let wake = up.wakes[&sink.name].clone();
        let mut worker = Worker::new(&sink.name, object, wake, around);
        if let Some((to, after)) = &sink.fallback {
            let fallback = Fallback {
                to: to.clone(),
                after: *after,
            };
            worker = worker.with_fallback(fallback, up.wakes[to].clone());
        }
        let stop = up.stop.clone();
        let name = worker_name(&sink.name);
        self.tasks
            .spawn(process, name, None, async move { worker.run(&stop).await });
    }

    /// Everything in memory is gone. A commit that was asked for may have come through.
    fn kill(&mut self, process: usize, down: Duration) {
        let Some(mut up) = self.processes[process].up.take() else {
            return;
        };
        if self.world.state().rng.bool() {
            up.pump.turn();
        }
        let posts = self.tasks.drop_those(|task| task.process == process);
        drop(up);
        self.processes[process].paused_until = None;
        self.world.state().truth.was_killed = true;
        self.schedule_in(down, Act::Start(process));
        for post in posts {
            self.post_again(post);
        }
    }

    fn drop_worker(&mut self, process: usize, sink: &str) {
        if self.processes[process]
            .up
            .as_ref()
            .is_none_or(|up| up.stop.is_cancelled())
        {
            return;
        }
        let name = worker_name(sink);
        self.world.inject("worker dropped");
        self.tasks
            .drop_those(|task| task.process == process && task.name == name);
        let sinks = self.plan.sinks.clone();
        for sink in sinks.iter().filter(|it| it.name == sink) {
            self.spawn_worker(process, sink);
        }
    }

    /// A process that is up, if any is; it may stand still.
    fn any_up(&self) -> Option<usize> {
        let up: Vec<usize> = (0..self.processes.len())
            .filter(|it| self.processes[*it].up.is_some())
            .collect();
        self.world.state().rng.choice(up)
    }

    fn post(&mut self, post: usize) {
        let Some(process) = self.any_up() else {
            self.post_again(post);
            return;
        };
        let Some(up) = &self.processes[process].up else {
            return;
        };
        let (store, world, wakes) = (
            Arc::clone(&up.store),
            Arc::clone(&self.world),
            up.wakes.clone(),
        );
        let event = self.plan.posts[post].event.clone();
        let name = format!("post {}", event.message_id);
        let owed = self.routes.load().owed(&event, None);
        self.tasks.spawn(process, name, Some(post), async move {
            let wall = world.clock.now();
            if !is_fresh(event.sent_at, wall) {
                world.inject("message refused for our clock");
                world.state().truth.answers.push((post, None));
                return;
            }
            let append = Append {
                now: store.clock().now(),
                ..Append::new(event, owed, wall)
            };
            let answer = store.append(append).await;
            let id = match &answer {
                Ok(Appended::Stored { id, due, .. }) => {
                    for (sink, at) in due {
                        wakes[&**sink].at(*at);
                    }
                    Some(id.0)
                }
                Ok(Appended::Known { id }) => Some(id.0),
                Err(_) => None,
            };
            world.note(format_args!("  answer {id:?}"));
            world.state().truth.answers.push((post, id));
        });
    }

    fn post_again(&mut self, post: usize) {
        // In the end somebody sets the clock right, if messages are refused for it. Otherwise it
        // stays wrong, and nothing may wait for that.
        if self.world.state().is_healed {
            let right = self.start_at + SignedDuration::try_from(self.passed()).unwrap();
            let wrong_by = right.duration_since(self.world.clock.now());
            self.world.clock.leap(wrong_by);
        }
        let wait = self.world.state().millis(500..6000);
        self.schedule_in(wait, Act::Post(post));
    }

    /// SNS posts again whatever was not answered with a yes.
    fn hear_answers(&mut self) {
        let answers = std::mem::take(&mut self.world.state().truth.answers);
        for (post, id) in answers {
            match id {
                None => self.post_again(post),
                Some(id) => {
                    let wrong = self.world.state().truth.acknowledged(post, id);
                    if let Some(wrong) = wrong {
                        self.world.accuse(wrong);
                    }
                }
            }
        }
    }

    fn retry_dead(&mut self) {
        let Some(process) = self.any_up() else {
            self.schedule_in(Duration::from_secs(1), Act::RetryDead);
            return;
        };
        let Some(up) = &self.processes[process].up else {
            return;
        };
        let store = Arc::clone(&up.store);
        self.tasks
            .spawn(process, "retry dead".to_owned(), None, async move {
                let now = store.clock().now();
                let _ = store.retry_dead(DeadSelection::All, None, now).await;
            });
    }

    fn waiting(&self) -> Vec<(String, u64)> {
        let Some(up) = self.processes.iter().find_map(|it| it.up.as_ref()) else {
            return vec![("every process is down".to_owned(), 1)];
        };
        let tally = up.store.tally().now_or_never();
        let tally = tally.expect("looks are made at once").unwrap();
        let each = tally.into_iter().map(|it| (it.sink, it.waiting));
        each.filter(|(_, many)| *many > 0).collect()
    }

    fn is_over(&self) -> bool {
        self.agenda.is_empty()
            && self
                .processes
                .iter()
                .all(|it| it.runs(self.world.clock.boot()))
            && self.world.state().truth.all_acknowledged()
            && self.waiting().is_empty()
            && self.held() == 0
            && self.engine.leftovers().is_empty()
    }

    /// How many leases are in the registers of the processes that are up.
    fn held(&self) -> usize {
        let state = self.world.state();
        let up = self.processes.iter().filter_map(|it| it.up.as_ref());
        let registers = up.filter_map(|up| state.truth.registers.get(&up.start));
        registers.map(|register| register.held()).sum()
    }

    fn end(self) -> Outcome {
        let store = self.processes.iter().find_map(|it| it.up.as_ref());
        if let Some(up) = store {
            oracle::judge(&self.world, &up.store, self.engine, &self.plan);
        }
        let trace = self.world.trace();
        let mut state = self.world.state();
        Outcome {
            broken: std::mem::take(&mut state.truth.broken),
            injected: std::mem::take(&mut state.injected),
            trace,
            told: state.truth.copies.len(),
            repeats: state.truth.repeats(),
            steps: self.steps,
            passed: self.passed(),
        }
    }
}

impl Process {
    fn runs(&self, now: Duration) -> bool {
        self.up.is_some() && self.paused_until.is_none_or(|until| until <= now)
    }
}

/// Whether the receive path would take a message that was signed then: what is too far from our clock
/// is refused, and comes again.
fn is_fresh(sent_at: Timestamp, wall: Timestamp) -> bool {
    let age = wall.duration_since(sent_at);
    (SignedDuration::from_mins(-5)..=SignedDuration::from_mins(90)).contains(&age)
}

fn worker_name(sink: &str) -> String {
    format!("worker {sink}")
}
