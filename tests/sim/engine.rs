//! The engines that a simulation runs on, each reset for each seed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runbell::clock::Clock;
use runbell::store::sqlite::{Sqlite, Writer};
use runbell::store::{Store, Terms};

use crate::model::{Model, Shared};
use crate::sink::TIMEOUT;

/// Work that an engine does beside its callers, a step at a time.
pub trait Pump {
    /// Does what waits; whether there was anything.
    fn turn(&mut self) -> bool;
}

/// A kind of store.
pub trait Engine {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// How many processes share it.
    fn processes(&self) -> usize;

    /// How many milliseconds away it may be.
    fn latencies(&self) -> &'static [u64] {
        &[0]
    }

    /// Empties it.
    fn reset(&mut self);

    /// Opens it for one more process.
    fn open(&mut self, clock: &Clock) -> (Arc<dyn Store>, Box<dyn Pump>);

    /// The faults that only its tables show, once everything is at rest: leases, and lanes that are
    /// due for nothing.
    fn leftovers(&self) -> Vec<String>;
}

/// The terms of all simulated stores.
pub fn terms() -> Terms {
    Terms::new(TIMEOUT, Duration::ZERO)
}

/// The embedded engine, in a file that lies in memory.
pub struct OnSqlite {
    folder: tempfile::TempDir,
    /// An empty store: copying it is four times as fast as making one.
    template: Vec<u8>,
}

impl OnSqlite {
    pub fn new() -> Self {
        let folder = crate::harness::store::folder();
        let path = folder.path().join("template.db");
        let clock = Clock::by_hand("2026-11-23T09:00:00Z".parse().unwrap());
        drop(Sqlite::open_inline(&path, terms(), &clock).unwrap());
        let template = std::fs::read(&path).unwrap();
        Self { folder, template }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("runbell.db")
    }
}

impl Pump for Writer {
    fn turn(&mut self) -> bool {
        Self::turn(self)
    }
}

impl Engine for OnSqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn processes(&self) -> usize {
        1
    }

    fn reset(&mut self) {
        let path = self.path();
        for end in ["-wal", "-shm"] {
            let mut beside = path.as_os_str().to_owned();
            beside.push(end);
            let _ = std::fs::remove_file(beside);
        }
        std::fs::write(&path, &self.template).unwrap();
    }

    fn open(&mut self, clock: &Clock) -> (Arc<dyn Store>, Box<dyn Pump>) {
        let (store, writer, _) = Sqlite::open_inline(&self.path(), terms(), clock).unwrap();
        (Arc::new(store), Box::new(writer))
    }

    fn leftovers(&self) -> Vec<String> {
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        let looks = [
            ("lease rows", "SELECT count(*) FROM lease"),
            (
                "lanes that are leased without a lease",
                "SELECT count(*) FROM lane WHERE leased",
            ),
            (
                "lanes that are due for nothing",
                "SELECT count(*) FROM lane WHERE due_at IS NOT NULL
                   AND NOT EXISTS (SELECT 1 FROM waiting WHERE lane = lane.id)",
            ),
            (
                "lanes that wait and are not due",
                "SELECT count(*) FROM lane WHERE due_at IS NULL
                   AND EXISTS (SELECT 1 FROM waiting WHERE lane = lane.id)",
            ),
            ("rows that wait", "SELECT count(*) FROM waiting"),
        ];
        let count = |(what, look): (&str, &str)| {
            let many: i64 = connection.query_row(look, [], |row| row.get(0)).unwrap();
            (many > 0).then(|| format!("{many} {what}"))
        };
        looks.into_iter().filter_map(count).collect()
    }
}

/// The naive model, shared by two processes.
#[derive(Default)]
pub struct OnModel(Shared);

/// The model does all its work within its calls.
struct Idle;

impl Pump for Idle {
    fn turn(&mut self) -> bool {
        false
    }
}

impl Engine for OnModel {
    fn name(&self) -> &'static str {
        "model"
    }

    fn processes(&self) -> usize {
        2
    }

    fn reset(&mut self) {
        self.0 = Shared::default();
    }

    fn open(&mut self, clock: &Clock) -> (Arc<dyn Store>, Box<dyn Pump>) {
        let model = Model::open(&self.0, terms(), clock, true);
        (Arc::new(model), Box::new(Idle))
    }

    fn leftovers(&self) -> Vec<String> {
        Vec::new()
    }
}
