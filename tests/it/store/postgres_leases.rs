//! Leases of replicas on one database: lost, expired, renewed, of the silent, and of those that
//! leave.

use super::*;
use crate::harness::postgres::server;

/// Two replicas by one clock.
struct Pair {
    one: TestStore,
    other: TestStore,
}

impl Pair {
    async fn open() -> Self {
        let one = TestStore::open_on(On::Postgres).await;
        let other = one.another().await;
        Self { one, other }
    }

    /// Lets seconds pass, in each of which these give a sign of life.
    async fn pass(&self, seconds: u64, alive: &[&dyn Store]) {
        for _ in 0..seconds {
            self.one.clock.advance(Duration::from_secs(1));
            for store in alive {
                store.beat().await.unwrap();
            }
        }
    }
}

/// Leases by the store's own time.
async fn take(store: &dyn Store) -> Vec<Lane> {
    let now = store.clock().now();
    store.lease("s", now, 100).await.unwrap().lanes
}

async fn count(schema: &str, sql: &str) -> i64 {
    server().query(schema, sql).await[0].parse().unwrap()
}

fn marks(lanes: &[Lane]) -> Vec<bool> {
    let waiting = lanes.iter().flat_map(|lane| &lane.waiting);
    waiting.map(|one| one.possible_repeat).collect()
}

#[tokio::test]
async fn silent_replica_is_freed_by_the_beats_of_another_and_may_only_tell_what_it_sent() {
    let pair = Pair::open().await;
    let (first, second) = (pair.one.handle(), pair.other.handle());
    arrives(&*first, event("m-1", "i-1", "Success", 1), 1).await;
    arrives(&*first, event("m-2", "i-2", "Success", 2), 1).await;
    pair.pass(6, &[&*first, &*second]).await;
    let held = one(take(&*first).await);
    let may_go = Lease::permission(&[&held.lease]);
    assert!(may_go());
    pair.pass(7, &[&*second]).await;
    assert!(take(&*second).await.is_empty(), "it is believed to live");
    pair.pass(2, &[&*second]).await;
    assert!(
        !may_go(),
        "it has not been heard for longer than the others wait"
    );
    let lanes = take(&*second).await;
    assert_eq!(instances(&lanes), ["i-1", "i-2"]);
    assert_eq!(marks(&lanes), [true, true]);
    assert!(lanes[0].lease.epoch() > held.lease.epoch());
    // It wakes up, and had sent the first and failed with the second.
    let mut all = results(&held, &Outcome::Sent, 20);
    all[1].ending = Ending::Dead;
    let stale = held.lease.settle(all, at(20), None);
    first.settle(vec![stale]).await.unwrap();
    assert!(first.dead(DeadSelection::All, 9).await.unwrap().is_empty());
    pair.pass(1, &[&*first, &*second]).await;
    assert!(take(&*first).await.is_empty(), "it gave the lane away");
    second
        .settle(vec![settled(one(lanes), &Outcome::Sent, 21)])
        .await
        .unwrap();
    let tally = first.tally().await.unwrap();
    assert_eq!((tally[0].owed, tally[0].sent, tally[0].waiting), (2, 2, 0));
    assert_sound(&*first).await;
}

#[tokio::test]
async fn lease_whose_worker_hangs_runs_out_and_is_freed_by_whoever_was_heard_for_long() {
    let pair = Pair::open().await;
    let (first, second) = (pair.one.handle(), pair.other.handle());
    arrives(&*first, event("m-1", "i-1", "Success", 0), 0).await;
    pair.pass(6, &[&*first, &*second]).await;
    let held = take(&*first).await;
    assert_eq!(held.len(), 1);
    // Renewed once, in its second half; the worker counts as at work for thirty seconds.
    pair.pass(35, &[&*first, &*second]).await;
    assert!(take(&*second).await.is_empty(), "its lease was renewed");
    pair.pass(12, &[&*first, &*second]).await;
    let young = pair.one.another().await;
    let third = young.handle();
    let now = third.clock().now();
    let nothing = third.lease("s", now, 100).await.unwrap();
    assert!(
        nothing.lanes.is_empty(),
        "one that has just come frees nobody"
    );
    assert!(
        nothing.next_due.is_none_or(|due| due > now),
        "and asks no more"
    );
    let lanes = take(&*second).await;
    assert_eq!(
        (instances(&lanes), marks(&lanes)),
        (vec!["i-1".to_owned()], vec![true])
    );
    drop(held);
    pair.pass(1, &[&*first, &*second]).await;
    second
        .settle(vec![settled(one(lanes), &Outcome::Sent, 60)])
        .await
        .unwrap();
    assert_eq!(
        count(pair.one.schema(), "SELECT count(*) FROM lease").await,
        0
    );
    assert_sound(&*second).await;
}

