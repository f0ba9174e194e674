//! One transaction's view of the tables, and the little that is remembered between transactions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::event::CommandStatus;
use crate::store::rules::books::Change;
use crate::store::rules::columns::{day, nanos};
use crate::store::rules::number::{certificate_no, command_no, name_no};
use crate::store::{Append, Certificate};

/// How many commands are remembered to be there; a row that is forgotten here is written again.
const MOST_COMMANDS: usize = 4096;

/// How often the last event of a command is noted, in nanoseconds.
const NOTED_EVERY: i64 = 60_000_000_000;

/// Rows that are known to be there, since one thread alone writes. Forgotten when a transaction
/// fails: part of it may never have been written.
#[derive(Default)]
pub(super) struct Known {
    names: HashMap<Arc<str>, i64>,
    texts: HashMap<i64, Arc<str>>,
    /// When the last event of each command was noted.
    commands: HashMap<i64, i64>,
    /// On which day the use of each certificate was noted.
    certificates: HashMap<i64, i64>,
    /// The settings in force.
    pub(super) generation: Option<i64>,
    /// Whether a sink has threads at all.
    threaded: HashMap<i64, bool>,
}

impl Known {
    /// Nothing but the settings in force, whose row was committed long ago.
    pub(super) fn only_generation(&self) -> Self {
        Self {
            generation: self.generation,
            ..Self::default()
        }
    }
}

/// When the first of the rows in the lane `?1` may go, in SQL; null when nothing waits. What goes
/// alone heeds no `not_before` of the lane. Two looks at the ends of an index, however much waits.
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

/// The tables within one transaction.
pub(super) struct Tables<'t> {
    pub(super) connection: &'t Connection,
    pub(super) known: &'t mut Known,
    tally: BTreeMap<(i64, i64), Change>,
}

impl<'t> Tables<'t> {
    pub(super) fn new(connection: &'t Connection, known: &'t mut Known) -> Self {
        Self {
            connection,
            known,
            tally: BTreeMap::new(),
        }
    }

    /// The number of a topic, route or sink, whose text is kept from here on.
    pub(super) fn name(&mut self, text: &str) -> rusqlite::Result<i64> {
        if let Some(number) = self.known.names.get(text) {
            return Ok(*number);
        }
        let number = name_no(text);
        self.connection
            .prepare_cached("INSERT INTO name (id, text) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
            .execute(params![number, text])?;
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

    /// The number of the command that an event tells of, which is kept from here on.
    pub(super) fn command(
        &mut self,
        append: &Append,
        command: &CommandStatus,
    ) -> rusqlite::Result<i64> {
        let event = &append.event;
        let (trust, account, region) = (&*append.trust, &event.account, &event.region);
        let number = command_no(trust, account, region, &command.command);
        let now = nanos(append.received_at);
        let noted = self.known.commands.get(&number);
        if noted.is_some_and(|noted| now - noted < NOTED_EVERY) {
            return Ok(number);
        }
        self.connection
            .prepare_cached(
                "INSERT INTO command (no, trust, account, region, id, first_event, last_event_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, (SELECT coalesce(max(id), 0) + 1 FROM event), ?6)
                 ON CONFLICT DO UPDATE SET last_event_at = max(last_event_at, ?6)",
            )?
            .execute(params![
                number,
                trust,
                account,
                region,
                command.command,
                now
            ])?;
        if self.known.commands.len() >= MOST_COMMANDS {
            self.known.commands.clear();
        }
        self.known.commands.insert(number, now);
        Ok(number)
    }

    /// The number of a certificate that verified something on the day of `at`, kept from here on.
    pub(super) fn certificate(
        &mut self,
        certificate: &Certificate,
        at: Timestamp,
    ) -> rusqlite::Result<i64> {
        let number = certificate_no(&certificate.sha256);
        let day = day(at);
        if self.known.certificates.get(&number) == Some(&day) {
            return Ok(number);
        }
        self.connection
            .prepare_cached(
                "INSERT INTO certificate (no, sha256, pem, last_used_day) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET last_used_day = max(last_used_day, ?4)",
            )?
            .execute(params![number, certificate.sha256, certificate.pem, day])?;
        self.known.certificates.insert(number, day);
        Ok(number)
    }

    /// The name that a sink gave to the message to which notices of a command refer, and how many
    /// troubles of the command were told with it.
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
                "SELECT message, told FROM thread
                 WHERE sink = ?1 AND route = ?2 AND command_no = ?3",
            )?
            .query_row([sink, route, command_no], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
    }

    /// Remembers the message to which later notices of an event's command refer, with how many
    /// `troubles` of it were told.
    pub(super) fn keep_thread(
        &mut self,
        (sink, route): (i64, i64),
        event: i64,
        troubles: i64,
        message: &str,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO thread (sink, route, command_no, message, told)
                 SELECT ?1, ?2, command_no, ?5, ?4
                 FROM event WHERE id = ?3 AND command_no IS NOT NULL
                 ON CONFLICT DO UPDATE SET message = excluded.message,
                   told = max(told, excluded.told)",
            )?
            .execute(params![sink, route, event, troubles, message])?;
        self.known.threaded.insert(sink, true);
        Ok(())
    }

    /// Forgets which commands are there: some of them were deleted.
    pub(super) fn forget_commands(&mut self) {
        self.known.commands.clear();
    }

    /// The books of a sink for the day of `at`, to be changed.
    pub(super) fn book(&mut self, sink: i64, at: Timestamp) -> &mut Change {
        self.tally.entry((sink, day(at))).or_default()
    }

    /// Writes the changes of the books, once for the whole transaction.
    pub(super) fn write_tally(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO tally (sink, day, owed, sent, muted, redundant, dropped, dead)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT DO UPDATE SET owed = owed + ?3, sent = sent + ?4, muted = muted + ?5,
               redundant = redundant + ?6, dropped = dropped + ?7, dead = dead + ?8",
        )?;
        for ((sink, day), it) in std::mem::take(&mut self.tally) {
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
