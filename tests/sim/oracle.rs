//! The judge of a seed: after the healing, store and sinks are held against the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::FutureExt as _;
use runbell::delivery::{Digest, Outcome};
use runbell::event::{Event, Status};
use runbell::store::{Care as _, Delivery, EventQuery, History as _, StoredEvent, Tally};

use crate::engine::Engine;
use crate::faulty::Faulty;
use crate::plan::Plan;
use crate::truth::{Copy, LaneName, Truth};
use crate::world::World;

/// An event as the store has it, with what became of each delivery.
type Kept = (StoredEvent, Vec<Delivery>);

/// Judges one seed.
pub fn judge(world: &World, store: &Faulty, engine: &dyn Engine, plan: &Plan) {
    // Looks take no time, or they would not be over at once.
    world.state().rates.latency = Duration::ZERO;
    let mut wrong = engine.leftovers();
    match store.sweep().now_or_never() {
        Some(Ok(0)) => {}
        found => wrong.push(format!("the sweep at the end finds {found:?}")),
    }
    let kept = kept(store);
    let tally = store.tally().now_or_never().unwrap().unwrap();
    let state = world.state();
    ends(&state.truth, &kept, &mut wrong);
    books(&state.truth, &kept, &tally, &mut wrong);
    order(&state.truth, &mut wrong);
    digests(&state.truth, &kept, plan, &mut wrong);
    drop(state);
    for what in wrong {
        world.accuse(what);
    }
}

fn kept(store: &Faulty) -> BTreeMap<String, Kept> {
    let query = EventQuery {
        limit: 1000,
        ..EventQuery::default()
    };
    let events = store.events(query).now_or_never().unwrap().unwrap();
    let look = |event: StoredEvent| {
        let found = store
            .event(event.id)
            .now_or_never()
            .unwrap()
            .unwrap()
            .unwrap();
        (event.event.message_id, found)
    };
    events.into_iter().map(look).collect()
}

/// Every acknowledged message is kept, and everything owed for it ended, as the sinks say too.
fn ends(truth: &Truth, kept: &BTreeMap<String, Kept>, wrong: &mut Vec<String>) {
    for post in &truth.posts {
        let id = &post.event.message_id;
        let Some((event, deliveries)) = kept.get(id) else {
            if post.id.is_some() {
                wrong.push(format!("{id} was acknowledged and is not kept"));
            }
            continue;
        };
        if post.id.is_some_and(|known| known != event.id.0) {
            wrong.push(format!("{id} is kept under another number"));
        }
        for (route, sink) in &post.owed {
            let is_digest = post.places[route].0.0 == LaneName::Digest;
            end(truth, id, (route, sink), deliveries, is_digest, wrong);
        }
    }
    for copy in &truth.copies {
        if !kept.contains_key(&copy.name.2) {
            wrong.push(format!("{:?} was told and is not kept", copy.name));
        }
    }
}

/// The end of one delivery, which may lie at another sink.
fn end(
    truth: &Truth,
    id: &str,
    (route, sink): (&str, &str),
    deliveries: &[Delivery],
    is_digest: bool,
    wrong: &mut Vec<String>,
) {
    let at = |sink: &str| {
        deliveries
            .iter()
            .find(|it| it.route == route && it.sink == sink)
    };
    let of_route = deliveries.iter().filter(|it| it.route == route);
    let said: Vec<_> = of_route
        .clone()
        .flat_map(|it| {
            it.outcomes
                .iter()
                .map(|past| (it.sink.clone(), past.outcome.word()))
        })
        .collect();
    let ends: Vec<&str> = of_route
        .clone()
        .filter_map(|it| match it.outcomes.last().map(|past| &past.outcome) {
            Some(Outcome::Sent | Outcome::Redundant | Outcome::Muted | Outcome::Dropped) => {
                Some("over")
            }
            Some(Outcome::Diverted) => None,
            _ if it.dead => Some("dead"),
            _ => None,
        })
        .collect();
    // Recorded as sent by a lease that was over, after it was handed over: then the other sink told a
    // repeat, whose mark was looked at when it was told.
    let is_told_late = |it: &&Delivery| {
        let mut past = it.outcomes.iter().map(|past| &past.outcome);
        past.any(|it| matches!(it, Outcome::Diverted)) && past.any(|it| *it == Outcome::Sent)
    };
    let told_late = of_route.clone().filter(is_told_late).count();
    if at(sink).is_none() {
        wrong.push(format!("{id} owes {route} nothing at {sink}: {said:?}"));
    } else if ends.is_empty() || ends.len() > 1 + told_late {
        wrong.push(format!(
            "{id} by {route} ended {} times: {said:?}",
            ends.len()
        ));
    }
    for delivery in of_route {
        if delivery.waits_until.is_some() {
            wrong.push(format!("{id} by {route} still waits for {}", delivery.sink));
        }
        let is_sent = delivery
            .outcomes
            .iter()
            .any(|past| past.outcome == Outcome::Sent);
        let was_told = truth.copies.iter().any(|copy| {
            copy.name.0 == route && copy.name.1 == delivery.sink && (is_digest || copy.name.2 == id)
        });
        if is_sent && !was_told {
            let sink = &delivery.sink;
            wrong.push(format!(
                "{id} by {route} counts as sent, and {sink} has not heard of it"
            ));
        }
    }
}

