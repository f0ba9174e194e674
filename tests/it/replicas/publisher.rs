//! SNS towards the replicas: statuses of one command after the other, in some disorder, each posted
//! again until a replica answers with 200.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use runbell::clock::{Clock, earlier, later};
use tokio_util::sync::CancellationToken;

use super::settings::Order;
use crate::harness::app::until_within;
use crate::harness::sns::{Sns, TOPIC};
use crate::history::{self, Posted};

/// How the id of every command begins; twelve digits follow.
pub const COMMAND: &str = "00000000-0000-4000-8000-";
/// Of so many instances one fails, so that digests have something to tell.
const FAILING: usize = 100;
/// How many posts are under way at the same time.
const AT_ONCE: usize = 8;
/// How long one post may take before the next replica is asked, as a load balancer does.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a few hundred posts may take on a busy machine.
const LONG: Duration = Duration::from_mins(3);

/// How many statuses a command tells: of itself and of each instance that it begins and ends.
const fn statuses(instances: usize) -> usize {
    2 * instances + 2
}

/// A status, and when it was posted first and answered with 200.
#[derive(Clone, Debug)]
pub struct Status {
    id: String,
    command: String,
    instance: Option<String>,
    word: &'static str,
    at: Timestamp,
    pub offered_at: Timestamp,
    pub accepted_at: Option<Timestamp>,
}

impl Status {
    /// The status of this number, where commands have so many instances; it happened shortly before
    /// `now`.
    pub fn new(number: usize, instances: usize, now: Timestamp) -> Self {
        let (command, place) = (number / statuses(instances), number % statuses(instances));
        let (instance, word) = match place {
            0 => (None, "InProgress"),
            place if place == statuses(instances) - 1 => (None, "Failed"),
            place => {
                let instance = (place - 1) / 2;
                let ends = match instance % FAILING {
                    30 => "Failed",
                    _ => "Success",
                };
                (Some(instance), ["InProgress", ends][(place - 1) % 2])
            }
        };
        // Some come out of order within their hold, and a few after it. A command begins before
        // anything else of it happens.
        let ago = match place {
            0 => 2500,
            _ if number % 20 == 7 => 2000,
            _ => u64::try_from(number * 37 % 200).unwrap(),
        };
        Self {
            id: format!("m-{number}"),
            command: format!("{COMMAND}{command:012}"),
            instance: instance.map(|it| format!("i-{it:017x}")),
            word,
            at: earlier(now, Duration::from_millis(ago)),
            offered_at: now,
            accepted_at: None,
        }
    }

    /// What SNS posts.
    pub fn sign(&self, sns: &Sns) -> String {
        let mut message = serde_json::json!({
            "commandId": self.command, "documentName": "AWS-RunShellScript",
            "status": self.word, "eventTime": self.at.to_string(),
        });
        match &self.instance {
            Some(instance) => message["instanceId"] = instance.as_str().into(),
            None => message["instanceIds"] = serde_json::json!([]),
        }
        sns.envelope(&Sns::draft(&self.id, &message.to_string(), self.at))
    }

    /// The same for the checker, in the lanes of this order.
    pub fn posted(&self, order: Order) -> Posted {
        let rank = match (&self.instance, self.word) {
            (None, "InProgress") => 0,
            (Some(_), "InProgress") => 1,
            (Some(_), _) => 2,
            (None, _) => 3,
        };
        let instance = self.instance.as_deref().unwrap_or_default();
        let by_time = history::by_time(self.at, rank, instance, &self.id);
        let by_status = history::by_status(self.at, rank, instance, &self.id);
        let (lane, key) = match order {
            Order::Topic => (TOPIC.to_owned(), by_time),
            Order::Instance => (format!("{}/{instance}", self.command), by_status),
            Order::Command | Order::Digest => (self.command.clone(), by_time),
        };
        Posted {
            id: self.id.clone(),
            lane,
            key,
            offered_at: self.offered_at,
            accepted_at: self.accepted_at,
        }
    }
}

/// How many instances ended in which way, by command and by the word of a digest for it.
pub type Counts = BTreeMap<&'static str, usize>;

/// How much comes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many statuses in a second.
    pub pace: u64,
    /// How many instances a command has.
    pub instances: usize,
}

