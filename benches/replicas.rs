//! What the shared store carries, beside the embedded one. Run by `make bench`; it measures and judges
//! nothing.
//!
//! Each replica is a process of its own that appends events as fast as they are kept, 256 at a time,
//! and delivers them at the same time: leases and settles for two sinks, with nothing to send to. So
//! the figures are those of the store alone, without HTTP and signatures. PostgreSQL is a private one
//! on the same machine, with the durability it comes with; its CPU is counted apart.

#![expect(clippy::print_stdout, reason = "its output is the result")]
#![expect(
    clippy::disallowed_methods,
    reason = "it measures time, and is no part of what the bans keep in order"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a benchmark that cannot go on says so at once; it shares the tests' server"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use runbell::app::keeping;
use runbell::clock::Clock;
use runbell::route::Routes;
use runbell::store::{Append, Ending, Lane, Settled, Settlement, Store};

#[path = "intake/notifications.rs"]
mod notifications;
#[path = "../tests/it/harness/postgres.rs"]
mod postgres;
/// What the tests' server needs of their harness.
mod store {
    /// On a disk, since what is durable has its price there, and where anybody may look.
    pub(crate) fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }
}

/// Events that are appended at once by each replica.
const AT_ONCE: usize = 256;
const LARGEST_LEASE: usize = 500;

#[derive(Parser)]
struct Args {
    /// How many events in each part, over all replicas
    #[arg(long, default_value_t = 30_000)]
    events: usize,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// What this process appends, when it is a replica: from, to, and the settings
    #[arg(long, hide = true, num_args = 3)]
    replica: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match args.replica.as_slice() {
        [from, to, settings] => {
            runtime.block_on(replica(from.parse()?, to.parse()?, Path::new(settings)))
        }
        _ => runtime.block_on(measure(args.events)),
    }
}

/// How lanes are made.
#[derive(Clone, Copy)]
enum Order {
    /// Everything of a topic in one lane, the hot row, and every instance in one of its own.
    Topic,
    /// Every instance, and every command.
    Command,
}

impl Order {
    const fn word(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Command => "command",
        }
    }
}

async fn measure(events: usize) -> anyhow::Result<()> {
    println!(
        "{events} events, {AT_ONCE} at once from each replica, two deliveries each, {} processors\n",
        std::thread::available_parallelism()?
    );
    println!(
        "{:<38} {:>9} {:>9} {:>12} {:>12} {:>9}",
        "", "kept/s", "settled/s", "our µs each", "server's µs", "KiB each"
    );
    let server = postgres::Server::start(None, true);
    for order in [Order::Command, Order::Topic] {
        let folder = store::folder();
        let url = format!("sqlite:{}", folder.path().join("runbell.db").display());
        part("SQLite", order, &url, 1, events, None)?;
        println!();
        for replicas in 1..=3 {
            let schema = format!("{}_{replicas}", order.word());
            server
                .run("public", &format!("CREATE SCHEMA {schema}"))
                .await;
            let name = format!("PostgreSQL, replicas: {replicas}");
            let url = server.url(&schema);
            part(&name, order, &url, replicas, events, Some(&server))?;
            let sizes = "SELECT sum(pg_total_relation_size(pg_class.oid))::bigint FROM pg_class
               JOIN pg_namespace ON pg_namespace.oid = relnamespace
               WHERE nspname = current_schema() AND relkind = 'r'";
            let bytes = server.query(&schema, sizes).await;
            let bytes: f64 = bytes.first().context("no size")?.parse()?;
            println!(
                " {:>9.1}",
                bytes / 1024.0 / f64::from(u32::try_from(events)?)
            );
        }
    }
    println!("\nµs each: CPU for each event, from its append until both deliveries are settled.");
    Ok(())
}

fn part(
    name: &str,
    order: Order,
    url: &str,
    replicas: usize,
    events: usize,
    server: Option<&postgres::Server>,
) -> anyhow::Result<()> {
    let folder = store::folder();
    let settings = folder.path().join("runbell.toml");
    std::fs::write(&settings, settings_text(url, order))?;
    let mut running = Vec::new();
    for number in 0..replicas {
        let share = |number: usize| (events * number / replicas).to_string();
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--replica", &share(number), &share(number + 1)])
            .arg(&settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        running.push((child, output));
    }
    for (_, output) in &mut running {
        said(output, "ready")?;
    }
    let before = server.map_or(Ok(0.0), used_by)?;
    let begun = Instant::now();
    for (child, _) in &mut running {
        child
            .stdin
            .as_mut()
            .context("no input")?
            .write_all(b"go\n")?;
    }
    for (_, output) in &mut running {
        said(output, "kept")?;
    }
    let kept = begun.elapsed();
    for (_, output) in &mut running {
        said(output, "settled")?;
    }
    let settled = begun.elapsed();
    let server = server.map_or(Ok(0.0), used_by)? - before;
    let mut ours = 0.0;
    for (mut child, mut output) in running {
        let mut line = String::new();
        output.read_line(&mut line)?;
        ours += line.trim().parse::<f64>()?;
        drop(child.stdin.take());
        child.wait()?;
    }
    let many = f64::from(u32::try_from(events)?);
    print!(
        "{:<38} {:>9.0} {:>9.0} {:>12.0} {:>12.0}",
        format!("{name}, order {}", order.word()),
        many / kept.as_secs_f64(),
        many / settled.as_secs_f64(),
        ours / many,
        server / many
    );
    Ok(())
}

fn said(output: &mut impl std::io::BufRead, word: &str) -> anyhow::Result<()> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    anyhow::ensure!(
        line.trim() == word,
        "a replica said {line:?} in place of {word}"
    );
    Ok(())
}

