//! What an operator's monitoring sees, in the `OpenMetrics` format.
//!
//! `app` makes one [`Metrics`] and lends it; parts count through its methods, `web::admin` encodes
//! it. Every label is bounded by the settings or by this program's own words: topics that are
//! allowed, sinks that are configured, words of refusals and outcomes. Never a command, an instance
//! or anything else that a message carries.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

mod process;

/// What `GET /metrics` says it answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All that is counted and measured. Counting takes a short lock at most, and never waits for I/O.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    received: Family<TopicResult, Counter>,
    unrouted: Family<Topic, Counter>,
    conflicts: Family<Topic, Counter>,
    verify: Histogram,
    append: Histogram,
    lateness: Histogram,
    deliveries: Family<SinkResult, Counter>,
    attempts: Family<SinkVerdict, Counter>,
    template_failures: Family<Sink, Counter>,
    delay: Family<Sink, Histogram, fn() -> Histogram>,
    rescued: Counter,
    answers: Family<Code, Counter>,
    connections: Family<Listener, Gauge>,
    cut: Family<ListenerReason, Counter>,
    replicas: Gauge,
    reload_successful: Gauge,
    reload_at: Gauge,
    certificate_expires: Gauge,
    sinks: SinkGauges,
    /// The sinks that are shown; held while the page is made, so that no page shows half a refresh.
    shown: Mutex<BTreeSet<String>>,
}

/// How it stands with one sink, as the store knows it when the page is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkState {
    /// Its name.
    pub sink: String,
    /// Deliveries that wait.
    pub waiting: u64,
    /// For how long the oldest of them has waited.
    pub oldest: Option<Duration>,
    /// Deliveries among the dead letters.
    pub dead: u64,
    /// It is in backoff: it failed as a whole, or the other side asked for a pause.
    pub in_backoff: bool,
}