pub struct Publisher {
    pub sns: Sns,
    pub http: reqwest::Client,
    pub hooks: Vec<u16>,
    pub stop: CancellationToken,
    clock: Clock,
    next: AtomicUsize,
    statuses: Mutex<Vec<Status>>,
    accepted: AtomicUsize,
    /// How many are posted in a second.
    pace: AtomicU64,
    /// How many instances a command has.
    instances: usize,
}

impl Publisher {
    pub fn new(sns: Sns, http: reqwest::Client, hooks: Vec<u16>, load: Load) -> Self {
        Self {
            sns,
            http,
            hooks,
            stop: CancellationToken::new(),
            clock: Clock::system(),
            next: AtomicUsize::default(),
            statuses: Mutex::default(),
            accepted: AtomicUsize::default(),
            pace: AtomicU64::new(load.pace),
            instances: load.instances,
        }
    }

    /// Posts so many in a second from now on.
    pub fn pace(&self, a_second: u64) {
        self.pace.store(a_second, Ordering::Relaxed);
    }

    /// Posts one status after the other, a few at the same time, until it is to stop and the last
    /// command has told everything.
    pub async fn publish(&self) {
        let posters = (0..AT_ONCE).map(async |_| {
            loop {
                let begun = self.clock.now();
                let next = |number: usize| {
                    let is_over =
                        self.stop.is_cancelled() && number.is_multiple_of(statuses(self.instances));
                    (!is_over).then_some(number + 1)
                };
                let (from, to) = (Ordering::Relaxed, Ordering::Relaxed);
                let Ok(number) = self.next.fetch_update(from, to, next) else {
                    return;
                };
                self.post(Status::new(number, self.instances, begun)).await;
                let each = Duration::from_secs(1) * u32::try_from(AT_ONCE).unwrap();
                let pace = u32::try_from(self.pace.load(Ordering::Relaxed)).unwrap();
                self.clock.sleep_until(later(begun, each / pace)).await;
            }
        });
        futures_util::future::join_all(posters).await;
    }

    async fn post(&self, mut status: Status) {
        let body = status.sign(&self.sns);
        status.offered_at = self.clock.now();
        let place = self.note(status);
        let first = place % self.hooks.len();
        for hook in self.hooks.iter().cycle().skip(first) {
            let url = format!("http://127.0.0.1:{hook}/sns");
            let post = self.http.post(url).body(body.clone()).send();
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, post).await
                && answer.status() == 200
            {
                self.accept(place);
                return;
            }
            // Nobody may be there for seconds; asking without a break would slow their return.
            let again = later(self.clock.now(), Duration::from_millis(20));
            self.clock.sleep_until(again).await;
        }
    }

    /// Notes what is posted, and gives its place.
    pub fn note(&self, status: Status) -> usize {
        let mut statuses = self.statuses.lock().unwrap();
        statuses.push(status);
        statuses.len() - 1
    }

    /// Notes that what stands there was answered with 200.
    pub fn accept(&self, place: usize) {
        self.statuses.lock().unwrap()[place].accepted_at = Some(self.clock.now());
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Until so many more were answered with 200.
    pub async fn more(&self, count: usize) {
        let goal = self.accepted() + count;
        until_within(LONG, &format!("{count} more to be accepted"), async || {
            (self.accepted() >= goal).then_some(())
        })
        .await;
    }

    /// Everything that was posted, for the checker.
    pub fn posted(&self, order: Order) -> Vec<Posted> {
        let statuses = self.statuses.lock().unwrap();
        statuses.iter().map(|it| it.posted(order)).collect()
    }

    /// How the instances of each command ended.
    pub fn ends(&self) -> BTreeMap<String, Counts> {
        let mut ends: BTreeMap<String, Counts> = BTreeMap::new();
        for status in self.statuses.lock().unwrap().iter() {
            let word = match (&status.instance, status.word) {
                (Some(_), "Success") => "succeeded",
                (Some(_), "Failed") => "failed",
                _ => continue,
            };
            let counts = ends.entry(status.command.clone()).or_default();
            *counts.entry(word).or_default() += 1;
        }
        ends
    }
}
