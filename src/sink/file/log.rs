//! One file that is open: appended to, synced, cut back when that fails, rotated.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::rotation::{Rotation, sync_folder};
use super::tail;

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
    /// Something failed, and could not be taken back.
    #[error("{0}; what was written could not be taken back")]
    Uncertain(Box<Self>),
    /// The file was closed in between.
    #[error("the file was closed")]
    Vanished,
}

impl LogError {
    /// Whether it will be so until somebody does something.
    pub(super) fn is_a_persons_business(&self) -> bool {
        match self {
            Self::NoFolder(_) | Self::NoFile(_) => true,
            Self::InUse(_) | Self::Vanished | Self::Uncertain(_) => false,
            Self::System { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ),
        }
    }
}

/// An open file.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    mode: u32,
    rotation: Rotation,
    /// Bytes that are whole and synced.
    size: u64,
    /// When it was written last.
    written_at: Timestamp,
    /// How long it was when it was opened.
    opened_at: u64,
    /// The ids of the last lines there were then; read when first asked for.
    before: Option<HashSet<String>>,
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
        if let Some(folder) = path.parent() {
            make_folders(folder).map_err(|source| failed("make the folder", folder, source))?;
        }
        let (file, is_new) = open_or_make(path, mode)?;
        let found = file
            .metadata()
            .map_err(|source| failed("look at", path, source))?;
        if !found.is_file() {
            return Err(LogError::NoFile(path.to_owned()));
        }
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LogError::InUse(path.to_owned()))?;
        let size = tail::mend(&file, found.len()).map_err(|source| failed("mend", path, source))?;
        if is_new {
            sync_folder(path).map_err(|source| failed("sync the folder of", path, source))?;
        }
        rotation.tidy(path, now);
        let modified = found.modified().ok();
        let modified = modified.and_then(|at| Timestamp::try_from(at).ok());
        Ok(Self {
            path: path.to_owned(),
            file,
            mode,
            rotation: rotation.clone(),
            size,
            opened_at: size,
            written_at: modified.filter(|_| size > 0).unwrap_or(now),
            before: None,
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

    /// Whether a line of that id was among the last of this file, or of the one that was set aside
    /// before it, when it was opened. One in a file of another name, of the day before, is not found:
    /// there the line stands twice, and the second says that it may.
    pub(super) fn has(&mut self, id: &str) -> Result<bool, LogError> {
        let before = match self.before.take() {
            Some(before) => before,
            None => tail::ids(&self.path, &self.file, self.opened_at)
                .map_err(|source| failed("read back", &self.path, source))?,
        };
        Ok(self.before.insert(before).contains(id))
    }

    /// Appends whole lines, in a new file when it is time for one. They are not safe before `sync`.
    pub(super) fn write(&mut self, lines: &[u8], now: Timestamp) -> Result<(), LogError> {
        if lines.is_empty() {
            return Ok(());
        }
        let grows_to = self.size + lines.len() as u64;
        if self.size > 0 && self.rotation.is_due(grows_to, self.written_at, now) {
            self.rotate(now)?;
        }
        self.written_at = now;
        self.file
            .write_all(lines)
            .map_err(|source| failed("write", &self.path, source))
    }

    /// Makes what was written safe.
    pub(super) fn sync(&mut self) -> Result<(), LogError> {
        let failed = |source| failed("sync", &self.path, source);
        self.file.sync_data().map_err(failed)?;
        self.size = self.file.metadata().map_err(failed)?.len();
        Ok(())
    }

    /// Takes back what was written since the last `sync`.
    pub(super) fn cut_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.size)?;
        self.file.sync_data()
    }

    fn rotate(&mut self, now: Timestamp) -> Result<(), LogError> {
        Rotation::set_aside(&self.path, now)
            .map_err(|source| failed("rotate", &self.path, source))?;
        let (file, _) = open_or_make(&self.path, self.mode)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LogError::InUse(self.path.clone()))?;
        self.file = file;
        self.size = 0;
        self.opened_at = 0;
        sync_folder(&self.path)
            .map_err(|source| failed("sync the folder of", &self.path, source))?;
        self.rotation.tidy(&self.path, now);
        Ok(())
    }
}

/// Makes a folder with those that it lies in, each safe in the one before.
fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() || folder.as_os_str().is_empty() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folders(above)?;
    }
    match fs::DirBuilder::new().mode(0o750).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Ok(()) => sync_folder(folder),
        failed => failed,
    }
}

/// Opens a file for appending, and says whether it is new. What a link points to is not ours.
fn open_or_make(path: &Path, mode: u32) -> Result<(File, bool), LogError> {
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
                    Ok((file, true))
                })
                .map_err(|source| failed("make", path, source));
        }
        opened => opened,
    };
    opened.map(|file| (file, false)).map_err(|source| {
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
