//! Lines of JSON in files: what auditors keep.
//!
//! A delivery counts as sent when its line is on the disk (written, then synced); a whole batch
//! shares one sync. Whatever fails is cut back to the last whole state, so that no line is torn and
//! none is half of a batch; it waits without end rather than die. What may have been written before
//! a crash is looked for in the file's tail and not written twice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Deserialize;

use super::record::write_line;
use super::{Capacity, Sink};
use crate::clock::Clock;
use crate::fault::Fault;
use crate::render::Notice;
use crate::retry::{Patience, Scope, Verdict};
use crate::units::{Size, Span};

mod log;
mod path;
mod rotation;
mod tail;

use log::{Log, LogError};
use path::Template;
use rotation::Rotation;

/// How many lines are written with one sync at most.
const PER_SEND: usize = 1000;
/// How many files are open at once; templated paths can name any number.
const MOST_OPEN: usize = 64;

/// Settings of a file sink, as they are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the lines go; may have placeholders.
    pub path: String,
    /// A file this large is rotated.
    pub rotate_size: Option<Size>,
    /// A file is rotated when an hour or a day (UTC) begins.
    pub rotate_every: Option<Every>,
    /// Rotated files older than this are deleted.
    pub keep: Option<Span>,
    /// Of the rotated files so many are kept.
    pub keep_files: Option<usize>,
    /// How rotated files are compressed.
    pub compress: Option<Compression>,
    /// Access rights of new files, in octal digits.
    pub mode: Option<String>,
}

/// When a file is rotated whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Every {
    /// When an hour begins.
    Hour,
    /// When a day begins.
    Day,
}

/// How rotated files are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard.
    Zstd,
}

/// Checked settings of a file sink.
#[derive(Clone, Debug)]
pub struct Checked {
    template: Template,
    rotation: Rotation,
    mode: u32,
}

impl Settings {
    /// Checks them; a path that is not absolute lies in `folder`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let mut faults = Vec::new();
        let path = folder.join(&self.path);
        let template = Template::parse(&path.to_string_lossy())
            .map_err(|why| faults.push(Fault::at(&["path"], why)))
            .ok();
        let mode = self.mode.as_deref().unwrap_or("0640");
        let mode = u32::from_str_radix(mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777 && mode & 0o600 == 0o600);
        if mode.is_none() {
            let why = "the mode is three or four octal digits, and lets the owner read and write: \
                write it like \"0640\"";
            faults.push(Fault::at(&["mode"], why));
        }
        let rotates = self.rotate_size.is_some() || self.rotate_every.is_some();
        for (key, is_set) in [
            ("keep", self.keep.is_some()),
            ("keep_files", self.keep_files.is_some()),
            ("compress", self.compress.is_some()),
        ] {
            if is_set && !rotates {
                let why = format!(
                    "`{key}` is about rotated files, and nothing rotates: set `rotate_size` or \
                     `rotate_every`"
                );
                faults.push(Fault::at(&[key], why));
            }
        }
        if self.rotate_size.is_some_and(|size| size.0 < 4096) {
            faults.push(Fault::at(&["rotate_size"], "rotate at 4 KiB or more"));
        }
        if self.keep_files == Some(0) {
            faults.push(Fault::at(
                &["keep_files"],
                "keep at least one rotated file: what was just written is in it",
            ));
        }
        match (template, mode) {
            (Some(template), Some(mode)) if faults.is_empty() => Ok(Checked {
                template,
                rotation: Rotation {
                    size: self.rotate_size.map(|size| size.0),
                    every: self.rotate_every,
                    keep: self.keep.map(|span| span.0),
                    keep_files: self.keep_files,
                    compress: self.compress.is_some(),
                },
                mode,
            }),
            _ => Err(faults),
        }
    }
}

impl Checked {
    /// The path as it was written, to tell whether two sinks write one file.
    #[must_use]
    pub fn path(&self) -> &str {
        self.template.as_str()
    }
}

/// A line on its way to a file.
struct Line {
    path: PathBuf,
    id: String,
    may_be_there: bool,
    text: Vec<u8>,
}

/// Lines by the file that they go to, in the order of their first lines.
type ByPath<'l> = Vec<(&'l Path, Vec<&'l Line>)>;

/// Writes lines to files.
pub struct FileSink {
    settings: Checked,
    clock: Clock,
    /// Held for as long as a batch takes: only where blocking is allowed.
    files: Arc<Mutex<Files>>,
}

struct Files {
    settings: Checked,
    open: HashMap<PathBuf, Log>,
}

impl FileSink {
    /// A sink that opens its files when the first line comes.
    #[must_use]
    pub fn new(settings: Checked, clock: Clock) -> Self {
        let files = Files {
            settings: settings.clone(),
            open: HashMap::new(),
        };
        Self {
            settings,
            clock,
            files: Arc::new(Mutex::new(files)),
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: PER_SEND,
            at_once: 1,
        }
    }

    /// A file that cannot be written stands in nobody's way but its own: it is tried without end, and
    /// soon again.
    fn patience(&self) -> Patience {
        Patience {
            longest: Duration::from_secs(15),
            horizon: Duration::MAX,
            block_for: None,
            ..Patience::default()
        }
    }

