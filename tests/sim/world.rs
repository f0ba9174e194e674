//! Everything that the parts of one seed share: chance, time, faults, the trace, and the truth.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use jiff::Timestamp;
use runbell::clock::Clock;

use crate::plan::Rates;
use crate::truth::Truth;

/// A bug that the simulator plants beside the product, to show that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A lease whose answer was an error is forgotten, so that no drop guard runs.
    ForgottenLease,
    /// A settlement is answered and not recorded.
    DroppedSettlement,
    /// A sink sends whatever its permit says.
    DeafPermit,
    /// A notice that may be a repeat does not say so.
    LostMark,
}

impl Planted {
    pub const ALL: [Self; 4] = [
        Self::ForgottenLease,
        Self::DroppedSettlement,
        Self::DeafPermit,
        Self::LostMark,
    ];
}

/// The surroundings of one seed.
pub struct World {
    /// Wall and boot time, moved by the driver alone.
    pub clock: Clock,
    pub planted: Option<Planted>,
    is_shown: bool,
    state: Mutex<State>,
}

/// The parts that change.
pub struct State {
    pub rng: Rng,
    pub rates: Rates,
    /// Nothing is injected any more.
    pub is_healed: bool,
    /// The disk takes only what is owed.
    pub is_full: bool,
    /// Until when, in boot time, each sink is down.
    pub down_until: BTreeMap<String, Duration>,
    /// How often each kind of fault was injected.
    pub injected: BTreeMap<&'static str, u64>,
    pub truth: Truth,
    timers: BTreeMap<(Duration, u64), Waker>,
    last_timer: u64,
    trace: u64,
    lines: u64,
}

/// Adds what is written to a hash (FNV-1a), so that traces can be compared without being kept.
struct Hashing<'h>(&'h mut u64);

impl fmt::Write for Hashing<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            *self.0 = (*self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

impl World {
    pub fn new(
        start_at: Timestamp,
        rng: Rng,
        rates: Rates,
        planted: Option<Planted>,
        is_shown: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock: Clock::by_hand(start_at),
            planted,
            is_shown,
            state: Mutex::new(State {
                rng,
                rates,
                is_healed: false,
                is_full: false,
                down_until: BTreeMap::new(),
                injected: BTreeMap::new(),
                truth: Truth::default(),
                timers: BTreeMap::new(),
                last_timer: 0,
                trace: 0xcbf2_9ce4_8422_2325,
                lines: 0,
            }),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Writes a line of the trace.
    pub fn note(&self, line: fmt::Arguments<'_>) {
        let boot = self.clock.boot();
        if self.is_shown {
            println!("{:>12.6} {line}", boot.as_secs_f64() - 3600.0);
        }
        let mut state = self.state();
        state.lines += 1;
        let hashed = fmt::write(
            &mut Hashing(&mut state.trace),
            format_args!("{boot:?} {line}\n"),
        );
        hashed.unwrap();
    }

    /// The hash of the trace, and how many lines it has.
    pub fn trace(&self) -> (u64, u64) {
        let state = self.state();
        (state.trace, state.lines)
    }

    /// Counts a fault that is about to be injected.
    pub fn inject(&self, kind: &'static str) {
        *self.state().injected.entry(kind).or_default() += 1;
        self.note(format_args!("  fault: {kind}"));
    }

    /// Says that a promise was broken.
    pub fn accuse(&self, what: String) {
        self.note(format_args!("BROKEN: {what}"));
        self.state().truth.broken.push(what);
    }

    /// Waits, in virtual time. The order in which sleepers wake is that of their times, which the
    /// channel of a [`Clock`] does not promise to those who share a task.
    pub async fn sleep(&self, time: Duration) {
        let end = self.clock.boot() + time;
        let mut key = None;
        poll_fn(|context| {
            let mut state = self.state();
            if let Some(key) = key.take() {
                state.timers.remove(&key);
            }
            if self.clock.boot() >= end {
                return Poll::Ready(());
            }
            state.last_timer += 1;
            let new = (end, state.last_timer);
            state.timers.insert(new, context.waker().clone());
            key = Some(new);
            Poll::Pending
        })
        .await;
    }

    /// The boot time of the earliest timer.
    pub fn next_timer(&self) -> Option<Duration> {
        self.state().timers.keys().next().map(|(end, _)| *end)
    }

    /// Wakes everybody whose time has come.
    pub fn fire(&self) {
        let now = self.clock.boot();
        loop {
            let waker = {
                let mut state = self.state();
                match state.timers.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }
}

impl State {
    /// Whether something of this rate, out of a thousand, happens now; never after the healing.
    pub fn strikes(&mut self, per_mille: u32) -> bool {
        !self.is_healed && per_mille > 0 && self.rng.u32(0..1000) < per_mille
    }

    /// A time in milliseconds.
    pub fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }
}
