//! Checks a history of what was posted, what sinks were told, and what broke meanwhile, against the
//! promise: whatever was answered with 200 is told, in the order of its lane or marked late, and
//! once, or marked as a possible repeat.
//!
//! Pure: the tests that kill, pause and cut write histories down; here is the only place that
//! judges one. `tests.rs` holds it to planted faults, since a checker that finds nothing proves
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

/// The place in a lane, in the order of the documentation: time and then status, or, in lanes where
/// the status leads, the other way round. Instance and message id decide between equals.
pub type Key = (i128, i128, String, String);

/// Makes the key of a lane whose order is `command` or `topic`.
pub fn by_time(at: Timestamp, rank: u8, instance: &str, id: &str) -> Key {
    let (instance, id) = (instance.to_owned(), id.to_owned());
    (at.as_nanosecond(), i128::from(rank), instance, id)
}

/// Makes the key of a lane whose order is `instance`.
pub fn by_status(at: Timestamp, rank: u8, instance: &str, id: &str) -> Key {
    let (instance, id) = (instance.to_owned(), id.to_owned());
    (i128::from(rank), at.as_nanosecond(), instance, id)
}

/// A notification as its producer knows it.
#[derive(Clone, Debug)]
pub struct Posted {
    pub id: String,
    pub lane: String,
    pub key: Key,
    /// When it was posted first.
    pub offered_at: Timestamp,
    /// When it was answered with 200; if it never was, it may be told and need not be.
    pub accepted_at: Option<Timestamp>,
}

/// What a sink was told, once.
#[derive(Clone, Debug)]
pub struct Record {
    pub sink: String,
    /// The process that told it.
    pub process: String,
    pub id: String,
    pub late: bool,
    pub possible_repeat: bool,
    /// When it came, where the sink knows it.
    pub at: Option<Timestamp>,
}

impl Record {
    /// Reads a line of a file or the body of a webhook.
    pub fn read(sink: &str, process: &str, line: &Value, at: Option<Timestamp>) -> Self {
        let marks = line["marks"].as_array().unwrap();
        Self {
            sink: sink.to_owned(),
            process: process.to_owned(),
            id: line["message_id"].as_str().unwrap().to_owned(),
            late: marks.contains(&"late".into()),
            possible_repeat: marks.contains(&"possible-repeat".into()),
            at,
        }
    }
}

/// A process was killed, paused, or cut off from the database for so long that others take its
/// lanes over: the only excuse for telling something twice.
#[derive(Clone, Debug)]
pub struct Disturbance {
    pub process: String,
    pub from: Timestamp,
    pub to: Timestamp,
}

/// One route and all sinks that bring for it: its own, and those that stand in for it.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub posted: Vec<Posted>,
    /// In the order in which they came.
    pub records: Vec<Record>,
    /// Ids of those that became dead letters.
    pub dead: Vec<String>,
    /// How many deliveries still wait, as the service says.
    pub waiting: usize,
    pub disturbances: Vec<Disturbance>,
    /// How long before it was disturbed a process may have told what it could not record.
    pub grace: Duration,
}

/// The ways in which a promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Answered with 200, and neither told nor a dead letter.
    Lost,
    /// Told, or a dead letter, though nobody posted it.
    Unexpected,
    /// Told again without a mark.
    Unmarked,
    /// Told again although no process that told it was disturbed at the time.
    Undisturbed,
    /// Told after something of a greater key, and not marked late.
    Disordered,
    /// Marked late without reason.
    FalselyLate,
    /// The books say something else than the records.
    Unbalanced,
}

/// What is wrong, and figures about what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The fault, the message and, where it shows, the sink.
    pub faults: Vec<(Fault, String)>,
    /// Messages that were told though their 200 never came, which is legal.
    pub recovered: Vec<String>,
    /// How many times something was told again, with mark and excuse or without.
    pub told_again: usize,
}

impl Findings {
    /// Says in a few lines what is wrong; nothing when all is well.
    pub fn complaint(&self) -> String {
        let mut by_fault: BTreeMap<Fault, Vec<&str>> = BTreeMap::new();
        for (fault, subject) in &self.faults {
            by_fault.entry(*fault).or_default().push(subject);
        }
        let lines = by_fault.into_iter().map(|(fault, subjects)| {
            let some = subjects[..subjects.len().min(5)].join("; ");
            format!("{fault:?} {}: {some}\n", subjects.len())
        });
        lines.collect()
    }
}

/// Judges a history.
pub fn check(history: &History) -> Findings {
    let mut findings = Findings::default();
    let view = View::of(history);
    ends(&view, &mut findings);
    repeats(&view, &mut findings);
    for lane in view.lanes() {
        order(&view, &lane, &mut findings);
    }
    findings
}

/// A history with its indices.
struct View<'a> {
    history: &'a History,
    posted: BTreeMap<&'a str, &'a Posted>,
    /// The copies of each message, in the order in which they came.
    copies: BTreeMap<&'a str, Vec<&'a Record>>,
}

/// A record with what its producer knows of it.
type Known<'a> = (&'a Record, &'a Posted);

impl<'a> View<'a> {
    fn of(history: &'a History) -> Self {
        let posted = history.posted.iter().map(|it| (it.id.as_str(), it));
        let mut copies: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        for record in &history.records {
            copies.entry(&record.id).or_default().push(record);
        }
        Self {
            history,
            posted: posted.collect(),
            copies,
        }
    }

