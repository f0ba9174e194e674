//! One transaction's view of the tables, and what a replica remembers between transactions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

use crate::clock::since;
use crate::store::rows::{Change, MOST_COMMANDS, day, nanos};

/// How long a command's number is used without asking. A command that was not asked for during all
/// of the retention, and so much longer, may be forgotten.
pub(super) const COMMAND_IS_SURE: std::time::Duration = std::time::Duration::from_mins(10);

/// How many events a day has numbers for.
const EVENTS_A_DAY: i64 = 10_000_000_000;

/// What cannot change any more once it was read.
#[derive(Default)]
pub(super) struct Known {
    names: Mutex<Names>,
    commands: Mutex<HashMap<String, (i64, Timestamp)>>,
}

#[derive(Default)]
struct Names {
    numbers: HashMap<Arc<str>, i64>,
    texts: HashMap<i64, Arc<str>>,
}

impl Known {
    pub(super) fn number(&self, text: &str) -> Option<i64> {
        lock(&self.names).numbers.get(text).copied()
    }

    pub(super) fn text(&self, number: i64) -> Option<Arc<str>> {
        lock(&self.names).texts.get(&number).map(Arc::clone)
    }

    pub(super) fn learn(&self, text: &str, number: i64) {
        let text: Arc<str> = text.into();
        let mut names = lock(&self.names);
        names.numbers.insert(Arc::clone(&text), number);
        names.texts.insert(number, text);
    }

    /// The number of a command that was asked for not long before `now`.
    pub(super) fn command(&self, id: &str, now: Timestamp) -> Option<i64> {
        let commands = lock(&self.commands);
        let (number, asked_at) = commands.get(id)?;
        (since(*asked_at, now) < COMMAND_IS_SURE).then_some(*number)
    }

    pub(super) fn learn_command(&self, id: &str, number: i64, now: Timestamp) {
        let mut commands = lock(&self.commands);
        if commands.len() >= MOST_COMMANDS {
            commands.clear();
        }
        commands.insert(id.to_owned(), (number, now));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which of a replica's transactions writes: those of one street do not wait for the other's books, and
/// signs of life for neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Street {
    Receive = 0,
    Deliver = 1,
    Upkeep = 2,
}

/// The tables within one transaction.
pub(super) struct Tables<'c> {
    client: &'c ClientWrapper,
    pub(super) known: &'c Known,
    pub(super) replica: i64,
    pub(super) name: &'c str,
    street: Street,
    tally: BTreeMap<(i64, i64), Change>,
}

pub(super) type Params<'p> = &'p [&'p (dyn ToSql + Sync)];

/// When the first of what waits in a lane may go, in SQL; none when nothing waits. What goes alone
/// does not heed the lane's own `not_before`. Two looks at the ends of an index, however much waits.
macro_rules! earliest_release {
    ($not_before:literal) => {
        concat!(
            "LEAST((SELECT GREATEST(",
            $not_before,
            ", first) FROM (SELECT min(release_at) AS first FROM waiting
                WHERE waiting.lane = lane.id AND NOT alone) AS in_turn WHERE first IS NOT NULL),
              (SELECT min(release_at) FROM waiting WHERE waiting.lane = lane.id AND alone))"
        )
    };
}
pub(super) use earliest_release;

impl<'c> Tables<'c> {
    pub(super) fn new(
        client: &'c ClientWrapper,
        known: &'c Known,
        (replica, name): (i64, &'c str),
        street: Street,
    ) -> Self {
        Self {
            client,
            known,
            replica,
            name,
            street,
            tally: BTreeMap::new(),
        }
    }

    pub(super) async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        let statement = self.client.prepare_cached(sql).await?;
        self.client.query(&statement, params).await
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
        let statement = self.client.prepare_cached(sql).await?;
        self.client.query_one(&statement, params).await
    }

    /// How many rows it changed.
    pub(super) async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        let statement = self.client.prepare_cached(sql).await?;
        self.client.execute(&statement, params).await
    }

    /// Statements without values, which nobody asks twice.
    pub(super) async fn run(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await
    }

    /// The text of a name.
    pub(super) async fn text(&self, number: i64) -> Result<Arc<str>, Error> {
        if let Some(text) = self.known.text(number) {
            return Ok(text);
        }
        let row = self
            .query_opt("SELECT text FROM name WHERE id = $1", &[&number])
            .await?;
        let text: String = row.map_or_else(|| Ok(String::new()), |row| row.try_get(0))?;
        self.known.learn(&text, number);
        Ok(text.into())
    }

    /// The books of a sink for the day of `at`, to be changed.
    pub(super) fn book(&mut self, sink: i64, at: Timestamp) -> &mut Change {
        self.tally.entry((sink, day(at))).or_default()
    }

    /// Writes what was changed in the books, once for the whole transaction, and last, since others
    /// may wait for these rows.
    pub(super) async fn write_tally(&mut self) -> Result<(), Error> {
        let tally = std::mem::take(&mut self.tally);
        if tally.is_empty() {
            return Ok(());
        }
        let column = |of: fn(&Change) -> i64| tally.values().map(of).collect::<Vec<_>>();
        let (sinks, days): (Vec<i64>, Vec<i64>) = tally.keys().copied().unzip();
        self.execute(
            "INSERT INTO tally AS old (replica, street, sink, day, owed, sent, muted, redundant, dropped, dead)
             SELECT $1, $2, * FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
               $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[])
             ON CONFLICT (replica, street, sink, day) DO UPDATE SET owed = old.owed + excluded.owed,
               sent = old.sent + excluded.sent, muted = old.muted + excluded.muted,
               redundant = old.redundant + excluded.redundant,
               dropped = old.dropped + excluded.dropped, dead = old.dead + excluded.dead",
            &[
                &self.replica,
                &(self.street as i64),
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
