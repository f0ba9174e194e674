//! A real store, on either engine, that can be closed and opened again, in order or not.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use runbell::clock::Clock;
use runbell::store::postgres::{Keeper, Postgres, Settings};
use runbell::store::sqlite::{Sqlite, Writer};
use runbell::store::{Opened, Store, Terms};
use tokio::task::JoinSet;

use super::postgres::server;

/// What keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Sqlite,
    Postgres,
}

/// A store that goes away with its folder, or is left in its schema.
pub struct TestStore {
    place: Place,
    open: Option<Open>,
    pub opened: Opened,
    /// The wall clock that the store goes by.
    pub clock: Clock,
}

enum Place {
    Folder(tempfile::TempDir),
    Schema(String),
}

enum Open {
    Sqlite(Arc<Sqlite>, JoinHandle<()>),
    Postgres(Arc<Postgres>, JoinSet<()>),
}

/// Makes of each scenario two tests, one on each engine.
#[macro_export]
macro_rules! on_both {
    ($($scenario:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $scenario() {
                Box::pin(super::$scenario($crate::harness::store::On::Sqlite)).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $scenario() {
                Box::pin(super::$scenario($crate::harness::store::On::Postgres)).await;
            })*
        }
    };
}

impl TestStore {
    /// On the embedded engine.
    pub fn open() -> Self {
        Self::open_at(standing())
    }

    /// On the embedded engine, by a clock of the test's.
    pub fn open_at(clock: Clock) -> Self {
        let folder = folder();
        let (open, opened) = open_sqlite(&folder.path().join("runbell.db"), &clock);
        Self {
            place: Place::Folder(folder),
            open: Some(open),
            opened,
            clock,
        }
    }

    pub async fn open_on(on: On) -> Self {
        Self::open_on_at(on, standing()).await
    }

    /// On either engine, by a clock of the test's.
    pub async fn open_on_at(on: On, clock: Clock) -> Self {
        match on {
            On::Sqlite => Self::open_at(clock),
            On::Postgres => {
                let schema = server().new_schema().await;
                let settings = server().settings(&schema, "test");
                Self::open_with(&settings, schema, clock).await
            }
        }
    }

    /// One more replica, beside this one.
    pub async fn another(&self) -> Self {
        let schema = self.schema().to_owned();
        let settings = server().settings(&schema, "test");
        Self::open_with(&settings, schema, self.clock.clone()).await
    }

    /// On what is in a schema already.
    pub async fn open_schema(schema: String) -> Self {
        let settings = server().settings(&schema, "test");
        Self::open_with(&settings, schema, standing()).await
    }

    /// On any server.
    pub async fn open_with(settings: &Settings, schema: String, clock: Clock) -> Self {
        let (open, opened) = open_postgres(settings, &clock).await;
        Self {
            place: Place::Schema(schema),
            open: Some(open),
            opened,
            clock,
        }
    }

    /// All contracts of the store.
    pub fn handle(&self) -> Arc<dyn Store> {
        match self.open.as_ref().unwrap() {
            Open::Sqlite(store, _) => store.clone(),
            Open::Postgres(store, _) => store.clone(),
        }
    }

    pub fn path(&self) -> PathBuf {
        let Place::Folder(folder) = &self.place else {
            panic!("it lies in no file");
        };
        folder.path().join("runbell.db")
    }

    pub fn schema(&self) -> &str {
        let Place::Schema(schema) = &self.place else {
            panic!("it lies in no schema");
        };
        schema
    }

    /// Runs statements beside the store.
    pub async fn run(&self, on_sqlite: &str, on_postgres: &str) {
        match &self.place {
            Place::Folder(_) => rusqlite::Connection::open(self.path())
                .unwrap()
                .execute_batch(on_sqlite)
                .unwrap(),
            Place::Schema(schema) => server().run(schema, on_postgres).await,
        }
    }

    /// The number that a question beside the store is answered with.
    pub async fn number(&self, sql: &str) -> i64 {
        match &self.place {
            Place::Folder(_) => rusqlite::Connection::open(self.path())
                .unwrap()
                .query_row(sql, [], |row| row.get(0))
                .unwrap(),
            Place::Schema(schema) => server().query(schema, sql).await[0].parse().unwrap(),
        }
    }

    /// Ends the writer, as an orderly stop or a crash between two transactions would, and starts
    /// anew. Handles that were given out must be gone.
    pub async fn reopen(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// Starts a store that was stopped.
    pub async fn start_again(&mut self) {
        let (open, opened) = match &self.place {
            Place::Folder(_) => open_sqlite(&self.path(), &self.clock),
            Place::Schema(schema) => {
                open_postgres(&server().settings(schema, "test"), &self.clock).await
            }
        };
        self.open = Some(open);
        self.opened = opened;
    }

    /// Ends the writer and leaves what was written.
    pub async fn stop(&mut self) {
        match self.open.take().unwrap() {
            Open::Sqlite(store, writer) => {
                let _ = Arc::into_inner(store).expect("somebody still holds the store");
                tokio::task::spawn_blocking(move || writer.join().unwrap())
                    .await
                    .unwrap();
            }
            Open::Postgres(store, keeper) => {
                let _ = Arc::into_inner(store).expect("somebody still holds the store");
                keeper.join_all().await;
            }
        }
    }
}

fn write(writer: Writer) -> JoinHandle<()> {
    std::thread::Builder::new()
        .spawn(move || writer.run())
        .unwrap()
}

/// A clock that stands until a test moves it: the tests say what time it is.
fn standing() -> Clock {
    Clock::by_hand("2026-11-23T10:00:00Z".parse().unwrap())
}

fn open_sqlite(path: &std::path::Path, clock: &Clock) -> (Open, Opened) {
    let (store, writer, opened) = Sqlite::open(path, Terms::default(), clock).unwrap();
    (Open::Sqlite(Arc::new(store), write(writer)), opened)
}

async fn open_postgres(settings: &Settings, clock: &Clock) -> (Open, Opened) {
    let (store, keeper, opened): (Postgres, Keeper, Opened) =
        Postgres::open(settings, Terms::default(), clock)
            .await
            .unwrap();
    let mut task = JoinSet::new();
    task.spawn(keeper.run());
    (Open::Postgres(Arc::new(store), task), opened)
}

/// In memory where there is such a place: what is tested is not the disk.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}
