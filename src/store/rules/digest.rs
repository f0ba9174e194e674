//! Digests: how a whole command stands, counted from its steps.

use crate::delivery::Digest;
use crate::event::Status;

/// How many instances that did not end well a digest names at most.
pub(in crate::store) const MOST_TROUBLED: i64 = 100;

/// Adds so many instances that ended in such a way.
pub(in crate::store) fn count_ended(digest: &mut Digest, status: &str, count: u64) {
    match Status::parse(status) {
        Status::Success => digest.succeeded = count,
        Status::Failed => digest.failed = count,
        Status::TimedOut => digest.timed_out = count,
        Status::Cancelled => digest.cancelled = count,
        Status::InProgress | Status::Other(_) => digest.running += count,
    }
}

/// Whether a summary's status says more of the whole than what is known.
pub(in crate::store) fn says_more(status: &Status, known: Option<&Status>) -> bool {
    known.is_none_or(|known| status.is_terminal() && !known.is_terminal())
}
