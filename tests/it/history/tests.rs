//! The checker itself: good histories pass, and each planted fault is found by its name.

use jiff::SignedDuration;

use super::*;

/// So many milliseconds into the history.
fn at(milliseconds: i64) -> Timestamp {
    let start: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
    start + SignedDuration::from_millis(milliseconds)
}

/// A message whose place in the lane is its number; posted at that second, and answered with 200
/// ten milliseconds later.
fn posted(id: &str, number: i64) -> Posted {
    Posted {
        id: id.to_owned(),
        lane: "lane".to_owned(),
        key: by_time(at(number), 2, "i-1", id),
        offered_at: at(number * 1000),
        accepted_at: Some(at(number * 1000 + 10)),
    }
}

/// Told by the process `a`, at this second.
fn told(id: &str, second: i64) -> Record {
    Record {
        sink: "sink".to_owned(),
        process: "a".to_owned(),
        id: id.to_owned(),
        late: false,
        possible_repeat: false,
        at: Some(at(second * 1000)),
    }
}

fn late(record: Record) -> Record {
    Record {
        late: true,
        ..record
    }
}

fn marked(record: Record) -> Record {
    Record {
        possible_repeat: true,
        ..record
    }
}

fn by(process: &str, record: Record) -> Record {
    let process = process.to_owned();
    Record { process, ..record }
}

fn at_sink(sink: &str, record: Record) -> Record {
    let sink = sink.to_owned();
    Record { sink, ..record }
}

fn disturbed(process: &str, from: i64, to: i64) -> Disturbance {
    Disturbance {
        process: process.to_owned(),
        from: at(from * 1000),
        to: at(to * 1000),
    }
}

/// Messages `m1` to `m4` and these records.
fn history(records: Vec<Record>) -> History {
    let posted = (1..=4).map(|number| posted(&format!("m{number}"), number));
    History {
        posted: posted.collect(),
        records,
        grace: Duration::from_secs(1),
        ..History::default()
    }
}

/// All four in order.
fn in_order() -> Vec<Record> {
    (1..=4).map(|n| told(&format!("m{n}"), 4 + n)).collect()
}

#[track_caller]
fn assert_faults(history: &History, expected: &[(Fault, &str)]) {
    let found = check(history);
    let faults: Vec<_> = found
        .faults
        .iter()
        .map(|it| (it.0, it.1.as_str()))
        .collect();
    assert_eq!(faults, expected, "{history:#?}");
}

#[test]
fn history_without_a_fault_passes() {
    let found = check(&history(in_order()));
    assert_eq!(found, Findings::default());
    assert_eq!(found.complaint(), "");
}

#[test]
fn lost_message_is_found() {
    let mut records = in_order();
    records.remove(1);
    let mut history = history(records);
    history.waiting = 1;
    assert_faults(&history, &[(Fault::Lost, "m2")]);
}

#[test]
fn lost_message_that_the_books_do_not_know_is_found_twice() {
    let mut records = in_order();
    records.pop();
    let unbalanced = (Fault::Unbalanced, "0 wait, 1 are missing");
    assert_faults(&history(records), &[(Fault::Lost, "m4"), unbalanced]);
}

#[test]
fn dead_letter_is_an_end() {
    let mut records = in_order();
    records.remove(1);
    let mut history = history(records);
    history.dead = vec!["m2".to_owned()];
    assert_faults(&history, &[]);
    history.records = in_order();
    let twice = (Fault::Unbalanced, "m2 was told and is a dead letter");
    assert_faults(&history, &[twice]);
}

#[test]
fn waiting_delivery_of_which_nothing_is_known_is_found() {
    let mut history = history(in_order());
    history.waiting = 2;
    assert_faults(&history, &[(Fault::Unbalanced, "2 wait, 0 are missing")]);
}

#[test]
fn unexpected_message_is_found() {
    let mut history = history(in_order());
    history.records.push(told("m5", 9));
    history.dead.push("m6".to_owned());
    let expected = [(Fault::Unexpected, "m5"), (Fault::Unexpected, "m6")];
    assert_faults(&history, &expected);
}

#[test]
fn message_without_its_200_may_be_told_or_wait_or_be_gone() {
    let mut history = history(in_order());
    history.posted[3].accepted_at = None;
    let found = check(&history);
    assert_eq!(
        (found.recovered, found.faults),
        (vec!["m4".to_owned()], vec![])
    );
    history.records.pop();
    assert_faults(&history, &[]);
    history.waiting = 1;
    assert_faults(&history, &[]);
}

#[test]
fn repeat_that_is_marked_and_excused_passes() {
    for disturbed in [disturbed("a", 8, 8), disturbed("b", 8, 20)] {
        let mut records = in_order();
        records.push(marked(by("b", told("m4", 18))));
        let mut history = history(records);
        history.disturbances = vec![disturbed];
        let found = check(&history);
        assert_eq!((found.told_again, found.faults), (1, vec![]));
    }
}

