//! What the model keeps, and the looks at it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use runbell::clock::{earlier, later};
use runbell::delivery::{LaneKey, Marks, Outcome, SortKey};
use runbell::event::Event;
use runbell::sns::KnownCertificate;
use runbell::store::{
    Backlog, DeadLetter, DeadSelection, Delivery, EventId, EventQuery, LaneId, PastOutcome,
    RouteBacklog, Settled, StoredEvent, Subscription, Tally,
};

/// A command: who vouches for it, its account, its region, its id.
pub(super) type Command = (String, String, String, String);

/// A fact: its command, the instance or nothing, the status, when.
pub(super) type Step = (Command, String, String, Timestamp);

/// Whose deliveries follow each other in a lane.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    Command(Command),
    Instance(Command, String),
    Topic(String),
    Own(EventId),
    Digest(Command),
}

/// What names a lane: each route and sink has its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) of: Of,
    pub(super) route: String,
    pub(super) sink: String,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) id: LaneId,
    pub(super) rows: BTreeMap<SortKey, Row>,
    /// When it is looked at next, while it is free. A look may come sooner than anything may go.
    pub(super) due: Option<Timestamp>,
    pub(super) not_before: Timestamp,
    pub(super) high: Option<SortKey>,
    pub(super) early: bool,
    pub(super) fed: i64,
    pub(super) epoch: i64,
    pub(super) held: Option<Held>,
}

/// A lease as the store has it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) holder: i64,
    pub(super) call: i64,
    /// The rows that were handed out, with those that a digest's last stands for.
    pub(super) handed_out: Vec<SortKey>,
    /// The latest release of what was handed out alone.
    pub(super) alone_upto: Option<Timestamp>,
    pub(super) fed: i64,
    pub(super) ends_at: Timestamp,
}

/// A delivery that waits.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) event: EventId,
    pub(super) fed: i64,
    pub(super) release_at: Timestamp,
    pub(super) alone: bool,
    pub(super) resent: bool,
    pub(super) possible_repeat: bool,
    pub(super) high_then: Option<SortKey>,
    pub(super) instead_of: Option<String>,
    pub(super) tries: u32,
    pub(super) failing_since: Option<Timestamp>,
    pub(super) progress: Option<String>,
}

/// What a lease was given for, for whoever ends it late.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) place: Place,
    pub(super) is_batch: bool,
    pub(super) troubles: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) stored: StoredEvent,
    /// The fact that it tells.
    pub(super) step: Option<Step>,
}

#[derive(Clone, Debug)]
pub(super) struct Grave {
    pub(super) place: Place,
    pub(super) event: EventId,
    pub(super) key: SortKey,
    pub(super) died_at: Timestamp,
    pub(super) tries: u32,
    pub(super) answer: Option<String>,
}

#[derive(Default, Debug)]
pub(super) struct Sink {
    pub(super) backoff_until: Option<Timestamp>,
    pub(super) failing_since: Option<Timestamp>,
}

/// Everything.
#[derive(Default)]
pub(super) struct State {
    pub(super) latest: Timestamp,
    pub(super) ahead: SignedDuration,
    /// How often `ahead` was changed.
    pub(super) step: u64,
    pub(super) events: BTreeMap<EventId, Kept>,
    pub(super) lanes: BTreeMap<Place, Lane>,
    pub(super) given: BTreeMap<(LaneId, i64), Given>,
    /// Facts, each with the event that told it first.
    pub(super) steps: BTreeMap<Step, EventId>,
    pub(super) outcomes: BTreeMap<EventId, Vec<(String, String, PastOutcome)>>,
    pub(super) dead: BTreeMap<i64, Grave>,
    /// By command, route and sink: the message that later ones refer to, and the troubles told.
    pub(super) threads: BTreeMap<(Command, String, String), (String, u64)>,
    pub(super) sinks: BTreeMap<String, Sink>,
    pub(super) books: BTreeMap<String, Tally>,
    /// The last sign of life of each holder.
    pub(super) beats: BTreeMap<i64, Timestamp>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) certificates: Vec<KnownCertificate>,
    pub(super) generations: BTreeSet<(String, String, Timestamp)>,
    pub(super) last_event: i64,
    pub(super) last_lane: i64,
    pub(super) last_dead: i64,
    pub(super) last_holder: i64,
}

impl Lane {
    /// When the first of its rows may go. What goes alone is not held up by the lane's pause.
    pub(super) fn earliest(&self) -> Option<Timestamp> {
        self.rows.values().map(|row| self.goes_at(row)).min()
    }

    pub(super) fn goes_at(&self, row: &Row) -> Timestamp {
        if row.alone {
            row.release_at
        } else {
            row.release_at.max(self.not_before)
        }
    }

    /// A leased lane is due when its lease ends.
    pub(super) fn due_at(&self) -> Option<Timestamp> {
        self.held
            .as_ref()
            .map_or(self.due, |held| Some(held.ends_at))
    }
}

