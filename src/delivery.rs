//! The vocabulary between the two paths: the receive path owes, the deliver path delivers.
//!
//! Pure values. `route` makes [`Owed`], the store keeps it as a row that waits in a lane, `order`
//! decides when it may go, and an [`Outcome`] ends it.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::event::Status;

/// Which lane of a (route, sink) pair a delivery joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneKey {
    /// One lane per command: its summary and its invocations together.
    Command,
    /// One lane per command and instance; the summary has one of its own.
    Instance,
    /// One lane for everything of a topic.
    Topic,
    /// One lane per command, whose batches become one notice each.
    Digest,
    /// A lane for this event alone: no order, or nothing to order by.
    Own,
}

/// How a command stands, as a digest tells it: every instance counts once, by how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Ended well.
    pub succeeded: u64,
    /// Failed.
    pub failed: u64,
    /// Ran out of time.
    pub timed_out: u64,
    /// Were cancelled.
    pub cancelled: u64,
    /// Have started, and not ended as far as is known.
    pub running: u64,
    /// Are named by the command's summary, and nothing was heard of them.
    pub unheard: u64,
    /// What the command's summary says of the whole, if one came.
    pub overall: Option<Status>,
    /// Whether instances that did not end well are among what the last notice could not tell.
    pub has_news: bool,
    /// Instances that did not end well, with their status, the latest first; the first of them only
    /// when they are very many.
    pub troubled: Vec<(String, Status)>,
}

impl Digest {
    /// Whether nothing more is expected: its summary says so, or there is none and everything that
    /// was heard of has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match &self.overall {
            Some(status) => status.is_terminal(),
            None => self.running == 0,
        }
    }

    /// Counts what is not heard of yet, of so many instances that the command's summary names.
    pub fn count_unheard(&mut self, named: usize) {
        let ended = self.succeeded + self.failed + self.timed_out + self.cancelled;
        let named = u64::try_from(named).unwrap_or(u64::MAX);
        self.unheard = named.saturating_sub(ended + self.running);
    }

    /// The status of the whole command: what its summary says, or else the worst of how its
    /// instances ended, once they all have.
    #[must_use]
    pub fn status(&self) -> Status {
        let worst = [
            (self.failed, Status::Failed),
            (self.timed_out, Status::TimedOut),
            (self.cancelled, Status::Cancelled),
            (self.succeeded, Status::Success),
        ];
        let worst = worst.into_iter().find(|(count, _)| *count > 0);
        match (&self.overall, worst) {
            (Some(status), _) => status.clone(),
            (None, Some((_, status))) if self.running == 0 => status,
            (None, _) => Status::InProgress,
        }
    }
}

/// Where a delivery stands in its lane; compares as bytes, in Rust and in every database alike.
///
/// The order is sort time, then rank, then instance, then message id; with the rank first in lanes
/// where a status machine beats the clock. The instance stands before the message id so that two
/// notifications of one step stay neighbours whichever of them came first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SortKey(Vec<u8>);

/// What comes first in a [`SortKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leading {
    /// The sort time: lanes that hold several things.
    Time,
    /// The rank: lanes that hold one thing and its statuses.
    Rank,
}

const TAG_TIME: u8 = 0;
const TAG_RANK: u8 = 1;

impl SortKey {
    /// Builds the key of an event. Times beyond the years 1677–2262 are held at those ends.
    #[must_use]
    pub fn new(
        leading: Leading,
        time: Timestamp,
        rank: u8,
        instance: &str,
        message_id: &str,
    ) -> Self {
        let nanos = clamped_nanos(time);
        // Flipping the sign bit makes two's complement compare as unsigned bytes.
        let ordered = (nanos.cast_unsigned() ^ (1 << 63)).to_be_bytes();
        let mut bytes = Vec::with_capacity(11 + instance.len() + message_id.len());
        match leading {
            Leading::Time => {
                bytes.push(TAG_TIME);
                bytes.extend_from_slice(&ordered);
                bytes.push(rank);
            }
            Leading::Rank => {
                bytes.push(TAG_RANK);
                bytes.push(rank);
                bytes.extend_from_slice(&ordered);
            }
        }
        bytes.extend_from_slice(instance.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(message_id.as_bytes());
        Self(bytes)
    }

    /// The bytes a store keeps.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Takes back what [`SortKey::as_bytes`] gave.
    #[must_use]
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The sort time in the key; the epoch when the bytes are not a key.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        let at = if self.0.first() == Some(&TAG_RANK) {
            2
        } else {
            1
        };
        let ordered = self.0.get(at..at + 8).and_then(|part| part.try_into().ok());
        let nanos = ordered.map_or(0, |bytes| {
            (u64::from_be_bytes(bytes) ^ (1 << 63)).cast_signed()
        });
        from_nanos(nanos)
    }
}

impl fmt::Debug for SortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SortKey({} ", self.time())?;
        for byte in self.0.get(9..).unwrap_or_default() {
            write!(f, "{}", byte.escape_ascii())?;
        }
        f.write_str(")")
    }
}

