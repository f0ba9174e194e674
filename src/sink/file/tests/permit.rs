//! Lines that are not written because their lease has ended.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A permit that is given so many times.
fn permit(times: usize) -> Permit {
    let asked = AtomicUsize::new(0);
    Permit::new(move || asked.fetch_add(1, Ordering::Relaxed) < times)
}

#[tokio::test]
async fn permit_that_ends_within_a_batch_takes_all_of_it_back() {
    let place = Place::new();
    let (sink, _) = place.spread("{instance}.jsonl");
    let notices = ["i-1", "i-2", "i-3"].map(notice);
    for times in 0..3 {
        let permit = permit(times);
        sink.send(&notices, &permit).await;
        assert!(permit.is_refused(), "{times}");
        assert_eq!(permit.has_begun(), times > 0);
        for name in ["i-1.jsonl", "i-2.jsonl", "i-3.jsonl"] {
            assert_eq!(place.ids_if_any(name), [""; 0], "{times}: {name}");
        }
    }
    let verdicts = sink.send(&notices, &permit(3)).await;
    assert_eq!(verdicts, [sent(), sent(), sent()]);
    assert_eq!(place.ids("i-3.jsonl"), [id("i-3")]);
}

#[tokio::test]
async fn permit_is_asked_after_a_rotation() {
    let place = Place::new();
    let (sink, clock) = place.sink("rotate_every = 'hour'");
    assert_eq!(send(&sink, &["i-1"]).await, [sent()]);
    clock.advance(Duration::from_hours(1));
    let permit = Permit::new({
        let path = place.path("audit.jsonl");
        // Refused as soon as the file is set aside: nothing that takes time comes after the question.
        move || std::fs::metadata(&path).unwrap().len() > 0
    });
    sink.send(&[notice("i-2")], &permit).await;
    assert!(permit.is_refused() && !permit.has_begun());
    assert_eq!(place.names().len(), 2, "{:?}", place.names());
    assert_eq!(place.ids("audit.jsonl"), [""; 0]);
}

#[tokio::test]
async fn permit_is_not_needed_for_what_is_there_already() {
    let place = Place::new();
    let (sink, _) = place.sink("");
    assert_eq!(send(&sink, &["i-1"]).await, [sent()]);
    let mut again = notice("i-1");
    again.marks.possible_repeat = true;
    let permit = permit(0);
    assert_eq!(sink.send(&[again], &permit).await, [sent()]);
    assert!(!permit.is_refused() && !permit.has_begun());
}