#[test]
fn repeat_without_a_mark_is_found() {
    let mut records = in_order();
    records.push(by("b", told("m4", 18)));
    let mut history = history(records);
    history.disturbances = vec![disturbed("a", 8, 8)];
    let subject = "m4 at sink by a, then at sink by b";
    assert_faults(&history, &[(Fault::Unmarked, subject)]);
    // A mark on the first copy does not excuse the second.
    history.records[3].possible_repeat = true;
    assert_faults(&history, &[(Fault::Unmarked, subject)]);
}

#[test]
fn repeat_by_a_fallback_without_a_mark_is_found() {
    let mut records = in_order();
    records.push(at_sink("spare", told("m4", 18)));
    let mut history = history(records);
    history.disturbances = vec![disturbed("a", 8, 8)];
    let subject = "m4 at sink by a, then at spare by a";
    assert_faults(&history, &[(Fault::Unmarked, subject)]);
}

#[test]
fn repeat_while_nothing_was_killed_or_paused_is_found() {
    let subject = "m4 at sink by a, then at sink by b";
    // Nobody; somebody else; long before; only after the repeat.
    let cases = [
        vec![],
        vec![disturbed("c", 8, 8)],
        vec![disturbed("a", 1, 5)],
        vec![disturbed("a", 19, 20)],
    ];
    for disturbances in cases {
        let mut records = in_order();
        records.push(marked(by("b", told("m4", 18))));
        let mut history = history(records);
        history.disturbances = disturbances;
        assert_faults(&history, &[(Fault::Undisturbed, subject)]);
    }
}

#[test]
fn disorder_without_a_mark_is_found() {
    let mut records = in_order();
    records.swap(1, 2);
    assert_faults(&history(records), &[(Fault::Disordered, "m2 at sink")]);
}

#[test]
fn disorder_over_lanes_and_sinks_is_none() {
    let mut records = in_order();
    records.swap(1, 2);
    let mut two_lanes = history(records.clone());
    two_lanes.posted[1].lane = "other".to_owned();
    assert_faults(&two_lanes, &[]);
    records[1] = at_sink("spare", records[1].clone());
    assert_faults(&history(records), &[]);
}

#[test]
fn late_message_passes_if_what_is_above_it_was_posted_before_its_200() {
    let mut records = in_order();
    records.swap(1, 2);
    records[2] = late(records[2].clone());
    let mut history = history(records);
    // m3 is posted at 3 s, and m2 is kept long before: they would have left in order.
    assert_faults(&history, &[(Fault::FalselyLate, "m2 at sink")]);
    history.posted[1].accepted_at = Some(at(3500));
    assert_faults(&history, &[]);
}

#[test]
fn late_message_with_nothing_above_it_is_found() {
    let mut records = in_order();
    records[3] = late(records[3].clone());
    assert_faults(&history(records), &[(Fault::FalselyLate, "m4 at sink")]);
}

#[test]
fn late_message_may_lie_below_what_may_have_been_told() {
    let mut records = in_order();
    records[1] = late(records[1].clone());
    let mut history = history(records);
    history.posted[1].accepted_at = Some(at(3500));
    assert_faults(&history, &[(Fault::FalselyLate, "m2 at sink")]);
    history.records[2] = marked(history.records[2].clone());
    assert_faults(&history, &[]);
}

#[test]
fn possible_repeat_is_held_against_the_watermark_of_its_first_try() {
    let mut records = in_order();
    records.swap(1, 2);
    records[2] = marked(records[2].clone());
    let mut history = history(records);
    // m3 came at 7 s; a first try of m2, which was posted at 2 s, may lie before that.
    assert_faults(&history, &[]);
    // m3 was there before m2 was posted, so m2 was late from the beginning.
    history.posted[1].offered_at = at(7500);
    history.posted[1].accepted_at = Some(at(7600));
    assert_faults(&history, &[(Fault::Disordered, "m2 at sink")]);
}

#[test]
fn key_of_a_lane_of_statuses_begins_with_the_status() {
    let (start, end) = (by_status(at(9), 1, "i", "a"), by_status(at(1), 2, "i", "b"));
    assert!(start < end);
    assert!(by_time(at(9), 1, "i", "a") > by_time(at(1), 2, "i", "b"));
}

#[test]
fn complaint_counts_each_kind_of_fault_and_names_some() {
    let mut history = history(vec![]);
    history.waiting = 4;
    assert_eq!(check(&history).complaint(), "Lost 4: m1; m2; m3; m4\n");
}

#[test]
fn record_is_read_from_a_line() {
    let line = serde_json::json!({
        "message_id": "m1", "marks": ["late", "conflict"], "status": "Success",
    });
    let record = Record::read("sink", "a", &line, None);
    assert_eq!((record.id.as_str(), record.sink.as_str()), ("m1", "sink"));
    assert!(record.late && !record.possible_repeat);
}
