//! The composition root: builds the parts from checked settings, runs them, and stops them in
//! order.
//!
//! `cli` calls it to serve, the demo and the tests to serve on port 0. Only here tasks are started
//! and the clock is made. It stops by first saying that it is not ready, then closing the doors,
//! then letting the workers finish what is under way; all within one deadline. A part that dies
//! stops the whole.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, later};
use crate::config::Config;
use crate::deliver::{Surroundings, Worker};
use crate::health::Readiness;
use crate::metrics::Metrics;
use crate::receive::{Parts, Receiver};
use crate::render::Template;
use crate::route::Routes;
use crate::sink::http::{Paces, Sharers};
use crate::sink::{Fallback, Sink};
use crate::sns::{self, Verifier};
use crate::store::{Store, StoreError};
use crate::wake::Wake;
use crate::web::admin::socket::SocketError;
use crate::web::serve::{Door, serve};
use crate::web::tls::{Tls, TlsError};
use crate::web::{admin, hook};

pub mod keeping;
mod listeners;
mod reload;
mod tasks;
mod upkeep;

use keeping::Keeping;
pub use listeners::Listeners;
use reload::Reload;
use tasks::Tasks;

/// How much longer than the drain the end of everything may take.
const GRACE: Duration = Duration::from_secs(2);

