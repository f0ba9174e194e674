//! What a notification costs, beside a server that only verifies. Run by `make bench`; it measures and
//! judges nothing.
//!
//! Everything is measured in one run and by turns, because machines differ from minute to minute:
//! trust the ratios, not the microseconds. Three servers take the same distinct notifications, signed
//! beforehand, over the same 64 connections: the reference (bare axum, the same TLS, verification and
//! nothing else), Runbell's receive street (200 after the durable commit of the event and its two
//! deliveries, nobody delivers) and all of Runbell (until both files hold every line and everything
//! is settled). The client shares the machine, so notifications per second are a floor.

#![expect(clippy::print_stdout, reason = "its output is the result")]
#![expect(
    clippy::disallowed_methods,
    reason = "it measures time, and is no part of what the bans keep in order"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use jiff::Timestamp;
use runbell::app::keeping;

#[path = "intake/child.rs"]
mod child;
#[path = "intake/history.rs"]
mod history;
#[path = "intake/lines.rs"]
mod lines;
#[path = "intake/load.rs"]
mod load;
#[path = "intake/notifications.rs"]
mod notifications;
#[path = "intake/reference.rs"]
mod reference;
#[path = "intake/subject.rs"]
mod subject;

use child::Child;
use load::Load;
use notifications::Notification;

/// Before each measurement so many go ahead, as for a process that has run for a while.
const WARM_UP: usize = 500;
const PACE: Duration = Duration::from_millis(2);
const PACED: usize = 5000;
const FEW_STORED: usize = 10_000;
/// How often small and large store take turns.
const TURNS: usize = 4;

#[derive(Parser)]
struct Args {
    /// How many notifications are posted to each server in each round
    #[arg(long, default_value_t = 20_000)]
    notifications: usize,
    /// How many rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many events the large store holds; 0 leaves that part out
    #[arg(long, default_value_t = 1_000_000)]
    stored: usize,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// What this process is, when it is a child
    #[arg(long, hide = true, requires = "folder")]
    role: Option<Role>,
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
}

/// What a child serves.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Reference,
    Receive,
    Serve,
}

impl Role {
    const fn word(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Receive => "receive",
            Self::Serve => "serve",
        }
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let Some(role) = args.role else {
        // One thread: what the client does not use is left to the servers.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        return runtime.block_on(measure(&args));
    };
    let folder = args.folder.context("a child needs a folder")?;
    // As `runbell serve` makes it, for the reference too; the name shows in profiles.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name(role.word())
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match role {
            Role::Reference => reference::serve(&folder).await,
            Role::Receive => subject::receive(&folder).await,
            Role::Serve => subject::serve(&folder).await,
        }
    })
}

/// Where things lie, and where certificates are fetched from.
struct Place {
    folder: tempfile::TempDir,
    endpoint: String,
}

/// What one server did in one round.
struct Round {
    cpu: f64,
    /// Until everything was settled; the same where nothing is delivered.
    cpu_settled: f64,
    per_second: f64,
    each: Vec<Duration>,
    idle_memory: f64,
    peak_memory: f64,
    ready_after: Duration,
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    let (place, signed) = prepare(args).await?;
    let size = signed.first().map_or(0, |one| one.body.len());
    println!(
        "{} notifications of {size} bytes, {} connections, {} rounds, {} processors\n",
        args.notifications,
        load::CONNECTIONS,
        args.rounds,
        std::thread::available_parallelism()?
    );
    let posted = signed
        .get(..WARM_UP + args.notifications)
        .context("too few")?;
    let mut rounds: [Vec<Round>; 3] = Default::default();
    for _ in 0..args.rounds {
        for (role, rounds) in [Role::Reference, Role::Receive, Role::Serve]
            .into_iter()
            .zip(&mut rounds)
        {
            rounds.push(round(role, &place, posted).await?);
        }
    }
    report(&rounds);
    paced(&place, &signed).await?;
    if args.stored > 0 {
        stored(&place, posted, args.stored).await?;
    }
    Ok(())
}

