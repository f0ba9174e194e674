//! Operators' acts and repairs: dead letters, diversions, subscriptions, backoffs.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params, params_from_iter};
use secrecy::{ExposeSecret as _, SecretString};

use super::read::{dead_condition, subscription};
use super::settle::{LaneRow, lane_row};
use super::tables::Tables;
use crate::delivery::{Outcome, SortKey};
use crate::sns::KnownCertificate;
use crate::store::rules::columns::{STEP, nanos};
use crate::store::rules::dead::{BY_HAND, Progress};
use crate::store::rules::number::generation_no;
use crate::store::rules::step::LaneColumns;
use crate::store::{DeadSelection, Ending, EventId, Generation, Settled, Subscription};

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
        (now, wall): (Timestamp, Timestamp),
    ) -> rusqlite::Result<Progress> {
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
            let (lane, fed) = self.lane_of(&columns, grave.route, sink)?;
            let put = self
                .connection
                .prepare_cached(
                    "INSERT INTO waiting (lane, sort_key, event, fed, release_at, alone, resent)
                     VALUES (?1, ?2, ?3, ?4, ?5, 1, 1) ON CONFLICT DO NOTHING",
                )?
                .execute(params![lane, grave.sort_key, grave.event, fed, nanos(now)])?;
            if put == 0 {
                // It waits for that sink already.
                continue;
            }
            self.make_due(lane)?;
            self.unbury(grave.id)?;
            self.book(grave.sink, wall).dead -= 1;
            if sink != grave.sink {
                self.book(grave.sink, wall).moved_away(1);
                self.book(sink, wall).moved_here(1);
            }
            count += 1;
        }
        Ok(Progress {
            count,
            upto: graves.last().map(|grave| grave.id),
        })
    }

    /// Ends some of the deliveries that wait for a sink and that nobody carries; `wall` is written
    /// to their history.
    pub(super) fn clear(
        &mut self,
        sink: &str,
        ending: &Ending,
        wall: Timestamp,
    ) -> rusqlite::Result<Progress> {
        let sink = self.name(sink)?;
        let mut left = STEP;
        while left > 0 {
            let Some(lane) = self.next_unleased(sink)? else {
                break;
            };
            let ended = |row: &rusqlite::Row<'_>| {
                let key = SortKey::from_bytes(row.get(1)?);
                Ok(Settled {
                    answer: (*ending == Ending::Dead).then(|| BY_HAND.to_owned()),
                    ..Settled::new(EventId(row.get(0)?), key, ending.clone(), wall)
                })
            };
            let results = self
                .connection
                .prepare_cached("SELECT event, sort_key FROM waiting WHERE lane = ?1 LIMIT ?2")?
                .query_map([lane.id, left], ended)?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            // A lane that is due and holds nothing is a fault, and must not be found for ever.
            left -= i64::try_from(results.len()).unwrap_or(STEP).max(1);
            self.end_unleased(&lane, &results)?;
        }
        let count = STEP.saturating_sub(left).unsigned_abs();
        Ok(Progress {
            count,
            upto: (count > 0).then_some(0),
        })
    }

    fn next_unleased(&self, sink: i64) -> rusqlite::Result<Option<LaneRow>> {
        self.connection
            .prepare_cached(
                "SELECT id, kind, number, instance, route, sink FROM lane
                 WHERE sink = ?1 AND due_at IS NOT NULL AND leased = 0 ORDER BY due_at LIMIT 1",
            )?
            .query_row([sink], lane_row)
            .optional()
    }

    pub(super) fn drop_dead(
        &mut self,
        selection: &DeadSelection,
        after: i64,
        now: Timestamp,
    ) -> rusqlite::Result<Progress> {
        let graves = self.graves(selection, after)?;
        for grave in &graves {
            let key = SortKey::from_bytes(grave.sort_key.clone());
            let dropped = Settled::new(EventId(grave.event), key, Ending::Dead, now);
            let (route, sink) = (grave.route, grave.sink);
            self.insert_outcome_as(grave.event, route, sink, &dropped, &Outcome::Dropped)?;
            self.unbury(grave.id)?;
            let book = self.book(grave.sink, now);
            book.dead -= 1;
            book.dropped += 1;
        }
        Ok(Progress {
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

    pub(super) fn back_off(
        &mut self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let sink = self.name(sink)?;
        let since = until.map(|_| nanos(now));
        self.connection
            .prepare_cached(
                "INSERT INTO sink (name, backoff_until, failing_since) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET backoff_until = ?2,
                   failing_since = CASE WHEN ?2 IS NOT NULL THEN coalesce(failing_since, ?3) END",
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
                "INSERT INTO certificate_at (url, pem, fetched_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET pem = ?2, fetched_at = ?3",
            )?
            .execute(params![
                certificate.url,
                certificate.pem,
                nanos(certificate.fetched_at)
            ])?;
        Ok(())
    }

    /// Keeps settings, and that events are judged by them from here on.
    pub(super) fn put_generation(
        &mut self,
        generation: &Generation,
        replica: &str,
        at: Timestamp,
    ) -> rusqlite::Result<()> {
        let number = generation_no(&generation.hash);
        self.connection
            .prepare_cached(
                "INSERT INTO generation (no, hash, text) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            )?
            .execute(params![number, generation.hash, generation.text])?;
        self.connection
            .prepare_cached(
                "INSERT INTO generation_use (no, replica, since) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![number, replica, nanos(at)])?;
        self.known.generation = Some(number);
        Ok(())
    }

    /// Makes a lane due that was found waiting without being due, if it still is.
    pub(super) fn rescue(&self, lane: i64) -> rusqlite::Result<u64> {
        self.make_due(lane)?;
        let is_due = self
            .connection
            .prepare_cached("SELECT due_at IS NOT NULL FROM lane WHERE id = ?1")?
            .query_row([lane], |row| row.get::<_, bool>(0))
            .optional()?;
        Ok(u64::from(is_due == Some(true)))
    }
}
