//! Tells a worker that a lane of its sink is due earlier than it thinks.
//!
//! A hint, never the contract: a worker that misses one finds the work at its next look at the
//! store. `app` makes one for each sink; `receive` rings it after a commit, `deliver` waits on it.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::clock::Clock;

/// The earliest moment at which one sink is known to have something to do; cheap to clone.
#[derive(Clone, Debug)]
pub struct Wake(Arc<watch::Sender<Timestamp>>);

impl Default for Wake {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Timestamp::MAX)))
    }
}

impl Wake {
    /// Something is due at `at`.
    pub fn at(&self, at: Timestamp) {
        self.0.send_if_modified(|earliest| {
            let earlier = at < *earliest;
            if earlier {
                *earliest = at;
            }
            earlier
        });
    }

    /// Forgets what was announced. To be called *before* the store is asked, so that what is
    /// appended meanwhile is announced anew.
    pub fn clear(&self) {
        self.0.send_replace(Timestamp::MAX);
    }

    /// Waits until `due`, or until an earlier moment that is announced meanwhile.
    pub async fn wait(&self, clock: &Clock, due: Option<Timestamp>) {
        let mut announced = self.0.subscribe();
        loop {
            let earliest = *announced.borrow_and_update();
            let next = due.map_or(earliest, |due| due.min(earliest));
            tokio::select! {
                biased;
                () = clock.sleep_until(next) => return,
                changed = announced.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_earlier_moment_ends_the_wait_for_a_later_one() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (soon, late) = (
            start + jiff::SignedDuration::from_secs(1),
            start + jiff::SignedDuration::from_secs(9),
        );
        let clock = Clock::by_hand(start);
        let wake = Wake::default();
        let wait = wake.wait(&clock, Some(late));
        tokio::pin!(wait);
        assert!(futures_util::poll!(&mut wait).is_pending());
        wake.at(soon);
        assert!(futures_util::poll!(&mut wait).is_pending());
        clock.set(soon);
        wait.await;
        wake.clear();
        assert!(futures_util::poll!(Box::pin(wake.wait(&clock, Some(late)))).is_pending());
    }
}
