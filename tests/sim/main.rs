//! The simulator: the real worker and the real store on one thread, a step at a time, with faults at
//! every call. Everything random comes from a seed, so that whatever breaks can be played again.
//!
//! Without arguments it plays a short form, which is one of the project's tests. `make sim` plays a
//! long one; `make sim ARGS='--seed 7 --engine sqlite --trace'` plays one seed and shows each step.
#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test that cannot go on says so at once, and this one speaks to whoever started it"
)]

mod engine;
mod faulty;
mod figures;
mod harness;
#[expect(dead_code, reason = "the twin tests look at more of it")]
#[path = "../it/model/mod.rs"]
mod model;
mod oracle;
mod plan;
mod postgres;
mod run;
mod sink;
mod tasks;
mod truth;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use engine::{Engine, OnModel, OnSqlite};
use figures::Figures;
use postgres::OnPostgres;
use run::Outcome;
use world::Planted;

/// The engines, with how many seeds the short form plays on each, and how many `make sim`.
const ENGINES: [(&str, u64, u64); 3] = [
    ("sqlite", 60, 50_000),
    ("model", 60, 50_000),
    ("postgres", 2, 5000),
];
/// Each of so many seeds is played twice, and both must go the same way.
const TWICE: u64 = 100;
/// A run of so many seeds must have injected every kind of fault.
const NEEDS_ALL: u64 = 200;
/// Within so many seeds each planted bug must be found.
const FOUND_WITHIN: u64 = 400;
/// A run stops after so many seeds that broke a promise.
const ENOUGH: usize = 5;

/// What is to be played.
struct Arguments {
    from: u64,
    /// How many seeds; the number of each engine's own if it is not said.
    seeds: Option<u64>,
    is_long: bool,
    shows: bool,
    engine: Option<String>,
    planted: bool,
}

impl Arguments {
    /// Reads the command line; none when it asks for other tests only.
    fn read() -> Option<Self> {
        let mut it = Self {
            from: 0,
            seeds: None,
            is_long: false,
            shows: false,
            engine: None,
            planted: true,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|it| it.parse::<u64>().ok());
            match word.as_str() {
                "--long" => it.is_long = true,
                "--seeds" => it.seeds = number(),
                "--from" => it.from = number().unwrap_or(0),
                "--seed" => {
                    it.from = number().unwrap_or(0);
                    it.seeds = Some(1);
                    it.planted = false;
                }
                "--engine" => it.engine = words.next(),
                "--trace" => it.shows = true,
                // Of those that cargo hands to every test the simulator needs none.
                "--list" => return None,
                option if option.starts_with('-') => {}
                filter if !"sim".contains(filter) => return None,
                _ => {}
            }
        }
        Some(it)
    }
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::read() else {
        return ExitCode::SUCCESS;
    };
    if arguments.shows {
        let filter = tracing_subscriber::EnvFilter::new("runbell=info");
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .init();
    }
    let wanted = |name: &str| {
        arguments
            .engine
            .as_ref()
            .is_none_or(|engine| engine == name)
    };
    let engines: Vec<_> = ENGINES
        .into_iter()
        .filter(|(name, ..)| wanted(name))
        .collect();
    let mut is_sound = !engines.is_empty();
    for (name, short, long) in engines {
        let mut engine = open(name);
        let many = if arguments.is_long { long } else { short };
        let many = arguments.seeds.unwrap_or(many);
        let figures = play(&arguments, &mut *engine, many);
        println!("{figures}");
        is_sound &= figures.is_sound();
        // A seed on PostgreSQL takes ten times as long, and shows the same.
        if arguments.planted && name != "postgres" {
            for bug in Planted::ALL {
                is_sound &= finds(bug, &mut *engine);
            }
        }
    }
    if is_sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn open(engine: &str) -> Box<dyn Engine> {
    match engine {
        "model" => Box::new(OnModel::default()),
        "postgres" => Box::new(OnPostgres::new()),
        _ => Box::new(OnSqlite::new()),
    }
}

fn play(arguments: &Arguments, engine: &mut dyn Engine, many: u64) -> Figures {
    let mut figures = Figures::new(engine.name(), many >= NEEDS_ALL);
    for seed in arguments.from..arguments.from + many {
        let mut outcome = guarded(seed, engine, None, arguments.shows);
        if seed % TWICE == 0 && !arguments.shows {
            let again = guarded(seed, engine, None, false);
            if again != outcome {
                let (first, second) = (outcome.trace, again.trace);
                outcome
                    .broken
                    .push(format!("two runs differ: {first:x?}, {second:x?}"));
            }
        }
        for what in &outcome.broken {
            println!("seed {seed} on {}: {what}", engine.name());
        }
        figures.add(&outcome);
        if figures.broken >= ENOUGH {
            println!("enough is broken; the rest is not played");
            break;
        }
    }
    figures
}

/// Plays a seed; a panic in it is a broken promise.
fn guarded(seed: u64, engine: &mut dyn Engine, planted: Option<Planted>, shows: bool) -> Outcome {
    let played = catch_unwind(AssertUnwindSafe(|| run::run(seed, engine, planted, shows)));
    played.unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
        Outcome {
            broken: vec![format!("panic: {}", what.unwrap_or_default())],
            ..Outcome::default()
        }
    })
}

/// Whether a planted bug is found; says by which seed first.
fn finds(bug: Planted, engine: &mut dyn Engine) -> bool {
    for seed in 0..FOUND_WITHIN {
        let outcome = guarded(seed, engine, Some(bug), false);
        if let Some(what) = outcome.broken.first() {
            println!(
                "planted on {}: {bug:?} is found by seed {seed}: {what}",
                engine.name()
            );
            return true;
        }
    }
    println!(
        "planted on {}: {bug:?} is NOT found by {FOUND_WITHIN} seeds",
        engine.name()
    );
    false
}
