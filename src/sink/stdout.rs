//! Lines of JSON on standard output, for containers whose platform collects it.
//!
//! Sent means that the reader at the other end of the pipe has taken it from us. What it loses
//! afterwards nobody here can know: where that matters, write a file.

//!
//! It is written to directly, past the buffer that programs share: only so is it known to the byte
//! what was taken, and what waits in no buffer cannot be lost in one.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use super::permit::refused;
use super::record::write_line;
use super::{Capacity, Permit, Sink};
use crate::render::Notice;
use crate::retry::{Patience, Scope, Verdict};

/// Whether the last line ends in its middle. There is one standard output, however many sinks are
/// made for it one after the other; written while it is locked.
static TORN: AtomicBool = AtomicBool::new(false);

/// Settings of a standard-output sink: there are none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {}

/// Writes to standard output.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdoutSink;

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

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        let mut lines = Lines::default();
        for notice in notices {
            write_line(notice, &mut lines.text);
            lines.ends.push(lines.text.len());
        }
        let permit = permit.clone();
        // A reader that does not read must stop this sink, and not the runtime.
        let written = tokio::task::spawn_blocking(move || {
            let mut locked = io::stdout().lock();
            let opened = locked
                .flush()
                .and_then(|()| Ok(File::from(locked.as_fd().try_clone_to_owned()?)));
            match opened {
                Ok(mut out) => lines.write(&mut out, &TORN, &permit),
                Err(error) => lines.verdicts(0, &error),
            }
        })
        .await;
        written.unwrap_or_else(|error| {
            let why = error.to_string();
            let verdict = if error.is_panic() {
                Verdict::Unknown { why }
            } else {
                not_sent(why)
            };
            vec![verdict; notices.len()]
        })
    }
}

/// Lines one after the other, and where each ends.
#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Lines {
    /// Writes as much as is taken, and says of each line what became of it.
    fn write(&self, out: &mut impl Write, torn: &AtomicBool, permit: &Permit) -> Vec<Verdict> {
        // Asked after the wait for the lock, which others may have held before a pipe that was full.
        if !permit.begin() {
            return vec![refused(); self.ends.len()];
        }
        if torn.load(Ordering::Relaxed) {
            match write_all(out, b"\n") {
                (_, Some(error)) => return self.verdicts(0, &error),
                (_, None) => torn.store(false, Ordering::Relaxed),
            }
        }
        match write_all(out, &self.text) {
            (_, None) => vec![Verdict::Sent { remote_id: None }; self.ends.len()],
            (taken, Some(error)) => {
                let is_torn = taken > 0 && !self.ends.contains(&taken);
                torn.store(is_torn, Ordering::Relaxed);
                self.verdicts(taken, &error)
            }
        }
    }

    /// The verdicts when no more than the first `taken` bytes could be written.
    fn verdicts(&self, taken: usize, error: &io::Error) -> Vec<Verdict> {
        let why = format!("standard output cannot be written: {error}");
        let mut start = 0;
        let verdict = |end: &usize| {
            let begins = std::mem::replace(&mut start, *end);
            if *end <= taken {
                Verdict::Sent { remote_id: None }
            } else if begins < taken {
                // Its reader may make do with a part of it.
                Verdict::Unknown { why: why.clone() }
            } else {
                not_sent(why.clone())
            }
        };
        self.ends.iter().map(verdict).collect()
    }
}

fn not_sent(why: String) -> Verdict {
    Verdict::Retry {
        why,
        after: None,
        scope: Scope::Sink,
        progress: None,
    }
}

/// Writes all, or says how much of it was taken before which error.
fn write_all(out: &mut impl Write, text: &[u8]) -> (usize, Option<io::Error>) {
    let mut taken = 0;
    while let Some(rest) = text.get(taken..).filter(|rest| !rest.is_empty()) {
        match out.write(rest) {
            Ok(0) => return (taken, Some(io::ErrorKind::WriteZero.into())),
            Ok(more) => taken += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (taken, Some(error)),
        }
    }
    (taken, None)
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read as _};

    use super::*;
    use crate::sink::record::tests::notice;

    /// A pipe that refuses what it has no room for, instead of waiting.
    fn pipe() -> (PipeReader, File) {
        let (reader, writer) = io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
        (reader, File::from(std::os::fd::OwnedFd::from(writer)))
    }

    fn lines(count: usize) -> Lines {
        let mut lines = Lines::default();
        for number in 0..count {
            write_line(&notice(&format!("i-{number}")), &mut lines.text);
            lines.ends.push(lines.text.len());
        }
        lines
    }

    #[test]
    fn a_torn_line_is_the_only_one_in_doubt_and_swallows_none() {
        let (mut reader, mut writer) = pipe();
        let (many, torn) = (lines(200), AtomicBool::new(false));
        let verdicts = many.write(&mut writer, &torn, &Permit::always());
        assert_eq!(verdicts.len(), 200);
        let words: Vec<_> = verdicts.iter().map(Verdict::word).collect();
        let sent = words.iter().filter(|word| **word == "sent").count();
        let rest = words.len() - sent - 1;
        let expected = [vec!["sent"; sent], vec!["unknown"], vec!["retry"; rest]].concat();
        assert!(sent > 0 && rest > 0 && words == expected, "{words:?}");

        let few = lines(2);
        let verdicts = few.write(&mut writer, &torn, &Permit::always());
        let words: Vec<_> = verdicts.iter().map(Verdict::word).collect();
        assert_eq!(words, ["retry"; 2], "nothing goes while the pipe is full");

        let mut begun = vec![0; 65_536];
        reader.read_exact(&mut begun).unwrap();
        let verdicts = few.write(&mut writer, &torn, &Permit::always());
        assert_eq!(verdicts, vec![Verdict::Sent { remote_id: None }; 2]);
        drop(writer);
        let mut after = Vec::new();
        reader.read_to_end(&mut after).unwrap();
        assert_eq!(after, [b"\n", few.text.as_slice()].concat());
        assert_eq!(begun, many.text[..begun.len()]);
    }

    #[test]
    fn where_nobody_reads_nothing_is_in_doubt() {
        let (reader, mut writer) = pipe();
        drop(reader);
        let verdicts = lines(3).write(&mut writer, &AtomicBool::new(false), &Permit::always());
        let words: Vec<_> = verdicts.iter().map(Verdict::word).collect();
        assert_eq!(words, ["retry"; 3]);
    }
    #[test]
    fn permit_that_is_refused_leaves_the_pipe_empty() {
        let (mut reader, mut writer) = pipe();
        // A torn line is ended by the next write, which is a byte of ours as well.
        let (torn, permit) = (AtomicBool::new(true), Permit::new(|| false));
        let verdicts = lines(3).write(&mut writer, &torn, &permit);
        assert_eq!(verdicts, vec![refused(); 3]);
        assert!(permit.is_refused() && !permit.has_begun());
        drop(writer);
        let mut after = Vec::new();
        reader.read_to_end(&mut after).unwrap();
        assert_eq!(after, b"");
    }
}
