//! Watches a file that Runbell writes, and notes when each notification's line came.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Deserialize;

/// How often the file is looked at: what is measured is not finer.
const LOOK_EVERY: Duration = Duration::from_millis(1);

#[derive(Deserialize)]
struct Line<'a> {
    message_id: &'a str,
}

/// Reads `path` until `count` lines have come, or for as long as `at_most`.
pub(crate) async fn watch(
    path: &Path,
    count: usize,
    at_most: Duration,
) -> anyhow::Result<HashMap<String, Instant>> {
    let end = Instant::now() + at_most;
    let mut seen = HashMap::with_capacity(count);
    let mut file = None;
    let mut text = Vec::new();
    while seen.len() < count {
        let now = Instant::now();
        if now > end {
            bail!("{} has {} of {count} lines", path.display(), seen.len());
        }
        if file.is_none() {
            file = File::open(path).ok();
        }
        if let Some(file) = &mut file {
            file.read_to_end(&mut text)?;
        }
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |last| last + 1);
        for line in text
            .drain(..whole)
            .as_slice()
            .split_inclusive(|byte| *byte == b'\n')
        {
            let line: Line<'_> = serde_json::from_slice(line)?;
            seen.insert(line.message_id.to_owned(), now);
        }
        tokio::time::sleep_until((now + LOOK_EVERY).into()).await;
    }
    Ok(seen)
}
