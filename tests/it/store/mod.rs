//! The contract of a store, case by case.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use runbell::clock::Clock;
use runbell::delivery::{Hold, LaneKey, Leading, Outcome, Owed, Release, SortKey};
use runbell::event::{EnvelopeKind, Event, Source};
use runbell::store::Intake as _;
use runbell::store::{
    Append, Appended, DeadSelection, Ending, EventId, EventQuery, Failure, Lane, Lease, Settled,
    Settlement, Store, StoreError, Terms,
};
use secrecy::SecretString;

use crate::harness::store::{On, TestStore};
use crate::on_both;

mod away;
mod copied;
mod copying;
mod digests;
mod diverted;
mod endings;
mod faults;
mod mended;
mod postgres_bounds;
mod postgres_far;
mod postgres_leases;
mod postgres_old;
mod replicas;
mod sized;
mod troubles;
mod twins;

const DAY: i64 = 86_400;
const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:run-command";

pub(crate) fn at(second: i64) -> Timestamp {
    "2026-11-23T10:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second)
}

/// An invocation's status that happened, was signed and arrived at `second`.
pub(crate) fn event(id: &str, instance: &str, status: &str, second: i64) -> Event {
    let body = serde_json::json!({
        "commandId": "c-1", "documentName": "AWS-RunShellScript", "instanceId": instance,
        "status": status, "eventTime": at(second).to_string(),
    });
    read(id, &body.to_string(), second)
}

pub(crate) fn read(id: &str, body: &str, second: i64) -> Event {
    Event::read(&Source {
        topic: TOPIC,
        account: "123456789012",
        region: "eu-central-1",
        message_id: id,
        sent_at: at(second),
        subject: Some("EC2 Run Command Notification eu-central-1"),
        body,
        envelope: EnvelopeKind::Notification,
    })
}

pub(crate) fn owed(event: &Event, sink: &str, lane: LaneKey, hold: u64) -> Owed {
    let leading = if lane == LaneKey::Instance {
        Leading::Rank
    } else {
        Leading::Time
    };
    let instance = event
        .command()
        .and_then(|it| it.instance.clone())
        .unwrap_or_default();
    Owed {
        route: "r".to_owned(),
        sink: sink.to_owned(),
        lane,
        key: SortKey::new(
            leading,
            event.sort_time,
            event.rank(),
            &instance,
            &event.message_id,
        ),
        hold: Hold {
            at_most: Duration::from_secs(hold),
            release: Release::AtEnd,
        },
    }
}

/// Appends an event that is owed to sink `s` in a lane of its command, held five seconds.
async fn arrives(store: &dyn Store, event: Event, second: i64) -> EventId {
    let owed = vec![owed(&event, "s", LaneKey::Command, 5)];
    stored(store, event, owed, second).await
}

async fn stored(store: &dyn Store, event: Event, owed: Vec<Owed>, second: i64) -> EventId {
    match store
        .append(Append::new(event, owed, at(second)))
        .await
        .unwrap()
    {
        Appended::Stored { id, .. } => id,
        Appended::Known { id } => panic!("{id:?} is known"),
    }
}

async fn lease(store: &dyn Store, second: i64) -> Vec<Lane> {
    store.lease("s", at(second), 100).await.unwrap().lanes
}

fn instances(lanes: &[Lane]) -> Vec<String> {
    let waiting = lanes.iter().flat_map(|lane| &lane.waiting);
    waiting
        .map(|one| {
            one.event
                .as_ref()
                .unwrap()
                .command()
                .unwrap()
                .instance
                .clone()
                .unwrap()
        })
        .collect()
}

/// The end of a delivery that comes of `outcome` at `second`.
pub(crate) fn ending(outcome: &Outcome, second: i64) -> Ending {
    let failure = || Failure {
        since: Some(at(second)),
        progress: Some("half".to_owned()),
        may_have_arrived: false,
    };
    match outcome {
        Outcome::Sent => Ending::SENT,
        Outcome::Redundant => Ending::Redundant,
        Outcome::Muted => Ending::Muted,
        Outcome::Retry => Ending::Retry(failure()),
        Outcome::Parked => Ending::Parked {
            again_at: at(second + 60),
            failure: failure(),
        },
        Outcome::Dead => Ending::Dead,
        Outcome::Dropped | Outcome::Diverted => panic!("{outcome:?} is no end of a try"),
    }
}

