//! Several replicas as real processes on one PostgreSQL, under load, while everything around them
//! breaks: they are killed, paused for longer than their leases live, cut off from the database, and
//! the database crashes. Whatever was answered with 200 reaches the sink, in order or marked.
//!
//! `make chaos` does the same for minutes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path as UrlPath, State};
use jiff::{SignedDuration, Timestamp};
use runbell::clock::Clock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::app::{until, until_within};
use crate::harness::postgres::Server;
use crate::harness::sns::{Sns, TOPIC};
use crate::harness::store::folder;

/// How long anything may take on a machine that is busy with other tests as well.
const LONG: Duration = Duration::from_mins(3);

/// How long one post may take before the next replica is asked, as a load balancer does.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a sink got: the route, and the lines in the order in which they came.
type Got = Arc<Mutex<Vec<(String, Value)>>>;

/// A service that notes all it gets, and takes a moment for it.
async fn note(State(got): State<Got>, UrlPath(route): UrlPath<String>, body: String) {
    got.lock()
        .unwrap()
        .push((route, serde_json::from_str(&body).unwrap()));
    // So that whoever is killed is killed in the middle of something.
    let _ = tokio::time::timeout(Duration::from_millis(3), std::future::pending::<()>()).await;
}

/// A way to the database that can be cut.
struct Cuttable {
    port: u16,
    is_cut: Arc<AtomicBool>,
    cut: Arc<Mutex<CancellationToken>>,
    _tasks: JoinSet<()>,
}

impl Cuttable {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let is_cut = Arc::new(AtomicBool::default());
        let cut = Arc::new(Mutex::new(CancellationToken::new()));
        let mut tasks = JoinSet::new();
        let (shut, token) = (Arc::clone(&is_cut), Arc::clone(&cut));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                if shut.load(Ordering::Relaxed) {
                    continue;
                }
                let ends = token.lock().unwrap().clone();
                connections.spawn(async move {
                    let far = TcpStream::connect(("127.0.0.1", port)).await;
                    let Ok(mut far) = far else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = ends.cancelled() => {}
                    }
                });
            }
        });
        Self {
            port: own,
            is_cut,
            cut,
            _tasks: tasks,
        }
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
        let mut token = self.cut.lock().unwrap();
        token.cancel();
        *token = CancellationToken::new();
    }

    fn mend(&self) {
        self.is_cut.store(false, Ordering::Relaxed);
    }
}

/// A replica: its settings, and the process while it runs.
struct Replica {
    folder: tempfile::TempDir,
    hook: u16,
    admin: u16,
    process: Option<Child>,
}

impl Replica {
    fn new(name: &str, database: &str, sns: &Sns, sink: &str) -> Self {
        let folder = folder();
        let (hook, admin) = (free_port(), free_port());
        let http = "http = { allow_private = true, timeout = '5s' }";
        let text = format!(
            "[server]\nlisten = '127.0.0.1:{hook}'\nreplica = '{name}'\ngap_hold = '0s'\nleave_after = '1s'\n\
             [admin]\nlisten = '127.0.0.1:{admin}'\nsocket = 'off'\n\
             [store]\nurl = '{database}'\n[[topic]]\narn = '{TOPIC}'\nendpoint = '{}'\n\
             [sink.topic]\ntype = 'webhook'\nurl = {{ env = 'TOPIC_URL' }}\n{http}\n\
             [sink.instance]\ntype = 'webhook'\nurl = {{ env = 'INSTANCE_URL' }}\n{http}\n\
             [[route]]\nname = 'topic'\nto = ['topic']\norder = 'topic'\nhold = '1s'\nredundant = 'send'\n\
             [[route]]\nname = 'instance'\nto = ['instance']\norder = 'instance'\nhold = '1s'\nredundant = 'send'\n",
            sns.base
        );
        std::fs::write(folder.path().join("runbell.toml"), text).unwrap();
        std::fs::write(folder.path().join("sink"), sink).unwrap();
        Self {
            folder,
            hook,
            admin,
            process: None,
        }
    }

