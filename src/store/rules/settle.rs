//! Settlements: the meaning of each result, whatever tables it is written to.

use super::columns::nanos;
use crate::store::lanes::Ended;
use crate::store::{Ending, Settled};

/// The change that one result makes to the row that waits.
pub(in crate::store) enum Move<'s> {
    /// The row goes, and the books count its outcome.
    Out(&'s Settled),
    /// The row goes, and becomes a dead letter.
    Bury(&'s Settled),
    /// The row waits on.
    Keep(&'s Settled, Kept<'s>),
    /// The row goes to the same lane of another sink, with its marks.
    HandOver(&'s Settled, &'s str),
}

/// The new columns of a row that waits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Kept<'s> {
    pub(in crate::store) failing_since: Option<i64>,
    pub(in crate::store) progress: Option<&'s str>,
    /// It may have arrived: the next try is marked, and the watermark raised.
    pub(in crate::store) may_have_arrived: bool,
    /// From when on it goes alone, if it steps aside.
    pub(in crate::store) parked_until: Option<i64>,
}

impl<'s> Move<'s> {
    /// The meaning of `settled`.
    pub(in crate::store) fn of(settled: &'s Settled) -> Self {
        let kept = |parked_until| {
            let failure = settled.ending.failure();
            Kept {
                failing_since: failure.and_then(|it| it.since).map(nanos),
                progress: failure.and_then(|it| it.progress.as_deref()),
                may_have_arrived: failure.is_some_and(|it| it.may_have_arrived),
                parked_until,
            }
        };
        match &settled.ending {
            Ending::Sent { .. } | Ending::Redundant | Ending::Muted => Self::Out(settled),
            Ending::Dead => Self::Bury(settled),
            Ending::Retry(_) => Self::Keep(settled, kept(None)),
            Ending::Parked { again_at, .. } => Self::Keep(settled, kept(Some(nanos(*again_at)))),
            Ending::Diverted { to } => Self::HandOver(settled, to),
        }
    }

    /// Whether the watermark is raised to it: what comes below may come too late.
    pub(in crate::store) const fn arrives(&self) -> bool {
        match self {
            Self::Out(settled) => matches!(settled.ending, Ending::Sent { .. }),
            Self::Keep(_, kept) => kept.may_have_arrived,
            Self::Bury(_) | Self::HandOver(..) => false,
        }
    }

    /// The result it came of.
    pub(in crate::store) const fn settled(&self) -> &'s Settled {
        match self {
            Self::Out(settled)
            | Self::Bury(settled)
            | Self::Keep(settled, _)
            | Self::HandOver(settled, _) => settled,
        }
    }
}

/// The results of a settlement that count: all of them while its lease is there, and afterwards
/// those alone that were sent. The rest is somebody else's by then.
pub(in crate::store) fn that_count(ended: &Ended, is_ours: bool) -> impl Iterator<Item = &Settled> {
    let results = ended.results.iter();
    results.filter(move |it| is_ours || matches!(it.ending, Ending::Sent { .. }))
}

/// From when on its lane may go again. A lane that had its turn goes behind those that wait for
/// theirs.
pub(in crate::store) fn not_before(ended: &Ended) -> i64 {
    nanos(ended.not_before.unwrap_or(ended.at))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::delivery::SortKey;
    use crate::store::EventId;
    use crate::store::lanes::Failure;

    #[test]
    fn result_has_one_meaning() {
        let at = Timestamp::from_second(9).unwrap();
        let failure = |may_have_arrived| Failure {
            since: Some(at),
            progress: Some("half".to_owned()),
            may_have_arrived,
        };
        for (ending, meaning, arrives) in [
            (Ending::SENT, "out", true),
            (Ending::Redundant, "out", false),
            (Ending::Muted, "out", false),
            (Ending::Dead, "bury", false),
            (Ending::Diverted { to: "t".to_owned() }, "over", false),
            (Ending::Retry(failure(false)), "keep", false),
            (Ending::Retry(failure(true)), "keep", true),
            (
                Ending::Parked {
                    again_at: at,
                    failure: failure(false),
                },
                "parked",
                false,
            ),
        ] {
            let key = SortKey::from_bytes(vec![1]);
            let settled = Settled::new(EventId(1), key, ending, at);
            let it = Move::of(&settled);
            let is = match &it {
                Move::Out(_) => "out",
                Move::Bury(_) => "bury",
                Move::HandOver(_, to) => {
                    assert_eq!(*to, "t");
                    "over"
                }
                Move::Keep(_, kept) => {
                    assert_eq!(kept.failing_since, Some(9_000_000_000));
                    assert_eq!(kept.progress, Some("half"));
                    if kept.parked_until.is_some() {
                        "parked"
                    } else {
                        "keep"
                    }
                }
            };
            assert_eq!(
                (is, it.arrives()),
                (meaning, arrives),
                "{:?}",
                settled.ending
            );
        }
    }
}