/// The results of a lane whose deliveries all end so.
pub(crate) fn results(lane: &Lane, outcome: &Outcome, second: i64) -> Vec<Settled> {
    let results = lane.waiting.iter().map(|one| Settled {
        answer: Some("answer".to_owned()),
        ..Settled::new(
            one.event_id,
            one.key.clone(),
            ending(outcome, second),
            at(second),
        )
    });
    results.collect()
}

pub(crate) fn settled(lane: Lane, outcome: &Outcome, second: i64) -> Settlement {
    let results = results(&lane, outcome, second);
    lane.lease.settle(results, at(second), None)
}

/// Only the head of a lane ends so, and nothing of it goes before `not_before`.
pub(crate) fn head_settled(
    lane: Lane,
    outcome: &Outcome,
    second: i64,
    not_before: Option<i64>,
) -> Settlement {
    let mut results = results(&lane, outcome, second);
    results.truncate(1);
    lane.lease.settle(results, at(second), not_before.map(at))
}

/// A lane that was sent as a message of this name.
pub(crate) fn called(lane: Lane, message: &str, second: i64) -> Settlement {
    let mut results = results(&lane, &Outcome::Sent, second);
    results[0].ending = Ending::Sent {
        message: Some(message.to_owned()),
    };
    lane.lease.settle(results, at(second), None)
}

/// The only lane.
pub(crate) fn one(lanes: Vec<Lane>) -> Lane {
    let [lane] = <[Lane; 1]>::try_from(lanes).unwrap();
    lane
}

/// The books balance and no lane was forgotten.
async fn assert_sound(store: &dyn Store) {
    assert_eq!(store.sweep().await.unwrap(), 0, "lanes rescued");
    for it in store.tally().await.unwrap() {
        let gone = it.sent + it.muted + it.redundant + it.dropped + it.dead + it.waiting;
        assert_eq!(it.owed, gone, "{it:?}");
    }
}

async fn an_event_is_kept_once_whatever_is_in_it(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    let bodies = [
        "{}",
        "",
        "nul \0 and \u{2028}",
        "\u{10ffff}",
        &"x".repeat(300_000),
    ];
    for (number, body) in bodies.into_iter().enumerate() {
        let event = read(&format!("m-{number}"), body, 0);
        let id = stored(&*store, event.clone(), Vec::new(), 0).await;
        let again = Append::new(event.clone(), Vec::new(), at(9));
        assert_eq!(store.append(again).await.unwrap(), Appended::Known { id });
        let (kept, deliveries) = store.event(id).await.unwrap().unwrap();
        assert_eq!(kept.event, event);
        assert_eq!(kept.received_at, at(0));
        assert!(deliveries.is_empty());
        let known = store
            .known(TOPIC, event.sent_at, &event.message_id)
            .await
            .unwrap();
        assert_eq!(known, Some(id));
        let elsewhere = store
            .known("arn:other", event.sent_at, &event.message_id)
            .await
            .unwrap();
        assert_eq!(elsewhere, None);
    }
}

async fn a_hold_that_is_over_takes_everything_before_it_along(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    arrives(&*store, event("m-3", "i-3", "Success", 3), 3).await;
    arrives(&*store, event("m-9", "i-9", "Success", 9), 5).await;
    arrives(&*store, event("m-1", "i-1", "Success", 1), 7).await;
    let early = store.lease("s", at(7), 100).await.unwrap();
    assert!(early.lanes.is_empty());
    assert_eq!(early.next_due, Some(at(8)));
    let lanes = lease(&*store, 8).await;
    assert_eq!(instances(&lanes), ["i-1", "i-3"]);
    assert!(
        lease(&*store, 20).await.is_empty(),
        "a leased lane is not leased again"
    );
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 8)])
        .await
        .unwrap();
    let lanes = lease(&*store, 20).await;
    assert_eq!(instances(&lanes), ["i-9"]);
    assert!(
        lanes[0]
            .high
            .as_ref()
            .is_some_and(|high| high.time() == at(3))
    );
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 20)])
        .await
        .unwrap();
    assert!(lease(&*store, 99).await.is_empty());
    assert_sound(&*store).await;
}

