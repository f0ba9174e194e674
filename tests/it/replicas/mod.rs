//! Several replicas as real processes on one PostgreSQL, under load, while everything around them
//! breaks: they are killed, paused for longer than their leases live, cut off from the database,
//! and the database crashes. Whatever was answered with 200 reaches the sink, in order or marked,
//! and the history checker judges it.
//!
//! `make chaos` does the same for minutes, with every kind of sink, and with a database that is
//! some milliseconds away, stalls, and loses the answers to COMMITs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use runbell::clock::{Clock, later};

use crate::harness::postgres::Server;
use crate::harness::proxy::Proxy;
use crate::harness::sns::Sns;
use crate::history::{self, Disturbance, History, Record};

mod breaks;
mod chaos;
mod digests;
mod process;
mod publisher;
mod rolling;
mod services;
mod settings;

use breaks::Break;
use process::Replica;
use publisher::{Load, Publisher};
use services::Services;
use settings::{Order, Route};

/// The replicas, in the order in which they are started.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// The load of the short tests.
const LOAD: Load = Load {
    pace: 150,
    instances: 50,
};
/// How long a replica may keep what it told before it can record it: a database that stalls, and
/// the patience of a call.
const GRACE: Duration = Duration::from_secs(20);
/// However much waits, it is told within this time.
const PATIENCE: Duration = Duration::from_mins(5);
/// Deliveries that wait become fewer within this time, or they stand still.
const STANDSTILL: Duration = Duration::from_mins(1);

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The replicas, and whatever they run on.
struct Scene {
    clock: Clock,
    server: Server,
    /// One before the database for each replica.
    proxies: Vec<Proxy>,
    http: reqwest::Client,
    routes: &'static [Route],
    replicas: Vec<Replica>,
    services: Services,
    publisher: Arc<Publisher>,
    disturbances: Vec<Disturbance>,
    /// Whatever was wrong before the end.
    complaints: Vec<String>,
}

impl Scene {
    /// Starts so many replicas, to which statuses are posted later.
    async fn start(count: usize, routes: &'static [Route], load: Load) -> Self {
        let port = free_port();
        let server = Server::start(Some(port), true);
        server.run("public", "CREATE SCHEMA runbell").await;
        let sns = Sns::start().await;
        let services = Services::start().await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (mut proxies, mut replicas) = (Vec::new(), Vec::new());
        for name in &NAMES[..count] {
            let proxy = Proxy::to(port).await;
            let database = server.url("runbell");
            let database = database.replace(&format!(":{port}/"), &format!(":{}/", proxy.port));
            let mut replica = Replica::new(name, &database, &sns, &services.base, routes);
            replica.start(&http).await;
            proxies.push(proxy);
            replicas.push(replica);
        }
        let hooks = replicas.iter().map(|it| it.hook).collect();
        Self {
            clock: Clock::system(),
            server,
            proxies,
            routes,
            replicas,
            services,
            publisher: Arc::new(Publisher::new(sns, http.clone(), hooks, load)),
            disturbances: Vec::new(),
            complaints: Vec::new(),
            http,
        }
    }

    /// Lets time pass, for a fault that lasts.
    async fn pass(&self, time: Duration) {
        let until = later(self.clock.now(), time);
        self.clock.sleep_until(until).await;
    }

    /// Notes that a replica was disturbed since then, until now.
    fn disturbed(&mut self, number: usize, from: Timestamp) {
        self.disturbances.push(Disturbance {
            process: self.replicas[number].name.clone(),
            from,
            to: self.clock.now(),
        });
    }

    /// Publishes while one thing after the other breaks.
    async fn publish_amid(&mut self, breaks: &[Break]) {
        let publisher = Arc::clone(&self.publisher);
        tokio::join!(publisher.publish(), async {
            for (round, what) in breaks.iter().enumerate() {
                publisher.more(100).await;
                self.endure(*what, round).await;
            }
            publisher.more(100).await;
            publisher.stop.cancel();
        });
    }

    /// The value of a metric for each sink, as some replica says.
    async fn metric(&self, name: &str) -> Option<BTreeMap<String, usize>> {
        let page = self.replicas[0].admin(&self.http, "/metrics").await?;
        let prefix = format!("{name}{{sink=\"");
        let samples = page.lines().filter_map(|line| {
            let (sink, value) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
            Some((sink.to_owned(), value.parse().ok()?))
        });
        Some(samples.collect())
    }

