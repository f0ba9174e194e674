//! What runs beside the streets: repairs, forgetting, reloads, and the acts of the admin door.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{App, Signals};
use crate::clock::{Clock, later};
use crate::config::Config;
use crate::fault::causes;
use crate::health::Readiness;
use crate::metrics::Metrics;
use crate::receive::{ConfirmError, Receiver};
use crate::route::Routes;
use crate::sink::Sink;
use crate::store::Store;
use crate::web::admin::{self, wire};
use crate::web::tls::Tls;

/// How often lanes are looked after, old events forgotten and the certificate's files looked at.
const EVERY: Duration = Duration::from_secs(5);

/// How many steps of forgetting there are in a row, so that the rest has its turn.
const STEPS: usize = 200;

impl App {
    /// Repairs what a fault left behind, forgets what is old, and notices when what was missing is
    /// back, until `stop`.
    pub(super) fn upkeep(
        &self,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let store = Arc::clone(&self.store);
        let (clock, metrics, readiness) = (
            self.clock.clone(),
            Arc::clone(&self.metrics),
            self.readiness.clone(),
        );
        let keep = self.config.store.retention;
        let (tls, sharers) = (self.tls.clone(), self.sharers.clone());
        async move {
            loop {
                sharers.are(store.replicas());
                metrics.replicas(store.replicas());
                let next = later(clock.now(), EVERY);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = clock.sleep_until(next) => {}
                }
                if let Some(tls) = &tls
                    && tls.changed()
                {
                    renew(tls, &metrics);
                }
                look_after(store.as_ref(), &clock, &metrics, &readiness, keep, &stop).await;
            }
        }
    }

    /// Reloads whenever it is asked for, until `stop`.
    pub(super) fn reloads(
        signals: &Signals,
        reload: Arc<Reload>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let asked = Arc::clone(&signals.reload);
        async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = asked.notified() => match reload.apply().await {
                        Ok(message) => tracing::info!("{message}"),
                        Err(why) => tracing::error!("the settings were not reloaded: {why}"),
                    }
                }
            }
        }
    }

    /// What the admin door looks at and acts on.
    pub(super) fn admin_parts(&self, reload: Arc<Reload>) -> admin::Parts {
        let receiver = || Arc::clone(&self.receiver);
        let (confirming, listing, judging) = (receiver(), receiver(), receiver());
        admin::Parts {
            store: Arc::clone(&self.store),
            wakes: Arc::new(self.wakes()),
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
            clock: self.clock.clone(),
            reload: Arc::new(move |()| {
                let reload = Arc::clone(&reload);
                async move { reload.apply().await }.boxed()
            }),
            confirm: Arc::new(move |id| confirm(Arc::clone(&confirming), id).boxed()),
            refused: Arc::new(move |()| {
                let refused = listing.refused().into_iter().rev().map(wire::Refused::from);
                std::future::ready(Ok(refused.collect())).boxed()
            }),
            judge: Arc::new(move |id| judge(Arc::clone(&judging), id).boxed()),
        }
    }

    pub(super) fn reload(&self, signals: &Signals) -> Reload {
        Reload {
            one_at_a_time: Mutex::default(),
            settings: Arc::clone(&signals.settings),
            routes: Arc::clone(&self.routes),
            sinks: self
                .sinks
                .iter()
                .map(|open| (open.name.clone(), Arc::clone(&open.sink)))
                .collect(),
            tls: self.tls.clone(),
            metrics: Arc::clone(&self.metrics),
            clock: self.clock.clone(),
        }
    }
}

async fn look_after(
    store: &dyn Store,
    clock: &Clock,
    metrics: &Metrics,
    readiness: &Readiness,
    keep: Duration,
    stop: &CancellationToken,
) {
    match store.sweep().await {
        Ok(0) => {}
        Ok(lanes) => {
            metrics.rescued(lanes);
            tracing::error!(
                lanes,
                "lanes had been forgotten and were repaired: please report it"
            );
        }
        Err(error) => {
            let error = causes(&error);
            tracing::warn!(error, "the lanes cannot be looked after");
        }
    }
    for _ in 0..STEPS {
        if stop.is_cancelled() {
            return;
        }
        match store.prune(clock.now(), keep).await {
            Ok(more) => {
                // It can be written: whatever kept it from that is over.
                readiness.ready("store");
                if !more {
                    return;
                }
            }
            Err(error) => {
                let error = causes(&error);
                readiness.unready("store", error.clone());
                tracing::warn!(error, "the store cannot be written");
                return;
            }
        }
    }
}

fn renew(tls: &Tls, metrics: &Metrics) -> String {
    match tls.reload() {
        Ok(true) => {
            metrics.certificate_expires(tls.expires());
            tracing::info!(expires = %tls.expires(), "a new certificate is served");
            "a new certificate is served".to_owned()
        }
        Ok(false) => "the certificate is the same".to_owned(),
        Err(error) => {
            let cause = causes(&error);
            tracing::error!(
                error = cause,
                "the new certificate is not served; the old one is"
            );
            format!("the new certificate cannot be served, the old one is: {error}")
        }
    }
}

/// What a reload reads and changes.
pub(super) struct Reload {
    /// Else the settings read last might not be those put in force last.
    one_at_a_time: Mutex<()>,
    settings: Arc<dyn Fn() -> Result<Config, String> + Send + Sync>,
    routes: Arc<ArcSwap<Routes>>,
    sinks: Vec<(String, Arc<dyn Sink>)>,
    tls: Option<Arc<Tls>>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Reload {
    /// Puts new routes in force, serves a new certificate, opens files anew. Says what it did, or
    /// why nothing was changed.
    async fn apply(&self) -> Result<String, String> {
        let _turn = self.one_at_a_time.lock().await;
        let changed = self.routes_in_force().await;
        self.metrics
            .reloaded(changed.is_ok().then(|| self.clock.now()));
        changed
    }

    async fn routes_in_force(&self) -> Result<String, String> {
        let settings = Arc::clone(&self.settings);
        let config = tokio::task::spawn_blocking(move || settings())
            .await
            .map_err(|_| "reading the settings broke off".to_owned())??;
        for name in config.routes.iter().flat_map(|route| &route.to) {
            if !self.sinks.iter().any(|(running, _)| running == name) {
                return Err(format!(
                    "sink `{name}` is new: restart to add it; nothing was changed"
                ));
            }
        }
        let routes = config.routes.len();
        self.routes.store(Arc::new(Routes::new(config.routes)));
        for (_, sink) in &self.sinks {
            sink.reopen().await;
        }
        let certificate = self
            .tls
            .as_ref()
            .map(|tls| format!("; {}", renew(tls, &self.metrics)))
            .unwrap_or_default();
        Ok(format!(
            "{routes} routes are in force, files were opened anew{certificate}; listeners, topics, \
             store and sinks change at a restart"
        ))
    }
}

async fn confirm(receiver: Arc<Receiver>, id: i64) -> Result<bool, String> {
    match receiver.confirm(id).await {
        Ok(()) => Ok(true),
        Err(ConfirmError::Unknown) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

async fn judge(receiver: Arc<Receiver>, id: u64) -> Result<Option<wire::Judged>, String> {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let judged = receiver.judge_again(id, here).await;
    Ok(judged.map(|verdict| wire::Judged {
        accepted: verdict.is_ok(),
        sentence: verdict.err().unwrap_or_else(|| "it is kept".to_owned()),
    }))
}
