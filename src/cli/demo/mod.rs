//! `runbell demo`: the main job, played through on this machine.
//!
//! The service is the real one, with TLS, a store and a file; only SNS is played, by a signer with a
//! key of its own, which the settings tell the service to believe.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{Stop, output};
use crate::app::{App, Listeners, Signals};
use crate::clock::Clock;
use crate::config::Config;
use crate::sns::signer::{Certificate, Signer};

mod report;
mod sns;
mod story;

use report::Seen;
use sns::Sns;
use story::{Part, Story};

/// How many requests are under way at once.
const AT_ONCE: usize = 16;
/// How long it is waited for the last line.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many instances the command runs on
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=2000))]
    instances: u16,
    /// Where everything is written; a new folder in ./runbell-demo when left out
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Leave the service running until Ctrl-C
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(play(args))
}

async fn play(args: &Args) -> Result<(), Stop> {
    let clock = Clock::system();
    let started = clock.now();
    let folder = folder(args, started)?;
    let (sns, stand) = Sns::open().await?;
    let certificate = write_certificate(&folder)?;
    let settings = folder.join("runbell.toml");
    fs::write(&settings, sns::settings(sns.base())).context("cannot write the settings")?;
    let (config, _) = Config::load(&settings).map_err(|faults| Stop::Settings(Box::new(faults)))?;
    let listeners = Listeners::bind(&config).await?;
    let hook = listeners.hook_address()?;
    let admin = listeners.admin_address()?.context("no admin address")?;
    output::line(&format!(
        "Runbell listens on https://localhost:{}{} with the settings in {}",
        hook.port(),
        config.server.hook.path,
        settings.display()
    ))?;
    let app = App::build(config, clock.clone()).await?;
    let signals = Signals {
        stop: CancellationToken::new(),
        settings: Arc::new(move || {
            Config::load(&settings)
                .map(|(config, _)| config)
                .map_err(|faults| faults.render(false))
        }),
        reload: Arc::new(Notify::new()),
    };
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(&certificate)?])
        .timeout(Duration::from_secs(15))
        .build()?;
    let acts = async {
        let url = format!("https://localhost:{}/sns", hook.port());
        let story = Story::write(&sns, usize::from(args.instances), clock.now())?;
        let answers = post(&client, &url, &story).await?;
        let seen = watch(&folder, &story, &clock).await?;
        report::print(&story, &answers, &seen, &folder)?;
        output::line(&format!("\nIt took {:.1} s.", {
            let took = crate::clock::since(started, clock.now());
            took.as_secs_f64()
        }))?;
        if args.keep {
            output::line(&format!(
                "It runs on: look at http://{admin}/metrics, or try `runbell event list --config {}`. \
                 Ctrl-C ends it.",
                folder.join("runbell.toml").display()
            ))?;
            tokio::signal::ctrl_c().await?;
        }
        Ok::<(), Stop>(())
    };
    let actors = async {
        let acted = acts.await;
        signals.stop.cancel();
        acted
    };
    tokio::select! {
        // The acts end by stopping the service, so its end is awaited, not theirs.
        (ended, acted) = async { tokio::join!(app.run(listeners, signals.clone()), actors) } => {
            acted?;
            ended?;
        }
        served = sns.serve(stand) => served?,
    }
    report::what_next()
}

/// A folder of our own: what lies in it is nobody else's.
fn folder(args: &Args, now: Timestamp) -> Result<PathBuf, Stop> {
    let folder = args.folder.clone().unwrap_or_else(|| {
        let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        Path::new("runbell-demo").join(time)
    });
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if folder.join("runbell.db").exists() {
        return Err(anyhow!(
            "{} holds a store already: choose another folder",
            folder.display()
        )
        .into());
    }
    Ok(fs::canonicalize(&folder)?)
}

/// Writes a certificate for localhost and its key; gives the certificate.
fn write_certificate(folder: &Path) -> Result<Vec<u8>, Stop> {
    let key = PKey::from_rsa(Rsa::generate(2048)?)?;
    let private = key.private_key_to_pem_pkcs8()?;
    let localhost = Certificate {
        name: "localhost",
        ..Certificate::default()
    };
    let certificate = Signer::with_key(key, "", &localhost)?.pem()?;
    fs::write(folder.join("tls.crt"), &certificate).context("cannot write the certificate")?;
    fs::write(folder.join("tls.key"), private).context("cannot write its key")?;
    Ok(certificate)
}

/// Posts everything in the order of the story; the status of each answer.
async fn post(client: &reqwest::Client, url: &str, story: &Story) -> Result<Vec<u16>, Stop> {
    let bar = bar("posting", story.parts.len())?;
    let request = async |part: &Part| {
        let answer = client.post(url).body(part.body.clone()).send().await;
        bar.inc(1);
        answer.map(|answer| answer.status().as_u16())
    };
    let mut answers = Vec::with_capacity(story.parts.len());
    for act in story.acts() {
        let posted = futures_util::stream::iter(act.iter().map(request)).buffered(AT_ONCE);
        let posted: Vec<_> = posted.collect().await;
        for answer in posted {
            answers.push(answer.context("the service does not answer")?);
        }
    }
    bar.finish_and_clear();
    Ok(answers)
}

/// Watches the files until every line is there; when each was first seen.
async fn watch(folder: &Path, story: &Story, clock: &Clock) -> Result<Seen, Stop> {
    let wanted = story.lines_expected();
    let bar = bar("delivered", wanted)?;
    let mut seen = Seen::new(folder);
    let mut again = interval(Duration::from_millis(20));
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let complete = timeout(PATIENCE, async {
        while seen.look(clock.now())? < wanted {
            bar.set_position(seen.count() as u64);
            again.tick().await;
        }
        Ok::<(), Stop>(())
    })
    .await;
    bar.finish_and_clear();
    complete.map_err(|_| anyhow!("only {} of {wanted} lines were written", seen.count()))??;
    Ok(seen)
}

fn bar(what: &'static str, length: usize) -> Result<ProgressBar, Stop> {
    let style = ProgressStyle::with_template("{msg:>10} {wide_bar} {pos}/{len}")?;
    let bar = ProgressBar::new(length as u64);
    bar.set_style(style);
    bar.set_message(what);
    Ok(bar)
}
