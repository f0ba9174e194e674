//! Signs of life: the clock that everything waits by, the leases of this replica, and those of
//! replicas that give no sign.
//!
//! Each replica gives a sign once a second. The leases of one that gives none for long are freed by
//! whoever notices first (`silence`), provided that its own signs came through all that time: after
//! an outage of the database the living renew first. A replica that was only paused finds its leases
//! gone, and may record nothing but what it sent.

use std::sync::atomic::Ordering;
use std::time::Duration;

use deadpool_postgres::Client;
use futures_util::FutureExt as _;
use tokio_postgres::{Error, Row};

use super::errors::translate;
use super::shared::Shared;
use super::tables::{Path, Tables, each};
use crate::delivery::from_nanos;
use crate::store::register::GiveBack;
use crate::store::rules::columns::{length, nanos};
use crate::store::rules::time::{ClockRow, Look, Tick, tick};
use crate::store::{LaneId, StoreError};

/// How old the written logical time may become, in nanoseconds. One replica of all writes it.
const NOTED_EVERY: i64 = 1_000_000_000;

/// The database's wall time in nanoseconds, or `$1` where a test says what time it is.
macro_rules! wall {
    () => {
        "coalesce($1::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint * 1000)"
    };
}

/// Remembered from one beat to the next.
#[derive(Default)]
pub(super) struct Beats {
    last: Option<Look>,
}

/// The answer to a sign of life.
struct Sign {
    wall: i64,
    clock: ClockRow,
    /// Our sign.
    beat_at: i64,
    /// The other replicas (holder, sign).
    others: Vec<(i64, i64)>,
    /// How many leases are ours.
    leases: i64,
}

/// A lease of ours, as its rows say.
struct Held {
    lane: i64,
    epoch: i64,
    call: i64,
    /// When it ends, in logical time.
    ends_at: i64,
}

/// The clock's row, and what time it is where the database runs.
pub(super) async fn look_at_clock(
    client: &Client,
    by_hand: Option<i64>,
) -> Result<(i64, ClockRow), StoreError> {
    use tokio_postgres::types::Type;
    let sql = concat!("SELECT ", wall!(), ", latest, ahead, step FROM clock");
    let row = client.query_typed_one(sql, &[(&by_hand, Type::INT8)]).await;
    let row = row.map_err(translate)?;
    let clock = clock_of(&row).map_err(translate)?;
    Ok((row.try_get(0).map_err(translate)?, clock))
}

fn clock_of(row: &Row) -> Result<ClockRow, Error> {
    Ok(ClockRow {
        latest: row.try_get(1)?,
        ahead: row.try_get(2)?,
        step: row.try_get(3)?,
    })
}

impl Shared {
    /// Gives a sign of life, and does what depends on it.
    pub(super) async fn beat(&self) -> Result<(), StoreError> {
        let beaten = self.beat_once().await;
        if let Err(error) = &beaten {
            self.own.register.missed();
            self.gone(error);
        }
        beaten
    }

    async fn beat_once(&self) -> Result<(), StoreError> {
        let register = &self.own.register;
        // Both are taken before the database is asked: an answer that is late must not look like a
        // clock that was set back, nor a sign like one that was given later than it was.
        let (asked_at, counted) = (self.own.clock.boot(), nanos(self.own.clock.now()));
        let sign = self.sign(counted).await?;
        let now = self.judge(&sign, asked_at, counted).await?;
        let answered_at = self.own.clock.boot();
        let alive = self
            .others()
            .note(&sign.others, sign.beat_at, (asked_at, answered_at));
        self.alive.store(alive.saturating_add(1), Ordering::Relaxed);
        if self.is_gone.swap(false, Ordering::Relaxed) {
            tracing::info!("the database answers again");
        }
        let mut lost = Vec::new();
        if sign.leases > 0 {
            lost = self.look_after_leases(now, asked_at).await?;
        } else {
            register.forget_ended(&[], asked_at);
        }
        // Only now: what others freed while this replica was not heard must not begin.
        register.heard(asked_at);
        self.free_unended(lost, asked_at).await;
        Ok(())
    }