#[derive(Debug, Default)]
struct SinkGauges {
    waiting: Family<Sink, Gauge>,
    oldest: Family<Sink, Gauge<f64, std::sync::atomic::AtomicU64>>,
    dead: Family<Sink, Gauge>,
    backoff: Family<Sink, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicResult {
    topic: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Topic {
    topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkResult {
    sink: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkVerdict {
    sink: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sink {
    sink: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerReason {
    listener: &'static str,
    reason: &'static str,
}

impl Metrics {
    /// Metrics of this process, all at zero.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            received: Family::default(),
            unrouted: Family::default(),
            conflicts: Family::default(),
            verify: Histogram::new([0.000_05, 0.000_1, 0.000_25, 0.001, 0.01, 0.1, 1.0, 10.0]),
            append: Histogram::new([0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0]),
            lateness: Histogram::new([1.0, 5.0, 25.0, 65.0, 300.0, 900.0, 3600.0, 21600.0]),
            deliveries: Family::default(),
            attempts: Family::default(),
            template_failures: Family::default(),
            delay: Family::new_with_constructor(delay_histogram),
            rescued: Counter::default(),
            answers: Family::default(),
            connections: Family::default(),
            cut: Family::default(),
            replicas: Gauge::default(),
            reload_successful: Gauge::default(),
            reload_at: Gauge::default(),
            certificate_expires: Gauge::default(),
            sinks: SinkGauges::default(),
            shown: Mutex::default(),
        };
        metrics.with_paths().with_process()
    }

    /// One request was judged: `result` is `accepted`, `known`, or the word of a refusal. `topic`
    /// is absent unless it is an allowed one.
    pub fn received(&self, topic: Option<&str>, result: &'static str) {
        let topic = topic.unwrap_or_default().to_owned();
        self.received
            .get_or_create(&TopicResult { topic, result })
            .inc();
    }

    /// An event was kept that no route matches.
    pub fn unrouted(&self, topic: &str) {
        let topic = topic.to_owned();
        self.unrouted.get_or_create(&Topic { topic }).inc();
    }

    /// A terminal status arrived after a different one of the same thing.
    pub fn conflicted(&self, topic: &str) {
        let topic = topic.to_owned();
        self.conflicts.get_or_create(&Topic { topic }).inc();
    }

    /// How long it took to say whether AWS signed it.
    pub fn verified_in(&self, took: Duration) {
        self.verify.observe(took.as_secs_f64());
    }

    /// How long it took until what was kept had been committed.
    pub fn appended_in(&self, took: Duration) {
        self.append.observe(took.as_secs_f64());
    }

    /// A delivery left marked late, by this much.
    pub fn late_by(&self, by: Duration) {
        self.lateness.observe(by.as_secs_f64());
    }

    /// A delivery came to `result`, a word of `delivery::Outcome`.
    pub fn delivered(&self, sink: &str, result: &'static str, count: u64) {
        let sink = sink.to_owned();
        self.deliveries
            .get_or_create(&SinkResult { sink, result })
            .inc_by(count);
    }

    /// A template failed, and a notice went in the usual words.
    pub fn template_failed(&self, sink: &str) {
        let sink = sink.to_owned();
        self.template_failures.get_or_create(&Sink { sink }).inc();
    }

    /// A sink was tried and answered with `verdict`.
    pub fn attempted(&self, sink: &str, verdict: &'static str) {
        let sink = sink.to_owned();
        self.attempts
            .get_or_create(&SinkVerdict { sink, verdict })
            .inc();
    }

    /// How long after its arrival an event reached the sink.
    pub fn reached(&self, sink: &str, after: Duration) {
        let sink = sink.to_owned();
        self.delay
            .get_or_create(&Sink { sink })
            .observe(after.as_secs_f64());
    }

    /// So many replicas share the store.
    pub fn replicas(&self, many: u32) {
        self.replicas.set(i64::from(many));
    }

    /// The sweep repaired so many lanes.
    pub fn rescued(&self, lanes: u64) {
        self.rescued.inc_by(lanes);
    }

    /// A request on the listener for SNS was answered with this HTTP status.
    pub fn answered(&self, code: u16) {
        self.answers.get_or_create(&Code { code }).inc();
    }

    /// A connection began, until [`Metrics::disconnected`].
    pub fn connected(&self, listener: &'static str) {
        self.connections.get_or_create(&Listener { listener }).inc();
    }

    /// A connection ended.
    pub fn disconnected(&self, listener: &'static str) {
        self.connections.get_or_create(&Listener { listener }).dec();
    }

    /// A connection was ended from this side, for `reason`.
    pub fn cut(&self, listener: &'static str, reason: &'static str) {
        self.cut
            .get_or_create(&ListenerReason { listener, reason })
            .inc();
    }

    /// Settings were read at start or on request; `at` is when, if they were good.
    pub fn reloaded(&self, at: Option<Timestamp>) {
        self.reload_successful.set(i64::from(at.is_some()));
        if let Some(at) = at {
            self.reload_at.set(at.as_second());
        }
    }

    /// The certificate that is served ends at this moment.
    pub fn certificate_expires(&self, at: Timestamp) {
        self.certificate_expires.set(at.as_second());
    }

    /// The sinks that the settings name: shown with zeros while nothing waits for them.
    pub fn configured(&self, sinks: impl IntoIterator<Item = String>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = sinks.into_iter().collect();
    }

    /// The whole page. `sinks` is the store's backlog; without it (the store did not answer) the
    /// gauges that would come from it are left out, since an old value would be taken for a new.
    ///
    /// # Errors
    /// When a metric cannot be written as text.
    pub fn encode(&self, sinks: Option<&[SinkState]>) -> Result<String, fmt::Error> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        self.sinks.refresh(&shown, sinks);
        let mut page = String::with_capacity(16 * 1024);
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(page)
    }

    fn with_paths(mut self) -> Self {
        let to = &mut self.registry;
        to.register(
            "runbell_received",
            "Requests judged, by what came of them",
            self.received.clone(),
        );
        to.register(
            "runbell_unrouted",
            "Events kept that no route matches",
            self.unrouted.clone(),
        );
        to.register(
            "runbell_conflicts",
            "Terminal statuses that contradict an earlier one of the same thing",
            self.conflicts.clone(),
        );
        to.register_with_unit(
            "runbell_verify",
            "Time to say whether AWS signed it",
            Unit::Seconds,
            self.verify.clone(),
        );
        to.register_with_unit(
            "runbell_append",
            "Time until an event was committed",
            Unit::Seconds,
            self.append.clone(),
        );
        to.register_with_unit(
            "runbell_lateness",
            "How late the deliveries were that left marked late",
            Unit::Seconds,
            self.lateness.clone(),
        );
        to.register(
            "runbell_deliveries",
            "Deliveries, by what came of them",
            self.deliveries.clone(),
        );
        to.register(
            "runbell_attempts",
            "Tries to send, by what the sink answered",
            self.attempts.clone(),
        );
        to.register(
            "runbell_template_failures",
            "Notices that went in the usual words because their template failed",
            self.template_failures.clone(),
        );
        to.register_with_unit(
            "runbell_delivery_delay",
            "Time from arrival until the sink had it",
            Unit::Seconds,
            self.delay.clone(),
        );
        to.register(
            "runbell_lanes_rescued",
            "Lanes the sweep had to repair; anything but zero is a bug",
            self.rescued.clone(),
        );
        to.register(
            "runbell_waiting",
            "Deliveries that wait",
            self.sinks.waiting.clone(),
        );
        to.register_with_unit(
            "runbell_oldest_waiting",
            "How long the oldest delivery has waited",
            Unit::Seconds,
            self.sinks.oldest.clone(),
        );
        to.register(
            "runbell_dead",
            "Deliveries among the dead letters",
            self.sinks.dead.clone(),
        );
        to.register(
            "runbell_sink_backoff",
            "Whether the sink is in backoff",
            self.sinks.backoff.clone(),
        );
        self
    }

    fn with_process(mut self) -> Self {
        let to = &mut self.registry;
        to.register(
            "runbell_http_answers",
            "Answers on the listener for SNS",
            self.answers.clone(),
        );
        to.register(
            "runbell_connections",
            "Connections that are open",
            self.connections.clone(),
        );
        to.register(
            "runbell_connections_cut",
            "Connections ended from this side",
            self.cut.clone(),
        );
        to.register(
            "runbell_replicas",
            "Replicas that share the store and are alive",
            self.replicas.clone(),
        );
        to.register(
            "runbell_config_last_reload_successful",
            "Whether the settings read last were good",
            self.reload_successful.clone(),
        );
        to.register_with_unit(
            "runbell_config_last_reload_success_timestamp",
            "When good settings were read last",
            Unit::Seconds,
            self.reload_at.clone(),
        );
        to.register_with_unit(
            "runbell_tls_certificate_expiry_timestamp",
            "When the served certificate ends; zero without TLS",
            Unit::Seconds,
            self.certificate_expires.clone(),
        );
        to.register(
            "runbell_build",
            "What is running",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        to.register_collector(Box::new(process::Process));
        self
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl SinkGauges {
    fn refresh(&self, shown: &BTreeSet<String>, states: Option<&[SinkState]>) {
        self.waiting.clear();
        self.oldest.clear();
        self.dead.clear();
        self.backoff.clear();
        let Some(states) = states else { return };
        for sink in shown {
            self.set(&SinkState {
                sink: sink.clone(),
                waiting: 0,
                oldest: None,
                dead: 0,
                in_backoff: false,
            });
        }
        for state in states {
            self.set(state);
        }
    }

    fn set(&self, state: &SinkState) {
        let sink = Sink {
            sink: state.sink.clone(),
        };
        self.waiting.get_or_create(&sink).set(gauge(state.waiting));
        self.oldest
            .get_or_create(&sink)
            .set(state.oldest.unwrap_or_default().as_secs_f64());
        self.dead.get_or_create(&sink).set(gauge(state.dead));
        self.backoff
            .get_or_create(&sink)
            .set(i64::from(state.in_backoff));
    }
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn delay_histogram() -> Histogram {
    Histogram::new([
        0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 65.0, 300.0, 3600.0, 86_400.0,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_with_nothing_waiting_shows_zero_and_a_silent_store_shows_nothing() {
        let metrics = Metrics::new();
        metrics.configured(["audit".to_owned()]);
        let ops = SinkState {
            sink: "ops".to_owned(),
            waiting: 3,
            oldest: Some(Duration::from_millis(1500)),
            dead: 1,
            in_backoff: true,
        };
        let page = metrics.encode(Some(&[ops])).unwrap();
        for line in [
            r#"runbell_waiting{sink="audit"} 0"#,
            r#"runbell_waiting{sink="ops"} 3"#,
            r#"runbell_oldest_waiting_seconds{sink="ops"} 1.5"#,
            r#"runbell_dead{sink="ops"} 1"#,
            r#"runbell_sink_backoff{sink="ops"} 1"#,
            r#"runbell_sink_backoff{sink="audit"} 0"#,
        ] {
            assert!(page.lines().any(|each| each == line), "{line} in\n{page}");
        }
        let page = metrics.encode(None).unwrap();
        assert!(!page.contains("runbell_waiting{"), "{page}");
        let page = metrics.encode(Some(&[])).unwrap();
        assert!(!page.contains(r#"sink="ops""#), "{page}");
    }

    #[test]
    fn what_is_counted_is_shown_under_its_labels() {
        let metrics = Metrics::new();
        metrics.received(Some("arn:aws:sns:eu-central-1:123456789012:t"), "accepted");
        metrics.received(None, "foreign-topic");
        metrics.received(None, "foreign-topic");
        metrics.delivered("ops", "sent", 1);
        metrics.attempted("ops", "retry");
        metrics.rescued(2);
        metrics.answered(403);
        metrics.reloaded(Some(Timestamp::from_second(1_700_000_000).unwrap()));
        metrics.reloaded(None);
        let page = metrics.encode(None).unwrap();
        for line in [
            r#"runbell_received_total{topic="arn:aws:sns:eu-central-1:123456789012:t",result="accepted"} 1"#,
            r#"runbell_received_total{topic="",result="foreign-topic"} 2"#,
            r#"runbell_deliveries_total{sink="ops",result="sent"} 1"#,
            r#"runbell_attempts_total{sink="ops",verdict="retry"} 1"#,
            "runbell_lanes_rescued_total 2",
            r#"runbell_http_answers_total{code="403"} 1"#,
            "runbell_config_last_reload_successful 0",
            "runbell_config_last_reload_success_timestamp_seconds 1700000000",
        ] {
            assert!(page.lines().any(|each| each == line), "{line} in\n{page}");
        }
    }
}
