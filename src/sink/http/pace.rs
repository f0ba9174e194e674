//! How fast a destination may be written to.
//!
//! A vendor counts by channel, not by our sink, so sinks that share a destination share its pace, and
//! replicas that share it take equal parts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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
    /// When everything taken so far will have been worked off, in boot time: a wall clock that is
    /// set back leaves nothing to wait for.
    paid_until: Mutex<Duration>,
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
            paid_until: Mutex::default(),
        }
    }

    /// How long until the next notice may go; `now` is boot time.
    #[must_use]
    pub fn free_in(&self, now: Duration) -> Duration {
        self.wait(*self.paid_until(), now)
    }

    /// Counts one notice, and says how long until it may go; `now` is boot time.
    pub fn take(&self, now: Duration) -> Duration {
        let mut paid_until = self.paid_until();
        let wait = self.wait(*paid_until, now);
        *paid_until = (*paid_until).max(now).saturating_add(self.each());
        wait
    }

    fn wait(&self, paid_until: Duration, now: Duration) -> Duration {
        // So much may be owed and yet go at once.
        let credit = self.each().saturating_mul(self.burst().saturating_sub(1));
        paid_until.saturating_sub(credit).saturating_sub(now)
    }

    /// The time that one notice uses up of this process's part.
    fn each(&self) -> Duration {
        self.rate.each.saturating_mul(self.sharers.many())
    }

    /// How many go at once, of this process's part.
    fn burst(&self) -> u32 {
        (self.rate.burst / self.sharers.many()).max(1)
    }

    fn paid_until(&self) -> std::sync::MutexGuard<'_, Duration> {
        self.paid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(second: u32) -> Duration {
        SECOND * (1000 + second)
    }

    #[test]
    fn burst_goes_at_once_and_the_rest_at_the_rate() {
        let rate = Rate {
            each: SECOND,
            burst: 3,
        };
        let mut paces = Paces::default();
        let (one, same) = (paces.of("channel", rate), paces.of("channel", rate));
        for _ in 0..3 {
            assert!(one.free_in(at(0)).is_zero());
            assert!(one.take(at(0)).is_zero());
        }
        assert_eq!(same.free_in(at(0)), SECOND, "two sinks share one channel");
        assert!(same.take(at(1)).is_zero());
        assert_eq!(same.free_in(at(1)), SECOND);
        assert!(paces.of("another", rate).free_in(at(1)).is_zero());
        for _ in 0..3 {
            assert!(
                one.take(at(100)).is_zero(),
                "idle time is credit, up to the burst"
            );
        }
        assert_eq!(one.free_in(at(100)), SECOND);
    }

    #[test]
    fn replicas_take_equal_parts() {
        let rate = Rate {
            each: SECOND,
            burst: 4,
        };
        let sharers = Sharers::default();
        let pace = Paces::shared_by(sharers.clone()).of("channel", rate);
        sharers.are(2);
        for _ in 0..2 {
            assert!(pace.take(at(0)).is_zero());
        }
        assert_eq!(pace.take(at(0)), SECOND * 2);
        assert_eq!(pace.take(at(0)), SECOND * 4);
        sharers.are(1);
        for _ in 0..4 {
            assert!(pace.take(at(100)).is_zero(), "alone it has the whole of it");
        }
        assert_eq!(pace.take(at(100)), SECOND);
    }
}
