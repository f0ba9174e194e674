//! How fast a destination may be written to.
//!
//! A vendor counts by channel, not by our sink, so sinks that share a destination share its pace, and
//! replicas that share it take equal parts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
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
    sharers: Sharers,
    /// When everything taken so far will have been worked off.
    paid_until: Mutex<Timestamp>,
}

/// How many processes bring to the same destinations, each its part of what these take; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sharers(Arc<AtomicU32>);

impl Default for Sharers {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(1)))
    }
}

impl Sharers {
    /// There are so many now.
    pub fn are(&self, many: u32) {
        self.0.store(many.max(1), Ordering::Relaxed);
    }

    fn many(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The destinations known in this process, by what names them.
#[derive(Debug, Default)]
pub struct Paces {
    known: HashMap<String, Arc<Pace>>,
    sharers: Sharers,
}

impl Paces {
    /// Of destinations to which others bring as well.
    #[must_use]
    pub fn shared_by(sharers: Sharers) -> Self {
        Self {
            known: HashMap::new(),
            sharers,
        }
    }

    /// The pace of `destination`, shared by everybody who asks for it.
    pub fn of(&mut self, destination: &str, rate: Rate) -> Arc<Pace> {
        let pace = self.known.entry(destination.to_owned());
        let sharers = &self.sharers;
        Arc::clone(pace.or_insert_with(|| Arc::new(Pace::new(rate, sharers.clone()))))
    }
}

impl Pace {
    fn new(rate: Rate, sharers: Sharers) -> Self {
        Self {
            rate,
            sharers,
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
        *paid_until = later((*paid_until).max(now), self.each());
        at
    }

    /// What may be owed and yet go at once.
    fn credit(&self) -> Duration {
        self.each().saturating_mul(self.burst().saturating_sub(1))
    }

    /// The time that one notice uses up of this process's part.
    fn each(&self) -> Duration {
        self.rate.each.saturating_mul(self.sharers.many())
    }

    /// How many go at once, of this process's part.
    fn burst(&self) -> u32 {
        (self.rate.burst / self.sharers.many()).max(1)
    }

    fn paid_until(&self, now: Timestamp) -> std::sync::MutexGuard<'_, Timestamp> {
        let mut paid_until = self
            .paid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back leaves nothing to wait for.
        let most = later(
            now,
            self.each().saturating_mul(self.burst()).saturating_mul(100),
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
    #[test]
    fn replicas_take_equal_parts() {
        let rate = Rate {
            each: Duration::from_secs(1),
            burst: 4,
        };
        let sharers = Sharers::default();
        let pace = Paces::shared_by(sharers.clone()).of("channel", rate);
        let at = |second: i64| Timestamp::from_second(1000 + second).unwrap();
        sharers.are(2);
        for _ in 0..2 {
            assert!(pace.take(at(0)) <= at(0));
        }
        assert_eq!(pace.take(at(0)), at(2));
        assert_eq!(pace.take(at(0)), at(4));
        sharers.are(1);
        for _ in 0..4 {
            assert!(
                pace.take(at(100)) <= at(100),
                "alone it has the whole of it"
            );
        }
        assert_eq!(pace.take(at(100)), at(101));
    }
}
