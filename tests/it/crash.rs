//! kill -9 in the middle of the work, again and again, at every point where it could hurt: whatever
//! was answered with 200 is in the files, once, in order.
//!
//! The test starts itself as the service and kills that from within, at the moment at which a given
//! point was passed for the n-th time: no later, as a kill from outside would be.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
use runbell::app::{App, Listeners, Signals};
use runbell::clock::Clock;
use runbell::config::Config;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::harness::app::until;
use crate::harness::sns::{Sns, TOPIC};
use crate::harness::store::folder;
use crate::history::{self, History, Posted, Record};

const ROLE: &str = "RUNBELL_TEST_CRASH";
/// In the order in which a notification passes them.
const POINTS: [&str; 5] = ["committed", "written", "synced", "sent", "settling"];

#[test]
fn nothing_that_was_accepted_is_lost_whenever_it_is_killed() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how a test tells its child what to do"
    )]
    let role = std::env::var(ROLE);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    match role {
        Ok(role) => runtime.block_on(serve_until_killed(&role)),
        Err(_) => runtime.block_on(kill_and_check()),
    }
}

/// `role` is the settings file, the point, and how often it may be passed.
async fn serve_until_killed(role: &str) {
    let mut parts = role.split('|');
    let (settings, point) = (parts.next().unwrap(), parts.next().unwrap().to_owned());
    let left = parts.next().unwrap().parse().unwrap();
    tracing_subscriber::registry()
        .with(Killer {
            point,
            left: AtomicUsize::new(left),
        })
        .init();
    let (config, _) = Config::load(Path::new(settings)).unwrap_or_else(|it| panic!("{it}"));
    let listeners = Listeners::bind(&config).await.unwrap();
    let (hook, admin) = (
        listeners.hook_address().unwrap(),
        listeners.admin_address().unwrap(),
    );
    let app = App::build(config, Clock::system()).await.unwrap();
    #[expect(clippy::print_stderr, reason = "the parent reads it")]
    {
        eprintln!("listening {} {}", hook.port(), admin.unwrap().port());
    }
    let signals = Signals {
        stop: CancellationToken::new(),
        settings: Arc::new(|| Err("never".to_owned())),
        reload: Arc::new(Notify::new()),
    };
    app.run(listeners, signals).await.unwrap();
}

/// Kills this process when a point was passed often enough.
struct Killer {
    point: String,
    left: AtomicUsize,
}

impl<S: tracing::Subscriber> Layer<S> for Killer {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "runbell::point" {
            return;
        }
        let mut passed = Passed(String::new());
        event.record(&mut passed);
        if passed.0 == self.point && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let us = rustix::process::getpid();
            rustix::process::kill_process(us, rustix::process::Signal::KILL).unwrap();
            // The signal is on its way; nothing more is done here.
            loop {
                std::thread::park();
            }
        }
    }
}

struct Passed(String);

