//! What PostgreSQL says when something is wrong, in the store's words.

use deadpool_postgres::PoolError;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// Turns an error into what a caller can act on.
pub(super) fn translate(error: Error) -> StoreError {
    let Some(code) = error.code().map(SqlState::code) else {
        return if is_of_the_line(&error) {
            StoreError::Gone(Some(error.into()))
        } else {
            // What was to be sent has no form in which it can be.
            StoreError::Data(error.into())
        };
    };
    match code.get(..2).unwrap_or_default() {
        "22" | "23" | "54" => StoreError::Data(error.into()),
        _ if code == "P0001" => StoreError::Data(error.into()),
        "53" if code == SqlState::DISK_FULL.code() => StoreError::Full(error.into()),
        // Cut off, shutting down, read-only since another server leads, out of time or connections.
        "08" | "25" | "28" | "3D" | "53" | "55" | "57" => StoreError::Gone(Some(error.into())),
        "40" => StoreError::Busy,
        "42" => StoreError::Unusable(error.into()),
        _ => StoreError::Database(error.into()),
    }
}

/// Whether the same transaction may pass when it is tried anew: it got in the way of another.
pub(super) fn is_passing(error: &Error) -> bool {
    error
        .code()
        .is_some_and(|code| code.code().starts_with("40"))
}

/// Whether no partition of a table takes the row: its day has none yet.
pub(super) fn lacks_a_day(error: &Error) -> bool {
    // The constraint has no name, unlike that of a row which contradicts one.
    error.code() == Some(&SqlState::CHECK_VIOLATION)
        && error
            .as_db_error()
            .is_some_and(|it| it.constraint().is_none())
}

/// Whether the connection can be used no more.
pub(super) fn is_of_the_line(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    error.is_closed()
}

/// There is no connection to be had.
pub(super) fn no_connection(error: PoolError) -> StoreError {
    match error {
        PoolError::Backend(error) => match translate(error) {
            StoreError::Gone(why) => StoreError::Gone(why),
            StoreError::Data(why) | StoreError::Database(why) => StoreError::Gone(Some(why)),
            other => other,
        },
        other => StoreError::Gone(Some(other.into())),
    }
}

/// The database was asked and said nothing for too long.
pub(super) fn too_late() -> StoreError {
    StoreError::Gone(Some("it does not answer in time".into()))
}
