//! Freeing leases that nobody ends, and the clock that everything waits by.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::tables::Tables;
use crate::store::register::GiveBack;
use crate::store::rules::columns::STEP;
use crate::store::rules::time::ClockRow;
use crate::store::{LaneId, Terms};

/// A lease as a sign of life looks at it.
pub(super) struct Leased {
    pub(super) lane: LaneId,
    pub(super) epoch: i64,
    pub(super) call: i64,
    /// When it ends, in logical time.
    pub(super) ends_at: i64,
}

impl Tables<'_> {
    /// Frees one lane; how many deliveries of it were marked. With `marks` the rows that its lease
    /// handed out may have arrived: they go again and say so, and the watermark is raised as if they
    /// had, for whatever comes below. For themselves the watermark of before counts.
    pub(super) fn recover(&self, lane: i64, marks: bool) -> rusqlite::Result<u64> {
        let bounds: Option<(Option<Vec<u8>>, i64, Option<i64>)> = self
            .connection
            .prepare_cached("SELECT upto, upto_fed, alone_upto FROM lease WHERE lane = ?1")?
            .query_row([lane], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let mut marked: Vec<Vec<u8>> = Vec::new();
        if let (true, Some((upto, upto_fed, alone_upto))) = (marks, bounds) {
            // Each by its own index: together they would walk all of the lane.
            for (handed_out, bound) in [
                ("alone = 0 AND sort_key <= ?3", Value::from(upto)),
                ("alone = 1 AND release_at <= ?3", Value::from(alone_upto)),
            ] {
                let mut statement = self.connection.prepare_cached(&format!(
                    "UPDATE waiting SET possible_repeat = 1,
                       high_then = CASE WHEN possible_repeat THEN high_then
                         ELSE (SELECT high FROM lane WHERE id = ?1) END
                     WHERE lane = ?1 AND fed <= ?2 AND {handed_out} RETURNING sort_key"
                ))?;
                let keys = statement.query_map(params![lane, upto_fed, bound], |row| row.get(0))?;
                for key in keys {
                    marked.push(key?);
                }
            }
        }
        let high = marked.iter().max();
        self.give_back(lane, i64::MIN, high.map(Vec::as_slice))?;
        Ok(marked.len() as u64)
    }

    /// Frees leases of this process that nobody carries, unless they ended meanwhile.
    pub(super) fn give_back_lost(&self, lost: &[GiveBack], holder: i64) -> rusqlite::Result<()> {
        for it in lost {
            let is_there: bool = self
                .connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM lease
                       WHERE lane = ?1 AND epoch = ?2 AND holder = ?3 AND call = ?4)",
                )?
                .query_row([it.lane.0, it.epoch, holder, it.call], |row| row.get(0))?;
            if is_there {
                self.recover(it.lane.0, it.begun)?;
            }
        }
        Ok(())
    }

    /// Moves the end of leases to `ends_at`; which of them were still there.
    pub(super) fn renew(
        &self,
        leases: &[(LaneId, i64)],
        holder: i64,
        ends_at: i64,
    ) -> rusqlite::Result<Vec<(LaneId, i64)>> {
        let mut renewed = Vec::with_capacity(leases.len());
        for (lane, epoch) in leases {
            let changed = self
                .connection
                .prepare_cached(
                    "UPDATE lane SET due_at = max(due_at, ?4) WHERE id = ?1 AND EXISTS (
                       SELECT 1 FROM lease WHERE lane = ?1 AND epoch = ?2 AND holder = ?3)",
                )?
                .execute([lane.0, *epoch, holder, ends_at])?;
            if changed > 0 {
                renewed.push((*lane, *epoch));
            }
        }
        Ok(renewed)
    }

    /// Frees some of the leases of the process before this one, with their marks: how many leases,
    /// and how many deliveries.
    pub(super) fn recover_some(&self) -> rusqlite::Result<(usize, u64)> {
        let lanes: Vec<i64> = self
            .connection
            .prepare_cached("SELECT lane FROM lease LIMIT ?1")?
            .query_map([STEP], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut marked = 0;
        for lane in &lanes {
            marked += self.recover(*lane, true)?;
        }
        Ok((lanes.len(), marked))
    }

    /// Cuts stored times to wait for that lie further ahead than any wait.
    pub(super) fn cut_waits(&self, latest: i64) -> rusqlite::Result<()> {
        for table in [
            "UPDATE lane SET due_at = ?1, not_before = min(not_before, ?1) WHERE due_at > ?1",
            "UPDATE sink SET backoff_until = ?1 WHERE backoff_until > ?1",
        ] {
            self.connection.prepare_cached(table)?.execute([latest])?;
        }
        Ok(())
    }

    pub(super) fn write_clock(&self, row: ClockRow) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("UPDATE clock SET latest = max(latest, ?1), ahead = ?2, step = ?3")?
            .execute([row.latest, row.ahead, row.step])?;
        Ok(())
    }
}

pub(super) fn clock(connection: &Connection) -> rusqlite::Result<ClockRow> {
    connection
        .prepare_cached("SELECT latest, ahead, step FROM clock")?
        .query_row([], |row| {
            Ok(ClockRow {
                latest: row.get(0)?,
                ahead: row.get(1)?,
                step: row.get(2)?,
            })
        })
}

/// All leases: there is one holder at a time.
pub(super) fn leases(connection: &Connection) -> rusqlite::Result<Vec<Leased>> {
    connection
        .prepare_cached(
            "SELECT lease.lane, lease.epoch, call, coalesce(due_at, 0)
             FROM lease LEFT JOIN lane ON lane.id = lease.lane",
        )?
        .query_map([], |row| {
            Ok(Leased {
                lane: LaneId(row.get(0)?),
                epoch: row.get(1)?,
                call: row.get(2)?,
                ends_at: row.get(3)?,
            })
        })?
        .collect()
}

/// Whether a lease that ends at `ends_at` is to be renewed at `now`: half of it is over.
pub(super) fn wants_renewal(ends_at: i64, now: i64, terms: Terms) -> bool {
    let half = crate::store::rules::columns::length(terms.lease_for) / 2;
    ends_at < now.saturating_add(half)
}
