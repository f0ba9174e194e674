//! What a sink answered, and what happens next.
//!
//! Pure: verdict, history and `now` go in, a [`Next`] comes out. `deliver` obeys it.

use std::time::Duration;

use jiff::Timestamp;

use crate::clock::{later, since};
use crate::delivery::Outcome;

/// What came of one attempt to send a notice. Only a sink makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It arrived.
    Sent {
        /// What the other side calls it, if it says; with a sink that keeps threads, what it calls
        /// the message to which later ones of the same command refer.
        remote_id: Option<String>,
    },
    /// It did not arrive, and may later.
    Retry {
        /// What stood in the way.
        why: String,
        /// How long the other side asked us to wait.
        after: Option<Duration>,
        /// Whether this notice or the whole sink is in trouble.
        scope: Scope,
        /// What part of it did arrive, in the sink's own words; handed to the next attempt.
        progress: Option<String>,
    },
    /// The other side will never take this notice.
    Refused {
        /// What it said.
        why: String,
        /// Whether plain text in its place may pass.
        content: bool,
    },
    /// The sink itself does not work: bad credentials, a deleted channel, a missing folder.
    Broken {
        /// What is wrong, and where to mend it.
        why: String,
    },
    /// The connection was lost after everything was sent: it may have arrived.
    Unknown {
        /// What happened.
        why: String,
    },
}

impl Verdict {
    /// The word in metrics and logs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Sent { .. } => "sent",
            Self::Retry { .. } => "retry",
            Self::Refused { .. } => "refused",
            Self::Broken { .. } => "broken",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// Whether it arrived.
    #[must_use]
    pub const fn is_sent(&self) -> bool {
        matches!(self, Self::Sent { .. })
    }

    /// Whether the other side has it, or may have.
    #[must_use]
    pub const fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Sent { .. } | Self::Unknown { .. })
    }

    /// Whether it says something of the whole sink, and nothing of the notice.
    #[must_use]
    pub const fn is_of_the_sink(&self) -> bool {
        matches!(
            self,
            Self::Broken { .. }
                | Self::Retry {
                    scope: Scope::Sink,
                    ..
                }
        )
    }
}

/// How far the cause of a failure reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This notice alone.
    Notice,
    /// Everything for this sink.
    Sink,
}

/// How patiently a route's deliveries are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The first backoff; doubled at each try.
    pub first: Duration,
    /// The longest backoff.
    pub longest: Duration,
    /// How long after its first failure a delivery is given up.
    pub horizon: Duration,
    /// How long a failing head may block its lane; `None` is without end.
    pub block_for: Option<Duration>,
}

impl Default for Patience {
    /// One second to fifteen minutes, for a day; a head blocks its lane for a quarter of an hour.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_mins(15),
            horizon: Duration::from_hours(24),
            block_for: Some(Duration::from_mins(15)),
        }
    }
}

/// What is known of the tries so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// How many attempts were made before this one.
    pub tries: u32,
    /// When the first failure of notice scope was.
    pub failing_since: Option<Timestamp>,
}

/// What happens next to a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// What is recorded.
    pub outcome: Outcome,
    /// When it is tried again, if it waits.
    pub again_at: Option<Timestamp>,
    /// The history after this attempt.
    pub history: History,
    /// Until when the whole sink backs off, if it should.
    pub sink_backs_off_until: Option<Timestamp>,
}

/// The longest wait that the other side can ask for.
const LONGEST_ASKED: Duration = Duration::from_hours(1);
/// The shortest wait between two tries of one delivery.
const SHORTEST: Duration = Duration::from_millis(100);

/// Decides what happens next. `jitter` is a number from 0 up to 1, drawn anew for each attempt.
///
/// Trouble of the whole sink lets the sink back off and ages nothing; trouble of one notice is tried
/// until its horizon, and blocks its lane for a while only.
#[must_use]
pub fn next(
    verdict: &Verdict,
    history: History,
    patience: &Patience,
    now: Timestamp,
    jitter: f64,
) -> Next {
    let tries = history.tries.saturating_add(1);
    let backoff = backoff(patience, history.tries, jitter);
    let aged = History {
        tries,
        failing_since: history.failing_since.or(Some(now)),
    };
    let unaged = History { tries, ..history };
    match verdict {
        Verdict::Sent { .. } => Next {
            outcome: Outcome::Sent,
            again_at: None,
            history: unaged,
            sink_backs_off_until: None,
        },
        Verdict::Refused { .. } => Next {
            outcome: Outcome::Dead,
            again_at: None,
            history: aged,
            sink_backs_off_until: None,
        },
        Verdict::Retry {
            scope: Scope::Sink,
            after,
            ..
        } => rest(unaged, later(now, asked(*after).unwrap_or(backoff))),
        Verdict::Broken { .. } => rest(unaged, later(now, backoff)),
        Verdict::Retry {
            scope: Scope::Notice,
            after,
            ..
        } => again(
            aged,
            patience,
            now,
            asked(*after).unwrap_or_default().max(backoff),
        ),
        Verdict::Unknown { .. } => again(aged, patience, now, backoff),
    }
}