impl Visit for Passed {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

struct Service {
    child: Child,
    hook: u16,
    admin: u16,
}

impl Service {
    fn start(settings: &Path, point: &str, times: usize) -> Self {
        let role = format!("{}|{point}|{times}", settings.display());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "crash::nothing_that_was_accepted_is_lost_whenever_it_is_killed",
            ])
            .args(["--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines
            .find_map(|line| line.unwrap().strip_prefix("listening ").map(str::to_owned))
            .expect("the service did not start");
        // Whatever it still says is read, so that it never waits for us.
        std::thread::Builder::new()
            .spawn(move || lines.for_each(drop))
            .unwrap();
        let (hook, admin) = line.split_once(' ').unwrap();
        Self {
            child,
            hook: hook.parse().unwrap(),
            admin: admin.parse().unwrap(),
        }
    }

    /// Whether it was killed.
    fn is_dead(&mut self) -> bool {
        match self.child.try_wait().unwrap() {
            None => false,
            Some(status) => {
                assert_eq!(status.signal(), Some(9), "it ended by itself: {status}");
                true
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A producer and its knowledge: what it posts, and what was answered with 200.
struct Producer {
    sns: Sns,
    http: reqwest::Client,
    bodies: BTreeMap<String, String>,
    /// As they are in the lane of the topic, and in that of their instance.
    posted: BTreeMap<String, [Posted; 2]>,
    next: usize,
}

impl Producer {
    /// Signs some more statuses, that happen now and in disorder.
    fn sign_more(&mut self, count: usize) {
        let now = Clock::system().now();
        for number in self.next..self.next + count {
            let at = now - SignedDuration::from_millis(i64::try_from(number * 37 % 100).unwrap());
            let status = if number.is_multiple_of(2) {
                "InProgress"
            } else {
                "Success"
            };
            let (id, instance) = (format!("m-{number}"), format!("i-{}", number / 2));
            let rank = 1 + u8::from(status == "Success");
            let lanes = [
                (TOPIC, history::by_time(at, rank, &instance, &id)),
                (&instance, history::by_status(at, rank, &instance, &id)),
            ];
            let posted = lanes.map(|(lane, key)| Posted {
                id: id.clone(),
                lane: lane.to_owned(),
                key,
                offered_at: now,
                accepted_at: None,
            });
            let body = self.sns.status(&id, &instance, status, at);
            self.posted.insert(id.clone(), posted);
            self.bodies.insert(id, body);
        }
        self.next += count;
    }

    /// Posts what is not accepted yet, eight at a time, until that is done or the service is dead.
    async fn post_all(&mut self, service: &Service) {
        let url = format!("http://127.0.0.1:{}/sns", service.hook);
        let open: Vec<_> = self
            .bodies
            .iter()
            .filter(|(id, _)| self.posted[*id][0].accepted_at.is_none())
            .collect();
        for some in open.chunks(8) {
            let posts = some.iter().map(async |(id, body)| {
                let answer = self.http.post(&url).body((*body).clone()).send().await;
                answer
                    .is_ok_and(|it| it.status().as_u16() == 200)
                    .then(|| (*id).clone())
            });
            let accepted = futures_util::future::join_all(posts).await;
            if accepted.iter().all(Option::is_none) {
                return;
            }
            let now = Clock::system().now();
            for id in accepted.into_iter().flatten() {
                for posted in self.posted.get_mut(&id).unwrap() {
                    posted.accepted_at = Some(now);
                }
            }
        }
    }

    fn has_all_accepted(&self) -> bool {
        let mut all = self.posted.values().flatten();
        all.all(|it| it.accepted_at.is_some())
    }

    async fn get(&self, service: &Service, path: &str) -> String {
        let url = format!("http://127.0.0.1:{}{path}", service.admin);
        self.http
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }
}

async fn kill_and_check() {
    let folder = folder();
    let sns = Sns::start().await;
    let settings = folder.path().join("runbell.toml");
    std::fs::write(&settings, settings_text(&sns)).unwrap();
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(20));
    let mut producer = Producer {
        sns,
        http: http.build().unwrap(),
        bodies: BTreeMap::new(),
        posted: BTreeMap::new(),
        next: 0,
    };
    for round in 0..3 {
        for point in POINTS {
            let mut service = Service::start(&settings, point, 2 + round * 3);
            until(&format!("a kill at {point}"), async || {
                producer.sign_more(16);
                producer.post_all(&service).await;
                service.is_dead().then_some(())
            })
            .await;
        }
    }
    let service = Service::start(&settings, "never", 0);
    until("everything to be accepted", async || {
        producer.post_all(&service).await;
        producer.has_all_accepted().then_some(())
    })
    .await;
    until("everything to be delivered", async || {
        let backlog = producer.get(&service, "/api/v1/tally").await;
        let tally: Value = serde_json::from_str(&backlog).unwrap();
        let sinks = tally["sinks"].as_array().unwrap();
        sinks.iter().all(|sink| sink["waiting"] == 0).then_some(())
    })
    .await;
    check_books(&producer, &service).await;
    check_files(&producer, folder.path());
}

async fn check_books(producer: &Producer, service: &Service) {
    let metrics = producer.get(service, "/metrics").await;
    assert!(
        metrics.contains("runbell_lanes_rescued_total 0"),
        "{metrics}"
    );
    let tally: Value = serde_json::from_str(&producer.get(service, "/api/v1/tally").await).unwrap();
    for sink in tally["sinks"].as_array().unwrap() {
        let count = |key: &str| usize::try_from(sink[key].as_u64().unwrap()).unwrap();
        assert_eq!(count("owed"), producer.bodies.len(), "{sink}");
        assert_eq!(count("sent") + count("redundant"), count("owed"), "{sink}");
        assert_eq!(
            count("dead") + count("dropped") + count("muted"),
            0,
            "{sink}"
        );
    }
}

/// Both files have everything once, in the order of its lane or marked: a file sink finds what it has
/// written already, so that not even a kill excuses a repeat.
fn check_files(producer: &Producer, folder: &Path) {
    for (number, name) in ["topic.jsonl", "instance.jsonl"].into_iter().enumerate() {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text.ends_with('\n'), "{name} is torn");
        let records = text.lines().map(|line| {
            let line = serde_json::from_str(line).unwrap();
            Record::read(name, "runbell", &line, None)
        });
        let posted = producer.posted.values().map(|it| it[number].clone());
        let history = History {
            posted: posted.collect(),
            records: records.collect(),
            ..History::default()
        };
        let complaint = history::check(&history).complaint();
        assert!(complaint.is_empty(), "{name}: {complaint}");
    }
}

fn settings_text(sns: &Sns) -> String {
    format!(
        "[server]\nlisten = '127.0.0.1:0'\ngap_hold = '0s'\n[admin]\nlisten = '127.0.0.1:0'\n\
         [store]\nurl = 'sqlite:runbell.db'\n\
         [[topic]]\narn = '{TOPIC}'\nendpoint = '{}'\n\
         [sink.topic]\ntype = 'file'\npath = 'topic.jsonl'\n\
         [sink.instance]\ntype = 'file'\npath = 'instance.jsonl'\n\
         [[route]]\nname = 'topic'\nto = ['topic']\norder = 'topic'\nhold = '150ms'\nredundant = 'send'\n\
         [[route]]\nname = 'instance'\nto = ['instance']\norder = 'instance'\nhold = '150ms'\nredundant = 'send'\n",
        sns.base
    )
}
