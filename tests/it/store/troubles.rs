//! What goes wrong around a store that is in order.

use super::*;

async fn clock_set_back_holds_nothing_up(on: On) {
    let store = TestStore::open_on_at(on, Clock::by_hand(at(3600))).await;
    let clock = store.clock.clone();
    let store = store.handle();
    let time = store.clock().clone();
    store.beat().await.unwrap();
    arrives(&*store, event("m-1", "i-1", "Success", 3600), 3600).await;
    store
        .back_off("s", Some(at(3603)), time.now())
        .await
        .unwrap();
    // People read an hour earlier; five seconds of the hold are five seconds still.
    clock.set(at(0));
    for second in 1..5 {
        clock.advance(Duration::from_secs(1));
        store.beat().await.unwrap();
        let waits = store.lease("s", time.now(), 9).await.unwrap();
        assert!(waits.lanes.is_empty(), "after {second} seconds");
    }
    clock.advance(Duration::from_secs(1));
    store.beat().await.unwrap();
    let lanes = store.lease("s", time.now(), 9).await.unwrap().lanes;
    assert_eq!(instances(&lanes), ["i-1"]);
}

async fn clock_set_back_while_nobody_ran_holds_nothing_up(on: On) {
    let mut store = TestStore::open_on_at(on, Clock::by_hand(at(86_400))).await;
    {
        let store = store.handle();
        store.beat().await.unwrap();
        arrives(&*store, event("m-1", "i-1", "Success", 86_400), 86_400).await;
        store
            .back_off("s", Some(at(86_404)), at(86_400))
            .await
            .unwrap();
    }
    store.stop().await;
    store.clock.set(at(0));
    store.start_again().await;
    let clock = store.clock.clone();
    let store = store.handle();
    let time = store.clock().clone();
    let waits = store.lease("s", time.now(), 9).await.unwrap();
    assert!(waits.lanes.is_empty());
    clock.advance(Duration::from_secs(6));
    store.beat().await.unwrap();
    let lanes = store.lease("s", time.now(), 9).await.unwrap().lanes;
    assert_eq!(instances(&lanes), ["i-1"]);
}

async fn clock_that_leaps_forgets_and_ages_nothing(on: On) {
    let store = TestStore::open_on_at(on, Clock::by_hand(at(0))).await;
    let clock = store.clock.clone();
    let store = store.handle();
    store.beat().await.unwrap();
    let id = stored(&*store, event("m-1", "i-1", "Success", 0), Vec::new(), 0).await;
    clock.leap(SignedDuration::from_hours(24 * 365));
    clock.advance(Duration::from_secs(1));
    store.beat().await.unwrap();
    assert_eq!(store.clock().now(), at(1));
    let now = clock.now();
    assert!(!store.prune(now, Duration::from_hours(2)).await.unwrap());
    assert!(store.event(id).await.unwrap().is_some());
}

async fn clock_that_leaps_before_the_first_beat_ages_nothing(on: On) {
    let store = TestStore::open_on_at(on, Clock::by_hand(at(0))).await;
    store.clock.leap(SignedDuration::from_secs(120));
    store.clock.advance(Duration::from_secs(1));
    let store = store.handle();
    store.beat().await.unwrap();
    assert_eq!(store.clock().now(), at(1));
}

async fn events_of_a_clock_that_was_ahead_hinder_no_forgetting(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    for number in 0..600 {
        let event = event(&format!("ahead-{number}"), "i-1", "Success", 1);
        stored(&*store, event, Vec::new(), 365 * DAY).await;
    }
    let old = stored(&*store, event("m-1", "i-1", "Success", 2), Vec::new(), 2).await;
    stored(
        &*store,
        event("young", "i-1", "Success", DAY),
        Vec::new(),
        DAY,
    )
    .await;
    while store.prune(at(DAY), Duration::from_hours(2)).await.unwrap() {}
    assert!(store.event(old).await.unwrap().is_none());
}

async fn a_lease_is_bounded_by_bytes_as_well(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    for number in 10..40 {
        let body = serde_json::json!({
            "commandId": "c-1", "instanceId": format!("i-{number}"), "status": "Success",
            "eventTime": at(number).to_string(), "more": "x".repeat(250_000),
        });
        let event = read(&format!("m-{number}"), &body.to_string(), number);
        arrives(&*store, event, number).await;
    }
    let mut carried = Vec::new();
    let mut rounds = 0;
    loop {
        let lanes = lease(&*store, 100).await;
        if lanes.is_empty() {
            break;
        }
        rounds += 1;
        assert!(lanes[0].waiting.len() <= 17, "{}", lanes[0].waiting.len());
        carried.extend(instances(&lanes));
        store
            .settle(vec![settled(one(lanes), &Outcome::Sent, 100)])
            .await
            .unwrap();
    }
    assert_eq!(rounds, 2);
    let all: Vec<_> = (10..40).map(|number| format!("i-{number}")).collect();
    assert_eq!(carried, all);
}

