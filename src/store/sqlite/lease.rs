//! Handing out the prefix of each due lane that may go.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::append::KIND_DIGEST;
use super::read::{RawEvent, raw_event};
use super::tables::{Tables, earliest_release, nanos};
use crate::delivery::{Digest, SortKey, from_nanos};
use crate::event::Status;
use crate::store::{Lane, LaneId, Leased, Waiting};

/// How many bytes of messages a lease takes at most, beyond the first.
const LARGEST: usize = 4 << 20;

/// How many instances that did not end well a digest names at most.
const MOST_TROUBLED: i64 = 100;

/// How far the clock may go back before it counts as set back.
const SLACK: i64 = 1_000_000_000;

/// What a lease found, with the messages still to be parsed: that is not the writer's work.
#[derive(Default)]
pub(super) struct RawLeased {
    lanes: Vec<RawLane>,
    next_due: Option<i64>,
}

struct RawLane {
    lane: Lane,
    waiting: Taken,
}

struct RawWaiting {
    key: SortKey,
    event: i64,
    alone: bool,
    tries: u32,
    failing_since: Option<i64>,
    resent: bool,
    possible_repeat: bool,
    high_then: Option<SortKey>,
    progress: Option<String>,
    terminal_sent: bool,
}

/// Deliveries with their events.
type Taken = Vec<(RawWaiting, RawEvent)>;

struct Due {
    lane: i64,
    kind: i64,
    number: i64,
    batch_upto: Option<Vec<u8>>,
    route: i64,
    epoch: i64,
    high: Option<SortKey>,
    not_before: i64,
}

/// How much more a lease may take.
struct Room {
    deliveries: usize,
    bytes: usize,
}

impl RawLeased {
    /// Reads the events.
    pub(super) fn read(self) -> Leased {
        let lanes = self.lanes.into_iter().map(RawLane::read).collect();
        Leased {
            lanes,
            next_due: self.next_due.map(from_nanos),
        }
    }
}

