//! Copying an embedded store into a database, once, so that it can grow.
//!
//! Nobody may use the embedded store meanwhile, and no replica starts on a database into which a copy
//! is not finished. Everything goes in steps that are written down with what they copied, so that a
//! copy that was broken off goes on where it was. In the end every table is counted on both sides.

use std::path::Path;

use futures_util::FutureExt as _;
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use tokio_postgres::types::ToSql;

mod rows;

use rows::{TABLES, Table, Type};

use super::connect::Settings;
use super::faults::translate;
use super::schema::{self, COPYING, unusable};
use super::shared::Shared;
use super::tables::{Street, Tables, day_of_event};
use crate::store::StoreError;

/// How many keys a step copies at most.
const STEP: i64 = 2000;

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rows that are copied.
    pub rows: u64,
    /// Rows there are.
    pub of: u64,
}

/// Copies the embedded store at `from` into the database `to`, which is empty or holds the beginning
/// of the same copy; `tell` hears how far it is. Says how many rows each table has on both sides.
///
/// # Errors
/// When the embedded store is in use, the database is not empty, or either fails; what was copied stays,
/// and the same call goes on from there.
pub async fn copy(
    from: &Path,
    to: &Settings,
    mut tell: impl FnMut(Progress),
) -> Result<Vec<(&'static str, u64)>, StoreError> {
    let (source, _lock) = crate::store::sqlite::open_to_copy(from)?;
    let shared = Shared::connect_to_copy(to).await?;
    begin(&shared).await?;
    let counts = counts(&source)?;
    let of = counts.iter().sum();
    let mut progress = Progress { rows: 0, of };
    for (table, count) in TABLES.iter().zip(&counts) {
        let mut upto = shared.reached(table).await?;
        if upto.is_some() {
            progress.rows += copied(&source, table, upto)?;
        }
        tell(progress);
        while let Some((next, rows)) = read(&source, table, upto)? {
            progress.rows += shared.put(table, next, rows).await?;
            upto = Some(next);
            tell(progress);
        }
        let arrived = shared.count(table).await?;
        if arrived != *count {
            return Err(unusable(&format!(
                "of table {} {count} rows were to be copied and {arrived} are there: empty the database and begin anew",
                table.name
            )));
        }
    }
    shared.finish(&source).await?;
    Ok(TABLES.iter().map(|table| table.name).zip(counts).collect())
}

fn counts(source: &Connection) -> Result<Vec<u64>, StoreError> {
    TABLES
        .iter()
        .map(|table| copied(source, table, None))
        .collect()
}

/// How many rows of a table have keys up to `upto`; of all of it if there is none.
fn copied(source: &Connection, table: &Table, upto: Option<i64>) -> Result<u64, StoreError> {
    let sql = format!(
        "SELECT count(*) FROM {} WHERE ?1 IS NULL OR {} <= ?1",
        table.name, table.key
    );
    let count: i64 = source
        .query_row(&sql, [upto], |row| row.get(0))
        .map_err(of_source)?;
    Ok(count.unsigned_abs())
}

/// One column of some rows, as the database takes it.
enum Column {
    Numbers(Vec<Option<i64>>),
    Bytes(Vec<Option<Vec<u8>>>),
    Texts(Vec<Option<String>>),
    Flags(Vec<bool>),
}

impl Column {
    const fn new(of: Type) -> Self {
        match of {
            Type::Number => Self::Numbers(Vec::new()),
            Type::Bytes => Self::Bytes(Vec::new()),
            Type::Text => Self::Texts(Vec::new()),
            Type::Flag => Self::Flags(Vec::new()),
        }
    }

    fn push(&mut self, value: Value) {
        match (self, value) {
            (Self::Numbers(all), Value::Integer(number)) => all.push(Some(number)),
            (Self::Numbers(all), _) => all.push(None),
            (Self::Bytes(all), Value::Blob(bytes)) => all.push(Some(bytes)),
            (Self::Bytes(all), _) => all.push(None),
            (Self::Texts(all), Value::Text(text)) => all.push(Some(text)),
            (Self::Texts(all), _) => all.push(None),
            (Self::Flags(all), value) => all.push(value == Value::Integer(1)),
        }
    }

    fn as_sql(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Numbers(all) => all,
            Self::Bytes(all) => all,
            Self::Texts(all) => all,
            Self::Flags(all) => all,
        }
    }
}

impl Type {
    const fn word(self) -> &'static str {
        match self {
            Type::Number => "bigint",
            Type::Bytes => "bytea",
            Type::Text => "text",
            Type::Flag => "boolean",
        }
    }
}

/// The next rows of a table after key `after`, by column, and up to which key they go.
fn read(
    source: &Connection,
    table: &Table,
    after: Option<i64>,
) -> Result<Option<(i64, Vec<Column>)>, StoreError> {
    let after = after.unwrap_or(i64::MIN);
    let next = format!(
        "SELECT max(k) FROM (SELECT {key} AS k FROM {name} WHERE {key} > ?1 ORDER BY {key} LIMIT ?2)",
        key = table.key,
        name = table.name
    );
    let next: Option<i64> = source
        .query_row(&next, params![after, STEP], |row| row.get(0))
        .map_err(of_source)?;
    let Some(next) = next else { return Ok(None) };
    let mut columns: Vec<_> = table
        .columns
        .iter()
        .map(|(_, of)| Column::new(*of))
        .collect();
    let mut statement = source.prepare_cached(table.rows).map_err(of_source)?;
    let mut rows = statement.query([after, next]).map_err(of_source)?;
    while let Some(row) = rows.next().map_err(of_source)? {
        for (at, column) in columns.iter_mut().enumerate() {
            column.push(row.get(at).map_err(of_source)?);
        }
    }
    Ok(Some((next, columns)))
}

