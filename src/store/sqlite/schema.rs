//! Opening a file, and making or upgrading its tables.
//!
//! History has no index but the one that finds a notification again, whose keys grow with time: only
//! what waits is indexed. So an event costs as much at a million as at ten thousand.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::errors::translate;
use crate::store::StoreError;

/// "Rnbl" in the header of the file: it is ours.
const APPLICATION_ID: i32 = 0x526e_626c;

/// One entry for each version of the schema, applied in order; never edited once released. Times
/// are nanoseconds since the epoch: *wall* for people, *logical* for whatever waits (see
/// `rules::time`). The tables of both engines are the same but for what one of them alone needs.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// Opens the file for the one process that may change it, and makes or upgrades its tables. The
/// returned file holds the lock for as long as it lives; the flag says that there was none.
pub(super) fn open(path: &Path) -> Result<(Connection, File, bool), StoreError> {
    let lock = lock(path)?;
    make_private(path)?;
    let mut connection = Connection::open(path).map_err(translate)?;
    let is_new = migrate(&mut connection, path)?;
    Ok((connection, lock, is_new))
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
