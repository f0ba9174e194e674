//! The plan of a seed: its sinks and routes, its messages, its faults and when they strike.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use runbell::event::{EnvelopeKind, Event, Source};
use runbell::retry::Patience;
use runbell::route::{Routes, Settings};

use crate::truth::Post;

/// How long the faults last; what comes afterwards heals.
pub const FAULTS_FOR: Duration = Duration::from_secs(45);

/// How often something goes wrong, out of a thousand calls; and what.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    pub store: u32,
    pub store_kinds: Vec<&'static str>,
    pub sink: u32,
    pub first_fate: usize,
    pub fates: usize,
    pub slow_connect: u32,
    /// How far away the database is.
    pub latency: Duration,
}

/// One sink.
#[derive(Clone, Debug)]
pub struct SinkPlan {
    pub name: String,
    pub at_once: usize,
    pub per_send: usize,
    pub keeps_threads: bool,
    pub patience: Patience,
    /// Another that takes over after so long.
    pub fallback: Option<(String, Duration)>,
}

/// An act from outside.
#[derive(Clone, Debug)]
pub enum Act {
    /// SNS posts a message.
    Post(usize),
    /// A process is killed, and starts again after so long.
    Kill(usize, Duration),
    /// It starts.
    Start(usize),
    /// A process is told to stop in an orderly way, and starts again after so long.
    Stop(usize, Duration),
    /// Nothing of a process runs for so long.
    Pause(usize, Duration),
    /// Somebody sets the wall clock.
    Leap(SignedDuration),
    /// A worker's task is dropped and made anew.
    DropWorker(usize, String),
    /// A sink is down for so long.
    Down(String, Duration),
    /// The disk is full, or no longer.
    Full(bool),
    /// All faults end.
    Heal,
    /// An operator sends dead letters again.
    RetryDead,
}

/// The plan.
pub struct Plan {
    pub sinks: Vec<SinkPlan>,
    pub routes: Vec<String>,
    pub posts: Vec<Post>,
    pub rates: Rates,
    /// Acts, and when, counted from the start.
    pub acts: Vec<(Duration, Act)>,
    /// The longest that the healing may take.
    pub healing: Duration,
}

impl Plan {
    /// Draws a plan.
    pub fn draw(rng: &mut Rng, start: Timestamp, processes: usize, latencies: &[u64]) -> Self {
        let is_patient = rng.u32(..50) == 0;
        let longest = if is_patient { 900 } else { 30 };
        let sinks = sinks(rng, Duration::from_secs(longest));
        let routes = routes(rng);
        let posts = posts(rng, start, &checked(&routes));
        let mut acts = Vec::new();
        for post in 0..posts.len() {
            let at = millis(rng, 0..35_000);
            acts.push((at, Act::Post(post)));
            while rng.u32(..6) == 0 {
                acts.push((at + millis(rng, 1..20_000), Act::Post(post)));
            }
        }
        disturb(rng, processes, &sinks, &mut acts);
        acts.push((FAULTS_FOR, Act::Heal));
        if rng.bool() {
            acts.push((FAULTS_FOR + Duration::from_secs(1), Act::RetryDead));
        }
        if processes == 1 && rng.u32(..8) == 0 {
            // The clock is found far behind at a late start, when all messages are there and the
            // holds of some are not over: nobody is refused, so nobody sets it right.
            let far = SignedDuration::from_secs(rng.i64(4000..90_000));
            let at = FAULTS_FOR.saturating_sub(millis(rng, 2000..8000));
            acts.push((at, Act::Kill(0, Duration::from_secs(1))));
            acts.push((at + Duration::from_millis(500), Act::Leap(-far)));
        }
        Self {
            sinks,
            routes,
            posts,
            rates: rates(rng, latencies),
            acts,
            healing: Duration::from_secs(180 + 2 * longest),
        }
    }

    pub fn routes(&self) -> Routes {
        checked(&self.routes)
    }
}

