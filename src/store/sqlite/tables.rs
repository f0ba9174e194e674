//! One transaction's view of the tables, and what is remembered between transactions.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::store::rows::{Change, MOST_COMMANDS, day};

/// What was looked up before and cannot have changed, since one thread alone writes. Forgotten when
/// a transaction fails: part of it may never have been written.
#[derive(Default)]
pub(super) struct Known {
    names: HashMap<Arc<str>, i64>,
    texts: HashMap<i64, Arc<str>>,
    commands: HashMap<String, i64>,
    /// Whether a sink has threads at all.
    threaded: HashMap<i64, bool>,
    /// The latest time that a lease was asked at.
    pub(super) latest: i64,
}

/// When the first of what waits in the lane `?1` may go, in SQL; none when nothing waits. What goes
/// alone does not heed the lane's own `not_before`. Two looks at the ends of an index, however much
/// waits.
macro_rules! earliest_release {
    ($not_before:literal) => {
        concat!(
            "(SELECT min(first) FROM (SELECT max(",
            $not_before,
            ", min(release_at)) AS first FROM waiting WHERE lane = ?1 AND alone = 0
              UNION ALL SELECT min(release_at) FROM waiting WHERE lane = ?1 AND alone = 1))"
        )
    };
}
pub(super) use earliest_release;

impl Known {
    /// Nothing but the time.
    pub(super) fn at(latest: i64) -> Self {
        Self {
            latest,
            ..Self::default()
        }
    }
}

/// The tables within one transaction.
pub(super) struct Tables<'t> {
    pub(super) connection: &'t Connection,
    pub(super) known: &'t mut Known,
    tally: HashMap<(i64, i64), Change>,
}

impl<'t> Tables<'t> {
    pub(super) fn new(connection: &'t Connection, known: &'t mut Known) -> Self {
        Self {
            connection,
            known,
            tally: HashMap::new(),
        }
    }

    /// The number of a topic, route or sink, given when it is first met.
    pub(super) fn name(&mut self, text: &str) -> rusqlite::Result<i64> {
        if let Some(number) = self.known.names.get(text) {
            return Ok(*number);
        }
        self.connection
            .prepare_cached("INSERT INTO name (text) VALUES (?1) ON CONFLICT DO NOTHING")?
            .execute([text])?;
        let number = self
            .connection
            .prepare_cached("SELECT id FROM name WHERE text = ?1")?
            .query_row([text], |row| row.get(0))?;
        let text: Arc<str> = text.into();
        self.known.names.insert(Arc::clone(&text), number);
        self.known.texts.insert(number, text);
        Ok(number)
    }

    /// The text of a name.
    pub(super) fn text(&mut self, number: i64) -> rusqlite::Result<Arc<str>> {
        if let Some(text) = self.known.texts.get(&number) {
            return Ok(Arc::clone(text));
        }
        let text: Arc<str> = self
            .connection
            .prepare_cached("SELECT text FROM name WHERE id = ?1")?
            .query_row([number], |row| row.get::<_, String>(0))?
            .into();
        self.known.texts.insert(number, Arc::clone(&text));
        Ok(text)
    }

    /// The number of a command, given when it is first met.
    pub(super) fn command(&mut self, id: &str) -> rusqlite::Result<i64> {
        if let Some(number) = self.known.commands.get(id) {
            return Ok(*number);
        }
        let found = self
            .connection
            .prepare_cached("SELECT no FROM command WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        let number = if let Some(number) = found {
            number
        } else {
            self.connection
                .prepare_cached(
                    "INSERT INTO command (id, first_event)
                     VALUES (?1, (SELECT coalesce(max(id), 0) + 1 FROM event))",
                )?
                .execute([id])?;
            self.connection.last_insert_rowid()
        };
        if self.known.commands.len() >= MOST_COMMANDS {
            self.known.commands.clear();
        }
        self.known.commands.insert(id.to_owned(), number);
        Ok(number)
    }

    /// What a sink calls the message to which notices of a command refer, and up to which event it
    /// has been told of.
    pub(super) fn thread(
        &mut self,
        sink: i64,
        route: i64,
        command_no: i64,
    ) -> rusqlite::Result<Option<(String, i64)>> {
        if !self.known.threaded.contains_key(&sink) {
            let found = self
                .connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM thread WHERE sink = ?1)")?
                .query_row([sink], |row| row.get(0))?;
            self.known.threaded.insert(sink, found);
        }
        if self.known.threaded.get(&sink) != Some(&true) {
            return Ok(None);
        }
        self.connection
            .prepare_cached(
                "SELECT message, told_upto FROM thread
                 WHERE sink = ?1 AND route = ?2 AND command_no = ?3",
            )?
            .query_row([sink, route, command_no], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
    }

    /// Remembers the message to which later notices of an event's command refer. All that had
    /// arrived when `lane` was leased has been told with it.
    pub(super) fn keep_thread(
        &mut self,
        sink: i64,
        route: i64,
        event: i64,
        lane: i64,
        message: &str,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO thread (sink, route, command_no, message, told_upto)
                 SELECT ?1, ?2, command_no, ?5,
                   coalesce((SELECT leased_at_event FROM lane WHERE id = ?4), ?3)
                 FROM event WHERE id = ?3 AND command_no IS NOT NULL
                 ON CONFLICT DO UPDATE SET message = excluded.message,
                   told_upto = max(told_upto, excluded.told_upto)",
            )?
            .execute(params![sink, route, event, lane, message])?;
        self.known.threaded.insert(sink, true);
        Ok(())
    }

    /// Forgets the commands: some of them were deleted.
    pub(super) fn forget_commands(&mut self) {
        self.known.commands.clear();
    }

    /// The books of a sink for the day of `at`, to be changed.
    pub(super) fn book(&mut self, sink: i64, at: Timestamp) -> &mut Change {
        self.tally.entry((sink, day(at))).or_default()
    }

    /// Writes what was changed in the books, once for the whole transaction.
    pub(super) fn write_tally(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO tally (sink, day, owed, sent, muted, redundant, dropped, dead)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT DO UPDATE SET owed = owed + ?3, sent = sent + ?4, muted = muted + ?5,
               redundant = redundant + ?6, dropped = dropped + ?7, dead = dead + ?8",
        )?;
        for ((sink, day), it) in self.tally.drain() {
            statement.execute(params![
                sink,
                day,
                it.owed,
                it.sent,
                it.muted,
                it.redundant,
                it.dropped,
                it.dead
            ])?;
        }
        Ok(())
    }
}
