//! What it costs to bring a notice to a service, beside the bare client. Run by `make bench`; it measures
//! and judges nothing.
//!
//! The receiving servers run as a process of their own on the loopback and answer at once, so what is
//! measured here is the sender alone: building the notice's form, signing, sending, reading the
//! answer. Bare client and sink take turns in one run.

#![expect(clippy::print_stdout, reason = "its output is the result")]
#![expect(
    clippy::disallowed_methods,
    reason = "it measures time, and is no part of what the bans keep in order"
)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use runbell::clock::Clock;
use runbell::config::{Config, Surroundings};
use runbell::delivery::Marks;
use runbell::event::{EnvelopeKind, Event, Source};
use runbell::render::{self, Notice};
use runbell::retry::Verdict;
use runbell::sink::http::Paces;
use runbell::sink::{Permit, Sink};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const HTTP_AT_ONCE: usize = 4;
const MAILS_AT_ONCE: usize = 8;

#[derive(Parser)]
struct Args {
    /// How many notices are sent each way in each round
    #[arg(long, default_value_t = 20_000)]
    notices: usize,
    /// How many rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// This process receives
    #[arg(long, hide = true)]
    receive: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.receive {
        return receive().await;
    }
    let receiver = Receiver::start()?;
    let sinks = sinks(&receiver)?;
    let [webhook, email] = sinks.as_slice() else {
        anyhow::bail!("two sinks are configured");
    };
    let notices: Vec<Notice> = (0..args.notices).map(notice).collect();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut rows: [Vec<Measured>; 3] = Default::default();
    for round in 0..=args.rounds {
        let [bare, own, mail] = &mut rows;
        let url = format!("http://127.0.0.1:{}/hook", receiver.http);
        let measured = [
            measure(&notices, HTTP_AT_ONCE, async |notice| {
                let body = serde_json::json!({ "id": notice.id, "message": notice.event.body });
                let answer = client.post(&url).json(&body).send().await?;
                ensure!(answer.status().is_success(), "{}", answer.status());
                answer.bytes().await?;
                Ok(())
            })
            .await?,
            measure(&notices, HTTP_AT_ONCE, async |notice| {
                send(webhook, notice).await
            })
            .await?,
            measure(&notices, MAILS_AT_ONCE, async |notice| {
                send(email, notice).await
            })
            .await?,
        ];
        // The first opens connections and caches.
        if round > 0 {
            for (rows, measured) in [bare, own, mail].into_iter().zip(measured) {
                rows.push(measured);
            }
        }
    }
    println!(
        "{} notices, {} rounds; CPU of the sender alone\n",
        args.notices, args.rounds
    );
    println!("{:<44} {:>8} {:>6} {:>9}", "", "CPU µs", "×", "per s");
    let base = median(rows[0].iter().map(|it| it.cpu));
    for (name, rows) in [
        format!("bare client, {HTTP_AT_ONCE} at once"),
        format!("webhook sink, signed, {HTTP_AT_ONCE} at once"),
        format!("e-mail sink, {MAILS_AT_ONCE} connections"),
    ]
    .iter()
    .zip(&rows)
    {
        let cpu = median(rows.iter().map(|it| it.cpu));
        let per_second = median(rows.iter().map(|it| it.per_second));
        println!(
            "{name:<44} {cpu:>8.1} {:>6.2} {per_second:>9.0}",
            cpu / base
        );
    }
    Ok(())
}

async fn send(sink: &Arc<dyn Sink>, notice: &Notice) -> anyhow::Result<()> {
    let verdicts = sink
        .send(std::slice::from_ref(notice), &Permit::always())
        .await;
    ensure!(
        matches!(verdicts.as_slice(), [Verdict::Sent { .. }]),
        "{verdicts:?}"
    );
    Ok(())
}

struct Measured {
    /// Microseconds for each.
    cpu: f64,
    per_second: f64,
}

async fn measure(
    notices: &[Notice],
    at_once: usize,
    send: impl AsyncFn(&Notice) -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let (before, begun) = (used()?, Instant::now());
    let mut under_way = FuturesUnordered::new();
    for notice in notices {
        if under_way.len() == at_once {
            under_way.next().await.transpose()?;
        }
        under_way.push(send(notice));
    }
    while under_way.next().await.transpose()?.is_some() {}
    let count = f64::from(u32::try_from(notices.len())?);
    Ok(Measured {
        cpu: used()?.saturating_sub(before).as_secs_f64() * 1e6 / count,
        per_second: count / begun.elapsed().as_secs_f64(),
    })
}

