//! Lines of JSON in files: what auditors keep.
//!
//! A delivery counts as sent when its line is on the disk (written, then synced); a whole batch
//! shares one sync. Whatever fails is cut back to the last whole state, so that no line is torn and
//! none is half of a batch; it waits without end rather than die. What may have been written before
//! a crash is looked for in the file's tail and not written twice.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use super::{Capacity, Permit, Sink};
use crate::clock::Clock;
use crate::fault::Fault;
use crate::render::Notice;
use crate::retry::{Patience, Scope, Verdict};
use crate::units::{Size, Span};

mod batch;
mod files;
mod log;
mod path;
mod rotation;
mod tail;

use batch::{Batch, not_sent};
use files::Files;
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
    /// No other replica writes these files.
    is_of_replica: bool,
    rotation: Rotation,
    mode: u32,
}

impl Settings {
    /// Checks them; a path that is not absolute lies in `folder`, and `replica` is the name of this
    /// one among those that share a store.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path, replica: &str) -> Result<Checked, Vec<Fault>> {
        let mut faults = Vec::new();
        let path = folder.join(&self.path);
        let template = Template::parse(&path.to_string_lossy(), replica)
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
                is_of_replica: self.path.contains("{replica}"),
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

    /// Whether no other replica writes these files.
    #[must_use]
    pub const fn is_of_replica(&self) -> bool {
        self.is_of_replica
    }
}

/// Writes lines to files.
pub struct FileSink {
    clock: Clock,
    template: Template,
    /// Held for as long as writing, syncing and compressing take: never on a thread of the runtime.
    files: Arc<Mutex<Files>>,
}

impl FileSink {
    /// A sink that opens its files when the first line comes.
    #[must_use]
    pub fn new(settings: Checked, clock: Clock) -> Self {
        Self {
            clock,
            template: settings.template.clone(),
            files: Arc::new(Mutex::new(Files::new(settings))),
        }
    }
}

/// Who panicked while holding them may have left lines that nobody counted: everything is opened
/// anew, and looked at.
fn lock(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    files.lock().unwrap_or_else(|poisoned| {
        files.clear_poison();
        let mut files = poisoned.into_inner();
        files.open.clear();
        files
    })
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

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        let files = Arc::clone(&self.files);
        let now = self.clock.now();
        let batch = Batch::new(notices, &self.template, now);
        let permit = permit.clone();
        let writing = move || lock(&files).write(batch, now, &permit);
        let written = tokio::task::spawn_blocking(writing).await;
        written.unwrap_or_else(|error| {
            let why = error.to_string();
            let verdict = if error.is_panic() {
                Verdict::Unknown { why }
            } else {
                not_sent(why, Scope::Sink)
            };
            vec![verdict; notices.len()]
        })
    }

    async fn reopen(&self) {
        let files = Arc::clone(&self.files);
        let closed = tokio::task::spawn_blocking(move || lock(&files).open.clear()).await;
        if let Err(error) = closed {
            tracing::warn!(%error, "files could not be closed to be opened anew");
        }
    }
}

#[cfg(test)]
mod tests;
