//! A replica that lost its lease may record what it sent, wherever the delivery lies by now.

use super::*;
use crate::harness::postgres::server;

/// A lane that was leased, freed, and may be found by the next lease; with the lease that is over.
async fn freed(place: &TestStore, store: &dyn Store, lane: LaneKey) -> Lane {
    for number in 1..=2 {
        let event = event(&format!("m-{number}"), "i-1", "Failed", number);
        let to = vec![owed(&event, "s", lane, 0)];
        stored(store, event, to, 1).await;
    }
    let held = store.lease("s", at(5), 100).await.unwrap().lanes.remove(0);
    // As others do it when they hear no sign.
    let free = "UPDATE lane SET leased = false, epoch = epoch + 1, due_at = 0 WHERE leased;
        DELETE FROM lease";
    server().run(place.schema(), free).await;
    held
}

/// Owed, sent, dead and waiting of a sink.
async fn books(store: &dyn Store, sink: &str) -> (u64, u64, u64, u64) {
    let tallies = store.tally().await.unwrap();
    let it = tallies.iter().find(|it| it.sink == sink).unwrap();
    (it.owed, it.sent, it.dead, it.waiting)
}

/// Records that the first of its deliveries was sent, twice: the answer was lost.
async fn sent_first(store: &dyn Store, held: Lane) {
    let late = head_settled(held, &Outcome::Sent, 30, None);
    for _ in 0..2 {
        store.settle(vec![late.clone()]).await.unwrap();
    }
    assert_sound(store).await;
}

#[tokio::test]
async fn delivery_that_waits_again_is_sent() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    let held = freed(&place, &*store, LaneKey::Command).await;
    sent_first(&*store, held).await;
    assert_eq!(books(&*store, "s").await, (2, 1, 0, 1));
    let lane = one(lease(&*store, 40).await);
    assert_eq!(lane.waiting[0].event.as_ref().unwrap().message_id, "m-2");
    assert!(lane.high.is_some_and(|high| high < lane.waiting[0].key));
}

#[tokio::test]
async fn delivery_that_another_carries_is_sent_and_that_one_finds_nothing() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    let held = freed(&place, &*store, LaneKey::Command).await;
    let other = one(lease(&*store, 6).await);
    sent_first(&*store, held).await;
    assert_eq!(books(&*store, "s").await, (2, 1, 0, 1));
    store
        .settle(vec![settled(other, &Outcome::Sent, 31)])
        .await
        .unwrap();
    assert_eq!(books(&*store, "s").await, (2, 2, 0, 0));
    assert_sound(&*store).await;
}

#[tokio::test]
async fn delivery_that_another_gave_up_is_sent_after_all() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    let held = freed(&place, &*store, LaneKey::Command).await;
    let other = one(lease(&*store, 6).await);
    store
        .settle(vec![settled(other, &Outcome::Dead, 7)])
        .await
        .unwrap();
    sent_first(&*store, held).await;
    assert_eq!(books(&*store, "s").await, (2, 1, 1, 0));
    let dead = store.dead(DeadSelection::All, 9).await.unwrap();
    assert_eq!(dead[0].event.event.message_id, "m-2");
}

#[tokio::test]
async fn delivery_that_a_fallback_has_is_marked_there() {
    for lane in [LaneKey::Command, LaneKey::Own] {
        let place = TestStore::open_on(On::Postgres).await;
        let store = place.handle();
        let held = freed(&place, &*store, lane).await;
        let first = held.waiting[0].event_id;
        assert_eq!(store.divert("s", "t", at(7)).await.unwrap(), 2);
        sent_first(&*store, held).await;
        let waits = store.lease("t", at(40), 100).await.unwrap().lanes;
        let mut marks: Vec<_> = waits
            .iter()
            .flat_map(|lane| &lane.waiting)
            .map(|it| (it.event_id, it.possible_repeat))
            .collect();
        marks.sort();
        assert_eq!(marks.len(), 2);
        assert!(
            marks
                .iter()
                .all(|(id, is_marked)| *is_marked == (*id == first))
        );
        let (_, deliveries) = store.event(first).await.unwrap().unwrap();
        let at_s = deliveries.iter().find(|it| it.sink == "s").unwrap();
        let words: Vec<_> = at_s.outcomes.iter().map(|it| it.outcome.word()).collect();
        assert_eq!(words, ["diverted", "sent"]);
    }
}

#[tokio::test]
async fn delivery_that_another_sent_has_two_lines_and_counts_once() {
    for lane in [LaneKey::Command, LaneKey::Own] {
        let place = TestStore::open_on(On::Postgres).await;
        let store = place.handle();
        let held = freed(&place, &*store, lane).await;
        let first = held.waiting[0].event_id;
        let others = lease(&*store, 6).await.into_iter();
        let all = others
            .map(|lane| settled(lane, &Outcome::Sent, 7))
            .collect();
        store.settle(all).await.unwrap();
        sent_first(&*store, held).await;
        assert_eq!(books(&*store, "s").await, (2, 2, 0, 0));
        let (_, deliveries) = store.event(first).await.unwrap().unwrap();
        assert_eq!(deliveries[0].outcomes.len(), 2);
    }
}

#[tokio::test]
async fn delivery_that_was_put_back_by_hand_is_another() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    let held = freed(&place, &*store, LaneKey::Command).await;
    let other = one(lease(&*store, 6).await);
    store
        .settle(vec![settled(other, &Outcome::Dead, 7)])
        .await
        .unwrap();
    let all = store.retry_dead(DeadSelection::All, None, at(8)).await;
    assert_eq!(all.unwrap(), 2);
    sent_first(&*store, held).await;
    assert_eq!(books(&*store, "s").await, (2, 0, 0, 2));
    let lanes = lease(&*store, 40).await;
    assert!(lanes[0].waiting.iter().all(|it| it.resent));
}

#[tokio::test]
async fn digest_that_another_holder_sent_takes_its_whole_batch_along() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    let held = freed(&place, &*store, LaneKey::Digest).await;
    assert!(held.digest.is_some());
    let late = event("m-3", "i-3", "Failed", 3);
    let to = vec![owed(&late, "s", LaneKey::Digest, 0)];
    stored(&*store, late, to, 8).await;
    sent_first(&*store, held).await;
    assert_eq!(
        books(&*store, "s").await,
        (3, 2, 0, 1),
        "what came later waits"
    );
    let lane = one(lease(&*store, 40).await);
    assert_eq!(lane.waiting[0].event.as_ref().unwrap().message_id, "m-3");
}