    async fn send(&self, notices: &[Notice]) -> Vec<Verdict> {
        let files = Arc::clone(&self.files);
        let now = self.clock.now();
        let line = |notice: &Notice| {
            let mut text = Vec::with_capacity(1024 + notice.event.body.len());
            write_line(notice, &mut text);
            Line {
                path: self.settings.template.expand(notice, now),
                id: notice.id.clone(),
                may_be_there: notice.marks.possible_repeat,
                text,
            }
        };
        let lines: Vec<Line> = notices.iter().map(line).collect();
        let written = tokio::task::spawn_blocking(move || {
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            files.write(&lines, now)
        })
        .await;
        let (sent, failure) = match written {
            Ok((sent, failure)) => (sent, failure.map(|error| error.verdict())),
            Err(error) => {
                let why = error.to_string();
                (0, Some(Verdict::Unknown { why }))
            }
        };
        let mut verdicts = vec![Verdict::Sent { remote_id: None }; sent];
        verdicts.resize(
            notices.len(),
            failure.unwrap_or(Verdict::Sent { remote_id: None }),
        );
        verdicts
    }

    async fn reopen(&self) {
        let files = Arc::clone(&self.files);
        let closed = tokio::task::spawn_blocking(move || {
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            files.open.clear();
        });
        if closed.await.is_err() {
            tracing::error!("the files were not opened anew");
        }
    }
}

impl LogError {
    fn verdict(&self) -> Verdict {
        let why = self.to_string();
        if matches!(self, Self::Uncertain(_)) {
            return Verdict::Unknown { why };
        }
        if self.is_a_persons_business() {
            return Verdict::Broken { why };
        }
        Verdict::Retry {
            why,
            after: None,
            scope: Scope::Sink,
            progress: None,
        }
    }
}

impl Files {
    /// Writes them in order, few files at a time; how many are safe, and what stopped it.
    fn write(&mut self, lines: &[Line], now: Timestamp) -> (usize, Option<LogError>) {
        let mut sent = 0;
        let mut by_path = ByPath::new();
        for (at, line) in lines.iter().enumerate() {
            let path = line.path.as_path();
            if let Some((_, lines)) = by_path.iter_mut().find(|(known, _)| *known == path) {
                lines.push(line);
            } else {
                if by_path.len() == MOST_OPEN {
                    if let Err(error) = self.write_whole(&by_path, now) {
                        return (sent, Some(error));
                    }
                    sent = at;
                    by_path.clear();
                }
                by_path.push((path, vec![line]));
            }
        }
        match self.write_whole(&by_path, now) {
            Ok(()) => (lines.len(), None),
            Err(error) => (sent, Some(error)),
        }
    }

    /// Writes all of them or none: lanes may spread over files, and their order must hold.
    fn write_whole(&mut self, by_path: &ByPath<'_>, now: Timestamp) -> Result<(), LogError> {
        self.close_some(by_path.len());
        let mut begun = Vec::new();
        let written = by_path.iter().try_for_each(|(path, lines)| {
            let log = self.log(path, now)?;
            let mut text = Vec::new();
            for line in lines {
                if !(line.may_be_there && log.has(&line.id)?) {
                    text.extend_from_slice(&line.text);
                }
            }
            begun.push(*path);
            log.write(&text, now)
        });
        if written.is_ok() {
            tracing::trace!(target: "runbell::point", "written");
        }
        let synced = written.and_then(|()| {
            by_path
                .iter()
                .try_for_each(|(path, _)| match self.open.get_mut(*path) {
                    Some(log) => log.sync(),
                    None => Ok(()),
                })
        });
        match synced {
            Ok(()) => {
                tracing::trace!(target: "runbell::point", "synced");
                Ok(())
            }
            Err(error) => {
                let mut is_certain = true;
                for path in begun {
                    if let Some(mut log) = self.open.remove(path) {
                        match log.cut_back() {
                            Ok(()) => drop(self.open.insert(path.to_owned(), log)),
                            // Opened anew it will read its tail, to see what is there.
                            Err(_) => is_certain = false,
                        }
                    }
                }
                Err(if is_certain {
                    error
                } else {
                    LogError::Uncertain(Box::new(error))
                })
            }
        }
    }

    fn log(&mut self, path: &Path, now: Timestamp) -> Result<&mut Log, LogError> {
        let is_current = self.open.get(path).is_some_and(Log::is_in_place);
        if !is_current {
            self.open.remove(path);
            let fixed = self.settings.template.fixed_folder();
            let log = Log::open(
                path,
                &fixed,
                self.settings.mode,
                &self.settings.rotation,
                now,
            )?;
            self.open.insert(path.to_owned(), log);
        }
        self.open.get_mut(path).ok_or(LogError::Vanished)
    }

    fn close_some(&mut self, wanted: usize) {
        if self.open.len() + wanted > MOST_OPEN {
            self.open.clear();
        }
    }
}

#[cfg(test)]
mod tests;
