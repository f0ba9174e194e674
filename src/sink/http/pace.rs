//! How fast a destination may be written to.
//!
//! A vendor counts by channel, not by our sink, so sinks that share a destination share its pace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::clock::{earlier, later};

/// A rate: one notice each so often, and so many at once when there were none for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How far apart notices are in the long run.
    pub each: Duration,
    /// How many may go at once.
    pub burst: u32,
}

/// The pace of one destination.
#[derive(Debug)]
pub struct Pace {
    rate: Rate,
    /// When everything taken so far will have been worked off.
    paid_until: Mutex<Timestamp>,
}

/// The destinations known in this process, by what names them.
#[derive(Debug, Default)]
pub struct Paces(HashMap<String, Arc<Pace>>);

impl Paces {
    /// The pace of `destination`, shared by everybody who asks for it.
    pub fn of(&mut self, destination: &str, rate: Rate) -> Arc<Pace> {
        let pace = self.0.entry(destination.to_owned());
        Arc::clone(pace.or_insert_with(|| Arc::new(Pace::new(rate))))
    }
}

impl Pace {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            paid_until: Mutex::new(Timestamp::MIN),
        }
    }

    /// When the next notice may go.
    #[must_use]
    pub fn free_at(&self, now: Timestamp) -> Timestamp {
        let paid_until = *self.paid_until(now);
        earlier(paid_until, self.credit()).max(Timestamp::MIN)
    }

    /// Counts one notice, and says when it may go.
    pub fn take(&self, now: Timestamp) -> Timestamp {
        let mut paid_until = self.paid_until(now);
        let at = earlier(*paid_until, self.credit());
        *paid_until = later((*paid_until).max(now), self.rate.each);
        at
    }

    /// What may be owed and yet go at once.
    fn credit(&self) -> Duration {
        self.rate
            .each
            .saturating_mul(self.rate.burst.saturating_sub(1))
    }

    fn paid_until(&self, now: Timestamp) -> std::sync::MutexGuard<'_, Timestamp> {
        let mut paid_until = self
            .paid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back leaves nothing to wait for.
        let most = later(
            now,
            self.rate
                .each
                .saturating_mul(self.rate.burst)
                .saturating_mul(100),
        );
        *paid_until = (*paid_until).min(most);
        paid_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let rate = Rate {
            each: Duration::from_secs(1),
            burst: 3,
        };
        let mut paces = Paces::default();
        let (one, same) = (paces.of("channel", rate), paces.of("channel", rate));
        let at = |second: i64| Timestamp::from_second(1000 + second).unwrap();
        for _ in 0..3 {
            assert!(one.free_at(at(0)) <= at(0));
            assert!(one.take(at(0)) <= at(0));
        }
        assert_eq!(same.free_at(at(0)), at(1), "two sinks share one channel");
        assert_eq!(same.take(at(1)), at(1));
        assert_eq!(same.free_at(at(1)), at(2));
        assert!(paces.of("another", rate).free_at(at(1)) <= at(1));
        for _ in 0..3 {
            assert!(
                one.take(at(100)) <= at(100),
                "idle time is credit, up to the burst"
            );
        }
        assert_eq!(one.free_at(at(100)), at(101));
    }
}