    async fn sign(&self, counted: i64) -> Result<Sign, StoreError> {
        self.write(Path::Upkeep, |tables| tables.sign(counted).boxed())
            .await
    }

    /// Judges the clocks by a sign's answer, and writes the offset where the wall clock was moved; the
    /// logical time.
    async fn judge(
        &self,
        sign: &Sign,
        asked_at: Duration,
        counted: i64,
    ) -> Result<i64, StoreError> {
        let look = Look {
            wall: sign.wall,
            boot: length(asked_at),
            step: sign.clock.step,
        };
        let last = self.beats().last;
        let it = tick(sign.clock, last, Some(counted), look);
        if let Some(moved) = it.moved {
            let seconds = moved / 1_000_000_000;
            tracing::warn!(
                seconds,
                "the database's clock was moved; nothing waits longer or ages for that"
            );
            self.write(Path::Upkeep, |tables| {
                tables.correct_clock(it, sign.clock.step).boxed()
            })
            .await?;
        }
        let step = it.row.step;
        self.beats().last = Some(Look { step, ..look });
        self.own.wall.follow(from_nanos(sign.wall));
        self.own.clock.follow(from_nanos(it.now));
        Ok(it.now)
    }

    /// Renews the leases that are at work; those that nobody here carries are lost.
    async fn look_after_leases(
        &self,
        now: i64,
        asked_at: Duration,
    ) -> Result<Vec<GiveBack>, StoreError> {
        let own = &self.own;
        let held = self
            .write(Path::Upkeep, |tables| tables.held().boxed())
            .await?;
        // The register is asked after the rows were read: a take is entered before its row can be
        // there, so a row that is not known now was lost.
        let rows = each(&held, |it| (LaneId(it.lane), it.epoch, it.call));
        own.register.forget_ended(&rows, asked_at);
        let lost = own.register.unknown(&rows);
        let half = now.saturating_add(length(own.terms.lease_for) / 2);
        let mut renewed = own.register.at_work();
        renewed.retain(|(lane, epoch)| {
            let is_it = |it: &&Held| it.lane == lane.0 && it.epoch == *epoch;
            held.iter().find(is_it).is_some_and(|it| it.ends_at < half)
        });
        if !renewed.is_empty() {
            let ends_at = now.saturating_add(length(own.terms.lease_for));
            let renewed = &renewed;
            let done = self
                .write(Path::Upkeep, |tables| {
                    tables.renew(renewed, ends_at).boxed()
                })
                .await?;
            own.register.renewed(&done, asked_at);
        }
        Ok(lost)
    }

    /// Leaves the other replicas: gives back the leases of which nothing had begun, and says that no
    /// sign is to be waited for. The others are freed by whoever starts or beats next, with marks.
    pub(super) async fn leave(&self) -> Result<(), StoreError> {
        let held = self
            .write(Path::Upkeep, |tables| tables.held().boxed())
            .await?;
        let rows = each(&held, |it| (LaneId(it.lane), it.epoch, it.call));
        let lost = self.own.register.unknown(&rows);
        // Whatever cannot be given back is freed by the others, who need to be told all the sooner.
        let given_back = self.give_back_unbegun(lost).await;
        self.write(Path::Upkeep, |tables| tables.leave().boxed())
            .await?;
        given_back
    }
}

