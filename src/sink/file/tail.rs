//! The end of a file, as a crash left it.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::de::IgnoredAny;

use super::PER_SEND;
use super::rotation::{folder_of, newest_set_aside, sync_folder};
use crate::sink::record;

/// How a line of ours begins.
const BEGINNING: &[u8] = b"{\"id\":\"";
/// How many lines are looked at: more than one batch was never under way.
pub(super) const LINES: usize = 2 * PER_SEND;
const BLOCK: usize = 64 * 1024;
/// So much of a line holds its id; the rest, which may be long, is never kept.
const HEAD: usize = 256;

/// Cuts a last line that a crash tore, and says how long the file is then. One that lacks nothing but
/// its newline is whole, and one that is not ours may be precious to somebody: both are ended instead.
pub(super) fn mend(file: &File, size: u64) -> io::Result<u64> {
    let start = start_of_line(file, size, 1)?;
    if start == size {
        return Ok(size);
    }
    let mut beginning = vec![0; BEGINNING.len().min(length(start, size))];
    file.read_exact_at(&mut beginning, start)?;
    let is_ours = BEGINNING.starts_with(&beginning);
    if is_ours && !is_whole(part(file, start, size)?)? {
        file.set_len(start)?;
        file.sync_data()?;
        return Ok(start);
    }
    let mut appending = file;
    io::Write::write_all(&mut appending, b"\n")?;
    file.sync_data()?;
    Ok(size + 1)
}

/// The ids of the last lines of a file, and of the one that was set aside before it. Those in the file
/// itself are as safe as its last sync; of the other nobody can say who synced it last, so it is made
/// safe before its lines count as written.
pub(super) fn ids(path: &Path, file: &File, size: u64) -> io::Result<HashSet<String>> {
    let mut ids: HashSet<String> = last_ids(file, size)?.into_iter().collect();
    if ids.len() < LINES
        && let Some(before) = newest_set_aside(path)
    {
        ids.extend(or_none(&before, content(&before)));
    }
    Ok(ids)
}

/// The same for a file that is not written any more, and may not be there; it is made safe as well.
pub(super) fn ids_of_another(path: &Path) -> HashSet<String> {
    let found = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return HashSet::new(),
        found => found.and_then(|file| {
            make_safe(&file, path)?;
            let size = file.metadata()?.len();
            ids(path, &file, size)
        }),
    };
    or_none(path, found)
}

/// What cannot be read back keeps nobody from writing: a line that is written twice bears a mark.
fn or_none<T: Default>(path: &Path, found: io::Result<T>) -> T {
    found.unwrap_or_else(|error| {
        let path = path.display();
        tracing::warn!(%path, %error, "cannot look for what may have been written before");
        T::default()
    })
}

/// The last ids of a file that was set aside, compressed or not.
fn content(path: &Path) -> io::Result<VecDeque<String>> {
    let file = open(path)?;
    make_safe(&file, path)?;
    if path.extension().is_some_and(|extension| extension == "zst") {
        return ids_in(zstd::Decoder::new(file)?);
    }
    let size = file.metadata()?.len();
    last_ids(&file, size)
}

/// Syncs a file that is not written any more, and its name. Whoever wrote the end of it may have been
/// killed before the sync: its lines can be read, and are gone after a power cut.
fn make_safe(file: &File, path: &Path) -> io::Result<()> {
    file.sync_data()?;
    sync_folder(folder_of(path))
}

/// What a link points to is not ours, and a pipe would have us wait.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

fn last_ids(file: &File, size: u64) -> io::Result<VecDeque<String>> {
    let start = start_of_line(file, size, LINES)?;
    ids_in(part(file, start, size)?)
}

/// The ids of the last [`LINES`] lines of ours. Lines can be long and files large: no more than the
/// ids is held.
fn ids_in(text: impl Read) -> io::Result<VecDeque<String>> {
    let mut text = BufReader::with_capacity(BLOCK, text);
    let mut ids = VecDeque::new();
    let mut head = Vec::with_capacity(HEAD);
    loop {
        let block = text.fill_buf()?;
        let is_over = block.is_empty();
        let end = block.iter().position(|byte| *byte == b'\n');
        let length = end.unwrap_or(block.len());
        let room = HEAD.saturating_sub(head.len()).min(length);
        head.extend(block.iter().take(room));
        text.consume(length + usize::from(end.is_some()));
        if end.is_some() || is_over {
            if let Some(id) = record::id(&head) {
                if ids.len() == LINES {
                    ids.pop_front();
                }
                ids.push_back(id.to_owned());
            }
            head.clear();
        }
        if is_over {
            return Ok(ids);
        }
    }
}

/// Whether this is one JSON value and nothing after it.
fn is_whole(text: impl Read) -> io::Result<bool> {
    match serde_json::from_reader::<_, IgnoredAny>(BufReader::with_capacity(BLOCK, text)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_io() => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// The bytes between two places of a file. Appending is not disturbed by where one reads.
fn part(mut file: &File, start: u64, end: u64) -> io::Result<impl Read> {
    file.seek(SeekFrom::Start(start))?;
    Ok(file.take(end.saturating_sub(start)))
}

fn length(start: u64, end: u64) -> usize {
    usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX)
}

/// Where the `lines`-th line from the end begins; a last line without a newline counts, and an empty
/// one does not.
fn start_of_line(file: &File, size: u64, lines: usize) -> io::Result<u64> {
    let mut newlines = 0;
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let mut block = vec![0; length(start, end)];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ids_are_found_however_long_the_lines_are() {
        let mut text = Vec::new();
        for number in 0..LINES + 10 {
            let fill = if number % 500 == 0 { 3 * BLOCK } else { 10 };
            text.extend(format!("{{\"id\":\"{number}\",\"x\":\"").bytes());
            text.extend(std::iter::repeat_n(b'x', fill));
            text.extend(b"\"}\nforeign\n");
        }
        let ids = ids_in(text.as_slice()).unwrap();
        let expected: Vec<_> = (10..LINES + 10).map(|number| number.to_string()).collect();
        assert_eq!(ids, expected);
    }

    #[test]
    fn no_more_of_a_file_is_read_than_its_lines_need() {
        let (mut file, mut size) = (tempfile::tempfile().unwrap(), 0);
        for number in 0..LINES + 10 {
            let line = format!("{{\"id\":\"{number}\"}}\n");
            io::Write::write_all(&mut file, line.as_bytes()).unwrap();
            size += line.len() as u64;
        }
        let ids = last_ids(&file, size).unwrap();
        assert_eq!((ids.len(), ids[0].as_str()), (LINES, "10"));
    }
}
