//! Ends of leases that are out of the ordinary: results that cannot be kept, marks after a crash, marks
//! that go along to a fallback.

use super::*;

/// Refuses history lines that a condition is true of, as a constraint that nobody thought of would.
async fn refuse_outcomes(store: &TestStore, on_sqlite: &str, on_postgres: &str) {
    let sqlite = format!(
        "CREATE TRIGGER no_outcomes BEFORE INSERT ON outcome WHEN {on_sqlite}
         BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    );
    let postgres = format!(
        "CREATE FUNCTION refuse_it() RETURNS trigger LANGUAGE plpgsql AS
           'BEGIN RAISE check_violation USING MESSAGE = ''not this one''; END';
         CREATE TRIGGER no_outcomes BEFORE INSERT ON outcome FOR EACH ROW
         WHEN ({on_postgres}) EXECUTE FUNCTION refuse_it()"
    );
    store.run(&sqlite, &postgres).await;
}

async fn result_that_cannot_be_kept_is_kept_without_its_texts(on: On) {
    let place = TestStore::open_on(on).await;
    refuse_outcomes(
        &place,
        "NEW.answer = 'answer'",
        "NEW.answer = 'answer'::bytea",
    )
    .await;
    let store = place.handle();
    for number in 1..=2 {
        let event = event(&format!("m-{number}"), "i-1", "Success", number);
        let owed = vec![owed(&event, "s", LaneKey::Own, 0)];
        stored(&*store, event, owed, number).await;
    }
    let lanes = lease(&*store, 6).await;
    assert_eq!(lanes.len(), 2);
    let mut settlements: Vec<_> = lanes
        .into_iter()
        .map(|lane| settled(lane, &Outcome::Sent, 6))
        .collect();
    store.settle(settlements.split_off(1)).await.unwrap();
    store.settle(settlements).await.unwrap();
    let tally = store.tally().await.unwrap();
    assert_eq!((tally[0].sent, tally[0].waiting), (2, 0));
    assert!(lease(&*store, 99).await.is_empty());
    assert_sound(&*store).await;
}

async fn result_that_can_never_be_kept_becomes_a_dead_letter_that_says_so(on: On) {
    let place = TestStore::open_on(on).await;
    refuse_outcomes(&place, "NEW.result = 'sent'", "NEW.result = 'sent'").await;
    let store = place.handle();
    let id = arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    let lanes = lease(&*store, 6).await;
    let sent = settled(one(lanes), &Outcome::Sent, 6);
    store.settle(vec![sent]).await.unwrap();
    let dead = store.dead(DeadSelection::All, 9).await.unwrap();
    assert_eq!((dead.len(), dead[0].event.id), (1, id));
    let why = dead[0].answer.as_deref().unwrap();
    assert!(why.contains("could not keep what became of it"), "{why}");
    assert_sound(&*store).await;
}

async fn digest_that_may_have_arrived_before_a_crash_says_so_whatever_came_since(on: On) {
    let mut place = TestStore::open_on(on).await;
    let arrive = async |store: &dyn Store, number: i64| {
        let event = event(&format!("m-{number}"), "i-1", "Failed", number);
        let owed = vec![owed(&event, "s", LaneKey::Digest, 5)];
        stored(store, event, owed, number).await;
    };
    {
        let store = place.handle();
        arrive(&*store, 1).await;
        arrive(&*store, 2).await;
        let lanes = lease(&*store, 10).await;
        assert!(Lease::permission(&[&lanes[0].lease])());
    }
    place.reopen().await;
    let store = place.handle();
    arrive(&*store, 3).await;
    let lanes = lease(&*store, 60).await;
    let last = &lanes[0].waiting[0];
    assert_eq!(last.event.as_ref().unwrap().message_id, "m-2");
    assert!(last.possible_repeat);
}

async fn delivery_handed_over_says_that_it_may_have_arrived_and_is_late_where_it_goes(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    for number in 1..=2 {
        let event = event(&format!("m-{number}"), "i-1", "Success", number);
        arrives(&*store, event, 2).await;
    }
    let lane = one(lease(&*store, 10).await);
    let mut all = results(&lane, &Outcome::Retry, 10);
    all[0].ending = Ending::Retry(Failure {
        may_have_arrived: true,
        ..Failure::default()
    });
    all[1].ending = Ending::Diverted { to: "t".to_owned() };
    // The try that ended so may itself have arrived.
    all[1].marks.possible_repeat = true;
    store
        .settle(vec![lane.lease.settle(all, at(10), None)])
        .await
        .unwrap();
    let there = one(store.lease("t", at(11), 9).await.unwrap().lanes);
    assert!(there.waiting[0].possible_repeat);
    assert_eq!(there.waiting[0].instead_of.as_deref(), Some("s"));
    let sent = settled(there, &Outcome::Sent, 11);
    store.settle(vec![sent]).await.unwrap();
    assert_eq!(store.divert("s", "t", at(12)).await.unwrap(), 1);
    let there = one(store.lease("t", at(12), 9).await.unwrap().lanes);
    let first = &there.waiting[0];
    assert!(first.possible_repeat);
    let high = first.high(there.high.as_ref());
    assert!(
        high.is_some_and(|high| first.key < *high),
        "m-2 was told there"
    );
}

#[tokio::test]
async fn sqlite_writes_nothing_while_nothing_happens() {
    let place = TestStore::open();
    let store = place.handle();
    let beside = rusqlite::Connection::open(place.path()).unwrap();
    let version = || -> i64 {
        beside
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .unwrap()
    };
    store.beat().await.unwrap();
    lease(&*store, 0).await;
    let before = version();
    for second in 1..30 {
        place.clock.advance(Duration::from_secs(1));
        store.beat().await.unwrap();
        lease(&*store, second).await;
        store
            .prune(at(second), Duration::from_hours(2))
            .await
            .unwrap();
    }
    assert_eq!(version(), before);
}

on_both! {
    result_that_cannot_be_kept_is_kept_without_its_texts,
    result_that_can_never_be_kept_becomes_a_dead_letter_that_says_so,
    digest_that_may_have_arrived_before_a_crash_says_so_whatever_came_since,
    delivery_handed_over_says_that_it_may_have_arrived_and_is_late_where_it_goes,
}