    /// Waits until nothing waits any more, or until what waits stands still; the rest by sink.
    async fn settle(&self) -> BTreeMap<String, usize> {
        let end = later(self.clock.now(), PATIENCE);
        let mut least = (usize::MAX, self.clock.now());
        loop {
            self.pass(Duration::from_millis(250)).await;
            let waiting = self.metric("runbell_waiting").await.unwrap_or_default();
            let sinks = self.routes.iter().flat_map(|route| route.sinks);
            // A metric that is not there says nothing.
            let is_whole = sinks
                .into_iter()
                .all(|sink| waiting.contains_key(sink.name));
            let sum = waiting.values().sum();
            if is_whole && sum < least.0 {
                least = (sum, self.clock.now());
            }
            let now = self.clock.now();
            let is_still = now > later(least.1, STANDSTILL);
            if least.0 == 0 || is_still || now > end {
                return waiting;
            }
        }
    }

    /// The history of a route whose sinks were told each event by itself.
    fn history(&self, route: &Route, waiting: &BTreeMap<String, usize>) -> History {
        let is_of = |sink: &str| route.sinks.iter().any(|it| it.name == sink);
        let taken = self.services.taken();
        let records = taken.iter().filter(|it| is_of(&it.sink)).map(|it| {
            assert_eq!(it.body["route"], route.name, "{it:?}");
            Record::read(&it.sink, &it.process, &it.body, Some(it.at))
        });
        let waiting = waiting.iter().filter(|(sink, _)| is_of(sink));
        History {
            posted: self.publisher.posted(route.order),
            records: records.collect(),
            dead: Vec::new(),
            waiting: waiting.map(|(_, count)| count).sum(),
            disturbances: self.disturbances.clone(),
            grace: GRACE,
        }
    }

    /// Everything that is wrong in the end, in words; figures go to whoever asks with --nocapture.
    async fn verdict(&self) -> String {
        let waiting = self.settle().await;
        let mut complaints = self.complaints.clone();
        let mut say = |subject: &str, what: String| {
            if !what.is_empty() {
                complaints.push(format!("{subject}: {what}\n"));
            }
        };
        for (sink, count) in waiting.iter().filter(|(_, count)| **count > 0) {
            say(sink, format!("{count} still wait"));
        }
        let dead = self.metric("runbell_dead").await.unwrap();
        for (sink, count) in dead.iter().filter(|(_, count)| **count > 0) {
            say(sink, format!("{count} dead letters"));
        }
        let mut figures = vec![format!("{} accepted", self.publisher.accepted())];
        for route in self.routes {
            if route.order == Order::Digest {
                let (complaint, notices) = digests::check(self, route);
                say(route.name, complaint);
                figures.push(format!("{}: {notices} digests", route.name));
                continue;
            }
            let history = self.history(route, &waiting);
            let late = history.records.iter().filter(|it| it.late).count();
            let findings = history::check(&history);
            say(route.name, findings.complaint());
            let (again, recovered) = (findings.told_again, findings.recovered.len());
            figures.push(format!(
                "{}: {again} told again, {late} late, {recovered} without a 200",
                route.name
            ));
        }
        #[expect(clippy::print_stderr, reason = "figures are worth reading")]
        {
            eprintln!("{}", figures.join("; "));
        }
        complaints.concat()
    }

    /// Nothing is wrong in the end.
    async fn assert_sound(&self) {
        let verdict = self.verdict().await;
        assert!(verdict.is_empty(), "\n{verdict}");
    }
}

/// Two replicas go on with what a killed one held, and with what a paused one held.
#[tokio::test]
async fn two_replicas_lose_nothing_whatever_breaks() {
    let mut scene = Scene::start(2, settings::PLAIN, LOAD).await;
    scene.publish_amid(&[Break::Kill, Break::Pause]).await;
    scene.assert_sound().await;
}

/// Three replicas go on after a crash of the database, and the last one with what two others held.
#[tokio::test]
async fn three_replicas_lose_nothing_whatever_breaks() {
    let mut scene = Scene::start(3, settings::PLAIN, LOAD).await;
    scene
        .publish_amid(&[Break::Crash, Break::PauseAndCut])
        .await;
    scene.assert_sound().await;
}
