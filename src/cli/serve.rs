//! `runbell serve`: the whole service, until a signal ends it.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::{Stop, output, settings};
use crate::app::{App, Listeners, Signals};
use crate::clock::Clock;
use crate::config::{Config, LogFormat, LogSettings};

pub(super) fn run(path: &Path) -> Result<(), Stop> {
    let config = settings(path)?;
    log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(config, path.to_owned()));
    // A thread that hangs in a system call has had its time.
    runtime.shutdown_background();
    served
}

async fn serve(config: Config, path: PathBuf) -> Result<(), Stop> {
    // Before anything that takes time: a signal that comes early counts.
    let mut waiting = Waiting::new()?;
    let listeners = Listeners::bind(&config).await?;
    tracing::info!(
        address = %listeners.hook_address()?,
        path = config.server.hook.path,
        tls = config.server.hook.tls.is_some(),
        store = config.store.engine.place(),
        replica = config.server.replica,
        topics = config.topics.len(),
        sinks = config.sinks.len(),
        routes = config.routes.len(),
        "runbell {}",
        env!("CARGO_PKG_VERSION")
    );
    let app = App::build(config, Clock::system()).await?;
    let signals = Signals {
        stop: CancellationToken::new(),
        settings: Arc::new(move || {
            Config::load(&path)
                .map(|(config, _)| config)
                .map_err(|faults| faults.render(false))
        }),
        reload: Arc::new(Notify::new()),
    };
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        ended = app.run(listeners, signals.clone()) => Ok(ended?),
        () = waiting.obey(&signals) => {
            output::complain("ended at once by a second signal\n");
            Err(Stop::No)
        }
    }
}

struct Waiting {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Waiting {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Passes signals on; returns at the second that asks to stop.
    async fn obey(&mut self, signals: &Signals) {
        loop {
            tokio::select! {
                _ = self.hang_up.recv() => {
                    signals.reload.notify_one();
                    continue;
                }
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            if signals.stop.is_cancelled() {
                return;
            }
            tell_systemd(&[sd_notify::NotifyState::Stopping]);
            signals.stop.cancel();
        }
    }
}

fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd was not told");
    }
}

/// Starts the log, on standard error.
fn log(settings: &LogSettings) -> Result<(), Stop> {
    let filter = EnvFilter::try_new(&settings.filter).context("the log filter cannot be read")?;
    let json = match settings.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::is_coloured());
    let started = if json {
        log.json().flatten_event(true).try_init()
    } else {
        log.try_init()
    };
    started.map_err(|error| Stop::Failed(anyhow::anyhow!(error).context("cannot start the log")))
}
