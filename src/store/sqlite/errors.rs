//! The errors of SQLite, in the store's words. <https://sqlite.org/rescode.html>

use rusqlite::{Error, ErrorCode};

use crate::store::StoreError;

/// Turns an error into one that a caller can act on. An error that is not known is trouble of the
/// store and never of the data: the notification is refused with 503, and comes again.
pub(super) fn translate(error: Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(error.into()),
        Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly) => {
            StoreError::Gone(Some(error.into()))
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Unusable(error.into())
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy,
        _ if is_of_the_data(&error) => StoreError::Data(error.into()),
        _ => StoreError::Database(error.into()),
    }
}

/// Whether the error lies in the values that were to be written, so that the rest of a batch may
/// pass.
pub(super) fn is_of_the_data(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

/// Whether there is no room left.
pub(super) fn is_full(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_are_not_known_are_trouble_of_the_store() {
        use rusqlite::ffi;
        let of = |code| Error::SqliteFailure(ffi::Error::new(code), None);
        for (error, is_data) in [
            (of(ffi::SQLITE_CONSTRAINT_CHECK), true),
            (of(ffi::SQLITE_CONSTRAINT_TRIGGER), true),
            (of(ffi::SQLITE_PROTOCOL), false),
            (of(ffi::SQLITE_ERROR), false),
            (of(ffi::SQLITE_IOERR_FSYNC), false),
            (Error::QueryReturnedNoRows, false),
            (Error::InvalidQuery, false),
        ] {
            let text = error.to_string();
            let is = matches!(translate(error), StoreError::Data(_));
            assert_eq!(is, is_data, "{text}");
        }
    }
}
