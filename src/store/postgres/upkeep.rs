//! What people and the clock change: dead letters, subscriptions, rests, repairs.

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Error;

use super::read::{dead_condition, subscription};
use super::tables::Tables;
use crate::delivery::{Outcome, SortKey};
use crate::sns::KnownCertificate;
use crate::store::rows::{STEP, nanos};
use crate::store::{DeadSelection, EventId, LaneId, Settled, Settlement, Subscription};

/// From where on the clock counts as set back, in nanoseconds: more than a transaction may wait.
const SET_BACK: i64 = 15_000_000_000;

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
    bytes: i64,
    kind: i64,
    number: i64,
    instance: Vec<u8>,
    route: i64,
    sink: i64,
    sort_key: Vec<u8>,
}

impl Grave {
    /// The key of its lane.
    fn lane(&self) -> (i64, i64, &[u8], i64, i64) {
        (
            self.kind,
            self.number,
            &self.instance,
            self.route,
            self.sink,
        )
    }
}

impl Tables<'_> {
    pub(super) async fn retry_dead(
        &mut self,
        selection: &DeadSelection,
        to: Option<i64>,
        after: i64,
        now: Timestamp,
    ) -> Result<Step, Error> {
        let mut graves = self.graves(selection, after).await?;
        let upto = graves.last().map(|grave| grave.id);
        // Lanes are locked in the order of their keys.
        graves.sort_by(|one, other| one.lane().cmp(&other.lane()));
        let mut count = 0;
        for grave in &graves {
            let sink = to.unwrap_or(grave.sink);
            let lane = self
                .lane_of(grave.kind, grave.number, &grave.instance, grave.route, sink)
                .await?;
            let put = self
                .execute(
                    "INSERT INTO waiting (lane, sort_key, event, bytes, fed, release_at, alone, resent)
                     VALUES ($1, $2, $3, $4, (SELECT fed FROM lane WHERE id = $1), $5, true, true)
                     ON CONFLICT DO NOTHING",
                    &[&lane, &grave.sort_key, &grave.event, &grave.bytes, &nanos(now)],
                )
                .await?;
            if put == 0 {
                // It waits for that sink already.
                continue;
            }
            self.make_due_unless_leased(lane).await?;
            self.unbury(grave.id).await?;
            self.book(grave.sink, now).dead -= 1;
            if sink != grave.sink {
                self.book(grave.sink, now).owed -= 1;
                self.book(sink, now).owed += 1;
            }
            count += 1;
        }
        self.write_tally().await?;
        Ok(Step { count, upto })
    }

    pub(super) async fn drop_dead(
        &mut self,
        selection: &DeadSelection,
        after: i64,
        now: Timestamp,
    ) -> Result<Step, Error> {
        let graves = self.graves(selection, after).await?;
        for grave in &graves {
            let key = SortKey::from_bytes(grave.sort_key.clone());
            let dropped = Settled::new(EventId(grave.event), key, Outcome::Dropped, now);
            self.write_outcomes(&[(grave.event, grave.route, grave.sink, &dropped)])
                .await?;
            self.unbury(grave.id).await?;
            let book = self.book(grave.sink, now);
            book.dead -= 1;
            book.dropped += 1;
        }
        self.write_tally().await?;
        Ok(Step {
            count: graves.len() as u64,
            upto: graves.last().map(|grave| grave.id),
        })
    }

    /// Ends what waits in the next lane of a sink that nobody is at, some of it at a time.
    pub(super) async fn clear(
        &mut self,
        sink: i64,
        to: Option<&(String, i64)>,
        now: Timestamp,
    ) -> Result<Step, Error> {
        let lane = self
            .query_opt(
                "SELECT id, epoch FROM lane WHERE sink = $1 AND due_at IS NOT NULL
                 ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED",
                &[&sink],
            )
            .await?;
        let Some(lane) = lane else {
            return Ok(Step {
                count: 0,
                upto: None,
            });
        };
        let (lane, epoch): (i64, i64) = (lane.try_get(0)?, lane.try_get(1)?);
        let rows = self
            .query(
                "SELECT event, sort_key FROM waiting WHERE lane = $1 LIMIT $2",
                &[&lane, &STEP],
            )
            .await?;
        let end = |event, key| match to {
            Some((name, _)) => Settled {
                divert_to: Some(name.clone()),
                ..Settled::new(event, key, Outcome::Diverted, now)
            },
            None => Settled {
                answer: Some("given up by hand".to_owned()),
                ..Settled::new(event, key, Outcome::Dead, now)
            },
        };
        let each = rows.iter().map(|row| {
            let key = SortKey::from_bytes(row.try_get(1)?);
            Ok(end(EventId(row.try_get(0)?), key))
        });
        let results = each.collect::<Result<Vec<_>, Error>>()?;
        let count = results.len() as u64;
        self.execute(
            "UPDATE lane SET owner = $2 WHERE id = $1",
            &[&lane, &self.replica],
        )
        .await?;
        let settlement = Settlement {
            lane: LaneId(lane),
            epoch,
            results,
            not_before: None,
        };
        let names = to.into_iter().cloned().collect();
        self.settle(&[settlement], &names).await?;
        Ok(Step {
            count,
            upto: Some(0),
        })
    }

    /// The next dead letters that are meant, in the order in which they died; nobody else has them.
    async fn graves(&self, selection: &DeadSelection, after: i64) -> Result<Vec<Grave>, Error> {
        let (condition, value) = dead_condition(selection);
        let rows = self
            .query(
                &format!(
                    "SELECT id, event, bytes, kind, number, instance, route, sink, sort_key FROM dead
                     WHERE id > $2 AND {condition} ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED"
                ),
                &[&*value, &after, &STEP],
            )
            .await?;
        let graves = rows.iter().map(|row| {
            Ok(Grave {
                id: row.try_get(0)?,
                event: row.try_get(1)?,
                bytes: row.try_get(2)?,
                kind: row.try_get(3)?,
                number: row.try_get(4)?,
                instance: row.try_get(5)?,
                route: row.try_get(6)?,
                sink: row.try_get(7)?,
                sort_key: row.try_get(8)?,
            })
        });
        graves.collect()
    }

    async fn unbury(&self, id: i64) -> Result<(), Error> {
        self.execute("DELETE FROM dead WHERE id = $1", &[&id])
            .await?;
        Ok(())
    }

    pub(super) async fn rest(
        &self,
        sink: i64,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.execute(
            "INSERT INTO sink (name, paused_until, trouble_since) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET paused_until = $2,
               trouble_since = CASE WHEN $2::bigint IS NOT NULL
                 THEN coalesce(sink.trouble_since, $3) END",
            &[&sink, &until.map(nanos), &until.map(|_| nanos(now))],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, Error> {
        let row = self
            .query_one(
                "INSERT INTO subscription (topic, token, asked_at) VALUES ($1, $2, $3)
                 ON CONFLICT (topic, token) DO UPDATE SET topic = excluded.topic
                 RETURNING id, topic, token, asked_at, confirmed_at",
                &[&topic, &token.expose_secret(), &nanos(at)],
            )
            .await?;
        subscription(&row)
    }

    pub(super) async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), Error> {
        self.execute(
            "UPDATE subscription SET confirmed_at = $2 WHERE id = $1",
            &[&id, &nanos(at)],
        )
        .await?;
        Ok(())
    }

    pub(super) async fn put_certificate(&self, it: &KnownCertificate) -> Result<(), Error> {
        self.execute(
            "INSERT INTO certificate (url, pem, fetched_at) VALUES ($1, $2, $3)
             ON CONFLICT (url) DO UPDATE SET pem = $2, fetched_at = $3",
            &[&it.url, &it.pem, &nanos(it.fetched_at)],
        )
        .await?;
        Ok(())
    }

    /// Makes lanes due that were found forgotten, if they still are.
    pub(super) async fn rescue(&self, lanes: &[i64]) -> Result<u64, Error> {
        let lanes: Vec<i64> = self
            .query(
                "SELECT id FROM lane WHERE id = ANY($1) AND due_at IS NULL AND owner IS NULL
                   AND EXISTS (SELECT 1 FROM waiting WHERE waiting.lane = lane.id)
                 ORDER BY kind, number, instance, route, sink FOR UPDATE",
                &[&lanes],
            )
            .await?
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        self.make_due(&lanes).await?;
        Ok(lanes.len() as u64)
    }

    /// When the clock of the database was set back, moves what was written by it along: else
    /// everything would wait until it comes round again. Whoever notices first does it for all.
    pub(super) async fn notice_clock_set_back(&self, now: i64) -> Result<(), Error> {
        let row = self
            .query_one("SELECT latest FROM runbell FOR UPDATE", &[])
            .await?;
        let back = row.try_get::<_, i64>(0)?.saturating_sub(now);
        if back > SET_BACK {
            tracing::warn!(seconds = back / 1_000_000_000, "the clock was set back");
            for table in [
                "UPDATE waiting SET release_at = release_at - $1",
                "UPDATE lane SET not_before = not_before - $1, due_at = due_at - $1",
                "UPDATE sink SET paused_until = paused_until - $1, trouble_since = trouble_since - $1",
            ] {
                self.execute(table, &[&back]).await?;
            }
        } else if back > 0 {
            return Ok(());
        }
        self.execute("UPDATE runbell SET latest = $1", &[&now])
            .await?;
        Ok(())
    }
}
