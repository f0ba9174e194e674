//! Several replicas on one database, and what goes wrong between them.

use super::*;
use crate::harness::postgres::server;

/// As many events of one command as there are numbers, appended at the same time.
async fn append_all(store: &dyn Store, name: &str, numbers: &[usize]) {
    let appends = numbers.iter().map(|number| {
        let event = event(
            &format!("{name}-{number}"),
            &format!("i-{number}"),
            "Success",
            1,
        );
        let owed = ["s", "t", "u"]
            .iter()
            .map(|sink| owed(&event, sink, LaneKey::Instance, 0))
            .collect();
        store.append(Append {
            event,
            owed,
            received_at: at(1),
        })
    });
    for appended in futures_util::future::join_all(appends).await {
        appended.unwrap();
    }
}

#[tokio::test]
async fn replicas_that_append_in_opposite_orders_do_not_stop_each_other() {
    let one = TestStore::open_on(On::Postgres).await;
    let other = one.another().await;
    let up: Vec<usize> = (0..200).collect();
    let down: Vec<usize> = up.iter().rev().copied().collect();
    let (first, second) = (one.handle(), other.handle());
    for round in 0..5 {
        let (up_name, down_name) = (format!("up{round}"), format!("down{round}"));
        tokio::join!(
            append_all(&*first, &up_name, &up),
            append_all(&*second, &down_name, &down),
            async {
                // Whoever delivers locks the same lanes.
                for _ in 0..20 {
                    for sink in ["u", "s"] {
                        let lanes = second.lease(sink, at(2), 50).await.unwrap().lanes;
                        let sent = lanes.iter().map(|lane| settled(lane, &Outcome::Sent, 2));
                        second.settle(sent.collect()).await.unwrap();
                    }
                }
            }
        );
    }
    let deadlocks = server()
        .query(
            one.schema(),
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
        )
        .await;
    assert_eq!(deadlocks, ["0"]);
    assert_sound(&*first).await;
}

#[tokio::test]
async fn a_notification_that_two_replicas_take_is_kept_once() {
    let one = TestStore::open_on(On::Postgres).await;
    let other = one.another().await;
    let (first, second) = (one.handle(), other.handle());
    let append = |number: i64| {
        let event = event(&format!("m-{number}"), "i-1", "Success", number);
        let owed = vec![owed(&event, "s", LaneKey::Command, 0)];
        Append {
            event,
            owed,
            received_at: at(number),
        }
    };
    let mut kept = 0;
    for number in 0..50 {
        let both = tokio::join!(first.append(append(number)), second.append(append(number)));
        let ids = [both.0.unwrap(), both.1.unwrap()].map(|it| match it {
            Appended::Stored { id, .. } => {
                kept += 1;
                id
            }
            Appended::Known { id } => id,
        });
        assert_eq!(ids[0], ids[1]);
    }
    assert_eq!(kept, 50);
    assert_eq!(first.tally().await.unwrap()[0].owed, 50);
    assert_sound(&*first).await;
}

#[tokio::test]
async fn no_wake_up_is_lost_between_an_append_here_and_a_settle_there() {
    let one = TestStore::open_on(On::Postgres).await;
    let other = one.another().await;
    let (first, second) = (one.handle(), other.handle());
    for round in 0..100 {
        let event_1 = event(&format!("a-{round}"), "i-1", "Success", round);
        arrives(&*first, event_1, round).await;
        let lanes = lease(&*second, 1000).await;
        assert_eq!(lanes.len(), 1, "round {round}");
        let event_2 = event(&format!("b-{round}"), "i-1", "Success", round);
        // At the same time: whichever comes first, the lane is due afterwards.
        tokio::join!(arrives(&*first, event_2, round), async {
            second
                .settle(vec![settled(&lanes[0], &Outcome::Sent, round)])
                .await
                .unwrap();
        });
        let lanes = lease(&*first, 1000).await;
        assert_eq!(instances(&lanes), ["i-1"], "round {round}");
        let sent = settled(&lanes[0], &Outcome::Sent, round);
        first.settle(vec![sent]).await.unwrap();
    }
    assert_sound(&*first).await;
}

#[tokio::test]
async fn what_a_silent_replica_held_is_freed_and_marked_and_it_may_only_tell_what_it_sent() {
    let one = TestStore::open_on(On::Postgres).await;
    let other = one.another().await;
    let (first, second) = (one.handle(), other.handle());
    arrives(&*first, event("m-1", "i-1", "Success", 1), 1).await;
    arrives(&*first, event("m-2", "i-2", "Success", 2), 1).await;
    let held = lease(&*first, 10).await;
    assert!(lease(&*second, 10).await.is_empty());
    assert_eq!(second.sweep().await.unwrap(), 0);
    assert!(lease(&*second, 10).await.is_empty(), "it is alive");
    // As if it had been paused: its signs stop, and the others go on.
    let silence = "UPDATE replica SET beat_at = 0 WHERE no = (SELECT owner FROM lane WHERE owner IS NOT NULL)";
    server().run(one.schema(), silence).await;
    assert_eq!(
        second.sweep().await.unwrap(),
        0,
        "a freed lane was not forgotten"
    );
    let lanes = lease(&*second, 11).await;
    assert_eq!(instances(&lanes), ["i-1", "i-2"]);
    assert!(lanes[0].waiting.iter().all(|one| one.possible_repeat));
    assert!(lanes[0].epoch > held[0].epoch);
    // It wakes up, and had sent the first and failed with the second.
    let mut stale = settled(&held[0], &Outcome::Sent, 11);
    stale.results[1].outcome = Outcome::Dead;
    first.settle(vec![stale]).await.unwrap();
    assert!(first.dead(DeadSelection::All, 9).await.unwrap().is_empty());
    assert!(
        lease(&*first, 12).await.is_empty(),
        "the stale settle gave the lane away"
    );
    let sent = settled(&lanes[0], &Outcome::Sent, 12);
    second.settle(vec![sent]).await.unwrap();
    let tally = first.tally().await.unwrap();
    assert_eq!((tally[0].owed, tally[0].sent, tally[0].waiting), (2, 2, 0));
    assert_sound(&*first).await;
}

