//! Full disks, damaged files and paths that cannot be: who is stopped by them, and who is not.

use super::*;

#[tokio::test]
async fn one_file_that_cannot_be_compressed_keeps_no_other_from_going() {
    let place = Place::new();
    let (sink, _) = place.sink("rotate_every = 'day'\ncompress = 'zstd'\nkeep = '10d'");
    for day in ["01", "20", "21"] {
        let name = format!("audit-202611{day}T000000Z.jsonl");
        std::fs::write(place.path(&name), "{\"id\":\"old\"}\n").unwrap();
    }
    std::fs::write(place.path("audit-20261101T000000Z.jsonl.zst.tmp"), "ha").unwrap();
    // What is in the place of the compressed file cannot be replaced by it.
    let in_the_way = place.path("audit-20261120T000000Z.jsonl.zst/x");
    std::fs::create_dir_all(in_the_way).unwrap();
    assert_eq!(send(&sink, &["i-1"]).await, [sent()]);
    assert_eq!(
        place.names(),
        [
            "audit-20261120T000000Z.jsonl",
            "audit-20261120T000000Z.jsonl.zst",
            "audit-20261121T000000Z.jsonl.zst",
            "audit.jsonl"
        ]
    );
}

#[tokio::test]
async fn a_damaged_older_file_keeps_no_line_from_being_written() {
    let place = Place::new();
    let (sink, _) = place.sink("rotate_every = 'day'\ncompress = 'zstd'");
    std::fs::write(place.path("audit-20261101T000000Z.jsonl.zst"), "half").unwrap();
    let mut again = notice("i-1");
    again.marks.possible_repeat = true;
    assert_eq!(sink.send(&[again], &Permit::always()).await, [sent()]);
    assert_eq!(place.ids("audit.jsonl"), [id("i-1")]);
}

fn words(verdicts: &[Verdict]) -> Vec<&'static str> {
    verdicts.iter().map(Verdict::word).collect()
}

/// A notice that is of another lane than those of `notice`.
fn stranger(instance: &str) -> Notice {
    let mut stranger = notice(instance);
    stranger.route = "other".to_owned();
    stranger
}

#[tokio::test]
async fn a_path_that_cannot_be_stops_its_own_lines_and_those_that_wait_for_them() {
    let place = Place::new();
    let (sink, _) = place.spread("{instance}/{kind}.jsonl");
    std::fs::write(place.path("i-3"), "in the way").unwrap();
    std::fs::create_dir_all(place.path("i-4/invocation.jsonl")).unwrap();
    for bad in ["i-3", "i-4"] {
        let batch = [
            notice("i-1"),
            notice(bad),
            stranger("i-2"),
            notice("i-1"),
            stranger("i-1"),
        ];
        let before = place.ids_if_any("i-1/invocation.jsonl").len();
        let verdicts = sink.send(&batch, &Permit::always()).await;
        assert_eq!(
            words(&verdicts),
            ["sent", "retry", "sent", "retry", "sent"],
            "{verdicts:?}"
        );
        for failed in [&verdicts[1], &verdicts[3]] {
            assert!(
                matches!(failed, Verdict::Retry { scope, .. } if *scope == Scope::Notice),
                "{failed:?}"
            );
        }
        let after = place.ids("i-1/invocation.jsonl");
        assert_eq!(
            after[before..],
            [id("i-1"), id("i-1")],
            "the first and the stranger's"
        );
    }
}

#[tokio::test]
async fn a_path_that_is_too_long_stops_nobody_else() {
    let place = Place::new();
    let deep = "{instance}/".repeat(41);
    let (sink, _) = place.spread(&format!("{deep}x.jsonl"));
    let long = "i".repeat(100);
    let verdicts = sink
        .send(&[notice(&long), stranger("i")], &Permit::always())
        .await;
    assert_eq!(words(&verdicts), ["retry", "sent"], "{verdicts:?}");
}

