//! Forgetting: events that arrived long ago and that nobody is owed go, with what is known of them.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::tables::Tables;
use crate::store::rules::columns::STEP;
use crate::store::rules::step::{KIND_OWN, kinds_of_a_command};

/// The events of one step of forgetting.
pub(super) struct Oldest {
    /// Those that are old, and that nobody is owed.
    over: Vec<Old>,
    /// Up to which event was looked; none when the young ones begin, or there are no more.
    pub(super) upto: Option<i64>,
}

struct Old {
    id: i64,
    received_at: i64,
    command_no: Option<i64>,
    instance: Option<String>,
    status: Option<String>,
    event_time: Option<i64>,
}

/// Looks at the events after `after`, of which those that arrived before `before` are old. An event
/// that nobody is owed now will never be owed, so this need not be the writer's work. The newest
/// event stays, so that its number is not given again.
///
/// Numbers grow with arrival, so the first young event ends a round. One that seems to have arrived
/// after `now` does not: it came while the clock was ahead, and older ones may stand behind it.
pub(super) fn old(
    connection: &Connection,
    after: i64,
    before: i64,
    now: i64,
) -> rusqlite::Result<Oldest> {
    let transaction = connection.unchecked_transaction()?;
    let mut over: Vec<Old> = transaction
        .prepare_cached(
            "SELECT id, received_at, command_no, instance, status, event_time FROM event
             WHERE id > ?1 AND id < (SELECT max(id) FROM event) ORDER BY id LIMIT ?2",
        )?
        .query_map([after, STEP], Old::of)?
        .collect::<rusqlite::Result<_>>()?;
    let (first, last) = match (over.first(), over.last()) {
        (Some(first), Some(last)) => (first.id, last.id),
        _ => return Ok(Oldest { over, upto: None }),
    };
    let is_young = |event: &Old| (before..=now).contains(&event.received_at);
    let ends = over.iter().any(is_young);
    over.retain(|event| event.received_at < before);
    if over.is_empty() {
        let upto = (!ends).then_some(last);
        return Ok(Oldest { over, upto });
    }
    let owed: HashSet<i64> = transaction
        .prepare_cached(
            "SELECT event FROM waiting WHERE event BETWEEN ?1 AND ?2
             UNION ALL SELECT event FROM dead WHERE event BETWEEN ?1 AND ?2",
        )?
        .query_map([first, last], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    over.retain(|event| !owed.contains(&event.id));
    Ok(Oldest {
        over,
        upto: (!ends).then_some(last),
    })
}

/// The latest Timestamp that SNS signed, of all that is kept.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    // By topic there is an index that has it at its end.
    connection
        .prepare_cached(
            "SELECT max((SELECT max(sns_time) FROM event WHERE topic = name.id)) FROM name",
        )?
        .query_row([], |row| row.get(0))
}

impl Tables<'_> {
    /// Forgets events and what is known of them only.
    pub(super) fn forget(&mut self, old: &Oldest) -> rusqlite::Result<()> {
        for event in &old.over {
            self.forget_one(event)?;
        }
        if !old.over.is_empty() {
            self.forget_commands();
        }
        Ok(())
    }

    fn forget_one(&self, event: &Old) -> rusqlite::Result<()> {
        for statement in [
            "DELETE FROM outcome WHERE event = ?1",
            "DELETE FROM event WHERE id = ?1",
        ] {
            self.connection
                .prepare_cached(statement)?
                .execute([event.id])?;
        }
        self.connection
            .prepare_cached("DELETE FROM lane WHERE kind = ?2 AND number = ?1 AND due_at IS NULL")?
            .execute([event.id, KIND_OWN])?;
        let Some(command_no) = event.command_no else {
            return Ok(());
        };
        self.connection
            .prepare_cached(
                "DELETE FROM step WHERE command_no = ?1 AND instance = ?2 AND status = ?3
                 AND event_time = ?4 AND event = ?5",
            )?
            .execute(params![
                command_no,
                event.instance,
                event.status,
                event.event_time,
                event.id
            ])?;
        let is_over: bool = self
            .connection
            .prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM step WHERE command_no = ?1)")?
            .query_row([command_no], |row| row.get(0))?;
        if is_over {
            for statement in [
                "DELETE FROM command WHERE no = ?1",
                concat!(
                    "DELETE FROM lane WHERE kind IN ",
                    kinds_of_a_command!(),
                    " AND number = ?1 AND due_at IS NULL
                      AND NOT EXISTS (SELECT 1 FROM waiting WHERE waiting.lane = lane.id)"
                ),
                "DELETE FROM thread WHERE command_no = ?1",
            ] {
                self.connection
                    .prepare_cached(statement)?
                    .execute([command_no])?;
            }
        }
        Ok(())
    }
}

impl Old {
    fn of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            received_at: row.get(1)?,
            command_no: row.get(2)?,
            instance: row.get(3)?,
            status: row.get(4)?,
            event_time: row.get(5)?,
        })
    }
}