    async fn start(&mut self, http: &reqwest::Client) {
        let log = self.path("log");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log);
        let sink = std::fs::read_to_string(self.path("sink")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_runbell"))
            .args(["serve", "--config"])
            .arg(self.path("runbell.toml"))
            .env("TOPIC_URL", format!("{sink}/topic"))
            .env("INSTANCE_URL", format!("{sink}/instance"))
            .stderr(log.unwrap())
            .stdout(Stdio::null())
            .spawn();
        self.process = Some(process.unwrap());
        until_within(LONG, "a replica to start", async || {
            self.admin(http, "/-/healthy").await.map(drop)
        })
        .await;
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.folder.path()).join(name)
    }

    async fn admin(&self, http: &reqwest::Client, path: &str) -> Option<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        let answer = http.get(url).send().await.ok()?;
        answer.error_for_status().ok()?.text().await.ok()
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.as_ref().unwrap().id();
        let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.take().unwrap().wait().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(60)..] {
                #[expect(clippy::print_stderr, reason = "it says why the test failed")]
                {
                    eprintln!("{line}");
                }
            }
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What SNS does: posts, and posts again until a replica answers with 200.
struct Publisher {
    sns: Sns,
    http: reqwest::Client,
    hooks: Vec<u16>,
    posted: AtomicUsize,
    accepted: AtomicUsize,
    stop: CancellationToken,
}

impl Publisher {
    /// Posts one status after the other, a few at the same time.
    async fn publish(&self) {
        let publishers = (0..4).map(async |_| {
            while !self.stop.is_cancelled() {
                let number = self.posted.fetch_add(1, Ordering::Relaxed);
                let late = SignedDuration::from_millis(i64::try_from(number * 37 % 200).unwrap());
                let happened = Clock::system().now() - late;
                let status = ["InProgress", "Success"][number % 2];
                let instance = format!("i-{}", number / 2 % 40);
                let body = self
                    .sns
                    .status(&format!("m-{number}"), &instance, status, happened);
                self.post(number, body).await;
                self.accepted.fetch_add(1, Ordering::Relaxed);
            }
        });
        futures_util::future::join_all(publishers).await;
    }

