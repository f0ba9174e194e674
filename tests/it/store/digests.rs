//! Digests as both engines tell, end and divert them.

use runbell::delivery::Marks;

use super::mended::{comes, ended, over_to};
use super::*;

/// The failures of so many instances of one command, for a digest.
async fn failures(store: &dyn Store, count: i64) {
    for number in 1..=count {
        let event = event(
            &format!("m-{number}"),
            &format!("i-{number}"),
            "Failed",
            number,
        );
        comes(store, event, LaneKey::Digest, number).await;
    }
}

async fn digest_goes_on_when_a_lost_lease_says_that_it_was_sent(on: On) {
    let mut store = TestStore::open_on(on).await;
    let lane = {
        let store = store.handle();
        failures(&*store, 3).await;
        one(lease(&*store, 10).await)
    };
    assert_eq!(lane.digest.as_ref().unwrap().failed, 3);
    // Its lease is freed, and nobody takes the lane before it is heard of again.
    store.reopen().await;
    let store = store.handle();
    let sent = settled(lane, &Outcome::Sent, 11);
    store.settle(vec![sent]).await.unwrap();
    let rest = lease(&*store, 12).await;
    let rest = rest
        .into_iter()
        .map(|lane| settled(lane, &Outcome::Sent, 12));
    store.settle(rest.collect()).await.unwrap();
    let late = event("m-9", "i-9", "Failed", 13);
    comes(&*store, late, LaneKey::Digest, 13).await;
    let lane = one(lease(&*store, 20).await);
    assert_eq!(lane.digest.as_ref().unwrap().failed, 4);
    assert_eq!(
        lane.waiting[0].event.as_ref().map(|it| &*it.message_id),
        Some("m-9")
    );
    let sent = settled(lane, &Outcome::Sent, 21);
    store.settle(vec![sent]).await.unwrap();
    assert_sound(&*store).await;
}

async fn dead_letters_of_a_digest_have_its_tries(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    failures(&*store, 3).await;
    let lane = one(lease(&*store, 10).await);
    let tried = settled(lane, &Outcome::Retry, 10);
    store.settle(vec![tried]).await.unwrap();
    let lane = one(lease(&*store, 11).await);
    let dead = settled(lane, &Outcome::Dead, 11);
    store.settle(vec![dead]).await.unwrap();
    let dead = store.dead(DeadSelection::All, 9).await.unwrap();
    let mut tries: Vec<_> = dead
        .iter()
        .map(|it| (it.event.event.message_id.as_str(), it.tries))
        .collect();
    tries.sort_unstable();
    // Only the last was tried by itself; each counts the try that ended it.
    assert_eq!(tries, [("m-1", 1), ("m-2", 1), ("m-3", 2)]);
}

async fn history_of_a_diverted_digest_has_its_marks(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    failures(&*store, 3).await;
    let marks = Marks {
        possible_repeat: true,
        ..Marks::default()
    };
    let lane = one(lease(&*store, 10).await);
    let over = ended(lane, &over_to("t"), &marks, 10);
    store.settle(vec![over]).await.unwrap();
    let events = store.events(EventQuery {
        limit: 9,
        ..EventQuery::default()
    });
    for it in events.await.unwrap() {
        let (_, deliveries) = store.event(it.id).await.unwrap().unwrap();
        let from_s = deliveries.iter().find(|it| it.sink == "s").unwrap();
        let past = &from_s.outcomes[0];
        assert_eq!(
            (&past.outcome, &past.marks),
            (&Outcome::Diverted, &marks),
            "{}",
            it.event.message_id
        );
    }
}

async fn digest_names_the_latest_troubles_first(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    // They arrive in another order than that in which they happened.
    for (number, second) in [(1, 4), (2, 1), (3, 9)] {
        let event = event(
            &format!("m-{number}"),
            &format!("i-{number}"),
            "Failed",
            second,
        );
        comes(&*store, event, LaneKey::Digest, 9).await;
    }
    let lane = one(lease(&*store, 10).await);
    let named = |lane: &Lane| {
        let troubled = &lane.digest.as_ref().unwrap().troubled;
        troubled
            .iter()
            .map(|it| it.0.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(named(&lane), "i-3 i-1 i-2");
    let told = called(lane, "C1:1", 10);
    store.settle(vec![told]).await.unwrap();
    // News that happened before what was told stands where it belongs.
    let news = event("m-4", "i-4", "TimedOut", 5);
    comes(&*store, news, LaneKey::Digest, 11).await;
    let lane = one(lease(&*store, 12).await);
    assert_eq!(named(&lane), "i-3 i-4 i-1 i-2");
    assert!(lane.digest.as_ref().unwrap().has_news);
}

async fn topic_of_others_says_nothing_of_a_command_of_the_same_id(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    failures(&*store, 1).await;
    let summary = serde_json::json!({
        "commandId": "c-1", "documentName": "AWS-RunShellScript", "status": "Success",
        "eventTime": at(3).to_string(), "instanceIds": ["i-1"],
    });
    for event in [
        event("o-1", "i-1", "Success", 2),
        event("o-2", "call +1-555", "Failed", 2),
        read("o-3", &summary.to_string(), 3),
    ] {
        let append = Append {
            trust: "http://localhost:4566".into(),
            ..Append::new(event, Vec::new(), at(3))
        };
        store.append(append).await.unwrap();
    }
    let lane = one(lease(&*store, 10).await);
    assert!(!lane.waiting[0].conflict);
    let digest = lane.digest.unwrap();
    assert_eq!((digest.succeeded, digest.failed), (0, 1));
    assert_eq!(digest.overall, None);
    let named: Vec<_> = digest.troubled.iter().map(|it| &*it.0).collect();
    assert_eq!(named, ["i-1"]);
}

on_both! {
    digest_goes_on_when_a_lost_lease_says_that_it_was_sent,
    dead_letters_of_a_digest_have_its_tries,
    history_of_a_diverted_digest_has_its_marks,
    digest_names_the_latest_troubles_first,
    topic_of_others_says_nothing_of_a_command_of_the_same_id,
}
