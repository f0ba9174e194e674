//! The figures of a run, and the control that every kind of fault was injected.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::run::Outcome;

/// Every kind of fault; a long run must have injected each.
const KINDS: [&str; 26] = [
    "clock leaps",
    "clock leaps while down",
    "clock set back",
    "clock set back while down",
    "disk full",
    "drop",
    "error after",
    "error before",
    "hang after",
    "hang around",
    "hang before",
    "kill",
    "message refused for our clock",
    "orderly stop",
    "pause",
    "permit refused",
    "sink asks for a pause",
    "sink fails for one notice",
    "sink hangs",
    "sink is down",
    "sink refuses",
    "sink takes and hangs",
    "sink takes, the answer is lost",
    "sink waits before the bytes",
    "slow",
    "worker dropped",
];

/// Sums over seeds.
pub struct Figures {
    engine: &'static str,
    needs_all: bool,
    since: Instant,
    pub seeds: u64,
    pub broken: usize,
    injected: BTreeMap<&'static str, u64>,
    told: usize,
    repeats: usize,
    steps: u64,
    passed: Duration,
}

impl Figures {
    /// No seeds yet. A run that is long enough needs every kind of fault.
    pub fn new(engine: &'static str, needs_all: bool) -> Self {
        Self {
            engine,
            needs_all,
            since: Instant::now(),
            seeds: 0,
            broken: 0,
            injected: BTreeMap::new(),
            told: 0,
            repeats: 0,
            steps: 0,
            passed: Duration::ZERO,
        }
    }

    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.broken += usize::from(!outcome.broken.is_empty());
        for (kind, many) in &outcome.injected {
            *self.injected.entry(kind).or_default() += many;
        }
        self.told += outcome.told;
        self.repeats += outcome.repeats;
        self.steps += outcome.steps;
        self.passed += outcome.passed;
    }

    /// Kinds of faults that were never injected.
    fn missing(&self) -> Vec<&'static str> {
        let is_missing = |kind: &&str| self.needs_all && !self.injected.contains_key(*kind);
        KINDS.into_iter().filter(is_missing).collect()
    }

    /// Nothing is broken, and nothing was left out.
    pub fn is_sound(&self) -> bool {
        self.broken == 0 && self.missing().is_empty()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.since.elapsed();
        writeln!(
            f,
            "{}: {} seeds in {:.1} s, {} broken; {} steps, {:.1} virtual hours; {} deliveries told, \
             {} of them marked as possible repeats; {} faults:",
            self.engine,
            self.seeds,
            time.as_secs_f64(),
            self.broken,
            self.steps,
            self.passed.as_secs_f64() / 3600.0,
            self.told,
            self.repeats,
            self.injected.values().sum::<u64>(),
        )?;
        for (kind, many) in &self.injected {
            writeln!(f, "  {many:>9} {kind}")?;
        }
        for kind in self.missing() {
            writeln!(f, "  NEVER     {kind}")?;
        }
        Ok(())
    }
}
