//! The database as the target of a copy: its begin, its steps, its end.
//!
//! A step may take longer than anything that somebody waits for, and has deadlines of its own.

use std::time::Duration;

use deadpool_postgres::Object;
use tokio_postgres::{Client, Error, Row};

use super::connect::Settings;
use super::errors::{is_passing, no_connection, too_late, translate};
use super::schema::{self, COPYING, unusable};
use super::tables::{day_of_event, first_of_day, start_of_day};
use super::values::{Params, Value, typed};
use crate::store::StoreError;

/// How long a step may take, with all its tries.
const DEADLINE: Duration = Duration::from_mins(3);

/// How often a step is tried that gets in the way of others.
const TRIES: u32 = 5;

/// What a copy that was broken off left behind ends soon, and is waited for until then.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '50s';
    SET LOCAL idle_in_transaction_session_timeout = '60s'";

/// Counting takes as long as it takes.
const BEGIN_TO_COUNT: &str = "BEGIN; SET LOCAL statement_timeout = 0";

/// The name under which the state of the source is written down; no table is called that.
const SOURCE: &str = "(source)";

/// Values of one column of some rows.
pub(in crate::store) enum Column {
    Numbers(Vec<Option<i64>>),
    Bytes(Vec<Option<Vec<u8>>>),
    Texts(Vec<Option<String>>),
    Flags(Vec<bool>),
}

/// Up to where a table is copied: how many rows, and the key of the last of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Reached {
    pub(in crate::store) rows: u64,
    /// Those parts of the key that are numbers, in order.
    pub(in crate::store) numbers: Vec<i64>,
    /// Those that are not.
    pub(in crate::store) bytes: Vec<Vec<u8>>,
}

/// The rows of one step.
pub(in crate::store) struct CopyStep<'s> {
    pub(in crate::store) table: &'static str,
    pub(in crate::store) names: &'s [&'static str],
    pub(in crate::store) columns: Vec<Column>,
    /// How many rows of the table were copied before.
    pub(in crate::store) before: u64,
    pub(in crate::store) reached: Reached,
}

/// The state from which the database goes on.
pub(in crate::store) struct Finish {
    /// The clock's row: latest time, offset and step.
    pub(in crate::store) clock: [i64; 3],
    pub(in crate::store) last_event: i64,
    pub(in crate::store) last_outcome: i64,
    /// Tables whose rows the database numbers, with the last number of each.
    pub(in crate::store) last_ids: Vec<(&'static str, i64)>,
}

/// A database to copy into, over one connection, which ends with the copy.
pub(in crate::store) struct Target {
    client: Object,
}

impl Column {
    const fn word(&self) -> &'static str {
        match self {
            Self::Numbers(_) => "bigint",
            Self::Bytes(_) => "bytea",
            Self::Texts(_) => "text",
            Self::Flags(_) => "boolean",
        }
    }

    fn as_value(&self) -> &dyn Value {
        match self {
            Self::Numbers(all) => all,
            Self::Bytes(all) => all,
            Self::Texts(all) => all,
            Self::Flags(all) => all,
        }
    }
}

impl Target {
    /// Connects, and makes the tables if they are not there.
    pub(in crate::store) async fn connect(to: &Settings) -> Result<Self, StoreError> {
        let client = to.pool(1)?.get().await.map_err(no_connection)?;
        if !schema::is_copying(&client).await? {
            schema::migrate(&client).await?;
        }
        Ok(Self { client })
    }

    /// Marks the database as one into which a copy of these tables is not finished, from a source
    /// in this state. Whether it may go on: a copy of another state must not.
    pub(in crate::store) async fn begin(
        &self,
        state: [i64; 3],
        names: &[&'static str],
    ) -> Result<bool, StoreError> {
        let may = self
            .transact(async |client| {
                let found = "SELECT version FROM runbell FOR UPDATE";
                if query_one(client, found, &[]).await?.try_get::<_, i64>(0)? == COPYING {
                    let sql = "SELECT numbers FROM copied WHERE name = $1";
                    let row = query_one(client, sql, &[&SOURCE]).await?;
                    return Ok(Some(row.try_get::<_, Vec<i64>>(0)? == state));
                }
                let found = "SELECT EXISTS (SELECT 1 FROM event) OR EXISTS (SELECT 1 FROM name)
                   OR EXISTS (SELECT 1 FROM subscription) OR EXISTS (SELECT 1 FROM generation)
                   OR EXISTS (SELECT 1 FROM holder WHERE beat_at <> 0) OR version <> $1
                   FROM runbell";
                let row = query_one(client, found, &[&schema::version()]).await?;
                if row.try_get(0)? {
                    return Ok(None);
                }
                client
                    .batch_execute(
                        "CREATE TABLE copied (name TEXT PRIMARY KEY, rows BIGINT NOT NULL,
                           numbers BIGINT[] NOT NULL, bytes BYTEA[] NOT NULL)",
                    )
                    .await?;
                let note = "INSERT INTO copied
                   SELECT name, 0, '{}'::bigint[], '{}'::bytea[] FROM unnest($1::text[]) AS name
                   UNION ALL SELECT $2::text, 0, $3::bigint[], '{}'::bytea[]";
                execute(client, note, &[&names, &SOURCE, &state.as_slice()]).await?;
                let mark = "UPDATE runbell SET version = $1";
                execute(client, mark, &[&COPYING]).await?;
                Ok(Some(true))
            })
            .await?;
        may.ok_or_else(|| {
            unusable(
                "the database is not empty: a copy into it is finished already, or a Runbell used \
                 it; copy into one that none has used",
            )
        })
    }

