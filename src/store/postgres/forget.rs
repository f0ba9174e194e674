//! Days: making the partitions of those to come, and forgetting those that are over.
//!
//! A day goes as a whole, whatever was in it, so that a million old events stall nothing. A day for
//! which something still waits is emptied but for that, in steps. What is known of a command goes
//! when nothing was heard of it for all of the retention and nothing is owed for it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio_postgres::Error;

use super::errors::{is_locked, lacks_a_table, translate};
use super::shared::Shared;
use super::tables::{Path, Tables, first_of_day, start_of_day};
use crate::store::StoreError;
use crate::store::rules::columns::{STEP, length, nanos};
use crate::store::rules::step::{KIND_OWN, kinds_of_a_command};
use crate::store::rules::time::{SILENCE, forget_before};

/// How many days ahead there are partitions.
const AHEAD: i64 = 3;

/// How much longer than events their command is kept: an append may be about to note that it lives.
const COMMAND_IS_SURE: Duration = Duration::from_mins(10);

/// After how long without a sign a replica that holds nothing is forgotten.
const GONE_FOR: Duration = Duration::from_secs(80);

/// How many of the last events of a day are asked when they arrived. Numbers grow with arrival, but
/// for the seconds in which several replicas keep events at the same time.
const LAST: i64 = 1000;

/// Remembered from one round of forgetting to the next.
#[derive(Default)]
pub(super) struct Forgetting {
    /// The latest Timestamp that SNS signed, of all that is kept, and the boot time at which it was
    /// first seen.
    newest: Option<(i64, Duration)>,
    /// The last day that was looked at, in a round that is not over.
    reached: Option<i64>,
}

/// Says where a day begins in a table.
type Begins = fn(i64) -> i64;

/// The partitioned tables.
const PARTITIONED: [(&str, Begins); 2] = [("event", start_of_day), ("outcome", first_of_day)];

