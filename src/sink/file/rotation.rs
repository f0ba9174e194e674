//! Files that are full or whose time is over: set aside under a name with a UTC time, compressed,
//! and deleted when they are old.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::Every;
use crate::clock::earlier;

/// When files are set aside, and what becomes of them.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    pub(super) size: Option<u64>,
    pub(super) every: Option<Every>,
    pub(super) keep: Option<Duration>,
    pub(super) keep_files: Option<usize>,
    pub(super) compress: bool,
}

/// The time in the name of a file that was set aside; its length is fixed, so names sort by time.
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// A file that was set aside.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Aside {
    at: Timestamp,
    number: u32,
    path: PathBuf,
}

impl Rotation {
    /// Whether a file that was last written at `written_at`, and would grow to `size` bytes, has had
    /// its time.
    pub(super) fn is_due(&self, size: u64, written_at: Timestamp, now: Timestamp) -> bool {
        let period = |at: Timestamp| {
            let seconds = match self.every {
                Some(Every::Hour) => 3600,
                Some(Every::Day) => 86_400,
                None => return 0,
            };
            at.as_second().div_euclid(seconds)
        };
        self.size.is_some_and(|most| size > most) || period(written_at) < period(now)
    }

    /// Gives the file at `path` a name of its own.
    pub(super) fn set_aside(path: &Path, now: Timestamp) -> io::Result<()> {
        let (folder, stem, extension) = parts(path);
        let time = now.strftime(TIME);
        for number in 0..10_000_u32 {
            let suffix = if number == 0 {
                String::new()
            } else {
                format!("-{number}")
            };
            let aside = folder.join(format!("{stem}-{time}{suffix}{extension}"));
            let compressed = with_suffix(&aside, ".zst");
            if !aside.exists() && !compressed.exists() {
                return fs::rename(path, aside);
            }
        }
        Err(io::Error::other(
            "too many files were set aside in this second",
        ))
    }

    /// Deletes what is old, and compresses what is not yet: in this order, as compressing takes room
    /// that deleting may give. A crash in between leaves both files or neither half: what is missing
    /// is done the next time. Trouble is no reason not to write.
    pub(super) fn tidy(&self, path: &Path, now: Timestamp) {
        if let Err(error) = self.try_to_tidy(path, now) {
            let path = path.display();
            tracing::warn!(%path, %error, "rotated files are not as they should be");
        }
    }

    /// Goes on with the next file where one fails, and tells the first failure.
    fn try_to_tidy(&self, path: &Path, now: Timestamp) -> io::Result<()> {
        if self.size.is_none() && self.every.is_none() {
            return Ok(());
        }
        let mut aside = set_aside(path)?;
        aside.sort();
        let oldest = self.keep.map(|keep| earlier(now, keep));
        let many = self
            .keep_files
            .map_or(0, |most| aside.len().saturating_sub(most));
        let mut done = Ok(());
        let mut kept = Vec::new();
        for (at, file) in aside.into_iter().enumerate() {
            if at < many || oldest.is_some_and(|oldest| file.at < oldest) {
                done = done.and(delete(&file.path));
            } else {
                kept.push(file.path);
            }
        }
        if self.compress {
            for plain in kept.iter().filter(|path| !is_compressed(path)) {
                done = done.and(compress(plain));
            }
        }
        done
    }
}

/// The newest file that was set aside from `path`.
pub(super) fn newest_set_aside(path: &Path) -> Option<PathBuf> {
    let newest = set_aside(path).ok()?.into_iter().max()?;
    Some(newest.path)
}

/// Makes the names in a folder safe.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The files that were set aside from `path`; one that is there both ways counts once.
fn set_aside(path: &Path) -> io::Result<Vec<Aside>> {
    let (folder, stem, extension) = parts(path);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((at, number)) = name
            .to_str()
            .and_then(|name| name.strip_prefix(&stem))
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| {
                let plain = rest.strip_suffix(".zst").unwrap_or(rest);
                plain.strip_suffix(&extension)
            })
            .and_then(time_and_number)
        else {
            continue;
        };
        found.push(Aside {
            at,
            number,
            path: entry.path(),
        });
    }
    // While both are there the compressed one may be of an earlier try: the plain one is the truth.
    let plain: Vec<PathBuf> = found.iter().map(|file| file.path.clone()).collect();
    found.retain(|file| {
        !is_compressed(&file.path) || !plain.contains(&file.path.with_extension(""))
    });
    Ok(found)
}

fn time_and_number(text: &str) -> Option<(Timestamp, u32)> {
    let (time, number) = match text.split_once('-') {
        Some((time, number)) => (time, number.parse().ok()?),
        None => (text, 0),
    };
    let at = DateTime::strptime(TIME, time).ok()?;
    let at = at.to_zoned(TimeZone::UTC).ok()?.timestamp();
    Some((at, number))
}

fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "zst")
}

/// Deletes a file that was set aside, and what was begun of compressing it.
fn delete(path: &Path) -> io::Result<()> {
    let mut done = fs::remove_file(path);
    if !is_compressed(path) {
        for suffix in [".zst", ".zst.tmp"] {
            let deleted = fs::remove_file(with_suffix(path, suffix));
            done = done.and(deleted.or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }));
        }
    }
    done
}

fn compress(path: &Path) -> io::Result<()> {
    let (done, begun) = (with_suffix(path, ".zst"), with_suffix(path, ".zst.tmp"));
    let compressed = (|| {
        let mut to = File::create(&begun)?;
        to.set_permissions(fs::metadata(path)?.permissions())?;
        zstd::stream::copy_encode(File::open(path)?, &mut to, 0)?;
        to.sync_all()?;
        fs::rename(&begun, &done)
    })();
    if compressed.is_err() {
        // A full disk is the likely reason: half a file must not take what room there is.
        let _ = fs::remove_file(&begun);
    }
    compressed?;
    sync_folder(folder_of(path))?;
    fs::remove_file(path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The folder that a path leads to.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Folder, name before the extension, and extension with its dot.
fn parts(path: &Path) -> (&Path, String, String) {
    let text = |part: Option<&std::ffi::OsStr>| {
        part.map(|part| part.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let extension = match text(path.extension()) {
        none if none.is_empty() => none,
        some => format!(".{some}"),
    };
    (folder_of(path), text(path.file_stem()), extension)
}