/// CPU that the server's processes have used, those that ended among them, in microseconds.
fn used_by(server: &postgres::Server) -> anyhow::Result<f64> {
    let pid = std::fs::read_to_string(server.folder.join("data/postmaster.pid"))?;
    let pid: u32 = pid.lines().next().context("no server")?.parse()?;
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let words: Vec<u64> = rest
            .split_whitespace()
            .map(|word| word.parse().unwrap_or_default())
            .collect();
        let is_it = id == pid;
        if is_it || words.get(1) == Some(&u64::from(pid)) {
            // User and system time; of the first process that of its ended children as well.
            let upto = if is_it { 15 } else { 13 };
            ticks += words.get(11..upto).into_iter().flatten().sum::<u64>();
        }
    }
    let micros = ticks * 1_000_000 / rustix::param::clock_ticks_per_second();
    Ok(f64::from(u32::try_from(micros / 1000)?) * 1000.0)
}

fn settings_text(url: &str, order: Order) -> String {
    format!(
        r#"
[admin]
listen = "off"
socket = "off"
[store]
url = "{url}"
[[topic]]
arn = "{}"
[sink.one]
type = "file"
path = "one-{{replica}}.jsonl"
[sink.other]
type = "file"
path = "other-{{replica}}.jsonl"
[[route]]
name = "one"
to = ["one"]
order = "{}"
hold = "0s"
[[route]]
name = "other"
to = ["other"]
order = "instance"
hold = "0s"
"#,
        notifications::TOPIC,
        order.word()
    )
}

/// Appends events, delivers whatever is due, and says what it has reached.
async fn replica(from: usize, to: usize, settings: &Path) -> anyhow::Result<()> {
    let (config, _) =
        runbell::config::Config::load(settings).map_err(|it| anyhow::anyhow!(it.render(false)))?;
    let clock = Clock::system();
    let (store, keeping, _) = keeping::open(&config.store, &clock).await?;
    let routes = Arc::new(Routes::new(config.routes.clone()));
    println!("ready");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let (next, kept) = (AtomicUsize::new(from), AtomicBool::default());
    let past = clock.now() - jiff::SignedDuration::from_mins(30);
    let append = async {
        let appends = (0..AT_ONCE).map(async |_| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= to {
                    return anyhow::Ok(());
                }
                let event = notifications::past_event(number, to, past);
                let owed = routes.owed(&event, None);
                let received_at = clock.now();
                store.append(Append::new(event, owed, received_at)).await?;
            }
        });
        try_join_all(appends).await?;
        kept.store(true, Ordering::Relaxed);
        println!("kept");
        std::io::stdout().flush()?;
        anyhow::Ok(())
    };
    let deliver = try_join_all(
        config
            .sinks
            .iter()
            .map(|sink| deliver(&*store, &sink.name, &clock, &kept)),
    );
    tokio::try_join!(append, deliver)?;
    println!("settled");
    println!("{}", used()?);
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut line)?;
    drop(store);
    keeping.end(&clock, Timestamp::MAX).await;
    Ok(())
}

/// Delivers for one sink until nothing is due and no more comes.
async fn deliver(
    store: &dyn Store,
    sink: &str,
    clock: &Clock,
    kept: &AtomicBool,
) -> anyhow::Result<()> {
    loop {
        let is_last = kept.load(Ordering::Relaxed);
        let leased = store.lease(sink, clock.now(), LARGEST_LEASE).await?;
        if leased.lanes.is_empty() {
            // What another replica has leased, that one settles before it ends.
            if is_last && leased.next_due.is_none() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        let now = clock.now();
        let settled = leased.lanes.into_iter().map(|lane| all_sent(lane, now));
        store.settle(settled.collect()).await?;
    }
}

fn all_sent(lane: Lane, now: Timestamp) -> Settlement {
    let results = lane
        .waiting
        .into_iter()
        .map(|it| Settled::new(it.event_id, it.key, Ending::SENT, now));
    lane.lease.settle(results.collect(), now, None)
}

/// CPU that this process has used, in microseconds.
fn used() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, rest) = stat.rsplit_once(')').context("no process")?;
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|word| word.parse::<u64>().unwrap_or_default())
        .sum();
    Ok(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}
