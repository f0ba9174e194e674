//! The end of a file, as a crash left it.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::de::IgnoredAny;

use super::PER_SEND;
use super::rotation::newest_set_aside;
use crate::sink::record;

/// How a line of ours begins.
const BEGINNING: &[u8] = b"{\"id\":\"";
/// How many lines are looked at: more than one batch was never under way.
const LINES: usize = 2 * PER_SEND;
const BLOCK: u64 = 64 * 1024;
/// The longest line that is read to see whether it is whole: one is never near that.
const LONGEST: u64 = 16 << 20;

/// Cuts a last line that a crash tore, and says how long the file is then. A last line that is whole
/// and lacks only its end, or is not ours, is ended instead: it may be precious to somebody.
pub(super) fn mend(file: &File, size: u64) -> io::Result<u64> {
    let start = start_of_line(file, size, 1)?;
    if start == size {
        return Ok(size);
    }
    let mut last = Vec::new();
    let mut rest = file;
    rest.seek(SeekFrom::Start(start))?;
    rest.take(LONGEST).read_to_end(&mut last)?;
    let shorter = last.len().min(BEGINNING.len());
    let is_ours = last.get(..shorter) == BEGINNING.get(..shorter);
    if is_ours && serde_json::from_slice::<IgnoredAny>(&last).is_err() {
        file.set_len(start)?;
        file.sync_data()?;
        return Ok(start);
    }
    let mut appending = file;
    appending.write_all(b"\n")?;
    file.sync_data()?;
    Ok(size + 1)
}

/// The ids of the last lines of a file of that size, and of the one that was set aside before it.
pub(super) fn ids(path: &Path, file: &File, size: u64) -> io::Result<HashSet<String>> {
    let start = start_of_line(file, size, LINES)?;
    let mut here = file;
    here.seek(SeekFrom::Start(start))?;
    let mut ids = last_ids(here.take(size - start))?;
    if ids.len() < LINES
        && let Some(before) = newest_set_aside(path)
    {
        ids.extend(ids_aside(&before)?);
    }
    Ok(ids.into_iter().collect())
}

/// The last ids of a file that was set aside, compressed or not.
fn ids_aside(path: &Path) -> io::Result<VecDeque<String>> {
    let mut file = File::open(path)?;
    if path.extension().is_some_and(|extension| extension == "zst") {
        return last_ids(zstd::Decoder::new(file)?);
    }
    let start = start_of_line(&file, file.metadata()?.len(), LINES)?;
    file.seek(SeekFrom::Start(start))?;
    last_ids(file)
}

/// The ids of the last lines of a text of any length, a line at a time.
fn last_ids(text: impl Read) -> io::Result<VecDeque<String>> {
    let mut ids = VecDeque::new();
    let mut text = BufReader::new(text);
    let mut line = Vec::new();
    while text.read_until(b'\n', &mut line)? > 0 {
        if let Some(id) = record::id(&line) {
            if ids.len() == LINES {
                ids.pop_front();
            }
            ids.push_back(id.to_owned());
        }
        line.clear();
    }
    Ok(ids)
}

/// Where the `lines`-th line from the end begins; a last line without a newline counts, and an empty
/// one does not.
fn start_of_line(file: &File, size: u64, lines: usize) -> io::Result<u64> {
    let mut newlines = 0;
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or_default()];
        file.read_exact_at(&mut block, start)?;
        for (at, byte) in block.iter().enumerate().rev() {
            if *byte != b'\n' {
                continue;
            }
            newlines += 1;
            // The newline that ends the file ends its last line; the one before begins it.
            let wanted = if lines == 1 { 1 } else { lines + 1 };
            if newlines == wanted {
                return Ok(start + at as u64 + 1);
            }
        }
        end = start;
    }
    Ok(0)
}
