//! Files as a sink leaves them: whole, in order, and never twice.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;
use crate::sink::record::{self, tests::notice};

mod durable;
mod permit;
mod trouble;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A sink that stands at ten o'clock, with these settings beside its path.
    fn sink(&self, settings: &str) -> (FileSink, Clock) {
        let path = self.path("audit.jsonl");
        let text = format!("path = {:?}\n{settings}", path.to_str().unwrap());
        sink(&text)
    }

    /// A sink that writes to more than one file.
    fn spread(&self, template: &str) -> (FileSink, Clock) {
        sink(&format!(
            "path = {:?}",
            self.path(template).to_str().unwrap()
        ))
    }

    fn ids(&self, name: &str) -> Vec<String> {
        ids(&std::fs::read(self.path(name)).unwrap())
    }

    fn ids_if_any(&self, name: &str) -> Vec<String> {
        ids(&std::fs::read(self.path(name)).unwrap_or_default())
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn sink(text: &str) -> (FileSink, Clock) {
    let settings: Settings = toml::from_str(text).unwrap();
    let clock = Clock::by_hand("2026-11-23T10:00:00Z".parse().unwrap());
    (
        FileSink::new(
            settings.check(Path::new("/"), "r-1").unwrap(),
            clock.clone(),
        ),
        clock,
    )
}

fn ids(text: &[u8]) -> Vec<String> {
    assert!(
        text.is_empty() || text.ends_with(b"\n"),
        "torn: {:?}",
        String::from_utf8_lossy(text)
    );
    let lines = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| {
            record::id(line)
                .unwrap_or_else(|| panic!("foreign"))
                .to_owned()
        })
        .collect()
}

async fn send(sink: &FileSink, instances: &[&str]) -> Vec<Verdict> {
    let notices: Vec<_> = instances.iter().map(|instance| notice(instance)).collect();
    sink.send(&notices, &Permit::always()).await
}

fn sent() -> Verdict {
    Verdict::Sent { remote_id: None }
}

fn id(instance: &str) -> String {
    notice(instance).id
}