#[tokio::test]
async fn lease_that_is_dropped_is_given_back_at_the_next_beat_and_marked_if_it_had_begun() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    place.clock.advance(Duration::from_secs(6));
    for has_begun in [false, true] {
        let lanes = take(&*store).await;
        if has_begun {
            assert!(Lease::permission(&[&lanes[0].lease])());
        }
        drop(lanes);
        assert!(take(&*store).await.is_empty());
        store.beat().await.unwrap();
        let lanes = take(&*store).await;
        assert_eq!(marks(&lanes), [has_begun]);
        drop(lanes);
        store.beat().await.unwrap();
    }
    assert_sound(&*store).await;
}

#[tokio::test]
async fn lease_whose_future_is_dropped_is_lost_at_any_await_and_stops_nothing() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    place.clock.advance(Duration::from_secs(6));
    let mut taken = 0;
    for polls in 1..200 {
        let now = store.clock().now();
        let mut lease = store.lease("s", now, 100);
        let mut left = polls;
        let answered = std::future::poll_fn(|context| {
            left -= 1;
            match lease.as_mut().poll(context) {
                std::task::Poll::Ready(answer) => std::task::Poll::Ready(Some(answer)),
                std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
                std::task::Poll::Pending => std::task::Poll::Pending,
            }
        })
        .await;
        let is_answered = answered.is_some();
        drop((lease, answered));
        // Its transaction may end on the server a little later.
        crate::harness::app::until("the lane to be given back", async || {
            store.beat().await.unwrap();
            let lanes = take(&*store).await;
            let marks = marks(&lanes);
            drop(lanes);
            store.beat().await.unwrap();
            (marks == [false]).then_some(())
        })
        .await;
        taken += 1;
        if is_answered {
            break;
        }
    }
    assert!(taken > 3, "it was never dropped on the way");
    assert_sound(&*store).await;
}

#[tokio::test]
async fn replica_that_leaves_gives_back_what_had_not_begun_unmarked() {
    let mut pair = Pair::open().await;
    let second = pair.other.handle();
    {
        let first = pair.one.handle();
        for number in 1..=2 {
            let event = event(&format!("m-{number}"), &format!("i-{number}"), "Success", 1);
            let to = vec![owed(&event, "s", LaneKey::Instance, 0)];
            stored(&*first, event, to, 1).await;
        }
        pair.pass(2, &[&*first, &*second]).await;
        let lanes = take(&*first).await;
        let begun = lanes
            .iter()
            .find(|lane| instances_of(lane) == ["i-2"])
            .unwrap();
        assert!(Lease::permission(&[&begun.lease])());
    }
    pair.one.stop().await;
    let lanes = take(&*second).await;
    assert_eq!(
        (instances(&lanes), marks(&lanes)),
        (vec!["i-1".to_owned()], vec![false])
    );
    for _ in 0..9 {
        pair.other.clock.advance(Duration::from_secs(1));
        second.beat().await.unwrap();
    }
    let begun = take(&*second).await;
    assert_eq!(
        (instances(&begun), marks(&begun)),
        (vec!["i-2".to_owned()], vec![true])
    );
}

fn instances_of(lane: &Lane) -> Vec<String> {
    let waiting = lane.waiting.iter();
    let events = waiting.map(|it| it.event.as_ref().unwrap().command().unwrap());
    events.map(|it| it.instance.clone().unwrap()).collect()
}

#[tokio::test]
async fn event_whose_row_is_missing_costs_its_own_delivery_alone() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    let mut ids = Vec::new();
    for number in 1..=4 {
        let event = event(
            &format!("m-{number}"),
            &format!("i-{number}"),
            "Success",
            number,
        );
        ids.push(arrives(&*store, event, number).await);
    }
    let gone = format!("DELETE FROM event WHERE id = {}", ids[1].0);
    server().run(place.schema(), &gone).await;
    let lane = one(lease(&*store, 20).await);
    let found: Vec<_> = lane
        .waiting
        .iter()
        .map(|it| {
            (
                it.event_id,
                it.event.as_ref().map(|it| it.message_id.clone()),
            )
        })
        .collect();
    let message = |number: usize| Some(format!("m-{number}"));
    assert_eq!(
        found,
        [
            (ids[0], message(1)),
            (ids[1], None),
            (ids[2], message(3)),
            (ids[3], message(4))
        ]
    );
    let mut all = results(&lane, &Outcome::Sent, 20);
    all[1].ending = Ending::Dead;
    store
        .settle(vec![lane.lease.settle(all, at(20), None)])
        .await
        .unwrap();
    let dead = store.dead(DeadSelection::All, 9).await.unwrap();
    assert_eq!(dead[0].event.id, ids[1]);
    assert!(dead[0].event.event.body.contains("missing"), "{dead:?}");
    assert_sound(&*store).await;
}

