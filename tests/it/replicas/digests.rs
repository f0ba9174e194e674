//! Whether the last notice of each command counts all its instances, read as its reader reads it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Scene;
use super::publisher::Counts;
use super::settings::Route;

/// The words of a digest for how instances ended, or have not.
const WORDS: [&str; 7] = [
    "succeeded",
    "failed",
    "timed out",
    "cancelled",
    "still running",
    "not started",
    "never heard of",
];

/// What is wrong with the digests of a route, in words; how many notices there were.
pub(super) fn check(scene: &Scene, route: &Route) -> (String, usize) {
    let taken = scene.services.taken();
    let is_of = |sink: &str| route.sinks.iter().any(|it| it.name == sink);
    let notices = taken.iter().filter(|it| is_of(&it.sink));
    let notices: Vec<String> = notices.map(|it| words(&it.body)).collect();
    let ends = scene.publisher.ends();
    (complaint(&notices, &ends), notices.len())
}

fn complaint(notices: &[String], ends: &BTreeMap<String, Counts>) -> String {
    let wrong = ends.iter().filter_map(|(command, counts)| {
        let mut all = notices.iter().rev();
        match all.find(|notice| notice.contains(command)) {
            None => Some(format!("no digest of {command}")),
            Some(last) => {
                let said = self::counts(last);
                (said != *counts)
                    .then(|| format!("{command} ended {counts:?}, and the last says {said:?}"))
            }
        }
    });
    let wrong: Vec<String> = wrong.collect();
    match wrong.len() {
        0 => String::new(),
        count => format!(
            "{count} digests are wrong: {}",
            wrong[..count.min(5)].join("; ")
        ),
    }
}

/// The counts in a text: "1,200 succeeded, 1 failed".
fn counts(text: &str) -> Counts {
    let count = |word: &&'static str| {
        let before = text.split_once(&format!(" {word}"))?.0;
        let number = before.rsplit(' ').next()?.replace(',', "");
        Some((*word, number.parse().ok()?))
    };
    WORDS.iter().filter_map(count).collect()
}

/// All texts of a message, whatever its form.
fn words(body: &Value) -> String {
    match body {
        Value::String(text) => format!("{text} "),
        Value::Array(all) => all.iter().map(words).collect(),
        Value::Object(all) => all.values().map(words).collect(),
        _ => String::new(),
    }
}

#[test]
fn digest_is_right_if_its_last_notice_counts_everything() {
    let body = serde_json::json!({
        "text": "Failed: AWS-RunShellScript: 1,200 succeeded, 1 failed",
        "blocks": [{ "fields": ["c-1", { "text": "i-1 (TimedOut)" }], "n": 1 }],
    });
    let begun = "InProgress: x: 7 succeeded, 3 still running c-1".to_owned();
    let ends = [(
        "c-1".to_owned(),
        Counts::from([("succeeded", 1200), ("failed", 1)]),
    )];
    let ends = BTreeMap::from(ends);
    assert_eq!(complaint(&[begun.clone(), words(&body)], &ends), "");

    let early = complaint(&[words(&body), begun], &ends);
    assert!(
        early.starts_with("1 digests are wrong: c-1 ended"),
        "{early}"
    );
    let none = complaint(&[], &ends);
    assert_eq!(none, "1 digests are wrong: no digest of c-1");
}
