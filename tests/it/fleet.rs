//! A command on ten thousand instances, told by digests to services that count what they are sent and
//! refuse what is too much or too large for them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use runbell::clock::{Clock, later, since};
use runbell::config::{Config, Surroundings};
use runbell::deliver::{self, Worker};
use runbell::event::Event;
use runbell::metrics::Metrics;
use runbell::route::Routes;
use runbell::sink::Sink;
use runbell::sink::http::Paces;
use runbell::store::{Append, Store};
use runbell::wake::Wake;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::store::TestStore;
use crate::store::{at, read};

const INSTANCES: i64 = 10_000;
/// Every so many fails.
const FAILING: i64 = 500;
/// How many start and end in a second.
const A_SECOND: i64 = 40;

/// A service's rule: so many messages in so long.
struct Quota {
    messages: usize,
    within: Duration,
}

/// What a service was sent, and when.
pub(crate) struct Inbox {
    clock: Clock,
    quota: Quota,
    pub(crate) taken: Mutex<Vec<(Timestamp, String)>>,
    edits: Mutex<usize>,
    refused: Mutex<Vec<String>>,
}

impl Inbox {
    pub(crate) fn new(clock: &Clock, messages: usize, seconds: u64) -> Arc<Self> {
        Arc::new(Self {
            clock: clock.clone(),
            quota: Quota {
                messages,
                within: Duration::from_secs(seconds),
            },
            taken: Mutex::default(),
            edits: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// Takes a message, unless there were too many of late.
    fn take(&self, text: &str, is_edit: bool) -> bool {
        let now = self.clock.now();
        let mut taken = self.taken.lock().unwrap();
        let recent = taken.iter().rev();
        let recent = recent.take_while(|(at, _)| since(*at, now) < self.quota.within);
        if recent.count() >= self.quota.messages {
            self.refused.lock().unwrap().push("too many".to_owned());
            return false;
        }
        *self.edits.lock().unwrap() += usize::from(is_edit);
        let kind = if is_edit { "edit " } else { "" };
        taken.push((now, format!("{kind}{text}")));
        true
    }

    /// When somebody could read of this first; an edit is not read by anybody who is not looking.
    fn shown(&self, part: &str) -> Option<Timestamp> {
        let taken = self.taken.lock().unwrap();
        let shown = taken
            .iter()
            .find(|(_, text)| !text.starts_with("edit ") && text.contains(part));
        shown.map(|(at, _)| *at)
    }
}

/// A chat service with Slack's, Discord's rules of size, by path.
async fn chat(inbox: Arc<Inbox>, tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let answer = async move |method: Method, uri: Uri, body: Bytes| -> Response {
        let value: Value = serde_json::from_slice(&body).unwrap();
        let text = value.to_string();
        let is_slack = !uri.path().starts_with("/discord");
        let is_edit = method == Method::PATCH || uri.path() == "/chat.update";
        let too_large = if is_slack {
            text.chars().count() > 13_200
        } else {
            let embed = &value["embeds"][0];
            let description = embed["description"].as_str().unwrap_or_default();
            let fields = embed["fields"].as_array().into_iter().flatten();
            let mut longest = fields.map(|it| it["value"].as_str().unwrap().chars().count());
            description.chars().count() > 4096 || longest.any(|chars| chars > 1024)
        };
        if too_large {
            inbox.refused.lock().unwrap().push(text);
            return (StatusCode::BAD_REQUEST, "too large").into_response();
        }
        if !inbox.take(&text, is_edit) {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "30")]).into_response();
        }
        match uri.path() {
            "/hook" => "ok".into_response(),
            path if path.starts_with("/chat.") => {
                json!({ "ok": true, "channel": "C1", "ts": "1.5" })
                    .to_string()
                    .into_response()
            }
            _ => json!({ "id": "99" }).to_string().into_response(),
        }
    };
    let router = axum::Router::new().fallback(answer);
    tasks.spawn(async { axum::serve(listener, router).await.unwrap() });
    base
}

/// A mail server that takes no more than its quota and nothing over ten megabytes.
pub(crate) async fn post_office(inbox: Arc<Inbox>, tasks: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        let mut clerks = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let inbox = Arc::clone(&inbox);
            clerks.spawn(async move {
                // A client that goes away is no failure of the test.
                let _ = clerk(stream, &inbox).await;
            });
        }
    });
    port
}

