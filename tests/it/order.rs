//! The order that is promised, shown through the real street from the store to a sink: histories
//! that arrive within the hold leave every lane in one and the same order, whatever order and
//! however often they arrive; any other history leaves whole, and what is late says so.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use crate::harness::store::On;
use crate::harness::street::{Arrival, Sent, Street};
use crate::on_both;

const START: &str = "2026-11-23T10:00:00Z";

/// One command on two instances as Systems Manager tells it, each with the second it happens in.
const LIFE: [(&str, &str, i64); 7] = [
    ("", "InProgress", 0),
    ("i-1", "InProgress", 1),
    ("i-2", "InProgress", 1),
    ("i-2", "Failed", 4),
    ("i-1", "Success", 6),
    ("", "Failed", 6),
    ("i-3", "InProgress", 2),
];

/// The life of command `number`, on a topic of its own.
fn life(number: usize) -> Vec<Arrival> {
    let command = number.to_string();
    LIFE.iter()
        .enumerate()
        .map(|(step, (instance, status, second))| {
            let id = format!("{command}-{step}");
            Arrival::new(&command, instance, status, at(*second), &id).on_topic(number)
        })
        .collect()
}

fn at(second: i64) -> Timestamp {
    START.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second)
}

/// The order that each lane shall be left in: by time, by rank, by instance.
const ORDERS: [&str; 3] = ["command", "instance", "topic"];

/// What identifies a step on the way out.
fn steps(sent: &[Sent]) -> Vec<(String, String)> {
    sent.iter()
        .map(|one| (one.instance.clone(), one.status.clone()))
        .collect()
}

/// Splits by what a lane of `order` holds, keeping the order within.
fn by_lane(order: &str, sent: &[Sent]) -> Vec<Vec<(String, String)>> {
    if order != "instance" {
        return vec![steps(sent)];
    }
    let instances: BTreeSet<_> = sent.iter().map(|one| one.instance.clone()).collect();
    instances
        .iter()
        .map(|instance| {
            let own: Vec<_> = sent
                .iter()
                .filter(|one| one.instance == *instance)
                .cloned()
                .collect();
            steps(&own)
        })
        .collect()
}

/// Lets every history come, one arrival of each every 100 ms, and the hold run out after the last.
/// Says what left, by history.
async fn within_the_hold(street: &Street, histories: &[Vec<Arrival>]) -> Vec<Vec<Sent>> {
    let mut sent = Vec::new();
    let longest = histories.iter().map(Vec::len).max().unwrap();
    for turn in 0..longest {
        street
            .arrive_together(histories.iter().filter_map(|history| history.get(turn)))
            .await;
        sent.extend(street.deliver().await);
        street.clock.advance(Duration::from_millis(100));
    }
    street.clock.advance(Duration::from_secs(5));
    sent.extend(street.deliver().await);
    let mut by_history = vec![Vec::new(); histories.len()];
    for one in sent {
        by_history[one.command.parse::<usize>().unwrap()].push(one);
    }
    by_history
}

fn permutations<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for at in 0..items.len() {
        let mut rest = items.to_vec();
        let first = rest.remove(at);
        for mut tail in permutations(&rest) {
            tail.insert(0, first.clone());
            all.push(tail);
        }
    }
    all
}

async fn every_arrival_order_of_seven_events_leaves_in_one_order(on: On) {
    let mut orders = permutations(&[0, 1, 2, 3, 4, 5, 6]);
    if on == On::Postgres {
        // Every one of them would take minutes.
        orders = orders.into_iter().step_by(41).collect();
    }
    let histories: Vec<_> = orders
        .iter()
        .enumerate()
        .map(|(number, order)| {
            let life = life(number);
            let mut arrivals: Vec<_> = order.iter().map(|at| life[*at].clone()).collect();
            // Two copies of one notification, and one step told by a second notification.
            arrivals.push(life[number % 7].clone());
            arrivals.insert(number % 5, life[number % 3].told_again());
            arrivals
        })
        .collect();
    for order in ORDERS {
        let street = Street::open(on, order, "5s").await;
        let mut expected = None;
        for (sent, arrival) in within_the_hold(&street, &histories)
            .await
            .iter()
            .zip(&orders)
        {
            let lanes = by_lane(order, sent);
            assert!(
                sent.iter().all(|one| !one.late),
                "{order} {arrival:?}: {sent:?}"
            );
            assert_eq!(
                sent.len(),
                7,
                "{order} {arrival:?}: each step once: {sent:?}"
            );
            let expected = expected.get_or_insert_with(|| lanes.clone());
            assert_eq!(&lanes, expected, "{order} {arrival:?}");
        }
        street.assert_sound().await;
    }
}