#[tokio::test]
async fn lines_are_appended_in_order_for_owner_and_group() {
    let place = Place::new();
    let (sink, _) = place.sink("");
    assert_eq!(send(&sink, &["i-1", "i-2"]).await, [sent(), sent()]);
    assert_eq!(send(&sink, &["i-3"]).await, [sent()]);
    assert_eq!(place.ids("audit.jsonl"), [id("i-1"), id("i-2"), id("i-3")]);
    let mode = std::fs::metadata(place.path("audit.jsonl"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[tokio::test]
async fn a_torn_last_line_is_cut_and_a_foreign_one_is_ended() {
    for (left, expected) in [
        ("{\"id\":\"whole\"}\n{\"id\":\"to", "{\"id\":\"whole\"}\n"),
        ("{\"id\":\"torn", ""),
        ("{\"id\":\"whole\"}", "{\"id\":\"whole\"}\n"),
        ("{\"i", ""),
        ("{\"id\":\"whole\"}", "{\"id\":\"whole\"}\n"),
        ("precious", "precious\n"),
        ("precious\n", "precious\n"),
    ] {
        let place = Place::new();
        std::fs::write(place.path("audit.jsonl"), left).unwrap();
        let (sink, _) = place.sink("");
        assert_eq!(send(&sink, &["i-1"]).await, [sent()]);
        let text = std::fs::read_to_string(place.path("audit.jsonl")).unwrap();
        assert!(text.starts_with(expected), "{left:?}: {text:?}");
        let rest = ids(&text.as_bytes()[expected.len()..]);
        assert_eq!(rest, [id("i-1")], "{left:?}");
    }
}

#[tokio::test]
async fn what_may_have_been_written_is_not_written_twice() {
    let place = Place::new();
    let (before, _) = place.sink("");
    send(&before, &["i-1", "i-2"]).await;
    drop(before);
    let (after, _) = place.sink("");
    let mut again = [notice("i-2"), notice("i-3"), notice("i-1")];
    again[0].marks.possible_repeat = true;
    again[1].marks.possible_repeat = true;
    // Without the mark it is somebody's wish to have it twice.
    assert_eq!(
        after.send(&again, &Permit::always()).await,
        [sent(), sent(), sent()]
    );
    assert_eq!(
        place.ids("audit.jsonl"),
        [id("i-1"), id("i-2"), id("i-3"), id("i-1")]
    );
}

#[tokio::test]
async fn what_may_have_been_written_is_found_in_the_file_before() {
    for compress in ["", "compress = 'zstd'"] {
        let place = Place::new();
        let settings = format!("rotate_every = 'hour'\n{compress}");
        let (before, clock) = place.sink(&settings);
        send(&before, &["i-1"]).await;
        clock.advance(Duration::from_hours(1));
        send(&before, &["i-2"]).await;
        drop(before);
        let (after, clock) = place.sink(&settings);
        clock.advance(Duration::from_hours(1));
        let mut again = [notice("i-1"), notice("i-2")];
        for notice in &mut again {
            notice.marks.possible_repeat = true;
        }
        assert_eq!(
            after.send(&again, &Permit::always()).await,
            [sent(), sent()]
        );
        assert_eq!(place.ids("audit.jsonl"), [id("i-2")], "{compress}");
    }
}

#[tokio::test]
async fn files_are_rotated_by_size_under_names_that_sort() {
    let place = Place::new();
    let (sink, clock) = place.sink("rotate_size = '4 KiB'");
    for number in 0..20 {
        send(&sink, &[&format!("i-{number}")]).await;
        clock.advance(Duration::from_millis(400));
    }
    let names = place.names();
    assert!(names.len() >= 3, "{names:?}");
    assert!(
        names.contains(&"audit-20261123T100001Z.jsonl".to_owned()),
        "{names:?}"
    );
    let mut all = Vec::new();
    for name in names.iter().filter(|name| name.starts_with("audit-")) {
        let text = std::fs::read(place.path(name)).unwrap();
        assert!(text.len() <= 4096, "{name}");
        all.extend(ids(&text));
    }
    all.extend(place.ids("audit.jsonl"));
    let expected: Vec<_> = (0..20).map(|number| id(&format!("i-{number}"))).collect();
    assert_eq!(all, expected);
}

#[tokio::test]
async fn rotations_in_one_second_do_not_meet() {
    let place = Place::new();
    let (sink, _) = place.sink("rotate_size = '4 KiB'");
    for number in 0..20 {
        send(&sink, &[&format!("i-{number}")]).await;
    }
    let names = place.names();
    assert!(
        names.contains(&"audit-20261123T100000Z-1.jsonl".to_owned()),
        "{names:?}"
    );
    let total: usize = names.iter().map(|name| place.ids(name).len()).sum();
    assert_eq!(total, 20);
}

#[tokio::test]
async fn files_are_rotated_by_the_day_compressed_and_forgotten() {
    let place = Place::new();
    let (sink, clock) = place.sink("rotate_every = 'day'\ncompress = 'zstd'\nkeep = '50h'");
    for day in 0..5 {
        send(&sink, &[&format!("i-{day}"), "i-x"]).await;
        clock.advance(Duration::from_hours(24));
    }
    let names = place.names();
    assert_eq!(
        names,
        [
            "audit-20261125T100000Z.jsonl.zst",
            "audit-20261126T100000Z.jsonl.zst",
            "audit-20261127T100000Z.jsonl.zst",
            "audit.jsonl"
        ]
    );
    let packed = std::fs::File::open(place.path(&names[2])).unwrap();
    let text = zstd::decode_all(packed).unwrap();
    assert_eq!(ids(&text), [id("i-3"), id("i-x")]);
}

#[tokio::test]
async fn so_many_rotated_files_are_kept() {
    let place = Place::new();
    let (sink, clock) = place.sink("rotate_every = 'hour'\nkeep_files = 2");
    for _ in 0..6 {
        send(&sink, &["i-1"]).await;
        clock.advance(Duration::from_hours(1));
    }
    assert_eq!(
        place.names(),
        [
            "audit-20261123T140000Z.jsonl",
            "audit-20261123T150000Z.jsonl",
            "audit.jsonl"
        ]
    );
}

#[tokio::test]
async fn a_crash_while_compressing_is_made_good() {
    let place = Place::new();
    let (sink, clock) = place.sink("rotate_every = 'hour'\ncompress = 'zstd'");
    let line = "{\"id\":\"old\"}\n";
    std::fs::write(place.path("audit-20261101T000000Z.jsonl"), line).unwrap();
    std::fs::write(place.path("audit-20261101T000000Z.jsonl.zst"), "half").unwrap();
    std::fs::write(place.path("audit-20261101T000000Z.jsonl.zst.tmp"), "ha").unwrap();
    std::fs::write(place.path("audit-other.jsonl"), "not ours").unwrap();
    clock.advance(Duration::from_secs(1));
    send(&sink, &["i-1"]).await;
    assert_eq!(
        place.names(),
        [
            "audit-20261101T000000Z.jsonl.zst",
            "audit-other.jsonl",
            "audit.jsonl"
        ]
    );
    let packed = std::fs::File::open(place.path("audit-20261101T000000Z.jsonl.zst")).unwrap();
    assert_eq!(zstd::decode_all(packed).unwrap(), line.as_bytes());
}

#[tokio::test]
async fn a_file_that_others_move_or_empty_is_made_anew() {
    let place = Place::new();
    let (sink, _) = place.sink("");
    send(&sink, &["i-1"]).await;
    std::fs::rename(place.path("audit.jsonl"), place.path("audit.1")).unwrap();
    send(&sink, &["i-2"]).await;
    assert_eq!(place.ids("audit.1"), [id("i-1")]);
    assert_eq!(place.ids("audit.jsonl"), [id("i-2")]);
    std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(place.path("audit.jsonl"))
        .unwrap();
    send(&sink, &["i-3"]).await;
    assert_eq!(place.ids("audit.jsonl"), [id("i-3")]);
    std::fs::remove_file(place.path("audit.jsonl")).unwrap();
    send(&sink, &["i-4"]).await;
    sink.reopen().await;
    send(&sink, &["i-5"]).await;
    assert_eq!(place.ids("audit.jsonl"), [id("i-4"), id("i-5")]);
}

#[tokio::test]
async fn what_is_no_file_of_ours_is_broken_and_says_how_to_mend_it() {
    let place = Place::new();
    let path = place.path("audit.jsonl");
    let why = async |sink: &FileSink| match send(sink, &["i-1"]).await.remove(0) {
        Verdict::Broken { why } => why,
        other => panic!("{other:?}"),
    };
    let (sink, _) = place.sink("");
    std::fs::create_dir(&path).unwrap();
    assert!(why(&sink).await.contains("no regular file"));
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(place.path("target"), "kept").unwrap();
    std::os::unix::fs::symlink(place.path("target"), &path).unwrap();
    assert!(why(&sink).await.contains("no regular file"));
    assert_eq!(
        std::fs::read_to_string(place.path("target")).unwrap(),
        "kept"
    );
    let nowhere = format!(
        "path = {:?}",
        place.path("missing/{date}/x").to_str().unwrap()
    );
    let (sink, _) = self::sink(&nowhere);
    assert!(why(&sink).await.contains("does not exist: create it"));
}

#[tokio::test]
async fn two_processes_do_not_write_one_file() {
    let place = Place::new();
    let ((first, _), (second, _)) = (place.sink(""), place.sink(""));
    send(&first, &["i-1"]).await;
    match send(&second, &["i-2"]).await.remove(0) {
        Verdict::Retry { why, scope, .. } => {
            assert_eq!(scope, Scope::Sink);
            assert!(why.contains("another process"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn lines_are_spread_over_templated_paths() {
    let place = Place::new();
    let (sink, _) = place.spread("{instance}/{kind}.jsonl");
    assert_eq!(send(&sink, &["i-1", "i-2", "i-1"]).await.len(), 3);
    assert_eq!(place.ids("i-1/invocation.jsonl").len(), 2);
    assert_eq!(place.ids("i-2/invocation.jsonl").len(), 1);
    let many: Vec<String> = (0..200).map(|number| format!("m-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(send(&sink, &many).await, vec![sent(); 200]);
}

#[test]
fn wrong_settings_are_named_all_at_once() {
    let text = "path = '/a/{dat}'\nmode = '9'\nkeep = '1d'\ncompress = 'zstd'";
    let settings: Settings = toml::from_str(text).unwrap();
    let faults = settings.check(Path::new("/"), "r-1").unwrap_err();
    let places: Vec<_> = faults.iter().map(|fault| fault.path.join(".")).collect();
    assert_eq!(places, ["path", "mode", "keep", "compress"]);
}

#[test]
fn docs_name_how_many_files_are_open() {
    let page = include_str!("../../../docs/files.md");
    let named = format!("at most {MOST_OPEN} files open");
    assert!(page.contains(&named), "docs/files.md: {named}");
}
