//! The tables, and opening a file that has them.
//!
//! Nothing whose size grows with history is touched at a random place once per event: event, lane
//! and step keys grow with time, and only what waits is indexed. Measured against a schema with
//! random keys, an event costs a third to a half less, and as much at a million as at ten thousand.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::faults::translate;
use crate::store::{Opened, StoreError};

/// "Rnbl" in the header of the file: it is ours.
const APPLICATION_ID: i32 = 0x526e_626c;

/// One entry for each version of the schema, applied in order; never edited once released.
const MIGRATIONS: &[&str] = &["
CREATE TABLE name (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE event (
  id INTEGER PRIMARY KEY,
  topic INTEGER NOT NULL,
  sns_time INTEGER NOT NULL,
  message_id TEXT NOT NULL,
  envelope INTEGER NOT NULL,
  received_at INTEGER NOT NULL,
  command_no INTEGER,
  instance TEXT,
  status TEXT,
  event_time INTEGER,
  repeat_of INTEGER,
  conflict INTEGER NOT NULL DEFAULT 0,
  subject TEXT,
  body BLOB NOT NULL,
  UNIQUE (topic, sns_time, message_id)
);
CREATE TABLE command (no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, first_event INTEGER NOT NULL);
CREATE TABLE step (
  command_no INTEGER NOT NULL,
  instance TEXT NOT NULL,
  status TEXT NOT NULL,
  event_time INTEGER NOT NULL,
  event INTEGER NOT NULL,
  PRIMARY KEY (command_no, instance, status, event_time)
) WITHOUT ROWID;
CREATE TABLE lane (
  id INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL,
  number INTEGER NOT NULL,
  instance TEXT NOT NULL,
  route INTEGER NOT NULL,
  sink INTEGER NOT NULL,
  due_at INTEGER,
  not_before INTEGER NOT NULL DEFAULT 0,
  leased INTEGER NOT NULL DEFAULT 0,
  leased_upto BLOB,
  leased_at_event INTEGER,
  batch_upto BLOB,
  epoch INTEGER NOT NULL DEFAULT 0,
  high BLOB,
  early INTEGER NOT NULL DEFAULT 1,
  UNIQUE (kind, number, instance, route, sink)
);
CREATE INDEX lane_due ON lane (sink, due_at) WHERE due_at IS NOT NULL;
CREATE TABLE waiting (
  lane INTEGER NOT NULL,
  sort_key BLOB NOT NULL,
  event INTEGER NOT NULL,
  release_at INTEGER NOT NULL,
  alone INTEGER NOT NULL DEFAULT 0,
  resent INTEGER NOT NULL DEFAULT 0,
  possible_repeat INTEGER NOT NULL DEFAULT 0,
  high_then BLOB,
  instead_of INTEGER,
  tries INTEGER NOT NULL DEFAULT 0,
  failing_since INTEGER,
  progress TEXT,
  PRIMARY KEY (lane, sort_key)
) WITHOUT ROWID;
CREATE INDEX waiting_release ON waiting (lane, alone, release_at);
CREATE TABLE outcome (
  event INTEGER NOT NULL,
  route INTEGER NOT NULL,
  sink INTEGER NOT NULL,
  n INTEGER NOT NULL,
  at INTEGER NOT NULL,
  result TEXT NOT NULL,
  marks INTEGER NOT NULL,
  late INTEGER,
  answer TEXT,
  took INTEGER,
  PRIMARY KEY (event, route, sink, n)
) WITHOUT ROWID;
CREATE TABLE dead (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  event INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  number INTEGER NOT NULL,
  instance TEXT NOT NULL,
  route INTEGER NOT NULL,
  sink INTEGER NOT NULL,
  sort_key BLOB NOT NULL,
  died_at INTEGER NOT NULL,
  tries INTEGER NOT NULL,
  answer TEXT
);
CREATE TABLE thread (
  command_no INTEGER NOT NULL,
  sink INTEGER NOT NULL,
  route INTEGER NOT NULL,
  message TEXT NOT NULL,
  told_upto INTEGER NOT NULL,
  PRIMARY KEY (command_no, sink, route)
) WITHOUT ROWID;
CREATE TABLE sink (name INTEGER PRIMARY KEY, paused_until INTEGER, trouble_since INTEGER);
CREATE TABLE tally (
  sink INTEGER NOT NULL,
  day INTEGER NOT NULL,
  owed INTEGER NOT NULL DEFAULT 0,
  sent INTEGER NOT NULL DEFAULT 0,
  muted INTEGER NOT NULL DEFAULT 0,
  redundant INTEGER NOT NULL DEFAULT 0,
  dropped INTEGER NOT NULL DEFAULT 0,
  dead INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (sink, day)
) WITHOUT ROWID;
CREATE TABLE subscription (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  topic TEXT NOT NULL,
  token TEXT NOT NULL,
  asked_at INTEGER NOT NULL,
  confirmed_at INTEGER,
  UNIQUE (topic, token)
);
CREATE TABLE certificate (url TEXT PRIMARY KEY, pem BLOB NOT NULL, fetched_at INTEGER NOT NULL) WITHOUT ROWID;
"];

/// Opens the file for the one process that may change it, and makes or upgrades its tables. The
/// returned file holds the lock for as long as it lives.
pub(super) fn open(path: &Path) -> Result<(Connection, File, Opened), StoreError> {
    let lock = lock(path)?;
    make_private(path)?;
    let mut connection = Connection::open(path).map_err(translate)?;
    let is_new = migrate(&mut connection, path)?;
    let possible_repeats = take_back_leases(&mut connection).map_err(translate)?;
    let opened = Opened {
        is_new,
        possible_repeats,
    };
    Ok((connection, lock, opened))
}

/// Opens the file to look at it, beside the process that changes it.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(translate)?;
    connection
        .busy_timeout(std::time::Duration::from_secs(5))
        .map_err(translate)?;
    if !is_ours(&connection, path)? {
        return Err(foreign(path));
    }
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// One process owns the file. The lock lies beside it: closing a second descriptor of the database
/// itself would drop the locks that SQLite holds on it.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let failed = |error: std::io::Error| {
        let place = lock_path.display();
        StoreError::Gone(Some(
            format!("cannot open {place}: {error}; does its directory exist, and may this user write there?").into(),
        ))
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(failed)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
        |_| {
            let place = path.display();
            StoreError::Unusable(
                format!("another Runbell uses {place}: stop it, or give each its own store").into(),
            )
        },
    )?;
    Ok(file)
}

