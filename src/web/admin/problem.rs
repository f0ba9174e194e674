//! What goes wrong at the admin door, said as RFC 9457 asks: `application/problem+json`.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::fault::causes;
use crate::store::StoreError;

/// Why a request was not granted; both ends use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The status in words.
    pub title: String,
    /// What is wrong with this request, for a person.
    pub detail: String,
}

impl Problem {
    /// A problem of this status, with a sentence for a person.
    #[must_use]
    pub fn of(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            detail: detail.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Busy | StoreError::Full(_) | StoreError::Gone(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            StoreError::Unusable(_) | StoreError::Data(_) | StoreError::Database(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::of(status, causes(&error))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Three texts and a number always make JSON.
        let body = serde_json::to_string(&self).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, body).into_response()
    }
}
