//! Runbell under measure: the whole service, or the receive street alone, so that what a 200 costs
//! can be told from what the deliveries cost that go on beside it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use runbell::app::keeping;
use runbell::app::{App, Listeners, Signals};
use runbell::clock::Clock;
use runbell::config::{Config, Surroundings};
use runbell::health::Readiness;
use runbell::metrics::Metrics;
use runbell::receive::{Parts, Receiver};
use runbell::route::Routes;
use runbell::sns::{Http, Verifier};
use runbell::web::hook;
use runbell::web::serve::{Door, serve as serve_door};
use runbell::web::tls::Tls;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::child::{say_port, told_to_stop};
use crate::notifications::TOPIC;

/// How long the topic's order is held; the instance's is not, while nothing is missing.
pub(crate) const HOLD_SECONDS: u64 = 5;

/// The file that holds the settings within a child's folder.
const SETTINGS: &str = "runbell.toml";

/// Writes the settings of one life in `folder`: two files, one in the order of the topic and one in
/// the order of each instance. The listener's certificate lies one folder up.
pub(crate) fn settle_in(folder: &Path, endpoint: &str) -> anyhow::Result<()> {
    let text = format!(
        r#"
[server]
listen = "127.0.0.1:0"
tls = {{ cert = "../tls.crt", key = "../tls.key" }}
gap_hold = "0s"
[admin]
listen = "off"
socket = "off"
[store]
url = "sqlite:store.db"
[[topic]]
arn = "{TOPIC}"
endpoint = "{endpoint}"
[sink.by-topic]
type = "file"
path = "by-topic.jsonl"
[sink.by-instance]
type = "file"
path = "by-instance.jsonl"
[[route]]
name = "by-topic"
to = ["by-topic"]
order = "topic"
hold = "{HOLD_SECONDS}s"
[[route]]
name = "by-instance"
to = ["by-instance"]
order = "instance"
"#
    );
    Ok(std::fs::write(folder.join(SETTINGS), text)?)
}

/// The settings that lie in `folder`.
pub(crate) fn settings(folder: &Path) -> anyhow::Result<Config> {
    let path = folder.join(SETTINGS);
    let text = std::fs::read_to_string(&path)?;
    let around = Surroundings {
        folder,
        variable: &|_| None,
    };
    let parsed = Config::parse(&text, &path, &around);
    let (config, _) = parsed.map_err(|faults| anyhow::anyhow!(faults.render(false)))?;
    Ok(config)
}

/// The whole service, as `runbell serve` runs it.
pub(crate) async fn serve(folder: &Path) -> anyhow::Result<()> {
    let config = settings(folder)?;
    let listeners = Listeners::bind(&config).await?;
    say_port(listeners.hook_address()?.port());
    let app = App::build(config, Clock::system()).await?;
    let signals = Signals {
        stop: CancellationToken::new(),
        settings: Arc::new(|| Err("nothing is reloaded here".to_owned())),
        reload: Arc::new(Notify::new()),
    };
    let (ended, ()) = tokio::join!(app.run(listeners, signals.clone()), async {
        told_to_stop().await;
        signals.stop.cancel();
    });
    Ok(ended?)
}

/// The listener, the receive path and the store, with the same settings; nobody delivers.
pub(crate) async fn receive(folder: &Path) -> anyhow::Result<()> {
    let config = settings(folder)?;
    let listener = TcpListener::bind(config.server.hook.listen).await?;
    say_port(listener.local_addr()?.port());
    let tls = config.server.hook.tls.clone().context("no TLS")?;
    let clock = Clock::system();
    let (store, keeping, _) = keeping::open(&config.store, &clock).await?;
    let http = Http::default();
    let known = store.certificates().await?;
    let metrics = Arc::new(Metrics::new());
    let receiver = Arc::new(Receiver::new(Parts {
        verifier: Verifier::new(config.topics.clone(), http.clone(), known),
        topics: config.topics.clone(),
        http,
        time: store.clock().clone(),
        store,
        routes: Arc::new(ArcSwap::from_pointee(Routes::new(config.routes.clone()))),
        wakes: std::collections::HashMap::new(),
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
        readiness: Readiness::new(),
        gap_hold: config.server.gap_hold,
        after_gap: false,
    }));
    let router = hook::router(&config.server.hook, Arc::clone(&metrics), move |post| {
        let receiver = Arc::clone(&receiver);
        async move {
            let headers = post.headers();
            receiver.receive(&post.body, headers, post.client).await
        }
    });
    let stop = CancellationToken::new();
    let door = Door::Tls(listener, Arc::new(Tls::load(tls)?));
    let limits = config.server.hook.limits(config.server.drain);
    tokio::join!(
        serve_door("hook", door, router, limits, metrics, stop.clone()),
        async {
            told_to_stop().await;
            stop.cancel();
        }
    );
    // The router was the last to hold the store, so the writer ends.
    keeping.end(&clock, jiff::Timestamp::MAX).await;
    Ok(())
}
