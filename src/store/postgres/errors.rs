//! The errors of PostgreSQL, in the store's words.
//! <https://www.postgresql.org/docs/current/errcodes-appendix.html>

use deadpool_postgres::PoolError;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// Turns an error into one that a caller can act on. Only what the database says about values is an
/// error of the data; an error that is not known is trouble of the store: the notification is
/// refused with 503, and comes again.
pub(super) fn translate(error: Error) -> StoreError {
    let Some(code) = error.code().map(SqlState::code) else {
        return if is_of_the_line(&error) {
            StoreError::Gone(Some(error.into()))
        } else {
            // A message of the protocol that nobody expected, from a proxy that hiccups, looks so.
            StoreError::Database(error.into())
        };
    };
    if is_slow(code) {
        return StoreError::Busy;
    }
    match class(code) {
        "22" | "23" | "54" => StoreError::Data(error.into()),
        "53" if code == SqlState::DISK_FULL.code() => StoreError::Full(error.into()),
        // Cut off, shutting down, read-only since another server leads, out of time or connections.
        "08" | "25" | "28" | "3D" | "53" | "55" | "57" => StoreError::Gone(Some(error.into())),
        "40" => StoreError::Busy,
        "42" => StoreError::Unusable(error.into()),
        _ => StoreError::Database(error.into()),
    }
}

/// Whether a lock could not be had in time, or a statement took too long: the database answers, and
/// is not gone.
fn is_slow(code: &str) -> bool {
    [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED]
        .iter()
        .any(|known| known.code() == code)
}

/// Whether the same transaction may pass when it is tried anew: it got in the way of another.
pub(super) fn is_passing(error: &Error) -> bool {
    error.code().is_some_and(|code| class(code.code()) == "40")
}

/// Whether the server has ended the transaction, and the connection is good for the next.
pub(super) fn is_over(error: &Error) -> bool {
    let known = ["22", "23", "40", "54", "P0"];
    error
        .code()
        .is_some_and(|code| is_slow(code.code()) || known.contains(&class(code.code())))
}

/// Whether a lock could not be had in time.
pub(super) fn is_locked(error: &Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// Whether no partition of a table takes the row: its day has none.
pub(super) fn lacks_a_day(error: &Error) -> bool {
    // The constraint has no name, unlike that of a row which contradicts one.
    error.code() == Some(&SqlState::CHECK_VIOLATION)
        && error
            .as_db_error()
            .is_some_and(|it| it.constraint().is_none())
}

/// Whether a table is not there: another replica has dropped a day.
pub(super) fn lacks_a_table(error: &Error) -> bool {
    error.code() == Some(&SqlState::UNDEFINED_TABLE)
}

fn class(code: &str) -> &str {
    code.get(..2).unwrap_or_default()
}

/// Whether the connection can be used no more.
fn is_of_the_line(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    error.is_closed()
}

/// The error when no connection is to be had.
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

/// The error when the database was asked and said nothing for too long.
pub(super) fn too_late() -> StoreError {
    StoreError::Gone(Some("it does not answer in time".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_without_a_code_is_trouble_of_the_store() {
        // A message of the protocol that nobody expected has neither a code nor a cause of the line.
        let error = "port=none".parse::<tokio_postgres::Config>().unwrap_err();
        assert!(error.code().is_none());
        let is = translate(error);
        assert!(matches!(is, StoreError::Database(_)), "{is:?}");
    }
}