    async fn post(&self, number: usize, body: String) {
        for hook in self.hooks.iter().cycle().skip(number % self.hooks.len()) {
            let url = format!("http://127.0.0.1:{hook}/sns");
            let post = self.http.post(url).body(body.clone()).send();
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, post).await
                && answer.status() == 200
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn more(&self, count: usize) {
        let goal = self.accepted.load(Ordering::Relaxed) + count;
        until_within(LONG, &format!("{count} more to be accepted"), async || {
            (self.accepted.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }
}

/// What runs, and what it runs on.
struct Scene {
    server: Server,
    way: Cuttable,
    http: reqwest::Client,
    replicas: Vec<Replica>,
    got: Got,
    publisher: Arc<Publisher>,
    _tasks: JoinSet<()>,
}

impl Scene {
    async fn start(count: usize) -> Self {
        let port = free_port();
        let server = Server::start(Some(port), true);
        server.run("public", "CREATE SCHEMA runbell").await;
        let way = Cuttable::to(port).await;
        let sns = Sns::start().await;
        let got = Got::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sink = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new()
            .route("/{route}", axum::routing::post(note))
            .with_state(Arc::clone(&got));
        let mut tasks = JoinSet::new();
        tasks.spawn(async { axum::serve(listener, router).await.unwrap() });
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let direct = server.url("runbell");
        let cuttable = direct.replace(&format!(":{port}/"), &format!(":{}/", way.port));
        let mut replicas = Vec::new();
        for number in 0..count {
            let database = if number == 0 { &cuttable } else { &direct };
            let mut replica = Replica::new(&format!("r{number}"), database, &sns, &sink);
            replica.start(&http).await;
            replicas.push(replica);
        }
        let publisher = Arc::new(Publisher {
            sns,
            http: http.clone(),
            hooks: replicas.iter().map(|it| it.hook).collect(),
            posted: AtomicUsize::default(),
            accepted: AtomicUsize::default(),
            stop: CancellationToken::new(),
        });
        Self {
            server,
            way,
            http,
            replicas,
            got,
            publisher,
            _tasks: tasks,
        }
    }

    /// Breaks one thing after the other, and mends it.
    async fn break_everything(&mut self, round: usize) {
        let publisher = Arc::clone(&self.publisher);
        let count = self.replicas.len();
        publisher.more(200).await;
        let victim = &mut self.replicas[round % count];
        victim.kill();
        publisher.more(200).await;
        victim.start(&self.http).await;
        let paused = (round + 1) % count;
        self.replicas[paused].signal(Signal::STOP);
        self.is_given_up(paused).await;
        self.replicas[paused].signal(Signal::CONT);
        publisher.more(200).await;
        self.server.crash();
        publisher.more(200).await;
        self.way.cut();
        publisher.more(200).await;
        self.way.mend();
    }

    /// Until the others have given a replica up and freed what it held.
    async fn is_given_up(&self, number: usize) {
        let silent = format!(
            "SELECT 1 FROM replica WHERE name = 'r{number}'
             AND beat_at < (extract(epoch FROM clock_timestamp()) - 10) * 1000000000
             AND NOT EXISTS (SELECT 1 FROM lane WHERE owner = no)
             AND no = (SELECT max(no) FROM replica WHERE name = 'r{number}')"
        );
        until_within(LONG, "its lanes to be freed", async || {
            let found = self.server.query("runbell", &silent).await;
            (!found.is_empty()).then_some(())
        })
        .await;
    }

    /// Until nothing waits any more; the books. One lane, one call after the other, takes its time.
    async fn is_delivered(&self) -> Value {
        until_within(
            Duration::from_mins(3),
            "everything to be delivered",
            async || {
                let tally = self.replicas[0].admin(&self.http, "/api/v1/tally").await?;
                let tally: Value = serde_json::from_str(&tally).unwrap();
                let mut sinks = tally["sinks"].as_array().unwrap().iter();
                sinks.all(|sink| sink["waiting"] == 0).then_some(tally)
            },
        )
        .await
    }
}

async fn chaos(count: usize, rounds: usize) {
    let mut scene = Scene::start(count).await;
    let publisher = Arc::clone(&scene.publisher);
    tokio::join!(publisher.publish(), async {
        for round in 0..rounds {
            scene.break_everything(round).await;
        }
        publisher.more(200).await;
        publisher.stop.cancel();
    });
    let tally = scene.is_delivered().await;
    let accepted = publisher.accepted.load(Ordering::Relaxed);
    for sink in tally["sinks"].as_array().unwrap() {
        assert_eq!(sink["owed"], accepted, "{sink}");
        assert_eq!(sink["sent"], accepted, "{sink}");
    }
    for replica in &scene.replicas {
        let metrics = replica.admin(&scene.http, "/metrics").await.unwrap();
        assert!(
            metrics.contains("runbell_lanes_rescued_total 0"),
            "{metrics}"
        );
    }
    let got = scene.got.lock().unwrap();
    let repeats = ["topic", "instance"].map(|route| check(&got, route, accepted));
    #[expect(
        clippy::print_stderr,
        reason = "a figure for who asks with --nocapture"
    )]
    {
        eprintln!("{accepted} accepted; told again, by route: {repeats:?}");
    }
    // What can be under way when one ends: a call for each lane, and what it had leased behind it.
    let breaks = rounds * (3 + count);
    assert!(repeats.iter().sum::<usize>() <= breaks * 20, "{repeats:?}");
}

/// Everything came, in the order of its lane or marked; how much came more than once.
fn check(got: &[(String, Value)], route: &str, accepted: usize) -> usize {
    let lines: Vec<&Value> = got
        .iter()
        .filter(|it| it.0 == route)
        .map(|it| &it.1)
        .collect();
    let mut times: HashMap<&str, (usize, bool)> = HashMap::new();
    let has = |line: &Value, mark: &str| line["marks"].as_array().unwrap().contains(&mark.into());
    for line in &lines {
        let told = times
            .entry(line["message_id"].as_str().unwrap())
            .or_default();
        told.0 += 1;
        told.1 |= has(line, "possible-repeat");
    }
    assert_eq!(times.len(), accepted, "{route}: something is missing");
    let mut high: BTreeMap<String, (i64, Timestamp)> = BTreeMap::new();
    for line in &lines {
        let (count, is_marked) = times[line["message_id"].as_str().unwrap()];
        assert!(
            count == 1 || is_marked,
            "{route}: told twice and not marked: {line}"
        );
        // In lanes of one instance the status machine leads.
        let rank = i64::from(route == "instance" && line["status"] != "InProgress");
        let at = (rank, line["sort_time"].as_str().unwrap().parse().unwrap());
        let lane = if route == "topic" {
            "topic".to_owned()
        } else {
            line["instance"].to_string()
        };
        let high = high.entry(lane).or_insert(at);
        assert!(
            is_marked || has(line, "late") || at >= *high,
            "{route}: {line} after {high:?}"
        );
        *high = at.max(*high);
    }
    times.values().map(|(count, _)| count - 1).sum()
}

/// A load balancer before the replicas, that asks each whether it is ready.
struct Balancer {
    port: u16,
    process: Child,
}

impl Balancer {
    fn start(folder: &Path, replicas: &[Replica]) -> Self {
        let port = free_port();
        let servers = replicas.iter().enumerate().map(|(number, it)| {
            format!(
                "  server r{number} 127.0.0.1:{} check port {} inter 200ms fall 2 rise 2\n",
                it.hook, it.admin
            )
        });
        let text = format!(
            "defaults\n  mode http\n  timeout connect 2s\n  timeout client 75s\n  timeout server 15s\n\
             frontend sns\n  bind 127.0.0.1:{port}\n  default_backend replicas\n\
             backend replicas\n  balance roundrobin\n  option httpchk GET /-/ready\n{}",
            servers.collect::<String>()
        );
        let settings = folder.join("haproxy.cfg");
        std::fs::write(&settings, text).unwrap();
        let mut command = Command::new("/usr/sbin/haproxy");
        command
            .arg("-f")
            .arg(settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().expect("HAProxy is not installed");
        Self { port, process }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// 500 a second through a real load balancer, each posted once, while one replica after the other is
/// stopped in order and started again.
#[tokio::test]
#[ignore = "it needs HAProxy; `make interop ARGS=replicas`"]
async fn a_rolling_restart_answers_nobody_with_anything_but_200() {
    const PACE: Duration = Duration::from_millis(2);
    const ROUNDS: usize = 3;
    const SIGNED: usize = 30_000;
    let mut scene = Scene::start(2).await;
    let folder = folder();
    let balancer = Balancer::start(folder.path(), &scene.replicas);
    let now = Clock::system().now();
    let mut signed = Vec::with_capacity(SIGNED);
    for number in 0..SIGNED {
        let status = ["InProgress", "Success"][number % 2];
        let (id, instance) = (format!("m-{number}"), format!("i-{}", number / 2));
        signed.push(scene.publisher.sns.status(&id, &instance, status, now));
        // The way to the database runs in this thread as well.
        tokio::task::yield_now().await;
    }
    let url = format!("http://127.0.0.1:{}/sns", balancer.port);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    until("the balancer to find somebody", async || {
        let answer = http.post(&url).body("{}").send().await.ok()?;
        (answer.status() != 503).then_some(())
    })
    .await;
    let stop = CancellationToken::new();
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let publish = async {
        let mut pace = tokio::time::interval(PACE);
        let mut posts = JoinSet::new();
        for body in signed {
            pace.tick().await;
            if stop.is_cancelled() {
                break;
            }
            let post = http.post(&url).body(body);
            posts.spawn(async move {
                match post.send().await {
                    Ok(answer) => answer.status().to_string(),
                    Err(error) => error.to_string(),
                }
            });
        }
        for answer in posts.join_all().await {
            *answers.entry(answer).or_default() += 1;
        }
    };
    let restart = async {
        for round in 0..ROUNDS * 2 {
            let replica = &mut scene.replicas[round % 2];
            replica.signal(Signal::TERM);
            let mut process = replica.process.take().unwrap();
            let ended = tokio::task::spawn_blocking(move || process.wait().unwrap()).await;
            assert!(ended.unwrap().success(), "it did not stop in order");
            replica.start(&scene.http).await;
            // As whoever rolls out waits for the balancer to have it back.
            let _ =
                tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>()).await;
        }
        stop.cancel();
    };
    tokio::join!(publish, restart);
    #[expect(
        clippy::print_stderr,
        reason = "a figure for who asks with --nocapture"
    )]
    {
        eprintln!("{} restarts, answers: {answers:?}", ROUNDS * 2);
    }
    let accepted: usize = answers.values().sum();
    assert_eq!(
        answers.keys().collect::<Vec<_>>(),
        ["200 OK"],
        "{answers:?}"
    );
    assert!(accepted > 1000, "{accepted}");
    let tally = scene.is_delivered().await;
    for sink in tally["sinks"].as_array().unwrap() {
        assert_eq!(sink["owed"], accepted, "{sink}");
        assert_eq!(sink["sent"], accepted, "{sink}");
    }
    let got = scene.got.lock().unwrap();
    assert_eq!(
        check(&got, "topic", accepted) + check(&got, "instance", accepted),
        0
    );
}

#[tokio::test]
async fn two_replicas_lose_nothing_whatever_breaks() {
    chaos(2, 1).await;
}

#[tokio::test]
async fn three_replicas_lose_nothing_whatever_breaks() {
    chaos(3, 1).await;
}

#[tokio::test]
#[ignore = "it takes minutes; `make chaos`"]
async fn three_replicas_lose_nothing_for_minutes() {
    chaos(3, 12).await;
}
