//! Freeing leases that nobody ends.

use std::collections::{BTreeMap, HashSet};

use tokio_postgres::Error;

use super::tables::{Tables, each};
use crate::store::rules::columns::STEP;

/// How many rows one step marks at most, so that a lease of very many is freed in several.
const MARKS: i64 = STEP * 10;

/// The rows that a lease handed out in turn, in SQL: bounded by the key, for which there is an index.
macro_rules! in_turn {
    () => {
        "waiting.lane = lane.id AND NOT alone AND sort_key >= lane.first_key
         AND sort_key <= lease.upto AND waiting.fed <= lease.upto_fed"
    };
}

/// Those that it handed out alone: bounded by the release.
macro_rules! alone {
    () => {
        "waiting.lane = lane.id AND alone AND release_at <= lease.alone_upto
         AND waiting.fed <= lease.upto_fed"
    };
}

/// A lease that is to be freed.
#[derive(Clone, Copy)]
pub(super) struct Lost {
    pub(super) lane: i64,
    pub(super) epoch: i64,
    pub(super) holder: i64,
    pub(super) call: i64,
    /// Something of it may have gone out.
    pub(super) begun: bool,
}

/// The leases of some that were to be freed that are no more.
#[derive(Default)]
pub(super) struct Freed {
    /// The lanes of all that are over: freed here, or ended by somebody else.
    pub(super) over: HashSet<i64>,
    /// How many were freed here.
    pub(super) lanes: usize,
    /// How many deliveries of them were marked.
    pub(super) deliveries: u64,
    /// How many lanes have more to be marked.
    pub(super) unfinished: usize,
}

