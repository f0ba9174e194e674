//! Reloading: new routes in force, a new certificate served, files opened anew.

use std::future::Future;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{App, Signals};
use crate::clock::Clock;
use crate::config::Config;
use crate::fault::causes;
use crate::metrics::Metrics;
use crate::route::{Route, Routes};
use crate::sink::Sink;
use crate::store::{RouteBacklog, Store, StoreError, Terms};
use crate::web::tls::Tls;

impl App {
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

    pub(super) fn reload(&self, signals: &Signals) -> Reload {
        Reload {
            one_at_a_time: Mutex::default(),
            settings: Arc::clone(&signals.settings),
            store: Arc::clone(&self.store),
            terms: self.config.store.terms,
            replica: self.config.server.replica.clone(),
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

/// The parts that a reload reads and changes.
pub(super) struct Reload {
    /// Else the settings read last might not be those put in force last.
    one_at_a_time: Mutex<()>,
    settings: Arc<dyn Fn() -> Result<Config, String> + Send + Sync>,
    store: Arc<dyn Store>,
    /// The bounds of waiting that the store was opened with.
    terms: Terms,
    replica: String,
    routes: Arc<ArcSwap<Routes>>,
    sinks: Vec<(String, Arc<dyn Sink>)>,
    tls: Option<Arc<Tls>>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Reload {
    /// Puts new routes in force, serves a new certificate, opens files anew. Says what it did, or
    /// why nothing was changed.
    pub(super) async fn apply(&self) -> Result<String, String> {
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
        if config.store.terms.longest_wait > self.terms.longest_wait {
            return Err(
                "a hold or a digest is longer than any before: restart to have it; nothing was \
                 changed"
                    .to_owned(),
            );
        }
        if let Some(why) = reorders(&self.store.route_backlog().await, &config.routes) {
            return Err(why);
        }
        // Kept before they are in force: each event names the settings that judged it.
        self.store
            .put_generation(config.generation, &self.replica, self.clock.now())
            .await
            .map_err(|error| {
                let error = causes(&error);
                format!("the store cannot keep the new settings now: {error}; nothing was changed")
            })?;
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

/// Says which route new settings give another order while deliveries wait in the old one: what
/// arrives next would leave before them, and nothing would say so.
fn reorders(waiting: &Result<Vec<RouteBacklog>, StoreError>, routes: &[Route]) -> Option<String> {
    let waiting = match waiting {
        Ok(waiting) => waiting,
        Err(error) => {
            let error = causes(error);
            return Some(format!(
                "the store does not say what waits: {error}; nothing was changed"
            ));
        }
    };
    waiting.iter().find_map(|it| {
        let (name, count) = (&it.route, it.waiting);
        let Some(route) = routes.iter().find(|route| route.name == *name) else {
            return Some(format!(
                "route `{name}` is gone or has another name, and {count} deliveries wait for it: \
                 reload when they have left; nothing was changed"
            ));
        };
        (!route.keeps_order_of(it.lanes)).then(|| {
            format!(
                "route `{name}` gets another order, and {count} deliveries wait in the one it has: \
                 reload when they have left; nothing was changed"
            )
        })
    })
}

/// Warns at a start of deliveries that wait in another order than their route has now.
pub(super) async fn warn_of_reorder(store: &dyn Store, routes: &[Route]) {
    let waiting = match store.route_backlog().await {
        Ok(waiting) => waiting,
        Err(error) => {
            let error = causes(&error);
            tracing::warn!(
                error,
                "the store did not say in which order deliveries wait"
            );
            return;
        }
    };
    for it in waiting {
        let route = routes.iter().find(|route| route.name == it.route);
        if route.is_some_and(|route| !route.keeps_order_of(it.lanes)) {
            tracing::warn!(
                route = it.route,
                waiting = it.waiting,
                "these deliveries wait in an order that their route no longer has; what arrives now may leave before them, unmarked"
            );
        }
    }
}

pub(super) fn renew(tls: &Tls, metrics: &Metrics) -> String {
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
