//! How commands speak: data to standard output, complaints to standard error.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::Stop;

/// Prints a line.
pub(super) fn line(text: &str) -> Result<(), Stop> {
    writeln!(anstream::stdout(), "{text}")?;
    Ok(())
}

/// Prints bytes as they are.
pub(super) fn raw(bytes: &[u8]) -> Result<(), Stop> {
    io::stdout().write_all(bytes)?;
    Ok(())
}

/// Prints data as JSON.
pub(super) fn json(data: &impl Serialize) -> Result<(), Stop> {
    let text = serde_json::to_string_pretty(data).context("cannot write JSON")?;
    line(&text)
}

/// Prints a table; `nothing` when it has no rows.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>, nothing: &str) -> Result<(), Stop> {
    if rows.is_empty() {
        complain(&format!("{nothing}\n"));
        return Ok(());
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.iter().copied())
        .add_rows(rows);
    line(&table.trim_fmt())
}

/// Says something to the one who typed.
pub(super) fn complain(text: &str) {
    // There is nobody else to tell when this fails.
    let _ = anstream::stderr().write_all(text.as_bytes());
}

pub(super) fn is_coloured() -> bool {
    io::stderr().is_terminal()
}

pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A text from outside, without anything that moves a terminal's cursor.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|each| if each.is_control() { '\u{fffd}' } else { each })
        .collect()
}

/// A value that may be absent.
pub(super) fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), plain)
}

/// A moment, to the millisecond.
pub(super) fn time(at: jiff::Timestamp) -> String {
    format!("{at:.3}")
}
