//! Both streets without their doors: events go into a real store and come out at a sink that only
//! listens, with the clock and each step of the worker moved by hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use runbell::clock::Clock;
use runbell::deliver::{Surroundings, Worker};
use runbell::delivery::{Leading, SortKey};
use runbell::event::{EnvelopeKind, Event, Source};
use runbell::metrics::Metrics;
use runbell::render::Notice;
use runbell::retry::Verdict;
use runbell::route::Routes;
use runbell::sink::{Capacity, Permit, Sink};
use runbell::store::Append;
use runbell::wake::Wake;

use super::store::{On, TestStore};

/// A notification on its way here.
#[derive(Clone, Debug)]
pub struct Arrival {
    command: String,
    instance: String,
    status: String,
    event_time: Timestamp,
    message_id: String,
    topic: usize,
}

impl Arrival {
    /// An invocation's status; a summary's when `instance` is empty.
    pub fn new(
        command: &str,
        instance: &str,
        status: &str,
        event_time: Timestamp,
        message_id: &str,
    ) -> Self {
        Self {
            command: command.to_owned(),
            instance: instance.to_owned(),
            status: status.to_owned(),
            event_time,
            message_id: message_id.to_owned(),
            topic: 0,
        }
    }

    /// The same, on another topic.
    pub fn on_topic(self, topic: usize) -> Self {
        Self { topic, ..self }
    }

    /// The same step in a notification of its own.
    pub fn told_again(&self) -> Self {
        Self {
            message_id: format!("{}-again", self.message_id),
            ..self.clone()
        }
    }
}

/// What left.
#[derive(Clone, Debug)]
pub struct Sent {
    pub command: String,
    pub instance: String,
    pub status: String,
    pub late: bool,
    /// Whether something with a greater key left the same lane in an earlier look at the store.
    pub below_what_left: bool,
}

/// A sink that takes everything and remembers it.
#[derive(Default)]
struct Listener(Mutex<Vec<Notice>>);

#[async_trait]
impl Sink for Listener {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1000,
            at_once: 1,
        }
    }

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        if !permit.begin() {
            return Vec::new();
        }
        self.0.lock().unwrap().extend_from_slice(notices);
        vec![Verdict::Sent { remote_id: None }; notices.len()]
    }
}

pub struct Street {
    pub clock: Clock,
    store: TestStore,
    routes: Arc<ArcSwap<Routes>>,
    listener: Arc<Listener>,
    worker: Worker,
    order: String,
    high: Mutex<HashMap<String, SortKey>>,
}

impl Street {
    /// A street with one route of this `order` and `hold`.
    pub async fn open(on: On, order: &str, hold: &str) -> Self {
        let clock = Clock::by_hand("2026-11-23T10:00:10Z".parse().unwrap());
        let store = TestStore::open_on_at(on, clock.clone()).await;
        let text = format!("name = \"r\"\nto = [\"s\"]\norder = \"{order}\"\nhold = \"{hold}\"");
        let route = toml::from_str::<runbell::route::Settings>(&text)
            .unwrap()
            .check()
            .unwrap();
        let routes = Arc::new(ArcSwap::from_pointee(Routes::new(vec![route])));
        let listener = Arc::new(Listener::default());
        let around = Surroundings {
            lanes: store.handle(),
            routes: Arc::clone(&routes),
            clock: clock.clone(),
            metrics: Arc::new(Metrics::new()),
        };
        let worker = Worker::new("s", listener.clone(), Wake::default(), around);
        Self {
            clock,
            store,
            routes,
            listener,
            worker,
            order: order.to_owned(),
            high: Mutex::default(),
        }
    }

    /// A notification arrives.
    pub async fn arrives(&self, arrival: &Arrival) {
        let topic = arrival.topic;
        let body = if arrival.instance.is_empty() {
            serde_json::json!({
                "commandId": arrival.command, "documentName": "AWS-RunShellScript",
                "instanceIds": [], "status": arrival.status,
                "eventTime": arrival.event_time.to_string(),
            })
        } else {
            serde_json::json!({
                "commandId": arrival.command, "documentName": "AWS-RunShellScript",
                "instanceId": arrival.instance, "status": arrival.status,
                "eventTime": arrival.event_time.to_string(),
            })
        };
        let event = Event::read(&Source {
            topic: &format!("arn:aws:sns:eu-central-1:123456789012:t{topic}"),
            account: "123456789012",
            region: "eu-central-1",
            message_id: &arrival.message_id,
            sent_at: arrival.event_time,
            subject: None,
            body: &body.to_string(),
            envelope: EnvelopeKind::Notification,
        });
        let owed = self.routes.load().owed(&event, None);
        let append = Append::new(event, owed, self.clock.now());
        self.store.handle().append(append).await.unwrap();
    }

    /// Many arrive at once, as over many connections.
    pub async fn arrive_together(&self, arrivals: impl Iterator<Item = &Arrival>) {
        let mut under_way = futures_util::stream::FuturesUnordered::new();
        for arrival in arrivals {
            under_way.push(self.arrives(arrival));
            if under_way.len() >= 1000 {
                under_way.next().await;
            }
        }
        while under_way.next().await.is_some() {}
    }

    /// The worker looks until nothing more may go now; says what left, in order.
    pub async fn deliver(&self) -> Vec<Sent> {
        let mut sent = Vec::new();
        // The clock was moved: a holder that gives no sign of life sends nothing.
        self.store.handle().beat().await.unwrap();
        while self.worker.step().await.unwrap().lanes > 0 {
            let notices = std::mem::take(&mut *self.listener.0.lock().unwrap());
            let mut high = self.high.lock().unwrap();
            let before = high.clone();
            for notice in notices {
                let command = notice.event.command().unwrap();
                let instance = command.instance.clone().unwrap_or_default();
                let (lane, leading) = match self.order.as_str() {
                    "instance" => (format!("{}/{instance}", command.command), Leading::Rank),
                    "command" => (command.command.clone(), Leading::Time),
                    _ => (notice.event.topic.clone(), Leading::Time),
                };
                let key = SortKey::new(
                    leading,
                    notice.event.sort_time,
                    notice.event.rank(),
                    &instance,
                    &notice.event.message_id,
                );
                sent.push(Sent {
                    command: command.command.clone(),
                    status: command.status.to_string(),
                    instance,
                    late: notice.marks.late.is_some(),
                    below_what_left: before.get(&lane).is_some_and(|high| key < *high),
                });
                let high = high.entry(lane).or_insert_with(|| key.clone());
                *high = key.max(high.clone());
            }
        }
        sent
    }

    /// Nothing waits, nothing was rescued, and the books balance.
    pub async fn assert_sound(&self) {
        let store = self.store.handle();
        assert_eq!(store.sweep().await.unwrap(), 0, "lanes rescued");
        for tally in store.tally().await.unwrap() {
            assert_eq!(tally.waiting, 0, "{tally:?}");
            assert_eq!(tally.owed, tally.sent + tally.redundant, "{tally:?}");
        }
    }
}
