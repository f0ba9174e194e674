//! The receive path: bytes in, an answer out, and in between everything that makes the answer
//! true.
//!
//! `web::hook` calls it for each request. A notification is verified, read, asked what it owes and
//! kept with that in one transaction; only then is it answered with 200. It waits for no sink. What
//! was refused for an allowed topic stays in a bounded ring, to be judged again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;

use crate::clock::{Clock, later, since};
use crate::delivery::{clamped_nanos, from_nanos};
use crate::event::{EnvelopeKind, Event, Source};
use crate::fault::causes;
use crate::health::Readiness;
use crate::metrics::Metrics;
use crate::route::Routes;
use crate::sns::verify::{Freshness, freshness};
use crate::sns::{self, Answer, MessageType, Refusal, TopicArn, TopicSettings, Verified, Verifier};
use crate::store::{Append, Appended, Intake, StoreError};
use crate::wake::Wake;

mod refused;
mod subscription;

use refused::Complaints;
pub use refused::{Refused, Ring};
pub use subscription::ConfirmError;

/// How long after an intake gap the least hold applies: SNS retries what failed 20 s later.
const GAP_LASTS: Duration = Duration::from_mins(1);

/// Takes what SNS posts.
pub struct Receiver {
    verifier: Verifier,
    topics: HashMap<String, TopicSettings>,
    http: sns::Http,
    store: Arc<dyn Intake>,
    routes: Arc<ArcSwap<Routes>>,
    wakes: HashMap<String, Wake>,
    clock: Clock,
    time: Clock,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    refused: Mutex<Ring>,
    complaints: Complaints,
    calls: Mutex<subscription::Calls>,
    gap: Gap,
}

/// What a receiver is made of.
pub struct Parts {
    /// Judges envelopes.
    pub verifier: Verifier,
    /// The topics allowed.
    pub topics: Vec<TopicSettings>,
    /// Makes the call that confirms a subscription.
    pub http: sns::Http,
    /// Keeps what is proved.
    pub store: Arc<dyn Intake>,
    /// Says what an event owes.
    pub routes: Arc<ArcSwap<Routes>>,
    /// Rings the worker of each sink.
    pub wakes: HashMap<String, Wake>,
    /// What time it is for people.
    pub clock: Clock,
    /// The store's logical time, from which holds are counted.
    pub time: Clock,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Where it says that it cannot.
    pub readiness: Readiness,
    /// The least hold after an intake gap.
    pub gap_hold: Duration,
    /// This start follows an earlier life of the same store: something may have been missed.
    pub after_gap: bool,
}

/// What to answer SNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// 200: it is kept, or was known.
    Accepted,
    /// 400: that is no envelope.
    Malformed,
    /// 403: refused for good.
    Forbidden,
    /// 503: not now; SNS shall try again.
    Later,
}

/// The time after a gap in which something earlier may still come.
struct Gap {
    hold: Duration,
    ends_at: AtomicI64,
}

impl Gap {
    fn open(&self, now: Timestamp) {
        self.ends_at
            .store(clamped_nanos(later(now, GAP_LASTS)), Ordering::Relaxed);
    }

    fn least_hold(&self, now: Timestamp) -> Option<Duration> {
        (now < from_nanos(self.ends_at.load(Ordering::Relaxed))).then_some(self.hold)
    }
}