async fn what_is_appended_while_its_lane_is_leased_goes_afterwards(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    let lanes = lease(&*store, 6).await;
    arrives(&*store, event("m-2", "i-2", "Success", 2), 2).await;
    assert!(lease(&*store, 9).await.is_empty());
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 9)])
        .await
        .unwrap();
    assert_eq!(instances(&lease(&*store, 9).await), ["i-2"]);
    assert_sound(&*store).await;
}

async fn a_limit_cuts_a_lane_and_others_get_their_turn(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    for number in 0..5 {
        let event = event(
            &format!("m-{number}"),
            &format!("i-{number}"),
            "Success",
            number,
        );
        let owed = vec![owed(&event, "s", LaneKey::Topic, 0)];
        stored(&*store, event, owed, number).await;
    }
    let single = event("single", "i-single", "Success", 6);
    let to = vec![owed(&single, "s", LaneKey::Own, 0)];
    stored(&*store, single, to, 6).await;
    let mut order = Vec::new();
    loop {
        let lanes = store.lease("s", at(10), 2).await.unwrap().lanes;
        if lanes.is_empty() {
            break;
        }
        order.extend(instances(&lanes));
        let settlements = lanes
            .into_iter()
            .map(|lane| settled(lane, &Outcome::Sent, 10))
            .collect();
        store.settle(settlements).await.unwrap();
    }
    assert_eq!(order[..2], ["i-0", "i-1"]);
    let single = order.iter().position(|one| one == "i-single").unwrap();
    assert!(single < 5, "the long lane went on for ever: {order:?}");
    order.remove(single);
    assert_eq!(order, ["i-0", "i-1", "i-2", "i-3", "i-4"]);
    assert_sound(&*store).await;
}

async fn lease_that_is_over_may_only_record_what_was_sent(on: On) {
    let store = TestStore::open_on(on).await;
    let clock = store.clock.clone();
    let store = store.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    // Whoever frees leases has to be heard for a while first.
    for _ in 0..10 {
        clock.advance(Duration::from_secs(1));
        store.beat().await.unwrap();
    }
    let mut held = Vec::new();
    for second in [6, 40, 80, 120] {
        let lanes = lease(&*store, second).await;
        assert_eq!(instances(&lanes), ["i-1"], "at {second}");
        held.push(one(lanes));
    }
    let epochs: Vec<_> = held.iter().map(|lane| lane.lease.epoch()).collect();
    assert!(epochs.is_sorted_by(|one, other| one < other), "{epochs:?}");
    let mut held = held.into_iter();
    let mut settle = async |outcome: &Outcome| {
        let settlement = settled(held.next().unwrap(), outcome, 121);
        // The answer to its commit was not heard, so it is recorded again.
        for _ in 0..2 {
            store.settle(vec![settlement.clone()]).await.unwrap();
        }
    };
    settle(&Outcome::Dead).await;
    assert!(store.dead(DeadSelection::All, 10).await.unwrap().is_empty());
    assert!(
        lease(&*store, 122).await.is_empty(),
        "a lease that is over gave the lane away"
    );
    settle(&Outcome::Sent).await;
    settle(&Outcome::Sent).await;
    settle(&Outcome::Dead).await;
    let tally = store.tally().await.unwrap();
    assert_eq!((tally[0].sent, tally[0].dead, tally[0].waiting), (1, 0, 0));
    assert_sound(&*store).await;
}

