//! One file that is open: appended to, synced, cut back when that fails, rotated.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::rotation::{Rotation, sync_folder};
use super::tail;
use crate::sink::Permit;

/// Why lines cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// The folder is not there.
    #[error("the folder {} does not exist: create it, or choose another path", .0.display())]
    NoFolder(PathBuf),
    /// There is something else at the path.
    #[error("{} is no regular file: choose another path", .0.display())]
    NoFile(PathBuf),
    /// Somebody else writes it.
    #[error("{} is written by another process", .0.display())]
    InUse(PathBuf),
    /// The system refused.
    #[error("cannot {act} {}: {source}", path.display())]
    System {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The file was closed in between.
    #[error("the file was closed")]
    Vanished,
    /// The permit to send was refused.
    #[error("{}", crate::sink::permit::REFUSED)]
    Refused,
}

impl LogError {
    /// Whether it will be so until somebody does something.
    pub(super) fn is_a_persons_business(&self) -> bool {
        match self {
            Self::NoFolder(_) | Self::NoFile(_) => true,
            Self::InUse(_) | Self::Vanished | Self::Refused => false,
            Self::System { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ),
        }
    }

    /// Whether the path itself is to blame, so that another may be fine.
    pub(super) fn is_about_the_path(&self) -> bool {
        match self {
            Self::NoFile(_) => true,
            Self::NoFolder(_) | Self::InUse(_) | Self::Vanished | Self::Refused => false,
            Self::System { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::InvalidFilename
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
            ),
        }
    }
}

/// An open file.
pub(super) struct Log {
    path: PathBuf,
    /// From the one that has to exist down to the file's own.
    folders: Vec<PathBuf>,
    file: File,
    mode: u32,
    rotation: Rotation,
    /// Whether its name is safe in its folders; never so while the file is empty.
    is_named: bool,
    /// Bytes that are whole, synced and counted as sent.
    size: u64,
    /// Bytes that are synced.
    synced: u64,
    /// When it was written last.
    written_at: Timestamp,
    opened_size: u64,
    /// The ids of the last lines there were when it was opened; read when first asked for.
    before: Option<HashSet<String>>,
    /// The ids of the last lines that were written since.
    since: VecDeque<String>,
}