    /// The records of each lane over all sinks, in the order in which they came.
    fn lanes(&self) -> Vec<Vec<Known<'a>>> {
        let mut lanes: BTreeMap<&str, Vec<Known<'a>>> = BTreeMap::new();
        for record in &self.history.records {
            if let Some(posted) = self.posted.get(record.id.as_str()) {
                lanes
                    .entry(&posted.lane)
                    .or_default()
                    .push((record, posted));
            }
        }
        lanes.into_values().collect()
    }

    /// Whether a process that told either copy was disturbed between the two, or so shortly before
    /// the first that it may have been unable to record it.
    fn is_excused(&self, first: &Record, again: &Record) -> bool {
        let grace = self.history.grace;
        self.history.disturbances.iter().any(|it| {
            let is_involved = [first, again].iter().any(|of| of.process == it.process);
            let is_near = |at: Timestamp| it.from - grace <= at && at <= it.to + grace;
            is_involved && first.at.is_none_or(is_near) && again.at.is_none_or(|at| it.from <= at)
        })
    }
}

/// Every message ends once, and the books say the same.
fn ends(view: &View<'_>, findings: &mut Findings) {
    let dead: BTreeSet<&str> = view.history.dead.iter().map(String::as_str).collect();
    let told: BTreeSet<&str> = view.copies.keys().copied().collect();
    let (mut lost, mut unknown) = (0, 0);
    for (id, posted) in &view.posted {
        let is_over = told.contains(id) || dead.contains(id);
        match (posted.accepted_at, is_over) {
            (Some(_), false) => {
                lost += 1;
                findings.faults.push((Fault::Lost, (*id).to_owned()));
            }
            (None, false) => unknown += 1,
            (None, true) => findings.recovered.push((*id).to_owned()),
            (Some(_), true) => {}
        }
    }
    for id in told.union(&dead) {
        if !view.posted.contains_key(id) {
            findings.faults.push((Fault::Unexpected, (*id).to_owned()));
        }
    }
    for id in told.intersection(&dead) {
        let subject = format!("{id} was told and is a dead letter");
        findings.faults.push((Fault::Unbalanced, subject));
    }
    let waiting = view.history.waiting;
    // A message without a 200 may have been kept all the same.
    if !(lost..=lost + unknown).contains(&waiting) {
        let subject = format!("{waiting} wait, {lost} are missing");
        findings.faults.push((Fault::Unbalanced, subject));
    }
}

/// Whatever came twice is marked, and there was a reason for it.
fn repeats(view: &View<'_>, findings: &mut Findings) {
    for (id, copies) in &view.copies {
        for pair in copies.windows(2) {
            let (first, again) = (pair[0], pair[1]);
            findings.told_again += 1;
            let subject = || {
                format!(
                    "{id} at {} by {}, then at {} by {}",
                    first.sink, first.process, again.sink, again.process
                )
            };
            if !again.possible_repeat {
                findings.faults.push((Fault::Unmarked, subject()));
            }
            if !view.is_excused(first, again) {
                findings.faults.push((Fault::Undisturbed, subject()));
            }
        }
    }
}

/// A record lies below the watermark of what its sink got before exactly if it is marked late.
///
/// A possible repeat is held against the watermark from before its first try instead, and raises
/// the watermark as soon as it may have been told: both are known only within limits.
fn order(view: &View<'_>, lane: &[Known<'_>], findings: &mut Findings) {
    let mut high: BTreeMap<&str, &Key> = BTreeMap::new();
    for (number, (record, posted)) in lane.iter().enumerate() {
        let before = &lane[..number];
        let is_below = high
            .get(record.sink.as_str())
            .is_some_and(|high| posted.key < **high);
        let subject = || format!("{} at {}", record.id, record.sink);
        if record.late && !has_reason_to_be_late(lane, before, (record, posted)) {
            findings.faults.push((Fault::FalselyLate, subject()));
        }
        let is_excused = record.possible_repeat && may_have_been_first(view, before, posted);
        if is_below && !record.late && !is_excused {
            findings.faults.push((Fault::Disordered, subject()));
        }
        let high = high.entry(&record.sink).or_insert(&posted.key);
        *high = (*high).max(&posted.key);
    }
}

/// Whether something of a greater key was told before, or may have been, and could not be avoided.
fn has_reason_to_be_late(lane: &[Known<'_>], before: &[Known<'_>], late: Known<'_>) -> bool {
    let (record, posted) = late;
    // Of two that are both kept before either leaves, the smaller leaves first. So the greater one
    // was posted before the 200 of this one at the latest.
    let is_ahead = |other: &Posted| {
        other.key > posted.key && posted.accepted_at.is_none_or(|at| other.offered_at < at)
    };
    let at_its_sink = before.iter().any(|(other, theirs)| {
        // A repeat that another sink brings may stand where the first sink put it.
        (other.sink == record.sink || record.possible_repeat) && is_ahead(theirs)
    });
    // A try that nobody knows the end of counts as told, for the watermark of its lane.
    let perhaps = |(other, theirs): &Known<'_>| other.possible_repeat && is_ahead(theirs);
    at_its_sink || lane.iter().any(perhaps)
}

/// Whether some sink of the route had no greater watermark when this message was tried first. That
/// was after it was posted, so what came before then counted already.
fn may_have_been_first(view: &View<'_>, before: &[Known<'_>], posted: &Posted) -> bool {
    let above = before.iter().filter(|(other, theirs)| {
        theirs.key > posted.key && other.at.is_some_and(|at| at < posted.offered_at)
    });
    let above: BTreeSet<&str> = above.map(|(other, _)| other.sink.as_str()).collect();
    let mut sinks = view.history.records.iter().map(|it| it.sink.as_str());
    sinks.any(|sink| !above.contains(sink))
}

#[cfg(test)]
mod tests;
