//! What is found again after a crash, and was never synced: it is made safe before it counts as written.
//!
//! Only a power cut would show the difference, so the calls to the system are looked at: each scenario
//! is a test by itself, and is run a second time under `strace`.

use std::process::Command;

use super::*;

/// The name of a file that a crash left, and when.
const LEFT: &str = "audit-20261123T090000Z.jsonl";

/// The line of a notice, in a file that nobody synced.
fn leave(place: &Place, name: &str, instance: &str) {
    let mut line = Vec::new();
    record::write_line(&notice(instance), &mut line);
    std::fs::write(place.path(name), line).unwrap();
}

fn again(instance: &str) -> Notice {
    let mut again = notice(instance);
    again.marks.possible_repeat = true;
    again
}

#[tokio::test]
async fn line_found_beside_a_rotation_is_not_written_again() {
    let place = Place::new();
    leave(&place, "audit.jsonl", "i-1");
    let (sink, _) = place.sink("rotate_size = '4KiB'");
    let batch: Vec<_> = std::iter::once(again("i-1"))
        .chain((0..9).map(|number| notice(&format!("i-2{number}"))))
        .collect();
    let verdicts = sink.send(&batch, &Permit::always()).await;
    assert_eq!(verdicts, vec![sent(); 10]);
    assert_eq!(place.names().len(), 2, "{:?}", place.names());
    assert_eq!(place.ids("audit.jsonl").len(), 9);
}

#[tokio::test]
async fn line_found_in_a_rotated_file_is_not_written_again() {
    let place = Place::new();
    leave(&place, LEFT, "i-1");
    let (sink, _) = place.sink("rotate_size = '4KiB'");
    let verdicts = sink.send(&[again("i-1")], &Permit::always()).await;
    assert_eq!(verdicts, [sent()]);
    assert_eq!(place.ids_if_any("audit.jsonl"), [""; 0]);
}

#[tokio::test]
async fn line_found_in_the_file_of_the_day_before_is_not_written_again() {
    let place = Place::new();
    leave(&place, "2026-11-23.jsonl", "i-1");
    let (sink, clock) = place.spread("{date}.jsonl");
    clock.advance(Duration::from_hours(24));
    let verdicts = sink.send(&[again("i-1")], &Permit::always()).await;
    assert_eq!(verdicts, [sent()]);
    assert_eq!(place.ids_if_any("2026-11-24.jsonl"), [""; 0]);
}

/// The calls of one test of this module, one a line, with the paths of what they act on.
fn calls_of(test: &str) -> Option<Vec<String>> {
    if Command::new("strace").arg("-V").output().is_err() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let run = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=fsync,fdatasync,/^rename", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("sink::file::tests::durable::{test}")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    // Without leave to trace nothing can be seen; a test of another name must not pass for one.
    if !said.contains("running ") {
        return None;
    }
    assert!(said.contains("1 passed"), "{test}: {said}");
    let calls = std::fs::read_to_string(&trace).unwrap();
    Some(calls.lines().map(str::to_owned).collect())
}

/// Where a call of that name acts on a path with that end.
fn position(calls: &[String], call: &str, end: &str) -> Option<usize> {
    let acts = |line: &String| {
        let is_it = line.contains(call) && line.contains(end);
        is_it && !line.contains("= -1")
    };
    calls.iter().position(acts)
}

#[test]
fn file_that_is_rotated_is_synced_before_it_is_set_aside() {
    let Some(calls) = calls_of("line_found_beside_a_rotation_is_not_written_again") else {
        return;
    };
    let synced = position(&calls, "fdatasync(", "/audit.jsonl>");
    let renamed = position(&calls, "rename", "/audit.jsonl\"");
    assert!(synced.is_some() && synced < renamed, "{calls:#?}");
    let (_, after) = calls.split_at(renamed.unwrap());
    let folder = position(after, "fsync(", "");
    assert!(
        folder.is_some() && folder < position(after, "fdatasync(", ""),
        "{calls:#?}"
    );
}

#[test]
fn other_file_is_synced_before_its_lines_count_as_written() {
    for (test, found, today) in [
        (
            "line_found_in_a_rotated_file_is_not_written_again",
            LEFT,
            "audit.jsonl",
        ),
        (
            "line_found_in_the_file_of_the_day_before_is_not_written_again",
            "2026-11-23.jsonl",
            "2026-11-24.jsonl",
        ),
    ] {
        let Some(calls) = calls_of(test) else { return };
        let synced = position(&calls, "fdatasync(", &format!("/{found}>"));
        let folder = position(&calls, "fsync(", "");
        // The batch ends with the sync of the file that is written today.
        let answered = position(&calls, "fdatasync(", &format!("/{today}>"));
        assert!(
            synced.is_some() && synced < folder && folder < answered,
            "{calls:#?}"
        );
    }
}
