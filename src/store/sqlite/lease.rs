//! Handing out the prefix of each due lane that may go.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::read::raw_event;
use super::tables::{Tables, earliest_release};
use crate::delivery::SortKey;
use crate::event::Status;
use crate::store::Terms;
use crate::store::leased::{RawLane, RawLeased};
use crate::store::rules::columns::{RawEvent, length, nanos, rows};
use crate::store::rules::lease::{
    Batch, Bounds, Due, PASSED_OVER, RawWaiting, Room, SPARE_LANES, Taken,
};
use crate::store::rules::step::{KIND_DIGEST, terminal};
use crate::store::rules::time::latest_wait;

/// The columns of [`RawWaiting`], in order.
macro_rules! waiting_columns {
    () => {
        "sort_key, event, release_at, alone, tries, failing_since, resent, possible_repeat,
         progress, high_then, instead_of"
    };
}
pub(super) use waiting_columns;

/// A take, and who asks for it.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) holder: i64,
    pub(super) call: i64,
    pub(super) terms: Terms,
}

impl Tables<'_> {
    /// Leases due lanes of one sink, at most `limit` deliveries in all.
    pub(super) fn lease(
        &mut self,
        sink: &str,
        asked: Asked,
        now: Timestamp,
        limit: usize,
    ) -> rusqlite::Result<RawLeased> {
        let now = nanos(now);
        let sink = self.name(sink)?;
        let mut leased = RawLeased::default();
        let (backoff_until, failing_since) = self.backoff(sink)?;
        leased.failing_since = failing_since;
        // A moment further ahead than any wait is a fault, and holds nothing up.
        let latest = latest_wait(now, asked.terms.longest_wait);
        if let Some(until) = backoff_until.filter(|until| *until > now && *until <= latest) {
            leased.next_due = Some(until);
            return Ok(leased);
        }
        let mut room = Room::new(limit);
        let page = limit.saturating_add(SPARE_LANES);
        // Each pass gives every lane that it sees a later due time, so the next sees others: a lane
        // that yields nothing hides none.
        loop {
            for due in self.due_lanes(sink, now, page)? {
                if room.is_full() {
                    break;
                }
                if due.leased {
                    // Its holder did not end it in time; whatever it began may have arrived.
                    self.recover(due.lane, true)?;
                } else if let Some(lane) = self.take(due, sink, asked, now, &mut room)? {
                    leased.lanes.push(lane);
                }
            }
            leased.next_due = self.next_due(sink)?;
            if room.is_full() || leased.next_due.is_none_or(|due| due > now) {
                return Ok(leased);
            }
        }
    }

    /// Leases one lane, if anything of it may go.
    fn take(
        &mut self,
        due: Due,
        sink: i64,
        asked: Asked,
        now: i64,
        room: &mut Room,
    ) -> rusqlite::Result<Option<RawLane>> {
        let batch = if due.kind == KIND_DIGEST {
            self.batch(&due, sink, now, room)?
        } else {
            Batch::plain(self.prefix(&due, sink, now, room)?)
        };
        let Some(bounds) = Bounds::of(&batch.taken) else {
            let latest = latest_wait(now, asked.terms.longest_wait);
            self.pass_over(due.lane, now, latest)?;
            return Ok(None);
        };
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO lease (lane, epoch, holder, call, upto, upto_fed, alone_upto)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                due.lane,
                due.epoch + 1,
                asked.holder,
                asked.call,
                bounds.upto.as_ref().map(SortKey::as_bytes),
                due.fed,
                bounds.alone_upto
            ])?;
        self.connection
            .prepare_cached(
                "UPDATE lane SET leased = 1, epoch = epoch + 1, due_at = ?2 WHERE id = ?1",
            )?
            .execute([due.lane, now.saturating_add(length(asked.terms.lease_for))])?;
        Ok(Some(RawLane {
            route: self.text(due.route)?.as_ref().to_owned(),
            sink: self.text(sink)?.as_ref().to_owned(),
            sink_no: sink,
            due,
            batch,
        }))
    }

    /// Makes a lane due when the rows in it say, in SQL: a value computed elsewhere could lose an
    /// append of meanwhile. A leased lane stays due at its lease's end.
    pub(super) fn make_due(&self, lane: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(concat!(
                "UPDATE lane SET due_at = ",
                earliest_release!("lane.not_before"),
                " WHERE id = ?1 AND leased = 0"
            ))?
            .execute([lane])?;
        Ok(())
    }

    /// Gives a lane that had nothing to send a later due time.
    fn pass_over(&self, lane: i64, now: i64, latest: i64) -> rusqlite::Result<()> {
        for table in [
            "UPDATE waiting SET release_at = ?2 WHERE lane = ?1 AND alone = 0 AND release_at > ?2",
            "UPDATE waiting SET release_at = ?2 WHERE lane = ?1 AND alone = 1 AND release_at > ?2",
            "UPDATE lane SET not_before = ?2 WHERE id = ?1 AND not_before > ?2",
        ] {
            self.connection
                .prepare_cached(table)?
                .execute([lane, latest])?;
        }
        // The scalar max of SQLite is null where the lane is empty, as it must be.
        self.connection
            .prepare_cached(concat!(
                "UPDATE lane SET due_at = max(?2, ",
                earliest_release!("lane.not_before"),
                ") WHERE id = ?1"
            ))?
            .execute([lane, now + PASSED_OVER])?;
        Ok(())
    }

    /// Until when a sink backs off, and since when it has not had a success.
    fn backoff(&self, sink: i64) -> rusqlite::Result<(Option<i64>, Option<i64>)> {
        let found = self
            .connection
            .prepare_cached("SELECT backoff_until, failing_since FROM sink WHERE name = ?1")?
            .query_row([sink], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    fn next_due(&self, sink: i64) -> rusqlite::Result<Option<i64>> {
        self.connection
            .prepare_cached("SELECT min(due_at) FROM lane WHERE sink = ?1 AND due_at IS NOT NULL")?
            .query_row([sink], |row| row.get(0))
    }

    fn due_lanes(&self, sink: i64, now: i64, limit: usize) -> rusqlite::Result<Vec<Due>> {
        self.connection
            .prepare_cached(
                "SELECT id, kind, number, route, epoch, high, not_before, fed, leased FROM lane
                 WHERE sink = ?1 AND due_at <= ?2 ORDER BY due_at LIMIT ?3",
            )?
            .query_map(params![sink, now, rows(limit)], |row| {
                Ok(Due {
                    lane: row.get(0)?,
                    kind: row.get(1)?,
                    number: row.get(2)?,
                    route: row.get(3)?,
                    epoch: row.get(4)?,
                    high: row.get::<_, Option<Vec<u8>>>(5)?.map(SortKey::from_bytes),
                    not_before: row.get(6)?,
                    fed: row.get(7)?,
                    leased: row.get(8)?,
                })
            })?
            .collect()
    }

    /// The rows of a lane that may go. A row that goes alone neither waits for its turn nor brings
    /// others along; of the rest, everything goes up to a delivery whose release has come.
    fn prefix(
        &mut self,
        due: &Due,
        sink: i64,
        now: i64,
        room: &mut Room,
    ) -> rusqlite::Result<Taken> {
        let alone = self.alone(due, now, room)?;
        let mut taken = self.with_events(alone, due, sink, room)?;
        if due.not_before <= now && !room.is_full() {
            // No more are asked for their keys than may go, however many wait.
            let in_turn = self
                .connection
                .prepare_cached(concat!(
                    "SELECT ",
                    waiting_columns!(),
                    " FROM waiting
                     WHERE lane = ?1 AND alone = 0 AND sort_key <= (
                       SELECT max(sort_key) FROM (SELECT sort_key FROM waiting
                         WHERE lane = ?1 AND alone = 0 AND release_at <= ?2
                         ORDER BY release_at LIMIT ?3))
                     ORDER BY sort_key LIMIT ?3"
                ))?
                .query_map(params![due.lane, now, rows(room.deliveries)], raw_waiting)?
                .collect::<rusqlite::Result<_>>()?;
            taken.extend(self.with_events(in_turn, due, sink, room)?);
        }
        Ok(taken)
    }

    /// The rows of a lane that go by themselves, the longest released first.
    pub(super) fn alone(
        &self,
        due: &Due,
        now: i64,
        room: &Room,
    ) -> rusqlite::Result<Vec<RawWaiting>> {
        self.connection
            .prepare_cached(concat!(
                "SELECT ",
                waiting_columns!(),
                " FROM waiting
                 WHERE lane = ?1 AND alone = 1 AND release_at <= ?2 ORDER BY release_at LIMIT ?3"
            ))?
            .query_map(params![due.lane, now, rows(room.deliveries)], raw_waiting)?
            .collect()
    }

    /// Rows with their events, as many as there is room for, in their order.
    pub(super) fn with_events(
        &mut self,
        found: Vec<RawWaiting>,
        due: &Due,
        sink: i64,
        room: &mut Room,
    ) -> rusqlite::Result<Taken> {
        let mut taken = Vec::with_capacity(found.len());
        for row in found {
            if room.is_full() {
                break;
            }
            let (row, event) = self.with_event(row, due, sink)?;
            room.take(event.as_ref().map_or(0, RawEvent::bytes));
            taken.push((row, event));
        }
        Ok(taken)
    }

    /// A row with its event, and what is known of others that told the same.
    fn with_event(
        &mut self,
        mut row: RawWaiting,
        due: &Due,
        sink: i64,
    ) -> rusqlite::Result<(RawWaiting, Option<RawEvent>)> {
        if let Some(sink) = row.instead_of.0 {
            row.instead_of.1 = Some(self.text(sink)?.as_ref().to_owned());
        }
        let Some(mut event) = raw_event(self.connection, row.event)? else {
            return Ok((row, None));
        };
        if let Some(first) = event.repeat_of
            && !self.is_told(first, due, sink)?
        {
            // The first notification of this step went elsewhere: here it is news.
            event.repeat_of = None;
        }
        if row.is_below(due.high.as_ref()) {
            row.terminal_sent = self.is_ended(&event, due.route, sink)?;
        }
        if let Some(command_no) = event.command_no {
            let thread = self.thread(sink, due.route, command_no)?;
            row.thread = thread.map(|(message, _)| message);
        }
        Ok((row, Some(event)))
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
            .prepare_cached(concat!(
                "SELECT EXISTS (
                   SELECT 1 FROM step JOIN outcome ON outcome.event = step.event
                   WHERE step.command_no = ?1 AND step.instance = ?2 AND step.status IN ",
                terminal!(),
                " AND outcome.route = ?3 AND outcome.sink = ?4 AND outcome.result = 'sent')"
            ))?
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
        release_at: row.get(2)?,
        alone: row.get(3)?,
        tries: row.get(4)?,
        failing_since: row.get(5)?,
        resent: row.get(6)?,
        possible_repeat: row.get(7)?,
        progress: row.get(8)?,
        high_then: row.get::<_, Option<Vec<u8>>>(9)?.map(SortKey::from_bytes),
        terminal_sent: false,
        thread: None,
        instead_of: (row.get(10)?, None),
    })
}