#[tokio::test]
async fn a_name_of_long_values_is_written_rotated_and_compressed() {
    let place = Place::new();
    let settings = "rotate_every = 'hour'\ncompress = 'zstd'";
    let path = place.path("{instance}-{instance}-{instance}.jsonl");
    let (sink, clock) = sink(&format!("path = {:?}\n{settings}", path.to_str().unwrap()));
    let long = "i".repeat(300);
    assert_eq!(send(&sink, &[&long]).await, [sent()]);
    clock.advance(Duration::from_hours(1));
    assert_eq!(send(&sink, &[&long]).await, [sent()]);
    let names = place.names();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(
        names[0].ends_with("-20261123T110000Z.jsonl.zst"),
        "{names:?}"
    );
}

#[tokio::test]
async fn what_could_not_be_taken_back_is_in_doubt_and_the_rest_is_not() {
    let place = Place::new();
    let (sink, _) = place.spread("{instance}.jsonl");
    assert_eq!(send(&sink, &["i-1", "i-2"]).await, [sent(), sent()]);
    let path = place.path("i-2.jsonl");
    lock(&sink.files).open.get_mut(&path).unwrap().break_it();
    let verdicts = send(&sink, &["i-1", "i-2", "i-3"]).await;
    assert_eq!(
        words(&verdicts),
        ["retry", "unknown", "retry"],
        "{verdicts:?}"
    );
    assert_eq!(place.ids("i-1.jsonl").len(), 1);
    // Unmarked as it is: of a lane only the first that fails is told.
    assert_eq!(send(&sink, &["i-1", "i-2", "i-3"]).await, vec![sent(); 3]);
    assert_eq!(place.ids("i-2.jsonl").len(), 1, "it was there");
    assert_eq!(send(&sink, &["i-2"]).await, [sent()]);
    assert_eq!(place.ids("i-2.jsonl").len(), 2, "it was doubted once");
}

#[tokio::test]
async fn what_may_have_been_written_is_found_after_any_number_of_lines() {
    let place = Place::new();
    for settings in ["", "rotate_size = '100 KiB'\nkeep_files = 1"] {
        let (before, _) = place.sink(settings);
        send(&before, &["i-0"]).await;
        drop(before);
        let (after, _) = place.sink(settings);
        for round in 0..3 {
            let many: Vec<_> = (0..1000).map(|at| format!("{round}-{at}")).collect();
            let many: Vec<_> = many.iter().map(String::as_str).collect();
            send(&after, &many).await;
        }
        let lines = place.ids("audit.jsonl").len();
        for known in ["i-0", "2-999"] {
            let mut again = notice(known);
            again.marks.possible_repeat = true;
            assert_eq!(after.send(&[again], &Permit::always()).await, [sent()]);
        }
        assert_eq!(place.ids("audit.jsonl").len(), lines, "{settings}");
        std::fs::remove_file(place.path("audit.jsonl")).unwrap();
    }
}

#[tokio::test]
async fn what_may_have_been_written_on_another_day_is_found() {
    let place = Place::new();
    let (before, _) = place.spread("{date}/audit.jsonl");
    send(&before, &["i-1"]).await;
    drop(before);
    let (after, clock) = place.spread("{date}/audit.jsonl");
    clock.advance(Duration::from_hours(72));
    let mut again = [notice("i-1"), notice("i-2")];
    for notice in &mut again {
        notice.marks.possible_repeat = true;
    }
    assert_eq!(
        after.send(&again, &Permit::always()).await,
        [sent(), sent()]
    );
    assert_eq!(place.ids("2026-11-23/audit.jsonl"), [id("i-1")]);
    assert_eq!(place.ids("2026-11-26/audit.jsonl"), [id("i-2")]);
}

#[tokio::test]
async fn opening_anew_waits_on_no_thread_of_the_runtime() {
    let place = Place::new();
    let (sink, _) = place.sink("");
    let files = Arc::clone(&sink.files);
    let (locked, is_locked) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let holder = tokio::task::spawn_blocking(move || {
        let _held = lock(&files);
        locked.send(()).unwrap();
        // Whoever waits for the lock where it must not is let go, and found out.
        released.recv_timeout(Duration::from_secs(5)).is_ok()
    });
    is_locked.recv().unwrap();
    let mut reopening = sink.reopen();
    assert!(futures_util::poll!(&mut reopening).is_pending());
    release.send(()).unwrap();
    reopening.await;
    assert!(holder.await.unwrap(), "it was kept waiting");
}
