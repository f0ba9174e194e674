//! Copying an embedded store into a database, once, so that it can grow.
//!
//! It stands above both engines: rows are read from the one and written to the other. Nobody may
//! use the embedded store meanwhile, and no replica starts on a database into which a copy is not
//! finished.
//!
//! Everything goes in steps that are bounded in rows and in bytes, wherever they begin and end: in
//! the middle of a lane that a million deliveries wait in as well. Each step is written down with
//! the rows that it copied, in one transaction, so that a copy that was broken off goes on exactly
//! where it was, and nothing is copied twice. In the end every table is counted on both sides.

use std::path::Path;

mod source;
mod table;
mod tables;

use source::Source;
use tables::TABLES;

use super::StoreError;
use super::postgres::{Column, CopyStep, Finish, Reached, Settings, Target};

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rows that are copied.
    pub rows: u64,
    /// Rows there are.
    pub of: u64,
}

/// Copies the embedded store at `from` into the database `to`, which is empty or holds the
/// beginning of the same copy; `tell` hears how far it is. Says how many rows each table has on both sides.
///
/// # Errors
/// When the embedded store is in use, the database is not empty, or either fails. Whatever was
/// copied stays, and the same call goes on from there.
pub async fn copy(
    from: &Path,
    to: &Settings,
    mut tell: impl FnMut(Progress),
) -> Result<Vec<(&'static str, u64)>, StoreError> {
    let source = Source::open(from)?;
    let target = Target::connect(to).await?;
    let clock = source.clock()?;
    let names: Vec<_> = TABLES.iter().map(|table| table.name).collect();
    if !target.begin(clock, &names).await? {
        return Err(unusable(
            "the embedded store was used since the copy began: empty the database and begin anew",
        ));
    }
    let counts = TABLES.iter().map(|table| source.count(table));
    let counts = counts.collect::<Result<Vec<_>, _>>()?;
    let of = counts.iter().sum();
    let (mut before, mut last_outcome) = (0, 0);
    for (table, count) in TABLES.iter().zip(&counts) {
        let mut reached = target.reached(table.name).await?;
        loop {
            tell(Progress {
                rows: before + reached.rows,
                of,
            });
            let Some((columns, next)) = source.read(table, &reached)? else {
                break;
            };
            reached = put(
                &target,
                table.name,
                (&table.names(), columns),
                (reached, next),
            )
            .await?;
        }
        let arrived = target.count(table.name).await?;
        if arrived != *count {
            let name = table.name;
            return Err(unusable(&format!(
                "of table {name} {count} rows were to be copied and {arrived} are there: \
                 empty the database and begin anew"
            )));
        }
        if table.name == "outcome" {
            last_outcome = i64::try_from(reached.rows).unwrap_or(i64::MAX);
        }
        before += reached.rows;
    }
    let numbered = TABLES.iter().filter(|table| table.is_numbered);
    let last_ids = numbered.map(|table| Ok((table.name, source.last_id(table)?)));
    let finish = Finish {
        clock,
        last_event: source.last_event()?,
        last_outcome,
        last_ids: last_ids.collect::<Result<_, StoreError>>()?,
    };
    target.finish(&finish).await?;
    Ok(names.into_iter().zip(counts).collect())
}

/// Puts the rows of one step; up to where the table is copied then.
async fn put(
    target: &Target,
    table: &'static str,
    (names, columns): (&[&'static str], Vec<Column>),
    (before, next): (Reached, Reached),
) -> Result<Reached, StoreError> {
    let step = CopyStep {
        table,
        names,
        columns,
        before: before.rows,
        reached: next,
    };
    if target.put(&step).await? {
        return Ok(step.reached);
    }
    // A step of a copy that was broken off arrived after all.
    target.reached(table).await
}

fn unusable(why: &str) -> StoreError {
    StoreError::Unusable(why.into())
}
