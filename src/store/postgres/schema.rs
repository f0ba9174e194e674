//! Making or upgrading the tables once, however many replicas start together.
//!
//! `schema.sql` holds them, with a comment for each column.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::errors::translate;
use crate::store::StoreError;

/// One entry for each version of the schema, applied in order; never edited once released.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// Where the version is kept: one row, which replicas lock to change tables one at a time.
const META: &str = "
CREATE TABLE IF NOT EXISTS runbell (version BIGINT NOT NULL);
INSERT INTO runbell SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM runbell);
";

/// In place of the version: a copy into these tables is not finished.
pub(super) const COPYING: i64 = -1;

/// The version of these tables.
pub(super) fn version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Makes or upgrades the tables; whether there were none.
pub(super) async fn migrate(client: &Client) -> Result<bool, StoreError> {
    let is_there = client
        .query_typed_one(
            "SELECT to_regclass('runbell') IS NOT NULL, to_regclass('event') IS NOT NULL",
            &[],
        )
        .await
        .map_err(translate)?;
    match (is_there.get(0), is_there.get(1)) {
        (true, _) => {}
        (false, true) => {
            return Err(unusable(
                "this database belongs to another program: make one for Runbell alone, or name a schema of its own with `?options=-csearch_path%3Drunbell`",
            ));
        }
        (false, false) => make_meta(client).await?,
    }
    client.batch_execute("BEGIN").await.map_err(translate)?;
    let migrated = migrate_locked(client).await;
    let end = if migrated.is_ok() {
        "COMMIT"
    } else {
        "ROLLBACK"
    };
    client.batch_execute(end).await.map_err(translate)?;
    migrated
}

/// Replicas that start together make it together: one of them does, and the others find it.
async fn make_meta(client: &Client) -> Result<(), StoreError> {
    // Else two could each put a row.
    let made = client.batch_execute(&format!("BEGIN; {META} COMMIT")).await;
    match made {
        Ok(()) => Ok(()),
        Err(error) if is_made_meanwhile(error.code()) => {
            client.batch_execute("ROLLBACK").await.map_err(translate)
        }
        Err(error) => Err(translate(error)),
    }
}

fn is_made_meanwhile(code: Option<&SqlState>) -> bool {
    [
        SqlState::UNIQUE_VIOLATION,
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
    ]
    .iter()
    .any(|known| Some(known) == code)
}

async fn migrate_locked(client: &Client) -> Result<bool, StoreError> {
    let row = client
        .query_typed_one("SELECT version FROM runbell FOR UPDATE", &[])
        .await
        .map_err(translate)?;
    let version: i64 = row.get(0);
    if version == COPYING {
        return Err(unusable(
            "a copy into this database is not finished: run `runbell store copy` again",
        ));
    }
    let version = usize::try_from(version).unwrap_or_default();
    if version > MIGRATIONS.len() {
        return Err(unusable(
            "this database was upgraded by a newer Runbell: run that one",
        ));
    }
    for migration in MIGRATIONS.iter().skip(version) {
        client.batch_execute(migration).await.map_err(translate)?;
    }
    if version < MIGRATIONS.len() {
        client
            .execute_typed(
                "UPDATE runbell SET version = $1",
                &[(&self::version(), Type::INT8)],
            )
            .await
            .map_err(translate)?;
    }
    Ok(version == 0)
}

/// Whether the tables are there and of this version.
pub(super) async fn is_current(client: &Client) -> Result<bool, StoreError> {
    Ok(version_of(client).await? == Some(version()))
}

/// Whether a copy into these tables is not finished.
pub(super) async fn is_copying(client: &Client) -> Result<bool, StoreError> {
    Ok(version_of(client).await? == Some(COPYING))
}

async fn version_of(client: &Client) -> Result<Option<i64>, StoreError> {
    match client
        .query_typed_one("SELECT version FROM runbell", &[])
        .await
    {
        Ok(row) => Ok(Some(row.get(0))),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(None),
        Err(error) => Err(translate(error)),
    }
}

pub(super) fn unusable(why: &str) -> StoreError {
    StoreError::Unusable(why.into())
}
