//! Files that are not ours, damaged, or in use; a disk that is full.

use std::path::Path;
use std::process::Command;

use runbell::clock::Clock;
use runbell::delivery::{LaneKey, Outcome};
use runbell::store::sqlite::{Sqlite, Writer};
use runbell::store::{Append, History as _, Intake as _, Lanes as _, Opened, StoreError, Terms};

use super::{at, event, owed, settled};
use crate::harness::store::TestStore;

fn open(path: &Path) -> Result<(Sqlite, Writer, Opened), StoreError> {
    Sqlite::open(path, Terms::default(), &Clock::system())
}

fn open_error(path: &Path) -> String {
    let error = open(path).err().unwrap();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    let content = "shopping list, not a database".repeat(100);
    std::fs::write(&text, &content).unwrap();
    assert!(
        open_error(&text).contains("not a database"),
        "{}",
        open_error(&text)
    );
    assert_eq!(std::fs::read_to_string(&text).unwrap(), content);

    let foreign = folder.path().join("foreign.db");
    let connection = rusqlite::Connection::open(&foreign).unwrap();
    connection
        .execute_batch("CREATE TABLE precious (thing)")
        .unwrap();
    drop(connection);
    assert!(open_error(&foreign).contains("belongs to another program"));
    let connection = rusqlite::Connection::open(&foreign).unwrap();
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 1);

    let nowhere = folder.path().join("missing/runbell.db");
    assert!(open_error(&nowhere).contains("does its directory exist"));
    assert!(Sqlite::look(&nowhere).is_err());
}

#[tokio::test]
async fn a_newer_file_and_a_file_in_use_are_refused() {
    let mut store = TestStore::open();
    let path = store.path();
    assert!(open_error(&path).contains("another Runbell uses"));
    let looked = Sqlite::look(&path).unwrap();
    assert!(looked.backlog().await.unwrap().is_empty());
    let append = Append::new(event("m", "i", "Success", 0), vec![], at(0));
    assert!(matches!(
        looked.append(append).await,
        Err(StoreError::Gone(_))
    ));
    drop(looked);
    store.stop().await;
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 999).unwrap();
    drop(connection);
    assert!(open_error(&path).contains("newer Runbell"));
}

/// A file system of a few megabytes, unmounted when it goes.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
            .arg(folder.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_records_what_was_sent_and_recovers() {
    let Some(disk) = SmallDisk::mount() else {
        // Who may not mount may in a namespace of his own.
        let test =
            "store::faults::a_full_disk_refuses_what_is_new_records_what_was_sent_and_recovers";
        let again = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .status();
        assert!(
            again.unwrap().success(),
            "a small file system is needed, by root or by unshare"
        );
        return;
    };
    let path = disk.0.path().join("runbell.db");
    let (store, writer, _) = open(&path).unwrap();
    let thread = std::thread::Builder::new()
        .spawn(move || writer.run())
        .unwrap();
    let append = |number: usize| {
        let event = event(&format!("m-{number}"), &format!("i-{number}"), "Success", 0);
        let owed = vec![owed(&event, "s", LaneKey::Topic, 0)];
        store.append(Append::new(event, owed, at(0)))
    };
    append(0).await.unwrap();
    let lanes = store.lease("s", at(1), 9).await.unwrap().lanes;
    let filler = disk.0.path().join("filler");
    let mut accepted = 1;
    let _ = std::io::copy(
        &mut std::io::Read::take(std::io::repeat(b'x'), 64 << 20),
        &mut std::fs::File::create(&filler).unwrap(),
    );
    let refused = loop {
        match append(accepted).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::Full(_)), "{refused:?}");
    let settlements = lanes
        .into_iter()
        .map(|lane| settled(lane, &Outcome::Sent, 2))
        .collect();
    store.settle(settlements).await.unwrap();
    std::fs::remove_file(&filler).unwrap();
    append(accepted).await.unwrap();
    let tally = store.tally().await.unwrap();
    assert_eq!(tally[0].sent, 1);
    assert_eq!(tally[0].owed, u64::try_from(accepted).unwrap() + 1);
    drop(store);
    tokio::task::spawn_blocking(move || thread.join().unwrap())
        .await
        .unwrap();
}
