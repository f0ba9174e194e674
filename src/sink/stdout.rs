//! Lines of JSON on standard output, for containers whose platform collects it.
//!
//! Sent means that the reader at the other end of the pipe has taken it from us. What it loses
//! afterwards nobody here can know: where that matters, write a file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use super::record::write_line;
use super::{Capacity, Sink};
use crate::render::Notice;
use crate::retry::{Patience, Scope, Verdict};

/// Settings of a standard-output sink: there are none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {}

/// Writes to standard output.
#[derive(Debug, Default)]
pub struct StdoutSink {
    /// Whether the last line written there is torn.
    is_torn: Arc<Mutex<bool>>,
}

#[async_trait]
impl Sink for StdoutSink {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1000,
            at_once: 1,
        }
    }

    fn patience(&self) -> Patience {
        Patience {
            horizon: Duration::MAX,
            block_for: None,
            ..Patience::default()
        }
    }

    async fn send(&self, notices: &[Notice]) -> Vec<Verdict> {
        let line = |notice| {
            let mut line = Vec::new();
            write_line(notice, &mut line);
            line
        };
        let lines: Vec<Vec<u8>> = notices.iter().map(line).collect();
        let is_torn = Arc::clone(&self.is_torn);
        // A reader that does not read must stop this sink, and not the runtime.
        let written = tokio::task::spawn_blocking(move || {
            let mut is_torn = is_torn.lock().unwrap_or_else(PoisonError::into_inner);
            // Not through a buffer that might keep something back and write it later.
            let out = io::stdout().as_fd().try_clone_to_owned();
            match out {
                Ok(out) => write(&mut File::from(out), &lines, &mut is_torn),
                Err(error) => (0, false, Some(error)),
            }
        });
        let (whole, part, error) = match written.await {
            Ok(written) => written,
            Err(error) => (0, true, Some(io::Error::other(error))),
        };
        let why = error.map(|error| format!("standard output cannot be written: {error}"));
        let verdict = |at: usize| match &why {
            Some(why) if at >= whole => {
                let why = why.clone();
                if at == whole && part {
                    Verdict::Unknown { why }
                } else {
                    Verdict::Retry {
                        why,
                        after: None,
                        scope: Scope::Sink,
                        progress: None,
                    }
                }
            }
            _ => Verdict::Sent { remote_id: None },
        };
        (0..notices.len()).map(verdict).collect()
    }
}

/// Writes lines; how many are whole, whether part of the next was written, and what stopped it. After
/// a torn line the next begins on a line of its own.
fn write(
    out: &mut impl io::Write,
    lines: &[Vec<u8>],
    is_torn: &mut bool,
) -> (usize, bool, Option<io::Error>) {
    let mut text = Vec::new();
    if *is_torn {
        text.push(b'\n');
    }
    let before = text.len();
    for line in lines {
        text.extend_from_slice(line);
    }
    let mut done = 0;
    let error = loop {
        match out.write(text.get(done..).unwrap_or_default()) {
            _ if done == text.len() => break None,
            Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    let mut left = match done.checked_sub(before) {
        Some(left) => {
            *is_torn = false;
            left
        }
        None => return (0, false, error),
    };
    let mut whole = 0;
    for line in lines {
        if left < line.len() {
            break;
        }
        left -= line.len();
        whole += 1;
    }
    *is_torn = left > 0;
    (whole, left > 0, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then fails.
    struct Pipe(Vec<u8>, usize);

    impl io::Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.1 - self.0.len();
            if room == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let taken = bytes.len().min(room).min(3);
            self.0.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_torn_line_is_told_from_whole_ones_and_swallows_nothing() {
        let lines = [b"one\n".to_vec(), b"two\n".to_vec(), b"three\n".to_vec()];
        let mut is_torn = false;
        let mut pipe = Pipe(Vec::new(), 6);
        let (whole, part, error) = write(&mut pipe, &lines, &mut is_torn);
        assert_eq!(
            (whole, part, error.is_some(), is_torn),
            (1, true, true, true)
        );
        pipe.1 = 100;
        let (whole, part, error) = write(&mut pipe, &lines[1..], &mut is_torn);
        assert_eq!(
            (whole, part, error.is_none(), is_torn),
            (2, false, true, false)
        );
        assert_eq!(pipe.0, b"one\ntw\ntwo\nthree\n");
        let mut full = Pipe(Vec::new(), 0);
        is_torn = true;
        let (whole, part, error) = write(&mut full, &lines, &mut is_torn);
        assert_eq!(
            (whole, part, error.is_some(), is_torn),
            (0, false, true, true)
        );
    }
}
