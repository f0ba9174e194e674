//! What SQLite says when something is wrong, in the store's words.

use rusqlite::{Error, ErrorCode};

use crate::store::StoreError;

/// Turns an error into what a caller can act on.
pub(super) fn translate(error: Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(error.into()),
        Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly) => {
            StoreError::Gone(Some(error.into()))
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Unusable(error.into())
        }
        _ if is_of_the_data(&error) => StoreError::Data(error.into()),
        _ => StoreError::Database(error.into()),
    }
}

/// Whether the error lies in what was to be written, so that the rest of a batch may pass.
pub(super) fn is_of_the_data(error: &Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::TooBig
                | ErrorCode::ParameterOutOfRange
        )
    ) || error.sqlite_error_code().is_none()
}

/// Whether there is no room left.
pub(super) fn is_full(error: &Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}