/// CPU that this process has used.
fn used() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name stands in parentheses and may hold anything; user and system time are the 14th and
    // 15th words.
    let (_, rest) = stat.rsplit_once(')').context("no such process")?;
    let words = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = words
        .map(|word| word.parse::<u64>().unwrap_or_default())
        .sum();
    let micros = ticks * 1_000_000 / rustix::param::clock_ticks_per_second();
    Ok(Duration::from_micros(micros))
}

fn sinks(receiver: &Receiver) -> anyhow::Result<Vec<Arc<dyn Sink>>> {
    let text = format!(
        r#"
[server]
listen = "127.0.0.1:0"
[store]
url = "sqlite:none.db"
[[topic]]
arn = "arn:aws:sns:eu-central-1:123456789012:run-command"
[[route]]
name = "all"
to = ["a-webhook", "b-email"]
[sink.a-webhook]
type = "webhook"
url = {{ env = "URL" }}
secrets = [{{ env = "SECRET" }}]
http = {{ allow_private = true }}
[sink.b-email]
type = "email"
smtp = "smtp+plain://127.0.0.1:{}"
from = "runbell@example.com"
to = ["oncall@example.com"]
connections = {MAILS_AT_ONCE}
"#,
        receiver.smtp
    );
    let variable = |name: &str| {
        Some(match name {
            "URL" => format!("http://127.0.0.1:{}/hook", receiver.http),
            _ => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
        })
    };
    let around = Surroundings {
        folder: Path::new("/"),
        variable: &variable,
    };
    let parsed = Config::parse(&text, Path::new("bench.toml"), &around);
    let (config, _) = parsed.map_err(|faults| anyhow::anyhow!("{faults}"))?;
    let mut paces = Paces::default();
    let opened = config.sinks.iter();
    Ok(opened
        .map(|sink| sink.open(&Clock::system(), &mut paces))
        .collect())
}

fn notice(number: usize) -> Notice {
    let now = Timestamp::UNIX_EPOCH;
    let body = format!(
        r#"{{"commandId":"0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11","documentName":"AWS-RunShellScript","instanceId":"i-{number:017x}","requestedDateTime":"1970-01-01T00:00:00.1Z","status":"Failed","detailedStatus":"Failed","eventTime":"1970-01-01T00:00:01.5Z"}}"#
    );
    let event = Event::read(&Source {
        topic: "arn:aws:sns:eu-central-1:123456789012:run-command",
        account: "123456789012",
        region: "eu-central-1",
        message_id: &number.to_string(),
        sent_at: now,
        subject: None,
        body: &body,
        envelope: EnvelopeKind::Notification,
    });
    render::notice("all", "s", event, now, Marks::default())
}

/// The process that receives.
struct Receiver {
    process: Child,
    http: u16,
    smtp: u16,
}

impl Receiver {
    fn start() -> anyhow::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--receive")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().context("no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut port = || -> anyhow::Result<u16> {
            Ok(lines
                .next()
                .context("the receiver did not start")??
                .parse()?)
        };
        Ok(Self {
            http: port()?,
            smtp: port()?,
            process,
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It is ours, and there is nothing that it could lose.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn receive() -> anyhow::Result<()> {
    let http = TcpListener::bind("127.0.0.1:0").await?;
    let smtp = TcpListener::bind("127.0.0.1:0").await?;
    println!(
        "{}\n{}",
        http.local_addr()?.port(),
        smtp.local_addr()?.port()
    );
    let router = axum::Router::new()
        .fallback(async |_: axum::body::Bytes| axum::http::StatusCode::NO_CONTENT);
    tokio::spawn(async { axum::serve(http, router).await });
    loop {
        let (connection, _) = smtp.accept().await?;
        tokio::spawn(mails(connection));
    }
}

/// Takes mails as fast as they come.
async fn mails(connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut stream = tokio::io::BufReader::new(connection);
    stream.write_all(b"220 bench\r\n").await?;
    let mut line = Vec::new();
    let mut is_mail = false;
    while stream.read_until(b'\n', &mut line).await? > 0 {
        let answer: &[u8] = match line.as_slice() {
            b".\r\n" if is_mail => {
                is_mail = false;
                b"250 taken\r\n"
            }
            _ if is_mail => b"",
            b"DATA\r\n" => {
                is_mail = true;
                b"354 go on\r\n"
            }
            b"QUIT\r\n" => b"221 bye\r\n",
            _ => b"250 bench\r\n",
        };
        stream.write_all(answer).await?;
        line.clear();
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
