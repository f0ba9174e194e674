//! A real store, on either engine, that can be closed and opened again, in order or not.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use runbell::clock::Clock;
use runbell::store::postgres::{Keeper, Postgres, Settings};
use runbell::store::sqlite::{Sqlite, Writer};
use runbell::store::{Opened, Store};
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
        let folder = folder();
        let (store, writer, opened) = Sqlite::open(&folder.path().join("runbell.db")).unwrap();
        Self {
            place: Place::Folder(folder),
            open: Some(Open::Sqlite(Arc::new(store), write(writer))),
            opened,
        }
    }

    pub async fn open_on(on: On) -> Self {
        match on {
            On::Sqlite => Self::open(),
            On::Postgres => {
                let schema = server().new_schema().await;
                Self::open_schema(schema).await
            }
        }
    }

    /// One more replica, beside this one.
    pub async fn another(&self) -> Self {
        Self::open_schema(self.schema().to_owned()).await
    }

    /// On what is in a schema already.
    pub async fn open_schema(schema: String) -> Self {
        let settings = server().settings(&schema, "test");
        Self::open_with(&settings, schema).await
    }

    /// On any server.
    pub async fn open_with(settings: &Settings, schema: String) -> Self {
        let (open, opened) = open_postgres(settings).await;
        Self {
            place: Place::Schema(schema),
            open: Some(open),
            opened,
        }
    }

    /// What the streets hold.
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

    /// Ends the writer, as an orderly stop or a crash between two transactions would, and starts
    /// anew. Handles that were given out must be gone.
    pub async fn reopen(&mut self) {
        self.stop().await;
        let (open, opened) = match &self.place {
            Place::Folder(_) => {
                let (store, writer, opened) = Sqlite::open(&self.path()).unwrap();
                (Open::Sqlite(Arc::new(store), write(writer)), opened)
            }
            Place::Schema(schema) => open_postgres(&server().settings(schema, "test")).await,
        };
        (self.open, self.opened) = (Some(open), opened);
    }

    /// Starts an embedded store that was stopped.
    pub fn start_again(&mut self) {
        let (store, writer, opened) = Sqlite::open(&self.path()).unwrap();
        self.open = Some(Open::Sqlite(Arc::new(store), write(writer)));
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

async fn open_postgres(settings: &Settings) -> (Open, Opened) {
    let (store, keeper, opened): (Postgres, Keeper, Opened) =
        Postgres::open(settings).await.unwrap();
    let mut task = JoinSet::new();
    // By hand: the tests say what time it is.
    task.spawn(keeper.run(Clock::by_hand(jiff::Timestamp::UNIX_EPOCH)));
    (Open::Postgres(Arc::new(store), task), opened)
}

/// In memory where there is such a place: what is tested is not the disk.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}