/// Makes the file, for its owner alone: it holds messages, and tokens that confirm subscriptions.
/// SQLite gives the files beside it the same mode.
fn make_private(path: &Path) -> Result<(), StoreError> {
    let made = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path);
    made.map(drop)
        .map_err(|error| StoreError::Gone(Some(error.into())))
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<bool, StoreError> {
    // Takes effect on a file that is still empty only.
    connection
        .pragma_update(None, "page_size", 8192)
        .map_err(translate)?;
    let objects: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(translate)?;
    let is_new = objects == 0;
    if !is_new && !is_ours(connection, path)? {
        return Err(foreign(path));
    }
    let settings = [
        ("journal_mode", "WAL"),
        // A commit that was answered survives the loss of power.
        ("synchronous", "FULL"),
        ("temp_store", "MEMORY"),
        ("cache_size", "-8000"),
        ("journal_size_limit", "67108864"),
    ];
    for (name, value) in settings {
        connection
            .pragma_update_and_check(None, name, value, |_| Ok(()))
            .or_else(|error| match error {
                rusqlite::Error::QueryReturnedNoRows => Ok(()),
                error => Err(translate(error)),
            })?;
    }
    let version = version(connection)?;
    let transaction = connection.transaction().map_err(translate)?;
    for migration in MIGRATIONS.iter().skip(version) {
        transaction.execute_batch(migration).map_err(translate)?;
    }
    transaction
        .pragma_update(None, "application_id", APPLICATION_ID)
        .map_err(translate)?;
    transaction
        .pragma_update(
            None,
            "user_version",
            i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX),
        )
        .map_err(translate)?;
    transaction.commit().map_err(translate)?;
    connection.set_prepared_statement_cache_capacity(64);
    // One plan for each statement: else SQLite plans anew for every value that is bound to a limit.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
        .map_err(translate)?;
    Ok(is_new)
}

fn is_ours(connection: &Connection, path: &Path) -> Result<bool, StoreError> {
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(translate)?;
    if id == APPLICATION_ID && version(connection)? > MIGRATIONS.len() {
        let place = path.display();
        return Err(StoreError::Unusable(
            format!("{place} was written by a newer Runbell: run that one").into(),
        ));
    }
    Ok(id == APPLICATION_ID)
}

fn version(connection: &Connection) -> Result<usize, StoreError> {
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(translate)?;
    Ok(usize::try_from(version).unwrap_or_default())
}

fn foreign(path: &Path) -> StoreError {
    let place = path.display();
    StoreError::Unusable(
        format!("{place} belongs to another program: choose another path for the store").into(),
    )
}

/// Frees the lanes that the process before this one had leased. What it may have been sending when
/// it ended is marked: it goes out again, and may have arrived already. So the watermark is raised
/// as if it had, for whatever comes below it; for itself what counts is how high it was before.
fn take_back_leases(connection: &mut Connection) -> rusqlite::Result<u64> {
    let transaction = connection.transaction()?;
    let marked = transaction.execute(
        "UPDATE waiting SET possible_repeat = 1,
           high_then = CASE WHEN possible_repeat THEN high_then
             ELSE (SELECT high FROM lane WHERE lane.id = waiting.lane) END
         WHERE EXISTS (
           SELECT 1 FROM lane WHERE lane.id = waiting.lane AND leased AND sort_key <= leased_upto
             AND event <= leased_at_event)",
        [],
    )?;
    transaction.execute(
        "UPDATE lane SET leased = 0, high = max(coalesce(high, x''), leased_upto), due_at = (
           SELECT max(lane.not_before, min(release_at)) FROM waiting WHERE waiting.lane = lane.id)
         WHERE leased AND id IN (SELECT lane FROM waiting)",
        [],
    )?;
    transaction.commit()?;
    Ok(u64::try_from(marked).unwrap_or_default())
}