async fn a_failing_head_keeps_its_place_until_it_is_parked(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    arrives(&*store, event("m-2", "i-2", "Success", 2), 2).await;
    let lanes = lease(&*store, 10).await;
    let failed = head_settled(one(lanes), &Outcome::Retry, 10, Some(30));
    store.settle(vec![failed]).await.unwrap();
    let waits = store.lease("s", at(29), 9).await.unwrap();
    assert!(waits.lanes.is_empty());
    assert_eq!(waits.next_due, Some(at(30)));
    let lanes = lease(&*store, 30).await;
    assert_eq!(instances(&lanes), ["i-1", "i-2"]);
    let head = &lanes[0].waiting[0];
    assert_eq!((head.tries, head.progress.as_deref()), (1, Some("half")));
    assert_eq!(head.failing_since, Some(at(10)));
    let parked = head_settled(one(lanes), &Outcome::Parked, 30, None);
    store.settle(vec![parked]).await.unwrap();
    let lanes = lease(&*store, 31).await;
    assert_eq!(instances(&lanes), ["i-2"], "the rest passes a parked head");
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 31)])
        .await
        .unwrap();
    arrives(&*store, event("m-3", "i-3", "Success", 88), 88).await;
    let lanes = lease(&*store, 90).await;
    assert_eq!(instances(&lanes), ["i-1"], "a parked one goes alone");
    assert!(lanes[0].high.as_ref().unwrap() > &lanes[0].waiting[0].key);
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 90)])
        .await
        .unwrap();
    assert_eq!(instances(&lease(&*store, 93).await), ["i-3"]);
    assert_sound(&*store).await;
}

async fn a_dead_letter_is_listed_sent_again_elsewhere_or_dropped(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    for number in 1..=3 {
        let event = event(
            &format!("m-{number}"),
            &format!("i-{number}"),
            "Success",
            number,
        );
        arrives(&*store, event, number).await;
    }
    let lanes = lease(&*store, 10).await;
    store
        .settle(vec![settled(one(lanes), &Outcome::Dead, 10)])
        .await
        .unwrap();
    let dead = store
        .dead(DeadSelection::Sink("s".to_owned()), 10)
        .await
        .unwrap();
    assert_eq!(dead.len(), 3);
    assert_eq!(
        (dead[0].tries, dead[0].answer.as_deref()),
        (1, Some("answer"))
    );
    assert!(dead[0].id > dead[2].id);
    let ids = DeadSelection::Ids(vec![dead[0].id]);
    assert_eq!(
        store.retry_dead(ids.clone(), None, at(11)).await.unwrap(),
        1
    );
    assert_eq!(store.retry_dead(ids, None, at(11)).await.unwrap(), 0);
    let ids = DeadSelection::Ids(vec![dead[1].id]);
    let to = Some("elsewhere".to_owned());
    assert_eq!(store.retry_dead(ids, to, at(11)).await.unwrap(), 1);
    let lanes = lease(&*store, 11).await;
    assert_eq!(instances(&lanes), ["i-3"]);
    assert!(lanes[0].waiting[0].resent);
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 12)])
        .await
        .unwrap();
    let lanes = store.lease("elsewhere", at(12), 9).await.unwrap().lanes;
    assert_eq!(instances(&lanes), ["i-2"]);
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 12)])
        .await
        .unwrap();
    assert_eq!(
        store.drop_dead(DeadSelection::All, at(13)).await.unwrap(),
        1
    );
    assert!(store.dead(DeadSelection::All, 10).await.unwrap().is_empty());
    let (_, deliveries) = store.event(dead[0].event.id).await.unwrap().unwrap();
    let words: Vec<_> = deliveries[0]
        .outcomes
        .iter()
        .map(|past| past.outcome.word())
        .collect();
    assert_eq!(words, ["dead", "sent"]);
    let backlog = store.backlog().await.unwrap();
    assert!(
        backlog.iter().all(|one| one.waiting == 0 && one.dead == 0),
        "{backlog:?}"
    );
    assert_sound(&*store).await;
}

async fn a_resting_sink_is_not_leased(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    store.back_off("s", Some(at(60)), at(0)).await.unwrap();
    let rests = store.lease("s", at(59), 9).await.unwrap();
    assert!(rests.lanes.is_empty());
    assert_eq!(rests.next_due, Some(at(60)));
    let backlog = store.backlog().await.unwrap();
    assert_eq!(
        (backlog[0].waiting, backlog[0].backoff_until),
        (1, Some(at(60)))
    );
    assert_eq!(backlog[0].oldest, Some(at(1)));
    store.back_off("s", None, at(1)).await.unwrap();
    assert_eq!(lease(&*store, 59).await.len(), 1);
}