fn checked(routes: &[String]) -> Routes {
    let read = |text: &String| toml::from_str::<Settings>(text).unwrap().check().unwrap();
    Routes::new(routes.iter().map(read).collect())
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

fn rates(rng: &mut Rng, latencies: &[u64]) -> Rates {
    let all = [
        "error before",
        "error after",
        "drop",
        "hang after",
        "hang before",
        "hang around",
        "slow",
    ];
    let mut kinds: Vec<_> = all.into_iter().filter(|_| rng.u32(..3) > 0).collect();
    if kinds.is_empty() {
        kinds.push("slow");
    }
    let often = [0, 20, 100, 300];
    Rates {
        store: rng.choice(often).unwrap_or(0),
        store_kinds: kinds,
        sink: rng.choice(often).unwrap_or(0),
        first_fate: rng.usize(..6),
        fates: rng.usize(1..7),
        slow_connect: rng.choice([0, 0, 30, 150]).unwrap_or(0),
        latency: Duration::from_millis(rng.choice(latencies.iter().copied()).unwrap_or(0)),
    }
}

/// Three sinks for notices and one for digests.
fn sinks(rng: &mut Rng, longest: Duration) -> Vec<SinkPlan> {
    let fallback = (rng.bool()).then(|| ("b".to_owned(), millis(rng, 1000..8000)));
    ["a", "b", "c", "d"]
        .into_iter()
        .map(|name| SinkPlan {
            name: name.to_owned(),
            at_once: rng.choice([1, 4]).unwrap_or(1),
            per_send: rng.choice([1, 100]).unwrap_or(1),
            keeps_threads: name == "d",
            patience: Patience {
                longest,
                block_for: Some(millis(rng, 500..20_000)),
                ..Patience::default()
            },
            fallback: fallback.clone().filter(|_| name == "a"),
        })
        .collect()
}

fn routes(rng: &mut Rng) -> Vec<String> {
    let mut orders = ["command", "instance", "topic"];
    rng.shuffle(&mut orders);
    let mut routes: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .zip(orders)
        .map(|(sink, order)| {
            let hold = rng.u32(..3);
            let redundant = rng.choice(["skip", "send"]).unwrap_or("skip");
            format!(
                "name = 'to-{sink}'\nto = ['{sink}']\norder = '{order}'\nhold = '{hold}s'\n\
                 redundant = '{redundant}'\n"
            )
        })
        .collect();
    let gather = rng.u32(1..4);
    routes.push(format!(
        "name = 'to-d'\nto = ['d']\ndigest = {{ gather = '{gather}s', every = '10s' }}\n"
    ));
    routes
}

/// Commands on instances, told in any order, some steps twice; and a few messages of other kinds.
fn posts(rng: &mut Rng, start: Timestamp, routes: &Routes) -> Vec<Post> {
    let many = rng.usize(12..41);
    let (commands, instances) = (rng.usize(1..4), rng.usize(1..5));
    let mut posts: Vec<Post> = Vec::new();
    let mut told = BTreeSet::new();
    while posts.len() < many {
        let id = format!("m-{}", posts.len());
        let at = start + SignedDuration::from_millis(rng.i64(-4000..30_000));
        let other = rng.u32(..12) == 0;
        let command = format!("{:08}-1111-2222-3333-444444444444", rng.usize(..commands));
        let instance = rng.usize(..=instances);
        let body = if other {
            "hello".to_owned()
        } else {
            body(rng, &command, instance, at, &mut told)
        };
        posts.push(post(&id, &body, at, routes));
        if rng.u32(..8) == 0 {
            posts.push(post(&format!("{id}-again"), &body, at, routes));
        }
    }
    posts
}

fn body(
    rng: &mut Rng,
    command: &str,
    instance: usize,
    at: Timestamp,
    told: &mut BTreeSet<(String, usize)>,
) -> String {
    // One end of each thing, but for a rare conflict.
    let is_new = told.insert((command.to_owned(), instance));
    let status = if is_new || rng.u32(..30) == 0 {
        rng.choice(["Success", "Success", "Failed", "TimedOut", "Cancelled"])
    } else {
        Some("InProgress")
    };
    let mut value = serde_json::json!({
        "commandId": command, "documentName": "AWS-RunShellScript",
        "status": status, "eventTime": at.to_string(),
    });
    if instance == 0 {
        value["instanceIds"] = serde_json::json!([]);
    } else {
        value["instanceId"] = format!("i-{instance}").into();
    }
    value.to_string()
}

fn post(id: &str, body: &str, at: Timestamp, routes: &Routes) -> Post {
    let event = Event::read(&Source {
        topic: "arn:aws:sns:eu-central-1:123456789012:t",
        account: "123456789012",
        region: "eu-central-1",
        message_id: id,
        sent_at: at,
        subject: None,
        body,
        envelope: EnvelopeKind::Notification,
    });
    let (mut places, mut owed) = (BTreeMap::new(), BTreeSet::new());
    for it in routes.owed(&event, None) {
        let place = crate::truth::LaneName::place(it.lane, &event);
        places.insert(it.route.clone(), (place, it.key));
        owed.insert((it.route, it.sink));
    }
    Post {
        event,
        id: None,
        places,
        owed,
    }
}

fn leap(rng: &mut Rng) -> SignedDuration {
    let far = rng.choice([10, 100, 4000, 90_000]).unwrap_or(10);
    SignedDuration::from_secs(rng.i64(-far..far))
}

/// Faults that strike a process as a whole, the clock, the disk, or a sink.
fn disturb(rng: &mut Rng, processes: usize, sinks: &[SinkPlan], acts: &mut Vec<(Duration, Act)>) {
    let process = |rng: &mut Rng| rng.usize(..processes);
    let kinds: Vec<u32> = (0..7).filter(|_| rng.u32(..3) == 0).collect();
    for _ in 0..rng.usize(..5) {
        let at = millis(rng, 500..40_000);
        let sink = sinks[rng.usize(..sinks.len())].name.clone();
        match rng.choice(kinds.iter().copied()) {
            Some(0) => {
                let down = millis(rng, 0..15_000);
                acts.push((at, Act::Kill(process(rng), down)));
                if rng.u32(..4) == 0 {
                    acts.push((at + down / 2, Act::Leap(leap(rng))));
                }
            }
            Some(1) => acts.push((at, Act::Stop(process(rng), millis(rng, 0..5000)))),
            Some(2) => {
                let long = if rng.u32(..4) == 0 {
                    24_000..45_000
                } else {
                    1000..20_000
                };
                acts.push((at, Act::Pause(process(rng), millis(rng, long))));
            }
            Some(3) => acts.push((at, Act::Leap(leap(rng)))),
            Some(4) => acts.push((at, Act::DropWorker(process(rng), sink))),
            Some(5) => acts.push((at, Act::Down(sink, millis(rng, 500..20_000)))),
            Some(_) => {
                acts.push((at, Act::Full(true)));
                acts.push((at + millis(rng, 500..15_000), Act::Full(false)));
            }
            None => {}
        }
    }
}
