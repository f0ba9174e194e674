//! A take that came back from an engine: its lanes are entered in the register, and its events read.

use super::register::{Hold, Take};
use super::rules::columns::RawEvent;
use super::rules::lease::{Batch, Due, RawWaiting};
use super::{EventId, Lane, LaneId, Lease, Leased, Waiting};
use crate::delivery::from_nanos;

/// The findings of a take, with the messages still to be parsed.
#[derive(Default)]
pub(super) struct RawLeased {
    pub(super) lanes: Vec<RawLane>,
    pub(super) next_due: Option<i64>,
    pub(super) failing_since: Option<i64>,
}

/// A lane that was leased.
pub(super) struct RawLane {
    pub(super) due: Due,
    pub(super) route: String,
    pub(super) sink: String,
    pub(super) sink_no: i64,
    pub(super) batch: Batch,
}

impl RawLane {
    /// The number of the lease: the lane's own was raised by it.
    const fn epoch(&self) -> i64 {
        self.due.epoch + 1
    }
}

impl RawLeased {
    /// Enters the lanes in the register, and reads the events.
    pub(super) fn read(self, take: Take) -> Leased {
        let lanes: Vec<_> = self
            .lanes
            .iter()
            .map(|it| (LaneId(it.due.lane), it.epoch()))
            .collect();
        let holds = take.answered(&lanes);
        Leased {
            lanes: self
                .lanes
                .into_iter()
                .zip(holds)
                .map(|(lane, hold)| lane.read(hold))
                .collect(),
            next_due: self.next_due.map(from_nanos),
            failing_since: self.failing_since.map(from_nanos),
        }
    }
}

impl RawLane {
    fn read(self, hold: Hold) -> Lane {
        let lease = Lease {
            lane: LaneId(self.due.lane),
            epoch: self.epoch(),
            route: self.due.route,
            sink: self.sink_no,
            fed: self.due.fed,
            batch: self.batch.digest.is_some(),
            troubles: self.batch.troubles,
            hold,
        };
        let waiting = self
            .batch
            .taken
            .into_iter()
            .map(|(row, event)| read(row, event));
        let mut digest = self.batch.digest;
        if let (Some(digest), Some(summary)) = (&mut digest, self.batch.summary) {
            let event = summary.read().event;
            digest.count_unheard(event.command().map_or(0, |it| it.instances.len()));
        }
        Lane {
            lease,
            route: self.route,
            sink: self.sink,
            high: self.due.high,
            waiting: waiting.collect(),
            digest,
        }
    }
}

fn read(row: RawWaiting, event: Option<RawEvent>) -> Waiting {
    let stored = event.map(RawEvent::read);
    let known = stored.as_ref();
    Waiting {
        event_id: EventId(row.event),
        received_at: known.map_or_else(|| row.key.time(), |it| it.received_at),
        repeat_of: known.and_then(|it| it.repeat_of),
        conflict: known.is_some_and(|it| it.conflict),
        event: stored.map(|it| it.event),
        key: row.key,
        terminal_sent: row.terminal_sent,
        alone: row.alone,
        resent: row.resent,
        possible_repeat: row.possible_repeat,
        high_then: row.high_then,
        tries: row.tries,
        failing_since: row.failing_since.map(from_nanos),
        progress: row.progress,
        thread: row.thread,
        instead_of: row.instead_of.1,
    }
}
