//! Reading the embedded store in steps that are bounded in rows and in bytes.

use std::fs::File;
use std::path::Path;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Error, Row, ToSql, params_from_iter};

use super::table::{Kind, Table};
use crate::store::postgres::{Column, Reached};
use crate::store::{StoreError, sqlite};

/// How many rows a step copies at most: so many are written within a fraction of a second.
const ROWS: usize = 5000;

/// How many bytes a step copies, but for its last row: a message has up to 256 KiB.
const BYTES: usize = 8 << 20;

/// The embedded store, and the lock that keeps everybody else from it.
pub(super) struct Source {
    connection: Connection,
    _lock: File,
}

/// A part of the key of a row.
enum Part<'k> {
    Number(i64),
    Text(&'k [u8]),
    Bytes(&'k [u8]),
}

impl ToSql for Part<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Number(number) => ValueRef::Integer(*number),
            // Others wrote it: it is compared as it is, whatever it holds.
            Self::Text(text) => ValueRef::Text(text),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let (connection, lock) = sqlite::open_to_copy(path)?;
        Ok(Self {
            connection,
            _lock: lock,
        })
    }

    /// The clock's row: latest time, offset and step. Whoever uses the store changes it.
    pub(super) fn clock(&self) -> Result<[i64; 3], StoreError> {
        self.one("SELECT latest, ahead, step FROM clock", |row| {
            Ok([row.get(0)?, row.get(1)?, row.get(2)?])
        })
    }

    pub(super) fn count(&self, table: &Table) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM {}", table.name);
        let count: i64 = self.one(&sql, |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// The greatest number that a table gave away.
    pub(super) fn last_id(&self, table: &Table) -> Result<i64, StoreError> {
        let name = table.name;
        self.one(
            &format!(
                "SELECT max(coalesce((SELECT max(id) FROM {name}), 0),
                   coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{name}'), 0))"
            ),
            |row| row.get(0),
        )
    }

    /// The greatest number of an event.
    pub(super) fn last_event(&self) -> Result<i64, StoreError> {
        self.one("SELECT coalesce(max(id), 0) FROM event", |row| row.get(0))
    }

    fn one<T>(
        &self,
        sql: &str,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.connection.query_row(sql, [], read).map_err(of_source)
    }

    /// The rows of a table that follow those that were reached, by column, and up to where they go.
    pub(super) fn read(
        &self,
        table: &Table,
        reached: &Reached,
    ) -> Result<Option<(Vec<Column>, Reached)>, StoreError> {
        let is_first = reached.rows == 0;
        let key = if is_first {
            Vec::new()
        } else {
            key_of(table, reached)?
        };
        let mut statement = self
            .connection
            .prepare_cached(&table.rows(!is_first, ROWS))
            .map_err(of_source)?;
        let mut rows = statement.query(params_from_iter(&key)).map_err(of_source)?;
        let mut columns: Vec<_> = table.columns.iter().map(|it| column(it.kind)).collect();
        let mut next = Reached {
            rows: reached.rows,
            numbers: Vec::new(),
            bytes: Vec::new(),
        };
        let mut bytes = 0;
        while bytes < BYTES
            && let Some(row) = rows.next().map_err(of_source)?
        {
            next.rows += 1;
            for (at, (to, of)) in columns.iter_mut().zip(table.columns).enumerate() {
                let value = match of.kind {
                    Kind::Count => ValueRef::Integer(i64::try_from(next.rows).unwrap_or(i64::MAX)),
                    _ => row.get_ref(at).map_err(of_source)?,
                };
                bytes += push(to, value).ok_or_else(|| odd(table.name, of.name))?;
            }
            note_key(table, row, &mut next)?;
        }
        Ok((next.rows > reached.rows).then_some((columns, next)))
    }
}

/// Notes the key of a row, which stands behind its columns.
fn note_key(table: &Table, row: &Row<'_>, next: &mut Reached) -> Result<(), StoreError> {
    next.numbers.clear();
    next.bytes.clear();
    for (at, (name, _)) in (table.columns.len()..).zip(table.key) {
        match row.get_ref(at).map_err(of_source)? {
            ValueRef::Integer(number) => next.numbers.push(number),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => next.bytes.push(bytes.to_vec()),
            ValueRef::Null | ValueRef::Real(_) => return Err(odd(table.name, name)),
        }
    }
    Ok(())
}

/// The key that [`note_key`] noted.
fn key_of<'k>(table: &Table, reached: &'k Reached) -> Result<Vec<Part<'k>>, StoreError> {
    let (mut numbers, mut bytes) = (reached.numbers.iter(), reached.bytes.iter());
    let parts = table.key.iter().map(|(name, kind)| {
        let part = match kind {
            Kind::Text => bytes.next().map(|it| Part::Text(it)),
            Kind::Bytes => bytes.next().map(|it| Part::Bytes(it)),
            Kind::Number | Kind::Flag | Kind::Count => numbers.next().map(|it| Part::Number(*it)),
        };
        part.ok_or_else(|| odd(table.name, name))
    });
    parts.collect()
}

const fn column(kind: Kind) -> Column {
    match kind {
        Kind::Number | Kind::Count => Column::Numbers(Vec::new()),
        Kind::Bytes => Column::Bytes(Vec::new()),
        Kind::Text => Column::Texts(Vec::new()),
        Kind::Flag => Column::Flags(Vec::new()),
    }
}

/// Puts a value into its column; how long it is, or nothing if it does not belong there.
fn push(to: &mut Column, value: ValueRef<'_>) -> Option<usize> {
    match (to, value) {
        (Column::Numbers(all), ValueRef::Integer(number)) => all.push(Some(number)),
        (Column::Numbers(all), ValueRef::Null) => all.push(None),
        (Column::Flags(all), ValueRef::Integer(number)) => all.push(number != 0),
        (Column::Bytes(all), ValueRef::Null) => all.push(None),
        (Column::Texts(all), ValueRef::Null) => all.push(None),
        (Column::Bytes(all), ValueRef::Blob(bytes) | ValueRef::Text(bytes)) => {
            all.push(Some(bytes.to_vec()));
            return Some(bytes.len());
        }
        (Column::Texts(all), ValueRef::Text(bytes)) => {
            all.push(Some(std::str::from_utf8(bytes).ok()?.to_owned()));
            return Some(bytes.len());
        }
        _ => return None,
    }
    Some(size_of::<i64>())
}

fn odd(table: &str, column: &str) -> StoreError {
    let why = format!("a row of table {table} holds in {column} what does not belong there");
    StoreError::Unusable(why.into())
}

fn of_source(error: Error) -> StoreError {
    StoreError::Database(error.into())
}
