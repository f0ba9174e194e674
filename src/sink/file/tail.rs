//! The end of a file, as a crash left it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::PER_SEND;
use super::rotation::newest_set_aside;
use crate::sink::record;

/// How a line of ours begins.
const BEGINNING: &[u8] = b"{\"id\":\"";
/// How many lines are looked at: more than one batch was never under way.
const LINES: usize = 2 * PER_SEND;
const BLOCK: u64 = 64 * 1024;

/// Cuts a last line that a crash tore, and says how long the file is then. A last line that is not
/// ours is ended instead: it may be precious to somebody.
pub(super) fn mend(file: &File, size: u64) -> io::Result<u64> {
    let start = start_of_line(file, size, 1)?;
    if start == size {
        return Ok(size);
    }
    let mut torn = vec![0; usize::try_from((size - start).min(BLOCK)).unwrap_or_default()];
    file.read_exact_at(&mut torn, start)?;
    let shorter = torn.len().min(BEGINNING.len());
    if torn.get(..shorter) == BEGINNING.get(..shorter) {
        file.set_len(start)?;
        file.sync_data()?;
        return Ok(start);
    }
    let mut appending = file;
    io::Write::write_all(&mut appending, b"\n")?;
    file.sync_data()?;
    Ok(size + 1)
}

/// The ids of the last lines of a file, and of the one that was set aside before it.
pub(super) fn ids(path: &Path, file: &File, size: u64) -> io::Result<HashSet<String>> {
    let start = start_of_line(file, size, LINES)?;
    let mut text = vec![0; usize::try_from(size - start).unwrap_or_default()];
    file.read_exact_at(&mut text, start)?;
    let mut ids = ids_in(&text);
    if ids.len() < LINES
        && let Some(before) = newest_set_aside(path)
    {
        ids.extend(ids_in(&content(&before)?));
    }
    Ok(ids)
}

fn ids_in(text: &[u8]) -> HashSet<String> {
    text.split(|byte| *byte == b'\n')
        .filter_map(record::id)
        .map(str::to_owned)
        .collect()
}

/// The end of a file that was set aside, compressed or not.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut text = Vec::new();
    if path.extension().is_some_and(|extension| extension == "zst") {
        zstd::Decoder::new(file)?.read_to_end(&mut text)?;
        return Ok(text);
    }
    let size = file.metadata()?.len();
    let start = start_of_line(&file, size, LINES)?;
    text.resize(usize::try_from(size - start).unwrap_or_default(), 0);
    file.read_exact_at(&mut text, start)?;
    Ok(text)
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
