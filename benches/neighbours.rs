//! What a sink in trouble costs its neighbour: how long an event takes from its commit to a sink that
//! is well, alone and beside each kind of trouble. Run by `make bench`; it measures and judges nothing.

#![expect(clippy::print_stdout, reason = "its output is the result")]
#![expect(
    clippy::disallowed_methods,
    reason = "it measures time, and is no part of what the bans keep in order"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use clap::Parser;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use runbell::clock::{Clock, later, since};
use runbell::deliver::{Surroundings, Worker};
use runbell::event::{EnvelopeKind, Event, Source};
use runbell::metrics::Metrics;
use runbell::render::Notice;
use runbell::retry::{Scope, Verdict};
use runbell::route::{self, Routes};
use runbell::sink::{Capacity, Permit, Sink};
use runbell::store::sqlite::Sqlite;
use runbell::store::{Append, Appended, Store, Terms};
use runbell::wake::Wake;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Args {
    /// How many events are measured beside each neighbour
    #[arg(long, default_value_t = 3000)]
    events: usize,
    /// How many lanes wait at the sink that has most
    #[arg(long, default_value_t = 50_000)]
    lanes: usize,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neighbour {
    Nobody,
    Well,
    Hangs,
    AsksForRest,
    Flaps,
    ManyLanes,
}

const NEIGHBOURS: [(Neighbour, &str); 6] = [
    (Neighbour::Nobody, "alone"),
    (Neighbour::Well, "beside one that is well"),
    (Neighbour::Hangs, "beside one that hangs"),
    (
        Neighbour::AsksForRest,
        "beside one that asks for 30 s of rest",
    ),
    (Neighbour::Flaps, "beside one that flaps"),
    (
        Neighbour::ManyLanes,
        "beside one that rests with many lanes",
    ),
];

/// Notes how long each event took to get here.
struct Well {
    clock: Clock,
    delays: Mutex<Vec<Duration>>,
}

#[async_trait]
impl Sink for Well {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1,
            at_once: 4,
        }
    }

    async fn send(&self, notices: &[Notice], _: &Permit) -> Vec<Verdict> {
        let now = self.clock.now();
        let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        delays.extend(notices.iter().map(|notice| since(notice.received_at, now)));
        vec![Verdict::Sent { remote_id: None }; notices.len()]
    }
}

struct Other {
    kind: Neighbour,
    asked: AtomicU64,
}

#[async_trait]
impl Sink for Other {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1,
            at_once: 4,
        }
    }

    async fn send(&self, notices: &[Notice], _: &Permit) -> Vec<Verdict> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let verdict = match self.kind {
            Neighbour::Hangs => std::future::pending().await,
            Neighbour::AsksForRest => rest(Some(Duration::from_secs(30))),
            Neighbour::Flaps if number.is_multiple_of(2) => rest(None),
            _ => Verdict::Sent { remote_id: None },
        };
        vec![verdict; notices.len()]
    }
}

