//! The one way to learn what time it is, and to wait.
//!
//! There are two kinds of time, and they are never mixed. *Wall* time is what people read; it jumps
//! when somebody sets a clock. *Steady* time only ever goes forward, by the kernel's boot-time clock,
//! and is what everything waits by: a store gives its own as [`Clock::steady`] (its *logical* time).
//! `app` makes the handle and lends it to whatever does I/O; everything that is pure takes `now` as
//! an argument instead. A clock moved by hand makes a test say "five seconds later" and mean it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// Tells the time and wakes sleepers; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// The machine's wall clock, unless another leads it.
    Machine(Arc<ArcSwapOption<Anchor>>),
    ByHand(Arc<ByHand>),
    /// Counts on from an anchor by the boot-time clock of another.
    Steady(Box<Clock>, Arc<ArcSwap<Anchor>>),
}

/// One moment, as two clocks tell it.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    at: Timestamp,
    boot: Duration,
}

/// A clock that is moved by hand, and who waits for it.
#[derive(Debug)]
struct ByHand {
    hands: Mutex<Hands>,
    sleepers: Mutex<Sleepers>,
}

/// Those who wait, in the order in which they began.
#[derive(Debug, Default)]
struct Sleepers {
    last: u64,
    /// The boot time that each waits for, as far as can be told from how the clocks stand now.
    waits: BTreeMap<u64, (Duration, Waker)>,
}

/// The hands of a clock that is moved by hand.
#[derive(Clone, Copy, Debug)]
struct Hands {
    wall: Timestamp,
    boot: Duration,
}

/// How far the clock that leads may be off before it is followed anew: less is how long it took to
/// hear from it.
const TOLERANCE: SignedDuration = SignedDuration::from_millis(20);

/// The longest sleep before the clock is looked at again. A suspended machine stops the timers of
/// tokio, but not the boot-time clock.
const LONGEST_NAP: Duration = Duration::from_secs(1);

