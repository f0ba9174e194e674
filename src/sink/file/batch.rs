//! Notices made ready for writing: lines by the file that they go to, and what came of each.
//!
//! Made while the notices are only borrowed, so that nothing of them is copied but their lines.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::path::PathBuf;

use jiff::Timestamp;

use super::MOST_OPEN;
use super::log::LogError;
use super::path::Template;
use crate::render::Notice;
use crate::retry::{Scope, Verdict};
use crate::sink::record::write_line;

/// One line.
pub(super) struct Line {
    /// Which notice of the batch it tells.
    pub(super) at: usize,
    pub(super) id: String,
    /// Whether an earlier try may have written it.
    pub(super) may_be_there: bool,
    /// Where that try may have gone, besides the path of today.
    pub(super) elsewhere: Vec<PathBuf>,
    /// Whether that was found, so that it is not written again.
    pub(super) is_there: bool,
    lane: Lane,
    text: Range<usize>,
}

/// The lines of one file.
pub(super) struct Group {
    pub(super) path: PathBuf,
    pub(super) lines: Vec<Line>,
    text: Vec<u8>,
}

/// Lines by file, in the order of their first lines; no more files at once than may be open.
pub(super) struct Batch {
    pub(super) chunks: Vec<Vec<Group>>,
    pub(super) count: usize,
}

/// What is known of the lane that a notice is of: those of one lane have the route in common, and the
/// topic or the command.
#[derive(Clone, Copy)]
struct Lane {
    topic: u64,
    command: Option<u64>,
}

impl Batch {
    pub(super) fn new(notices: &[Notice], template: &Template, now: Timestamp) -> Self {
        let hasher = RandomState::new();
        let mut chunks: Vec<Vec<Group>> = Vec::new();
        let mut chunk: Vec<Group> = Vec::new();
        for (at, notice) in notices.iter().enumerate() {
            let path = template.expand(notice, now);
            let known = chunk.iter_mut().position(|group| group.path == path);
            let place = known.unwrap_or_else(|| {
                if chunk.len() == MOST_OPEN {
                    chunks.push(std::mem::take(&mut chunk));
                }
                chunk.push(Group {
                    path,
                    lines: Vec::new(),
                    text: Vec::new(),
                });
                chunk.len() - 1
            });
            if let Some(group) = chunk.get_mut(place) {
                let start = group.text.len();
                write_line(notice, &mut group.text);
                let may_be_there = notice.marks.possible_repeat;
                let command = notice.event.command();
                group.lines.push(Line {
                    at,
                    id: notice.id.clone(),
                    may_be_there,
                    elsewhere: if may_be_there {
                        template.expand_earlier(notice, now)
                    } else {
                        Vec::new()
                    },
                    is_there: false,
                    lane: Lane {
                        topic: hasher.hash_one(("topic", &notice.route, &notice.event.topic)),
                        command: command
                            .map(|it| hasher.hash_one(("command", &notice.route, &it.command))),
                    },
                    text: start..group.text.len(),
                });
            }
        }
        chunks.push(chunk);
        Self {
            chunks,
            count: notices.len(),
        }
    }
}

impl Group {
    /// The text of the lines that are to be written, in as few pieces as may be.
    pub(super) fn pieces(&self) -> Vec<&[u8]> {
        let mut pieces: Vec<Range<usize>> = Vec::new();
        for line in self.lines.iter().filter(|line| !line.is_there) {
            match pieces.last_mut() {
                Some(last) if last.end == line.text.start => last.end = line.text.end,
                _ => pieces.push(line.text.clone()),
            }
        }
        let pieces = pieces.into_iter();
        pieces.filter_map(|piece| self.text.get(piece)).collect()
    }
}

/// What came of each notice of a batch.
pub(super) struct Answers {
    verdicts: Vec<Option<Verdict>>,
    /// Lanes of which something could not be written, so that nothing after it may be.
    stopped: HashSet<u64>,
}

impl Answers {
    pub(super) fn new(count: usize) -> Self {
        Self {
            verdicts: vec![None; count],
            stopped: HashSet::new(),
        }
    }

    /// Takes out of a chunk what cannot be written because of its path, and what may have to wait for
    /// it in the same lane. Of lanes a sink knows nothing for sure: rather too many wait for a while.
    pub(super) fn refuse(&mut self, chunk: &mut [Group], refused: &[(usize, LogError)]) {
        if refused.is_empty() && self.stopped.is_empty() {
            return;
        }
        let why_of = |group| {
            let error = refused.iter().find(|(place, _)| *place == group);
            error.map(|(_, error)| error.to_string())
        };
        let mut order: Vec<(usize, usize, Lane)> = Vec::new();
        for (place, group) in chunk.iter().enumerate() {
            order.extend(group.lines.iter().map(|line| (line.at, place, line.lane)));
        }
        order.sort_unstable_by_key(|(at, ..)| *at);
        for (at, place, lane) in order {
            let lanes = [Some(lane.topic), lane.command];
            let mut lanes = lanes.into_iter().flatten();
            let waits = lanes.clone().any(|lane| self.stopped.contains(&lane));
            let why = match why_of(place) {
                Some(why) => why,
                None if waits => "what may have to be written before it could not be".to_owned(),
                None => continue,
            };
            self.stopped.extend(&mut lanes);
            self.put(at, not_sent(why, Scope::Notice));
        }
        for group in chunk {
            let is_free = |line: &Line| self.verdicts.get(line.at).is_some_and(Option::is_none);
            group.lines.retain(is_free);
        }
    }

    pub(super) fn sent(&mut self, line: &Line) {
        self.put(line.at, Verdict::Sent { remote_id: None });
    }

    /// It may have been written, or may not.
    pub(super) fn unknown(&mut self, line: &Line, why: String) {
        self.put(line.at, Verdict::Unknown { why });
    }

    /// A verdict for each: `otherwise` for those that were not reached.
    pub(super) fn finish(self, otherwise: &Verdict) -> Vec<Verdict> {
        let verdicts = self.verdicts.into_iter();
        verdicts
            .map(|verdict| verdict.unwrap_or_else(|| otherwise.clone()))
            .collect()
    }

    fn put(&mut self, at: usize, verdict: Verdict) {
        if let Some(place) = self.verdicts.get_mut(at) {
            *place = Some(verdict);
        }
    }
}

/// Nothing of it was written; it may be later.
pub(super) fn not_sent(why: String, scope: Scope) -> Verdict {
    Verdict::Retry {
        why,
        after: None,
        scope,
        progress: None,
    }
}
