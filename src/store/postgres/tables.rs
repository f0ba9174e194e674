//! One transaction's view of the tables, and the texts of names.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use tokio_postgres::{Error, Row};

use super::shared::Shared;
use super::values::{Params, typed};
use crate::store::rules::books::Change;
use crate::store::rules::columns::{day, nanos};
use crate::store::rules::number::name_no;

/// How many events a day has numbers for.
const EVENTS_A_DAY: i64 = 10_000_000_000;

/// Texts by their numbers. A number is a hash of its text, so that nothing here can become untrue,
/// whatever becomes of the transaction or the server that it was read from. Whether the *row* of a
/// name is there is not remembered: it is put by every transaction that needs it.
#[derive(Default)]
pub(super) struct Names(Mutex<HashMap<i64, Arc<str>>>);

impl Names {
    /// The number of a text.
    pub(super) fn number(&self, text: &str) -> i64 {
        let number = name_no(text);
        self.texts().entry(number).or_insert_with(|| text.into());
        number
    }

    pub(super) fn text(&self, number: i64) -> Option<Arc<str>> {
        self.texts().get(&number).map(Arc::clone)
    }

    fn texts(&self) -> MutexGuard<'_, HashMap<i64, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side that a transaction belongs to. Those of one path do not wait for the other's books, and
/// signs of life for neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Receive = 0,
    Deliver = 1,
    Upkeep = 2,
}

/// The tables within one transaction. `'a` is the time for which its values live, which are lent to
/// each try of it; that it outlives `'c` is what lets a closure lend them.
pub(super) struct Tables<'c, 'a: 'c> {
    client: &'c ClientWrapper,
    pub(super) shared: &'a Shared,
    /// Logical time at the beginning: nothing is made due before it.
    pub(super) now: i64,
    path: Path,
    tally: BTreeMap<(i64, i64), Change>,
}

/// When the first row of the lane in question may go, in SQL, and never before `$floor`; null when
/// nothing waits. What goes alone does not wait for the lane's `not_before`.
///
/// `GREATEST` and `LEAST` ignore nulls, so an empty lane must be told apart before either sees it:
/// else it would be due at its `not_before`, for ever. The two `min` are two looks at the ends of an
/// index, however much waits; the lower bound keeps them from walking over the entries of rows that
/// are gone, which stay in the index for as long as anybody's snapshot is older.
macro_rules! earliest_release {
    ($not_before:literal, $first_release:literal, $floor:literal) => {
        concat!(
            "(SELECT GREATEST(first, ",
            $floor,
            ") FROM (SELECT LEAST(
                (SELECT GREATEST(first, ",
            $not_before,
            ") FROM (SELECT min(release_at) AS first FROM waiting
                   WHERE waiting.lane = lane.id AND NOT alone AND release_at >= ",
            $first_release,
            ") AS in_turn WHERE first IS NOT NULL),
                (SELECT min(release_at) FROM waiting WHERE waiting.lane = lane.id AND alone)
              ) AS first) AS soonest WHERE first IS NOT NULL)"
        )
    };
}
pub(super) use earliest_release;

/// The least sort key and release of the rows in turn of the lane in question, in SQL, as the new
/// bounds of its scans. They walk once over what is gone since the last time, and never again.
macro_rules! raised_bounds {
    () => {
        "first_key = coalesce((SELECT sort_key FROM waiting WHERE waiting.lane = lane.id
             AND NOT alone AND sort_key >= lane.first_key ORDER BY sort_key LIMIT 1), lane.first_key),
           first_release = coalesce((SELECT min(release_at) FROM waiting
             WHERE waiting.lane = lane.id AND NOT alone AND release_at >= lane.first_release),
             lane.first_release)"
    };
}
pub(super) use raised_bounds;