#[tokio::test]
async fn leap_of_the_database_clock_that_two_replicas_see_is_corrected_once() {
    let pair = Pair::open().await;
    let (first, second) = (pair.one.handle(), pair.other.handle());
    pair.pass(2, &[&*first, &*second]).await;
    let before = first.clock().now();
    pair.one.clock.leap(SignedDuration::from_hours(24));
    pair.pass(1, &[&*first, &*second]).await;
    assert_eq!(first.clock().now(), before + SignedDuration::from_secs(1));
    assert_eq!(second.clock().now(), first.clock().now());
    let steps = "SELECT step FROM clock";
    assert_eq!(count(pair.one.schema(), steps).await, 1);
    assert_eq!(second.replicas(), 2, "both are alive still");
}

/// A connection beside the store's, in a transaction that is never committed.
struct Beside {
    client: tokio_postgres::Client,
    _tasks: tokio::task::JoinSet<Result<(), tokio_postgres::Error>>,
}

impl Beside {
    async fn lock(schema: &str, sql: &str) -> Self {
        let url = server().url(schema);
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(connection);
        client
            .batch_execute(&format!("BEGIN; {sql}"))
            .await
            .unwrap();
        Self {
            client,
            _tasks: tasks,
        }
    }

    async fn end(self) {
        self.client.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test]
async fn lease_that_is_dropped_while_its_lane_is_locked_is_marked_all_the_same() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    place.clock.advance(Duration::from_secs(6));
    store.beat().await.unwrap();
    let lanes = take(&*store).await;
    assert!(Lease::permission(&[&lanes[0].lease])());
    drop(lanes);
    let beside = Beside::lock(place.schema(), "SELECT id FROM lane FOR UPDATE").await;
    store.beat().await.unwrap();
    beside.end().await;
    assert!(take(&*store).await.is_empty(), "it could not be given back");
    store.beat().await.unwrap();
    assert_eq!(marks(&take(&*store).await), [true]);
}

#[tokio::test]
async fn lease_of_another_take_with_the_same_number_is_not_ended() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    place.clock.advance(Duration::from_secs(6));
    let held = one(take(&*store).await);
    // As after a failover that lost the take, and another one since.
    let again = "UPDATE lease SET call = call + 1";
    server().run(place.schema(), again).await;
    let dead = settled(held, &Outcome::Dead, 7);
    store.settle(vec![dead]).await.unwrap();
    let left = store.dead(DeadSelection::All, 9).await.unwrap();
    assert!(left.is_empty(), "an old result was taken: {left:?}");
    assert_eq!(count(place.schema(), "SELECT count(*) FROM lease").await, 1);
}

#[tokio::test]
async fn step_of_the_database_clock_silences_nobody() {
    let pair = Pair::open().await;
    let (first, second) = (pair.one.handle(), pair.other.handle());
    arrives(&*first, event("m-1", "i-1", "Success", 0), 0).await;
    pair.pass(10, &[&*first, &*second]).await;
    let held = one(take(&*first).await);
    pair.one.clock.leap(SignedDuration::from_secs(20));
    pair.pass(2, &[&*second]).await;
    assert_eq!(second.replicas(), 2);
    assert!(take(&*second).await.is_empty(), "the other lives");
    pair.pass(1, &[&*first, &*second]).await;
    first
        .settle(vec![settled(held, &Outcome::Sent, 15)])
        .await
        .unwrap();
    assert_eq!(first.tally().await.unwrap()[0].sent, 1);
    assert_sound(&*first).await;
}

#[tokio::test]
async fn lease_without_its_lane_is_dropped() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    place.clock.advance(Duration::from_secs(6));
    drop(take(&*store).await);
    let schema = place.schema();
    server()
        .run(schema, "DELETE FROM waiting; DELETE FROM lane")
        .await;
    store.beat().await.unwrap();
    assert_eq!(count(schema, "SELECT count(*) FROM lease").await, 0);
}