async fn clerk(stream: TcpStream, inbox: &Inbox) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"220 test ESMTP\r\n").await?;
    while let Some(line) = lines.next_line().await? {
        let answer = match line.split(' ').next().unwrap_or_default() {
            "EHLO" => "250-test\r\n250 SIZE 10000000",
            "DATA" => {
                write.write_all(b"354 go on\r\n").await?;
                let mut mail = String::new();
                while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                    // The text part says all, and breaks its lines softly.
                    match line.strip_suffix('=') {
                        Some(line) => mail.push_str(line),
                        None => mail = mail + &line + "\n",
                    }
                }
                assert!(mail.len() < 10_000_000);
                if inbox.take(&mail, false) {
                    "250 2.0.0 queued"
                } else {
                    "451 4.7.1 slow down"
                }
            }
            "QUIT" => "221 bye",
            _ => "250 2.1.0 ok",
        };
        write.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
    Ok(())
}

/// What happens to the fleet, second by second.
fn story() -> BTreeMap<i64, Vec<Event>> {
    let mut told: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
    let mut tell = |second: i64, instance: Option<i64>, status: &str| {
        let mut body = json!({
            "commandId": "0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11",
            "documentName": "AWS-RunPatchBaseline", "status": status,
            "eventTime": at(second).to_string(),
        });
        match instance {
            Some(number) => body["instanceId"] = name(number).into(),
            None => body["instanceIds"] = json!([]),
        }
        let id = format!("{instance:?}-{status}");
        let event = read(&id, &body.to_string(), second);
        told.entry(second).or_default().push(event);
    };
    tell(0, None, "InProgress");
    for number in 0..INSTANCES {
        let second = number / A_SECOND;
        tell(second, Some(number), "InProgress");
        tell(second + 60, Some(number), how_it_ends(number));
    }
    tell(INSTANCES / A_SECOND + 61, None, "Failed");
    told
}

fn name(number: i64) -> String {
    format!("i-{number:017x}")
}

fn how_it_ends(number: i64) -> &'static str {
    match number % FAILING {
        123 if number < 1500 => "TimedOut",
        123 => "Failed",
        _ => "Success",
    }
}

/// Lets something come to its end, and the time pass that it waits for.
async fn drive<T>(clock: &Clock, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => {
                if clock.is_awaited() {
                    clock.advance(Duration::from_millis(100));
                }
            }
        }
    }
}

struct Told {
    name: &'static str,
    inbox: Arc<Inbox>,
    sink: Arc<dyn Sink>,
    worker: Worker,
}

impl Told {
    /// Nothing is lost, nothing was too much, and every failure was shown soon.
    #[expect(clippy::print_stdout, reason = "the figures are worth reading")]
    async fn look(&self, store: &dyn Store, end: i64) {
        let tallies = store.tally().await.unwrap();
        let owed = u64::try_from(2 * INSTANCES + 2).unwrap();
        let tally = tallies
            .iter()
            .find(|tally| tally.sink == self.name)
            .unwrap();
        assert_eq!((tally.owed, tally.sent, tally.waiting), (owed, owed, 0));
        assert_eq!(*self.inbox.refused.lock().unwrap(), Vec::<String>::new());
        let failing = (0..INSTANCES).filter(|number| how_it_ends(*number) != "Success");
        let delays = failing.map(|number| {
            let happened = at(number / A_SECOND + 60);
            let shown = self.inbox.shown(&name(number));
            let shown = shown.unwrap_or_else(|| panic!("{}: {number} is not shown", self.name));
            since(happened, shown)
        });
        let slowest = delays.max().unwrap();
        let taken = self.inbox.taken.lock().unwrap();
        let edits = *self.inbox.edits.lock().unwrap();
        let messages = taken.len() - edits;
        println!(
            "{}: {messages} messages, {edits} edits, every failure shown within {slowest:?}",
            self.name
        );
        assert!(
            slowest <= Duration::from_secs(15),
            "{}: {slowest:?}",
            self.name
        );
        assert!(messages <= 30, "{}: {messages}", self.name);
        let closing = "9,980 succeeded, 17 failed, 3 timed out";
        assert!(taken.last().unwrap().1.contains(closing), "{}", self.name);
        assert!(taken.last().unwrap().0 <= later(at(end), Duration::from_secs(15)));
    }
}