/// The books balance, and say how much was owed.
fn books(truth: &Truth, kept: &BTreeMap<String, Kept>, tally: &[Tally], wrong: &mut Vec<String>) {
    let (mut owed, mut in_books, mut ended) = (0, 0, 0);
    for it in tally {
        in_books += it.owed;
        let over = it.sent + it.muted + it.redundant + it.dropped + it.dead;
        ended += over;
        if it.waiting != 0 {
            wrong.push(format!("{it:?}: it waits"));
        }
    }
    let posts = truth
        .posts
        .iter()
        .filter(|post| kept.contains_key(&post.event.message_id));
    owed += posts.map(|post| post.owed.len() as u64).sum::<u64>();
    if in_books != owed || ended != owed {
        wrong.push(format!(
            "{owed} are owed, the books say {in_books} and ended {ended}: {tally:?}"
        ));
    }
}

/// Each lane's copies at each sink come in order, or say that they are late; and nothing says so
/// without reason.
fn order(truth: &Truth, wrong: &mut Vec<String>) {
    let places: BTreeMap<_, _> = truth
        .posts
        .iter()
        .map(|post| (post.event.message_id.as_str(), &post.places))
        .collect();
    let place = |copy: &Copy| {
        places
            .get(copy.name.2.as_str())
            .and_then(|it| it.get(&copy.name.0))
    };
    for (number, copy) in truth.copies.iter().enumerate() {
        let Some((lane, key)) = place(copy) else {
            continue;
        };
        if lane.0 == LaneName::Digest || copy.marks.resent {
            continue;
        }
        let is_above = |other: &&Copy| {
            let same = other.name.0 == copy.name.0;
            same && place(other).is_some_and(|(its, above)| its == lane && above > key)
        };
        let before = truth.copies[..number]
            .iter()
            .filter(|it| it.name.1 == copy.name.1);
        let is_below = before.clone().filter(is_above).count() > 0;
        // A possible repeat is held against the watermark from before its first try.
        let is_late = copy.marks.late.is_some();
        if is_below && !is_late && !copy.marks.possible_repeat {
            wrong.push(format!(
                "{:?} came after a greater one, unmarked",
                copy.name
            ));
        }
        let may_be_above = || {
            truth.posts.iter().any(|post| {
                let id = &post.event.message_id;
                let above = post.places.get(&copy.name.0);
                above.is_some_and(|(its, above)| its == lane && above > key)
                    && (truth.has_begun(&copy.name.0, id) || truth.was_killed)
            })
        };
        if is_late && !is_below && !may_be_above() {
            wrong.push(format!("{:?} is marked late without reason", copy.name));
        }
    }
}

/// The last digest of each command counts everything that is known of it.
fn digests(truth: &Truth, kept: &BTreeMap<String, Kept>, plan: &Plan, wrong: &mut Vec<String>) {
    let route = plan
        .routes()
        .iter()
        .last()
        .map(|it| it.name.clone())
        .unwrap_or_default();
    let mut commands: BTreeMap<&str, Vec<&Kept>> = BTreeMap::new();
    for it in kept.values() {
        if let Some(command) = it.0.event.command() {
            commands.entry(&command.command).or_default().push(it);
        }
    }
    for (command, events) in commands {
        let was_dead = events.iter().flat_map(|it| &it.1).any(|it| {
            it.route == route && it.outcomes.iter().any(|past| past.outcome == Outcome::Dead)
        });
        let Some(facts) = facts(events.iter().map(|it| &it.0.event)) else {
            continue;
        };
        let is_of = |copy: &&Copy| {
            let of = kept.get(&copy.name.2).and_then(|it| it.0.event.command());
            copy.name.0 == route && of.is_some_and(|it| it.command == command)
        };
        let last = truth.copies.iter().rev().find(is_of);
        let told = last.and_then(|copy| copy.digest.as_ref()).map(numbers);
        if !was_dead && told.as_ref() != Some(&facts) {
            wrong.push(format!(
                "the last digest of {command} says {told:?}, known is {facts:?}"
            ));
        }
    }
}

/// Succeeded, failed, timed out, cancelled, running, and what the whole says.
type Numbers = ([u64; 5], Option<Status>);

fn numbers(it: &Digest) -> Numbers {
    let numbers = [
        it.succeeded,
        it.failed,
        it.timed_out,
        it.cancelled,
        it.running,
    ];
    (numbers, it.overall.clone())
}

/// The facts of a command; none where two ends of one thing differ.
fn facts<'e>(events: impl Iterator<Item = &'e Event>) -> Option<Numbers> {
    let mut things: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut words: BTreeMap<String, Status> = BTreeMap::new();
    for command in events.filter_map(Event::command) {
        let word = command.status.to_string();
        words.insert(word.clone(), command.status.clone());
        let thing = command.instance.clone().unwrap_or_default();
        things.entry(thing).or_default().insert(word);
    }
    let (mut numbers, mut overall) = ([0; 5], None);
    for (thing, told) in things {
        let mut ends = told.iter().filter(|word| words[*word].is_terminal());
        let end = ends.next().map(|word| &words[word]);
        if ends.next().is_some() {
            return None;
        }
        let status = end.cloned().unwrap_or(Status::InProgress);
        if thing.is_empty() {
            overall = Some(status);
            continue;
        }
        let place = match status {
            Status::Success => 0,
            Status::Failed => 1,
            Status::TimedOut => 2,
            Status::Cancelled => 3,
            _ => 4,
        };
        numbers[place] += 1;
    }
    Some((numbers, overall))
}