fn rest(after: Option<Duration>) -> Verdict {
    Verdict::Retry {
        why: "not now".to_owned(),
        after,
        scope: Scope::Sink,
        progress: None,
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!(
        "{} events at 500/s; milliseconds from arrival to the sink that is well\n",
        args.events
    );
    println!(
        "{:<44} {:>8} {:>8} {:>14}",
        "", "p50", "p99", "others asked"
    );
    for (kind, name) in NEIGHBOURS {
        let (mut delays, asked) = measure(kind, &args).await?;
        delays.sort();
        let at = |part: usize| {
            let delay = delays.get((delays.len() * part / 100).min(delays.len() - 1));
            delay.map_or(0.0, Duration::as_secs_f64) * 1000.0
        };
        println!("{name:<44} {:>8.1} {:>8.1} {asked:>14}", at(50), at(99));
    }
    Ok(())
}

async fn measure(kind: Neighbour, args: &Args) -> anyhow::Result<(Vec<Duration>, u64)> {
    // In memory where there is such a place: what is measured is not the disk.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let clock = Clock::system();
    let path = folder.path().join("runbell.db");
    let (store, writer, _) = Sqlite::open(&path, Terms::default(), &clock)?;
    let thread = std::thread::spawn(move || writer.run());
    let store: Arc<dyn Store> = Arc::new(store);
    let to = match kind {
        Neighbour::Nobody => r#"["well"]"#,
        _ => r#"["well", "other"]"#,
    };
    let routes = routes(to)?;
    if kind == Neighbour::ManyLanes {
        let alone = routes_to_other()?;
        let mut under_way = FuturesUnordered::new();
        for number in 0..args.lanes {
            if under_way.len() == 512 {
                under_way.next().await.transpose()?;
            }
            under_way.push(append(&*store, &alone, &clock, format!("old-{number}")));
        }
        while under_way.next().await.transpose()?.is_some() {}
        let now = clock.now();
        let until = later(now, Duration::from_hours(1));
        store.back_off("other", Some(until), now).await?;
    }
    let around = Surroundings {
        lanes: store.clone(),
        routes: Arc::new(ArcSwap::from_pointee(routes.clone())),
        clock: clock.clone(),
        metrics: Arc::new(Metrics::new()),
    };
    let well = Arc::new(Well {
        clock: clock.clone(),
        delays: Mutex::default(),
    });
    let other = Arc::new(Other {
        kind,
        asked: AtomicU64::default(),
    });
    let stop = CancellationToken::new();
    let wakes = [Wake::default(), Wake::default()];
    let sinks: [(&str, Arc<dyn Sink>); 2] = [("well", well.clone()), ("other", other.clone())];
    let mut workers = tokio::task::JoinSet::new();
    for ((name, sink), wake) in sinks.into_iter().zip(&wakes) {
        let worker = Worker::new(name, sink, wake.clone(), around.clone());
        let stop = stop.clone();
        workers.spawn(async move { worker.run(&stop).await });
    }
    let begun = Instant::now();
    let mut under_way = FuturesUnordered::new();
    for number in 0..args.events {
        let due = begun + Duration::from_millis(2) * u32::try_from(number)?;
        tokio::time::sleep_until(due.into()).await;
        let [well, other] = &wakes;
        let wake = (well.clone(), other.clone());
        let (store, routes, clock) = (&*store, &routes, &clock);
        under_way.push(async move {
            for (sink, at) in append(store, routes, clock, format!("new-{number}")).await? {
                if &*sink == "well" { &wake.0 } else { &wake.1 }.at(at);
            }
            anyhow::Ok(())
        });
        while under_way.len() > 64 {
            under_way.next().await.transpose()?;
        }
    }
    while under_way.next().await.transpose()?.is_some() {}
    let count = || {
        let delays = well.delays.lock();
        delays.unwrap_or_else(PoisonError::into_inner).len()
    };
    while count() < args.events {
        ensure!(begun.elapsed() < Duration::from_mins(2), "it never ends");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    workers.shutdown().await;
    drop(under_way);
    drop((around, store));
    tokio::task::spawn_blocking(move || thread.join())
        .await?
        .ok()
        .context("the writer failed")?;
    let delays = std::mem::take(&mut *well.delays.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((delays, other.asked.load(Ordering::Relaxed)))
}

fn routes(to: &str) -> anyhow::Result<Routes> {
    let text = format!("name = \"r\"\nto = {to}\norder = \"instance\"\nhold = \"0s\"");
    let route = toml::from_str::<route::Settings>(&text)?.check();
    let route = route.map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
    Ok(Routes::new(vec![route]))
}

fn routes_to_other() -> anyhow::Result<Routes> {
    routes(r#"["other"]"#)
}

async fn append(
    store: &dyn Store,
    routes: &Routes,
    clock: &Clock,
    name: String,
) -> anyhow::Result<Vec<(Arc<str>, Timestamp)>> {
    let now = clock.now();
    let body = format!(
        r#"{{"commandId":"0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11","documentName":"AWS-RunShellScript","instanceId":"{name}","status":"Failed","detailedStatus":"Failed","eventTime":"{now}"}}"#
    );
    let event = Event::read(&Source {
        topic: "arn:aws:sns:eu-central-1:123456789012:run-command",
        account: "123456789012",
        region: "eu-central-1",
        message_id: &name,
        sent_at: now,
        subject: None,
        body: &body,
        envelope: EnvelopeKind::Notification,
    });
    let owed = routes.owed(&event, None);
    let append = Append::new(event, owed, now);
    match store.append(append).await? {
        Appended::Stored { due, .. } => Ok(due),
        Appended::Known { .. } => anyhow::bail!("{name} is known"),
    }
}