impl Tables<'_, '_> {
    /// Frees leases. A lane that somebody has locked is passed over, and one with very many rows to
    /// mark takes several steps: both are found again.
    pub(super) async fn recover(&self, leases: &[Lost]) -> Result<Freed, Error> {
        if leases.is_empty() {
            return Ok(Freed::default());
        }
        let lanes = each(leases, |it| it.lane);
        let locked = self
            .numbers(
                "SELECT id FROM lane WHERE id = ANY($1)
                 ORDER BY kind, number, instance, route, sink FOR UPDATE SKIP LOCKED",
                &[&lanes],
            )
            .await?;
        let (epochs, holders) = (each(leases, |it| it.epoch), each(leases, |it| it.holder));
        let calls = each(leases, |it| it.call);
        // Asked anew, now that nobody can end them: one that was ended meanwhile may be another's.
        let there = self
            .query(
                "SELECT lane, it.begun FROM lease JOIN unnest($1::bigint[], $2::bigint[],
                   $3::bigint[], $4::bigint[], $5::boolean[]) AS it (of, epoch, holder, call, begun)
                   ON lane = it.of AND lease.epoch = it.epoch AND lease.holder = it.holder
                     AND lease.call = it.call
                 WHERE lane = ANY($6)",
                &[
                    &lanes,
                    &epochs,
                    &holders,
                    &calls,
                    &each(leases, |it| it.begun),
                    &locked,
                ],
            )
            .await?;
        let there = there
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let there: BTreeMap<i64, bool> = there.collect::<Result<_, Error>>()?;
        let mut freed = self.free(&there).await?;
        // A lease whose lane is gone would be found for ever.
        let left = self
            .numbers(
                "WITH mine AS (SELECT lane FROM lease JOIN unnest($1::bigint[], $2::bigint[],
                     $3::bigint[], $4::bigint[]) AS it (of, epoch, holder, call)
                     ON lane = it.of AND lease.epoch = it.epoch AND lease.holder = it.holder
                       AND lease.call = it.call),
                 gone AS (DELETE FROM lease WHERE lane IN (SELECT lane FROM mine)
                   AND NOT EXISTS (SELECT 1 FROM lane WHERE lane.id = lease.lane)
                   RETURNING lane)
                 SELECT lane FROM mine WHERE lane NOT IN (SELECT lane FROM gone)",
                &[&lanes, &epochs, &holders, &calls],
            )
            .await?;
        let left: HashSet<i64> = left.into_iter().collect();
        freed.over = lanes.into_iter().filter(|it| !left.contains(it)).collect();
        Ok(freed)
    }

    /// Frees lanes that are locked, each with marks or without. With marks, the rows that the lease
    /// handed out may have arrived: they go again and say so, and the watermark is raised as if they
    /// had, for whatever comes below. For themselves the watermark of before counts. A lane that has
    /// rows to mark beyond this step's share stays leased until the next.
    pub(super) async fn free(&self, lanes: &BTreeMap<i64, bool>) -> Result<Freed, Error> {
        let mut freed = Freed::default();
        if lanes.is_empty() {
            return Ok(freed);
        }
        let begun: Vec<i64> = lanes.iter().filter(|it| *it.1).map(|it| *it.0).collect();
        let mut high: BTreeMap<i64, Option<Vec<u8>>> = BTreeMap::new();
        let mut unfinished = HashSet::new();
        if !begun.is_empty() {
            self.mark(&begun).await?;
            let rows = self.query(HANDED_OUT, &[&begun]).await?;
            for row in &rows {
                let lane = row.try_get(0)?;
                if row.try_get(1)? {
                    unfinished.insert(lane);
                } else {
                    freed.deliveries += row.try_get::<_, i64>(2)?.unsigned_abs();
                    high.insert(lane, row.try_get(3)?);
                }
            }
        }
        let over = lanes.keys().filter(|lane| !unfinished.contains(*lane));
        let ends: Vec<_> = over
            .map(|lane| End {
                lane: *lane,
                not_before: i64::MIN,
                arrived: high.remove(lane).flatten(),
            })
            .collect();
        self.give_back(&ends).await?;
        freed.lanes = ends.len();
        freed.unfinished = unfinished.len();
        Ok(freed)
    }

    /// Marks rows that the leases of some lanes handed out, [`MARKS`] of each kind at most.
    async fn mark(&self, lanes: &[i64]) -> Result<(), Error> {
        // Two statements, so that each has an index.
        for handed_out in [in_turn!(), alone!()] {
            self.execute(
                &format!(
                    "UPDATE waiting SET possible_repeat = true, high_then = picked.high
                     FROM (SELECT lane.id AS lane, lane.high, first.sort_key
                       FROM lane JOIN lease ON lease.lane = lane.id
                       CROSS JOIN LATERAL (SELECT sort_key FROM waiting
                         WHERE {handed_out} AND NOT possible_repeat LIMIT $2) AS first
                       WHERE lane.id = ANY($1) LIMIT $2) AS picked
                     WHERE waiting.lane = picked.lane AND waiting.sort_key = picked.sort_key"
                ),
                &[&lanes, &MARKS],
            )
            .await?;
        }
        Ok(())
    }

    /// Cuts stored times to wait for that lie further ahead than any wait, some of them at a time;
    /// whether there were any.
    pub(super) async fn cut_waits(&self, latest: i64) -> Result<bool, Error> {
        self.execute(
            "UPDATE sink SET backoff_until = $1 WHERE backoff_until > $1",
            &[&latest],
        )
        .await?;
        // By sink, since the index over `due_at` begins with it.
        let cut = self
            .execute(
                "UPDATE lane SET due_at = $1, not_before = LEAST(not_before, $1) FROM (
                   SELECT far.id FROM name CROSS JOIN LATERAL (
                     SELECT id FROM lane WHERE sink = name.id AND due_at > $1
                     ORDER BY due_at DESC LIMIT $2 FOR UPDATE SKIP LOCKED) AS far) AS it
                 WHERE lane.id = it.id AND due_at > $1",
                &[&latest, &STEP],
            )
            .await?;
        Ok(cut > 0)
    }
}

/// The end of one lease.
pub(super) struct End {
    pub(super) lane: i64,
    pub(super) not_before: i64,
    /// The greatest sort key that was sent, or may have been.
    pub(super) arrived: Option<Vec<u8>>,
}

/// Of some lanes: whether rows are still to be marked, how many were handed out, and the greatest key
/// of them. The keys themselves stay where they are.
const HANDED_OUT: &str = concat!(
    "SELECT lane.id,
       EXISTS (SELECT 1 FROM waiting WHERE ",
    in_turn!(),
    " AND NOT possible_repeat)
         OR EXISTS (SELECT 1 FROM waiting WHERE ",
    alone!(),
    " AND NOT possible_repeat),
       (SELECT count(*) FROM waiting WHERE ",
    in_turn!(),
    ") + (SELECT count(*) FROM waiting WHERE ",
    alone!(),
    "),
       GREATEST((SELECT sort_key FROM waiting WHERE ",
    in_turn!(),
    " ORDER BY sort_key DESC LIMIT 1), (SELECT sort_key FROM waiting WHERE ",
    alone!(),
    " ORDER BY sort_key DESC LIMIT 1))
     FROM lane JOIN lease ON lease.lane = lane.id WHERE lane.id = ANY($1)"
);
