//! Leases: the content of one take, and what its row in the store says of it.

use super::columns::RawEvent;
use crate::delivery::{Digest, SortKey};

/// How many bytes of messages a take carries at most, beyond the first.
const LARGEST_TAKE: usize = 4 << 20;

/// How many lanes are looked at beyond those that a take can carry: some have nothing to send.
pub(in crate::store) const SPARE_LANES: usize = 16;

/// The soonest that a lane which had nothing to send is due again, in nanoseconds: else it could
/// stand first for ever, and hide the others of its sink.
pub(in crate::store) const PASSED_OVER: i64 = 100_000_000;

/// A due lane.
pub(in crate::store) struct Due {
    pub(in crate::store) lane: i64,
    pub(in crate::store) kind: i64,
    pub(in crate::store) number: i64,
    pub(in crate::store) route: i64,
    pub(in crate::store) epoch: i64,
    pub(in crate::store) high: Option<SortKey>,
    pub(in crate::store) not_before: i64,
    pub(in crate::store) fed: i64,
    /// It is leased, and its lease has run out.
    pub(in crate::store) leased: bool,
}

/// A row that waits.
pub(in crate::store) struct RawWaiting {
    pub(in crate::store) key: SortKey,
    pub(in crate::store) event: i64,
    pub(in crate::store) release_at: i64,
    pub(in crate::store) alone: bool,
    pub(in crate::store) tries: u32,
    pub(in crate::store) failing_since: Option<i64>,
    pub(in crate::store) resent: bool,
    pub(in crate::store) possible_repeat: bool,
    pub(in crate::store) high_then: Option<SortKey>,
    pub(in crate::store) progress: Option<String>,
    pub(in crate::store) terminal_sent: bool,
    pub(in crate::store) thread: Option<String>,
    /// By number, and then by name.
    pub(in crate::store) instead_of: (Option<i64>, Option<String>),
}

impl RawWaiting {
    /// The watermark that it is held against: a possible repeat against that of when it became one,
    /// since it may itself have raised the lane's.
    pub(in crate::store) fn is_below<'h>(&'h self, lane: Option<&'h SortKey>) -> bool {
        let high = if self.possible_repeat {
            self.high_then.as_ref()
        } else {
            lane
        };
        high.is_some_and(|high| self.key < *high)
    }
}

/// Rows with their events; none where an event's row is missing.
pub(in crate::store) type Taken = Vec<(RawWaiting, Option<RawEvent>)>;

/// How much more a take may carry.
#[derive(Clone, Copy)]
pub(in crate::store) struct Room {
    pub(in crate::store) deliveries: usize,
    bytes: usize,
}

impl Room {
    pub(in crate::store) const fn new(deliveries: usize) -> Self {
        Self {
            deliveries,
            bytes: LARGEST_TAKE,
        }
    }

    /// One delivery more, of so many bytes.
    pub(in crate::store) const fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.deliveries = self.deliveries.saturating_sub(1);
    }

    pub(in crate::store) const fn is_full(&self) -> bool {
        self.deliveries == 0 || self.bytes == 0
    }
}

/// The bounds of what a take carries of one lane. A recovery marks what lies within them and
/// nothing else: what was never handed out is no possible repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Bounds {
    /// The greatest key taken in turn.
    pub(in crate::store) upto: Option<SortKey>,
    /// The latest release taken alone.
    pub(in crate::store) alone_upto: Option<i64>,
}

impl Bounds {
    /// The bounds of `taken`, if it holds anything.
    pub(in crate::store) fn of(taken: &Taken) -> Option<Self> {
        let rows = || taken.iter().map(|(row, _)| row);
        let in_turn = rows().filter(|row| !row.alone).map(|row| &row.key);
        let alone = rows().filter(|row| row.alone).map(|row| row.release_at);
        let bounds = Self {
            upto: in_turn.max().cloned(),
            alone_upto: alone.max(),
        };
        (!taken.is_empty()).then_some(bounds)
    }
}

/// The content of one lane's lease, with the messages still to be parsed.
pub(in crate::store) struct Batch {
    pub(in crate::store) taken: Taken,
    /// How the command stands, where one notice tells of all.
    pub(in crate::store) digest: Option<Digest>,
    /// The summary that said last of the whole command.
    pub(in crate::store) summary: Option<RawEvent>,
    /// How many troubles of the command a digest tells of.
    pub(in crate::store) troubles: i64,
}

impl Batch {
    /// Deliveries that each tell of their own event, in their order, however they were chosen.
    pub(in crate::store) fn plain(mut taken: Taken) -> Self {
        taken.sort_by(|(one, _), (other, _)| one.key.cmp(&other.key));
        Self {
            taken,
            digest: None,
            summary: None,
            troubles: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: u8, release_at: i64, alone: bool) -> (RawWaiting, Option<RawEvent>) {
        let row = RawWaiting {
            key: SortKey::from_bytes(vec![key]),
            event: 1,
            release_at,
            alone,
            tries: 0,
            failing_since: None,
            resent: false,
            possible_repeat: false,
            high_then: None,
            progress: None,
            terminal_sent: false,
            thread: None,
            instead_of: (None, None),
        };
        (row, None)
    }

    #[test]
    fn bounds_tell_what_was_taken_in_turn_from_what_was_taken_alone() {
        let key = |key| Some(SortKey::from_bytes(vec![key]));
        for (taken, upto, alone_upto) in [
            (vec![row(1, 5, false), row(3, 4, false)], key(3), None),
            (vec![row(9, 5, true), row(2, 7, true)], None, Some(7)),
            (vec![row(1, 5, false), row(9, 6, true)], key(1), Some(6)),
        ] {
            let bounds = Bounds::of(&taken).unwrap();
            assert_eq!(bounds, Bounds { upto, alone_upto });
        }
        assert_eq!(Bounds::of(&Vec::new()), None);
    }

    #[test]
    fn possible_repeat_is_held_against_the_watermark_of_before() {
        let (mut it, _) = row(5, 0, false);
        let high = SortKey::from_bytes(vec![7]);
        assert!(it.is_below(Some(&high)));
        it.possible_repeat = true;
        assert!(!it.is_below(Some(&high)));
        it.high_then = Some(SortKey::from_bytes(vec![6]));
        assert!(it.is_below(None));
    }
}
