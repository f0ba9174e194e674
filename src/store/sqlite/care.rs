//! Signs of life, forgetting, and operators' acts: the contract of care.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Beats, Forgetting, Sqlite, forget, read, recover};
use crate::delivery::from_nanos;
use crate::store::rules::columns::{length, nanos};
use crate::store::rules::time::{ClockRow, Look, SILENCE, forget_before, tick};
use crate::store::{Care, DeadSelection, Ending, LaneId, StoreError};

/// How often the clock's row is written where nothing else is.
const NOTED_AT_LEAST: Duration = Duration::from_mins(1);

/// How often forgetting begins again at the oldest event: some were owed when they were passed by.
const FORGET_ANEW: i64 = 3_600_000_000_000;

#[async_trait]
impl Care for Sqlite {
    async fn beat(&self) -> Result<(), StoreError> {
        let own = &self.own;
        let asked_at = own.clock.boot();
        let (row, leases) = self
            .read(|connection| Ok((recover::clock(connection)?, recover::leases(connection)?)))
            .await?;
        let now = self.tick(row, asked_at).await?;
        let rows: Vec<_> = leases
            .iter()
            .map(|it| (it.lane, it.epoch, it.call))
            .collect();
        own.register.forget_ended(&rows, asked_at);
        let lost = own.register.unknown(&rows);
        let ends: BTreeMap<_, _> = leases
            .iter()
            .map(|it| ((it.lane, it.epoch), it.ends_at))
            .collect();
        let due = |lease: &(LaneId, i64)| {
            let ends_at = ends.get(lease);
            ends_at.is_some_and(|ends_at| recover::wants_renewal(*ends_at, now, own.terms))
        };
        let mut renewed = own.register.at_work();
        renewed.retain(due);
        // Nothing is written while nothing is to be done: a beat costs no fsync.
        if !lost.is_empty() || !renewed.is_empty() {
            let ends_at = now.saturating_add(length(own.terms.lease_for));
            let (holder, back, kept) = (own.holder, lost.clone(), renewed.clone());
            let renewed = self
                .write(true, move |tables| {
                    tables.give_back_lost(&back, holder)?;
                    tables.renew(&kept, holder, ends_at)
                })
                .await?;
            own.register.given_back(&lost);
            own.register.renewed(&renewed, asked_at);
        }
        own.register.heard(asked_at);
        Ok(())
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        let forgotten = self.read(read::forgotten_lanes).await?;
        if forgotten.is_empty() {
            return Ok(0);
        }
        self.write(true, move |tables| {
            forgotten.iter().map(|lane| tables.rescue(*lane)).sum()
        })
        .await
    }

    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError> {
        let silent = length(self.own.clock.boot()) - self.own.heard.load(Ordering::Relaxed);
        let is_silent = silent >= length(SILENCE);
        // Where nothing that was signed bounds our clock, the one that is behind counts.
        let now = if is_silent {
            now.min(self.own.clock.now())
        } else {
            now
        };
        let now = nanos(now);
        let after = {
            let mut round = self.forgetting();
            if round
                .began_at
                .is_none_or(|began| now.saturating_sub(began) >= FORGET_ANEW)
            {
                *round = Forgetting {
                    upto: 0,
                    began_at: Some(now),
                };
            }
            round.upto
        };
        let old = self
            .read(move |connection| {
                let newest = forget::newest(connection)?;
                let before = forget_before(now, newest, is_silent, keep);
                forget::old(connection, after, before, now)
            })
            .await?;
        let upto = old.upto;
        // Even when there is nothing to forget: this shows that the file can be written.
        self.write(false, move |tables| tables.forget(&old)).await?;
        if let Some(upto) = upto {
            self.forgetting().upto = upto;
        }
        Ok(upto.is_some())
    }

    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let wall = self.own.wall.now();
        self.in_steps(move |tables, after| {
            tables.retry_dead(&selection, to.as_deref(), after, (now, wall))
        })
        .await
    }

    async fn bury(&self, sink: &str, _now: Timestamp) -> Result<u64, StoreError> {
        self.clear(sink, Ending::Dead).await
    }

    async fn drop_dead(
        &self,
        selection: DeadSelection,
        _now: Timestamp,
    ) -> Result<u64, StoreError> {
        let wall = self.own.wall.now();
        self.in_steps(move |tables, after| tables.drop_dead(&selection, after, wall))
            .await
    }
}

impl Sqlite {
    /// Looks at the clocks, and writes the row where something has to be kept; the logical time.
    async fn tick(&self, row: ClockRow, asked_at: Duration) -> Result<i64, StoreError> {
        let own = &self.own;
        // Both at one moment: the store may have taken its time to answer.
        let look = Look {
            wall: nanos(own.wall.now()),
            boot: length(own.wall.boot()),
            step: row.step,
        };
        let (last, noted_at) = {
            let beats = self.beats();
            (beats.last, beats.noted_at)
        };
        let it = tick(row, last, Some(nanos(own.clock.now())), look);
        if let Some(moved) = it.moved {
            let seconds = moved / 1_000_000_000;
            tracing::warn!(
                seconds,
                "the clock was moved; nothing waits longer or ages for that"
            );
        }
        if it.moved.is_some() || asked_at.saturating_sub(noted_at) >= NOTED_AT_LEAST {
            self.write(true, move |tables| tables.write_clock(it.row))
                .await?;
            self.beats().noted_at = asked_at;
        }
        let step = it.row.step;
        self.beats().last = Some(Look { step, ..look });
        own.clock.follow(from_nanos(it.now));
        Ok(it.now)
    }

    pub(super) fn beats(&self) -> std::sync::MutexGuard<'_, Beats> {
        self.own
            .beats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn forgetting(&self) -> std::sync::MutexGuard<'_, Forgetting> {
        self.own
            .forgetting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
