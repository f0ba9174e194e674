//! Recording what became of leased lanes, and giving them back.

use rusqlite::{OptionalExtension as _, params};

use super::tables::{Tables, earliest_release};
use crate::delivery::Outcome;
use crate::store::lanes::Ended;
use crate::store::rules::columns::{late_nanos, mark_bits, nanos, took_nanos};
use crate::store::rules::settle::{Kept, Move, not_before, that_count};
use crate::store::rules::step::{KIND_OWN, LaneColumns};
use crate::store::{Ending, Lease, Settled};

/// A lane whose deliveries end.
pub(super) struct LaneRow {
    pub(super) id: i64,
    pub(super) kind: i64,
    pub(super) number: i64,
    pub(super) instance: String,
    pub(super) route: i64,
    pub(super) sink: i64,
}

impl LaneRow {
    /// What names it, beside its route and sink.
    fn columns(&self) -> LaneColumns<'_> {
        LaneColumns {
            kind: self.kind,
            number: self.number,
            instance: &self.instance,
        }
    }
}

/// A row that no longer waits.
struct Gone {
    tries: i64,
    release_at: i64,
    alone: bool,
    resent: bool,
    instead_of: Option<i64>,
    possible_repeat: bool,
}

impl Tables<'_> {
    /// Records one lane's results. When its lease is over only what was sent is recorded: the rest
    /// is somebody else's by now.
    pub(super) fn settle(&mut self, ended: &Ended, holder: i64) -> rusqlite::Result<()> {
        let lease = &ended.lease;
        let Some((lane, is_ours)) = self.leased_lane(lease, holder)? else {
            // The lane went with its last delivery, which may lie elsewhere.
            for settled in that_count(ended, false) {
                self.sent_elsewhere(lease, None, settled)?;
            }
            return Ok(());
        };
        let mut arrived: Option<&[u8]> = None;
        for settled in that_count(ended, is_ours) {
            let it = Move::of(settled);
            let was_there = self.apply(&lane, lease, &it)?;
            if was_there && it.arrives() {
                arrived = arrived.max(Some(settled.key.as_bytes()));
            }
            // A digest that was told told of all its members, though somebody else may have taken
            // out the last of them meanwhile.
            if lease.batch && (was_there || it.arrives()) {
                self.apply_to_batch(&lane, lease, &it)?;
            }
            if !was_there && !is_ours {
                self.sent_elsewhere(lease, Some(&lane), settled)?;
            }
        }
        if is_ours {
            self.give_back(lane.id, not_before(ended), arrived)?;
        } else {
            self.raise_watermark(lane.id, arrived)?;
            self.make_due(lane.id)?;
        }
        self.drop_if_empty(&lane)
    }

    /// Ends a lease. When the lane is due is computed here, from the rows that wait: a value
    /// computed elsewhere could lose an append of meanwhile.
    pub(super) fn give_back(
        &self,
        lane: i64,
        not_before: i64,
        arrived: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("DELETE FROM lease WHERE lane = ?1")?
            .execute([lane])?;
        self.connection
            .prepare_cached(concat!(
                "UPDATE lane SET leased = 0, epoch = epoch + 1, not_before = max(not_before, ?2),
                   high = CASE WHEN ?3 IS NULL THEN high ELSE max(coalesce(high, x''), ?3) END,
                   due_at = ",
                earliest_release!("max(lane.not_before, ?2)"),
                " WHERE id = ?1"
            ))?
            .execute(params![lane, not_before, arrived])?;
        Ok(())
    }

    /// Applies one result; whether its row still waited. A row that was put there by hand since the
    /// lease is another.
    fn apply(&mut self, lane: &LaneRow, lease: &Lease, it: &Move<'_>) -> rusqlite::Result<bool> {
        let settled = it.settled();
        let key = settled.key.as_bytes();
        if let Move::Keep(_, kept) = it {
            if !self.keep_waiting(lane.id, key, kept)? {
                return Ok(false);
            }
        } else {
            let Some(mut gone) = self.take_out(lane.id, key, lease.fed)? else {
                // It was recorded before; a result that is written again changes nothing.
                return Ok(false);
            };
            gone.tries += 1;
            match it {
                Move::HandOver(_, to) => {
                    self.hand_over(lane, (settled.event.0, key), &gone, settled, to)?;
                    return Ok(true);
                }
                Move::Bury(_) => self.insert_dead(lane, settled, gone.tries)?,
                Move::Out(_) | Move::Keep(..) => {}
            }
        }
        self.insert_outcome(settled.event.0, lane.route, lane.sink, settled)?;
        if let Ending::Sent {
            message: Some(message),
        } = &settled.ending
        {
            let to = (lane.sink, lane.route);
            self.keep_thread(to, settled.event.0, lease.troubles, message)?;
        }
        let outcome = settled.ending.outcome();
        self.book(lane.sink, settled.at).count(&outcome, 1);
        Ok(true)
    }

    /// Gives the rows that a digest's last delivery stands for the same end: all in turn before it
    /// that were there at the lease. A batch that is to be tried again stays as it is.
    fn apply_to_batch(
        &mut self,
        lane: &LaneRow,
        lease: &Lease,
        it: &Move<'_>,
    ) -> rusqlite::Result<()> {
        const OF_BATCH: &str = "lane = ?1 AND alone = 0 AND sort_key < ?2 AND fed <= ?3";
        let last = it.settled();
        let key = last.key.as_bytes();
        let outcome = last.ending.outcome();
        match it {
            Move::Keep(..) => return Ok(()),
            Move::HandOver(_, to) => {
                let members: Vec<(i64, Vec<u8>)> = self
                    .connection
                    .prepare_cached(&format!(
                        "SELECT event, sort_key FROM waiting WHERE {OF_BATCH}"
                    ))?
                    .query_map(params![lane.id, key, lease.fed], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })?
                    .collect::<rusqlite::Result<_>>()?;
                for (event, key) in members {
                    if let Some(mut gone) = self.take_out(lane.id, &key, lease.fed)? {
                        gone.tries += 1;
                        self.hand_over(lane, (event, &key), &gone, last, to)?;
                    }
                }
                return Ok(());
            }
            Move::Out(_) | Move::Bury(_) => {}
        }
        self.connection
            .prepare_cached(&format!(
                "INSERT INTO outcome (event, route, sink, n, at, result, marks, answer, took)
                 SELECT event, ?4, ?5, coalesce((SELECT max(n) FROM outcome AS before
                     WHERE before.event = waiting.event AND route = ?4 AND sink = ?5), 0) + 1,
                   ?6, ?7, 0, ?8, ?9 FROM waiting WHERE {OF_BATCH}"
            ))?
            .execute(params![
                lane.id,
                key,
                lease.fed,
                lane.route,
                lane.sink,
                nanos(last.at),
                outcome.word(),
                last.answer,
                took_nanos(last)
            ])?;
        if outcome == Outcome::Dead {
            self.connection
                .prepare_cached(&format!(
                    "INSERT INTO dead (event, kind, number, instance, route, sink, sort_key,
                       died_at, tries, answer)
                     SELECT event, ?4, ?5, '', ?6, ?7, sort_key, ?8, tries + 1, ?9
                     FROM waiting WHERE {OF_BATCH}"
                ))?
                .execute(params![
                    lane.id,
                    key,
                    lease.fed,
                    lane.kind,
                    lane.number,
                    lane.route,
                    lane.sink,
                    nanos(last.at),
                    last.answer
                ])?;
        }
        let gone = self
            .connection
            .prepare_cached(&format!("DELETE FROM waiting WHERE {OF_BATCH}"))?
            .execute(params![lane.id, key, lease.fed])?;
        let gone = i64::try_from(gone).unwrap_or(i64::MAX);
        self.book(lane.sink, last.at).count(&outcome, gone);
        Ok(())
    }

    /// Records a delivery that was sent under a lease that is over, and whose row is gone: it lies
    /// among the dead letters, or with a fallback, or was sent by somebody else as well.
    fn sent_elsewhere(
        &mut self,
        lease: &Lease,
        lane: Option<&LaneRow>,
        settled: &Settled,
    ) -> rusqlite::Result<()> {
        let (event, route, sink) = (settled.event.0, lease.route, lease.sink);
        let is_recorded: bool = self
            .connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM outcome WHERE event = ?1 AND route = ?2 AND sink = ?3
                   AND result = 'sent' AND at = ?4)",
            )?
            .query_row(params![event, route, sink, nanos(settled.at)], |row| {
                row.get(0)
            })?;
        if is_recorded {
            return Ok(());
        }
        self.insert_outcome(event, route, sink, settled)?;
        let buried = self
            .connection
            .prepare_cached("DELETE FROM dead WHERE event = ?1 AND route = ?2 AND sink = ?3")?
            .execute([event, route, sink])?;
        let buried = i64::try_from(buried).unwrap_or_default();
        let book = self.book(sink, settled.at);
        book.dead -= buried;
        book.sent += buried;
        // Whichever sink brings it in place of this one tells it a second time, and says so.
        let own = LaneColumns {
            kind: KIND_OWN,
            number: event,
            instance: "",
        };
        let at = lane.map_or(own, LaneRow::columns);
        self.connection
            .prepare_cached(
                "UPDATE waiting SET possible_repeat = 1, high_then = CASE WHEN possible_repeat
                     THEN high_then ELSE (SELECT high FROM lane WHERE id = waiting.lane) END
                 WHERE sort_key = ?1 AND event = ?2 AND instead_of IS NOT NULL
                   AND lane IN (SELECT id FROM lane
                     WHERE kind = ?3 AND number = ?4 AND instance = ?5 AND route = ?6)",
            )?
            .execute(params![
                settled.key.as_bytes(),
                event,
                at.kind,
                at.number,
                at.instance,
                route
            ])?;
        Ok(())
    }

    /// Takes a row out that was there when `fed` were put; what it was. Two statements, since
    /// `RETURNING` makes a table of its own for each row, which costs more than both.
    fn take_out(&self, lane: i64, key: &[u8], fed: i64) -> rusqlite::Result<Option<Gone>> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT tries, release_at, alone, resent, instead_of, possible_repeat FROM waiting
                 WHERE lane = ?1 AND sort_key = ?2 AND fed <= ?3",
            )?
            .query_row(params![lane, key, fed], |row| {
                Ok(Gone {
                    tries: row.get(0)?,
                    release_at: row.get(1)?,
                    alone: row.get(2)?,
                    resent: row.get(3)?,
                    instead_of: row.get(4)?,
                    possible_repeat: row.get(5)?,
                })
            })
            .optional()?;
        if found.is_some() {
            self.connection
                .prepare_cached("DELETE FROM waiting WHERE lane = ?1 AND sort_key = ?2")?
                .execute(params![lane, key])?;
        }
        Ok(found)
    }

    /// Makes a row that was taken out wait for the sink `to`, in the same place of the same lane,
    /// with its marks and tries. What may be a repeat there is held against the watermark of there.
    /// An event that the other sink was told of already is not told again.
    fn hand_over(
        &mut self,
        lane: &LaneRow,
        (event, key): (i64, &[u8]),
        gone: &Gone,
        settled: &Settled,
        to: &str,
    ) -> rusqlite::Result<()> {
        let to = self.name(to)?;
        let is_told: bool = self
            .connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM outcome
                   WHERE event = ?1 AND sink = ?2 AND result = 'sent')",
            )?
            .query_row([event, to], |row| row.get(0))?;
        let mut put = 0;
        if !is_told {
            let (there, fed) = self.lane_of(&lane.columns(), lane.route, to)?;
            put = self
                .connection
                .prepare_cached(
                    "INSERT INTO waiting (lane, sort_key, event, fed, release_at, alone, resent,
                       instead_of, possible_repeat, high_then, tries)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9,
                       CASE WHEN ?9 THEN (SELECT high FROM lane WHERE id = ?1) END, ?10)
                     ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    there,
                    key,
                    event,
                    fed,
                    gone.release_at,
                    gone.alone,
                    gone.resent,
                    gone.instead_of.unwrap_or(lane.sink),
                    // The try that ended so may itself have arrived.
                    gone.possible_repeat || settled.marks.possible_repeat,
                    gone.tries
                ])?;
            self.make_due(there)?;
        }
        let outcome = if put > 0 {
            self.book(lane.sink, settled.at).moved_away(1);
            self.book(to, settled.at).moved_here(1);
            Outcome::Diverted
        } else {
            self.book(lane.sink, settled.at).redundant += 1;
            Outcome::Redundant
        };
        self.insert_outcome_as(event, lane.route, lane.sink, settled, &outcome)
    }

    /// The lane of a route and sink, counted as fed once more; made if there is none.
    pub(super) fn lane_of(
        &self,
        lane: &LaneColumns<'_>,
        route: i64,
        sink: i64,
    ) -> rusqlite::Result<(i64, i64)> {
        self.connection
            .prepare_cached(
                "INSERT INTO lane (kind, number, instance, route, sink, fed)
                 VALUES (?1, ?2, ?3, ?4, ?5, 1)
                 ON CONFLICT (kind, number, instance, route, sink) DO UPDATE SET fed = fed + 1
                 RETURNING id, fed",
            )?
            .query_row(
                params![lane.kind, lane.number, lane.instance, route, sink],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
    }

    /// Notes a try of a row that waits on; whether it still does.
    fn keep_waiting(&self, lane: i64, key: &[u8], kept: &Kept<'_>) -> rusqlite::Result<bool> {
        let changed = self
            .connection
            .prepare_cached(
                "UPDATE waiting SET tries = tries + 1, failing_since = ?3,
                   progress = coalesce(?4, progress),
                   high_then = CASE WHEN ?5 AND NOT possible_repeat
                     THEN (SELECT high FROM lane WHERE id = ?1) ELSE high_then END,
                   possible_repeat = possible_repeat OR ?5, alone = alone OR ?6 IS NOT NULL,
                   release_at = coalesce(?6, release_at)
                 WHERE lane = ?1 AND sort_key = ?2",
            )?
            .execute(params![
                lane,
                key,
                kept.failing_since,
                kept.progress,
                kept.may_have_arrived,
                kept.parked_until
            ])?;
        Ok(changed > 0)
    }

    /// The lane of a lease, and whether that is still its holder's.
    fn leased_lane(&self, lease: &Lease, holder: i64) -> rusqlite::Result<Option<(LaneRow, bool)>> {
        // The call as well: a lane that was dropped leaves its number to a new one, which begins at
        // the same epoch.
        let (call, lane) = lease.hold.key();
        self.connection
            .prepare_cached(
                "SELECT id, kind, number, instance, route, sink,
                   coalesce(lease.epoch = ?2 AND lease.holder = ?3 AND lease.call = ?4, 0)
                 FROM lane LEFT JOIN lease ON lease.lane = lane.id WHERE id = ?1",
            )?
            .query_row([lane.0, lease.epoch, holder, call], |row| {
                Ok((lane_row(row)?, row.get(6)?))
            })
            .optional()
    }

    pub(super) fn insert_outcome(
        &self,
        event: i64,
        route: i64,
        sink: i64,
        settled: &Settled,
    ) -> rusqlite::Result<()> {
        self.insert_outcome_as(event, route, sink, settled, &settled.ending.outcome())
    }

    pub(super) fn insert_outcome_as(
        &self,
        event: i64,
        route: i64,
        sink: i64,
        settled: &Settled,
        outcome: &Outcome,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO outcome (event, route, sink, n, at, result, marks, late, answer, took)
                 VALUES (?1, ?2, ?3, coalesce((SELECT max(n) FROM outcome
                     WHERE event = ?1 AND route = ?2 AND sink = ?3), 0) + 1,
                   ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                event,
                route,
                sink,
                nanos(settled.at),
                outcome.word(),
                mark_bits(&settled.marks),
                late_nanos(settled),
                settled.answer,
                took_nanos(settled),
            ])?;
        Ok(())
    }

    fn raise_watermark(&self, lane: i64, to: Option<&[u8]>) -> rusqlite::Result<()> {
        let Some(to) = to else { return Ok(()) };
        self.connection
            .prepare_cached("UPDATE lane SET high = max(coalesce(high, x''), ?2) WHERE id = ?1")?
            .execute(params![lane, to])?;
        Ok(())
    }

    /// Drops a lane of one event that nothing waits in any more.
    pub(super) fn drop_if_empty(&self, lane: &LaneRow) -> rusqlite::Result<()> {
        if lane.kind == KIND_OWN {
            self.connection
                .prepare_cached(
                    "DELETE FROM lane WHERE id = ?1 AND due_at IS NULL
                     AND NOT EXISTS (SELECT 1 FROM waiting WHERE lane = ?1)",
                )?
                .execute([lane.id])?;
        }
        Ok(())
    }

    fn insert_dead(&self, lane: &LaneRow, settled: &Settled, tries: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO dead (event, kind, number, instance, route, sink, sort_key, died_at,
                   tries, answer) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                settled.event.0,
                lane.kind,
                lane.number,
                lane.instance,
                lane.route,
                lane.sink,
                settled.key.as_bytes(),
                nanos(settled.at),
                tries,
                settled.answer,
            ])?;
        Ok(())
    }

    /// Ends rows that wait and that nobody carries: buried or handed over by hand or by a fallback.
    pub(super) fn end_unleased(
        &mut self,
        lane: &LaneRow,
        settled: &[Settled],
    ) -> rusqlite::Result<()> {
        for it in settled {
            let key = it.key.as_bytes();
            let Some(gone) = self.take_out(lane.id, key, i64::MAX)? else {
                continue;
            };
            if let Ending::Diverted { to } = &it.ending {
                self.hand_over(lane, (it.event.0, key), &gone, it, to)?;
                continue;
            }
            if it.ending == Ending::Dead {
                self.insert_dead(lane, it, gone.tries)?;
            }
            self.insert_outcome(it.event.0, lane.route, lane.sink, it)?;
            self.book(lane.sink, it.at).count(&it.ending.outcome(), 1);
        }
        self.make_due(lane.id)?;
        self.drop_if_empty(lane)
    }
}

/// Reads the columns `id, kind, number, instance, route, sink` of a lane.
pub(super) fn lane_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<LaneRow> {
    Ok(LaneRow {
        id: row.get(0)?,
        kind: row.get(1)?,
        number: row.get(2)?,
        instance: row.get(3)?,
        route: row.get(4)?,
        sink: row.get(5)?,
    })
}
