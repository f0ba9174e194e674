//! What came of it, shown from what was answered and from what lies in the files.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use serde::Deserialize;

use super::story::{Kind, Story};
use crate::cli::{Stop, output};
use crate::clock::since;

/// What of a line is looked at.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    sort_time: Timestamp,
    received_at: Timestamp,
    instance: Option<String>,
    #[serde(default)]
    marks: Vec<String>,
}

/// The lines of the files, and when each was first seen.
pub(super) struct Seen {
    files: [(PathBuf, Vec<(Line, Timestamp)>); 2],
}

impl Seen {
    pub(super) fn new(folder: &Path) -> Self {
        let file = |name| (folder.join(name), Vec::new());
        Self {
            files: [file("audit.jsonl"), file("failures.jsonl")],
        }
    }

    /// Looks for new lines; how many there are.
    pub(super) fn look(&mut self, now: Timestamp) -> Result<usize, Stop> {
        for (path, lines) in &mut self.files {
            let text = fs::read_to_string(&*path).unwrap_or_default();
            let whole = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            for line in whole.skip(lines.len()) {
                let line = serde_json::from_str(line).context("a line is no JSON")?;
                lines.push((line, now));
            }
        }
        Ok(self.count())
    }

    pub(super) fn count(&self) -> usize {
        self.files.iter().map(|(_, lines)| lines.len()).sum()
    }
}

pub(super) fn print(
    story: &Story,
    answers: &[u16],
    seen: &Seen,
    folder: &Path,
) -> Result<(), Stop> {
    requests(story, answers)?;
    let [(audit, audit_lines), (failures, failure_lines)] = &seen.files;
    let everything: Vec<&Line> = audit_lines.iter().map(|(line, _)| line).collect();
    output::line(&format!(
        "\n{}: {} lines, one for each status, in EventTime order: {}. They arrived with {} pairs in the \
         wrong order.",
        audit.display(),
        everything.len(),
        yes(is_in_order(&everything) && everything.len() == story.audit_lines()),
        inversions(&everything)
    ))?;
    let mut lanes: HashMap<&str, Vec<&Line>> = HashMap::new();
    for (line, _) in failure_lines {
        let instance = line.instance.as_deref().unwrap_or_default();
        lanes.entry(instance).or_default().push(line);
    }
    let in_order = lanes.values().all(|lane| is_in_order(lane));
    output::line(&format!(
        "{}: what did not succeed, {} lines in {} lanes, each in order: {}",
        failures.display(),
        failure_lines.len(),
        lanes.len(),
        yes(in_order && failure_lines.len() == story.failure_lines())
    ))?;
    for (name, lines) in [
        ("topic order, held 5 s", audit_lines),
        ("instance order, released early", failure_lines),
    ] {
        let (median, longest) = delays(lines);
        output::line(&format!(
            "From arrival to the file, {name}: median {} ms, longest {} ms",
            median.as_millis(),
            longest.as_millis()
        ))?;
    }
    let marked = everything.iter().filter(|line| !line.marks.is_empty());
    output::line(&format!(
        "Lines marked late or repeated: {}",
        marked.count()
    ))?;
    if is_in_order(&everything) && in_order {
        return Ok(());
    }
    let place = folder.display();
    Err(anyhow!("the order is wrong; everything lies in {place}").into())
}

/// What each kind of request was answered with, held against what it should have been.
fn requests(story: &Story, answers: &[u16]) -> Result<(), Stop> {
    let mut rows = Vec::new();
    let mut is_as_it_should_be = true;
    for kind in Kind::ALL {
        let of_kind: Vec<u16> = story
            .parts
            .iter()
            .zip(answers)
            .filter(|(part, _)| part.kind == kind)
            .map(|(_, answer)| *answer)
            .collect();
        let (wanted, why) = kind.outcome();
        let good = of_kind.iter().filter(|answer| **answer == wanted).count();
        is_as_it_should_be &= good == of_kind.len();
        rows.push(vec![
            of_kind.len().to_string(),
            kind.words().to_owned(),
            format!("{good} × {wanted}"),
            why.to_owned(),
        ]);
    }
    output::line("")?;
    output::table(&["POSTED", "WHAT", "ANSWERED", "BECAUSE"], rows, "")?;
    if is_as_it_should_be {
        Ok(())
    } else {
        Err(anyhow!("something was answered as it should not be").into())
    }
}

fn is_in_order(lines: &[&Line]) -> bool {
    lines.is_sorted_by_key(|line| line.sort_time)
}

/// How many pairs arrived in another order than they happened in.
fn inversions(lines: &[&Line]) -> usize {
    lines
        .iter()
        .enumerate()
        .map(|(at, line)| {
            let later = lines.iter().skip(at + 1);
            later
                .filter(|other| {
                    other.received_at < line.received_at && other.sort_time > line.sort_time
                })
                .count()
        })
        .sum()
}

/// The median and the longest time from arrival until a line was seen.
fn delays(lines: &[(Line, Timestamp)]) -> (Duration, Duration) {
    let mut delays: Vec<_> = lines
        .iter()
        .map(|(line, seen_at)| since(line.received_at, *seen_at))
        .collect();
    delays.sort();
    let median = delays.get(delays.len() / 2).copied();
    (
        median.unwrap_or_default(),
        delays.last().copied().unwrap_or_default(),
    )
}

const fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "NO" }
}

/// How to do the same in earnest.
pub(super) fn what_next() -> Result<(), Stop> {
    output::line(
        "
The same with a real topic:
  1. Copy config/quickstart.toml to /etc/runbell/runbell.toml; put in your topic's ARN and a
     certificate that the public trusts. `runbell check` says what is wrong with it.
  2. runbell serve
  3. aws sns subscribe --protocol https --topic-arn YOUR-TOPIC \\
       --notification-endpoint https://YOUR-HOST:8443/sns
     The confirmation is verified and answered by itself.
  4. aws ssm send-command … --notification-config \\
       'NotificationArn=YOUR-TOPIC,NotificationEvents=All,NotificationType=Invocation'",
    )
}
