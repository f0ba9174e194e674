//! What people and the clock change: dead letters, subscriptions, rests, repairs, and forgetting.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params, params_from_iter};
use secrecy::{ExposeSecret as _, SecretString};

use super::read::{dead_condition, subscription};
use super::tables::{Tables, nanos};
use crate::delivery::{Marks, Outcome, SortKey};
use crate::sns::KnownCertificate;
use crate::store::{DeadSelection, EventId, Settled, Subscription};

/// How many events one step of forgetting looks at.
const PRUNED_AT_ONCE: i64 = 500;

struct Grave {
    id: i64,
    event: i64,
    kind: i64,
    number: i64,
    instance: String,
    route: i64,
    sink: i64,
    sort_key: Vec<u8>,
}

impl Tables<'_> {
    pub(super) fn retry_dead(
        &mut self,
        selection: &DeadSelection,
        to: Option<&str>,
        now: Timestamp,
    ) -> rusqlite::Result<u64> {
        let to = to.map(|sink| self.name(sink)).transpose()?;
        let mut count = 0;
        for grave in self.graves(selection)? {
            let sink = to.unwrap_or(grave.sink);
            let lane: i64 = self
                .connection
                .prepare_cached(
                    "INSERT INTO lane (kind, number, instance, route, sink) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT DO UPDATE SET epoch = epoch RETURNING id",
                )?
                .query_row(
                    params![grave.kind, grave.number, grave.instance, grave.route, sink],
                    |row| row.get(0),
                )?;
            let put = self
                .connection
                .prepare_cached(
                    "INSERT INTO waiting (lane, sort_key, event, release_at, alone, resent)
                     VALUES (?1, ?2, ?3, ?4, 1, 1) ON CONFLICT DO NOTHING",
                )?
                .execute(params![lane, grave.sort_key, grave.event, nanos(now)])?;
            if put == 0 {
                // It waits for that sink already.
                continue;
            }
            if !self.is_leased(lane)? {
                self.make_due(lane)?;
            }
            self.unbury(grave.id)?;
            self.book(grave.sink, now).dead -= 1;
            if sink != grave.sink {
                self.book(grave.sink, now).owed -= 1;
                self.book(sink, now).owed += 1;
            }
            count += 1;
        }
        Ok(count)
    }

    pub(super) fn drop_dead(
        &mut self,
        selection: &DeadSelection,
        now: Timestamp,
    ) -> rusqlite::Result<u64> {
        let graves = self.graves(selection)?;
        for grave in &graves {
            let dropped = Settled {
                event: EventId(grave.event),
                key: SortKey::from_bytes(grave.sort_key.clone()),
                outcome: Outcome::Dropped,
                at: now,
                marks: Marks::default(),
                answer: None,
                again_at: None,
                failing_since: None,
                progress: None,
            };
            self.insert_outcome(grave.event, grave.route, grave.sink, &dropped)?;
            self.unbury(grave.id)?;
            let book = self.book(grave.sink, now);
            book.dead -= 1;
            book.dropped += 1;
        }
        Ok(graves.len() as u64)
    }

    fn graves(&self, selection: &DeadSelection) -> rusqlite::Result<Vec<Grave>> {
        let (condition, values) = dead_condition(selection);
        self.connection
            .prepare(&format!(
                "SELECT id, event, kind, number, instance, route, sink, sort_key FROM dead
                 WHERE {condition} ORDER BY id"
            ))?
            .query_map(params_from_iter(values), |row| {
                Ok(Grave {
                    id: row.get(0)?,
                    event: row.get(1)?,
                    kind: row.get(2)?,
                    number: row.get(3)?,
                    instance: row.get(4)?,
                    route: row.get(5)?,
                    sink: row.get(6)?,
                    sort_key: row.get(7)?,
                })
            })?
            .collect()
    }

    fn unbury(&self, id: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("DELETE FROM dead WHERE id = ?1")?
            .execute([id])?;
        Ok(())
    }

    fn is_leased(&self, lane: i64) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached("SELECT leased FROM lane WHERE id = ?1")?
            .query_row([lane], |row| row.get(0))
    }

    pub(super) fn rest(&mut self, sink: &str, until: Option<Timestamp>) -> rusqlite::Result<()> {
        let sink = self.name(sink)?;
        self.connection
            .prepare_cached(
                "INSERT INTO sink (name, paused_until) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET paused_until = ?2",
            )?
            .execute(params![sink, until.map(nanos)])?;
        Ok(())
    }

    pub(super) fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> rusqlite::Result<Subscription> {
        self.connection
            .prepare_cached(
                "INSERT INTO subscription (topic, token, asked_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (topic, token) DO UPDATE SET topic = topic
                 RETURNING id, topic, token, asked_at, confirmed_at",
            )?
            .query_row(
                params![topic, token.expose_secret(), nanos(at)],
                subscription,
            )
    }

    pub(super) fn subscription_confirmed(&self, id: i64, at: Timestamp) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("UPDATE subscription SET confirmed_at = ?2 WHERE id = ?1")?
            .execute([id, nanos(at)])?;
        Ok(())
    }

    pub(super) fn put_certificate(&self, certificate: &KnownCertificate) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO certificate (url, pem, fetched_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET pem = ?2, fetched_at = ?3",
            )?
            .execute(params![
                certificate.url,
                certificate.pem,
                nanos(certificate.fetched_at)
            ])?;
        Ok(())
    }

    /// Makes a lane due that was found forgotten, if it still is.
    pub(super) fn rescue(&self, lane: i64) -> rusqlite::Result<u64> {
        let forgotten = self
            .connection
            .prepare_cached("SELECT due_at IS NULL AND NOT leased FROM lane WHERE id = ?1")?
            .query_row([lane], |row| row.get::<_, bool>(0))
            .optional()?;
        if forgotten != Some(true) {
            return Ok(0);
        }
        self.make_due(lane)?;
        Ok(1)
    }

    /// Looks at the events after `after`, forgets those older than `before` for which nothing waits,
    /// and says up to which it looked; `None` when the next is too young, or there is none.
    pub(super) fn prune(&mut self, after: i64, before: Timestamp) -> rusqlite::Result<Option<i64>> {
        let old: Vec<Old> = self
            .connection
            .prepare_cached(
                "SELECT id, command_no, instance, status, event_time,
                   id IN (SELECT event FROM waiting UNION ALL SELECT event FROM dead)
                 FROM (SELECT * FROM event WHERE id > ?1 ORDER BY id LIMIT ?2)
                 WHERE received_at < ?3 ORDER BY id",
            )?
            .query_map(params![after, PRUNED_AT_ONCE, nanos(before)], Old::of)?
            .collect::<rusqlite::Result<_>>()?;
        for event in old.iter().filter(|event| !event.is_owed) {
            self.forget(event)?;
        }
        self.forget_commands();
        Ok(old.last().map(|event| event.id))
    }

    fn forget(&self, event: &Old) -> rusqlite::Result<()> {
        let connection = self.connection;
        connection
            .prepare_cached("DELETE FROM outcome WHERE event = ?1")?
            .execute([event.id])?;
        connection
            .prepare_cached("DELETE FROM event WHERE id = ?1")?
            .execute([event.id])?;
        let Some(command_no) = event.command_no else {
            return Ok(());
        };
        connection
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
        let is_over: bool = connection
            .prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM step WHERE command_no = ?1)")?
            .query_row([command_no], |row| row.get(0))?;
        if is_over {
            connection
                .prepare_cached("DELETE FROM command WHERE no = ?1")?
                .execute([command_no])?;
            connection
                .prepare_cached(
                    "DELETE FROM lane WHERE kind IN (0, 1) AND number = ?1
                     AND NOT EXISTS (SELECT 1 FROM waiting WHERE waiting.lane = lane.id)",
                )?
                .execute([command_no])?;
        }
        Ok(())
    }
}

/// An event old enough to be forgotten.
struct Old {
    id: i64,
    command_no: Option<i64>,
    instance: Option<String>,
    status: Option<String>,
    event_time: Option<i64>,
    is_owed: bool,
}

impl Old {
    fn of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            command_no: row.get(1)?,
            instance: row.get(2)?,
            status: row.get(3)?,
            event_time: row.get(4)?,
            is_owed: row.get(5)?,
        })
    }
}
