//! The books: how many deliveries of a sink went which way.
//!
//! Conservation holds at every commit: owed = sent + muted + redundant + dropped + dead + waiting.

use crate::delivery::Outcome;

/// The change that one transaction makes to the books of a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Change {
    pub(in crate::store) owed: i64,
    pub(in crate::store) sent: i64,
    pub(in crate::store) muted: i64,
    pub(in crate::store) redundant: i64,
    pub(in crate::store) dropped: i64,
    pub(in crate::store) dead: i64,
}

impl Change {
    /// Books so many deliveries that ended so. One that waits on is not booked, nor one that waits
    /// elsewhere: [`Change::moved_away`] is for that.
    pub(in crate::store) const fn count(&mut self, outcome: &Outcome, many: i64) {
        match outcome {
            Outcome::Sent => self.sent += many,
            Outcome::Muted => self.muted += many,
            Outcome::Redundant => self.redundant += many,
            Outcome::Dropped => self.dropped += many,
            Outcome::Dead => self.dead += many,
            Outcome::Retry | Outcome::Parked | Outcome::Diverted => {}
        }
    }

    /// Books so many deliveries that are owed elsewhere now.
    pub(in crate::store) const fn moved_away(&mut self, many: i64) {
        self.owed -= many;
    }

    /// Books so many deliveries that were owed elsewhere before.
    pub(in crate::store) const fn moved_here(&mut self, many: i64) {
        self.owed += many;
    }
}
