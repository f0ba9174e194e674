//! Days: making the partitions of those to come, and forgetting those that are over.
//!
//! A day goes as a whole, whatever was in it, so that a million old events stall nothing. A day for
//! which something still waits is emptied but for that, in steps. What is known of a command goes
//! when nothing was heard of it for all of the retention and nothing waits in its lanes.

use tokio_postgres::Error;

use super::tables::{Tables, first_of_day, start_of_day};
use crate::store::rows::STEP;

/// How many days ahead there are partitions.
const AHEAD: i64 = 3;

/// Says where a day begins in a table.
type Begins = fn(i64) -> i64;

/// The partitioned tables.
const PARTITIONED: [(&str, Begins); 2] = [("event", start_of_day), ("outcome", first_of_day)];

impl Tables<'_> {
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
                        "CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING INDEXES);
                         ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to});"
                    ))
                    .await?;
                }
            }
        }
        Ok(())
    }

    /// Forgets the oldest day that is over before `day`, or some of it; whether there is more to do.
    pub(super) async fn forget_day(&self, before: i64) -> Result<bool, Error> {
        let days = self
            .query(
                "SELECT substr(relname, 7)::bigint AS day FROM pg_inherits
                 JOIN pg_class ON pg_class.oid = inhrelid
                 WHERE inhparent = 'event'::regclass ORDER BY 1",
                &[],
            )
            .await?;
        for row in &days {
            let day: i64 = row.try_get(0)?;
            if day >= before {
                break;
            }
            if self.forget_one_day(day).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether something was forgotten.
    async fn forget_one_day(&self, day: i64) -> Result<bool, Error> {
        let (first, end) = (first_of_day(day), first_of_day(day.saturating_add(1)));
        let owed: Vec<i64> = self
            .query(
                "SELECT event FROM waiting WHERE event >= $1 AND event < $2
                 UNION SELECT event FROM dead WHERE event >= $1 AND event < $2",
                &[&first, &end],
            )
            .await?
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        if owed.is_empty() {
            // Who reads the table is not waited for long: everybody else would wait behind.
            self.run(&format!(
                "SET LOCAL lock_timeout = '300ms'; DROP TABLE event_{day}; DROP TABLE outcome_{day};"
            ))
            .await?;
            return Ok(true);
        }
        let gone = self
            .query(
                &format!(
                    "DELETE FROM event_{day} WHERE id IN (
                       SELECT id FROM event_{day} WHERE NOT id = ANY($1) LIMIT $2) RETURNING id"
                ),
                &[&owed, &(STEP * 4)],
            )
            .await?;
        let gone: Vec<i64> = gone
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        self.execute(
            &format!("DELETE FROM outcome_{day} WHERE event = ANY($1)"),
            &[&gone],
        )
        .await?;
        Ok(!gone.is_empty())
    }

    /// Forgets some of the commands of which nothing was heard since `before`; whether there were any.
    pub(super) async fn forget_commands(&self, before: i64) -> Result<bool, Error> {
        let over: Vec<i64> = self
            .query(
                "SELECT no FROM command WHERE seen_at < $1
                   AND NOT EXISTS (SELECT 1 FROM lane JOIN waiting ON waiting.lane = lane.id
                     WHERE lane.kind IN (0, 1, 4) AND lane.number = command.no)
                 ORDER BY seen_at LIMIT $2 FOR UPDATE SKIP LOCKED",
                &[&before, &(STEP / 5)],
            )
            .await?
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        if over.is_empty() {
            return Ok(false);
        }
        for statement in [
            "DELETE FROM lane WHERE kind = ANY('{0,1,4}') AND number = ANY($1) AND owner IS NULL
               AND NOT EXISTS (SELECT 1 FROM waiting WHERE waiting.lane = lane.id)",
            "DELETE FROM thread WHERE command_no = ANY($1)",
            "DELETE FROM step WHERE command_no = ANY($1)",
            "DELETE FROM command WHERE no = ANY($1)",
        ] {
            self.execute(statement, &[&over]).await?;
        }
        Ok(true)
    }
}

/// The days around that of `now`, in which something may be signed that arrives now or soon.
pub(super) fn days_around(now: i64) -> Vec<i64> {
    let today = now.div_euclid(86_400_000_000_000);
    (today - 1..=today + AHEAD).collect()
}