fn of_source(error: rusqlite::Error) -> StoreError {
    StoreError::Database(error.into())
}

/// Marks the database as one into which a copy is not finished.
async fn begin(shared: &Shared) -> Result<(), StoreError> {
    let version = schema::version();
    let is_empty = shared
        .write(Street::Deliver, move |tables| {
            async move {
                let row = tables
                    .query_one("SELECT version FROM runbell FOR UPDATE", &[])
                    .await?;
                if row.try_get::<_, i64>(0)? == COPYING {
                    return Ok(true);
                }
                let found = "SELECT EXISTS (SELECT 1 FROM event) OR EXISTS (SELECT 1 FROM name)
                   OR EXISTS (SELECT 1 FROM subscription) OR version <> $1 FROM runbell";
                if tables.query_one(found, &[&version]).await?.try_get(0)? {
                    return Ok(false);
                }
                tables
                    .run("CREATE TABLE copied (name TEXT PRIMARY KEY, upto BIGINT NOT NULL)")
                    .await?;
                tables
                    .execute("UPDATE runbell SET version = $1", &[&COPYING])
                    .await?;
                Ok(true)
            }
            .boxed()
        })
        .await?;
    if is_empty {
        Ok(())
    } else {
        Err(unusable(
            "the database is not empty: copy into one that no Runbell has used",
        ))
    }
}

impl Shared {
    async fn connect_to_copy(to: &Settings) -> Result<Self, StoreError> {
        let shared = Self::over(to)?;
        let client = shared
            .pool
            .get()
            .await
            .map_err(super::faults::no_connection)?;
        if !schema::is_copying(&client).await? {
            schema::migrate(&client).await?;
        }
        drop(client);
        Ok(shared)
    }

    /// Up to which key a table is copied.
    async fn reached(&self, table: &'static Table) -> Result<Option<i64>, StoreError> {
        let name = table.name;
        self.read(move |tables| {
            async move {
                let sql = "SELECT upto FROM copied WHERE name = $1";
                let row = tables.query_opt(sql, &[&name]).await?;
                row.map(|row| row.try_get(0)).transpose()
            }
            .boxed()
        })
        .await
    }

    /// Puts rows into a table, and writes down up to which key they go; how many.
    async fn put(
        &self,
        table: &'static Table,
        upto: i64,
        columns: Vec<Column>,
    ) -> Result<u64, StoreError> {
        let days = match (table.name, columns.first()) {
            ("event" | "outcome", Some(Column::Numbers(events))) => {
                let mut days: Vec<_> = events.iter().flatten().copied().map(day_of_event).collect();
                days.sort_unstable();
                days.dedup();
                days
            }
            _ => Vec::new(),
        };
        if !days.is_empty() {
            self.make_days(days).await?;
        }
        let names: Vec<_> = table.columns.iter().map(|(name, _)| *name).collect();
        let each = (1..).zip(table.columns);
        let arrays: Vec<_> = each
            .map(|(number, (_, of))| format!("${number}::{}[]", of.word()))
            .collect();
        let sql = format!(
            "INSERT INTO {} ({}) SELECT * FROM unnest({})",
            table.name,
            names.join(", "),
            arrays.join(", ")
        );
        let work = std::sync::Arc::new((sql, columns));
        self.write(Street::Deliver, move |tables| {
            let work = std::sync::Arc::clone(&work);
            async move {
                let (sql, columns) = &*work;
                let values: Vec<_> = columns.iter().map(Column::as_sql).collect();
                let rows = tables.execute(sql, &values).await?;
                let note = "INSERT INTO copied VALUES ($1, $2)
                   ON CONFLICT (name) DO UPDATE SET upto = $2";
                tables.execute(note, &[&table.name, &upto]).await?;
                Ok(rows)
            }
            .boxed()
        })
        .await
    }

    async fn count(&self, table: &'static Table) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {}", table.name);
        let client = self
            .pool
            .get()
            .await
            .map_err(super::faults::no_connection)?;
        let row = client.query_one(&sql, &[]).await.map_err(translate)?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// Has the database go on with the numbers that follow, and lets replicas start.
    async fn finish(&self, source: &Connection) -> Result<(), StoreError> {
        let last: i64 = source
            .query_row("SELECT coalesce(max(id), 0) + 1 FROM event", [], |row| {
                row.get(0)
            })
            .map_err(of_source)?;
        let version = schema::version();
        self.write(Street::Deliver, move |tables| {
            async move { go_on(tables, last, version).await }.boxed()
        })
        .await
    }
}

async fn go_on(
    tables: &mut Tables<'_>,
    last: i64,
    version: i64,
) -> Result<(), tokio_postgres::Error> {
    tables
        .run(&format!(
            "SELECT setval('event_no', {last}); SELECT setval('outcome_no', 1000000);"
        ))
        .await?;
    for table in TABLES.iter().filter(|table| table.numbered) {
        let (name, key) = (table.name, table.key);
        tables
            .run(&format!(
                "SELECT setval(pg_get_serial_sequence('{name}', '{key}'),
                   (SELECT coalesce(max({key}), 0) + 1 FROM {name}))"
            ))
            .await?;
    }
    tables.run("DROP TABLE copied").await?;
    tables
        .execute("UPDATE runbell SET version = $1", &[&version])
        .await?;
    Ok(())
}