impl RawLane {
    fn read(self) -> Lane {
        let waiting = self.waiting.into_iter().map(|(raw, event)| {
            let stored = event.read();
            Waiting {
                event_id: stored.id,
                event: stored.event,
                received_at: stored.received_at,
                key: raw.key,
                repeat_of: stored.repeat_of,
                conflict: stored.conflict,
                terminal_sent: raw.terminal_sent,
                alone: raw.alone,
                resent: raw.resent,
                possible_repeat: raw.possible_repeat,
                high_then: raw.high_then,
                tries: raw.tries,
                failing_since: raw.failing_since.map(from_nanos),
                progress: raw.progress,
            }
        });
        Lane {
            waiting: waiting.collect(),
            ..self.lane
        }
    }
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
        if let Some(until) = self.rests_until(sink)?
            && until > nanos(now)
        {
            leased.next_due = Some(until);
            return Ok(leased);
        }
        let mut room = Room {
            deliveries: limit,
            bytes: LARGEST,
        };
        for due in self.due_lanes(sink, nanos(now), limit)? {
            let (waiting, digest) = if due.kind == KIND_DIGEST {
                self.batch(&due, sink, nanos(now), &mut room)?
            } else {
                (self.prefix(&due, sink, nanos(now), &mut room)?, None)
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
            });
            if room.deliveries == 0 || room.bytes == 0 {
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

    fn rests_until(&self, sink: i64) -> rusqlite::Result<Option<i64>> {
        let found = self
            .connection
            .prepare_cached("SELECT paused_until FROM sink WHERE name = ?1")?
            .query_row([sink], |row| row.get(0))
            .optional()?;
        Ok(found.flatten())
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
    fn prefix(&self, due: &Due, sink: i64, now: i64, room: &mut Room) -> rusqlite::Result<Taken> {
        let mut found = self.alone(due, now, room)?;
        if due.not_before <= now {
            let in_turn = rows(room.deliveries.saturating_sub(found.len()));
            // No more are asked for their keys than may go, however many wait.
            let mut statement = self.connection.prepare_cached(
                "SELECT sort_key, event, alone, tries, failing_since, resent, possible_repeat,
                   progress, high_then FROM waiting
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
    fn alone(&self, due: &Due, now: i64, room: &Room) -> rusqlite::Result<Vec<RawWaiting>> {
        self.connection
            .prepare_cached(
                "SELECT sort_key, event, alone, tries, failing_since, resent, possible_repeat,
                   progress, high_then FROM waiting
                 WHERE lane = ?1 AND alone = 1 AND release_at <= ?2 ORDER BY release_at LIMIT ?3",
            )?
            .query_map(params![due.lane, now, rows(room.deliveries)], raw_waiting)?
            .collect()
    }

    /// The batch of a digest, by its last delivery, which stands for all before it. A batch that was
    /// tried before stays what it was.
    fn batch(
        &self,
        due: &Due,
        sink: i64,
        now: i64,
        room: &mut Room,
    ) -> rusqlite::Result<(Taken, Option<Digest>)> {
        let alone = self.alone(due, now, room)?;
        if !alone.is_empty() || due.not_before > now {
            return Ok((self.take(alone, due, sink, room)?, None));
        }
        let last = self
            .connection
            .prepare_cached(
                "SELECT sort_key, event, alone, tries, failing_since, resent, possible_repeat,
                   progress, high_then FROM waiting
                 WHERE lane = ?1 AND alone = 0 AND sort_key <= coalesce(?3, (
                   SELECT max(sort_key) FROM waiting
                   WHERE lane = ?1 AND alone = 0 AND release_at <= ?2))
                 ORDER BY sort_key DESC LIMIT 1",
            )?
            .query_row(params![due.lane, now, due.batch_upto], raw_waiting)
            .optional()?;
        let Some(last) = last else {
            return Ok((Vec::new(), None));
        };
        let digest = self.digest(due.number)?;
        Ok((self.take(vec![last], due, sink, room)?, Some(digest)))
    }

    /// How a command stands.
    fn digest(&self, command_no: i64) -> rusqlite::Result<Digest> {
        let mut digest = Digest::default();
        let mut statement = self.connection.prepare_cached(
            "SELECT ended, count(*) FROM (
               SELECT CASE WHEN max(status = 'Failed') THEN 'Failed'
                 WHEN max(status = 'TimedOut') THEN 'TimedOut'
                 WHEN max(status = 'Cancelled') THEN 'Cancelled'
                 WHEN max(status = 'Success') THEN 'Success' ELSE 'InProgress' END AS ended
               FROM step WHERE command_no = ?1 AND instance <> '' GROUP BY instance)
             GROUP BY ended",
        )?;
        let mut rows = statement.query([command_no])?;
        while let Some(row) = rows.next()? {
            let count = row.get::<_, i64>(1)?.unsigned_abs();
            match Status::parse(row.get_ref(0)?.as_str()?) {
                Status::Success => digest.succeeded = count,
                Status::Failed => digest.failed = count,
                Status::TimedOut => digest.timed_out = count,
                Status::Cancelled => digest.cancelled = count,
                Status::InProgress | Status::Other(_) => digest.running += count,
            }
        }
        digest.troubled = self
            .connection
            .prepare_cached(
                "SELECT instance, status FROM step WHERE command_no = ?1 AND instance <> ''
                   AND status IN ('Failed', 'TimedOut', 'Cancelled')
                 ORDER BY event_time DESC, instance LIMIT ?2",
            )?
            .query_map([command_no, MOST_TROUBLED], |row| {
                Ok((row.get(0)?, Status::parse(row.get_ref(1)?.as_str()?)))
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(digest)
    }

    /// Deliveries with their events, as many as there is room for.
    fn take(
        &self,
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
            room.bytes = room.bytes.saturating_sub(event.bytes());
            room.deliveries = room.deliveries.saturating_sub(1);
            taken.push((row, event));
        }
        Ok(taken)
    }

    /// A delivery with its event, and what is known of others that told the same.
    fn with_event(
        &self,
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
                "UPDATE sink SET paused_until = paused_until - ?1",
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

fn raw_waiting(row: &rusqlite::Row<'_>) -> rusqlite::Result<RawWaiting> {
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
    })
}

/// A limit as SQLite takes it.
fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
