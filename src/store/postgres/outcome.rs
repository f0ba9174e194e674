//! Lines of history, and the messages that later notices refer to.

use tokio_postgres::Error;

use super::lanes::LaneRow;
use super::tables::{Tables, each, span};
use crate::delivery::Outcome;
use crate::store::rules::columns::{late_nanos, mark_bits, nanos, took_nanos};
use crate::store::{Ending, Lease, Settled};

/// One result that counts, with its lane.
#[derive(Clone, Copy)]
pub(super) struct One<'a> {
    pub(super) lane: &'a LaneRow,
    pub(super) lease: &'a Lease,
    pub(super) settled: &'a Settled,
}

impl<'a> One<'a> {
    /// What names it in `waiting`.
    pub(super) fn key(&self) -> Key<'a> {
        (self.lane.id, self.settled.key.as_bytes())
    }
}

/// A lane, and a place in it.
pub(super) type Key<'a> = (i64, &'a [u8]);

/// One line of a delivery's history.
pub(super) struct Line<'a> {
    pub(super) event: i64,
    pub(super) route: i64,
    pub(super) sink: i64,
    pub(super) outcome: Outcome,
    /// When, with which marks and answer.
    pub(super) settled: &'a Settled,
}

impl<'a> Line<'a> {
    /// The line of a result, in its lane.
    pub(super) fn of(lane: &LaneRow, settled: &'a Settled) -> Self {
        Self {
            event: settled.event.0,
            route: lane.route,
            sink: lane.sink,
            outcome: settled.ending.outcome(),
            settled,
        }
    }
}

impl Tables<'_, '_> {
    pub(super) async fn write_lines(&self, lines: &[Line<'_>]) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        self.execute(
            "INSERT INTO outcome (event, route, sink, at, result, marks, late, answer, took)
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[],
               $5::text[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bigint[])",
            &[
                &each(lines, |it| it.event),
                &each(lines, |it| it.route),
                &each(lines, |it| it.sink),
                &each(lines, |it| nanos(it.settled.at)),
                &each(lines, |it| it.outcome.word()),
                &each(lines, |it| mark_bits(&it.settled.marks)),
                &each(lines, |it| late_nanos(it.settled)),
                &each(lines, |it| it.settled.answer.as_deref().map(str::as_bytes)),
                &each(lines, |it| took_nanos(it.settled)),
            ],
        )
        .await?;
        Ok(())
    }

    /// Remembers the messages to which later notices of a command refer, with how many troubles of it
    /// were told. Of several of one command the last counts: a statement may put a row once.
    pub(super) async fn keep_threads(&self, ended: &[One<'_>]) -> Result<(), Error> {
        let threads: Vec<_> = ended
            .iter()
            .filter_map(|one| match &one.settled.ending {
                Ending::Sent {
                    message: Some(message),
                } => Some((one, message)),
                _ => None,
            })
            .collect();
        if threads.is_empty() {
            return Ok(());
        }
        let events = each(&threads, |(one, _)| one.settled.event.0);
        let days = span(&events);
        self.execute(
            "INSERT INTO thread (command_no, sink, route, message, told)
             SELECT DISTINCT ON (command_no, sink, route) command_no, sink, route, message, told
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[])
               WITH ORDINALITY AS it (event, sink, route, message, told, place)
             JOIN event ON event.id = it.event AND sns_time >= $6 AND sns_time < $7
             WHERE command_no IS NOT NULL
             ORDER BY command_no, sink, route, place DESC
             ON CONFLICT (command_no, sink, route) DO UPDATE SET message = excluded.message,
               told = GREATEST(thread.told, excluded.told)",
            &[
                &events,
                &each(&threads, |(one, _)| one.lane.sink),
                &each(&threads, |(one, _)| one.lane.route),
                &each(&threads, |(_, message)| message.as_bytes()),
                &each(&threads, |(one, _)| one.lease.troubles),
                &days.0,
                &days.1,
            ],
        )
        .await?;
        Ok(())
    }
}
