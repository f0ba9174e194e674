//! Opens the unix socket of the admin door, for the command line on the same machine.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers on it.
    #[error("{} is in use: another Runbell serves it", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path leads to something that is no socket.
    #[error("{} is no socket: move it away, or choose another path", path.display())]
    Foreign {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot open the socket {}: does its directory exist, and may this user write there?", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens at `path`, for this user and its group (mode 0660). What a killed process left there is
/// replaced.
///
/// # Errors
/// When somebody else listens there, something else lies there, or the system refuses.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Bind {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::Foreign {
                path: path.to_owned(),
            });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(SocketError::InUse {
                path: path.to_owned(),
            });
        }
        Ok(_) | Err(_) => {}
    }
    bind_in_private(path).map_err(failed)
}

/// Binds where nobody else can reach, narrows the mode, and only then puts the socket in its place:
/// there is no moment at which a stranger could connect.
fn bind_in_private(path: &Path) -> io::Result<UnixListener> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let private = directory
        .unwrap_or(Path::new("."))
        .join(format!(".runbell-{}", std::process::id()));
    // Process ids come back; in a container they do so at every start.
    let _ = fs::remove_dir_all(&private);
    DirBuilder::new().mode(0o700).create(&private)?;
    let bound = (|| {
        let inside = private.join("s");
        let listener = UnixListener::bind(&inside)?;
        fs::set_permissions(&inside, Permissions::from_mode(0o660))?;
        fs::rename(&inside, path)?;
        Ok(listener)
    })();
    let _ = fs::remove_dir_all(&private);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_user_and_group_may_open_it_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        for _ in 0..2 {
            let listener = bind(&path).unwrap();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o660);
            assert!(matches!(bind(&path), Err(SocketError::InUse { .. })));
            drop(listener);
        }
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[tokio::test]
    async fn a_file_is_not_taken_for_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "kept").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::Foreign { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
        let nowhere = directory.path().join("missing/admin.sock");
        assert!(matches!(bind(&nowhere), Err(SocketError::Bind { .. })));
    }
}