/// Makes certificates, serves the one that SNS would, and signs.
async fn prepare(args: &Args) -> anyhow::Result<(Place, Vec<Notification>)> {
    // On a disk: what is durable has its price there.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let signer = notifications::signer(&format!("{endpoint}/sns.pem"))?;
    let pem = signer.pem()?;
    std::fs::write(folder.path().join("sns.pem"), &pem)?;
    write_tls(folder.path())?;
    let router = axum::Router::new().route("/sns.pem", axum::routing::get(async || pem));
    tokio::spawn(async { axum::serve(listener, router).await });
    let count = WARM_UP + args.notifications.max(PACED);
    let signed = notifications::sign(&signer, count, Timestamp::now())?;
    Ok((Place { folder, endpoint }, signed))
}

/// The certificate of the listeners: ECDSA, as the documentation advises.
fn write_tls(folder: &Path) -> anyhow::Result<()> {
    use openssl::ec::{EcGroup, EcKey};
    use openssl::nid::Nid;
    use runbell::sns::signer::{Certificate, Signer};
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = openssl::pkey::PKey::from_ec_key(EcKey::generate(&group)?)?;
    let named = Certificate {
        name: "localhost",
        ..Certificate::default()
    };
    std::fs::write(folder.join("tls.key"), key.private_key_to_pem_pkcs8()?)?;
    let certificate = Signer::with_key(key, "", &named)?.pem()?;
    Ok(std::fs::write(folder.join("tls.crt"), certificate)?)
}

impl Place {
    /// A new folder with settings in it.
    fn life(&self) -> anyhow::Result<tempfile::TempDir> {
        let life = tempfile::tempdir_in(&self.folder)?;
        subject::settle_in(life.path(), &self.endpoint)?;
        Ok(life)
    }
}

/// One server, from its start to its end.
async fn round(role: Role, place: &Place, signed: &[Notification]) -> anyhow::Result<Round> {
    let life = place.life()?;
    let folder = match role {
        Role::Reference => place.folder.path(),
        Role::Receive | Role::Serve => life.path(),
    };
    let child = Child::start(role, folder).await?;
    let idle_memory = child.peak_memory()?;
    let mut load = Load::connect(child.port).await?;
    let (ahead, measured) = signed.split_at(WARM_UP);
    load.post(ahead).await?;
    let before = child.used()?;
    let took = load.post(measured).await?;
    let cpu = child.used()?.micros_each(before, measured.len());
    if matches!(role, Role::Serve) {
        settled(folder).await?;
    }
    let round = Round {
        cpu,
        cpu_settled: child.used()?.micros_each(before, measured.len()),
        per_second: float(measured.len()) / took.whole.as_secs_f64(),
        each: took.each,
        idle_memory,
        peak_memory: child.peak_memory()?,
        ready_after: child.ready_after,
    };
    drop(load);
    child.stop().await?;
    Ok(round)
}