impl State {
    pub(super) fn book(&mut self, sink: &str) -> &mut Tally {
        let of = || Tally {
            sink: sink.to_owned(),
            ..Tally::default()
        };
        self.books.entry(sink.to_owned()).or_insert_with(of)
    }

    /// The lane of that name, counted as fed once more; made if there is none.
    pub(super) fn feed(&mut self, place: &Place) -> &mut Lane {
        let last = &mut self.last_lane;
        let lane = self.lanes.entry(place.clone()).or_insert_with(|| {
            *last += 1;
            Lane {
                id: LaneId(*last),
                rows: BTreeMap::new(),
                due: None,
                not_before: Timestamp::UNIX_EPOCH,
                high: None,
                early: true,
                fed: 0,
                epoch: 0,
                held: None,
            }
        });
        lane.fed += 1;
        lane
    }

    /// Adds a line to a delivery's history.
    pub(super) fn note(&mut self, place: &Place, event: EventId, it: &Settled, outcome: Outcome) {
        let past = PastOutcome {
            at: it.at,
            outcome,
            marks: Marks {
                instead_of: None,
                ..it.marks.clone()
            },
            answer: it.answer.clone(),
            took: it.took,
        };
        let line = (place.route.clone(), place.sink.clone(), past);
        self.outcomes.entry(event).or_default().push(line);
    }

    /// Whether an event was sent to a sink, by one route or by any.
    pub(super) fn was_sent(&self, event: EventId, route: Option<&str>, sink: &str) -> bool {
        let lines = self.outcomes.get(&event).into_iter().flatten();
        lines.into_iter().any(|(by, to, past)| {
            route.is_none_or(|route| route == by) && to == sink && past.outcome == Outcome::Sent
        })
    }

    fn waiting(&self) -> impl Iterator<Item = (&Place, &Lane, &Row)> {
        let of = |(place, lane)| {
            let lane: &Lane = lane;
            lane.rows.values().map(move |row| (place, lane, row))
        };
        self.lanes.iter().flat_map(of)
    }

    pub(super) fn known(&self, topic: &str, sent_at: Timestamp, id: &str) -> Option<EventId> {
        let is_it = |it: &Event| it.topic == topic && it.sent_at == sent_at && it.message_id == id;
        let mut events = self.events.values().map(|it| &it.stored);
        events.find(|it| is_it(&it.event)).map(|it| it.id)
    }

    pub(super) fn events(&self, query: &EventQuery) -> Vec<StoredEvent> {
        let is = |asked: &Option<String>, it: Option<&str>| {
            asked.as_deref().is_none_or(|asked| it == Some(asked))
        };
        let is_meant = |it: &&Kept| {
            let told = it.step.as_ref();
            is(&query.command, told.map(|(command, ..)| &*command.3))
                && is(&query.instance, told.map(|(_, instance, ..)| &**instance))
                && is(&query.topic, Some(&it.stored.event.topic))
                && query.before.is_none_or(|before| it.stored.id < before)
        };
        let all = self.events.values().rev().filter(is_meant);
        all.take(query.limit).map(|it| it.stored.clone()).collect()
    }

    pub(super) fn event(&self, id: EventId) -> Option<(StoredEvent, Vec<Delivery>)> {
        let stored = self.events.get(&id)?.stored.clone();
        let mut all: BTreeMap<(&str, &str), Delivery> = BTreeMap::new();
        let of = |route: &str, sink: &str| Delivery {
            route: route.to_owned(),
            sink: sink.to_owned(),
            waits_until: None,
            dead: false,
            outcomes: Vec::new(),
        };
        for (route, sink, past) in self.outcomes.get(&id).into_iter().flatten() {
            let it = all.entry((route, sink)).or_insert_with(|| of(route, sink));
            it.outcomes.push(past.clone());
        }
        for (Place { route, sink, .. }, lane, row) in self.waiting() {
            if row.event == id {
                let it = all.entry((route, sink)).or_insert_with(|| of(route, sink));
                it.waits_until = Some(lane.goes_at(row) - self.ahead);
            }
        }
        for Grave { place, event, .. } in self.dead.values() {
            if *event == id {
                let (route, sink) = (&*place.route, &*place.sink);
                all.entry((route, sink))
                    .or_insert_with(|| of(route, sink))
                    .dead = true;
            }
        }
        Some((stored, all.into_values().collect()))
    }