impl Receiver {
    /// Puts a receiver together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let gap = Gap {
            hold: parts.gap_hold,
            ends_at: AtomicI64::new(i64::MIN),
        };
        if parts.after_gap {
            gap.open(parts.clock.now());
        }
        Self {
            verifier: parts.verifier,
            topics: parts
                .topics
                .into_iter()
                .map(|topic| (topic.arn.as_str().to_owned(), topic))
                .collect(),
            http: parts.http,
            store: parts.store,
            routes: parts.routes,
            wakes: parts.wakes,
            clock: parts.clock,
            time: parts.time,
            metrics: parts.metrics,
            readiness: parts.readiness,
            refused: Mutex::default(),
            complaints: Complaints::default(),
            calls: Mutex::default(),
            gap,
        }
    }

    /// Judges one request and keeps what it proves.
    pub async fn receive(&self, body: &[u8], headers: sns::Headers<'_>, client: IpAddr) -> Reply {
        match self.attempt(body, headers, client).await {
            Ok(()) => Reply::Accepted,
            Err(refusal) => self.refuse(refusal, body),
        }
    }

    /// What was refused for allowed topics, oldest first.
    pub fn refused(&self) -> Vec<Refused> {
        self.ring().list()
    }

    /// Judges again what was refused, without the headers it came with; `None` when it is not kept
    /// any more, else why it is refused still.
    pub async fn judge_again(&self, id: u64, client: IpAddr) -> Option<Result<(), String>> {
        let refused = self.ring().take(id)?;
        let headers = sns::Headers::default();
        Some(match self.attempt(&refused.body, headers, client).await {
            Ok(()) => Ok(()),
            Err(refusal) => {
                let sentence = refusal.sentence.clone();
                self.refuse(refusal, &refused.body);
                Err(sentence)
            }
        })
    }

    async fn attempt(
        &self,
        body: &[u8],
        headers: sns::Headers<'_>,
        client: IpAddr,
    ) -> Result<(), Refusal> {
        let started = self.clock.now();
        let verdict = self.verifier.verify(body, headers, client, started).await;
        let now = self.clock.now();
        self.metrics.verified_in(since(started, now));
        self.keep(verdict?, now).await
    }

    /// Keeps a verified message with everything it owes.
    async fn keep(&self, verified: Verified, now: Timestamp) -> Result<(), Refusal> {
        if let Some(certificate) = verified.fetched() {
            self.keep_certificate(certificate).await;
        }
        self.judge_freshness(&verified, now).await?;
        let event = read(&verified);
        let owed = self.routes.load().owed(&event, self.gap.least_hold(now));
        let unrouted = owed.is_empty().then(|| event.kind.word());
        let append = Append {
            event,
            owed,
            received_at: now,
            now: self.time.now(),
            trust: Arc::clone(verified.trust()),
            proof: Some(verified.proof().clone()),
        };
        let appended = self.store.append(append).await;
        self.metrics.appended_in(since(now, self.clock.now()));
        let topic = verified.topic().as_str();
        let mut is_new = false;
        match appended {
            Ok(Appended::Stored {
                due,
                repeat_of,
                conflict,
                ..
            }) => {
                self.readiness.ready("store");
                for (sink, at) in due {
                    if let Some(wake) = self.wakes.get(&*sink) {
                        wake.at(at);
                    }
                }
                if conflict {
                    self.metrics.conflicted(topic);
                }
                if let Some(kind) = unrouted {
                    self.metrics.unrouted(topic);
                    tracing::warn!(
                        topic,
                        message_id = verified.message_id(),
                        kind,
                        "no route takes this event; it is kept"
                    );
                }
                is_new = true;
                let result = if repeat_of.is_some() {
                    "repeat"
                } else {
                    "accepted"
                };
                self.metrics.received(Some(topic), result);
            }
            Ok(Appended::Known { .. }) => self.metrics.received(Some(topic), "known"),
            Err(error) => return Err(self.store_trouble(&error, now)),
        }
        self.answer_confirmation(&verified, is_new, now).await
    }

    /// Refuses what is too old or from the future, unless it is stored already.
    async fn judge_freshness(&self, verified: &Verified, now: Timestamp) -> Result<(), Refusal> {
        let refusal = match freshness(verified.sent_at(), now) {
            Freshness::Fresh => return Ok(()),
            Freshness::Stale(refusal) => refusal,
            Freshness::Ahead(refusal) => {
                if self.complaints.allow(now) {
                    tracing::error!(
                        sent_at = %verified.sent_at(),
                        %now,
                        "SNS signed this in our future: is our clock right?"
                    );
                }
                refusal
            }
        };
        let (topic, id) = (verified.topic(), verified.message_id());
        match self
            .store
            .known(topic.as_str(), verified.sent_at(), id)
            .await
        {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Refusal {
                topic: Some(topic.clone()),
                ..refusal
            }),
            Err(error) => Err(self.store_trouble(&error, now)),
        }
    }

    async fn keep_certificate(&self, known: &sns::KnownCertificate) {
        if let Err(error) = self.store.put_certificate(known.clone()).await {
            let error = causes(&error);
            tracing::warn!(
                error,
                url = known.url,
                "the certificate is used, but not kept"
            );
        }
    }

    /// Makes of a store's trouble a refusal that SNS retries, and opens a gap: what is refused now
    /// comes again later than what follows it.
    fn store_trouble(&self, error: &StoreError, now: Timestamp) -> Refusal {
        self.gap.open(now);
        self.readiness.unready("store", error.to_string());
        tracing::error!(
            error = causes(error),
            "a verified notification cannot be kept now; SNS will retry it"
        );
        Refusal {
            word: "store",
            sentence: error.to_string(),
            answer: Answer::Later,
            topic: None,
        }
    }

    fn refuse(&self, refusal: Refusal, body: &[u8]) -> Reply {
        let now = self.clock.now();
        let topic = refusal.topic.as_ref().map(TopicArn::as_str);
        self.metrics.received(topic, refusal.word);
        // Anybody can cause this line, as often as they like.
        if topic.is_some() && self.complaints.allow(now) {
            tracing::warn!(topic, word = refusal.word, "refused: {}", refusal.sentence);
        } else {
            tracing::debug!(word = refusal.word, "refused: {}", refusal.sentence);
        }
        let reply = match refusal.answer {
            Answer::Malformed => Reply::Malformed,
            Answer::Forbidden => Reply::Forbidden,
            Answer::Later => Reply::Later,
        };
        if refusal.topic.is_some() {
            self.ring().push(refusal, body, now);
        }
        reply
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands the pieces of a verified message to the one who reads them.
fn read(verified: &Verified) -> Event {
    let topic = verified.topic();
    Event::read(&Source {
        topic: topic.as_str(),
        account: topic.account(),
        region: topic.region(),
        message_id: verified.message_id(),
        sent_at: verified.sent_at(),
        subject: verified.subject(),
        body: verified.message(),
        envelope: match verified.message_type() {
            MessageType::Notification => EnvelopeKind::Notification,
            MessageType::SubscriptionConfirmation => EnvelopeKind::SubscriptionConfirmation,
            MessageType::UnsubscribeConfirmation => EnvelopeKind::UnsubscribeConfirmation,
        },
    })
}
