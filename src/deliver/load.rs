//! The load of one round: deliveries that were decided and rendered, and what becomes of them.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use crate::delivery::{Marks, SortKey};
use crate::event::Status;
use crate::order::{self, Candidate, Decision};
use crate::render::{self, Notice};
use crate::retry::{History, Patience};
use crate::route::Routes;
use crate::store::{Ending, EventId, Lane, Lease, Settled, Settlement, Waiting};

/// The answer of a delivery whose event cannot be told.
const NO_EVENT: &str = "the event's row is missing from the store or cannot be read: \
    there is nothing to be told";

/// The load of one round: lanes, and the deliveries that are still to be sent, in order.
#[derive(Default)]
pub(super) struct Load {
    lanes: Vec<Carried>,
    going: VecDeque<(Going, Notice)>,
}

/// One lane of a load.
struct Carried {
    lease: Lease,
    results: Vec<Settled>,
    /// Its head failed; nothing more of the lane goes in this round.
    is_blocked: bool,
    /// When the head that failed is tried again.
    not_before: Option<Timestamp>,
    /// It may be somebody else's by now.
    is_lost: bool,
}

/// A delivery on its way.
pub(super) struct Going {
    /// Index of its lane.
    lane: usize,
    pub(super) event: EventId,
    pub(super) key: SortKey,
    pub(super) history: History,
    pub(super) patience: Patience,
    /// It is in nobody's way, and nobody in its.
    pub(super) alone: bool,
}

impl Load {
    /// Decides about everything that was leased, and renders what goes; `now` is wall time.
    pub(super) fn decide(
        lanes: Vec<Lane>,
        routes: &Routes,
        patience: Patience,
        now: Timestamp,
    ) -> Self {
        let mut load = Self::default();
        for (at, lane) in lanes.into_iter().enumerate() {
            let route = routes.route(&lane.route);
            let block_for = route.and_then(|route| route.block_for);
            let patience = Patience {
                block_for: block_for.or(patience.block_for),
                ..patience
            };
            // A route that is gone has no settings: better told twice than not at all.
            let send_redundant = route.is_none_or(|route| route.send_redundant);
            let mut results = Vec::new();
            for waiting in lane.waiting {
                let Some(event) = waiting.event.clone() else {
                    results.push(Settled {
                        answer: Some(NO_EVENT.to_owned()),
                        ..Settled::new(waiting.event_id, waiting.key, Ending::Dead, now)
                    });
                    continue;
                };
                let high = waiting.high(lane.high.as_ref());
                let decision = order::decide(&candidate(&waiting), high, send_redundant);
                let marks = match (&lane.digest, decision) {
                    // A digest is always sent, even if its last event is redundant, and is never
                    // late or a repeat: it tells of all.
                    (Some(_), Decision::Go(marks) | Decision::Redundant(marks)) => Marks {
                        late: None,
                        repeat: false,
                        ..marks
                    },
                    (None, Decision::Go(marks)) => marks,
                    (None, Decision::Redundant(marks)) => {
                        results.push(Settled {
                            marks,
                            ..Settled::new(waiting.event_id, waiting.key, Ending::Redundant, now)
                        });
                        continue;
                    }
                };
                let marks = Marks {
                    instead_of: waiting.instead_of,
                    ..marks
                };
                let (route, sink) = (&lane.route, &lane.sink);
                let mut notice = render::notice(route, sink, event, waiting.received_at, marks);
                notice.progress = waiting.progress;
                notice.thread = waiting.thread;
                notice.digest.clone_from(&lane.digest);
                let going = Going {
                    lane: at,
                    event: waiting.event_id,
                    key: waiting.key,
                    history: History {
                        tries: waiting.tries,
                        failing_since: waiting.failing_since,
                    },
                    patience,
                    alone: waiting.alone,
                };
                load.going.push_back((going, notice));
            }
            load.lanes.push(Carried {
                lease: lane.lease,
                results,
                is_blocked: false,
                not_before: None,
                is_lost: false,
            });
        }
        load
    }

    /// Takes up to `most` of the deliveries still to be sent, of lanes whose head has not failed.
    pub(super) fn next(&mut self, most: usize) -> (Vec<Going>, Vec<Notice>) {
        let mut batch = Vec::new();
        while batch.len() < most
            && let Some(next) = self.going.pop_front()
        {
            if !self.is_blocked(&next.0) {
                batch.push(next);
            }
        }
        batch.into_iter().unzip()
    }

    /// The question whether all lanes of a batch are still ours.
    pub(super) fn permission(&self, batch: &[Going]) -> impl Fn() -> bool + Send + Sync + use<> {
        let leases: Vec<_> = self.leases(batch).collect();
        Lease::permission(&leases)
    }

    /// Says that the sink waits for so long before it sends a batch.
    pub(super) fn works_for(&self, batch: &[Going], time: Duration) {
        self.leases(batch).for_each(|lease| lease.works_for(time));
    }

    fn leases(&self, batch: &[Going]) -> impl Iterator<Item = &Lease> {
        // The deliveries of a lane stand together, so each lane is asked for once.
        let mut lanes: Vec<usize> = batch.iter().map(|going| going.lane).collect();
        lanes.dedup();
        let lanes = lanes.into_iter();
        lanes.filter_map(|lane| self.lanes.get(lane).map(|lane| &lane.lease))
    }

    pub(super) fn is_blocked(&self, going: &Going) -> bool {
        let lane = self.lanes.get(going.lane);
        lane.is_some_and(|lane| lane.is_blocked || lane.is_lost)
    }

    /// Takes down what became of a delivery. One that is to be tried again, at `again_at`, blocks its
    /// lane.
    pub(super) fn record(&mut self, going: &Going, settled: Settled, again_at: Option<Timestamp>) {
        let Some(lane) = self.lanes.get_mut(going.lane) else {
            return;
        };
        if matches!(settled.ending, Ending::Retry(_)) && !lane.is_blocked {
            (lane.is_blocked, lane.not_before) = (true, again_at);
        }
        lane.results.push(settled);
    }

    /// Gives up the lane of a delivery that was held back.
    pub(super) fn lose(&mut self, going: &Going) {
        if let Some(lane) = self.lanes.get_mut(going.lane) {
            lane.is_lost = true;
        }
    }

    /// Gives up the lanes of all that was not sent yet.
    pub(super) fn lose_the_rest(&mut self) {
        for (going, _) in std::mem::take(&mut self.going) {
            self.lose(&going);
        }
    }

    /// Ends the leases with what became of their deliveries; `now` is logical time. A lane that was
    /// lost before anything of it was decided is given back as it is.
    pub(super) fn settle(self, now: Timestamp) -> Vec<Settlement> {
        let lanes = self.lanes.into_iter();
        lanes
            .filter(|lane| !lane.is_lost || !lane.results.is_empty())
            .map(|lane| lane.lease.settle(lane.results, now, lane.not_before))
            .collect()
    }
}

fn candidate(waiting: &Waiting) -> Candidate<'_> {
    let command = waiting.event.as_ref().and_then(|event| event.command());
    let status = command.map(|command| &command.status);
    Candidate {
        key: &waiting.key,
        repeat: waiting.repeat_of.is_some(),
        ended: waiting.terminal_sent,
        in_progress: status == Some(&Status::InProgress),
        conflict: waiting.conflict,
        resent: waiting.resent,
        possible_repeat: waiting.possible_repeat,
    }
}
