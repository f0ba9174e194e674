//! Several replicas on one database, and what goes wrong between them.

use runbell::store::postgres::Settings;

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
        store.append(Append::new(event, owed, at(1)))
    });
    for appended in futures_util::future::join_all(appends).await {
        appended.unwrap();
    }
}

#[tokio::test]
async fn replicas_that_append_in_opposite_orders_do_not_stop_each_other() {
    let place = TestStore::open_on(On::Postgres).await;
    let other = place.another().await;
    let up: Vec<usize> = (0..200).collect();
    let down: Vec<usize> = up.iter().rev().copied().collect();
    let (first, second) = (place.handle(), other.handle());
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
                        let sent = lanes
                            .into_iter()
                            .map(|lane| settled(lane, &Outcome::Sent, 2));
                        second.settle(sent.collect()).await.unwrap();
                    }
                }
            }
        );
    }
    let deadlocks = server()
        .query(
            place.schema(),
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
        )
        .await;
    assert_eq!(deadlocks, ["0"]);
    assert_sound(&*first).await;
}

#[tokio::test]
async fn a_notification_that_two_replicas_take_is_kept_once() {
    let place = TestStore::open_on(On::Postgres).await;
    let other = place.another().await;
    let (first, second) = (place.handle(), other.handle());
    let append = |number: i64| {
        let event = event(&format!("m-{number}"), "i-1", "Success", number);
        let owed = vec![owed(&event, "s", LaneKey::Command, 0)];
        Append::new(event, owed, at(number))
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
    let place = TestStore::open_on(On::Postgres).await;
    let other = place.another().await;
    let (first, second) = (place.handle(), other.handle());
    for round in 0..100 {
        let event_1 = event(&format!("a-{round}"), "i-1", "Success", round);
        arrives(&*first, event_1, round).await;
        let lanes = lease(&*second, 1000).await;
        assert_eq!(lanes.len(), 1, "round {round}");
        let event_2 = event(&format!("b-{round}"), "i-1", "Success", round);
        // At the same time: whichever comes first, the lane is due afterwards.
        tokio::join!(arrives(&*first, event_2, round), async {
            second
                .settle(vec![settled(one(lanes), &Outcome::Sent, round)])
                .await
                .unwrap();
        });
        let lanes = lease(&*first, 1000).await;
        assert_eq!(instances(&lanes), ["i-1"], "round {round}");
        let sent = settled(one(lanes), &Outcome::Sent, round);
        first.settle(vec![sent]).await.unwrap();
    }
    assert_sound(&*first).await;
}

#[tokio::test]
async fn replicas_that_start_together_make_the_tables_once() {
    let schema = server().new_schema().await;
    let opens = (0..4).map(|number| {
        let settings = server().settings(&schema, &format!("r{number}"));
        async move {
            runbell::store::postgres::Postgres::open(&settings, Terms::default(), &Clock::system())
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
        let error =
            runbell::store::postgres::Postgres::open(&settings, Terms::default(), &Clock::system())
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
    let waiting = &lanes[0].waiting[0];
    assert_eq!(
        waiting.event.as_ref(),
        Some(&event),
        "it goes like any other"
    );
    let lane = one(lanes);
    let mut all = results(&lane, &Outcome::Retry, 10);
    all[0].answer = Some("nul \0 in an answer".to_owned());
    all[0].ending = Ending::Retry(Failure {
        progress: Some("\0".to_owned()),
        ..Failure::default()
    });
    store
        .settle(vec![lane.lease.settle(all, at(10), None)])
        .await
        .unwrap();
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

#[tokio::test]
async fn no_statement_is_left_behind_on_a_connection() {
    let schema = server().new_schema().await;
    let url = format!("{}%20-clog_statement%3Dall", server().url(&schema));
    let settings = Settings::parse(&url, None, 8, "test".to_owned()).unwrap();
    let place = TestStore::open_with(&settings, schema, Clock::system()).await;
    let store = place.handle();
    append_all(&*store, "m", &(0..20).collect::<Vec<_>>()).await;
    let lanes = store.lease("s", at(2), 50).await.unwrap().lanes;
    let dead = lanes
        .into_iter()
        .map(|lane| settled(lane, &Outcome::Dead, 2));
    store.settle(dead.collect()).await.unwrap();
    let again = store.retry_dead(DeadSelection::All, None, at(3)).await;
    assert_eq!(again.unwrap(), 20);
    let log = std::fs::read_to_string(server().folder.join("log")).unwrap();
    let prepared = log.lines().filter(|line| line.contains("LOG:  execute "));
    assert!(prepared.clone().count() > 20);
    // A pooler may give the next transaction another session, which knows neither names nor settings.
    let named: Vec<_> = prepared
        .filter(|line| !line.contains("LOG:  execute <unnamed>:"))
        .collect();
    assert_eq!(named, [""; 0]);
    let set: Vec<_> = log
        .lines()
        .filter(|line| line.contains("LOG:  statement: SET "))
        .collect();
    assert_eq!(set, [""; 0]);
}