/// The sink backs off; the delivery waits with it, no older.
fn rest(history: History, until: Timestamp) -> Next {
    Next {
        outcome: Outcome::Retry,
        again_at: Some(until),
        history,
        sink_backs_off_until: Some(until),
    }
}

/// The delivery is tried again by itself, parked when it has blocked its lane for long, and given up
/// when it has failed for too long.
fn again(history: History, patience: &Patience, now: Timestamp, wait: Duration) -> Next {
    let failing_for = since(history.failing_since.unwrap_or(now), now);
    let outcome = if failing_for >= patience.horizon && history.tries > 1 {
        Outcome::Dead
    } else if patience
        .block_for
        .is_some_and(|longest| failing_for >= longest)
    {
        Outcome::Parked
    } else {
        Outcome::Retry
    };
    Next {
        again_at: outcome.waits().then(|| later(now, wait)),
        outcome,
        history,
        sink_backs_off_until: None,
    }
}

/// Exponential, with full jitter: many deliveries that failed together do not come back together.
fn backoff(patience: &Patience, tries: u32, jitter: f64) -> Duration {
    let doubled = 2_u32.saturating_pow(tries.min(31));
    let ceiling = patience.first.saturating_mul(doubled).min(patience.longest);
    ceiling.mul_f64(jitter.clamp(0.0, 1.0)).max(SHORTEST)
}

fn asked(after: Option<Duration>) -> Option<Duration> {
    after.map(|after| after.clamp(SHORTEST, LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn failed(scope: Scope, after: Option<Duration>) -> Verdict {
        Verdict::Retry {
            why: "503".to_owned(),
            after,
            scope,
            progress: None,
        }
    }

    fn aged(tries: u32, since: i64) -> History {
        History {
            tries,
            failing_since: Some(at(since)),
        }
    }

    #[test]
    fn a_notice_is_tried_again_then_parked_then_given_up() {
        let patience = Patience::default();
        let verdict = failed(Scope::Notice, None);
        for (name, history, second, outcome) in [
            ("the first failure", History::default(), 0, Outcome::Retry),
            ("within its blocking time", aged(5, 0), 899, Outcome::Retry),
            ("at its end", aged(5, 0), 900, Outcome::Parked),
            ("at the horizon", aged(50, 0), 86_400, Outcome::Dead),
            (
                "never without a second try",
                aged(0, -90_000),
                0,
                Outcome::Parked,
            ),
        ] {
            let next = next(&verdict, history, &patience, at(second), 0.5);
            assert_eq!(next.outcome, outcome, "{name}");
            assert_eq!(next.again_at.is_some(), outcome.waits(), "{name}");
            assert_eq!(next.sink_backs_off_until, None, "{name}");
        }
    }

    #[test]
    fn trouble_of_the_sink_ages_nothing() {
        let old = aged(50, -900_000);
        for verdict in [
            failed(Scope::Sink, None),
            Verdict::Broken {
                why: "no such folder".to_owned(),
            },
        ] {
            for history in [History::default(), old] {
                let next = next(&verdict, history, &Patience::default(), at(0), 0.5);
                assert_eq!(next.outcome, Outcome::Retry);
                assert_eq!(next.history.failing_since, history.failing_since);
                assert_eq!(next.sink_backs_off_until, next.again_at);
                assert!(next.again_at > Some(at(0)));
            }
        }
    }

    #[test]
    fn what_the_other_side_asks_is_obeyed_up_to_an_hour() {
        let patience = Patience::default();
        for (asked, wait) in [(30, 30), (3600, 3600), (999_999, 3600)] {
            let after = Some(Duration::from_secs(asked));
            for scope in [Scope::Sink, Scope::Notice] {
                let next = next(
                    &failed(scope, after),
                    History::default(),
                    &patience,
                    at(0),
                    0.9,
                );
                assert_eq!(next.again_at, Some(at(wait)), "{asked} {scope:?}");
            }
        }
    }

    #[test]
    fn a_refusal_is_final_and_success_needs_nothing_more() {
        let patience = Patience::default();
        let refused = Verdict::Refused {
            why: "no".to_owned(),
            content: false,
        };
        let next_of = |verdict| next(verdict, aged(3, -10), &patience, at(0), 0.0);
        assert_eq!(next_of(&refused).outcome, Outcome::Dead);
        assert_eq!(
            next_of(&Verdict::Sent { remote_id: None }).outcome,
            Outcome::Sent
        );
        let unknown = Verdict::Unknown {
            why: "cut".to_owned(),
        };
        assert_eq!(next_of(&unknown).outcome, Outcome::Retry);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_nothing_and_never_too_long(
            tries in 0_u32..u32::MAX, jitter in 0.0_f64..1.0, after in proptest::option::of(0_u64..u64::MAX / 2),
            sink in any::<bool>(), since in -90_000_i64..0,
        ) {
            let scope = if sink { Scope::Sink } else { Scope::Notice };
            let verdict = failed(scope, after.map(Duration::from_secs));
            let patience = Patience { horizon: Duration::MAX, ..Patience::default() };
            let next = next(&verdict, aged(tries, since), &patience, at(0), jitter);
            let again_at = next.again_at.unwrap();
            prop_assert!(again_at > at(0));
            prop_assert!(again_at <= later(at(0), HOUR));
        }
    }
}
