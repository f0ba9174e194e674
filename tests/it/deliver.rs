//! The deliver street beside a sink that answers as it is told.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use runbell::clock::Clock;
use runbell::deliver::{Surroundings, Worker};
use runbell::delivery::LaneKey;
use runbell::metrics::Metrics;
use runbell::render::Notice;
use runbell::retry::{Scope, Verdict};
use runbell::route::Routes;
use runbell::sink::{Capacity, Sink};
use runbell::store::{Append, Appended, DeadSelection, EventId};
use runbell::wake::Wake;
use tokio_util::sync::CancellationToken;

use crate::harness::store::TestStore;
use crate::store::{at, event, owed};

/// Answers each notice with the next verdict it was given, then with *sent*.
#[derive(Default)]
struct Scripted {
    answers: Mutex<VecDeque<Verdict>>,
    seen: Mutex<Vec<Notice>>,
}

#[async_trait]
impl Sink for Scripted {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 100,
            at_once: 1,
        }
    }

    async fn send(&self, notices: &[Notice]) -> Vec<Verdict> {
        self.seen.lock().unwrap().extend_from_slice(notices);
        let mut answers = self.answers.lock().unwrap();
        let answer = |_| {
            answers
                .pop_front()
                .unwrap_or(Verdict::Sent { remote_id: None })
        };
        notices.iter().map(answer).collect()
    }
}

struct Place {
    store: TestStore,
    clock: Clock,
    sink: Arc<Scripted>,
    worker: Worker,
}

impl Place {
    fn open(clock: Clock, answers: impl IntoIterator<Item = Verdict>) -> Self {
        let store = TestStore::open();
        let sink = Arc::new(Scripted {
            answers: Mutex::new(answers.into_iter().collect()),
            seen: Mutex::default(),
        });
        let around = Surroundings {
            store: store.handle(),
            routes: Arc::new(ArcSwap::from_pointee(Routes::new(Vec::new()))),
            clock: clock.clone(),
            metrics: Arc::new(Metrics::new()),
        };
        let worker = Worker::new("s", sink.clone(), Wake::default(), around);
        Self {
            store,
            clock,
            sink,
            worker,
        }
    }

    /// So many events arrive, each for a lane of this kind.
    async fn arrive(&self, count: usize, lane: LaneKey) -> Vec<EventId> {
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(self.arrives(&format!("m-{number}"), lane).await);
        }
        ids
    }

    async fn arrives(&self, name: &str, lane: LaneKey) -> EventId {
        let event = event(name, name, "Success", 0);
        let owed = vec![owed(&event, "s", lane, 0)];
        let append = Append {
            event,
            owed,
            received_at: at(0),
        };
        match self.store.handle().append(append).await.unwrap() {
            Appended::Stored { id, .. } => id,
            Appended::Known { .. } => panic!("{name} is known"),
        }
    }

    fn seen(&self) -> Vec<(String, bool)> {
        let seen = std::mem::take(&mut *self.sink.seen.lock().unwrap());
        let each = seen.into_iter();
        each.map(|notice| (notice.event.message_id, notice.marks.possible_repeat))
            .collect()
    }

    /// What came of an event, word by word.
    async fn outcomes(&self, id: EventId) -> Vec<&'static str> {
        let (_, deliveries) = self.store.handle().event(id).await.unwrap().unwrap();
        let all = deliveries.iter().flat_map(|one| &one.outcomes);
        all.map(|past| past.outcome.word()).collect()
    }
}

fn trouble(scope: Scope) -> Verdict {
    Verdict::Retry {
        why: "no".to_owned(),
        after: Some(Duration::from_secs(30)),
        scope,
        progress: None,
    }
}

