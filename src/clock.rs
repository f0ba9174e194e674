//! The one way to learn what time it is.
//!
//! `app` makes the handle and lends it to whatever does I/O; everything that is pure takes `now` as
//! an argument instead. A clock moved by hand makes a test say "five seconds later" and mean it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// Tells wall-clock time and wakes sleepers; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// The machine's, unless another leads it: that one's time, and when it was so.
    System(Arc<ArcSwapOption<(Timestamp, Instant)>>),
    ByHand(Arc<watch::Sender<Timestamp>>),
}

/// How far the clock that leads may be off before it is followed anew: less is how long it took to
/// hear from it.
const TOLERANCE: SignedDuration = SignedDuration::from_millis(20);

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System(Arc::default()))
    }

    /// A clock that stands at `start` until [`Clock::set`] or [`Clock::advance`] moves it.
    #[must_use]
    pub fn by_hand(start: Timestamp) -> Self {
        Self(Source::ByHand(Arc::new(watch::Sender::new(start))))
    }

    /// The present moment, in UTC with nanoseconds as far as the machine knows them.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            #[expect(
                clippy::disallowed_methods,
                reason = "the one place that reads the clock"
            )]
            Source::System(leader) => match &*leader.load() {
                Some(known) => later(known.0, known.1.elapsed()),
                None => Timestamp::now(),
            },
            Source::ByHand(time) => *time.borrow(),
        }
    }

    /// Goes by another clock from here on, which says that it is `now`: one that several machines
    /// share. Between two such words the machine counts on, whatever becomes of its own clock. A clock
    /// that is moved by hand is left alone.
    pub fn follow(&self, now: Timestamp) {
        if let Source::System(leader) = &self.0 {
            let is_new = leader.load().is_none();
            if is_new || self.now().duration_since(now).abs() > TOLERANCE {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the one place that reads the clock"
                )]
                leader.store(Some(Arc::new((now, Instant::now()))));
            }
        }
    }

    /// Sets a clock that is moved by hand; the machine's clock is left alone.
    pub fn set(&self, to: Timestamp) {
        if let Source::ByHand(time) = &self.0 {
            time.send_replace(to);
        }
    }

    /// Moves a clock that is moved by hand; the machine's clock is left alone.
    pub fn advance(&self, by: Duration) {
        if let Source::ByHand(time) = &self.0 {
            time.send_modify(|now| *now = later(*now, by));
        }
    }

    /// Whether somebody waits for a clock that is moved by hand, and nothing happens until it moves.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        match &self.0 {
            Source::System(_) => false,
            Source::ByHand(time) => time.receiver_count() > 0,
        }
    }

    /// Returns at `deadline` or soon after. A wall clock that jumps is noticed within a second; when
    /// it is set back, this returns early, since the deadline came from a time that never was.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        match &self.0 {
            Source::System(_) => {
                let mut before = self.now();
                while before < deadline {
                    let left = since(before, deadline).min(Duration::from_secs(1));
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "the one place that waits for the clock"
                    )]
                    tokio::time::sleep(left).await;
                    let now = self.now();
                    if now < before {
                        return;
                    }
                    before = now;
                }
            }
            Source::ByHand(time) => {
                // Waiting fails only when the sender is gone, and `self` holds it.
                let _ = time.subscribe().wait_for(|now| *now >= deadline).await;
            }
        }
    }
}

/// `at` + `by`, held at the end of representable time instead of overflowing.
#[must_use]
pub fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// `at` − `by`, held at the beginning of representable time instead of overflowing.
#[must_use]
pub fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// How long after `from` the moment `to` lies; zero when it lies before.
#[must_use]
pub fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}
