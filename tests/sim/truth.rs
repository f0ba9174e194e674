//! The truth of one seed: what was posted and acknowledged, handed out, begun, told and recorded, in
//! the order in which it came about. The simulator sees both sides of every call, so it knows more
//! than any process; the oracle compares the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use runbell::delivery::{Digest, LaneKey, Marks, SortKey};
use runbell::event::Event;
use runbell::render::Notice;
use runbell::store::register::Register;
use runbell::store::{Ending, Leased, Settlement};

/// A route, a sink, a message: one delivery.
pub type Name = (String, String, String);

/// A message as its producer knows it.
#[derive(Clone, Debug)]
pub struct Post {
    pub event: Event,
    /// Its number, once that was answered.
    pub id: Option<i64>,
    /// The place of each route's delivery: its lane, and its key there.
    pub places: BTreeMap<String, (Place, SortKey)>,
    /// The sinks that each route owes it to.
    pub owed: BTreeSet<(String, String)>,
}

/// A lane, whatever sink it is of.
pub type Place = (LaneName, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LaneName {
    Command,
    Instance,
    Topic,
    Digest,
    Own,
}

impl LaneName {
    /// The lane that an event joins.
    pub fn place(key: LaneKey, event: &Event) -> Place {
        let command = event.command();
        let id = command.map(|it| it.command.clone()).unwrap_or_default();
        match key {
            LaneKey::Command => (Self::Command, id),
            LaneKey::Digest => (Self::Digest, id),
            LaneKey::Instance => {
                let instance = command
                    .and_then(|it| it.instance.clone())
                    .unwrap_or_default();
                (Self::Instance, format!("{id}/{instance}"))
            }
            LaneKey::Topic => (Self::Topic, event.topic.clone()),
            LaneKey::Own => (Self::Own, event.message_id.clone()),
        }
    }
}

/// A notice that a sink took.
#[derive(Clone, Debug)]
pub struct Copy {
    pub name: Name,
    pub marks: Marks,
    pub digest: Option<Digest>,
}

/// Leases of one process: its start, the number of the call, the lane.
type TakeKey = (u64, i64, i64);

/// A lane that was handed out.
#[derive(Clone, Debug)]
struct Take {
    route: String,
    sink: String,
    /// Its events, with their messages.
    events: BTreeMap<i64, String>,
}

#[derive(Default)]
pub struct Truth {
    turn: u64,
    /// Others may free what a process holds as soon as they do not hear of it.
    is_shared: bool,
    pub posts: Vec<Post>,
    /// Answers to posts that the driver has not heard yet: the number, if it was kept.
    pub answers: Vec<(usize, Option<i64>)>,
    /// The register of each start that leased.
    pub registers: BTreeMap<u64, Arc<Register>>,
    pub copies: Vec<Copy>,
    pub broken: Vec<String>,
    takes: BTreeMap<TakeKey, Take>,
    /// Handed out, at which boot time first.
    handed_out: BTreeMap<Name, Duration>,
    /// Of these something may have gone out: their lane's first byte was about to.
    begun: BTreeSet<(String, String)>,
    /// A process was killed: whatever it had been handed is marked.
    pub was_killed: bool,
    /// Takes of which nobody heard, by sink.
    unheard: Vec<(String, Duration)>,
    /// Recorded as sent, and the worker was told so, in which turn.
    recorded: BTreeMap<Name, u64>,
    /// In which turn each was handed out last.
    handed_out_last: BTreeMap<Name, u64>,
}

impl Truth {
    /// The messages that are to be posted, and whether several processes share the store.
    pub fn know(&mut self, posts: Vec<Post>, is_shared: bool) {
        self.posts = posts;
        self.is_shared = is_shared;
    }

    /// Notes that a message was answered with a yes, under this number; says what is wrong with it.
    pub fn acknowledged(&mut self, post: usize, id: i64) -> Option<String> {
        let post = &mut self.posts[post];
        let before = *post.id.get_or_insert(id);
        (before != id).then(|| format!("{} is kept as {before} and {id}", post.event.message_id))
    }

    pub fn all_acknowledged(&self) -> bool {
        self.posts.iter().all(|post| post.id.is_some())
    }

    /// Whether something of this delivery's lane may have gone out, by whatever sink.
    pub fn has_begun(&self, route: &str, message: &str) -> bool {
        self.begun.contains(&(route.to_owned(), message.to_owned()))
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// Notes an answer to a take, whether it reaches anybody or not.
    pub fn handed_out(&mut self, start: u64, now: Duration, leased: &Leased) {
        let turn = self.next_turn();
        for lane in &leased.lanes {
            let (call, id) = lane.lease.hold().key();
            self.registers
                .entry(start)
                .or_insert_with(|| lane.lease.hold().register());
            let each = lane.waiting.iter().filter_map(|it| {
                let message = it.event.as_ref()?.message_id.clone();
                Some((it.event_id.0, message))
            });
            let take = Take {
                route: lane.route.clone(),
                sink: lane.sink.clone(),
                events: each.collect(),
            };
            for message in take.events.values() {
                let name = (take.route.clone(), take.sink.clone(), message.clone());
                self.handed_out_last.insert(name.clone(), turn);
                self.handed_out.entry(name).or_insert(now);
            }
            self.takes.insert((start, call, id.0), take);
        }
    }

    /// Notes a take that is broken off: its rows may be there.
    pub fn unheard(&mut self, sink: &str, now: Duration) {
        self.unheard.push((sink.to_owned(), now));
    }

    /// Whether a lease of this delivery may have run out, or its process was killed, so that it is
    /// marked though nothing of it had begun.
    fn may_have_ended(&self, name: &Name, now: Duration) -> bool {
        let is_old = |at: Duration| at + NEARLY_A_LEASE <= now;
        self.was_killed
            || self.is_shared
            || self.handed_out.get(name).is_some_and(|at| is_old(*at))
            || self
                .unheard
                .iter()
                .any(|(sink, at)| *sink == name.1 && is_old(*at))
    }

    /// Notes that bytes of these are about to leave: of their lanes anything may have left.
    pub fn begins(&mut self, sink: &str, notices: &[Notice]) {
        for notice in notices {
            let (route, message) = (&notice.route, &notice.event.message_id);
            let of_take = |take: &&Take| {
                take.sink == sink
                    && take.route == *route
                    && take.events.values().any(|it| it == message)
            };
            let begun: Vec<_> = self
                .takes
                .values()
                .filter(of_take)
                .flat_map(|take| take.events.values())
                .map(|message| (route.clone(), message.clone()))
                .collect();
            self.begun.extend(begun);
        }
    }

    /// Notes a copy; says what is wrong with it at first sight.
    pub fn told(
        &mut self,
        sink: &str,
        notice: &Notice,
        marks: Marks,
        now: Duration,
    ) -> Option<String> {
        let message = notice.event.message_id.clone();
        let name = (notice.route.clone(), sink.to_owned(), message.clone());
        // In place of another sink: whatever that was told counts.
        let is_same = |it: &Name| {
            *it == name || (marks.instead_of.is_some() && it.0 == name.0 && it.2 == name.2)
        };
        let was_told = self.copies.iter().any(|copy| is_same(&copy.name));
        let is_marked = marks.possible_repeat || marks.resent;
        let has_reason = self.may_have_ended(&name, now)
            || marks.instead_of.is_some()
            || self.begun.contains(&(notice.route.clone(), message));
        // Somebody may have had it in hand, marked, when an older lease's holder recorded it.
        let is_over = self.recorded.get(&name).is_some_and(|recorded| {
            let taken = self.handed_out_last.get(&name).copied().unwrap_or_default();
            !marks.possible_repeat || taken > *recorded
        });
        let wrong = if is_over && !marks.resent {
            Some("told again after it was recorded")
        } else if was_told && !is_marked {
            Some("told again without a mark")
        } else if marks.possible_repeat && !has_reason {
            Some("marked as a possible repeat, though nothing of it had begun")
        } else {
            None
        };
        let wrong = wrong.map(|wrong| format!("{name:?} is {wrong}"));
        self.copies.push(Copy {
            name,
            marks,
            digest: notice.digest.clone(),
        });
        wrong
    }

    /// Notes settlements that the worker was told are recorded.
    pub fn recorded(&mut self, start: u64, settlements: &[Settlement]) {
        let turn = self.next_turn();
        for settlement in settlements {
            let (call, lane) = settlement.lease().hold().key();
            let Some(take) = self.takes.get(&(start, call, lane.0)) else {
                continue;
            };
            for settled in settlement.results() {
                if matches!(settled.ending, Ending::Sent { .. })
                    && let Some(message) = take.events.get(&settled.event.0)
                {
                    let name = (take.route.clone(), take.sink.clone(), message.clone());
                    self.recorded.entry(name).or_insert(turn);
                }
            }
        }
    }

    /// How many copies say that they may be repeats.
    pub fn repeats(&self) -> usize {
        self.copies
            .iter()
            .filter(|copy| copy.marks.possible_repeat)
            .count()
    }
}

/// A lease lasts for thirty seconds; a little less is enough for doubt.
const NEARLY_A_LEASE: Duration = Duration::from_secs(24);