#[tokio::test]
async fn a_sink_in_trouble_is_probed_with_one_delivery() {
    let answers = vec![trouble(Scope::Sink); 5 + 1];
    let place = Place::open(Clock::by_hand(at(1)), answers);
    let ids = place.arrive(5, LaneKey::Instance).await;
    place.worker.step().await.unwrap();
    assert_eq!(place.seen().len(), 5);
    let mut history = Vec::new();
    for id in &ids {
        history.push(place.outcomes(*id).await.len());
    }
    assert_eq!(history.iter().sum::<usize>(), 1, "{history:?}");
    place.clock.set(at(30));
    assert_eq!(place.worker.step().await.unwrap().lanes, 0);
    place.clock.set(at(31));
    place.worker.step().await.unwrap();
    assert_eq!(place.seen().len(), 1, "one is enough to find out");
    place.clock.set(at(61));
    place.worker.step().await.unwrap();
    assert_eq!(place.seen().len(), 1);
    place.worker.step().await.unwrap();
    assert_eq!(place.seen().len(), 4, "it is well again");
    let tally = place.store.handle().tally().await.unwrap();
    assert_eq!((tally[0].sent, tally[0].waiting), (5, 0));
}

#[tokio::test]
async fn everything_that_may_have_arrived_says_so_when_it_goes_again() {
    let unknown = Verdict::Unknown {
        why: "the connection broke".to_owned(),
    };
    let sent = Verdict::Sent { remote_id: None };
    let answers = [sent, unknown.clone(), unknown, trouble(Scope::Notice)];
    let place = Place::open(Clock::by_hand(at(1)), answers);
    place.arrive(4, LaneKey::Topic).await;
    place.worker.step().await.unwrap();
    let marks = |seen: Vec<(String, bool)>| seen.into_iter().map(|(_, mark)| mark).collect();
    let before: Vec<_> = marks(place.seen());
    assert_eq!(before, [false; 4]);
    place.clock.set(at(100));
    place.worker.step().await.unwrap();
    let after: Vec<_> = marks(place.seen());
    assert_eq!(after, [true, true, false]);
}

#[tokio::test]
async fn a_letter_sent_again_that_fails_blocks_nobody() {
    let refused = Verdict::Refused {
        why: "no".to_owned(),
        content: false,
    };
    let place = Place::open(Clock::by_hand(at(1)), [refused, trouble(Scope::Notice)]);
    let ids = place.arrive(1, LaneKey::Topic).await;
    place.worker.step().await.unwrap();
    let store = place.store.handle();
    let resent = store.retry_dead(DeadSelection::All, None, at(1)).await;
    assert_eq!(resent.unwrap(), 1);
    place.worker.step().await.unwrap();
    assert_eq!(place.outcomes(ids[0]).await, ["dead", "parked"]);
    place.arrives("m-later", LaneKey::Topic).await;
    place.seen();
    place.clock.set(at(2));
    place.worker.step().await.unwrap();
    assert_eq!(place.seen(), [("m-later".to_owned(), false)]);
}

#[tokio::test]
async fn what_cannot_be_written_down_is_kept_and_nothing_is_sent_twice() {
    let place = Place::open(Clock::system(), []);
    let beside = rusqlite::Connection::open(place.store.path()).unwrap();
    beside.busy_timeout(Duration::from_secs(5)).unwrap();
    beside
        .execute_batch(
            "CREATE TRIGGER no_outcomes BEFORE INSERT ON outcome
             BEGIN SELECT RAISE(ABORT, 'not now'); END",
        )
        .unwrap();
    place.arrive(150, LaneKey::Instance).await;
    let stop = CancellationToken::new();
    let running = place.worker.run(&stop);
    let watching = async {
        // The first hundred cannot be settled; no more go out before they are.
        while place.sink.seen.lock().unwrap().len() < 100 {
            tokio::task::yield_now().await;
        }
        place.arrives("m-later", LaneKey::Instance).await;
        beside.execute_batch("DROP TRIGGER no_outcomes").unwrap();
        while place.store.handle().tally().await.unwrap()[0].waiting > 0 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    tokio::join!(running, watching);
    let seen: Vec<_> = place.seen().into_iter().map(|(name, _)| name).collect();
    let different: HashSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), different.len()), (151, 151));
    let tally = place.store.handle().tally().await.unwrap();
    assert_eq!((tally[0].sent, tally[0].waiting), (151, 0));
    assert_eq!(place.store.handle().sweep().await.unwrap(), 0);
}
