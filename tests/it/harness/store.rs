//! A real store in a folder of its own, that can be closed and opened again, in order or not.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use runbell::store::sqlite::Sqlite;
use runbell::store::{Opened, Store};

/// A store that goes away with its folder.
pub struct TestStore {
    folder: tempfile::TempDir,
    open: Option<(Arc<Sqlite>, JoinHandle<()>)>,
    pub opened: Opened,
}

impl TestStore {
    pub fn open() -> Self {
        let mut store = Self {
            folder: folder(),
            open: None,
            opened: Opened::default(),
        };
        store.start();
        store
    }

    /// What the streets hold.
    pub fn handle(&self) -> Arc<dyn Store> {
        self.open.as_ref().unwrap().0.clone()
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("runbell.db")
    }

    /// Ends the writer, as an orderly stop or a crash between two transactions would, and starts
    /// anew. Handles that were given out must be gone.
    pub async fn reopen(&mut self) {
        self.stop().await;
        self.start();
    }

    /// Ends the writer and leaves the file.
    pub async fn stop(&mut self) {
        let (store, writer) = self.open.take().unwrap();
        assert_eq!(
            Arc::strong_count(&store),
            1,
            "somebody still holds the store"
        );
        drop(store);
        tokio::task::spawn_blocking(move || writer.join().unwrap())
            .await
            .unwrap();
    }

    fn start(&mut self) {
        let (store, writer, opened) = Sqlite::open(&self.path()).unwrap();
        let thread = std::thread::Builder::new()
            .spawn(move || writer.run())
            .unwrap();
        self.opened = opened;
        self.open = Some((Arc::new(store), thread));
    }
}

/// In memory where there is such a place: what is tested is not the disk.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}