impl<'c, 'a: 'c> Tables<'c, 'a> {
    pub(super) fn new(client: &'c ClientWrapper, shared: &'a Shared, path: Path) -> Self {
        Self {
            client,
            shared,
            now: nanos(shared.own.clock.now()),
            path,
            tally: BTreeMap::new(),
        }
    }

    pub(super) async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        self.client.query_typed(sql, &typed(params)).await
    }

    pub(super) async fn query_opt(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, Error> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// The first row, of what always has one.
    pub(super) async fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        self.client.query_typed_one(sql, &typed(params)).await
    }

    /// The first column of the rows, which are numbers.
    pub(super) async fn numbers(&self, sql: &str, params: Params<'_>) -> Result<Vec<i64>, Error> {
        let rows = self.query(sql, params).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// How many rows it changed.
    pub(super) async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        self.client.execute_typed(sql, &typed(params)).await
    }

    /// Statements without values, which nobody asks twice.
    pub(super) async fn run(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await
    }

    /// Puts the rows of names that are missing. In the order of their numbers: two transactions that
    /// put the same would otherwise wait for each other.
    pub(super) async fn put_names(&self, names: &[&str]) -> Result<(), Error> {
        let sorted: BTreeMap<i64, &str> = names
            .iter()
            .map(|text| (self.shared.names.number(text), *text))
            .collect();
        let (numbers, texts): (Vec<i64>, Vec<&str>) = sorted.into_iter().unzip();
        if !numbers.is_empty() {
            self.execute(
                "INSERT INTO name (id, text) SELECT * FROM unnest($1::bigint[], $2::text[])
                 ON CONFLICT DO NOTHING",
                &[&numbers, &texts],
            )
            .await?;
        }
        Ok(())
    }

    /// The text of a name.
    pub(super) async fn text(&self, number: i64) -> Result<Arc<str>, Error> {
        if let Some(text) = self.shared.names.text(number) {
            return Ok(text);
        }
        let row = self
            .query_opt("SELECT text FROM name WHERE id = $1", &[&number])
            .await?;
        let Some(row) = row else {
            return Ok(format!("#{number}").into());
        };
        let text: &str = row.try_get(0)?;
        self.shared.names.number(text);
        Ok(text.into())
    }

    /// The books of a sink for the day of `at`, to be changed.
    pub(super) fn book(&mut self, sink: i64, at: Timestamp) -> &mut Change {
        self.tally.entry((sink, day(at))).or_default()
    }

    /// Writes the changes of the books, once for the whole transaction, and last, since others may
    /// wait for these rows.
    pub(super) async fn write_tally(&mut self) -> Result<(), Error> {
        let mut tally = std::mem::take(&mut self.tally);
        tally.retain(|_, change| *change != Change::default());
        if tally.is_empty() {
            return Ok(());
        }
        let column = |of: fn(&Change) -> i64| tally.values().map(of).collect::<Vec<_>>();
        let (sinks, days): (Vec<i64>, Vec<i64>) = tally.keys().copied().unzip();
        self.execute(
            "INSERT INTO tally AS old (holder, path, sink, day, owed, sent, muted, redundant, dropped, dead)
             SELECT $1, $2, * FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
               $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[])
             ON CONFLICT (holder, path, sink, day) DO UPDATE SET owed = old.owed + excluded.owed,
               sent = old.sent + excluded.sent, muted = old.muted + excluded.muted,
               redundant = old.redundant + excluded.redundant,
               dropped = old.dropped + excluded.dropped, dead = old.dead + excluded.dead",
            &[
                &self.shared.own.holder,
                &(self.path as i64),
                &sinks,
                &days,
                &column(|it| it.owed),
                &column(|it| it.sent),
                &column(|it| it.muted),
                &column(|it| it.redundant),
                &column(|it| it.dropped),
                &column(|it| it.dead),
            ],
        )
        .await?;
        Ok(())
    }
}

/// One column of some rows.
pub(super) fn each<'a, T, C>(rows: &'a [T], column: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(column).collect()
}

/// The day in which an event was signed, whose partition it lies in.
pub(super) fn day_of_event(event: i64) -> i64 {
    event.div_euclid(EVENTS_A_DAY)
}

/// The first number of a day's events: days first, so that a number says where its event lies.
pub(super) const fn first_of_day(day: i64) -> i64 {
    day.saturating_mul(EVENTS_A_DAY)
}

/// When a day begins.
pub(super) const fn start_of_day(day: i64) -> i64 {
    day.saturating_mul(86_400_000_000_000)
}

/// The days of some events, from the start of the first to the end of the last.
pub(super) fn span(events: &[i64]) -> (i64, i64) {
    let first = events.iter().copied().min().unwrap_or_default();
    let last = events.iter().copied().max().unwrap_or_default();
    (
        start_of_day(day_of_event(first)),
        start_of_day(day_of_event(last).saturating_add(1)),
    )
}

/// The day in which a moment lies, as events are numbered.
pub(super) fn day_of(at: Timestamp) -> i64 {
    nanos(at).div_euclid(86_400_000_000_000)
}
