//! The deliver street beside a sink that answers as it is told.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use runbell::clock::Clock;
use runbell::deliver::{Surroundings, Worker};
use runbell::delivery::LaneKey;
use runbell::event::{Event, Kind};
use runbell::metrics::Metrics;
use runbell::render::{Document, Notice, TemplateSettings};
use runbell::retry::{Scope, Verdict};
use runbell::route::Routes;
use runbell::sink::{Capacity, Fallback, Permit, Sink};
use runbell::store::{Append, Appended, DeadSelection, EventId};
use runbell::wake::Wake;
use tokio_util::sync::CancellationToken;

use crate::harness::store::TestStore;
use crate::store::{at, event, owed};

mod mended;

/// Answers each notice with the next verdict it was given, then with *sent*.
struct Scripted {
    answers: Mutex<VecDeque<Verdict>>,
    seen: Mutex<Vec<Notice>>,
    per_send: AtomicUsize,
}

#[async_trait]
impl Sink for Scripted {
    fn speaks_to_people(&self) -> bool {
        true
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: self.per_send.load(Ordering::Relaxed),
            at_once: 1,
        }
    }

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        if !permit.begin() {
            return Vec::new();
        }
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

/// A worker's surroundings without any routes.
fn around(store: &TestStore, clock: &Clock) -> Surroundings {
    Surroundings {
        lanes: store.handle(),
        routes: Arc::new(ArcSwap::from_pointee(Routes::new(Vec::new()))),
        clock: clock.clone(),
        metrics: Arc::new(Metrics::new()),
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
        let store = TestStore::open_at(clock.clone());
        let sink = Arc::new(Scripted {
            answers: Mutex::new(answers.into_iter().collect()),
            seen: Mutex::default(),
            per_send: AtomicUsize::new(100),
        });
        let worker = Worker::new("s", sink.clone(), Wake::default(), around(&store, &clock));
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
        let append = Append::new(event, owed, at(0));
        match self.store.handle().append(append).await.unwrap() {
            Appended::Stored { id, .. } => id,
            Appended::Known { .. } => panic!("{name} is known"),
        }
    }

    /// Events arrive in their seconds, for a digest; what leaves, with the second of each.
    async fn play(&self, story: Vec<(i64, Event)>) -> Vec<(i64, Notice)> {
        let (routes, store) = (digested(), self.store.handle());
        let end = story.last().map_or(0, |(second, _)| *second);
        let mut notices = Vec::new();
        let mut story = story.into_iter().peekable();
        for second in 0..=end + 600 {
            self.clock.set(at(second));
            while let Some((_, event)) = story.next_if(|(when, _)| *when == second) {
                let owed = routes.owed(&event, None);
                let append = Append::new(event, owed, at(second));
                store.append(append).await.unwrap();
            }
            while self.worker.step().await.unwrap().lanes > 0 {}
            let seen = std::mem::take(&mut *self.sink.seen.lock().unwrap());
            notices.extend(seen.into_iter().map(|notice| (second, notice)));
        }
        notices
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

/// A route that tells commands as digests.
fn digested() -> Routes {
    let text = "name = 'r'\nto = ['s']\ndigest = { gather = '10s', every = '5m' }";
    let route = toml::from_str::<runbell::route::Settings>(text).unwrap();
    Routes::new(vec![route.check().unwrap()])
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
async fn a_sink_that_flaps_gets_everything_in_order_and_is_not_hammered() {
    let sent = || Verdict::Sent { remote_id: None };
    let asks = |seconds| Verdict::Retry {
        why: "429".to_owned(),
        after: Some(Duration::from_secs(seconds)),
        scope: Scope::Sink,
        progress: None,
    };
    let broken = || Verdict::Broken {
        why: "403".to_owned(),
    };
    let lost = || Verdict::Unknown {
        why: "cut".to_owned(),
    };
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.extend([
            sent(),
            sent(),
            asks(30),
            sent(),
            broken(),
            sent(),
            lost(),
            asks(10),
        ]);
    }
    let place = Place::open(Clock::by_hand(at(1)), answers);
    place.sink.per_send.store(1, Ordering::Relaxed);
    let ids = place.arrive(40, LaneKey::Topic).await;
    let mut told = Vec::new();
    let (mut asked, mut seconds) = (0, 0);
    let store = place.store.handle();
    while told.len() < ids.len() {
        seconds += 1;
        assert!(seconds < 3600, "{told:?}");
        place.clock.set(at(seconds));
        // One look at each second: whatever it may be asked then.
        place.worker.step().await.unwrap();
        let seen = place.seen();
        asked += usize::from(!seen.is_empty());
        for id in &ids {
            let is_new = !told.contains(id);
            if is_new && place.outcomes(*id).await.contains(&"sent") {
                told.push(*id);
            }
        }
    }
    let mut in_order: Vec<_> = (0..40)
        .map(|number| format!("m-{number}"))
        .zip(ids)
        .collect();
    in_order.sort();
    let in_order: Vec<_> = in_order.into_iter().map(|(_, id)| id).collect();
    assert_eq!(told, in_order, "in the order of their lane");
    // Five rests of thirty seconds and five of ten were asked for, and obeyed; besides them it was
    // asked once for each success and each failure.
    assert!(seconds >= 5 * (30 + 10), "{seconds}");
    assert!(asked <= 40 + 5 * 4, "{asked} times in {seconds} s");
    let tally = store.tally().await.unwrap();
    assert_eq!((tally[0].sent, tally[0].waiting), (40, 0));
    assert_eq!(store.sweep().await.unwrap(), 0);
}

fn fallback(after: u64) -> (Fallback, Wake) {
    let fallback = Fallback {
        to: "t".to_owned(),
        after: Duration::from_secs(after),
    };
    (fallback, Wake::default())
}

#[tokio::test]
async fn what_a_sink_refuses_goes_to_its_fallback_and_not_to_the_dead() {
    let refused = Verdict::Refused {
        why: "no".to_owned(),
        content: false,
    };
    let mut place = Place::open(Clock::by_hand(at(1)), [refused]);
    let (to, wake) = fallback(300);
    place.worker = place.worker.with_fallback(to, wake);
    let ids = place.arrive(2, LaneKey::Topic).await;
    place.worker.step().await.unwrap();
    assert_eq!(place.outcomes(ids[0]).await, ["diverted"]);
    assert_eq!(place.outcomes(ids[1]).await, ["sent"]);
    let store = place.store.handle();
    let there = store.lease("t", at(1), 9).await.unwrap();
    assert_eq!(there.deliveries(), 1);
    assert_eq!(there.lanes[0].waiting[0].instead_of.as_deref(), Some("s"));
    assert!(store.dead(DeadSelection::All, 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_sink_in_trouble_for_long_hands_over_and_is_tried_again_with_what_comes() {
    let broken = Verdict::Broken {
        why: "no such channel".to_owned(),
    };
    let mut place = Place::open(Clock::by_hand(at(1)), vec![broken; 100]);
    let (to, wake) = fallback(300);
    place.worker = place.worker.with_fallback(to, wake);
    place.arrive(3, LaneKey::Instance).await;
    let store = place.store.handle();
    let waiting = async |sink: &str| {
        let tallies = store.tally().await.unwrap();
        let tally = tallies.iter().find(|it| it.sink == sink);
        tally.map_or(0, |it| it.waiting)
    };
    let look = async |second: i64| {
        place.clock.set(at(second));
        place.worker.step().await.unwrap()
    };
    for second in 1..301 {
        look(second).await;
        assert_eq!(waiting("s").await, 3, "at {second}");
    }
    // The longer it lasts, the rarer it is asked.
    let probes = place.seen().len();
    assert!((5..=30).contains(&probes), "{probes}");
    look(301).await;
    assert_eq!((waiting("s").await, waiting("t").await), (0, 3));
    place.seen();

    // While it rests nothing is tried, and nobody waits for it.
    let backoff_until = store.backlog().await.unwrap()[0].backoff_until.unwrap();
    place.arrives("m-resting", LaneKey::Instance).await;
    if backoff_until > at(302) {
        look(302).await;
        assert_eq!(place.seen(), []);
        assert_eq!((waiting("s").await, waiting("t").await), (0, 4));
    }
    // Then the next that waits finds out that it is well again.
    place.sink.answers.lock().unwrap().clear();
    place.clock.set(backoff_until.max(at(303)));
    place.arrives("m-well", LaneKey::Instance).await;
    place.worker.step().await.unwrap();
    assert_eq!(place.seen().len(), 1, "the oldest that waits");
    let leased = store.lease("s", place.clock.now(), 9).await.unwrap();
    assert_eq!(leased.failing_since, None);
}

/// A command on many instances, told in the order of its events: summary, starts, ends, summary.
fn story(instances: usize) -> Vec<(i64, Event)> {
    let mut told = Vec::new();
    let mut tell = |second: i64, instance: Option<usize>, status: &str| {
        let number = told.len();
        let mut body = serde_json::json!({
            "commandId": "0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11", "documentName": "AWS-RunShellScript",
            "status": status, "eventTime": at(second).to_string(),
        });
        match instance {
            Some(instance) => body["instanceId"] = format!("i-{instance:04}").into(),
            None => body["instanceIds"] = serde_json::json!([]),
        }
        told.push((
            second,
            crate::store::read(&format!("m-{number}"), &body.to_string(), second),
        ));
    };
    let count = i64::try_from(instances).unwrap();
    tell(0, None, "InProgress");
    for instance in 0..instances {
        tell(1, Some(instance), "InProgress");
    }
    for instance in 0..instances {
        let status = match instance % 50 {
            7 => "Failed",
            13 if instance < 100 => "TimedOut",
            _ => "Success",
        };
        let second = 20 + i64::try_from(instance).unwrap();
        tell(second, Some(instance), status);
    }
    tell(20 + count, None, "Failed");
    told
}

#[tokio::test]
async fn a_digest_tells_a_whole_command_in_few_notices() {
    let place = Place::open(Clock::by_hand(at(0)), []);
    let story = story(500);
    let (all, end) = (story.len(), story.last().unwrap().0);
    let notices = place.play(story).await;
    let store = place.store.handle();
    let told = titles(&notices);
    // Ten failures and two time-outs, seconds apart, and the two of the whole command.
    assert!(told.len() <= 14, "{told:#?}");
    assert_eq!(
        told[0],
        "10: InProgress: AWS-RunShellScript: 500 still running"
    );
    let closing = notices
        .iter()
        .position(|(second, _)| *second == end + 10)
        .unwrap();
    let (_, notice) = &notices[closing];
    let document = Document::of(notice);
    assert_eq!(
        document.title.text(),
        "Failed: AWS-RunShellScript: 488 succeeded, 10 failed, 2 timed out"
    );
    let fact = |name| {
        document
            .facts
            .iter()
            .find(|fact| fact.name == name)
            .unwrap()
    };
    let troubled = fact("Not well").value.text();
    assert!(
        troubled.contains("i-0457") && troubled.contains("i-0013 (TimedOut)"),
        "{troubled}"
    );
    assert_eq!(closing, notices.len() - 1, "it is the last: {told:#?}");
    // No failure waits longer than it gathers.
    for failed in (0..500).filter(|instance| instance % 50 == 7) {
        let happened = 20 + i64::from(failed);
        let name = format!("i-{failed:04}");
        let shown = notices.iter().find(|(_, notice)| {
            let document = Document::of(notice);
            document
                .facts
                .iter()
                .any(|fact| fact.value.text().contains(&name))
        });
        let (second, _) = shown.unwrap();
        assert!(
            (happened..=happened + 10).contains(second),
            "{name} at {second}"
        );
    }
    let tally = store.tally().await.unwrap();
    let all = u64::try_from(all).unwrap();
    assert_eq!(
        (tally[0].owed, tally[0].sent, tally[0].waiting),
        (all, all, 0)
    );
    assert_eq!(store.sweep().await.unwrap(), 0);
}

/// Each notice with the second in which it left.
fn titles(notices: &[(i64, Notice)]) -> Vec<String> {
    let each = notices.iter();
    each.map(|(second, notice)| format!("{second}: {}", Document::of(notice).title.text()))
        .collect()
}

#[tokio::test]
async fn a_digest_closes_by_itself_where_no_summary_comes() {
    let place = Place::open(Clock::by_hand(at(0)), []);
    let mut story = story(30);
    story.retain(|(_, event)| matches!(event.kind, Kind::Invocation(_)));
    let end = story.last().unwrap().0;
    let told = titles(&place.play(story).await);
    assert_eq!(
        told[0],
        "11: InProgress: AWS-RunShellScript: 30 still running"
    );
    let closing = told.last().unwrap();
    let (second, title) = closing.split_once(": ").unwrap();
    assert_eq!(
        title, "Failed: AWS-RunShellScript: 28 succeeded, 1 failed, 1 timed out",
        "{told:#?}"
    );
    assert!(second.parse::<i64>().unwrap() <= end + 10, "{told:#?}");
    assert!(
        told.iter()
            .all(|title| title == closing || title.contains("still running"))
    );
}

#[tokio::test]
async fn what_comes_after_the_end_corrects_it_and_who_never_spoke_is_counted() {
    let place = Place::open(Clock::by_hand(at(0)), []);
    let summary = |id: &str, status: &str, second: i64| {
        let body = serde_json::json!({
            "commandId": "c-1", "documentName": "d", "instanceIds": ["i-1", "i-2", "i-3"],
            "status": status, "eventTime": at(second).to_string(),
        });
        (second, crate::store::read(id, &body.to_string(), second))
    };
    let end = |id: &str, instance: &str, second: i64| {
        let body = serde_json::json!({
            "commandId": "c-1", "documentName": "d", "instanceId": instance,
            "status": "Success", "eventTime": at(second).to_string(),
        });
        (second, crate::store::read(id, &body.to_string(), second))
    };
    let story = vec![
        summary("m-1", "InProgress", 0),
        end("m-2", "i-1", 20),
        summary("m-3", "Success", 30),
        end("m-4", "i-2", 100),
    ];
    let told = titles(&place.play(story).await);
    assert_eq!(
        told,
        [
            "10: InProgress: d: 3 not started",
            "40: Success: d: 1 succeeded, 2 never heard of",
            "110: Success: d: 2 succeeded, 1 never heard of",
        ]
    );
}

#[tokio::test]
async fn a_template_that_fails_costs_a_notice_its_words_only() {
    let template = |title: &str| {
        let settings = TemplateSettings {
            title: Some(title.to_owned()),
            body: None,
        };
        Some(settings.check().unwrap())
    };
    let mut place = Place::open(Clock::by_hand(at(1)), []);
    place.worker = place.worker.with_template(template(
        "{{ 'x' * 300000 if instance == 'm-1' else status }}!",
    ));
    place.arrive(2, LaneKey::Topic).await;
    place.worker.step().await.unwrap();
    let seen = std::mem::take(&mut *place.sink.seen.lock().unwrap());
    let documents: Vec<_> = seen.iter().map(Document::of).collect();
    assert_eq!(documents[0].title.text(), "Success!");
    assert!(documents[0].marks.is_empty());
    assert_eq!(
        documents[1].title.text(),
        "Success: AWS-RunShellScript on m-1"
    );
    let mark = documents[1].marks[0].text();
    assert!(
        mark.contains("template failed") && mark.contains("256 KiB"),
        "{mark}"
    );
}

#[tokio::test]
async fn a_batch_that_failed_stays_what_it_was_and_swallows_nothing() {
    let place = Place::open(Clock::by_hand(at(0)), [trouble(Scope::Notice)]);
    let routes = digested();
    let store = place.store.handle();
    let arrive = async |name: &str, second: i64, arrived: i64| {
        let event = event(name, name, "Failed", second);
        let owed = routes.owed(&event, None);
        let append = Append::new(event, owed, at(arrived));
        store.append(append).await.unwrap();
    };
    arrive("m-1", 1, 1).await;
    arrive("m-3", 3, 3).await;
    place.clock.set(at(13));
    place.worker.step().await.unwrap();
    let first = std::mem::take(&mut *place.sink.seen.lock().unwrap());
    // While that is tried again, one arrives that happened before its last.
    arrive("m-2", 2, 20).await;
    place.clock.set(at(60));
    place.worker.step().await.unwrap();
    let again = std::mem::take(&mut *place.sink.seen.lock().unwrap());
    assert_eq!((first.len(), again.len()), (1, 1));
    assert_eq!(first[0].id, again[0].id, "its id is the same at every try");
    let all = Document::of(&again[0]);
    let named = |name: &str| {
        all.facts
            .iter()
            .any(|fact| fact.value.text().contains(name))
    };
    assert!(named("m-1") && named("m-2") && named("m-3"), "{all:?}");
    let tally = store.tally().await.unwrap();
    assert_eq!((tally[0].owed, tally[0].sent), (3, 3));
    assert_eq!(store.sweep().await.unwrap(), 0);
}

#[tokio::test]
async fn what_cannot_be_written_down_is_kept_and_nothing_is_sent_twice() {
    let place = Place::open(Clock::system(), []);
    let beside = rusqlite::Connection::open(place.store.path()).unwrap();
    beside.busy_timeout(Duration::from_secs(5)).unwrap();
    // Each row by itself is refused, for a reason that goes away.
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
