//! Holds: when a delivery may go, as far as its arrival tells.

use jiff::Timestamp;

use super::columns::nanos;
use crate::clock::later;
use crate::delivery::{Owed, Release};

/// When a delivery may go, of which more is known once its lane is. Times are logical.
pub(in crate::store) struct Times {
    /// When its lane is looked at first.
    pub(in crate::store) look_at: i64,
    /// When its hold runs out.
    pub(in crate::store) at_end: i64,
    /// When it goes from a lane that releases early.
    when_early: i64,
    /// It does not switch early release off for its lane.
    pub(in crate::store) goes_early: bool,
    /// It is one of many that go together when nothing more is expected.
    pub(in crate::store) gathers: bool,
}

impl Times {
    /// The times of a delivery that arrived at `now`; `started` when the `InProgress` of the same
    /// thing is stored.
    pub(in crate::store) fn of(owed: &Owed, now: Timestamp, started: bool) -> Self {
        let at_end = nanos(later(now, owed.hold.at_most));
        let when_early = match owed.hold.release {
            Release::First => nanos(now),
            Release::AfterFirst if started => nanos(now),
            Release::AtEnd | Release::AfterFirst | Release::Never | Release::WhenOver(_) => at_end,
        };
        let look_at = match owed.hold.release {
            Release::WhenOver(wait) => nanos(later(now, wait)).min(at_end),
            _ => when_early,
        };
        Self {
            look_at,
            at_end,
            when_early,
            goes_early: owed.hold.release != Release::Never,
            gathers: matches!(owed.hold.release, Release::WhenOver(_)),
        }
    }

    /// When it goes, from a lane that is new or not, and releases early or not.
    pub(in crate::store) const fn release_at(&self, is_new: bool, early: bool) -> i64 {
        if self.gathers && is_new {
            // The first notice of a digest leaves early, so that a beginning is told soon.
            self.look_at
        } else if early {
            self.when_early
        } else {
            self.at_end
        }
    }
}
