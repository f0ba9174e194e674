//! Ends of leases that are out of the ordinary: results that cannot be kept, marks after a crash, marks
//! that go along to a fallback.

use runbell::delivery::Marks;

use super::mended::ended;
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
    // The reason may go away, and what was sent is not given up at once.
    for _ in 0..9 {
        let refused = store.settle(vec![sent.clone()]).await;
        assert!(matches!(refused, Err(StoreError::Data(_))), "{refused:?}");
        assert!(store.dead(DeadSelection::All, 9).await.unwrap().is_empty());
    }
    place.clock.advance(Duration::from_secs(10));
    store.settle(vec![sent]).await.unwrap();
    let dead = store.dead(DeadSelection::All, 9).await.unwrap();
    assert_eq!((dead.len(), dead[0].event.id), (1, id));
    let why = dead[0].answer.as_deref().unwrap();
    assert_eq!(why, "the sink took it, and the store could not keep that");
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

async fn result_that_can_never_be_kept_costs_none_beside_it(on: On) {
    let place = TestStore::open_on(on).await;
    let store = place.handle();
    let mut ids = Vec::new();
    for number in 1..=3 {
        let event = event(&format!("m-{number}"), "i-1", "Success", number);
        ids.push(arrives(&*store, event, 3).await);
    }
    let bad = format!("NEW.event = {} AND NEW.result = 'sent'", ids[1].0);
    refuse_outcomes(&place, &bad, &bad).await;
    let sent = settled(one(lease(&*store, 9).await), &Outcome::Sent, 9);
    store.settle(vec![sent.clone()]).await.unwrap_err();
    place.clock.advance(Duration::from_secs(10));
    store.settle(vec![sent]).await.unwrap();
    let dead = store.dead(DeadSelection::All, 9).await.unwrap();
    assert_eq!((dead.len(), dead[0].event.id), (1, ids[1]));
    let tally = &store.tally().await.unwrap()[0];
    assert_eq!((tally.sent, tally.waiting), (2, 0));
    assert_sound(&*store).await;
}

async fn digest_that_tells_of_a_possible_repeat_is_one(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    let arrive = async |number: i64| {
        let event = event(&format!("m-{number}"), "i-1", "Failed", number);
        let owed = vec![owed(&event, "s", LaneKey::Digest, 0)];
        stored(&*store, event, owed, number).await;
    };
    arrive(1).await;
    arrive(2).await;
    let unheard = Ending::Retry(Failure {
        may_have_arrived: true,
        ..Failure::default()
    });
    let lane = one(lease(&*store, 10).await);
    let tried = ended(lane, &unheard, &Marks::default(), 10);
    store.settle(vec![tried]).await.unwrap();
    assert_eq!(store.divert("s", "t", at(11)).await.unwrap(), 2);
    // The next of the same command follows by itself, behind them.
    arrive(3).await;
    let lane = one(lease(&*store, 20).await);
    let over = Ending::Diverted { to: "t".to_owned() };
    let over = ended(lane, &over, &Marks::default(), 20);
    store.settle(vec![over]).await.unwrap();
    let there = one(store.lease("t", at(21), 9).await.unwrap().lanes);
    let told = there.waiting.iter().map(|it| it.possible_repeat);
    assert_eq!(told.collect::<Vec<_>>(), [true]);
}

async fn delivery_handed_over_is_not_late_for_itself_after_a_crash(on: On) {
    let mut place = TestStore::open_on(on).await;
    {
        let store = place.handle();
        for number in 1..=2 {
            let event = event(&format!("m-{number}"), "i-1", "Success", number);
            arrives(&*store, event, 2).await;
        }
        let lane = one(lease(&*store, 10).await);
        assert!(Lease::permission(&[&lane.lease])());
    }
    place.reopen().await;
    {
        let store = place.handle();
        assert_eq!(store.divert("s", "t", at(11)).await.unwrap(), 2);
        let there = one(store.lease("t", at(12), 9).await.unwrap().lanes);
        assert!(Lease::permission(&[&there.lease])());
    }
    place.reopen().await;
    let store = place.handle();
    let there = one(store.lease("t", at(50), 9).await.unwrap().lanes);
    let is_late = there.waiting.iter().map(|it| {
        let high = it.high(there.high.as_ref());
        (it.possible_repeat, high.is_some_and(|high| it.key < *high))
    });
    assert_eq!(is_late.collect::<Vec<_>>(), [(true, false); 2]);
}

async fn what_goes_alone_goes_in_its_order(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    for number in 1..=3 {
        let event = event(&format!("m-{number}"), "i-1", "Failed", number);
        arrives(&*store, event, number).await;
    }
    let first = one(lease(&*store, 10).await);
    let mut all = results(&first, &Outcome::Parked, 10);
    for (result, second) in all.iter_mut().zip([60, 50, 70]) {
        let failure = Failure::default();
        let again_at = at(second);
        result.ending = Ending::Parked { again_at, failure };
    }
    // Nothing goes in turn for long, and what is parked does not wait for that.
    let settlement = first.lease.settle(all, at(10), Some(at(1000)));
    store.settle(vec![settlement]).await.unwrap();
    let there = one(lease(&*store, 100).await);
    let keys: Vec<_> = there.waiting.iter().map(|it| &it.key).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.is_sorted());
}

on_both! {
    what_goes_alone_goes_in_its_order,
    result_that_can_never_be_kept_costs_none_beside_it,
    digest_that_tells_of_a_possible_repeat_is_one,
    delivery_handed_over_is_not_late_for_itself_after_a_crash,
    result_that_cannot_be_kept_is_kept_without_its_texts,
    result_that_can_never_be_kept_becomes_a_dead_letter_that_says_so,
    digest_that_may_have_arrived_before_a_crash_says_so_whatever_came_since,
    delivery_handed_over_says_that_it_may_have_arrived_and_is_late_where_it_goes,
}