    /// Up to where a table is copied.
    pub(in crate::store) async fn reached(&self, table: &str) -> Result<Reached, StoreError> {
        self.transact(async |client| {
            // A step that is on its way from a copy that was broken off is waited for.
            let sql = "SELECT rows, numbers, bytes FROM copied WHERE name = $1 FOR UPDATE";
            let row = query_one(client, sql, &[&table]).await?;
            Ok(Reached {
                rows: row.try_get::<_, i64>(0)?.unsigned_abs(),
                numbers: row.try_get(1)?,
                bytes: row.try_get(2)?,
            })
        })
        .await
    }

    /// Puts the rows of a step, and writes down up to where they go. Does nothing and says no where
    /// the table is not copied up to where the step begins.
    pub(in crate::store) async fn put(&self, step: &CopyStep<'_>) -> Result<bool, StoreError> {
        if let (true, Some(Column::Numbers(events))) = (
            ["event", "outcome"].contains(&step.table),
            step.columns.first(),
        ) {
            let mut days: Vec<_> = events.iter().flatten().copied().map(day_of_event).collect();
            days.sort_unstable();
            days.dedup();
            self.make_days(&days).await?;
        }
        let arrays: Vec<_> = (1..)
            .zip(&step.columns)
            .map(|(number, column)| format!("${number}::{}[]", column.word()))
            .collect();
        let (table, names) = (step.table, step.names.join(", "));
        let sql = format!(
            "INSERT INTO {table} ({names}) SELECT * FROM unnest({})",
            arrays.join(", ")
        );
        let (before, rows) = (number(step.before), number(step.reached.rows));
        let Reached { numbers, bytes, .. } = &step.reached;
        self.transact(async |client| {
            let note = "UPDATE copied SET rows = $3, numbers = $4, bytes = $5
               WHERE name = $1 AND rows = $2";
            let params: Params<'_> = &[&table, &before, &rows, numbers, bytes];
            if execute(client, note, params).await? == 0 {
                return Ok(false);
            }
            let values: Vec<_> = step.columns.iter().map(Column::as_value).collect();
            execute(client, &sql, &values).await?;
            Ok(true)
        })
        .await
    }

    /// Makes the partitions that are missing for some days.
    async fn make_days(&self, days: &[i64]) -> Result<(), StoreError> {
        self.transact(async |client| {
            client
                .batch_execute("SELECT version FROM runbell FOR UPDATE")
                .await?;
            for day in days {
                let next = day.saturating_add(1);
                let times = (start_of_day(*day), start_of_day(next));
                let numbers = (first_of_day(*day), first_of_day(next));
                for (table, (from, to)) in [("event", times), ("outcome", numbers)] {
                    client
                        .batch_execute(&format!(
                            "CREATE TABLE IF NOT EXISTS \"{table}_{day}\" PARTITION OF {table}
                               FOR VALUES FROM ({from}) TO ({to})"
                        ))
                        .await?;
                }
            }
            Ok(())
        })
        .await
    }

    /// How many rows a table has.
    pub(in crate::store) async fn count(&self, table: &str) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {table}");
        let count = async |client: &Client| query_one(client, &sql, &[]).await?.try_get(0);
        let count: i64 = self
            .attempt(BEGIN_TO_COUNT, &count)
            .await
            .map_err(translate)?;
        Ok(count.unsigned_abs())
    }

    /// Has the database go on with the numbers and the time that follow, and lets replicas start.
    pub(in crate::store) async fn finish(&self, finish: &Finish) -> Result<(), StoreError> {
        self.transact(async |client| {
            let sequence = "SELECT setval($1::text::regclass, $2)";
            for (name, last) in [
                ("event_no", finish.last_event),
                ("outcome_no", finish.last_outcome),
            ] {
                query_one(client, sequence, &[&name, &last.saturating_add(1)]).await?;
            }
            let identity = "SELECT setval(pg_get_serial_sequence($1, 'id')::regclass, $2)";
            for (table, last) in &finish.last_ids {
                query_one(client, identity, &[table, &last.saturating_add(1)]).await?;
            }
            let [latest, ahead, step] = &finish.clock;
            let clock = "UPDATE clock SET latest = $1, ahead = $2, step = $3";
            execute(client, clock, &[latest, ahead, step]).await?;
            client.batch_execute("DROP TABLE copied").await?;
            let done = "UPDATE runbell SET version = $1";
            execute(client, done, &[&schema::version()]).await?;
            Ok(())
        })
        .await
    }

    /// Does something in one transaction; again when it gets in the way of others.
    async fn transact<T>(
        &self,
        work: impl AsyncFn(&Client) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let attempts = async {
            let mut tries = 1;
            loop {
                match self.attempt(BEGIN, &work).await {
                    Err(error) if is_passing(&error) && tries < TRIES => tries += 1,
                    done => return done.map_err(translate),
                }
                self.client
                    .batch_execute("ROLLBACK")
                    .await
                    .map_err(translate)?;
            }
        };
        tokio::time::timeout(DEADLINE, attempts)
            .await
            .unwrap_or_else(|_| Err(too_late()))
    }

    /// Does something in one transaction. One that fails stays open: the copy ends with it, and so
    /// does its connection.
    async fn attempt<T>(
        &self,
        begin: &str,
        work: &impl AsyncFn(&Client) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.client.batch_execute(begin).await?;
        let done = work(&self.client).await?;
        self.client.batch_execute("COMMIT").await?;
        Ok(done)
    }
}

/// The first row, of what always has one.
async fn query_one(client: &Client, sql: &str, params: Params<'_>) -> Result<Row, Error> {
    client.query_typed_one(sql, &typed(params)).await
}

/// How many rows it changed.
async fn execute(client: &Client, sql: &str, params: Params<'_>) -> Result<u64, Error> {
    client.execute_typed(sql, &typed(params)).await
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
