//! Twins: one random history goes into an engine and into the naive model, and after every step both
//! give the same answers, up to the numbers that they count events and dead letters by.
//!
//! A history is a list of steps with dice of their own. Each step looks at the state of the model to
//! see what there is to be done, so a history with steps left out is a history as well: the shortest
//! one that still fails is printed. `RUNBELL_TWINS=5000` runs so many histories, and
//! `RUNBELL_TWINS_SEED=7` begins with that one.

use std::panic::AssertUnwindSafe;

use fastrand::Rng;
use futures_util::FutureExt as _;

use crate::harness::store::On;

mod act;
mod compare;
mod draw;

use act::Twins;

/// One kind of step, with how often it comes of a hundred or so.
const STEPS: [(Step, u32); 17] = [
    (Step::Append, 34),
    (Step::Lease, 22),
    (Step::Settle, 24),
    (Step::Begin, 6),
    (Step::Drop, 3),
    (Step::SettleAgain, 3),
    (Step::Divert, 2),
    (Step::Bury, 2),
    (Step::RetryDead, 5),
    (Step::DropDead, 1),
    (Step::BackOff, 3),
    (Step::Beat, 9),
    (Step::Pass, 14),
    (Step::Leap, 2),
    (Step::Forget, 2),
    (Step::Restart, 2),
    (Step::Join, 2),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Append,
    Lease,
    Settle,
    Begin,
    Drop,
    SettleAgain,
    Divert,
    Bury,
    RetryDead,
    DropDead,
    BackOff,
    Beat,
    Pass,
    Leap,
    Forget,
    Restart,
    /// One more holder comes, where there may be several, or one is gone without a word.
    Join,
}

/// A step, and the seed of all that it leaves to chance.
type Cast = (Step, u64);

fn history(seed: u64) -> Vec<Cast> {
    let mut dice = Rng::with_seed(seed);
    let all: u32 = STEPS.iter().map(|(_, often)| often).sum();
    let cast = |dice: &mut Rng| {
        let mut at = dice.u32(..all);
        let found = STEPS.iter().find(|(_, often)| {
            let is_it = at < *often;
            at = at.saturating_sub(*often);
            is_it
        });
        (found.unwrap().0, dice.u64(..))
    };
    (0..dice.usize(30..80)).map(|_| cast(&mut dice)).collect()
}

/// Runs a history; if it fails, how, after which steps.
async fn run(on: On, history: &[Cast]) -> Result<(), String> {
    let mut log = Vec::new();
    let ran = AssertUnwindSafe(Box::pin(steps(on, history, &mut log)))
        .catch_unwind()
        .await;
    let failed = match ran {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(difference)) => difference,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("panicked: {}", text.unwrap_or("?"))
        }
    };
    Err(format!("{}\n{failed}", log.join("\n")))
}

async fn steps(on: On, history: &[Cast], log: &mut Vec<String>) -> Result<(), String> {
    let mut twins = Twins::open(on).await;
    for (step, seed) in history {
        log.push(format!("{step:?}"));
        let said = twins.step(*step, Rng::with_seed(*seed)).await;
        log.pop();
        log.push(format!("{step:?} {}", said.as_deref().unwrap_or_default()));
        said?;
        twins.compare().await?;
    }
    twins.compare_all().await
}

/// Leaves steps out for as long as the rest still fails.
async fn shrunk(on: On, mut history: Vec<Cast>, mut failed: String) -> (usize, String) {
    let mut chunk = history.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at < history.len() {
            let mut fewer = history.clone();
            fewer.drain(at..(at + chunk).min(history.len()));
            match run(on, &fewer).await {
                Ok(()) => at += chunk,
                Err(still) => (history, failed) = (fewer, still),
            }
        }
        chunk /= 2;
    }
    (history.len(), failed)
}

/// A number that whoever runs the tests asks for.
fn asked(name: &str) -> Option<u64> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test that may run for longer when asked"
    )]
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

async fn hold_against_the_model(on: On, histories: u64) {
    let first = asked("RUNBELL_TWINS_SEED").unwrap_or(1);
    let histories = asked("RUNBELL_TWINS").unwrap_or(histories);
    for seed in first..first + histories {
        let history = history(seed);
        if let Err(failed) = run(on, &history).await {
            let (steps, failed) = shrunk(on, history, failed).await;
            panic!("seed {seed} fails in {steps} steps:\n{failed}");
        }
    }
}

#[tokio::test]
async fn sqlite_answers_as_the_model_does() {
    hold_against_the_model(On::Sqlite, 60).await;
}

#[tokio::test]
async fn postgres_answers_as_the_model_does() {
    hold_against_the_model(On::Postgres, 15).await;
}