impl Log {
    /// Opens `path`, or makes it: the folders below `fixed`, the file with `mode`. A last line that
    /// was torn by a crash is cut.
    pub(super) fn open(
        path: &Path,
        fixed: &Path,
        mode: u32,
        rotation: &Rotation,
        now: Timestamp,
    ) -> Result<Self, LogError> {
        if !fixed.is_dir() {
            return Err(LogError::NoFolder(fixed.to_owned()));
        }
        let folders = folders(path, fixed);
        for folder in folders.iter().filter(|folder| !folder.is_dir()) {
            make_folder(folder).map_err(|source| failed("make the folder", folder, source))?;
        }
        let file = open_or_make(path, mode)?;
        let found = file
            .metadata()
            .map_err(|source| failed("look at", path, source))?;
        if !found.is_file() {
            return Err(LogError::NoFile(path.to_owned()));
        }
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LogError::InUse(path.to_owned()))?;
        let size = tail::mend(&file, found.len()).map_err(|source| failed("mend", path, source))?;
        rotation.tidy(path, now);
        let modified = found.modified().ok();
        let modified = modified.and_then(|at| Timestamp::try_from(at).ok());
        Ok(Self {
            path: path.to_owned(),
            folders,
            file,
            mode,
            rotation: rotation.clone(),
            is_named: found.len() > 0,
            size,
            synced: size,
            written_at: modified.filter(|_| size > 0).unwrap_or(now),
            opened_size: size,
            before: None,
            since: VecDeque::new(),
        })
    }

    /// Whether the path still leads to this file: it may have been moved or deleted by others.
    pub(super) fn is_in_place(&self) -> bool {
        match (fs::symlink_metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(here)) => {
                (there.dev(), there.ino()) == (here.dev(), here.ino()) && here.len() >= self.size
            }
            _ => false,
        }
    }

    /// Whether a line of that id is among the last that were written since this was opened, the last
    /// of what was there before, or of the file before that.
    pub(super) fn has(&mut self, id: &str) -> Result<bool, LogError> {
        Ok(self.since.iter().any(|known| known == id) || self.before()?.contains(id))
    }

    fn before(&mut self) -> Result<&HashSet<String>, LogError> {
        let before = match self.before.take() {
            Some(before) => before,
            None => tail::ids(&self.path, &self.file, self.opened_size)
                .map_err(|source| failed("read back", &self.path, source))?,
        };
        Ok(self.before.insert(before))
    }

    /// Appends whole lines, in a new file when it is time for one. They are not safe before `sync`.
    pub(super) fn write(
        &mut self,
        pieces: &[&[u8]],
        now: Timestamp,
        permit: &Permit,
    ) -> Result<(), LogError> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        if length == 0 {
            return Ok(());
        }
        let grows_to = self.size + length as u64;
        if self.size > 0 && self.rotation.is_due(grows_to, self.written_at, now) {
            self.rotate(now)?;
        }
        if !self.is_named {
            // Lines whose file may vanish with its name are not on the disk. Done before there are
            // any, so that a file with lines never needs it again, whoever opens it.
            for folder in &self.folders {
                sync_folder(folder).map_err(|source| failed("sync the folder", folder, source))?;
            }
            self.is_named = true;
        }
        // Rotating, compressing and syncing folders may have taken long.
        if !permit.begin() {
            return Err(LogError::Refused);
        }
        self.written_at = now;
        for piece in pieces {
            self.file
                .write_all(piece)
                .map_err(|source| failed("write", &self.path, source))?;
        }
        Ok(())
    }

    /// Makes what was written safe.
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        let failed = |source| failed("sync", &self.path, source);
        self.file.sync_data().map_err(failed)?;
        self.synced = self.file.metadata().map_err(failed)?.len();
        Ok(())
    }

    /// Lets stand what was synced: lines of these ids.
    pub(super) fn keep(&mut self, ids: impl Iterator<Item = String>) {
        self.size = self.synced;
        for id in ids {
            if self.since.len() == tail::LINES {
                self.since.pop_front();
            }
            self.since.push_back(id);
        }
    }

    /// Takes back what was written since the last `keep`.
    pub(super) fn cut_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.size)?;
        self.file.sync_data()
    }

    fn rotate(&mut self, now: Timestamp) -> Result<(), LogError> {
        // Once more files are set aside it is out of reach.
        self.before()?;
        // Lines that an earlier process wrote may never have been synced, and `sync` looks at the new
        // file only. Found later, they would count as written without being safe. The new name is
        // made safe with the new file's, before there are lines in that.
        self.sync()?;
        Rotation::set_aside(&self.path, now)
            .map_err(|source| failed("rotate", &self.path, source))?;
        let file = open_or_make(&self.path, self.mode)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LogError::InUse(self.path.clone()))?;
        self.file = file;
        self.is_named = false;
        (self.size, self.synced) = (0, 0);
        self.rotation.tidy(&self.path, now);
        Ok(())
    }

    /// Makes that nothing can be written or taken back any more.
    #[cfg(test)]
    pub(super) fn break_it(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }
}

/// The folders from `fixed` down to that of `path`.
fn folders(path: &Path, fixed: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for folder in path.ancestors().skip(1) {
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        folders.push(folder.to_owned());
        if folder == fixed {
            break;
        }
    }
    folders.reverse();
    folders
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o750).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if folder.is_dir() {
                Ok(())
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        }
        made => made,
    }
}

/// Opens a file for appending, or makes it. What a link points to is not ours.
fn open_or_make(path: &Path, mode: u32) -> Result<File, LogError> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).custom_flags(
        (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK)
            .bits()
            .cast_signed(),
    );
    let opened = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = options.clone().create_new(true).mode(mode).open(path);
            return made
                .and_then(|file| {
                    // The process's umask may have taken something away.
                    file.set_permissions(Permissions::from_mode(mode))?;
                    Ok(file)
                })
                .map_err(|source| failed("make", path, source));
        }
        opened => opened,
    };
    opened.map_err(|source| {
        let is_other = fs::symlink_metadata(path).is_ok_and(|found| !found.is_file());
        if is_other {
            LogError::NoFile(path.to_owned())
        } else {
            failed("open", path, source)
        }
    })
}

fn failed(act: &'static str, path: &Path, source: io::Error) -> LogError {
    LogError::System {
        act,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_below_the_fixed_one_is_made_safe_from_above() {
        for (path, fixed, expected) in [
            ("/a/b/c/x", "/a", vec!["/a", "/a/b", "/a/b/c"]),
            ("/a/x", "/a", vec!["/a"]),
            ("/d/x", "/", vec!["/", "/d"]),
            ("d/x", ".", vec![".", "d"]),
            ("x", ".", vec!["."]),
        ] {
            let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(
                folders(Path::new(path), Path::new(fixed)),
                expected,
                "{path}"
            );
        }
    }
}
