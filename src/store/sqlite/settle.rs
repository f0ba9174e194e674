//! Recording what became of leased lanes, and giving them back.

use rusqlite::{OptionalExtension as _, params};

use super::tables::{Tables, earliest_release};
use crate::delivery::{Outcome, SortKey};
use crate::store::rows::{KIND_OWN, LaneColumns, late_nanos, mark_bits, nanos, took_nanos};
use crate::store::{EventId, Settled, Settlement};

struct LaneRow {
    epoch: i64,
    leased: bool,
    kind: i64,
    number: i64,
    instance: String,
    route: i64,
    sink: i64,
    batch_upto: Option<Vec<u8>>,
}

impl Tables<'_> {
    /// Records one lane's results. Under an old epoch only what was sent is recorded: the rest is
    /// somebody else's by now.
    pub(super) fn settle(&mut self, settlement: &Settlement) -> rusqlite::Result<()> {
        let id = settlement.lane.0;
        let Some(lane) = self.lane_row(id)? else {
            return Ok(());
        };
        let is_ours = lane.leased && lane.epoch == settlement.epoch;
        let mut arrived: Option<&[u8]> = None;
        for settled in &settlement.results {
            if (is_ours || settled.outcome == Outcome::Sent) && self.record(id, &lane, settled)? {
                arrived = arrived.max(Some(settled.key.as_bytes()));
            }
            if is_ours && lane.batch_upto.as_deref() == Some(settled.key.as_bytes()) {
                self.record_batch(id, &lane, settled)?;
            }
        }
        if !is_ours {
            return self.raise_watermark(id, arrived);
        }
        // A lane that had its turn goes behind those that wait for theirs.
        let had_its_turn = settlement.results.iter().map(|settled| settled.at).max();
        let not_before = settlement.not_before.or(had_its_turn).map_or(0, nanos);
        // When it is due is computed here, from what waits: a value computed elsewhere could lose
        // what was appended meanwhile.
        self.connection
            .prepare_cached(concat!(
                "UPDATE lane SET leased = 0, leased_upto = NULL, not_before = max(not_before, ?2),
                   high = CASE WHEN ?3 IS NULL THEN high ELSE max(coalesce(high, x''), ?3) END,
                   due_at = ",
                earliest_release!("max(lane.not_before, ?2)"),
                " WHERE id = ?1"
            ))?
            .execute(params![id, not_before, arrived])?;
        if lane.kind == KIND_OWN {
            self.connection
                .prepare_cached(
                    "DELETE FROM lane WHERE id = ?1
                     AND NOT EXISTS (SELECT 1 FROM waiting WHERE lane = ?1)",
                )?
                .execute([id])?;
        }
        Ok(())
    }

    /// Records one result; whether the delivery arrived, or may have.
    fn record(&mut self, id: i64, lane: &LaneRow, settled: &Settled) -> rusqlite::Result<bool> {
        if let Some(to) = &settled.divert_to {
            self.hand_over(id, lane, settled, to)?;
            return Ok(false);
        }
        let tries = if settled.outcome.waits() {
            self.keep_waiting(id, settled)?
        } else {
            self.connection
                .prepare_cached(
                    "DELETE FROM waiting WHERE lane = ?1 AND sort_key = ?2 RETURNING tries + 1",
                )?
                .query_row(params![id, settled.key.as_bytes()], |row| row.get(0))
                .optional()?
        };
        let Some(tries) = tries else {
            // It was recorded before; a result that is kept and written again changes nothing.
            return Ok(false);
        };
        self.insert_outcome(settled.event.0, lane.route, lane.sink, settled)?;
        if let Some(message) = &settled.thread {
            self.keep_thread(lane.sink, lane.route, settled.event.0, id, message)?;
        }
        self.book(lane.sink, settled.at).count(&settled.outcome, 1);
        if settled.outcome == Outcome::Dead {
            self.insert_dead(lane, settled, tries)?;
        }
        // What may have arrived counts: what comes below it may come too late.
        let may_have_arrived = settled.outcome.waits() && settled.marks.possible_repeat;
        Ok(settled.outcome == Outcome::Sent || may_have_arrived)
    }

    /// Ends a delivery here and makes it wait for the sink `to`, in the same place of the same lane. What
    /// that sink was told of the event already is not told again.
    fn hand_over(
        &mut self,
        id: i64,
        lane: &LaneRow,
        settled: &Settled,
        to: &str,
    ) -> rusqlite::Result<()> {
        let to = self.name(to)?;
        let key = settled.key.as_bytes();
        let waited: Option<(i64, bool, bool, Option<i64>)> = self
            .connection
            .prepare_cached(
                "DELETE FROM waiting WHERE lane = ?1 AND sort_key = ?2
                 RETURNING release_at, alone, resent, instead_of",
            )?
            .query_row(params![id, key], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((release_at, alone, resent, instead_of)) = waited else {
            return Ok(());
        };
        let is_told: bool = self
            .connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM outcome
                   WHERE event = ?1 AND sink = ?2 AND result = 'sent')",
            )?
            .query_row([settled.event.0, to], |row| row.get(0))?;
        let target = LaneColumns {
            kind: lane.kind,
            number: lane.number,
            instance: &lane.instance,
        };
        let there = self.lane_of(&target, lane.route, to)?;
        let put = self
            .connection
            .prepare_cached(
                "INSERT INTO waiting (lane, sort_key, event, release_at, alone, resent, instead_of)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT ?8 ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                there,
                key,
                settled.event.0,
                release_at,
                alone,
                resent,
                instead_of.unwrap_or(lane.sink),
                is_told
            ])?;
        if !self.is_leased(there)? {
            self.make_due(there)?;
        }
        let outcome = if put > 0 {
            self.book(lane.sink, settled.at).owed -= 1;
            self.book(to, settled.at).owed += 1;
            Outcome::Diverted
        } else {
            self.book(lane.sink, settled.at).redundant += 1;
            Outcome::Redundant
        };
        let settled = Settled {
            outcome,
            ..settled.clone()
        };
        self.insert_outcome(settled.event.0, lane.route, lane.sink, &settled)
    }

    /// What its last delivery stands for shares its outcome: all before it that was there when the
    /// batch was leased. A batch that is to be tried again stays as it is.
    fn record_batch(&mut self, id: i64, lane: &LaneRow, last: &Settled) -> rusqlite::Result<()> {
        if last.outcome == Outcome::Retry {
            return Ok(());
        }
        if let Some(to) = &last.divert_to {
            let before = self
                .connection
                .prepare_cached(
                    "SELECT event, sort_key FROM waiting WHERE lane = ?1 AND alone = 0
                       AND sort_key < ?2
                       AND event <= (SELECT leased_at_event FROM lane WHERE id = ?1)",
                )?
                .query_map(params![id, last.key.as_bytes()], |row| {
                    Ok(Settled {
                        event: EventId(row.get(0)?),
                        key: SortKey::from_bytes(row.get(1)?),
                        ..last.clone()
                    })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            for settled in &before {
                self.hand_over(id, lane, settled, to)?;
            }
        } else if !last.outcome.waits() {
            let of_batch = "lane = ?1 AND alone = 0 AND sort_key < ?2
               AND event <= (SELECT leased_at_event FROM lane WHERE id = ?1)";
            let key = last.key.as_bytes();
            self.connection
                .prepare_cached(&format!(
                    "INSERT INTO outcome (event, route, sink, n, at, result, marks, late, answer, took)
                     SELECT event, ?3, ?4, coalesce((SELECT max(n) FROM outcome AS before
                         WHERE before.event = waiting.event AND route = ?3 AND sink = ?4), 0) + 1,
                       ?5, ?6, 0, NULL, ?7, ?8 FROM waiting WHERE {of_batch}"
                ))?
                .execute(params![
                    id,
                    key,
                    lane.route,
                    lane.sink,
                    nanos(last.at),
                    last.outcome.word(),
                    last.answer,
                    took_nanos(last)
                ])?;
            if last.outcome == Outcome::Dead {
                self.connection
                    .prepare_cached(&format!(
                        "INSERT INTO dead (event, kind, number, instance, route, sink, sort_key,
                           died_at, tries, answer)
                         SELECT event, ?3, ?4, '', ?5, ?6, sort_key, ?7, tries, ?8
                         FROM waiting WHERE {of_batch}"
                    ))?
                    .execute(params![
                        id,
                        key,
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
                .prepare_cached(&format!("DELETE FROM waiting WHERE {of_batch}"))?
                .execute(params![id, key])?;
            let gone = i64::try_from(gone).unwrap_or(i64::MAX);
            self.book(lane.sink, last.at).count(&last.outcome, gone);
        }
        self.connection
            .prepare_cached("UPDATE lane SET batch_upto = NULL WHERE id = ?1")?
            .execute([id])?;
        Ok(())
    }

    /// Notes a try of a delivery that waits on; how many there were.
    fn keep_waiting(&self, id: i64, settled: &Settled) -> rusqlite::Result<Option<i64>> {
        let parked_until = (settled.outcome == Outcome::Parked)
            .then_some(settled.again_at)
            .flatten()
            .map(nanos);
        self.connection
            .prepare_cached(
                "UPDATE waiting SET tries = tries + 1, failing_since = ?3, progress = coalesce(?4, progress),
                   high_then = CASE WHEN ?5 AND NOT possible_repeat
                     THEN (SELECT high FROM lane WHERE id = ?1) ELSE high_then END,
                   possible_repeat = possible_repeat OR ?5, alone = alone OR ?6 IS NOT NULL,
                   release_at = coalesce(?6, release_at)
                 WHERE lane = ?1 AND sort_key = ?2 RETURNING tries",
            )?
            .query_row(
                params![
                    id,
                    settled.key.as_bytes(),
                    settled.failing_since.map(nanos),
                    settled.progress,
                    settled.marks.possible_repeat,
                    parked_until
                ],
                |row| row.get(0),
            )
            .optional()
    }

    fn lane_row(&self, id: i64) -> rusqlite::Result<Option<LaneRow>> {
        self.connection
            .prepare_cached(
                "SELECT epoch, leased, kind, number, instance, route, sink, batch_upto
                 FROM lane WHERE id = ?1",
            )?
            .query_row([id], |row| {
                Ok(LaneRow {
                    epoch: row.get(0)?,
                    leased: row.get(1)?,
                    kind: row.get(2)?,
                    number: row.get(3)?,
                    instance: row.get(4)?,
                    route: row.get(5)?,
                    sink: row.get(6)?,
                    batch_upto: row.get(7)?,
                })
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
        self.connection
            .prepare_cached(
                "INSERT INTO outcome (event, route, sink, n, at, result, marks, late, answer, took)
                 SELECT ?1, ?2, ?3, coalesce(max(n), 0) + 1, ?4, ?5, ?6, ?7, ?8, ?9 FROM outcome
                 WHERE event = ?1 AND route = ?2 AND sink = ?3",
            )?
            .execute(params![
                event,
                route,
                sink,
                nanos(settled.at),
                settled.outcome.word(),
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
}