async fn without_a_hold_the_order_of_arrival_shows(on: On) {
    let histories: Vec<_> = permutations(&[0, 1, 2, 3])
        .iter()
        .enumerate()
        .map(|(number, order)| {
            let life = life(number);
            order.iter().map(|at| life[*at].clone()).collect::<Vec<_>>()
        })
        .collect();
    for order in ["command", "topic"] {
        let street = Street::open(on, order, "0s").await;
        let sent = within_the_hold(&street, &histories).await;
        let orders: BTreeSet<_> = sent.iter().map(|sent| steps(sent)).collect();
        assert!(
            orders.len() > 1,
            "{order}: the test would not notice a missing hold"
        );
        street.assert_sound().await;
    }
}

#[derive(Clone, Debug)]
struct Plan {
    order: &'static str,
    arrivals: Vec<(usize, u64, bool)>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let arrival = (0_usize..40, 0_u64..9_000, any::<bool>());
    (
        prop::sample::select(ORDERS.to_vec()),
        prop::collection::vec(arrival, 1..60),
    )
        .prop_map(|(order, arrivals)| Plan { order, arrivals })
}

/// Arrivals as late as they like: every step leaves exactly once (an overtaken start may be left out),
/// and whatever leaves below what left before says that it is late.
async fn whatever_arrives_leaves_once(on: On, plan: Plan) -> Result<(), TestCaseError> {
    let street = Street::open(on, plan.order, "5s").await;
    let mut sent = Vec::new();
    let mut told = BTreeSet::new();
    for (number, gap, again) in &plan.arrivals {
        let instance = format!("i-{}", number / 2);
        let status = if number % 2 == 0 {
            "InProgress"
        } else {
            "Success"
        };
        let second = i64::try_from(*number).unwrap() % 11 + i64::from(number % 2 == 1) * 3;
        let id = format!("m-{number}");
        let arrival = Arrival::new("c", &instance, status, at(second), &id);
        let arrival = if *again {
            arrival.told_again()
        } else {
            arrival
        };
        told.insert((instance, status.to_owned()));
        street.arrives(&arrival).await;
        street.clock.advance(Duration::from_millis(*gap));
        sent.extend(street.deliver().await);
    }
    street.clock.advance(Duration::from_secs(5));
    sent.extend(street.deliver().await);
    let left = steps(&sent);
    let unique: BTreeSet<_> = left.iter().cloned().collect();
    prop_assert_eq!(unique.len(), left.len(), "a step left twice: {:?}", left);
    for step in told.difference(&unique) {
        let end = (step.0.clone(), "Success".to_owned());
        prop_assert!(
            step.1 == "InProgress" && unique.contains(&end),
            "lost: {:?} of {:?}",
            step,
            left
        );
    }
    for one in &sent {
        prop_assert_eq!(one.late, one.below_what_left, "{:?}", one);
    }
    street.assert_sound().await;
    Ok(())
}

fn run(work: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_arrives_leaves_once_and_late_is_marked(plan in plan()) {
        run(whatever_arrives_leaves_once(On::Sqlite, plan))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn whatever_arrives_at_a_shared_store_leaves_once_and_late_is_marked(plan in plan()) {
        run(whatever_arrives_leaves_once(On::Postgres, plan))?;
    }
}

on_both! {
    every_arrival_order_of_seven_events_leaves_in_one_order,
    without_a_hold_the_order_of_arrival_shows,
}
