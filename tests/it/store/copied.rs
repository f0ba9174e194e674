//! An embedded store that is copied into a database, and goes on there.

use std::cell::Cell;

use runbell::store::copy;
use runbell::store::postgres::Postgres;

use super::*;
use crate::harness::postgres::server;

/// A store with something of everything; the keys of what waits in it.
async fn lived_in() -> TestStore {
    let mut store = TestStore::open();
    {
        let store = store.handle();
        for number in 1..=300 {
            let id = format!("m-{number}");
            let status = ["InProgress", "Failed"][usize::try_from(number % 2).unwrap()];
            let event = event(&id, &format!("i-{}", number / 2), status, number);
            let to = vec![
                owed(&event, "s", LaneKey::Command, 5),
                owed(&event, "own", LaneKey::Own, 5),
                owed(&event, "digest", LaneKey::Digest, 500),
            ];
            stored(&*store, event, to, number).await;
        }
        stored(&*store, read("odd", "nul \0 here", 7), Vec::new(), 7).await;
        let lanes = store.lease("s", at(200), 100).await.unwrap().lanes;
        let lane = one(lanes);
        let mut all = results(&lane, &Outcome::Sent, 200);
        all[0].ending = Ending::Sent {
            message: Some("C1:17".to_owned()),
        };
        all[1].ending = ending(&Outcome::Dead, 200);
        all[2].ending = ending(&Outcome::Retry, 200);
        store
            .settle(vec![lane.lease.settle(all, at(200), None)])
            .await
            .unwrap();
        let token = SecretString::from("70ke0");
        let asked = store.put_subscription(TOPIC, &token, at(1)).await.unwrap();
        store.subscription_confirmed(asked.id, at(3)).await.unwrap();
        store.back_off("own", Some(at(900)), at(6)).await.unwrap();
        let certificate = runbell::sns::KnownCertificate {
            url: "https://example.com/a.pem".to_owned(),
            pem: b"pem".to_vec(),
            fetched_at: at(1),
        };
        store.put_certificate(certificate).await.unwrap();
        // It is stopped in the middle of something.
        assert!(!store.lease("s", at(400), 3).await.unwrap().lanes.is_empty());
    }
    store.stop().await;
    store
}

#[tokio::test]
async fn a_copy_is_the_same_store_and_goes_on_where_it_was_broken_off() {
    let mut before = lived_in().await;
    let schema = server().new_schema().await;
    let to = server().settings(&schema, "copy");
    // Broken off when half of it is there.
    let is_half = Cell::new(false);
    {
        let path = before.path();
        let copying = copy(&path, &to, |it| is_half.set(it.rows > it.of / 2));
        tokio::pin!(copying);
        while !is_half.get() {
            tokio::select! {
                biased;
                _ = &mut copying => panic!("it is done already"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    let refused = Postgres::open(&to, Terms::default(), &Clock::system())
        .await
        .err()
        .unwrap();
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("is not finished"), "{why}");
    let mut rows = Vec::new();
    let counted = copy(&before.path(), &to, |it| rows.push(it.rows))
        .await
        .unwrap();
    assert!(rows[0] > 0 && rows.is_sorted(), "it begins anew: {rows:?}");
    let of = |table: &str| counted.iter().find(|(name, _)| *name == table).unwrap().1;
    assert_eq!((of("event"), of("dead"), of("thread")), (301, 1, 1));
    let again = copy(&before.path(), &to, |_| ()).await.unwrap_err();
    assert!(matches!(again, StoreError::Unusable(_)), "{again:?}");

    let new = TestStore::open_schema(schema).await;
    before.start_again().await;
    let (new, old) = (new.handle(), before.handle());
    let query = EventQuery {
        limit: 1000,
        ..EventQuery::default()
    };
    let ids = |events: Vec<runbell::store::StoredEvent>| -> Vec<_> {
        events
            .into_iter()
            .map(|it| (it.event, it.received_at))
            .collect()
    };
    assert_eq!(
        ids(new.events(query.clone()).await.unwrap()),
        ids(old.events(query).await.unwrap())
    );
    assert_eq!(new.tally().await.unwrap(), old.tally().await.unwrap());
    assert_eq!(new.backlog().await.unwrap(), old.backlog().await.unwrap());
    let dead = new.dead(DeadSelection::All, 9).await.unwrap();
    let history = new.event(dead[0].event.id).await.unwrap().unwrap().1;
    let of_s = history.iter().find(|it| it.sink == "s").unwrap();
    assert!(of_s.dead && of_s.outcomes[0].outcome == Outcome::Dead);
    assert_eq!(new.subscriptions().await.unwrap().len(), 1);
    assert_eq!(
        new.certificates().await.unwrap(),
        old.certificates().await.unwrap()
    );
    for sink in ["s", "own", "digest"] {
        deliver_side_by_side(sink, &*new, &*old).await;
    }
    // What comes from here on finds its place behind what was there.
    arrives(&*new, event("late", "i-1", "Success", 999), 1001).await;
    assert_eq!(
        lease(&*new, 2000).await[0].waiting[0].thread.as_deref(),
        Some("C1:17")
    );
    let known = event("m-7", "i-3", "Failed", 7);
    let again = new
        .append(Append::new(known, Vec::new(), at(1002)))
        .await
        .unwrap();
    assert!(matches!(again, Appended::Known { .. }), "{again:?}");
    assert_sound(&*new).await;
}

/// Delivers all that waits for a sink, from both, and compares it.
async fn deliver_side_by_side(sink: &str, new: &dyn Store, old: &dyn Store) {
    loop {
        let (here, there) = tokio::join!(
            new.lease(sink, at(1000), 100),
            old.lease(sink, at(1000), 100)
        );
        let (here, there) = (here.unwrap().lanes, there.unwrap().lanes);
        let told = |lanes: &[Lane]| -> Vec<_> {
            let all = lanes.iter().map(|lane| {
                let waiting = lane.waiting.iter().map(|it| {
                    let id = it.event.as_ref().unwrap().message_id.clone();
                    (id, it.possible_repeat, it.tries, it.thread.clone())
                });
                (
                    lane.high.clone(),
                    lane.digest.clone(),
                    waiting.collect::<Vec<_>>(),
                )
            });
            let mut all: Vec<_> = all.collect();
            all.sort_by(|one, other| one.2.cmp(&other.2));
            all
        };
        assert_eq!(told(&here), told(&there), "{sink}");
        if here.is_empty() {
            break;
        }
        for (store, lanes) in [(new, here), (old, there)] {
            let sent = lanes
                .into_iter()
                .map(|lane| settled(lane, &Outcome::Sent, 1000));
            store.settle(sent.collect()).await.unwrap();
        }
    }
}