/// Why it cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address cannot be listened on.
    #[error("cannot listen on {place}")]
    Listen {
        /// The address or path.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The unix socket cannot be opened.
    #[error("cannot open the admin socket")]
    Socket(#[from] SocketError),
    /// The certificate or its key cannot be used.
    #[error("cannot serve TLS")]
    Tls(#[from] TlsError),
    /// The store cannot be opened or read.
    #[error("cannot use the store")]
    Store(#[from] StoreError),
    /// A thread cannot be started.
    #[error("cannot start the thread that writes")]
    Thread(#[source] io::Error),
    /// A part ended that should not have.
    #[error("{0} stopped unexpectedly")]
    Died(String),
}

/// What the outside tells a running app.
#[derive(Clone)]
pub struct Signals {
    /// Stop in order.
    pub stop: CancellationToken,
    /// Reads the settings anew, for a reload.
    pub settings: Arc<dyn Fn() -> Result<Config, String> + Send + Sync>,
    /// Somebody asks for a reload.
    pub reload: Arc<Notify>,
}

/// Everything, built and not yet running.
pub struct App {
    config: Config,
    clock: Clock,
    store: Arc<dyn Store>,
    keeping: Keeping,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    routes: Arc<ArcSwap<Routes>>,
    receiver: Arc<Receiver>,
    sinks: Vec<OpenSink>,
    sharers: Sharers,
    tls: Option<Arc<Tls>>,
}

impl App {
    /// Builds every part: opens the store, loads the certificate, makes the sinks. Nothing is
    /// received or sent yet.
    ///
    /// # Errors
    /// When a part cannot be built.
    pub async fn build(config: Config, clock: Clock) -> Result<Self, AppError> {
        let tls = match &config.server.hook.tls {
            Some(settings) => Some(Arc::new(Tls::load(settings.clone())?)),
            None => None,
        };
        let (store, keeping, opened) = keeping::open(&config.store, &clock).await?;
        if opened.possible_repeats > 0 {
            tracing::warn!(
                deliveries = opened.possible_repeats,
                "the last run ended in the middle of these; they go out again, marked"
            );
        }
        let (generation, replica) = (config.generation.clone(), &config.server.replica);
        store
            .put_generation(generation, replica, clock.now())
            .await?;
        reload::warn_of_reorder(&*store, &config.routes).await;
        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::new();
        let routes = Arc::new(ArcSwap::from_pointee(Routes::new(config.routes.clone())));
        let sharers = Sharers::default();
        let (mut shared, mut own) = (Paces::shared_by(sharers.clone()), Paces::default());
        let sinks: Vec<_> = config
            .sinks
            .iter()
            .map(|sink| OpenSink {
                name: sink.name.clone(),
                // Where one replica brings all, nobody shares the pace.
                sink: sink.open(&clock, sink.on.as_ref().map_or(&mut shared, |_| &mut own)),
                wake: Wake::default(),
                is_ours: sink
                    .on
                    .as_ref()
                    .is_none_or(|on| *on == config.server.replica),
                fallback: sink.fallback.clone(),
                template: sink.template.clone(),
            })
            .collect();
        metrics.configured(config.sinks.iter().map(|sink| sink.name.clone()));
        metrics.reloaded(Some(clock.now()));
        for topic in &config.topics {
            if let Some(endpoint) = &topic.endpoint {
                tracing::warn!(
                    topic = topic.arn.as_str(),
                    endpoint,
                    "this topic is not verified against AWS: whoever controls the endpoint can sign for it"
                );
            }
        }
        if let Err(error) = sns::self_test(config.topics.iter().any(|topic| topic.allow_version_1))
        {
            let error: &dyn std::error::Error = &error;
            tracing::error!(
                error,
                "OpenSSL on this machine does not verify what SNS signs; is SHA-1 banned by policy?"
            );
            readiness.unready("crypto", error.to_string());
        }
        let http = sns::Http::default();
        let receiver = Receiver::new(Parts {
            verifier: Verifier::new(
                config.topics.clone(),
                http.clone(),
                store.certificates().await?,
            ),
            topics: config.topics.clone(),
            http,
            store: store.clone(),
            routes: Arc::clone(&routes),
            wakes: wakes(&sinks),
            clock: clock.clone(),
            time: store.clock().clone(),
            metrics: Arc::clone(&metrics),
            readiness: readiness.clone(),
            gap_hold: config.server.gap_hold,
            after_gap: !opened.is_new,
        });
        warn_of_nobodys(&*store, &sinks).await;
        Ok(Self {
            config,
            clock,
            store,
            keeping,
            metrics,
            readiness,
            routes,
            receiver: Arc::new(receiver),
            sinks,
            sharers,
            tls,
        })
    }

    /// Runs until it is told to stop, then ends in order: not ready, doors closed, workers done.
    ///
    /// # Errors
    /// When a part ends by itself.
    pub async fn run(self, listeners: Listeners, signals: Signals) -> Result<(), AppError> {
        let (mut hook, mut work, mut rest) = (Tasks::default(), Tasks::default(), Tasks::default());
        self.open_door(&mut hook, listeners.hook);
        let wakes = self.wakes();
        for open in self.sinks.iter().filter(|open| open.is_ours) {
            let name = &open.name;
            let (sink, wake) = (Arc::clone(&open.sink), open.wake.clone());
            let worker = Worker::new(name, sink, wake, self.surroundings());
            let mut worker = worker.with_template(open.template.clone());
            if let Some(fallback) = open.fallback.clone() {
                let wake = wakes.get(&fallback.to).cloned().unwrap_or_default();
                worker = worker.with_fallback(fallback, wake);
            }
            let stop = work.stop();
            work.spawn(format!("the worker of sink {name}"), async move {
                worker.run(&stop).await;
            });
        }
        let reload = Arc::new(self.reload(&signals));
        let windows = (listeners.admin, listeners.socket);
        self.open_windows(&mut rest, Arc::clone(&reload), windows);
        rest.spawn("the signs of life", self.beats(rest.stop()));
        rest.spawn("the upkeep", self.upkeep(rest.stop()));
        let reloads = Self::reloads(&signals, reload, rest.stop());
        rest.spawn("the reload", reloads);
        tracing::info!("ready");

        let outcome = tokio::select! {
            () = signals.stop.cancelled() => Ok(()),
            died = hook.any_ends() => Err(AppError::Died(died)),
            died = work.any_ends() => Err(AppError::Died(died)),
            died = rest.any_ends() => Err(AppError::Died(died)),
            () = self.keeping.ended.cancelled() => {
                Err(AppError::Died("the writer of the store".to_owned()))
            }
        };
        self.readiness.unready("shutdown", "it is being stopped");
        tracing::info!("stopping");
        if outcome.is_ok() {
            // Whoever sends here learns first that others are to be asked.
            self.clock.sleep(self.config.server.leave_after).await;
        }
        self.stop(hook, work, rest).await;
        tracing::info!("stopped");
        outcome
    }

    /// Ends what runs, in order, all by one deadline.
    async fn stop(self, hook: Tasks, work: Tasks, rest: Tasks) {
        let clock = self.clock;
        let drain = self.config.server.drain;
        let deadline = later(clock.now(), drain);
        // A post that does not end must not take the time of what is being delivered.
        if !hook.end(&clock, later(clock.now(), drain / 2)).await {
            tracing::warn!("requests were still under way at the deadline; SNS sends them again");
        }
        if !work.end(&clock, deadline).await {
            tracing::warn!(
                "deliveries were still under way at the deadline; they go out again at the next start, marked"
            );
        }
        // Leases that no worker ended are given back, unmarked where nothing had begun.
        if let Err(error) = self.store.beat().await {
            tracing::debug!(%error, "the leases were not given back; the next start frees them");
        }
        // What follows only lets go, and writes down what was done.
        let at_last = later(deadline.max(clock.now()), GRACE);
        if !rest.end(&clock, at_last).await {
            tracing::warn!("the upkeep did not end in time");
        }
        drop((self.store, self.receiver, self.sinks));
        // The last handle is gone, so what is still to be written is, and that is the end.
        self.keeping.end(&clock, at_last).await;
    }

    /// Opens the door that SNS knocks at.
    fn open_door(&self, tasks: &mut Tasks, listener: TcpListener) {
        let door = match &self.tls {
            Some(tls) => {
                self.metrics.certificate_expires(tls.expires());
                Door::Tls(listener, Arc::clone(tls))
            }
            None => Door::Plain(listener),
        };
        let receiver = Arc::clone(&self.receiver);
        let settings = &self.config.server.hook;
        let router = hook::router(settings, Arc::clone(&self.metrics), move |post| {
            let receiver = Arc::clone(&receiver);
            async move {
                receiver
                    .receive(&post.body, post.headers(), post.client)
                    .await
            }
        });
        let limits = settings.limits(self.config.server.drain);
        let (metrics, stop) = (Arc::clone(&self.metrics), tasks.stop());
        tasks.spawn(
            "the listener for SNS",
            serve("hook", door, router, limits, metrics, stop),
        );
    }

    /// Opens the admin door, as many as there are.
    fn open_windows(
        &self,
        tasks: &mut Tasks,
        reload: Arc<Reload>,
        (tcp, unix): (Option<TcpListener>, Option<UnixListener>),
    ) {
        let router = admin::router(&self.config.admin, self.admin_parts(reload));
        let doors = [tcp.map(Door::Plain), unix.map(Door::Unix)];
        for door in doors.into_iter().flatten() {
            let limits = admin::limits(self.config.server.drain);
            let (metrics, stop) = (Arc::clone(&self.metrics), tasks.stop());
            tasks.spawn(
                "the admin listener",
                serve("admin", door, router.clone(), limits, metrics, stop),
            );
        }
    }

    fn wakes(&self) -> HashMap<String, Wake> {
        wakes(&self.sinks)
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            lanes: self.store.clone(),
            routes: Arc::clone(&self.routes),
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

/// A sink and what belongs to it while it runs.
struct OpenSink {
    name: String,
    sink: Arc<dyn Sink>,
    /// Wakes its worker.
    wake: Wake,
    /// This replica brings notices to it.
    is_ours: bool,
    fallback: Option<Fallback>,
    template: Option<Arc<Template>>,
}

/// Says what waits for sinks that the settings no longer name. A store that cannot count that now
/// keeps nobody from starting.
async fn warn_of_nobodys(store: &dyn Store, sinks: &[OpenSink]) {
    let waiting = match store.backlog().await {
        Ok(waiting) => waiting,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the store did not say what waits");
            return;
        }
    };
    for left in waiting {
        if left.waiting > 0 && !sinks.iter().any(|sink| sink.name == left.sink) {
            tracing::error!(
                sink = left.sink,
                waiting = left.waiting,
                "deliveries wait for a sink that the settings no longer name: put it back, or give them up with `runbell dead bury`"
            );
        }
    }
}

fn wakes(sinks: &[OpenSink]) -> HashMap<String, Wake> {
    let each = sinks.iter();
    each.map(|open| (open.name.clone(), open.wake.clone()))
        .collect()
}