#[tokio::test]
async fn a_replica_that_wakes_up_and_leases_is_alive_at_once() {
    let one = TestStore::open_on(On::Postgres).await;
    let other = one.another().await;
    let (first, second) = (one.handle(), other.handle());
    arrives(&*first, event("m-1", "i-1", "Success", 1), 1).await;
    server()
        .run(one.schema(), "UPDATE replica SET beat_at = 0")
        .await;
    assert_eq!(lease(&*first, 10).await.len(), 1);
    second.sweep().await.unwrap();
    assert!(lease(&*second, 11).await.is_empty());
}

#[tokio::test]
async fn replicas_that_start_together_make_the_tables_once() {
    let schema = server().new_schema().await;
    let opens = (0..4).map(|number| {
        let settings = server().settings(&schema, &format!("r{number}"));
        async move {
            runbell::store::postgres::Postgres::open(&settings)
                .await
                .unwrap()
        }
    });
    let opened = futures_util::future::join_all(opens).await;
    assert_eq!(
        opened.iter().filter(|(.., opened)| opened.is_new).count(),
        1
    );
}

#[tokio::test]
async fn a_foreign_and_a_newer_database_are_left_alone() {
    let open = async |schema: &str| {
        let settings = server().settings(schema, "r");
        let error = runbell::store::postgres::Postgres::open(&settings)
            .await
            .err()
            .unwrap();
        assert!(matches!(error, StoreError::Unusable(_)), "{error:?}");
        std::error::Error::source(&error).unwrap().to_string()
    };
    let schema = server().new_schema().await;
    server()
        .run(&schema, "CREATE TABLE event (precious TEXT)")
        .await;
    assert!(open(&schema).await.contains("belongs to another program"));
    let store = TestStore::open_on(On::Postgres).await;
    server()
        .run(store.schema(), "UPDATE runbell SET version = 999")
        .await;
    assert!(open(store.schema()).await.contains("newer Runbell"));
}

#[tokio::test]
async fn a_nul_in_what_a_publisher_writes_hinders_nothing() {
    let store = TestStore::open_on(On::Postgres).await;
    let store = store.handle();
    let body = serde_json::json!({
        "commandId": "c-\0", "documentName": "d", "instanceId": "i-\0", "status": "Fai\0led",
        "eventTime": at(1).to_string(),
    });
    let event = read("m-1", &body.to_string(), 1);
    arrives(&*store, event.clone(), 1).await;
    let lanes = lease(&*store, 10).await;
    assert_eq!(lanes[0].waiting[0].event, event, "it goes like any other");
    let mut failed = settled(&lanes[0], &Outcome::Retry, 10);
    failed.results[0].answer = Some("nul \0 in an answer".to_owned());
    failed.results[0].progress = Some("\0".to_owned());
    store.settle(vec![failed]).await.unwrap();
    assert_eq!(
        lease(&*store, 11).await[0].waiting[0].progress.as_deref(),
        Some("\0")
    );
}

#[tokio::test]
async fn a_day_of_a_hundred_thousand_events_goes_as_a_whole() {
    let store = TestStore::open_on(On::Postgres).await;
    let schema = store.schema().to_owned();
    let store = store.handle();
    let id = stored(&*store, event("m-1", "i-1", "Success", 1), Vec::new(), 1).await;
    let day = id.0 / 10_000_000_000;
    let fill =
        "INSERT INTO event SELECT id + number, topic, sns_time + number, message_id, envelope,
       received_at, command_no, instance, status, event_time, subject, body
       FROM event, generate_series(1, 100000) AS number";
    server().run(&schema, fill).await;
    let young = event("young", "i-1", "Success", 90 * DAY);
    arrives(&*store, young, 90 * DAY).await;
    let (mut rounds, keep) = (1, Duration::from_hours(24 * 50));
    while store.prune(at(100 * DAY), keep).await.unwrap() {
        rounds += 1;
    }
    assert!(rounds < 5, "it went in {rounds} steps");
    let left = server().query(&schema, "SELECT count(*) FROM event").await;
    assert_eq!(left, ["1"]);
    let table = format!(
        "SELECT to_regclass('event_{day}') IS NULL AND to_regclass('outcome_{day}') IS NULL"
    );
    assert_eq!(server().query(&schema, &table).await, ["t"]);
}
