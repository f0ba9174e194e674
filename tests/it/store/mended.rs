//! Faults that were mended, each played once more: with its mend out the test fails.

use runbell::delivery::Marks;

use super::*;

/// Appends an event that is owed to sink `s` in a lane of this kind, without a hold.
pub(super) async fn comes(store: &dyn Store, event: Event, lane: LaneKey, second: i64) -> EventId {
    let owed = vec![owed(&event, "s", lane, 0)];
    stored(store, event, owed, second).await
}

/// A lane all of whose deliveries end so, with these marks.
pub(super) fn ended(lane: Lane, ending: &Ending, marks: &Marks, second: i64) -> Settlement {
    let mut results = results(&lane, &Outcome::Sent, second);
    for one in &mut results {
        one.ending = ending.clone();
        one.marks = marks.clone();
    }
    lane.lease.settle(results, at(second), None)
}

pub(super) fn over_to(sink: &str) -> Ending {
    Ending::Diverted {
        to: sink.to_owned(),
    }
}

async fn mark_of_a_possible_repeat_goes_along_to_a_fallback(on: On) {
    for by_settlement in [false, true] {
        let store = TestStore::open_on(on).await;
        let store = store.handle();
        comes(
            &*store,
            event("m-0", "i-0", "Success", 0),
            LaneKey::Command,
            0,
        )
        .await;
        let lane = one(lease(&*store, 1).await);
        let sent = settled(lane, &Outcome::Sent, 1);
        store.settle(vec![sent]).await.unwrap();
        comes(
            &*store,
            event("m-1", "i-1", "Success", 1),
            LaneKey::Command,
            1,
        )
        .await;
        let unheard = Ending::Retry(Failure {
            may_have_arrived: true,
            ..Failure::default()
        });
        let lane = one(lease(&*store, 2).await);
        let tried = ended(lane, &unheard, &Marks::default(), 2);
        store.settle(vec![tried]).await.unwrap();
        if by_settlement {
            let lane = one(lease(&*store, 3).await);
            let over = ended(lane, &over_to("t"), &Marks::default(), 3);
            store.settle(vec![over]).await.unwrap();
        } else {
            assert_eq!(store.divert("s", "t", at(3)).await.unwrap(), 1);
        }
        let lane = one(store.lease("t", at(4), 9).await.unwrap().lanes);
        let waiting = &lane.waiting[0];
        assert!(waiting.possible_repeat, "by settlement: {by_settlement}");
        // The watermark of when it came: `t` was told of nothing yet.
        assert_eq!(waiting.high_then, None);
    }
}

async fn event_whose_row_is_missing_costs_its_own_delivery_alone(on: On) {
    let store = TestStore::open_on(on).await;
    for number in 1..=4 {
        let event = event(
            &format!("m-{number}"),
            &format!("i-{number}"),
            "Success",
            number,
        );
        comes(&*store.handle(), event, LaneKey::Command, number).await;
    }
    store
        .run(
            "PRAGMA foreign_keys = OFF; DELETE FROM event WHERE message_id = 'm-2'",
            "DELETE FROM event WHERE message_id = 'm-2'",
        )
        .await;
    let lane = one(lease(&*store.handle(), 10).await);
    let told: Vec<_> = lane
        .waiting
        .iter()
        .map(|it| it.event.as_ref().map(|it| it.message_id.as_str()))
        .collect();
    assert_eq!(told, [Some("m-1"), None, Some("m-3"), Some("m-4")]);
    for it in &lane.waiting {
        let Some(event) = &it.event else { continue };
        let own = owed(event, "s", LaneKey::Command, 0).key;
        assert_eq!(it.key, own, "{}", event.message_id);
    }
}

async fn name_whose_transaction_failed_is_written_by_the_next(on: On) {
    let mut store = TestStore::open_on(on).await;
    store
        .run(
            "CREATE TRIGGER no_steps BEFORE INSERT ON step WHEN NEW.instance = 'i-bad'
             BEGIN SELECT RAISE(ABORT, 'not this one'); END",
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN RAISE check_violation USING MESSAGE = ''not this one''; END';
             CREATE TRIGGER no_steps BEFORE INSERT ON step FOR EACH ROW
             WHEN (NEW.instance = 'i-bad') EXECUTE FUNCTION refuse()",
        )
        .await;
    let bad = event("m-bad", "i-bad", "Success", 1);
    comes(&*store.handle(), bad, LaneKey::Command, 1).await;
    let good = event("m-1", "i-1", "Success", 1);
    comes(&*store.handle(), good, LaneKey::Command, 1).await;
    // Nothing is remembered from here on, so only what was written counts.
    store.reopen().await;
    let store = store.handle();
    let dead = store.dead(DeadSelection::All, 9).await.unwrap();
    assert_eq!((&*dead[0].route, &*dead[0].sink), ("r", "s"));
    assert_eq!(dead[0].event.event.topic, TOPIC);
    let lane = one(lease(&*store, 10).await);
    assert_eq!((&*lane.route, &*lane.sink), ("r", "s"));
    assert_eq!(lane.waiting[0].event.as_ref().unwrap().topic, TOPIC);
}