async fn a_step_told_again_is_a_repeat_and_another_end_is_a_conflict(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    let append = |event: Event| {
        let owed = vec![owed(&event, "s", LaneKey::Command, 0)];
        store.append(Append::new(event, owed, at(5)))
    };
    let told = |appended| match appended {
        Appended::Stored {
            id,
            repeat_of,
            conflict,
            ..
        } => (id, repeat_of, conflict),
        Appended::Known { .. } => panic!("known"),
    };
    let (first, ..) = told(append(event("m-1", "i-1", "Success", 1)).await.unwrap());
    let repeat = told(append(event("m-2", "i-1", "Success", 1)).await.unwrap());
    assert_eq!((repeat.1, repeat.2), (Some(first), false));
    let other = told(append(event("m-3", "i-2", "Failed", 1)).await.unwrap());
    assert_eq!((other.1, other.2), (None, false));
    let conflict = told(append(event("m-4", "i-1", "Failed", 2)).await.unwrap());
    assert_eq!((conflict.1, conflict.2), (None, true));
    let lanes = lease(&*store, 6).await;
    let marks: Vec<_> = lanes[0]
        .waiting
        .iter()
        .map(|one| {
            (
                one.event.as_ref().unwrap().message_id.as_str(),
                one.repeat_of.is_some(),
                // A repeat of what is contradicted afterwards may say so, or not.
                one.conflict && one.repeat_of.is_none(),
            )
        })
        .collect();
    assert_eq!(
        marks,
        [
            ("m-1", false, true),
            ("m-2", true, false),
            ("m-3", false, false),
            ("m-4", false, true)
        ]
    );
}

async fn a_repeat_is_one_only_where_its_first_was_told(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    let to = |event: &Event, sinks: &[&str]| {
        sinks
            .iter()
            .map(|sink| owed(event, sink, LaneKey::Command, 0))
            .collect::<Vec<_>>()
    };
    let first = event("m-1", "i-1", "Success", 1);
    let owed_to = to(&first, &["s"]);
    stored(&*store, first, owed_to, 1).await;
    let again = event("m-2", "i-1", "Success", 1);
    let owed_to = to(&again, &["s", "elsewhere"]);
    stored(&*store, again, owed_to, 2).await;
    let repeats = async |sink: &str| {
        let lanes = store.lease(sink, at(9), 9).await.unwrap().lanes;
        let told: Vec<_> = lanes[0]
            .waiting
            .iter()
            .map(|one| one.repeat_of.is_some())
            .collect();
        let settlements = lanes
            .into_iter()
            .map(|lane| settled(lane, &Outcome::Sent, 3))
            .collect();
        store.settle(settlements).await.unwrap();
        told
    };
    assert_eq!(
        repeats("s").await,
        [false, true],
        "it waits before it in the same lane"
    );
    assert_eq!(repeats("elsewhere").await, [false], "nobody told it there");
    let third = event("m-3", "i-1", "Success", 1);
    let owed_to = to(&third, &["s", "elsewhere"]);
    stored(&*store, third, owed_to, 4).await;
    assert_eq!(repeats("s").await, [true], "it was sent");
}

async fn a_start_below_the_watermark_knows_that_its_end_was_sent(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    arrives(&*store, event("m-2", "i-1", "Success", 2), 2).await;
    arrives(&*store, event("m-3", "i-2", "InProgress", 3), 2).await;
    let lanes = lease(&*store, 10).await;
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 10)])
        .await
        .unwrap();
    arrives(&*store, event("m-1", "i-1", "InProgress", 1), 10).await;
    arrives(&*store, event("m-0", "i-3", "InProgress", 1), 10).await;
    let lanes = lease(&*store, 20).await;
    let ended: Vec<_> = lanes[0]
        .waiting
        .iter()
        .map(|one| one.terminal_sent)
        .collect();
    assert_eq!(instances(&lanes), ["i-1", "i-3"]);
    assert_eq!(ended, [true, false]);
}

