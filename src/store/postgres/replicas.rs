//! Who is alive, and freeing what the others had leased.
//!
//! Each replica gives a sign of life every [`BEAT`], by the database's clock. Lanes of one that gave
//! none for [`DEAD_AFTER`] are freed by whoever notices first. One that was only paused finds its
//! leases under an old epoch, and may record nothing but what it sent.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Error;

use super::append::each;
use super::tables::Tables;
use crate::delivery::from_nanos;
use crate::store::rows::STEP;

/// How often a replica says that it is alive.
pub(super) const BEAT: Duration = Duration::from_secs(1);

/// After how long without a sign a replica's lanes are freed.
const DEAD_AFTER: Duration = Duration::from_secs(8);

/// For how long after a sign a replica believes that the others believe in it, in nanoseconds: less
/// than they do, so that it stops first.
pub(super) const BELIEVED_FOR: i64 = 6_000_000_000;

/// The database's time, in nanoseconds.
macro_rules! now {
    () => {
        "((extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000)"
    };
}

impl Tables<'_> {
    /// Enters a replica that starts; its number.
    pub(super) async fn enter(&self) -> Result<i64, Error> {
        self.query_one(
            concat!(
                "INSERT INTO replica (name, beat_at) VALUES ($1, ",
                now!(),
                ") RETURNING no"
            ),
            &[&self.name],
        )
        .await?
        .try_get(0)
    }

    /// Gives a sign of life; the database's time, and how many replicas are alive.
    pub(super) async fn beat(&self) -> Result<(Timestamp, i64), Error> {
        let row = self
            .query_one(
                concat!(
                    "INSERT INTO replica (no, name, beat_at) VALUES ($1, $2, ",
                    now!(),
                    ")
                     ON CONFLICT (no) DO UPDATE SET beat_at = excluded.beat_at
                     RETURNING beat_at,
                       (SELECT count(*) FROM replica AS other
                        WHERE other.beat_at > replica.beat_at - $3)"
                ),
                &[&self.replica, &self.name, &nanos_of(DEAD_AFTER)],
            )
            .await?;
        Ok((from_nanos(row.try_get(0)?), row.try_get(1)?))
    }

    /// A lease by one whose signs have stopped, since it was paused, would be freed at once.
    pub(super) async fn be_alive(&self) -> Result<(), Error> {
        let is_fresh = self
            .query_opt(
                concat!(
                    "SELECT 1 FROM replica WHERE no = $1 AND beat_at > ",
                    now!(),
                    " - $2"
                ),
                &[&self.replica, &(nanos_of(DEAD_AFTER) / 2)],
            )
            .await?;
        if is_fresh.is_none() {
            self.beat().await?;
        }
        Ok(())
    }

    /// Leaves: what is still leased is free for the others at once.
    pub(super) async fn leave(&self) -> Result<(), Error> {
        self.execute(
            "UPDATE replica SET beat_at = 0 WHERE no = $1",
            &[&self.replica],
        )
        .await?;
        Ok(())
    }

    /// Frees some of the lanes whose replicas give no sign of life: how many lanes, and how many
    /// deliveries in them were under way. What they may have been sending is marked: it goes out
    /// again, and may have arrived already. So the watermark is raised as if it had, for whatever
    /// comes below it; for itself what counts is how high it was before.
    pub(super) async fn take_back(&self) -> Result<(usize, u64), Error> {
        let dead = self
            .query(
                concat!("SELECT no FROM replica WHERE beat_at <= ", now!(), " - $1"),
                &[&nanos_of(DEAD_AFTER)],
            )
            .await?;
        let dead: Vec<i64> = dead
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        if dead.is_empty() {
            return Ok((0, 0));
        }
        let lanes = self
            .query(
                "SELECT id, leased_upto FROM lane WHERE owner = ANY($1)
                 ORDER BY kind, number, instance, route, sink LIMIT $2 FOR UPDATE SKIP LOCKED",
                &[&dead, &STEP],
            )
            .await?;
        if lanes.is_empty() {
            return Ok((0, 0));
        }
        let ids: Vec<i64> = lanes
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        let upto: Vec<Option<Vec<u8>>> = lanes
            .iter()
            .map(|row| row.try_get(1))
            .collect::<Result<_, _>>()?;
        let marked = self
            .execute(
                "UPDATE waiting SET possible_repeat = true,
                   high_then = CASE WHEN possible_repeat THEN high_then ELSE lane.high END
                 FROM lane WHERE lane.id = waiting.lane AND lane.id = ANY($1)
                   AND waiting.sort_key <= lane.leased_upto AND waiting.fed <= lane.leased_fed",
                &[&ids],
            )
            .await?;
        self.execute(
            "UPDATE lane SET epoch = epoch + 1 WHERE id = ANY($1)",
            &[&ids],
        )
        .await?;
        self.give_back(&ids, &each(&ids, |_| 0), &upto).await?;
        Ok((ids.len(), marked))
    }

    /// Forgets replicas that are long gone; their books are kept under one number.
    pub(super) async fn forget_replicas(&self) -> Result<(), Error> {
        let gone = self
            .query(
                concat!(
                    "DELETE FROM replica WHERE beat_at < ",
                    now!(),
                    " - $1
                     AND NOT EXISTS (SELECT 1 FROM lane WHERE owner = replica.no) RETURNING no"
                ),
                &[&(nanos_of(DEAD_AFTER) * 10)],
            )
            .await?;
        if gone.is_empty() {
            return Ok(());
        }
        self.execute(
            "WITH gone AS (DELETE FROM tally WHERE replica <> 0
               AND replica NOT IN (SELECT no FROM replica) RETURNING *)
             INSERT INTO tally AS old (replica, street, sink, day, owed, sent, muted, redundant, dropped, dead)
             SELECT 0, street, sink, day, sum(owed), sum(sent), sum(muted), sum(redundant),
               sum(dropped), sum(dead) FROM gone GROUP BY street, sink, day
               ORDER BY street, sink, day
             ON CONFLICT (replica, street, sink, day) DO UPDATE SET owed = old.owed + excluded.owed,
               sent = old.sent + excluded.sent, muted = old.muted + excluded.muted,
               redundant = old.redundant + excluded.redundant,
               dropped = old.dropped + excluded.dropped, dead = old.dead + excluded.dead",
            &[],
        )
        .await?;
        Ok(())
    }
}

fn nanos_of(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}