async fn a_letter_sent_again_and_a_failing_head_are_not_in_each_others_way(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    let lanes = lease(&*store, 6).await;
    store
        .settle(vec![settled(one(lanes), &Outcome::Dead, 6)])
        .await
        .unwrap();
    arrives(&*store, event("m-2", "i-2", "Success", 7), 7).await;
    let lanes = lease(&*store, 12).await;
    let failed = head_settled(one(lanes), &Outcome::Retry, 12, Some(600));
    store.settle(vec![failed]).await.unwrap();
    assert_eq!(
        store
            .retry_dead(DeadSelection::All, None, at(20))
            .await
            .unwrap(),
        1
    );
    let lanes = lease(&*store, 20).await;
    assert_eq!(instances(&lanes), ["i-1"], "it goes at once");
    assert!(lanes[0].waiting[0].alone);
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 20)])
        .await
        .unwrap();
    let waits = store.lease("s", at(599), 9).await.unwrap();
    assert!(waits.lanes.is_empty(), "the head keeps its own time");
    assert_eq!(waits.next_due, Some(at(600)));
    assert_eq!(instances(&lease(&*store, 600).await), ["i-2"]);
    assert_sound(&*store).await;
}

async fn what_waits_for_a_sink_that_is_gone_becomes_dead_letters(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    for number in 0..1200 {
        let event = event(&format!("m-{number}"), "i-1", "Success", 1);
        let to = vec![
            owed(&event, "gone", LaneKey::Topic, 5),
            owed(&event, "s", LaneKey::Command, 5),
        ];
        stored(&*store, event, to, 1).await;
    }
    assert_eq!(store.bury("gone", at(2)).await.unwrap(), 1200);
    assert_eq!(store.bury("gone", at(3)).await.unwrap(), 0);
    let here = DeadSelection::Sink("gone".to_owned());
    let to = Some("s".to_owned());
    // What waits for that sink already stays a dead letter: it would arrive twice.
    let dead = store.dead(here.clone(), 5000).await.unwrap();
    assert_eq!(dead.len(), 1200);
    assert_eq!(dead[0].answer.as_deref(), Some("given up by hand"));
    assert_eq!(store.retry_dead(here, to, at(4)).await.unwrap(), 1200);
    assert_sound(&*store).await;
}

async fn what_the_database_cannot_keep_is_kept_raw(on: On) {
    let store = TestStore::open_on(on).await;
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
    let store = store.handle();
    let arrivals = ["i-1", "i-bad", "i-2"].map(|instance| {
        let event = event(&format!("m-{instance}"), instance, "Success", 1);
        arrives(&*store, event, 1)
    });
    let ids = futures_util::future::join_all(arrivals).await;
    let (kept, deliveries) = store.event(ids[1]).await.unwrap().unwrap();
    assert_eq!(kept.event.message_id, "m-i-bad");
    assert_eq!((deliveries.len(), deliveries[0].dead), (1, true));
    let dead = store.dead(DeadSelection::All, 9).await.unwrap();
    let why = dead[0].answer.as_deref().unwrap();
    assert!(
        why.contains("could not keep it") && why.contains("not this one"),
        "{why}"
    );
    let lanes = lease(&*store, 10).await;
    assert_eq!(instances(&lanes), ["i-1", "i-2"]);
    assert_sound(&*store).await;
}

#[tokio::test]
async fn nobody_else_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let store = TestStore::open();
    let path = store.path();
    arrives(&*store.handle(), event("m-1", "i-1", "Success", 1), 1).await;
    for beside in ["", "-wal", "-shm", ".lock"] {
        let mut name = path.clone().into_os_string();
        name.push(beside);
        let mode = std::fs::metadata(&name).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{beside}");
    }
}

on_both! {
    clock_set_back_holds_nothing_up,
    clock_set_back_while_nobody_ran_holds_nothing_up,
    clock_that_leaps_forgets_and_ages_nothing,
    clock_that_leaps_before_the_first_beat_ages_nothing,
    events_of_a_clock_that_was_ahead_hinder_no_forgetting,
    a_lease_is_bounded_by_bytes_as_well,
    a_letter_sent_again_and_a_failing_head_are_not_in_each_others_way,
    what_waits_for_a_sink_that_is_gone_becomes_dead_letters,
    what_the_database_cannot_keep_is_kept_raw,
}