    /// The numbers of the dead letters that are meant, oldest first.
    pub(super) fn graves(&self, selection: &DeadSelection) -> Vec<i64> {
        let is_meant = |(id, grave): &(&i64, &Grave)| match selection {
            DeadSelection::All => true,
            DeadSelection::Sink(sink) => grave.place.sink == *sink,
            DeadSelection::Ids(ids) => ids.contains(id),
        };
        self.dead
            .iter()
            .filter(is_meant)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn dead_letters(&self, selection: &DeadSelection, limit: usize) -> Vec<DeadLetter> {
        let letter = |id: i64| {
            let grave = &self.dead[&id];
            DeadLetter {
                id,
                event: self.events[&grave.event].stored.clone(),
                route: grave.place.route.clone(),
                sink: grave.place.sink.clone(),
                died_at: grave.died_at,
                tries: grave.tries,
                answer: grave.answer.clone(),
            }
        };
        let ids = self.graves(selection).into_iter().rev().take(limit);
        ids.map(letter).collect()
    }

    pub(super) fn backlog(&self) -> Vec<Backlog> {
        let waiting = self.waiting().map(|(place, ..)| &place.sink);
        let dead = self.dead.values().map(|it| &it.place.sink);
        let backing_off = self
            .sinks
            .iter()
            .filter(|(_, it)| it.backoff_until.is_some());
        let sinks: BTreeSet<&String> = waiting
            .chain(dead)
            .chain(backing_off.map(|(sink, _)| sink))
            .collect();
        let of = |sink: &String| {
            let rows = || self.waiting().filter(|(place, ..)| place.sink == *sink);
            let oldest = rows().map(|(_, _, row)| row.event).min();
            let backoff_until = self.sinks.get(sink).and_then(|it| it.backoff_until);
            Backlog {
                sink: sink.clone(),
                waiting: rows().count() as u64,
                oldest: oldest.map(|event| self.events[&event].stored.received_at),
                dead: self
                    .dead
                    .values()
                    .filter(|it| it.place.sink == *sink)
                    .count() as u64,
                backoff_until: backoff_until.map(|until| until - self.ahead),
            }
        };
        sinks.into_iter().map(of).collect()
    }

    pub(super) fn route_backlog(&self) -> Vec<RouteBacklog> {
        let mut counts: BTreeMap<(&String, u8), (LaneKey, u64)> = BTreeMap::new();
        for (Place { of, route, .. }, ..) in self.waiting() {
            let (order, lanes) = match of {
                Of::Command(_) => (0, LaneKey::Command),
                Of::Instance(..) => (1, LaneKey::Instance),
                Of::Topic(_) => (2, LaneKey::Topic),
                Of::Own(_) => (3, LaneKey::Own),
                Of::Digest(_) => (4, LaneKey::Digest),
            };
            counts.entry((route, order)).or_insert((lanes, 0)).1 += 1;
        }
        let of = |((route, _), (lanes, waiting)): ((&String, u8), (LaneKey, u64))| RouteBacklog {
            route: route.clone(),
            lanes,
            waiting,
        };
        counts.into_iter().map(of).collect()
    }

    pub(super) fn tally(&self) -> Vec<Tally> {
        let of = |it: &Tally| Tally {
            waiting: self
                .waiting()
                .filter(|(place, ..)| place.sink == it.sink)
                .count() as u64,
            ..it.clone()
        };
        self.books.values().map(of).collect()
    }

    /// How many lanes wait without being due, which none may.
    pub(super) fn sweep(&self) -> u64 {
        let lost = |it: &&Lane| it.rows.is_empty() != it.due_at().is_none() && it.held.is_none();
        self.lanes.values().filter(lost).count() as u64
    }

    /// Forgets what arrived long ago and is owed to nobody. The newest event stays, and nothing
    /// goes by a clock that is far ahead of the latest Timestamp that SNS signed.
    pub(super) fn forget(&mut self, now: Timestamp, keep: Duration, is_silent: bool) {
        let signed = self.events.values().map(|it| it.stored.event.sent_at).max();
        let present = match signed {
            Some(signed) if !is_silent => now.min(later(signed, Duration::from_hours(1))),
            _ => now,
        };
        let before = earlier(present, keep);
        let owed: BTreeSet<EventId> = self.waiting().map(|(_, _, row)| row.event).collect();
        let owed = |id: &EventId| owed.contains(id) || self.dead.values().any(|it| it.event == *id);
        let newest = self.events.keys().last().copied();
        let is_old = |it: &&Kept| {
            let id = it.stored.id;
            it.stored.received_at < before && Some(id) != newest && !owed(&id)
        };
        let old: Vec<Kept> = self.events.values().filter(is_old).cloned().collect();
        for Kept { stored, step } in old {
            self.events.remove(&stored.id);
            self.outcomes.remove(&stored.id);
            self.lanes
                .retain(|at, lane| at.of != Of::Own(stored.id) || lane.due_at().is_some());
            let Some(step) = step else { continue };
            if self.steps.get(&step) == Some(&stored.id) {
                self.steps.remove(&step);
            }
            let command = &step.0;
            if self.steps.keys().all(|it| it.0 != *command) {
                self.threads.retain(|it, _| it.0 != *command);
                self.lanes
                    .retain(|at, lane| lane.due_at().is_some() || !at.of.is_of(command));
            }
        }
    }
}

impl Of {
    fn is_of(&self, command: &Command) -> bool {
        match self {
            Self::Command(it) | Self::Instance(it, _) | Self::Digest(it) => it == command,
            Self::Topic(_) | Self::Own(_) => false,
        }
    }
}