/// Waits until nothing is owed any more.
async fn settled(folder: &Path) -> anyhow::Result<()> {
    let store = keeping::look(&subject::settings(folder)?.store).await?;
    while store.tally().await?.iter().any(|sink| sink.waiting > 0) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn report(rounds: &[Vec<Round>; 3]) {
    println!(
        "{:<34} {:>8} {:>6} {:>9} {:>8} {:>8} {:>10} {:>7}",
        "", "CPU µs", "×", "per s", "p50 ms", "p99 ms", "MB", "start"
    );
    let [reference, receive, serve] = rounds;
    let base = median(reference.iter().map(|round| round.cpu));
    let row = |name: &str, rounds: &[Round], cpu: fn(&Round) -> f64| {
        let cpu = median(rounds.iter().map(cpu));
        let of = |get: fn(&Round) -> f64| median(rounds.iter().map(get));
        let each: Vec<Duration> = rounds
            .iter()
            .flat_map(|round| &round.each)
            .copied()
            .collect();
        println!(
            "{name:<34} {cpu:>8.1} {:>6.2} {:>9.0} {:>8.2} {:>8.2} {:>10} {:>4.0} ms",
            cpu / base,
            of(|round| round.per_second),
            quantile(&each, 50),
            quantile(&each, 99),
            format!(
                "{:.0}/{:.0}",
                of(|round| round.idle_memory),
                of(|round| round.peak_memory)
            ),
            of(|round| millis(round.ready_after)),
        );
    };
    row("axum + verify, no store", reference, |round| round.cpu);
    row("Runbell, receive street", receive, |round| round.cpu);
    row("Runbell, whole, until the last 200", serve, |round| {
        round.cpu
    });
    row("Runbell, whole, until settled", serve, |round| {
        round.cpu_settled
    });
    println!("MB: resident at its peak, idle/under load. start: from exec to the first answer.\n");
}

/// All of Runbell at an even pace that it can easily keep.
async fn paced(place: &Place, signed: &[Notification]) -> anyhow::Result<()> {
    let life = place.life()?;
    let child = Child::start(Role::Serve, life.path()).await?;
    let mut load = Load::connect(child.port).await?;
    let (ahead, rest) = signed.split_at(WARM_UP);
    load.post(ahead).await?;
    let measured = rest.get(..PACED).context("too few")?;
    let at_most = Duration::from_mins(1);
    let count = WARM_UP + PACED;
    let paths = ["by-topic.jsonl", "by-instance.jsonl"].map(|name| life.path().join(name));
    let [by_topic, by_instance] = &paths;
    let before = child.used()?;
    let (took, by_topic, by_instance) = tokio::try_join!(
        load.post_paced(measured, PACE),
        lines::watch(by_topic, count, at_most),
        lines::watch(by_instance, count, at_most),
    )?;
    settled(life.path()).await?;
    let cpu = child.used()?.micros_each(before, PACED);
    println!(
        "at {:.0} a second for {:.0} s",
        1.0 / PACE.as_secs_f64(),
        took.whole.as_secs_f64()
    );
    println!("{:<34} {:>8} {:>8}", "", "p50 ms", "p99 ms");
    let row = |name: &str, each: &[Duration]| {
        println!(
            "{name:<34} {:>8.1} {:>8.1}",
            quantile(each, 50),
            quantile(each, 99)
        );
    };
    row("to the 200", &took.each);
    for (name, seen, hold) in [
        ("to the line, instance order", by_instance, 0),
        (
            "to the line, topic order, beyond the hold",
            by_topic,
            subject::HOLD_SECONDS,
        ),
    ] {
        let each: Vec<Duration> = measured
            .iter()
            .zip(&took.due)
            .filter_map(|(one, due)| seen.get(&*one.message_id)?.checked_duration_since(*due))
            .map(|took| took.saturating_sub(Duration::from_secs(hold)))
            .collect();
        row(name, &each);
    }
    println!("CPU µs a notification, until settled: {cpu:.0}\n");
    drop(load);
    child.stop().await
}

/// The receive street on a small store and on a large one, by turns.
async fn stored(place: &Place, signed: &[Notification], many: usize) -> anyhow::Result<()> {
    let mut filled = Vec::new();
    for count in [FEW_STORED, many] {
        let life = place.life()?;
        history::fill(life.path(), count, Timestamp::now()).await?;
        filled.push((count, life));
    }
    // Only now: a connection that stays silent for as long as a fill takes would be cut.
    let mut sides = Vec::new();
    for (count, life) in filled {
        let child = Child::start(Role::Receive, life.path()).await?;
        let load = Load::connect(child.port).await?;
        sides.push((count, life, child, load, Vec::new()));
    }
    let (ahead, measured) = signed.split_at(WARM_UP);
    for (_, _, _, load, _) in &mut sides {
        load.post(ahead).await?;
    }
    for turn in measured.chunks(measured.len().div_ceil(TURNS)) {
        for (_, _, child, load, costs) in &mut sides {
            let before = child.used()?;
            load.post(turn).await?;
            costs.push(child.used()?.micros_each(before, turn.len()));
        }
    }
    println!(
        "{:<34} {:>8} {:>6} {:>7}",
        "receive street, events stored", "CPU µs", "×", "start"
    );
    let mut base = None;
    for (count, life, child, load, costs) in sides {
        let cpu = median(costs);
        let ratio = cpu / *base.get_or_insert(cpu);
        println!(
            "{count:<34} {cpu:>8.1} {ratio:>6.2} {:>4.0} ms",
            millis(child.ready_after)
        );
        drop(load);
        child.stop().await?;
        drop(life);
    }
    Ok(())
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// In milliseconds.
fn quantile(values: &[Duration], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values
        .get(values.len() * percent / 100)
        .map_or(f64::NAN, |value| millis(*value))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Counts are far below what a float holds exactly.
fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::NAN, f64::from)
}
