//! What waits for one sink is handed to another.

use super::*;

/// What a sink gets, with the sink in whose place.
async fn gets(store: &dyn Store, sink: &str, second: i64) -> Vec<(String, Option<String>)> {
    let mut got = Vec::new();
    loop {
        let lanes = store.lease(sink, at(second), 100).await.unwrap().lanes;
        if lanes.is_empty() {
            return got;
        }
        for lane in lanes {
            let waiting = lane.waiting.iter();
            got.extend(waiting.map(|it| {
                (
                    it.event.as_ref().unwrap().message_id.clone(),
                    it.instead_of.clone(),
                )
            }));
            let sent = settled(lane, &Outcome::Sent, second);
            store.settle(vec![sent]).await.unwrap();
        }
    }
}

async fn what_waits_for_a_sink_goes_to_another_in_order_and_once(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    let told = event("m-0", "i-0", "Success", 0);
    let both = ["s", "t"].map(|sink| owed(&told, sink, LaneKey::Command, 5));
    stored(&*store, told, both.to_vec(), 0).await;
    assert_eq!(gets(&*store, "t", 5).await, [("m-0".to_owned(), None)]);
    let mut ids = Vec::new();
    for number in [3, 1, 2] {
        let event = event(&format!("m-{number}"), "i-1", "Success", number);
        ids.push(arrives(&*store, event, 10).await);
    }
    store.back_off("s", Some(at(900)), at(6)).await.unwrap();
    store.back_off("s", Some(at(1900)), at(900)).await.unwrap();
    let leased = store.lease("s", at(1000), 9).await.unwrap();
    assert_eq!(
        leased.failing_since,
        Some(at(6)),
        "since the first of its rests"
    );
    assert_eq!(store.divert("s", "t", at(1000)).await.unwrap(), 4);
    assert_eq!(store.divert("s", "t", at(1000)).await.unwrap(), 0);
    let instead = |id: &str| (id.to_owned(), Some("s".to_owned()));
    assert_eq!(
        gets(&*store, "t", 1000).await,
        [instead("m-1"), instead("m-2"), instead("m-3")]
    );
    let (_, deliveries) = store.event(ids[0]).await.unwrap().unwrap();
    let history: Vec<_> = deliveries
        .iter()
        .flat_map(|it| {
            it.outcomes
                .iter()
                .map(|past| (&*it.sink, past.outcome.word()))
        })
        .collect();
    assert_eq!(history, [("s", "diverted"), ("t", "sent")]);
    let tallies = store.tally().await.unwrap();
    let [s, t] = tallies.as_slice() else {
        panic!("{tallies:?}");
    };
    assert_eq!((s.owed, s.redundant, s.sent, s.waiting), (1, 1, 0, 0));
    assert_eq!((t.owed, t.sent, t.waiting), (4, 4, 0));
    assert_sound(&*store).await;
    store.back_off("s", None, at(2000)).await.unwrap();
    let leased = store.lease("s", at(2000), 9).await.unwrap();
    assert_eq!(leased.failing_since, None);
}

/// A lane whose deliveries another sink is to bring.
fn diverted(lane: Lane, to: &str, second: i64) -> Settlement {
    let mut all = results(&lane, &Outcome::Dead, second);
    for one in &mut all {
        one.ending = Ending::Diverted { to: to.to_owned() };
    }
    lane.lease.settle(all, at(second), None)
}

async fn what_is_under_way_is_left_to_whoever_carries_it(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    let lanes = lease(&*store, 6).await;
    arrives(&*store, event("m-2", "i-2", "Success", 2), 7).await;
    assert_eq!(store.divert("s", "t", at(20)).await.unwrap(), 0);
    let sent = settled(one(lanes), &Outcome::Sent, 20);
    store.settle(vec![sent]).await.unwrap();
    assert_eq!(store.divert("s", "t", at(21)).await.unwrap(), 1);
    let got = gets(&*store, "t", 22).await;
    assert_eq!(got, [("m-2".to_owned(), Some("s".to_owned()))]);
    assert_sound(&*store).await;
}

async fn a_digest_is_handed_over_whole(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    for number in 1..=5 {
        let event = event(
            &format!("m-{number}"),
            &format!("i-{number}"),
            "Failed",
            number,
        );
        let owed = vec![owed(&event, "s", LaneKey::Digest, 10)];
        stored(&*store, event, owed, 5).await;
    }
    let lanes = lease(&*store, 15).await;
    assert_eq!(lanes[0].waiting.len(), 1, "one stands for all");
    store
        .settle(vec![diverted(one(lanes), "t", 15)])
        .await
        .unwrap();
    let lanes = store.lease("t", at(16), 100).await.unwrap().lanes;
    assert_eq!(lanes[0].digest.as_ref().unwrap().failed, 5);
    let sent = settled(one(lanes), &Outcome::Sent, 16);
    store.settle(vec![sent]).await.unwrap();
    let tallies = store.tally().await.unwrap();
    let counts: Vec<_> = tallies
        .iter()
        .map(|it| (it.owed, it.sent, it.waiting))
        .collect();
    assert_eq!(counts, [(0, 0, 0), (5, 5, 0)]);
    assert_sound(&*store).await;
}

on_both! {
    what_waits_for_a_sink_goes_to_another_in_order_and_once,
    what_is_under_way_is_left_to_whoever_carries_it,
    a_digest_is_handed_over_whole,
}