impl Tables<'_, '_> {
    /// Gives a sign of life in one statement, whose `counted` is this replica's own logical time.
    ///
    /// The sign is that time, and not the wall clock's: a replica that dies right after the wall clock
    /// leapt would seem alive until the clock comes round. Each differs from the one before: the others
    /// see that it changes. `latest` is written by the first replica
    /// that finds it a second old; the others pass a locked row over, since one that is paused in the
    /// middle of this would otherwise silence them all.
    async fn sign(&self, counted: i64) -> Result<Sign, Error> {
        let own = &self.shared.own;
        let row = self
            .query_one(
                concat!(
                    "WITH noted AS (UPDATE clock SET latest = GREATEST(latest, $2)
                       WHERE one IN (SELECT one FROM clock WHERE latest < $2 - $5
                         FOR UPDATE SKIP LOCKED)),
                     mine AS (INSERT INTO holder (id, name, beat_at)
                       SELECT $3, $4, GREATEST($2, latest) FROM clock
                       ON CONFLICT (id) DO UPDATE
                         SET beat_at = GREATEST(excluded.beat_at, holder.beat_at + 1)
                       RETURNING beat_at)
                     SELECT ",
                    wall!(),
                    ", latest, ahead, step, mine.beat_at,
                       (SELECT array_agg(id ORDER BY id) FROM holder WHERE id <> $3),
                       (SELECT array_agg(beat_at ORDER BY id) FROM holder WHERE id <> $3),
                       (SELECT count(*) FROM lease WHERE holder = $3)
                     FROM clock, mine"
                ),
                &[
                    &own.wall.wall_by_hand().map(nanos),
                    &counted,
                    &own.holder,
                    &own.name,
                    &NOTED_EVERY,
                ],
            )
            .await?;
        let ids: Option<Vec<i64>> = row.try_get(5)?;
        let signs: Option<Vec<i64>> = row.try_get(6)?;
        let others = ids.into_iter().flatten().zip(signs.into_iter().flatten());
        Ok(Sign {
            wall: row.try_get(0)?,
            clock: clock_of(&row)?,
            beat_at: row.try_get(4)?,
            others: others.collect(),
            leases: row.try_get(7)?,
        })
    }

    /// Writes a changed offset, unless another replica that saw the same was quicker.
    pub(super) async fn correct_clock(&self, it: Tick, seen: i64) -> Result<(), Error> {
        self.execute(
            "UPDATE clock SET latest = GREATEST(latest, $1), ahead = $2, step = $3 WHERE step = $4",
            &[&it.row.latest, &it.row.ahead, &it.row.step, &seen],
        )
        .await?;
        Ok(())
    }

    async fn held(&self) -> Result<Vec<Held>, Error> {
        let rows = self
            .query(
                "SELECT lease.lane, lease.epoch, call, coalesce(due_at, 0)
                 FROM lease LEFT JOIN lane ON lane.id = lease.lane WHERE holder = $1",
                &[&self.shared.own.holder],
            )
            .await?;
        let held = rows.iter().map(|row| {
            Ok(Held {
                lane: row.try_get(0)?,
                epoch: row.try_get(1)?,
                call: row.try_get(2)?,
                ends_at: row.try_get(3)?,
            })
        });
        held.collect()
    }

    /// Moves the end of leases to `ends_at`; which of them. A lane that somebody has locked is left to
    /// the next beat: half a lease is time for many. The lane's own epoch is compared where its row
    /// is locked, for its lease may have been freed since this statement's snapshot was taken.
    async fn renew(
        &self,
        leases: &[(LaneId, i64)],
        ends_at: i64,
    ) -> Result<Vec<(LaneId, i64)>, Error> {
        let rows = self
            .query(
                "WITH mine AS (SELECT lane.id FROM unnest($1::bigint[], $2::bigint[]) AS it (lane, epoch)
                   JOIN lane ON lane.id = it.lane AND lane.epoch = it.epoch AND leased
                   JOIN lease ON lease.lane = it.lane AND lease.epoch = it.epoch AND holder = $3
                   FOR UPDATE OF lane SKIP LOCKED)
                 UPDATE lane SET due_at = GREATEST(due_at, $4) FROM mine
                 WHERE lane.id = mine.id AND leased RETURNING lane.id, epoch",
                &[
                    &each(leases, |it| it.0.0),
                    &each(leases, |it| it.1),
                    &self.shared.own.holder,
                    &ends_at,
                ],
            )
            .await?;
        let renewed = rows
            .iter()
            .map(|row| Ok((LaneId(row.try_get(0)?), row.try_get(1)?)));
        renewed.collect()
    }

    async fn leave(&self) -> Result<(), Error> {
        self.execute(
            "UPDATE holder SET beat_at = 0 WHERE id = $1",
            &[&self.shared.own.holder],
        )
        .await?;
        Ok(())
    }
}
