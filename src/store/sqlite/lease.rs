//! Handing out the prefix of each due lane that may go.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::read::raw_event;
use super::tables::{Tables, earliest_release};
use crate::delivery::SortKey;
use crate::event::Status;
use crate::store::rows::{
    Batch, KIND_DIGEST, RawEvent, RawLane, RawLeased, RawWaiting, Room, SLACK, Taken, nanos, rows,
};
use crate::store::{Lane, LaneId};

pub(super) struct Due {
    pub(super) lane: i64,
    kind: i64,
    pub(super) number: i64,
    pub(super) batch_upto: Option<Vec<u8>>,
    pub(super) route: i64,
    epoch: i64,
    high: Option<SortKey>,
    pub(super) not_before: i64,
}

impl Tables<'_> {
    /// Leases due lanes of one sink, at most `limit` deliveries in all.
    pub(super) fn lease(
        &mut self,
        sink: &str,
        now: Timestamp,
        limit: usize,
    ) -> rusqlite::Result<RawLeased> {
        self.notice_clock_set_back(nanos(now))?;
        let sink = self.name(sink)?;
        let mut leased = RawLeased::default();
        let (rests_until, in_trouble_since) = self.trouble(sink)?;
        leased.in_trouble_since = in_trouble_since;
        if let Some(until) = rests_until
            && until > nanos(now)
        {
            leased.next_due = Some(until);
            return Ok(leased);
        }
        let mut room = Room::new(limit);
        for due in self.due_lanes(sink, nanos(now), limit)? {
            let Batch {
                waiting,
                digest,
                summary,
            } = if due.kind == KIND_DIGEST {
                self.batch(&due, sink, nanos(now), &mut room)?
            } else {
                Batch::plain(self.prefix(&due, sink, nanos(now), &mut room)?)
            };
            let Some((last, _)) = waiting.last() else {
                // It was due too early; say when it really is.
                self.make_due(due.lane)?;
                continue;
            };
            self.connection
                .prepare_cached(
                    "UPDATE lane SET leased = 1, epoch = epoch + 1, due_at = NULL, leased_upto = ?2,
                       batch_upto = CASE WHEN ?3 THEN ?2 ELSE batch_upto END,
                       leased_at_event = (SELECT max(id) FROM event) WHERE id = ?1",
                )?
                .execute(params![due.lane, last.key.as_bytes(), digest.is_some()])?;
            leased.lanes.push(RawLane {
                lane: Lane {
                    id: LaneId(due.lane),
                    route: self.text(due.route)?.as_ref().to_owned(),
                    sink: self.text(sink)?.as_ref().to_owned(),
                    epoch: due.epoch + 1,
                    high: due.high,
                    waiting: Vec::new(),
                    digest,
                },
                waiting,
                summary,
            });
            if room.is_full() {
                break;
            }
        }
        leased.next_due = self
            .connection
            .prepare_cached("SELECT min(due_at) FROM lane WHERE sink = ?1 AND due_at IS NOT NULL")?
            .query_row([sink], |row| row.get(0))?;
        Ok(leased)
    }

    /// Makes a lane due when what waits in it says, in SQL: a value computed elsewhere could lose
    /// what was appended meanwhile.
    pub(super) fn make_due(&self, lane: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(concat!(
                "UPDATE lane SET due_at = ",
                earliest_release!("lane.not_before"),
                " WHERE id = ?1"
            ))?
            .execute([lane])?;
        Ok(())
    }

    /// Until when a sink rests, and since when it has not had a success.
    fn trouble(&self, sink: i64) -> rusqlite::Result<(Option<i64>, Option<i64>)> {
        let found = self
            .connection
            .prepare_cached("SELECT paused_until, trouble_since FROM sink WHERE name = ?1")?
            .query_row([sink], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    fn due_lanes(&self, sink: i64, now: i64, limit: usize) -> rusqlite::Result<Vec<Due>> {
        self.connection
            .prepare_cached(
                "SELECT id, route, epoch, high, not_before, kind, number, batch_upto FROM lane
                 WHERE sink = ?1 AND due_at <= ?2 ORDER BY due_at LIMIT ?3",
            )?
            .query_map(params![sink, now, rows(limit)], |row| {
                Ok(Due {
                    lane: row.get(0)?,
                    route: row.get(1)?,
                    epoch: row.get(2)?,
                    high: row.get::<_, Option<Vec<u8>>>(3)?.map(SortKey::from_bytes),
                    not_before: row.get(4)?,
                    kind: row.get(5)?,
                    number: row.get(6)?,
                    batch_upto: row.get(7)?,
                })
            })?
            .collect()
    }

    /// What of a lane may go. What goes alone neither waits for its turn nor brings others along;
    /// of the rest, everything goes up to a delivery whose release has come.
    fn prefix(
        &mut self,
        due: &Due,
        sink: i64,
        now: i64,
        room: &mut Room,
    ) -> rusqlite::Result<Taken> {
        let mut found = self.alone(due, now, room)?;
        if due.not_before <= now {
            let in_turn = rows(room.deliveries.saturating_sub(found.len()));
            // No more are asked for their keys than may go, however many wait.
            let mut statement = self.connection.prepare_cached(
                "SELECT sort_key, event, alone, tries, failing_since, resent, possible_repeat,
                   progress, high_then, instead_of FROM waiting
                 WHERE lane = ?1 AND alone = 0 AND sort_key <= (
                   SELECT max(sort_key) FROM (SELECT sort_key FROM waiting
                     WHERE lane = ?1 AND alone = 0 AND release_at <= ?2
                     ORDER BY release_at LIMIT ?3))
                 ORDER BY sort_key LIMIT ?3",
            )?;
            for row in statement.query_map(params![due.lane, now, in_turn], raw_waiting)? {
                found.push(row?);
            }
            found.sort_by(|one, other| one.key.cmp(&other.key));
        }
        self.take(found, due, sink, room)
    }

    /// What of a lane goes by itself.
    pub(super) fn alone(
        &self,
        due: &Due,
        now: i64,
        room: &Room,
    ) -> rusqlite::Result<Vec<RawWaiting>> {
        self.connection
            .prepare_cached(
                "SELECT sort_key, event, alone, tries, failing_since, resent, possible_repeat,
                   progress, high_then, instead_of FROM waiting
                 WHERE lane = ?1 AND alone = 1 AND release_at <= ?2 ORDER BY release_at LIMIT ?3",
            )?
            .query_map(params![due.lane, now, rows(room.deliveries)], raw_waiting)?
            .collect()
    }

    /// Deliveries with their events, as many as there is room for.
    pub(super) fn take(
        &mut self,
        found: Vec<RawWaiting>,
        due: &Due,
        sink: i64,
        room: &mut Room,
    ) -> rusqlite::Result<Taken> {
        let mut taken = Vec::with_capacity(found.len());
        for row in found {
            if room.bytes == 0 {
                break;
            }
            let (row, event) = self.with_event(row, due, sink)?;
            room.take(event.bytes());
            taken.push((row, event));
        }
        Ok(taken)
    }

    /// A delivery with its event, and what is known of others that told the same.
    fn with_event(
        &mut self,
        mut row: RawWaiting,
        due: &Due,
        sink: i64,
    ) -> rusqlite::Result<(RawWaiting, RawEvent)> {
        let mut event = raw_event(self.connection, row.event)?;
        if let Some(first) = event.repeat_of
            && !self.is_told(first, due, sink)?
        {
            // The first notification of this step went elsewhere: here it is news.
            event.repeat_of = None;
        }
        let high = if row.possible_repeat {
            &row.high_then
        } else {
            &due.high
        };
        if high.as_ref().is_some_and(|high| row.key < *high) {
            row.terminal_sent = self.is_ended(&event, due.route, sink)?;
        }
        if let Some(command_no) = event.command_no {
            let thread = self.thread(sink, due.route, command_no)?;
            row.thread = thread.map(|(message, _)| message);
        }
        if let Some(sink) = row.instead_of.0 {
            row.instead_of.1 = Some(self.text(sink)?.as_ref().to_owned());
        }
        Ok((row, event))
    }

    /// When the clock was set back, moves what was written by it along: else everything would wait
    /// until it comes round again.
    fn notice_clock_set_back(&mut self, now: i64) -> rusqlite::Result<()> {
        let back = self.known.latest.saturating_sub(now);
        if back > SLACK {
            tracing::warn!(seconds = back / 1_000_000_000, "the clock was set back");
            for table in [
                "UPDATE waiting SET release_at = release_at - ?1",
                "UPDATE lane SET not_before = not_before - ?1, due_at = due_at - ?1",
                "UPDATE sink SET paused_until = paused_until - ?1, trouble_since = trouble_since - ?1",
            ] {
                self.connection.prepare_cached(table)?.execute([back])?;
            }
        } else if back > 0 {
            return Ok(());
        }
        self.known.latest = now;
        Ok(())
    }

    /// Whether an event was brought to this sink by this route, or is going to be in this lane.
    fn is_told(&self, event: i64, due: &Due, sink: i64) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM outcome
                     WHERE event = ?1 AND route = ?2 AND sink = ?3 AND result = 'sent')
                   OR EXISTS (SELECT 1 FROM waiting WHERE lane = ?4 AND event = ?1)",
            )?
            .query_row(params![event, due.route, sink, due.lane], |row| row.get(0))
    }

    /// Whether the terminal status of the thing that `event` says to be in progress was sent.
    fn is_ended(&self, event: &RawEvent, route: i64, sink: i64) -> rusqlite::Result<bool> {
        if event.status.as_deref() != Some(Status::InProgress.as_str()) {
            return Ok(false);
        }
        self.connection
            .prepare_cached(
                "SELECT EXISTS (
                   SELECT 1 FROM step JOIN outcome ON outcome.event = step.event
                   WHERE step.command_no = ?1 AND step.instance = ?2
                     AND step.status IN ('Success', 'Failed', 'TimedOut', 'Cancelled')
                     AND outcome.route = ?3 AND outcome.sink = ?4 AND outcome.result = 'sent')",
            )?
            .query_row(
                params![event.command_no, event.instance, route, sink],
                |row| row.get(0),
            )
    }
}

pub(super) fn raw_waiting(row: &rusqlite::Row<'_>) -> rusqlite::Result<RawWaiting> {
    Ok(RawWaiting {
        key: SortKey::from_bytes(row.get(0)?),
        event: row.get(1)?,
        alone: row.get(2)?,
        tries: row.get(3)?,
        failing_since: row.get(4)?,
        resent: row.get(5)?,
        possible_repeat: row.get(6)?,
        progress: row.get(7)?,
        high_then: row.get::<_, Option<Vec<u8>>>(8)?.map(SortKey::from_bytes),
        terminal_sent: false,
        thread: None,
        instead_of: (row.get(9)?, None),
    })
}