/// Each arrives a second after the one before; the numbers say in which second it leaves.
async fn instance_order_waits_only_where_something_can_come_first(on: On) {
    use Release::{AfterFirst, First, Never};
    for (name, arrivals) in [
        ("a start goes at once", vec![("InProgress", First, 0)]),
        ("an end alone waits", vec![("Success", AfterFirst, 5)]),
        (
            "an end after its start goes at once",
            vec![("InProgress", First, 0), ("Success", AfterFirst, 1)],
        ),
        (
            "a start takes along the end that waits for it",
            vec![("Success", AfterFirst, 1), ("InProgress", First, 1)],
        ),
        (
            "an unknown status makes its lane wait",
            vec![
                ("Rebooting", Never, 5),
                ("InProgress", First, 5),
                ("Success", AfterFirst, 7),
            ],
        ),
    ] {
        let store = TestStore::open_on(on).await;
        let store = store.handle();
        let mut left = vec![None; arrivals.len()];
        for second in 0..10 {
            let number = usize::try_from(second).unwrap();
            if let Some((status, release, _)) = arrivals.get(number) {
                let event = event(&format!("m-{number}"), "i-1", status, 0);
                let mut to = owed(&event, "s", LaneKey::Instance, 5);
                to.hold.release = *release;
                stored(&*store, event, vec![to], second).await;
            }
            for lane in lease(&*store, second).await {
                for one in &lane.waiting {
                    let number: usize =
                        one.event.as_ref().unwrap().message_id[2..].parse().unwrap();
                    left[number] = Some(second);
                }
                store
                    .settle(vec![settled(lane, &Outcome::Sent, second)])
                    .await
                    .unwrap();
            }
        }
        let expected: Vec<_> = arrivals.iter().map(|(.., second)| Some(*second)).collect();
        assert_eq!(left, expected, "{name}");
    }
}

async fn what_a_message_is_called_comes_with_all_that_follows_of_its_command(on: On) {
    let mut store = TestStore::open_on(on).await;
    let threads = |lanes: &[Lane]| -> Vec<Option<String>> {
        let waiting = lanes.iter().flat_map(|lane| &lane.waiting);
        waiting.map(|one| one.thread.clone()).collect()
    };
    {
        let store = store.handle();
        arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
        let lanes = lease(&*store, 8).await;
        assert_eq!(threads(&lanes), [None]);
        store
            .settle(vec![called(one(lanes), "C1:17", 8)])
            .await
            .unwrap();
    }
    store.reopen().await;
    let store = store.handle();
    // Another sink of the same route has a thread of its own, or none.
    let event_2 = event("m-2", "i-2", "Success", 2);
    let both = ["s", "t"].map(|sink| owed(&event_2, sink, LaneKey::Instance, 0));
    stored(&*store, event_2, both.to_vec(), 9).await;
    let lanes = lease(&*store, 9).await;
    assert_eq!(threads(&lanes), [Some("C1:17".to_owned())]);
    let other = store.lease("t", at(9), 100).await.unwrap().lanes;
    assert_eq!(threads(&other), [None]);
    store
        .settle(vec![called(one(lanes), "C1:99", 9)])
        .await
        .unwrap();
    arrives(&*store, event("m-3", "i-3", "Success", 3), 10).await;
    let lanes = lease(&*store, 20).await;
    assert_eq!(threads(&lanes), [Some("C1:99".to_owned())]);
}