async fn lane_of_a_single_event_goes_with_it(on: On) {
    let mut store = TestStore::open_on(on).await;
    let count = "SELECT count(*) FROM lane";
    // Sent as usual, and to a sink that is told of it by hand as well.
    let id = {
        let store = store.handle();
        let id = comes(&*store, event("m-1", "i-1", "Success", 1), LaneKey::Own, 1).await;
        let lane = one(lease(&*store, 1).await);
        let dead = settled(lane, &Outcome::Dead, 1);
        store.settle(vec![dead]).await.unwrap();
        id
    };
    assert_eq!(store.number(count).await, 0, "after it was given up");
    {
        let store = store.handle();
        let here = DeadSelection::Sink("s".to_owned());
        let to = Some("t".to_owned());
        assert_eq!(store.retry_dead(here, to, at(2)).await.unwrap(), 1);
        let lane = one(store.lease("t", at(2), 9).await.unwrap().lanes);
        assert_eq!(lane.waiting[0].event_id, id);
        let sent = settled(lane, &Outcome::Sent, 2);
        store.settle(vec![sent]).await.unwrap();
    }
    assert_eq!(store.number(count).await, 0, "after it was sent");
    // Handed over to a sink that was told of it already, by a fallback and by a result.
    for by_settlement in [false, true] {
        let name = format!("m-{by_settlement}");
        let told = event(&name, "i-1", "InProgress", 3);
        let both = ["s", "t"].map(|sink| owed(&told, sink, LaneKey::Own, 0));
        let store_now = store.handle();
        stored(&*store_now, told, both.to_vec(), 3).await;
        let lane = one(store_now.lease("t", at(3), 9).await.unwrap().lanes);
        let sent = settled(lane, &Outcome::Sent, 3);
        store_now.settle(vec![sent]).await.unwrap();
        if by_settlement {
            let lane = one(lease(&*store_now, 4).await);
            let over = ended(lane, &over_to("t"), &Marks::default(), 4);
            store_now.settle(vec![over]).await.unwrap();
        } else {
            store_now.divert("s", "t", at(4)).await.unwrap();
        }
        drop(store_now);
        assert_eq!(store.number(count).await, 0, "handed over: {by_settlement}");
    }
    // Sent under a lease that is over.
    let lane = {
        let store = store.handle();
        comes(&*store, event("m-2", "i-2", "Success", 5), LaneKey::Own, 5).await;
        one(lease(&*store, 5).await)
    };
    store.reopen().await;
    let sent = settled(lane, &Outcome::Sent, 6);
    store.handle().settle(vec![sent]).await.unwrap();
    assert_eq!(store.number(count).await, 0, "after its lease was over");
}

async fn leap_of_the_clock_deletes_nothing(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    let mut ids = Vec::new();
    for number in 1..=3 {
        let event = event(&format!("m-{number}"), "i-1", "Success", number);
        ids.push(stored(&*store, event, Vec::new(), number).await);
    }
    let keep = Duration::from_hours(2);
    while store.prune(at(365 * DAY), keep).await.unwrap() {}
    for id in ids {
        assert!(store.event(id).await.unwrap().is_some(), "{id:?}");
    }
}

async fn crash_marks_nothing_that_was_never_handed_out(on: On) {
    let mut store = TestStore::open_on(on).await;
    {
        let store = store.handle();
        let last = event("m-9", "i-9", "Success", 9);
        comes(&*store, last, LaneKey::Command, 9).await;
        let lane = one(lease(&*store, 9).await);
        let dead = settled(lane, &Outcome::Dead, 9);
        store.settle(vec![dead]).await.unwrap();
        for number in 1..=3 {
            arrives(
                &*store,
                event(&format!("m-{number}"), "i-1", "Success", number),
                9,
            )
            .await;
        }
        let again = store.retry_dead(DeadSelection::All, None, at(10)).await;
        assert_eq!(again.unwrap(), 1);
        let lane = one(lease(&*store, 10).await);
        assert_eq!(instances(std::slice::from_ref(&lane)), ["i-9"]);
        assert!(Lease::permission(&[&lane.lease])(), "it is about to go");
    }
    store.reopen().await;
    assert_eq!(store.opened.possible_repeats, 1);
    let lane = one(lease(&*store.handle(), 60).await);
    let marks: Vec<_> = lane.waiting.iter().map(|it| it.possible_repeat).collect();
    assert_eq!(marks, [false, false, false, true]);
}

#[tokio::test]
async fn error_that_the_database_does_not_explain_is_refused_and_comes_again() {
    let store = TestStore::open_on(On::Postgres).await;
    store
        .run(
            "",
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN RAISE EXCEPTION SQLSTATE ''ZZ999''; END';
             CREATE TRIGGER no_steps BEFORE INSERT ON step FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    let told = event("m-1", "i-1", "Success", 1);
    let to = vec![owed(&told, "s", LaneKey::Command, 0)];
    let append = Append::new(told, to, at(1));
    let refused = store.handle().append(append.clone()).await;
    assert!(
        matches!(refused, Err(StoreError::Database(_))),
        "{refused:?}"
    );
    store.run("", "DROP TRIGGER no_steps ON step").await;
    let kept = store.handle().append(append).await.unwrap();
    assert!(matches!(kept, Appended::Stored { .. }), "{kept:?}");
    let lanes = lease(&*store.handle(), 10).await;
    assert_eq!(instances(&lanes), ["i-1"]);
}

on_both! {
    mark_of_a_possible_repeat_goes_along_to_a_fallback,
    event_whose_row_is_missing_costs_its_own_delivery_alone,
    name_whose_transaction_failed_is_written_by_the_next,
    lane_of_a_single_event_goes_with_it,
    leap_of_the_clock_deletes_nothing,
    crash_marks_nothing_that_was_never_handed_out,
}
