//! What one round carries: deliveries that were decided and rendered, and what becomes of them.

use std::collections::{HashSet, VecDeque};

use jiff::Timestamp;

use crate::delivery::{Marks, Outcome, SortKey};
use crate::event::Status;
use crate::order::{self, Candidate, Decision};
use crate::render::{self, Notice};
use crate::retry::{History, Patience};
use crate::route::Routes;
use crate::store::{EventId, Lane, Settled, Settlement, Waiting};

/// What one round carries: settlements by lane, and what is still to be sent, in order.
#[derive(Default)]
pub(super) struct Load {
    pub(super) settlements: Vec<Settlement>,
    going: VecDeque<(Going, Notice)>,
    /// Lanes whose head failed.
    blocked: HashSet<usize>,
}

/// A delivery on its way.
pub(super) struct Going {
    /// Index of its lane's settlement.
    lane: usize,
    pub(super) event: EventId,
    pub(super) key: SortKey,
    pub(super) history: History,
    pub(super) patience: Patience,
    /// It is in nobody's way, and nobody in its.
    pub(super) alone: bool,
}

impl Load {
    /// Decides about everything that was leased, and renders what goes.
    pub(super) fn decide(
        lanes: Vec<Lane>,
        routes: &Routes,
        patience: Patience,
        now: Timestamp,
    ) -> Self {
        let mut load = Self::default();
        for (at, lane) in lanes.into_iter().enumerate() {
            let route = routes.route(&lane.route);
            let mut patience = patience;
            if let Some(block_for) = route.and_then(|route| route.block_for) {
                patience.block_for = Some(block_for);
            }
            // Of a route that is gone nobody knows: better told twice than not at all.
            let send_redundant = route.is_none_or(|route| route.send_redundant);
            let mut results = Vec::new();
            for waiting in lane.waiting {
                // What may have gone already went in the order of that time.
                let high = if waiting.possible_repeat {
                    waiting.high_then.as_ref()
                } else {
                    lane.high.as_ref()
                };
                let decision = order::decide(&candidate(&waiting), high, send_redundant);
                let decision = match (&lane.digest, decision) {
                    // What stands for others goes whatever it says itself, and no time is its own.
                    (Some(_), Decision::Go(marks) | Decision::Redundant(marks)) => {
                        Decision::Go(Marks {
                            late: None,
                            repeat: false,
                            ..marks
                        })
                    }
                    (None, decision) => decision,
                };
                match decision {
                    Decision::Redundant(marks) => results.push(Settled {
                        marks,
                        ..Settled::new(waiting.event_id, waiting.key, Outcome::Redundant, now)
                    }),
                    Decision::Go(mut marks) => {
                        marks.instead_of = waiting.instead_of;
                        let mut notice = render::notice(
                            &lane.route,
                            &lane.sink,
                            waiting.event,
                            waiting.received_at,
                            marks,
                        );
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
                }
            }
            load.settlements.push(Settlement {
                lane: lane.id,
                epoch: lane.epoch,
                results,
                not_before: None,
            });
        }
        load
    }

    /// Takes up to `most` of what is still to be sent, of lanes whose head has not failed.
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

    pub(super) fn is_blocked(&self, going: &Going) -> bool {
        self.blocked.contains(&going.lane)
    }

    /// Takes down what became of a delivery; one that has to be tried again blocks its lane.
    pub(super) fn record(&mut self, going: &Going, settled: Settled) {
        let Some(settlement) = self.settlements.get_mut(going.lane) else {
            return;
        };
        if settled.outcome == Outcome::Retry && self.blocked.insert(going.lane) {
            settlement.not_before = settled.again_at;
        }
        settlement.results.push(settled);
    }
}

fn candidate(waiting: &Waiting) -> Candidate<'_> {
    let status = waiting.event.command().map(|command| &command.status);
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