impl Shared {
    /// Forgets some of what arrived longer than `keep` ago; whether there is more to do.
    pub(super) async fn forget(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError> {
        let now = nanos(now);
        let days = days_around(now);
        if days.last().copied() > Some(self.days_upto.load(Ordering::Relaxed)) {
            self.make_days(&days).await?;
        }
        let newest = self.read(|tables| tables.newest().boxed()).await?;
        let is_silent = self.is_silent(newest);
        // Where nothing that was signed bounds the database's clock, the one that is behind counts.
        let now = if is_silent {
            now.min(nanos(self.own.clock.now()))
        } else {
            now
        };
        let before = forget_before(now, newest, is_silent, keep);
        let has_forgotten = self
            .write(Path::Deliver, |tables| {
                async move {
                    // Even when there is nothing to forget: this shows that it can be written.
                    tables.forget_holders().await?;
                    let silent = before.saturating_sub(length(COMMAND_IS_SURE));
                    tables.forget_commands(silent).await
                }
                .boxed()
            })
            .await?;
        if has_forgotten {
            return Ok(true);
        }
        self.forget_days(before, now).await
    }

    /// Forgets a day, or some of it, whose events all arrived before `before`; whether there is more
    /// to do. Each day is looked at by itself, and the next round goes on behind the last.
    async fn forget_days(&self, before: i64, now: i64) -> Result<bool, StoreError> {
        let reached = self.forgetting().reached;
        let days = self.read(|tables| tables.days().boxed()).await?;
        let is_over = |day: &i64| start_of_day(day.saturating_add(1)) <= before;
        let days = days.into_iter().take_while(is_over);
        for day in days.filter(|day| reached.is_none_or(|reached| *day > reached)) {
            let forgot = self
                .try_write(Path::Deliver, &|tables| {
                    tables.forget_day(day, before, now).boxed()
                })
                .await?;
            match forgot {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                // Somebody reads what was to go, or another replica has forgotten it.
                Err(error) if is_locked(&error) || lacks_a_table(&error) => {}
                Err(error) => return Err(translate(error)),
            }
            self.forgetting().reached = Some(day);
        }
        self.forgetting().reached = None;
        Ok(false)
    }

    /// Whether nothing newer was kept for so long that our clock is believed alone. Seen by what all
    /// replicas keep: this one may get nothing while others do.
    fn is_silent(&self, newest: Option<i64>) -> bool {
        let boot = self.own.clock.boot();
        let mut forgetting = self.forgetting();
        let newest = newest.unwrap_or_default();
        let since = match forgetting.newest {
            Some((seen, since)) if seen == newest => since,
            _ => boot,
        };
        forgetting.newest = Some((newest, since));
        boot.saturating_sub(since) >= SILENCE
    }
}

impl Tables<'_, '_> {
    /// Makes the partitions that are missing for some days, one replica at a time. Nobody who writes
    /// waits for it: a table is made beside, and then attached.
    pub(super) async fn make_days(&self, days: &[i64]) -> Result<(), Error> {
        self.query("SELECT version FROM runbell FOR UPDATE", &[])
            .await?;
        for day in days {
            for (table, start) in PARTITIONED {
                let name = format!("{table}_{day}");
                let is_there: bool = self
                    .query_one("SELECT to_regclass($1) IS NOT NULL", &[&name])
                    .await?
                    .try_get(0)?;
                if !is_there {
                    let (from, to) = (start(*day), start(day.saturating_add(1)));
                    self.run(&format!(
                        "CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING INDEXES
                           INCLUDING CONSTRAINTS);
                         ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to});"
                    ))
                    .await?;
                }
            }
        }
        Ok(())
    }

    /// The days of all for which something is owed.
    pub(super) async fn owed_days(&self) -> Result<Vec<i64>, Error> {
        self.numbers(
            "SELECT DISTINCT event / $1 FROM waiting UNION SELECT event / $1 FROM dead ORDER BY 1",
            &[&first_of_day(1)],
        )
        .await
    }

    /// The days that have partitions.
    async fn days(&self) -> Result<Vec<i64>, Error> {
        self.numbers(
            "SELECT substr(relname, 7)::bigint AS day FROM pg_inherits
             JOIN pg_class ON pg_class.oid = inhrelid
             WHERE inhparent = 'event'::regclass ORDER BY 1",
            &[],
        )
        .await
    }

    /// The latest Timestamp that SNS signed, of all that is kept. By topic there is an index that has
    /// it at its end.
    async fn newest(&self) -> Result<Option<i64>, Error> {
        for day in self.days().await?.iter().rev() {
            let newest = self
                .query_one(
                    &format!(
                        "SELECT max((SELECT max(sns_time) FROM event_{day} WHERE topic = name.id))
                         FROM name"
                    ),
                    &[],
                )
                .await;
            match newest {
                Ok(row) => {
                    let newest: Option<i64> = row.try_get(0)?;
                    if newest.is_some() {
                        return Ok(newest);
                    }
                }
                // Another replica has forgotten that day.
                Err(error) if lacks_a_table(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Forgets some of a day if all its events arrived before `before`; whether anything was forgotten.
    async fn forget_day(&self, day: i64, before: i64, now: i64) -> Result<bool, Error> {
        Ok(self.arrived_by(day, before, now).await? && self.forget_one_day(day).await?)
    }

    /// Whether all events of a day arrived before `before`. One that seems to have arrived after `now`
    /// came while a clock was ahead, and keeps nothing.
    async fn arrived_by(&self, day: i64, before: i64, now: i64) -> Result<bool, Error> {
        self.query_one(
            &format!(
                "SELECT NOT EXISTS (SELECT 1 FROM (
                   SELECT received_at FROM event_{day} ORDER BY id DESC LIMIT $1) AS last
                 WHERE received_at BETWEEN $2 AND $3)"
            ),
            &[&LAST, &before, &now],
        )
        .await?
        .try_get(0)
    }

    /// Whether anything was forgotten.
    async fn forget_one_day(&self, day: i64) -> Result<bool, Error> {
        let (first, end) = (first_of_day(day), first_of_day(day.saturating_add(1)));
        // Lanes of single events that are gone; there are few, since each goes when it is empty.
        self.execute(
            "DELETE FROM lane WHERE id IN (
               SELECT id FROM lane WHERE kind = $1 AND number >= $2 AND number < $3
                 AND due_at IS NULL LIMIT $4 FOR UPDATE SKIP LOCKED)",
            &[&KIND_OWN, &first, &end, &STEP],
        )
        .await?;
        let is_owed: bool = self
            .query_one(
                "SELECT EXISTS (SELECT 1 FROM dead WHERE event >= $1 AND event < $2)
                   OR EXISTS (SELECT 1 FROM waiting WHERE event >= $1 AND event < $2)",
                &[&first, &end],
            )
            .await?
            .try_get(0)?;
        if !is_owed {
            // Who reads the table is not waited for long: everybody else would wait behind.
            self.run(&format!(
                "SET LOCAL lock_timeout = '300ms'; DROP TABLE event_{day}; DROP TABLE outcome_{day};"
            ))
            .await?;
            return Ok(true);
        }
        let gone = self
            .numbers(
                &format!(
                    "DELETE FROM event_{day} WHERE id IN (
                       SELECT id FROM event_{day} AS old
                       WHERE NOT EXISTS (SELECT 1 FROM dead WHERE dead.event = old.id)
                         AND NOT EXISTS (SELECT 1 FROM waiting WHERE waiting.event = old.id
                           AND waiting.event >= $1 AND waiting.event < $2)
                       LIMIT $3) RETURNING id"
                ),
                &[&first, &end, &(STEP * 4)],
            )
            .await?;
        self.execute(
            &format!("DELETE FROM outcome_{day} WHERE event = ANY($1)"),
            &[&gone],
        )
        .await?;
        Ok(!gone.is_empty())
    }

    /// Forgets some of the commands of which nothing was heard since `before`; whether there were any.
    /// One that has dead letters stays: resent, they join its lanes, which would be nobody's.
    async fn forget_commands(&self, before: i64) -> Result<bool, Error> {
        let over = self
            .numbers(
                concat!(
                    "SELECT no FROM command WHERE last_event_at < $1
                       AND NOT EXISTS (SELECT 1 FROM lane WHERE lane.number = command.no
                         AND due_at IS NOT NULL AND kind IN ",
                    kinds_of_a_command!(),
                    ") AND NOT EXISTS (SELECT 1 FROM dead WHERE dead.number = command.no
                         AND kind IN ",
                    kinds_of_a_command!(),
                    ") ORDER BY last_event_at LIMIT $2 FOR UPDATE SKIP LOCKED"
                ),
                &[&before, &(STEP / 5)],
            )
            .await?;
        // Its row goes first, and only while nothing was heard of it meanwhile.
        let over = self
            .numbers(
                "DELETE FROM command WHERE no = ANY($1) AND last_event_at < $2 RETURNING no",
                &[&over, &before],
            )
            .await?;
        if over.is_empty() {
            return Ok(false);
        }
        for statement in [
            concat!(
                "DELETE FROM lane WHERE number = ANY($1) AND due_at IS NULL AND kind IN ",
                kinds_of_a_command!()
            ),
            "DELETE FROM thread WHERE command_no = ANY($1)",
            "DELETE FROM step WHERE command_no = ANY($1)",
        ] {
            self.execute(statement, &[&over]).await?;
        }
        Ok(true)
    }

    /// Forgets replicas that are long gone; their books are kept under one number.
    async fn forget_holders(&self) -> Result<(), Error> {
        let gone = self
            .numbers(
                "DELETE FROM holder WHERE beat_at < $1
                   AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.holder = holder.id) RETURNING id",
                &[&self.now.saturating_sub(length(GONE_FOR))],
            )
            .await?;
        if gone.is_empty() {
            return Ok(());
        }
        self.execute(
            "WITH gone AS (DELETE FROM tally WHERE holder <> 0
               AND holder NOT IN (SELECT id FROM holder) RETURNING *)
             INSERT INTO tally AS old (holder, path, sink, day, owed, sent, muted, redundant, dropped, dead)
             SELECT 0, path, sink, day, sum(owed), sum(sent), sum(muted), sum(redundant),
               sum(dropped), sum(dead) FROM gone GROUP BY path, sink, day
               ORDER BY path, sink, day
             ON CONFLICT (holder, path, sink, day) DO UPDATE SET owed = old.owed + excluded.owed,
               sent = old.sent + excluded.sent, muted = old.muted + excluded.muted,
               redundant = old.redundant + excluded.redundant,
               dropped = old.dropped + excluded.dropped, dead = old.dead + excluded.dead",
            &[],
        )
        .await?;
        Ok(())
    }
}

/// The days around that of `now`, in which something may be signed that arrives now or soon.
fn days_around(now: i64) -> Vec<i64> {
    let today = now.div_euclid(86_400_000_000_000);
    (today - 1..=today + AHEAD).collect()
}
