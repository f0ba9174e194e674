//! Keeping an event with everything owed for it.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::tables::Tables;
use crate::delivery::{Leading, Owed, Release, SortKey, from_nanos};
use crate::event::Status;
use crate::store::rules::columns::{envelope_number, nanos};
use crate::store::rules::hold::Times;
use crate::store::rules::step::{KIND_OWN, LaneColumns, Step, Stored, Told, contradicts};
use crate::store::{Append, Appended, EventId};

/// A lane into which a delivery is put.
struct Entered {
    lane: i64,
    early: bool,
    leased: bool,
    due_at: i64,
    /// How many were put there, with this one.
    fed: i64,
}

impl Tables<'_> {
    /// Keeps an event and what is owed for it, unless this very notification is stored.
    pub(super) fn append(&mut self, append: &Append) -> rusqlite::Result<Appended> {
        let event = &append.event;
        let topic = self.name(&event.topic)?;
        let command_no = match event.command() {
            Some(command) => Some(self.command(append, command)?),
            None => None,
        };
        let step = command_no.and_then(|number| Step::of(event, number));
        let Some(id) = self.insert_event(append, topic, step.as_ref())? else {
            return self.known(append, topic);
        };
        let told = match &step {
            Some(step) => self.tell(step, id)?,
            None => Told::default(),
        };
        let mut due = Vec::with_capacity(append.owed.len());
        for owed in &append.owed {
            let lane = LaneColumns::new(owed.lane, step.as_ref(), topic, id);
            due.push(self.owe(owed, &lane, id, append, told.started)?);
        }
        Ok(Appended::Stored {
            id: EventId(id),
            repeat_of: told.before.map(EventId),
            conflict: told.conflict,
            due,
        })
    }

    /// Keeps an event as it came. Each delivery owed for it becomes a dead letter that says `why`,
    /// so that somebody sees it and may send it.
    pub(super) fn append_raw(&mut self, append: &Append, why: &str) -> rusqlite::Result<Appended> {
        let event = &append.event;
        let topic = self.name(&event.topic)?;
        let Some(id) = self.insert_event(append, topic, None)? else {
            return self.known(append, topic);
        };
        // A plain key: the one that was owed may be what cannot be kept.
        let key = SortKey::new(Leading::Time, event.sort_time, 0, "", &event.message_id);
        for owed in &append.owed {
            let (route, sink) = (self.name(&owed.route)?, self.name(&owed.sink)?);
            self.connection
                .prepare_cached(
                    "INSERT INTO dead (event, kind, number, instance, route, sink, sort_key,
                       died_at, tries, answer) VALUES (?1, ?2, ?1, '', ?3, ?4, ?5, ?6, 0, ?7)",
                )?
                .execute(params![
                    id,
                    KIND_OWN,
                    route,
                    sink,
                    key.as_bytes(),
                    nanos(append.received_at),
                    why
                ])?;
            let book = self.book(sink, append.received_at);
            book.owed += 1;
            book.dead += 1;
        }
        Ok(Appended::Stored {
            id: EventId(id),
            repeat_of: None,
            conflict: false,
            due: Vec::new(),
        })
    }

    /// The answer for a notification that is stored already.
    fn known(&self, append: &Append, topic: i64) -> rusqlite::Result<Appended> {
        let event = &append.event;
        let id = self
            .connection
            .prepare_cached(
                "SELECT id FROM event WHERE topic = ?1 AND sns_time = ?2 AND message_id = ?3",
            )?
            .query_row(
                params![topic, nanos(event.sent_at), event.message_id],
                |row| row.get(0),
            )
            .optional()?;
        Ok(Appended::Known {
            id: EventId(id.unwrap_or_default()),
        })
    }

    /// Puts a delivery into its lane, which is made if there is none; says when that is due.
    fn owe(
        &mut self,
        owed: &Owed,
        lane: &LaneColumns<'_>,
        event: i64,
        append: &Append,
        started: bool,
    ) -> rusqlite::Result<(Arc<str>, Timestamp)> {
        let route = self.name(&owed.route)?;
        let sink = self.name(&owed.sink)?;
        let times = Times::of(owed, append.now, started);
        let Entered {
            lane,
            early,
            leased,
            due_at,
            fed,
        } = self.feed(lane, (route, sink), &times)?;
        let release_at = times.release_at(fed == 1, early);
        if early && owed.hold.release == Release::First {
            // A terminal status that came first waits for this one alone.
            self.connection
                .prepare_cached(
                    "UPDATE waiting SET release_at = ?2
                     WHERE lane = ?1 AND alone = 0 AND release_at > ?2",
                )?
                .execute([lane, nanos(append.now)])?;
        }
        let put = self
            .connection
            .prepare_cached(
                "INSERT INTO waiting (lane, sort_key, event, fed, release_at)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (lane, sort_key) DO NOTHING",
            )?
            .execute(params![lane, owed.key.as_bytes(), event, fed, release_at])?;
        // The same message, signed anew at another time, is owed already.
        self.book(sink, append.received_at).owed += i64::try_from(put).unwrap_or_default();
        let due_at = if leased { release_at } else { due_at };
        Ok((self.text(sink)?, from_nanos(due_at)))
    }

    /// The lane of a delivery that is about to be put there; makes it if there is none, and notes when
    /// it is due. Two statements, since an upsert that says what became of the row costs more.
    fn feed(
        &self,
        lane: &LaneColumns<'_>,
        (route, sink): (i64, i64),
        times: &Times,
    ) -> rusqlite::Result<Entered> {
        let key = params![lane.kind, lane.number, lane.instance, route, sink];
        let found = self
            .connection
            .prepare_cached(
                "SELECT id, early, leased, due_at, fed, not_before FROM lane
                 WHERE kind = ?1 AND number = ?2 AND instance = ?3 AND route = ?4 AND sink = ?5",
            )?
            .query_row(key, |row| {
                let early = row.get::<_, bool>(1)? && times.goes_early;
                let (leased, due_at) = (row.get(2)?, row.get::<_, Option<i64>>(3)?);
                let own = if early { times.look_at } else { times.at_end };
                let own = own.max(row.get(5)?);
                // A leased lane keeps its due time, which is the end of its lease; its settlement
                // makes it due for what came meanwhile.
                let due_at = due_at.map_or(own, |due| if leased { due } else { due.min(own) });
                Ok(Entered {
                    lane: row.get(0)?,
                    early,
                    leased,
                    due_at,
                    fed: row.get::<_, i64>(4)?.saturating_add(1),
                })
            })
            .optional()?;
        if let Some(fed) = found {
            self.connection
                .prepare_cached("UPDATE lane SET due_at = ?2, early = ?3, fed = ?4 WHERE id = ?1")?
                .execute(params![fed.lane, fed.due_at, fed.early, fed.fed])?;
            return Ok(fed);
        }
        self.connection
            .prepare_cached(
                "INSERT INTO lane (kind, number, instance, route, sink, due_at, early, fed)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1)",
            )?
            .execute(params![
                lane.kind,
                lane.number,
                lane.instance,
                route,
                sink,
                times.look_at,
                times.goes_early
            ])?;
        Ok(Entered {
            lane: self.connection.last_insert_rowid(),
            early: times.goes_early,
            leased: false,
            due_at: times.look_at,
            fed: 1,
        })
    }

    fn insert_event(
        &mut self,
        append: &Append,
        topic: i64,
        step: Option<&Step<'_>>,
    ) -> rusqlite::Result<Option<i64>> {
        let event = &append.event;
        let proof = append.proof.as_ref();
        let certificate = match proof.and_then(|it| it.certificate.as_ref()) {
            Some(it) => Some(self.certificate(it, append.received_at)?),
            None => None,
        };
        let inserted = self
            .connection
            .prepare_cached(
                "INSERT INTO event (topic, sns_time, message_id, envelope, received_at, command_no,
                   instance, status, event_time, subject, body, signature, signature_version,
                   timestamp, certificate, generation)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
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
                proof.map(|it| &it.signature),
                proof.map(|it| it.version),
                proof.and_then(|it| it.timestamp.as_ref()),
                certificate,
                self.known.generation,
            ])?;
        Ok((inserted > 0).then(|| self.connection.last_insert_rowid()))
    }

    /// Enters a step, and says how it stands to those told before.
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
        if entered == 1 && *step.status == Status::InProgress {
            // The start of something contradicts nothing, and waits for nothing before it.
            return Ok(Told {
                started: true,
                ..Told::default()
            });
        }
        let stored: Vec<Stored> = self
            .connection
            .prepare_cached(
                "SELECT status, event_time, event FROM step
                 WHERE command_no = ?1 AND instance = ?2",
            )?
            .query_map(params![step.command_no, step.instance], |row| {
                Ok(Stored {
                    status: Status::parse(row.get_ref(0)?.as_str()?),
                    event_time: row.get(1)?,
                    event: row.get(2)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        let told = Told::of(step, event, &stored);
        if let Some(before) = told.before {
            self.connection
                .prepare_cached("UPDATE event SET repeat_of = ?2 WHERE id = ?1")?
                .execute([event, before])?;
        }
        if told.conflict {
            let others = stored
                .iter()
                .filter(|it| contradicts(&it.status, step.status));
            for other in others.map(|it| it.event).chain([event]) {
                self.connection
                    .prepare_cached("UPDATE event SET conflict = 1 WHERE id = ?1")?
                    .execute([other])?;
            }
        }
        Ok(told)
    }
}
