//! What people and the clock change: dead letters, subscriptions, rests, repairs, and forgetting.

use std::collections::HashSet;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};
use secrecy::{ExposeSecret as _, SecretString};

use super::read::{dead_condition, subscription};
use super::tables::Tables;
use crate::delivery::{Outcome, SortKey};
use crate::sns::KnownCertificate;
use crate::store::rows::{LaneColumns, STEP, nanos};
use crate::store::{DeadSelection, EventId, LaneId, Settled, Settlement, Subscription};

/// What a step did.
pub(super) struct Step {
    /// To how many it was done.
    pub(super) count: u64,
    /// Where the next step begins; none when there is nothing left.
    pub(super) upto: Option<i64>,
}

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
        after: i64,
        now: Timestamp,
    ) -> rusqlite::Result<Step> {
        let to = to.map(|sink| self.name(sink)).transpose()?;
        let graves = self.graves(selection, after)?;
        let mut count = 0;
        for grave in &graves {
            let sink = to.unwrap_or(grave.sink);
            let columns = LaneColumns {
                kind: grave.kind,
                number: grave.number,
                instance: &grave.instance,
            };
            let lane = self.lane_of(&columns, grave.route, sink)?;
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
        Ok(Step {
            count,
            upto: graves.last().map(|grave| grave.id),
        })
    }

    /// Makes dead letters of what waits for a sink. What is under way is left to whoever carries it.
    pub(super) fn bury(&mut self, sink: &str, now: Timestamp) -> rusqlite::Result<Step> {
        self.clear(sink, |event, key| Settled {
            answer: Some("given up by hand".to_owned()),
            ..Settled::new(event, key, Outcome::Dead, now)
        })
    }

    /// Hands what waits for a sink to another. What is under way is left to whoever carries it.
    pub(super) fn divert(
        &mut self,
        sink: &str,
        to: &str,
        now: Timestamp,
    ) -> rusqlite::Result<Step> {
        self.clear(sink, |event, key| Settled {
            divert_to: Some(to.to_owned()),
            ..Settled::new(event, key, Outcome::Diverted, now)
        })
    }

    /// Ends what waits in the next lane of a sink, some of it at a time.
    fn clear(
        &mut self,
        sink: &str,
        end: impl Fn(EventId, SortKey) -> Settled,
    ) -> rusqlite::Result<Step> {
        let sink = self.name(sink)?;
        let lane: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT id FROM lane WHERE sink = ?1 AND due_at IS NOT NULL ORDER BY due_at LIMIT 1",
            )?
            .query_row([sink], |row| row.get(0))
            .optional()?;
        let Some(lane) = lane else {
            return Ok(Step {
                count: 0,
                upto: None,
            });
        };
        let ended = |row: &rusqlite::Row<'_>| {
            Ok(end(EventId(row.get(0)?), SortKey::from_bytes(row.get(1)?)))
        };
        let results = self
            .connection
            .prepare_cached("SELECT event, sort_key FROM waiting WHERE lane = ?1 LIMIT ?2")?
            .query_map([lane, STEP], ended)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let count = results.len() as u64;
        let epoch = self
            .connection
            .prepare_cached("UPDATE lane SET leased = 1 WHERE id = ?1 RETURNING epoch")?
            .query_row([lane], |row| row.get(0))?;
        self.settle(&Settlement {
            lane: LaneId(lane),
            epoch,
            results,
            not_before: None,
        })?;
        Ok(Step {
            count,
            upto: Some(0),
        })
    }

    pub(super) fn drop_dead(
        &mut self,
        selection: &DeadSelection,
        after: i64,
        now: Timestamp,
    ) -> rusqlite::Result<Step> {
        let graves = self.graves(selection, after)?;
        for grave in &graves {
            let key = SortKey::from_bytes(grave.sort_key.clone());
            let dropped = Settled::new(EventId(grave.event), key, Outcome::Dropped, now);
            self.insert_outcome(grave.event, grave.route, grave.sink, &dropped)?;
            self.unbury(grave.id)?;
            let book = self.book(grave.sink, now);
            book.dead -= 1;
            book.dropped += 1;
        }
        Ok(Step {
            count: graves.len() as u64,
            upto: graves.last().map(|grave| grave.id),
        })
    }

    /// The next dead letters that are meant, in the order in which they died.
    fn graves(&self, selection: &DeadSelection, after: i64) -> rusqlite::Result<Vec<Grave>> {
        let (condition, values) = dead_condition(selection);
        self.connection
            .prepare(&format!(
                "SELECT id, event, kind, number, instance, route, sink, sort_key FROM dead
                 WHERE id > {after} AND {condition} ORDER BY id LIMIT {STEP}"
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

    /// The lane of a route and sink; made if there is none.
    pub(super) fn lane_of(
        &self,
        lane: &LaneColumns<'_>,
        route: i64,
        sink: i64,
    ) -> rusqlite::Result<i64> {
        self.connection
            .prepare_cached(
                "INSERT INTO lane (kind, number, instance, route, sink) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET epoch = epoch RETURNING id",
            )?
            .query_row(
                params![lane.kind, lane.number, lane.instance, route, sink],
                |row| row.get(0),
            )
    }

    pub(super) fn is_leased(&self, lane: i64) -> rusqlite::Result<bool> {
        self.connection
            .prepare_cached("SELECT leased FROM lane WHERE id = ?1")?
            .query_row([lane], |row| row.get(0))
    }

    pub(super) fn rest(
        &mut self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let sink = self.name(sink)?;
        let since = until.map(|_| nanos(now));
        self.connection
            .prepare_cached(
                "INSERT INTO sink (name, paused_until, trouble_since) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET paused_until = ?2,
                   trouble_since = CASE WHEN ?2 IS NOT NULL THEN coalesce(trouble_since, ?3) END",
            )?
            .execute(params![sink, until.map(nanos), since])?;
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

    /// Forgets events and what is known of them only.
    pub(super) fn forget(&mut self, over: &[Old]) -> rusqlite::Result<()> {
        for event in over {
            self.forget_one(event)?;
        }
        self.forget_commands();
        Ok(())
    }

    fn forget_one(&self, event: &Old) -> rusqlite::Result<()> {
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
                .prepare_cached(
                    // The newest stays, so that its number is not given again.
                    "DELETE FROM command WHERE no = ?1 AND no < (SELECT max(no) FROM command)",
                )?
                .execute([command_no])?;
            connection
                .prepare_cached(
                    "DELETE FROM lane WHERE kind IN (0, 1, 4) AND number = ?1
                     AND NOT EXISTS (SELECT 1 FROM waiting WHERE waiting.lane = lane.id)",
                )?
                .execute([command_no])?;
            connection
                .prepare_cached("DELETE FROM thread WHERE command_no = ?1")?
                .execute([command_no])?;
        }
        Ok(())
    }
}

/// Events old enough to be forgotten.
pub(super) struct Oldest {
    /// Those for which nothing waits.
    pub(super) over: Vec<Old>,
    /// Up to which event was looked; none when the next is too young, or there is none.
    pub(super) upto: Option<i64>,
}

/// An event old enough to be forgotten.
pub(super) struct Old {
    id: i64,
    command_no: Option<i64>,
    instance: Option<String>,
    status: Option<String>,
    event_time: Option<i64>,
}

/// Looks at the events after `after`. What nobody is owed now, nobody will be, so that this need not
/// be the writer's work. The newest event stays, so that its number is not given again.
pub(super) fn old(
    connection: &Connection,
    after: i64,
    before: Timestamp,
) -> rusqlite::Result<Oldest> {
    let transaction = connection.unchecked_transaction()?;
    let mut over: Vec<Old> = transaction
        .prepare_cached(
            "SELECT id, command_no, instance, status, event_time
             FROM (SELECT * FROM event WHERE id > ?1 AND id < (SELECT max(id) FROM event)
                   ORDER BY id LIMIT ?2)
             WHERE received_at < ?3 ORDER BY id",
        )?
        .query_map(params![after, STEP, nanos(before)], Old::of)?
        .collect::<rusqlite::Result<_>>()?;
    let (Some(first), Some(last)) = (over.first(), over.last()) else {
        return Ok(Oldest { over, upto: None });
    };
    let upto = last.id;
    let owed: HashSet<i64> = transaction
        .prepare_cached(
            "SELECT event FROM waiting WHERE event BETWEEN ?1 AND ?2
             UNION ALL SELECT event FROM dead WHERE event BETWEEN ?1 AND ?2",
        )?
        .query_map([first.id, upto], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    over.retain(|event| !owed.contains(&event.id));
    Ok(Oldest {
        over,
        upto: Some(upto),
    })
}

impl Old {
    fn of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            command_no: row.get(1)?,
            instance: row.get(2)?,
            status: row.get(3)?,
            event_time: row.get(4)?,
        })
    }
}