/// Nanoseconds since the epoch as stores keep them, held at the ends of an `i64`.
#[must_use]
pub fn clamped_nanos(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(if time.as_second() < 0 {
        i64::MIN
    } else {
        i64::MAX
    })
}

/// The moment that [`clamped_nanos`] made into a number.
#[must_use]
pub fn from_nanos(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// How long a delivery waits for an earlier event that may still be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The longest wait, counted from arrival.
    pub at_most: Duration,
    /// What ends the wait before that.
    pub release: Release,
}

/// What may end a hold early. Only lanes of `instance` order know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Nothing: the hold runs out.
    AtEnd,
    /// The event is an `InProgress`: nothing can come before it, so it goes at once, and with it
    /// whatever of its lane waited for it.
    First,
    /// The event is a terminal status: it goes at once when the `InProgress` of the same command
    /// and instance was stored before.
    AfterFirst,
    /// The event's status is unknown: it waits, and switches early release off for its lane.
    Never,
    /// Nothing more is expected of the command: looked at so long after arrival.
    WhenOver(Duration),
}

/// One event owed to one sink: what `route` found and the store shall keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Name of the route that owes it.
    pub route: String,
    /// Name of the sink it is owed to.
    pub sink: String,
    /// The lane it joins.
    pub lane: LaneKey,
    /// Its place in that lane.
    pub key: SortKey,
    /// How long it may be held.
    pub hold: Hold,
}

/// What became of a delivery, or of one try to make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reached the sink.
    Sent,
    /// It failed and will be tried again; it waits on.
    Retry,
    /// It failed too long: it no longer blocks its lane, and is tried again by itself.
    Parked,
    /// It was given up; kept, visible, re-sendable.
    Dead,
    /// It told nothing new and was recorded without being sent.
    Redundant,
    /// A silence covered it.
    Muted,
    /// An operator, or a reload, let it go.
    Dropped,
    /// Another sink is to bring it in place of this one.
    Diverted,
}

impl Outcome {
    /// The word in tables, metrics and on the command line.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Retry => "retry",
            Self::Parked => "parked",
            Self::Dead => "dead",
            Self::Redundant => "redundant",
            Self::Muted => "muted",
            Self::Dropped => "dropped",
            Self::Diverted => "diverted",
        }
    }

    /// The outcome of that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [
            Self::Sent,
            Self::Retry,
            Self::Parked,
            Self::Dead,
            Self::Redundant,
            Self::Muted,
            Self::Dropped,
            Self::Diverted,
        ]
        .into_iter()
        .find(|outcome| outcome.word() == word)
    }

    /// Whether the delivery still waits afterwards.
    #[must_use]
    pub const fn waits(&self) -> bool {
        matches!(self, Self::Retry | Self::Parked)
    }
}

/// What a reader has to know about a delivery besides its event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// It leaves after something that happened later, by this much.
    pub late: Option<Duration>,
    /// Its step was told before, by another notification.
    pub repeat: bool,
    /// An earlier try may have reached the sink.
    pub possible_repeat: bool,
    /// Somebody sent it again from the dead letters.
    pub resent: bool,
    /// Another terminal status of the same thing is known, and it differs.
    pub conflict: bool,
    /// The sink that could not bring it, in whose place this one does.
    pub instead_of: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(leading: Leading, time: &str, rank: u8, instance: &str, id: &str) -> SortKey {
        SortKey::new(leading, time.parse().unwrap(), rank, instance, id)
    }

    #[test]
    fn keys_order_by_time_then_rank_then_instance_then_id() {
        let sorted = [
            key(Leading::Time, "1969-12-31T23:59:59.9Z", 3, "z", "z"),
            key(Leading::Time, "1970-01-01T00:00:00Z", 0, "", "b"),
            key(Leading::Time, "2019-04-25T17:57:09.17Z", 2, "", "a"),
            key(Leading::Time, "2019-04-25T17:57:09.175Z", 1, "i-1", "b"),
            key(Leading::Time, "2019-04-25T17:57:09.175Z", 1, "i-1", "c"),
            key(Leading::Time, "2019-04-25T17:57:09.175Z", 1, "i-10", "a"),
            key(Leading::Time, "2019-04-25T17:57:09.175Z", 2, "i-0", "a"),
        ];
        assert!(sorted.is_sorted(), "{sorted:?}");
    }

    #[test]
    fn a_leading_rank_beats_the_clock() {
        let first = key(Leading::Rank, "2026-01-01T00:00:09Z", 1, "i-1", "b");
        let last = key(Leading::Rank, "2026-01-01T00:00:01Z", 2, "i-1", "a");
        assert!(first < last);
    }

    #[test]
    fn a_key_gives_its_time_back() {
        for leading in [Leading::Time, Leading::Rank] {
            for time in [
                "2026-10-01T09:39:39.025740242Z",
                "1970-01-01T00:00:00Z",
                "1900-02-03T04:05:06Z",
            ] {
                let made = key(leading, time, 2, "mi-1", "id");
                assert_eq!(
                    SortKey::from_bytes(made.as_bytes().to_vec())
                        .time()
                        .to_string(),
                    time
                );
            }
        }
    }
}
