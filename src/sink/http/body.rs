//! The body of a call, which asks at the last moment whether it may go.
//!
//! Only hyper knows when a connection stands and the request is next on it: it then encodes the head
//! into its buffer, asks the body for its first piece, and writes to the socket after that. A body
//! that fails there has kept the head from leaving as well: hyper drops the connection with what it
//! had buffered. That order is held by tests that count the bytes at the other end.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

use crate::sink::Permit;

/// The bytes of one call, under a permit.
pub(super) struct Guarded {
    /// All of them, until they are handed over.
    bytes: Option<Bytes>,
    permit: Permit,
}

/// What hyper is told in place of the bytes.
#[derive(Debug, thiserror::Error)]
#[error("{}", super::super::permit::REFUSED)]
pub(super) struct Refused;

impl Guarded {
    pub(super) fn new(bytes: Vec<u8>, permit: &Permit) -> Self {
        Self {
            bytes: Some(bytes.into()),
            permit: permit.clone(),
        }
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = Refused;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Refused>>> {
        let frame = self.bytes.take().map(|bytes| {
            if self.permit.begin() {
                Ok(Frame::data(bytes))
            } else {
                Err(Refused)
            }
        });
        Poll::Ready(frame)
    }

    /// Not before the bytes were asked for, however few: hyper asks nothing of a body that is at its
    /// end, and would send the head.
    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    /// Exact, so that the call says its length and is not sent in chunks, which some services refuse.
    /// A body of no bytes does not say so: of a length of nothing hyper would ask nothing.
    fn size_hint(&self) -> SizeHint {
        match &self.bytes {
            Some(bytes) if bytes.is_empty() => SizeHint::default(),
            Some(bytes) => SizeHint::with_exact(bytes.len() as u64),
            None => SizeHint::with_exact(0),
        }
    }
}