#[tokio::test]
async fn ten_thousand_instances_are_told_in_few_messages_and_every_failure_soon() {
    let clock = Clock::by_hand(at(0));
    let store = TestStore::open_at(clock.clone());
    let mut tasks = JoinSet::new();
    // Slack takes a message a second, with some patience; Discord five in two seconds.
    let inboxes = [
        ("slack", Inbox::new(&clock, 4, 3)),
        ("bot", Inbox::new(&clock, 4, 3)),
        ("discord", Inbox::new(&clock, 5, 2)),
        ("mail", Inbox::new(&clock, 10, 60)),
    ];
    let slack = chat(Arc::clone(&inboxes[0].1), &mut tasks).await;
    let bot = chat(Arc::clone(&inboxes[1].1), &mut tasks).await;
    let discord = chat(Arc::clone(&inboxes[2].1), &mut tasks).await;
    let mail = post_office(Arc::clone(&inboxes[3].1), &mut tasks).await;
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\n[store]\nurl = 'sqlite:x.db'\n\
         [[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'\n\
         [[route]]\nname = 'r'\nto = ['slack', 'bot', 'discord', 'mail']\ndigest = {{}}\n\
         [sink.slack]\ntype = 'slack'\nurl = {{ env = 'SLACK' }}\nhttp = {{ allow_private = true }}\n\
         [sink.bot]\ntype = 'slack'\ntoken = {{ env = 'TOKEN' }}\nchannel = 'ops'\napi = '{bot}'\n\
         http = {{ allow_private = true }}\n\
         [sink.discord]\ntype = 'discord'\nurl = {{ env = 'DISCORD' }}\n\
         http = {{ allow_private = true }}\n\
         [sink.mail]\ntype = 'email'\nsmtp = 'smtp+plain://127.0.0.1:{mail}'\n\
         from = 'runbell@example.com'\nto = ['oncall@example.com']\n"
    );
    let variable = |name: &str| {
        Some(match name {
            "SLACK" => format!("{slack}/hook"),
            "DISCORD" => format!("{discord}/discord/1/x"),
            _ => "xoxb-1".to_owned(),
        })
    };
    let around = Surroundings {
        folder: std::path::Path::new("/tmp"),
        variable: &variable,
    };
    let parsed = Config::parse(&text, std::path::Path::new("runbell.toml"), &around);
    let (config, _) = parsed.unwrap_or_else(|faults| panic!("{faults}"));
    let routes = Arc::new(ArcSwap::from_pointee(Routes::new(config.routes)));
    let around = deliver::Surroundings {
        lanes: store.handle(),
        routes: Arc::clone(&routes),
        clock: clock.clone(),
        metrics: Arc::new(Metrics::new()),
    };
    let mut paces = Paces::default();
    let told = inboxes.map(|(name, inbox)| {
        let configured = config.sinks.iter().find(|sink| sink.name == name).unwrap();
        let sink = configured.open(&clock, &mut paces);
        let worker = Worker::new(name, Arc::clone(&sink), Wake::default(), around.clone());
        Told {
            name,
            inbox,
            sink,
            worker,
        }
    });

    let mut story = story();
    let end = *story.last_key_value().unwrap().0;
    let handle = store.handle();
    for second in 0..=end + 30 {
        clock.set(clock.now().max(at(second)));
        let arriving = story.remove(&second).unwrap_or_default().into_iter();
        let appended = arriving.map(|event| {
            let owed = routes.load().owed(&event, None);
            handle.append(Append::new(event, owed, at(second)))
        });
        let appended: Vec<_> = futures_util::stream::iter(appended)
            .buffer_unordered(1000)
            .collect()
            .await;
        assert!(appended.iter().all(Result::is_ok));
        for it in &told {
            while it.sink.free_in().is_zero() {
                if drive(&clock, it.worker.step()).await.unwrap().lanes == 0 {
                    break;
                }
            }
        }
    }

    for it in &told {
        it.look(&*handle, end).await;
    }
    assert_eq!(handle.sweep().await.unwrap(), 0);
}
