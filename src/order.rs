//! What of a lane goes, with which marks, and what tells nothing new.
//!
//! Pure. The store hands out the prefix of a lane that may go (when some delivery's hold is over,
//! it goes, and everything before it goes first); here each delivery of that prefix is judged
//! against what the lane has sent already. `deliver` obeys.

use crate::clock::since;
use crate::delivery::{Marks, SortKey};

/// What is known of a delivery that may go.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its place in the lane.
    pub key: &'a SortKey,
    /// Its step was told before.
    pub repeat: bool,
    /// This lane has sent the terminal status of the same command and instance.
    pub ended: bool,
    /// Its event is an `InProgress`.
    pub in_progress: bool,
    /// Another terminal status of the same thing is known.
    pub conflict: bool,
    /// Somebody sent it again from the dead letters.
    pub resent: bool,
    /// An earlier try may have reached the sink.
    pub possible_repeat: bool,
}

/// What happens to a delivery that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes, with these marks.
    Go(Marks),
    /// It tells nothing new: recorded, not sent.
    Redundant(Marks),
}

/// Judges one delivery against `high`, the greatest key that its lane has sent.
#[must_use]
pub fn decide(candidate: &Candidate<'_>, high: Option<&SortKey>, send_redundant: bool) -> Decision {
    let passed = high.filter(|high| candidate.key < high);
    let marks = Marks {
        late: passed
            .filter(|_| !candidate.resent)
            .map(|high| since(candidate.key.time(), high.time())),
        repeat: candidate.repeat,
        possible_repeat: candidate.possible_repeat,
        resent: candidate.resent,
        instead_of: None,
        conflict: candidate.conflict,
    };
    let overtaken = candidate.in_progress && candidate.ended && passed.is_some();
    if (candidate.repeat || overtaken) && !candidate.resent && !send_redundant {
        Decision::Redundant(marks)
    } else {
        Decision::Go(marks)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::delivery::Leading;

    fn key(second: i64) -> SortKey {
        let time = Timestamp::from_second(second).unwrap();
        SortKey::new(Leading::Time, time, 1, "i-1", "m")
    }

    fn candidate(key: &SortKey) -> Candidate<'_> {
        Candidate {
            key,
            repeat: false,
            ended: false,
            in_progress: false,
            conflict: false,
            resent: false,
            possible_repeat: false,
        }
    }

    #[test]
    fn below_the_watermark_is_late_by_the_difference() {
        let (low, high) = (key(10), key(14));
        let late = |candidate, high| match decide(candidate, high, false) {
            Decision::Go(marks) => marks.late,
            Decision::Redundant(marks) => panic!("redundant: {marks:?}"),
        };
        let it = candidate(&low);
        assert_eq!(late(&it, Some(&high)), Some(Duration::from_secs(4)));
        assert_eq!(late(&it, Some(&low)), None);
        assert_eq!(late(&it, None), None);
        let resent = Candidate { resent: true, ..it };
        assert_eq!(late(&resent, Some(&high)), None);
    }

    #[test]
    fn what_tells_nothing_new_is_redundant() {
        let (low, high) = (key(10), key(14));
        let it = candidate(&low);
        let cases = [
            ("new", it, false),
            ("a repeat", Candidate { repeat: true, ..it }, true),
            (
                "an overtaken start",
                Candidate {
                    in_progress: true,
                    ended: true,
                    ..it
                },
                true,
            ),
            (
                "a late start whose end was not sent",
                Candidate {
                    in_progress: true,
                    ..it
                },
                false,
            ),
            (
                "a repeat sent again by hand",
                Candidate {
                    repeat: true,
                    resent: true,
                    ..it
                },
                false,
            ),
        ];
        for (name, candidate, redundant) in cases {
            let decision = decide(&candidate, Some(&high), false);
            assert_eq!(
                matches!(decision, Decision::Redundant(_)),
                redundant,
                "{name}"
            );
            let decision = decide(&candidate, Some(&high), true);
            assert!(
                matches!(decision, Decision::Go(_)),
                "{name}, sent all the same"
            );
        }
        let start = Candidate {
            in_progress: true,
            ended: true,
            ..it
        };
        assert!(
            matches!(decide(&start, Some(&low), false), Decision::Go(_)),
            "not below"
        );
    }
}
