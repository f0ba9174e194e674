//! Keeping an event with everything owed for it.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::tables::Tables;
use crate::delivery::{Owed, Release, from_nanos};
use crate::event::{Event, Status};
use crate::store::rows::{LaneColumns, Step, Times, Told, envelope_number, nanos};
use crate::store::{Append, Appended, EventId};

impl Tables<'_> {
    /// Keeps an event and what is owed for it, unless this very notification is stored.
    pub(super) fn append(&mut self, append: &Append) -> rusqlite::Result<Appended> {
        let event = &append.event;
        let topic = self.name(&event.topic)?;
        let step = self.step_of(event)?;
        let Some(id) = self.insert_event(append, topic, step.as_ref())? else {
            let id = self.stored_as(topic, event.sent_at, &event.message_id)?;
            return Ok(Appended::Known {
                id: EventId(id.unwrap_or_default()),
            });
        };
        let told = match &step {
            Some(step) => self.tell(step, id)?,
            None => Told::default(),
        };
        let mut due = Vec::with_capacity(append.owed.len());
        for owed in &append.owed {
            let lane = LaneColumns::new(owed.lane, step.as_ref(), topic, id);
            due.push(self.owe(owed, &lane, id, append.received_at, told.started)?);
        }
        Ok(Appended::Stored {
            id: EventId(id),
            repeat_of: told.before.map(EventId),
            conflict: told.conflict,
            due,
        })
    }

    /// Keeps an event as it came, owed to nobody.
    pub(super) fn append_raw(&mut self, append: &Append) -> rusqlite::Result<Appended> {
        let event = &append.event;
        let topic = self.name(&event.topic)?;
        Ok(match self.insert_event(append, topic, None)? {
            Some(id) => Appended::Stored {
                id: EventId(id),
                repeat_of: None,
                conflict: false,
                due: Vec::new(),
            },
            None => Appended::Known {
                id: EventId(
                    self.stored_as(topic, event.sent_at, &event.message_id)?
                        .unwrap_or_default(),
                ),
            },
        })
    }

    /// The number of the event that this notification made.
    pub(super) fn stored_as(
        &self,
        topic: i64,
        sent_at: Timestamp,
        message_id: &str,
    ) -> rusqlite::Result<Option<i64>> {
        self.connection
            .prepare_cached(
                "SELECT id FROM event WHERE topic = ?1 AND sns_time = ?2 AND message_id = ?3",
            )?
            .query_row(params![topic, nanos(sent_at), message_id], |row| row.get(0))
            .optional()
    }

    /// Puts an upserted lane's delivery into `waiting`.
    fn owe(
        &mut self,
        owed: &Owed,
        lane: &LaneColumns<'_>,
        event: i64,
        received_at: Timestamp,
        started: bool,
    ) -> rusqlite::Result<(Arc<str>, Timestamp)> {
        let route = self.name(&owed.route)?;
        let sink = self.name(&owed.sink)?;
        let times = Times::of(owed, received_at, started);
        let (lane, early, due_at, is_new): (i64, bool, Option<i64>, bool) = self
            .connection
            .prepare_cached(
                "INSERT INTO lane (kind, number, instance, route, sink, due_at, early)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?8)
                 ON CONFLICT (kind, number, instance, route, sink) DO UPDATE SET
                   due_at = CASE WHEN leased THEN NULL ELSE min(
                     coalesce(due_at, 9223372036854775807),
                     max(not_before, CASE WHEN early AND ?8 THEN ?6 ELSE ?7 END)) END,
                   early = early AND ?8
                 RETURNING id, early, due_at,
                   ?9 AND epoch = 0 AND NOT EXISTS (SELECT 1 FROM waiting WHERE lane = lane.id)",
            )?
            .query_row(
                params![
                    lane.kind,
                    lane.number,
                    lane.instance,
                    route,
                    sink,
                    times.look_at,
                    times.at_end,
                    times.goes_early,
                    times.gathers
                ],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )?;
        let release_at = times.release_at(is_new, early);
        if early && owed.hold.release == Release::First {
            // A terminal status that came first waits for this one alone.
            self.connection
                .prepare_cached(
                    "UPDATE waiting SET release_at = ?2
                     WHERE lane = ?1 AND release_at > ?2 AND NOT alone",
                )?
                .execute([lane, nanos(received_at)])?;
        }
        let put = self
            .connection
            .prepare_cached(
                "INSERT INTO waiting (lane, sort_key, event, release_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (lane, sort_key) DO NOTHING",
            )?
            .execute(params![lane, owed.key.as_bytes(), event, release_at])?;
        // The same message, signed anew at another time, is owed already.
        self.book(sink, received_at).owed += i64::try_from(put).unwrap_or_default();
        let due_at = due_at.unwrap_or(release_at);
        Ok((self.text(sink)?, from_nanos(due_at)))
    }

    fn step_of<'e>(&mut self, event: &'e Event) -> rusqlite::Result<Option<Step<'e>>> {
        let Some(command) = event.command() else {
            return Ok(None);
        };
        let command_no = self.command(&command.command)?;
        Ok(Step::of(event, command_no))
    }

    fn insert_event(
        &self,
        append: &Append,
        topic: i64,
        step: Option<&Step<'_>>,
    ) -> rusqlite::Result<Option<i64>> {
        let event = &append.event;
        let inserted = self
            .connection
            .prepare_cached(
                "INSERT INTO event (topic, sns_time, message_id, envelope, received_at, command_no,
                   instance, status, event_time, subject, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
                 ON CONFLICT (topic, sns_time, message_id) DO NOTHING",
            )?
            .execute(params![
                topic,
                nanos(event.sent_at),
                event.message_id,
                envelope_number(&event.kind),
                nanos(append.received_at),
                step.map(|step| step.command_no),
                step.map(|step| step.instance),
                step.map(|step| step.status.as_str()),
                step.map(|step| step.event_time),
                event.subject,
                event.body.as_bytes(),
            ])?;
        Ok((inserted > 0).then(|| self.connection.last_insert_rowid()))
    }

    /// Enters a step, and says what was told before.
    fn tell(&self, step: &Step<'_>, event: i64) -> rusqlite::Result<Told> {
        let entered = self
            .connection
            .prepare_cached(
                "INSERT INTO step (command_no, instance, status, event_time, event)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                step.command_no,
                step.instance,
                step.status.as_str(),
                step.event_time,
                event
            ])?;
        let mut told = Told::default();
        if entered == 1 && *step.status == Status::InProgress {
            // The start of something contradicts nothing, and waits for nothing before it.
            return Ok(told);
        }
        let mut others = Vec::new();
        let mut statement = self.connection.prepare_cached(
            "SELECT status, event_time, event FROM step WHERE command_no = ?1 AND instance = ?2",
        )?;
        let mut rows = statement.query(params![step.command_no, step.instance])?;
        while let Some(row) = rows.next()? {
            let status = Status::parse(row.get_ref(0)?.as_str()?);
            let first: i64 = row.get(2)?;
            if status == *step.status && row.get::<_, i64>(1)? == step.event_time {
                told.before = (entered == 0).then_some(first);
            } else if status.is_terminal() && step.status.is_terminal() && status != *step.status {
                others.push(first);
            }
            told.started |= status == Status::InProgress;
        }
        told.conflict = !others.is_empty();
        if let Some(before) = told.before {
            self.connection
                .prepare_cached("UPDATE event SET repeat_of = ?2 WHERE id = ?1")?
                .execute([event, before])?;
        }
        if told.conflict {
            others.push(event);
            for other in others {
                self.connection
                    .prepare_cached("UPDATE event SET conflict = 1 WHERE id = ?1")?
                    .execute([other])?;
            }
        }
        Ok(told)
    }
}
