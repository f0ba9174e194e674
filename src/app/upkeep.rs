//! Tasks beside the two paths: signs of life, repairs, forgetting; and the acts of the admin listener.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::App;
use super::reload::{Reload, renew};
use crate::clock::Clock;
use crate::fault::causes;
use crate::health::Readiness;
use crate::metrics::Metrics;
use crate::receive::{ConfirmError, Receiver};
use crate::store::{Care, Store, StoreError};
use crate::web::admin::{self, wire};

/// How often old events are forgotten and the certificate's files looked at.
const EVERY: Duration = Duration::from_secs(5);

/// How often lanes are looked for that wait without being due. There is no known way to such a lane,
/// and the look walks over all lanes.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

/// How often the store is given a sign of life.
const BEAT: Duration = Duration::from_secs(1);

/// How long a sign of life may take before the store counts as away.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many steps of forgetting there are in a row, so that the rest has its turn.
const STEPS: usize = 200;

impl App {
    /// Gives the store a sign of life once a second, until `stop`. It renews the leases at work, and
    /// frees what nobody carries.
    pub(super) fn beats(
        &self,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let store = Arc::clone(&self.store);
        let (clock, readiness) = (self.clock.clone(), self.readiness.clone());
        async move {
            let mut answers = true;
            loop {
                // The first one at once: a replica that is not heard sends nothing.
                let beat = tokio::select! {
                    () = stop.cancelled() => return,
                    beat = store.beat() => beat,
                    () = clock.sleep(PATIENCE) => {
                        Err(StoreError::Gone(Some("it does not answer in time".into())))
                    }
                };
                match beat {
                    Ok(()) => {
                        if !answers {
                            tracing::info!("the store answers again");
                        }
                        answers = true;
                        readiness.ready("store-beat");
                    }
                    Err(error) => {
                        let cause = causes(&error);
                        if answers {
                            tracing::error!(
                                error = cause,
                                "the store does not answer; nothing is taken in until it does"
                            );
                        }
                        answers = false;
                        readiness.unready("store-beat", cause);
                    }
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = clock.sleep(BEAT) => {}
                }
            }
        }
    }

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
            let mut swept_at = clock.boot();
            loop {
                sharers.are(store.replicas());
                metrics.replicas(store.replicas());
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = clock.sleep(EVERY) => {}
                }
                if clock.boot().saturating_sub(swept_at) >= SWEEP_EVERY {
                    swept_at = clock.boot();
                    sweep(&*store, &metrics).await;
                }
                if let Some(tls) = &tls
                    && tls.changed()
                {
                    renew(tls, &metrics);
                }
                forget(&*store, &clock, &readiness, keep, &stop).await;
            }
        }
    }

    /// The parts that the admin listener looks at and acts on.
    pub(super) fn admin_parts(&self, reload: Arc<Reload>) -> admin::Parts {
        let receiver = || Arc::clone(&self.receiver);
        let (confirming, listing, judging) = (receiver(), receiver(), receiver());
        admin::Parts {
            history: self.store.clone(),
            care: self.store.clone(),
            time: self.store.clock().clone(),
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
}

/// Repairs lanes that wait without being due.
async fn sweep(store: &dyn Care, metrics: &Metrics) {
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
}

/// Forgets what is old. Trouble of forgetting is no trouble of intake, and takes no replica from its
/// balancer.
async fn forget(
    store: &dyn Store,
    clock: &Clock,
    readiness: &Readiness,
    keep: Duration,
    stop: &CancellationToken,
) {
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
                tracing::warn!(error, "old events cannot be forgotten");
                return;
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Terms;
    use crate::store::sqlite::Sqlite;

    #[tokio::test]
    async fn trouble_of_forgetting_is_no_trouble_of_intake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runbell.db");
        let (clock, keep) = (Clock::system(), Duration::from_hours(1));
        drop(Sqlite::open(&path, Terms::default(), &clock).unwrap());
        // Nobody writes this one, so nothing can be forgotten.
        let store = Sqlite::look(&path).unwrap();
        assert!(store.prune(clock.now(), keep).await.is_err());
        let readiness = Readiness::new();
        forget(&store, &clock, &readiness, keep, &CancellationToken::new()).await;
        assert!(readiness.is_ready(), "{:?}", readiness.reasons());
    }
}