async fn deliveries_under_way_at_a_crash_go_again_and_say_so(on: On) {
    let mut store = TestStore::open_on(on).await;
    assert!(store.opened.is_new);
    {
        let store = store.handle();
        arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
        arrives(&*store, event("m-9", "i-9", "Success", 9), 9).await;
        let lanes = lease(&*store, 8).await;
        assert_eq!(instances(&lanes), ["i-1"]);
        assert!(Lease::permission(&[&lanes[0].lease])(), "it is about to go");
    }
    store.reopen().await;
    assert!(!store.opened.is_new);
    assert_eq!(store.opened.possible_repeats, 1);
    {
        let store = store.handle();
        let lanes = lease(&*store, 20).await;
        let marks: Vec<_> = lanes[0]
            .waiting
            .iter()
            .map(|one| one.possible_repeat)
            .collect();
        assert_eq!(marks, [true, false]);
        let under_way = &lanes[0].waiting[0];
        assert_eq!(under_way.high_then, None, "it is not late for itself");
        assert_eq!(
            lanes[0].high.as_ref(),
            Some(&under_way.key),
            "whatever comes below it is late: it may have arrived"
        );
        store
            .settle(vec![settled(one(lanes), &Outcome::Sent, 20)])
            .await
            .unwrap();
        assert_sound(&*store).await;
    }
    store.reopen().await;
    assert_eq!(store.opened.possible_repeats, 0);
}

async fn old_events_are_forgotten_but_never_what_something_waits_for(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    let waits = arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    for number in 2..1200 {
        let event = event(&format!("m-{number}"), &format!("i-{number}"), "Success", 2);
        stored(&*store, event, Vec::new(), 2).await;
    }

    let keep = Duration::from_hours(24 * 50);
    let young = event("young", "i-y", "Success", 90 * DAY);
    let young = stored(&*store, young, Vec::new(), 90 * DAY).await;
    while store.prune(at(100 * DAY), keep).await.unwrap() {}
    let left = async || {
        let query = EventQuery {
            limit: 10,
            ..EventQuery::default()
        };
        let events = store.events(query).await.unwrap();
        events.iter().map(|one| one.id).collect::<Vec<_>>()
    };
    assert_eq!(left().await, [young, waits]);
    let lanes = lease(&*store, 100).await;
    store
        .settle(vec![settled(one(lanes), &Outcome::Sent, 100)])
        .await
        .unwrap();
    while store.prune(at(130 * DAY), keep).await.unwrap() {}
    assert_eq!(left().await, [young]);
    // What was forgotten is news again: replays are the business of freshness.
    stored(&*store, event("m-2", "i-2", "Success", 2), Vec::new(), 200).await;
}

async fn events_are_listed_newest_first_by_command_instance_and_topic(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    stored(&*store, read("other", "hello", 0), Vec::new(), 0).await;
    let first = stored(&*store, event("m-1", "i-1", "InProgress", 1), Vec::new(), 1).await;
    let second = stored(&*store, event("m-2", "i-2", "InProgress", 1), Vec::new(), 1).await;
    let third = stored(&*store, event("m-3", "i-1", "Success", 2), Vec::new(), 2).await;
    let list = async |query: EventQuery| {
        let events = store.events(query).await.unwrap();
        events.iter().map(|one| one.id).collect::<Vec<_>>()
    };
    let of = |command: &str| EventQuery {
        command: Some(command.to_owned()),
        limit: 10,
        ..EventQuery::default()
    };
    assert_eq!(list(of("c-1")).await, [third, second, first]);
    assert!(list(of("c-2")).await.is_empty());
    let instance = EventQuery {
        instance: Some("i-1".to_owned()),
        ..of("c-1")
    };
    assert_eq!(list(instance).await, [third, first]);
    let page = EventQuery {
        before: Some(third),
        limit: 1,
        ..of("c-1")
    };
    assert_eq!(list(page).await, [second]);
    let elsewhere = EventQuery {
        topic: Some("arn:other".to_owned()),
        ..of("c-1")
    };
    assert!(list(elsewhere).await.is_empty());
}