impl Clock {
    /// The machine's wall clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::Machine(Arc::default()))
    }

    /// A clock that stands at `start` until it is moved by [`Clock::set`], [`Clock::advance`] or
    /// [`Clock::leap`].
    #[must_use]
    pub fn by_hand(start: Timestamp) -> Self {
        let hands = Hands {
            wall: start,
            boot: Duration::from_hours(1),
        };
        Self(Source::ByHand(Arc::new(ByHand {
            hands: Mutex::new(hands),
            sleepers: Mutex::default(),
        })))
    }

    /// A clock that stands at `now` and counts on by the boot-time clock, whatever becomes of the
    /// wall clock.
    #[must_use]
    pub fn steady(&self, now: Timestamp) -> Self {
        let anchor = Anchor {
            at: now,
            boot: self.boot(),
        };
        let base = Box::new(self.clone());
        Self(Source::Steady(
            base,
            Arc::new(ArcSwap::from_pointee(anchor)),
        ))
    }

    /// The present moment, in UTC with nanoseconds as far as the machine knows them.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            #[expect(
                clippy::disallowed_methods,
                reason = "the one place that reads the clock"
            )]
            Source::Machine(leader) => match &*leader.load() {
                Some(anchor) => counted_on(**anchor, boot()),
                None => Timestamp::now(),
            },
            Source::ByHand(it) => it.hands().wall,
            Source::Steady(base, anchor) => counted_on(**anchor.load(), base.boot()),
        }
    }

    /// How long the machine has been up, its sleep included. Never goes back, and nobody can set it.
    #[must_use]
    pub fn boot(&self) -> Duration {
        match &self.0 {
            Source::Machine(_) => boot(),
            Source::ByHand(it) => it.hands().boot,
            Source::Steady(base, _) => base.boot(),
        }
    }

    /// Follows another clock from here on, which says that it is `now`. A wall clock is led by one
    /// that several machines share. A steady one is corrected by its store, and never goes back.
    /// One that is moved by hand stays as it is.
    pub fn follow(&self, now: Timestamp) {
        match &self.0 {
            Source::Machine(leader) => {
                let is_new = leader.load().is_none();
                if is_new || self.now().duration_since(now).abs() > TOLERANCE {
                    let boot = boot();
                    leader.store(Some(Arc::new(Anchor { at: now, boot })));
                }
            }
            Source::Steady(base, anchor) => {
                // Both by one reading: a pause between two would set the time back.
                let boot = base.boot();
                let at = now.max(counted_on(**anchor.load(), boot));
                anchor.store(Arc::new(Anchor { at, boot }));
                base.rouse();
            }
            Source::ByHand(_) => {}
        }
    }

    /// The wall time of a clock that is moved by hand; none of any other. Engines take it in place of
    /// the time of their own machine, so that a test says what time it is there too.
    #[must_use]
    pub fn wall_by_hand(&self) -> Option<Timestamp> {
        match &self.0 {
            Source::Machine(_) => None,
            Source::ByHand(it) => Some(it.hands().wall),
            Source::Steady(base, _) => base.wall_by_hand(),
        }
    }

    /// Sets a clock that is moved by hand. Forward, that much time passes; back, somebody set it.
    pub fn set(&self, to: Timestamp) {
        self.move_hands(|hands| {
            hands.boot += since(hands.wall, to);
            hands.wall = to;
        });
    }

    /// Lets time pass on a clock that is moved by hand.
    pub fn advance(&self, by: Duration) {
        self.move_hands(|hands| {
            hands.boot += by;
            hands.wall = later(hands.wall, by);
        });
    }

    /// Moves the wall time alone of a clock that is moved by hand: somebody set it, no time passed.
    pub fn leap(&self, by: SignedDuration) {
        self.move_hands(|hands| {
            hands.wall = hands.wall.checked_add(by).unwrap_or(hands.wall);
        });
    }

    fn move_hands(&self, how: impl FnOnce(&mut Hands)) {
        match &self.0 {
            Source::ByHand(it) => it.move_hands(how),
            Source::Steady(base, _) => base.move_hands(how),
            Source::Machine(_) => {}
        }
    }

    /// Whether somebody waits for a clock that is moved by hand, and nothing happens until it moves.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        match &self.0 {
            Source::Machine(_) => false,
            Source::ByHand(it) => !it.sleepers().waits.is_empty(),
            Source::Steady(base, _) => base.is_awaited(),
        }
    }

    /// How far a clock that is moved by hand has to advance until the next sleeper wakes; none when
    /// nobody waits for a time that still lies ahead. Whoever lets time pass in a simulation moves
    /// the hands by this, once everybody who could go on has gone on.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        match &self.0 {
            Source::Machine(_) => None,
            Source::ByHand(it) => {
                let now = it.hands().boot;
                let sleepers = it.sleepers();
                let ends = sleepers.waits.values().map(|(end, _)| *end);
                let next = ends.filter(|end| *end > now).min();
                next.map(|end| end.saturating_sub(now))
            }
            Source::Steady(base, _) => base.next_wake(),
        }
    }

    /// Returns at `deadline` or soon after. A wall clock that jumps is noticed within a second; when
    /// it is set back, this returns early, since the deadline came from a time that never was.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        match &self.0 {
            Source::ByHand(_) => self.hands_until(|| since(self.now(), deadline)).await,
            Source::Machine(_) => {
                let mut before = self.now();
                while before < deadline {
                    nap(since(before, deadline)).await;
                    let now = self.now();
                    if now < before {
                        return;
                    }
                    before = now;
                }
            }
            Source::Steady(base, _) if matches!(base.0, Source::ByHand(_)) => {
                self.hands_until(|| since(self.now(), deadline)).await;
            }
            Source::Steady(..) => {
                let mut now = self.now();
                while now < deadline {
                    nap(since(now, deadline)).await;
                    now = self.now();
                }
            }
        }
    }

    /// Returns after `time`, whatever becomes of the wall clock.
    pub async fn sleep(&self, time: Duration) {
        let end = self.boot().saturating_add(time);
        match &self.0 {
            Source::ByHand(_) => self.hands_until(|| end.saturating_sub(self.boot())).await,
            Source::Steady(base, _) => Box::pin(base.sleep(time)).await,
            Source::Machine(_) => loop {
                let left = end.saturating_sub(self.boot());
                if left.is_zero() {
                    return;
                }
                nap(left).await;
            },
        }
    }

    /// Waits until the hands of a clock that is moved by hand stand so that nothing is `left`.
    async fn hands_until(&self, left: impl Fn() -> Duration) {
        match &self.0 {
            Source::ByHand(it) => {
                let sleeper = Sleeper::of(it);
                poll_fn(|context| {
                    let wait = left();
                    if wait.is_zero() {
                        return Poll::Ready(());
                    }
                    sleeper.waits_for(wait, context.waker());
                    // The hands may have been moved before the entry was there.
                    if left().is_zero() {
                        return Poll::Ready(());
                    }
                    Poll::Pending
                })
                .await;
            }
            Source::Steady(base, _) => Box::pin(base.hands_until(left)).await,
            Source::Machine(_) => {}
        }
    }

    /// Lets all who wait for a clock that is moved by hand look anew how long they wait.
    fn rouse(&self) {
        match &self.0 {
            Source::ByHand(it) => it.rouse(|_| true),
            Source::Steady(base, _) => base.rouse(),
            Source::Machine(_) => {}
        }
    }
}

impl ByHand {
    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While time passes, only those wake whose time has come. When the clock was set, the others
    /// may have to wait longer, or less.
    fn move_hands(&self, how: impl FnOnce(&mut Hands)) {
        let (before, after) = {
            let mut hands = self.hands();
            let before = *hands;
            how(&mut hands);
            (before, *hands)
        };
        let passed = after.boot.saturating_sub(before.boot);
        let is_set = later(before.wall, passed) != after.wall;
        self.rouse(|end| is_set || end <= after.boot);
    }

