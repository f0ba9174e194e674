//! Keeping an event with everything owed for it.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::tables::{Tables, nanos};
use crate::clock::later;
use crate::delivery::{LaneKey, Owed, Release, from_nanos};
use crate::event::{EnvelopeKind, Event, Kind, Status};
use crate::store::{Append, Appended, EventId};

/// What an event says about a command, as the step table keeps it.
pub(super) struct Step<'a> {
    pub(super) command_no: i64,
    pub(super) instance: &'a str,
    pub(super) status: &'a Status,
    pub(super) event_time: i64,
}

/// What the steps told before say about this one.
#[derive(Default)]
struct Told {
    /// The event that told the same step.
    before: Option<i64>,
    /// The `InProgress` of the same thing is stored.
    started: bool,
    /// Another terminal status of the same thing is stored.
    conflict: bool,
}

/// Which lane, in columns.
pub(super) struct LaneColumns<'a> {
    pub(super) kind: i64,
    pub(super) number: i64,
    pub(super) instance: &'a str,
}

pub(super) const KIND_COMMAND: i64 = 0;
pub(super) const KIND_INSTANCE: i64 = 1;
pub(super) const KIND_TOPIC: i64 = 2;
pub(super) const KIND_OWN: i64 = 3;
pub(super) const KIND_DIGEST: i64 = 4;

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
            let lane = lane_columns(owed.lane, step.as_ref(), topic, id);
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
        let now = nanos(received_at);
        let at_end = nanos(later(received_at, owed.hold.at_most));
        let when_early = match owed.hold.release {
            Release::First => now,
            Release::AfterFirst if started => now,
            Release::AtEnd | Release::AfterFirst | Release::Never | Release::WhenOver(_) => at_end,
        };
        let look_at = match owed.hold.release {
            Release::WhenOver(wait) => nanos(later(received_at, wait)).min(at_end),
            _ => when_early,
        };
        let goes_early = owed.hold.release != Release::Never;
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
                    look_at,
                    at_end,
                    goes_early,
                    matches!(owed.hold.release, Release::WhenOver(_))
                ],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            )?;
        let release_at = match owed.hold.release {
            // That something has begun is told soon.
            Release::WhenOver(_) if is_new => look_at,
            _ if early => when_early,
            _ => at_end,
        };
        if early && owed.hold.release == Release::First {
            // A terminal status that came first waits for this one alone.
            self.connection
                .prepare_cached(
                    "UPDATE waiting SET release_at = ?2
                     WHERE lane = ?1 AND release_at > ?2 AND NOT alone",
                )?
                .execute([lane, now])?;
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
        let is_invocation = matches!(event.kind, Kind::Invocation(_));
        Ok(Some(Step {
            command_no: self.command(&command.command)?,
            instance: command
                .instance
                .as_deref()
                .filter(|_| is_invocation)
                .unwrap_or_default(),
            status: &command.status,
            event_time: nanos(command.event_time.unwrap_or(event.sort_time)),
        }))
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

fn lane_columns<'a>(
    key: LaneKey,
    step: Option<&Step<'a>>,
    topic: i64,
    event: i64,
) -> LaneColumns<'a> {
    let (kind, number, instance) = match (key, step) {
        (LaneKey::Command, Some(step)) => (KIND_COMMAND, step.command_no, ""),
        (LaneKey::Instance, Some(step)) => (KIND_INSTANCE, step.command_no, step.instance),
        (LaneKey::Digest, Some(step)) => (KIND_DIGEST, step.command_no, ""),
        (LaneKey::Topic, _) => (KIND_TOPIC, topic, ""),
        (LaneKey::Own, _) | (_, None) => (KIND_OWN, event, ""),
    };
    LaneColumns {
        kind,
        number,
        instance,
    }
}

const fn envelope_number(kind: &Kind) -> i64 {
    match kind {
        Kind::Subscribe => 1,
        Kind::Unsubscribe => 2,
        _ => 0,
    }
}

/// The envelope that [`envelope_number`] made into a number.
pub(super) const fn envelope(number: i64) -> EnvelopeKind {
    match number {
        1 => EnvelopeKind::SubscriptionConfirmation,
        2 => EnvelopeKind::UnsubscribeConfirmation,
        _ => EnvelopeKind::Notification,
    }
}