async fn subscriptions_and_certificates_are_kept(on: On) {
    let mut store = TestStore::open_on(on).await;
    {
        let store = store.handle();
        let token = SecretString::from("70ke0");
        let asked = store.put_subscription(TOPIC, &token, at(1)).await.unwrap();
        let again = store.put_subscription(TOPIC, &token, at(2)).await.unwrap();
        assert_eq!((again.id, again.asked_at), (asked.id, at(1)));
        assert_eq!(again.confirmed_at, None);
        store.subscription_confirmed(asked.id, at(3)).await.unwrap();
        let certificate = runbell::sns::KnownCertificate {
            url: "https://example.com/a.pem".to_owned(),
            pem: b"pem".to_vec(),
            fetched_at: at(1),
        };
        store.put_certificate(certificate.clone()).await.unwrap();
        let newer = runbell::sns::KnownCertificate {
            fetched_at: at(2),
            ..certificate
        };
        store.put_certificate(newer.clone()).await.unwrap();
        assert_eq!(store.certificates().await.unwrap(), [newer]);
    }
    store.reopen().await;
    let kept = store.handle().subscriptions().await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].confirmed_at, Some(at(3)));
    assert!(!format!("{kept:?}").contains("70ke0"));
}

async fn a_sink_owed_twice_keeps_two_lanes_apart(on: On) {
    let store = TestStore::open_on(on).await;
    let store = store.handle();
    let event = event("m-1", "i-1", "Success", 1);
    let again = Owed {
        route: "again".to_owned(),
        ..owed(&event, "s", LaneKey::Command, 0)
    };
    let to = vec![owed(&event, "s", LaneKey::Command, 0), again];
    let id = stored(&*store, event, to, 1).await;
    let lanes = lease(&*store, 1).await;
    assert_eq!(lanes.len(), 2);
    let settlements = lanes
        .into_iter()
        .map(|lane| settled(lane, &Outcome::Sent, 2))
        .collect();
    store.settle(settlements).await.unwrap();
    let (_, deliveries) = store.event(id).await.unwrap().unwrap();
    let routes: Vec<_> = deliveries.iter().map(|one| one.route.as_str()).collect();
    assert_eq!(routes, ["again", "r"]);
    assert_sound(&*store).await;
}

#[tokio::test]
async fn a_queue_that_is_full_turns_new_events_away() {
    let (store, writer, _) = {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runbell.db");
        runbell::store::sqlite::Sqlite::open(&path, Terms::default(), &Clock::system()).unwrap()
    };
    // The writer does not run, so nothing leaves the queue.
    let mut waiting = Vec::new();
    let refused = loop {
        let event = event(&format!("m-{}", waiting.len()), "i", "Success", 0);
        let append = Append::new(event, Vec::new(), at(0));
        let mut call = store.append(append);
        match futures_util::poll!(&mut call) {
            std::task::Poll::Ready(answer) => break answer,
            std::task::Poll::Pending => waiting.push(call),
        }
    };
    assert!(matches!(refused, Err(StoreError::Busy)), "{refused:?}");
    assert!(waiting.len() >= 1000);
    drop(waiting);
    drop(writer);
    let event = event("late", "i", "Success", 0);
    let gone = store.append(Append::new(event, Vec::new(), at(0))).await;
    assert!(matches!(gone, Err(StoreError::Gone(_))), "{gone:?}");
}

on_both! {
    an_event_is_kept_once_whatever_is_in_it,
    a_hold_that_is_over_takes_everything_before_it_along,
    what_is_appended_while_its_lane_is_leased_goes_afterwards,
    a_limit_cuts_a_lane_and_others_get_their_turn,
    lease_that_is_over_may_only_record_what_was_sent,
    a_failing_head_keeps_its_place_until_it_is_parked,
    a_dead_letter_is_listed_sent_again_elsewhere_or_dropped,
    a_resting_sink_is_not_leased,
    a_step_told_again_is_a_repeat_and_another_end_is_a_conflict,
    a_repeat_is_one_only_where_its_first_was_told,
    a_start_below_the_watermark_knows_that_its_end_was_sent,
    instance_order_waits_only_where_something_can_come_first,
    what_a_message_is_called_comes_with_all_that_follows_of_its_command,
    deliveries_under_way_at_a_crash_go_again_and_say_so,
    old_events_are_forgotten_but_never_what_something_waits_for,
    events_are_listed_newest_first_by_command_instance_and_topic,
    subscriptions_and_certificates_are_kept,
    a_sink_owed_twice_keeps_two_lanes_apart,
}
