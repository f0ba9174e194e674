//! Faults of the deliver path that were mended, each played once more.

use tokio::sync::watch;

use super::*;

#[tokio::test]
async fn hand_over_that_fails_costs_nothing_of_what_was_leased() {
    let broken = || Verdict::Broken {
        why: "no such channel".to_owned(),
    };
    let mut place = Place::open(Clock::by_hand(at(1)), vec![broken(); 100]);
    let (to, wake) = fallback(30);
    place.worker = place.worker.with_fallback(to, wake);
    place.arrive(3, LaneKey::Instance).await;
    let beside = rusqlite::Connection::open(place.store.path()).unwrap();
    beside
        .execute_batch(
            "CREATE TRIGGER no_hand_over BEFORE INSERT ON waiting WHEN NEW.instead_of IS NOT NULL
             BEGIN SELECT RAISE(ABORT, 'not now'); END",
        )
        .unwrap();
    let store = place.store.handle();
    let look = async |second: i64| {
        place.clock.set(at(second));
        store.beat().await.unwrap();
        // A worker that cannot look says so, and looks again.
        let _ = place.worker.step().await;
    };
    for second in 1..90 {
        look(second).await;
    }
    let tally = &store.tally().await.unwrap()[0];
    assert_eq!(
        (tally.owed, tally.waiting),
        (3, 3),
        "nothing was handed over"
    );
    // The sink is well again before anything could be handed over.
    place.sink.answers.lock().unwrap().clear();
    place.seen();
    let backoff_until = store.backlog().await.unwrap()[0].backoff_until;
    let from = backoff_until.map_or(90, |until| until.duration_since(at(0)).as_secs() + 1);
    for second in from.max(90)..from.max(90) + 5 {
        look(second).await;
    }
    let tally = &store.tally().await.unwrap()[0];
    assert_eq!((tally.sent, tally.waiting), (3, 0), "{:?}", place.seen());
}

#[tokio::test]
async fn clock_set_back_holds_no_worker_up() {
    let place = Place::open(Clock::by_hand(at(86_400)), []);
    let stop = CancellationToken::new();
    let running = place.worker.run(&stop);
    let watching = async {
        place.store.handle().beat().await.unwrap();
        for number in 0..3 {
            let sent = || place.sink.seen.lock().unwrap().len();
            place.arrives(&format!("m-{number}"), LaneKey::Topic).await;
            let mut passed = 0;
            while sent() == number {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                place.clock.advance(Duration::from_millis(100));
                passed += 1;
                assert!(passed < 100, "m-{number} waits");
            }
            place.clock.leap(jiff::SignedDuration::from_hours(-1));
        }
        stop.cancel();
    };
    tokio::join!(running, watching);
    assert_eq!(place.seen().len(), 3);
}

/// Answers so many notices, in the order in which they came, as it is let.
struct Held {
    came: AtomicUsize,
    answered: watch::Sender<usize>,
}

#[async_trait]
impl Sink for Held {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1,
            at_once: 2,
        }
    }

    async fn send(&self, _: &[Notice], permit: &Permit) -> Vec<Verdict> {
        assert!(permit.begin());
        let number = self.came.fetch_add(1, Ordering::Relaxed);
        let mut answered = self.answered.subscribe();
        answered.wait_for(|count| *count > number).await.unwrap();
        vec![Verdict::Sent { remote_id: None }]
    }
}

#[tokio::test]
async fn result_is_recorded_though_another_call_hangs_until_the_end() {
    let mut place = Place::open(Clock::system(), []);
    let sink = Arc::new(Held {
        came: AtomicUsize::default(),
        answered: watch::Sender::new(0),
    });
    let around = around(&place.store, &place.clock);
    place.worker = Worker::new("s", sink.clone(), Wake::default(), around);
    place.arrive(2, LaneKey::Instance).await;
    let sent = async || place.store.handle().tally().await.unwrap()[0].sent;
    let stop = CancellationToken::new();
    let watching = async {
        while sink.came.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        sink.answered.send_replace(1);
        while sent().await < 1 {
            tokio::task::yield_now().await;
        }
        sink.answered.send_replace(2);
    };
    tokio::join!(place.worker.run(&stop), watching);
    assert_eq!(sent().await, 2);
}