    /// Wakes those who wait for a boot time that is `meant`, in the order in which they began.
    fn rouse(&self, meant: impl Fn(Duration) -> bool) {
        let wakers: Vec<Waker> = {
            let sleepers = self.sleepers();
            let waits = sleepers.waits.values().filter(|(end, _)| meant(*end));
            waits.map(|(_, waker)| waker.clone()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// An entry among the sleepers, for as long as somebody sleeps.
struct Sleeper<'c> {
    clock: &'c ByHand,
    number: u64,
}

impl<'c> Sleeper<'c> {
    fn of(clock: &'c ByHand) -> Self {
        let mut sleepers = clock.sleepers();
        sleepers.last += 1;
        let number = sleepers.last;
        Self { clock, number }
    }

    fn waits_for(&self, left: Duration, waker: &Waker) {
        let end = self.clock.hands().boot.saturating_add(left);
        let entry = (end, waker.clone());
        self.clock.sleepers().waits.insert(self.number, entry);
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.clock.sleepers().waits.remove(&self.number);
    }
}

/// The kernel's boot-time clock: monotonic, and it counts on while the machine sleeps.
/// <https://man7.org/linux/man-pages/man2/clock_gettime.2.html>
fn boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}

fn counted_on(anchor: Anchor, boot: Duration) -> Timestamp {
    later(anchor.at, boot.saturating_sub(anchor.boot))
}

async fn nap(left: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that waits for the clock"
    )]
    tokio::time::sleep(left.min(LONGEST_NAP)).await;
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

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn steady_time_passes_and_heeds_no_leap() {
        let wall = Clock::by_hand(start());
        let steady = wall.steady(start());
        wall.advance(Duration::from_secs(5));
        wall.leap(SignedDuration::from_hours(24));
        assert_eq!(steady.now(), later(start(), Duration::from_secs(5)));
        wall.set(earlier(start(), Duration::from_hours(48)));
        assert_eq!(steady.now(), later(start(), Duration::from_secs(5)));
        wall.set(later(wall.now(), Duration::from_secs(2)));
        assert_eq!(steady.now(), later(start(), Duration::from_secs(7)));
    }

    #[test]
    fn steady_time_is_corrected_forward_only() {
        let steady = Clock::by_hand(start()).steady(start());
        let hour = later(start(), Duration::from_hours(1));
        steady.follow(hour);
        assert_eq!(steady.now(), hour);
        steady.follow(start());
        assert_eq!(steady.now(), hour);
    }

    #[tokio::test]
    async fn sleep_ends_by_steady_time_though_the_wall_clock_is_set_back() {
        let wall = Clock::by_hand(start());
        let steady = wall.steady(start());
        let until = later(start(), Duration::from_secs(9));
        let (sleep, nap) = (
            steady.sleep_until(until),
            wall.sleep(Duration::from_secs(9)),
        );
        tokio::pin!(sleep, nap);
        assert!(poll!(&mut sleep).is_pending() && poll!(&mut nap).is_pending());
        wall.set(earlier(start(), Duration::from_hours(1)));
        wall.advance(Duration::from_secs(8));
        assert!(poll!(&mut sleep).is_pending() && poll!(&mut nap).is_pending());
        wall.advance(Duration::from_secs(1));
        assert!(poll!(&mut sleep).is_ready() && poll!(&mut nap).is_ready());
    }

    #[tokio::test]
    async fn next_wake_is_that_of_the_earliest_sleeper_and_follows_a_leap() {
        let wall = Clock::by_hand(start());
        let steady = wall.steady(start());
        assert_eq!(wall.next_wake(), None);
        let (nap, sleep) = (
            steady.sleep(Duration::from_secs(9)),
            wall.sleep_until(later(start(), Duration::from_secs(5))),
        );
        tokio::pin!(nap, sleep);
        assert!(poll!(&mut nap).is_pending() && poll!(&mut sleep).is_pending());
        assert_eq!(steady.next_wake(), Some(Duration::from_secs(5)));
        wall.leap(SignedDuration::from_secs(-2));
        assert!(poll!(&mut nap).is_pending() && poll!(&mut sleep).is_pending());
        assert_eq!(wall.next_wake(), Some(Duration::from_secs(7)));
        wall.advance(Duration::from_secs(7));
        assert!(poll!(&mut nap).is_pending() && poll!(&mut sleep).is_ready());
        assert_eq!(wall.next_wake(), Some(Duration::from_secs(2)));
    }

    #[tokio::test]
    async fn machine_sleeps_and_its_boot_time_grows() {
        let clock = Clock::system();
        let (before, led) = (clock.boot(), clock.steady(start()));
        clock.sleep(Duration::from_millis(2)).await;
        assert!(clock.boot() >= before + Duration::from_millis(2));
        assert!(led.now() >= later(start(), Duration::from_millis(2)));
    }
}
