//! Freeing the leases that nobody ends: what this replica lost, and those of the silent.
//!
//! Whether another is silent is judged by what is seen of it, against this replica's own time since
//! boot: its sign has not changed for [`SILENT_FOR`]. The database's clock may step by any time, and
//! frees nobody.
//!
//! Nothing here holds up the next sign of life, or fails one: the work has a second, goes on behind
//! the last lane at the next beat, and takes fewer at once when some cannot be freed.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_postgres::Error;

use super::recover::{Freed, Lost};
use super::shared::Shared;
use super::tables::{Path, Tables, each};
use crate::fault::causes;
use crate::store::StoreError;
use crate::store::register::{GiveBack, SILENT_FOR};
use crate::store::rules::columns::{STEP, length};

/// How long one beat frees leases before it lets the next sign of life come first.
const FREES_FOR: Duration = Duration::from_secs(1);

/// What is seen of the other replicas, from one beat to the next.
#[derive(Default)]
pub(super) struct Others {
    /// By their rows.
    signs: Watch,
    /// Holders of leases that have no row, since a failover lost it.
    rowless: Watch,
    lost: Pass,
    silent: Pass,
    /// It was said that some cannot be freed.
    is_told: bool,
}

/// The signs of some holders, and since when each has been as it is.
#[derive(Default)]
struct Watch(BTreeMap<i64, Seen>);

#[derive(Clone, Copy)]
struct Seen {
    beat_at: i64,
    /// Boot time.
    since: Duration,
    has_changed: bool,
}

/// How far a pass over leases has come.
#[derive(Clone, Copy)]
struct Pass {
    after: i64,
    at_once: usize,
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            after: i64::MIN,
            at_once: usize::try_from(STEP).unwrap_or(1),
        }
    }
}

impl Pass {
    /// Goes on behind `page`; before it, with fewer, when it failed and was more than one.
    fn passed(&mut self, page: &[Lost], is_done: bool) {
        let most = Self::default().at_once;
        if is_done || page.len() <= 1 {
            self.after = page.last().map_or(i64::MIN, |it| it.lane);
            self.at_once = self.at_once.saturating_mul(2).min(most);
        } else {
            self.at_once = page.len() / 2;
        }
    }
}

impl Watch {
    /// Notes all signs (holder, sign) that were seen by `boot`.
    fn note(&mut self, signs: &[(i64, i64)], boot: Duration) {
        let note = |&(holder, beat_at): &(i64, i64)| {
            let before = self.0.get(&holder);
            let seen = before.filter(|it| it.beat_at == beat_at).copied();
            let new = Seen {
                beat_at,
                since: boot,
                has_changed: before.is_some(),
            };
            (holder, seen.unwrap_or(new))
        };
        self.0 = signs.iter().map(note).collect();
    }

    /// Those that had given no sign for long when they were asked about at `asked_at`, each with its
    /// last.
    fn silent(&self, asked_at: Duration) -> Vec<(i64, i64)> {
        let silent = self.0.iter().filter(|(_, it)| it.is_silent(asked_at));
        silent.map(|(holder, it)| (*holder, it.beat_at)).collect()
    }
}

impl Seen {
    /// Whether it has left, or its sign has not changed for long.
    fn is_silent(&self, asked_at: Duration) -> bool {
        self.beat_at == 0 || asked_at.saturating_sub(self.since) >= SILENT_FOR
    }
}

impl Others {
    /// Notes the signs of the others beside one of ours; how many of them are alive. One that was never
    /// seen to change is judged by its age.
    pub(super) fn note(
        &mut self,
        signs: &[(i64, i64)],
        ours: i64,
        asked: (Duration, Duration),
    ) -> i64 {
        self.signs.note(signs, asked.1);
        let is_young = |it: &Seen| it.beat_at > ours.saturating_sub(length(SILENT_FOR));
        let alive = self.signs.0.values();
        let alive = alive.filter(|it| !it.is_silent(asked.0) && (it.has_changed || is_young(it)));
        i64::try_from(alive.count()).unwrap_or(i64::MAX)
    }
}

impl Shared {
    /// Frees what this replica lost and what the silent hold, as far as there is time.
    pub(super) async fn free_unended(&self, lost: Vec<GiveBack>, asked_at: Duration) {
        let until = self.own.clock.boot().saturating_add(FREES_FOR);
        let mut freed = self.give_back_lost(lost, until).await;
        if !matches!(freed, Err(StoreError::Gone(_))) && self.own.register.may_free() {
            freed = freed.and(self.free_silent(asked_at, until).await);
        }
        let is_told = std::mem::replace(&mut self.others().is_told, freed.is_err());
        if let Err(error) = freed
            && !is_told
        {
            let error = causes(&error);
            tracing::warn!(
                error,
                "some lanes that nobody carries cannot be freed; it is tried again"
            );
        }
    }

    /// Gives leases back that are lost, those that had begun with their marks.
    async fn give_back_lost(
        &self,
        mut lost: Vec<GiveBack>,
        until: Duration,
    ) -> Result<(), StoreError> {
        lost.sort_unstable_by_key(|it| it.lane.0);
        let mut pass = self.others().lost;
        let mut done = Ok(());
        while self.own.clock.boot() < until {
            let rest = lost.iter().filter(|it| it.lane.0 > pass.after);
            let some: Vec<GiveBack> = rest.take(pass.at_once).copied().collect();
            if some.is_empty() {
                pass.after = i64::MIN;
                break;
            }
            let page = each(&some, |it| Lost {
                lane: it.lane.0,
                epoch: it.epoch,
                holder: self.own.holder,
                call: it.call,
                begun: it.begun,
            });
            let freed = self
                .write(Path::Upkeep, |tables| tables.recover(&page).boxed())
                .await;
            pass.passed(&page, freed.is_ok());
            self.others().lost = pass;
            match freed {
                Ok(freed) => {
                    // One whose lane is locked stays lost, with what is known of it.
                    let mut over = some;
                    over.retain(|it| freed.over.contains(&it.lane.0));
                    self.own.register.given_back(&over);
                }
                Err(StoreError::Gone(why)) => return Err(StoreError::Gone(why)),
                Err(error) => done = Err(error),
            }
        }
        self.others().lost = pass;
        done
    }

    /// Frees the leases of replicas that give no sign of life.
    async fn free_silent(&self, asked_at: Duration, until: Duration) -> Result<(), StoreError> {
        let asked_rowless = self.own.clock.boot();
        let rowless = self
            .write(Path::Upkeep, |tables| tables.rowless().boxed())
            .await?;
        let seen_at = self.own.clock.boot();
        let (silent, mut pass) = {
            let mut others = self.others();
            others
                .rowless
                .note(&each(&rowless, |it| (*it, ROWLESS)), seen_at);
            let mut silent = others.signs.silent(asked_at);
            silent.extend(others.rowless.silent(asked_rowless));
            (silent, others.silent)
        };
        if silent.is_empty() {
            return Ok(());
        }
        let mut done = Ok(());
        while self.own.clock.boot() < until {
            let freed = self.free_page(&silent, &mut pass).await;
            self.others().silent = pass;
            match freed {
                Ok(None) => break,
                Ok(Some(freed)) if freed.lanes > 0 => tracing::warn!(
                    lanes = freed.lanes,
                    deliveries = freed.deliveries,
                    "a replica gives no sign of life; its lanes were freed"
                ),
                Ok(Some(_)) => {}
                Err(StoreError::Gone(why)) => return Err(StoreError::Gone(why)),
                Err(error) => done = Err(error),
            }
        }
        done
    }

    /// Frees the next page of leases of the silent; none when there is no more.
    async fn free_page(
        &self,
        silent: &[(i64, i64)],
        pass: &mut Pass,
    ) -> Result<Option<Freed>, StoreError> {
        let Pass { after, at_once } = *pass;
        let at_once = i64::try_from(at_once).unwrap_or(STEP);
        let page = self
            .write(Path::Upkeep, |tables| {
                tables.leases_of(silent, after, at_once).boxed()
            })
            .await?;
        if page.is_empty() {
            pass.after = i64::MIN;
            return Ok(None);
        }
        let page = &page;
        let freed = self
            .write(Path::Upkeep, |tables| {
                tables.recover_silent(page, silent).boxed()
            })
            .await;
        pass.passed(page, freed.is_ok());
        freed.map(Some)
    }

    /// Frees the leases of replicas that have left, which nobody has to judge: how many deliveries
    /// were under way. What is locked is left to the beats.
    pub(super) async fn free_left(&self) -> Result<u64, StoreError> {
        let left = self
            .write(Path::Upkeep, |tables| tables.left().boxed())
            .await?;
        let left = each(&left, |it| (*it, 0));
        let (mut all, mut pass, mut has_more) = (0, Pass::default(), false);
        loop {
            match self.free_page(&left, &mut pass).await {
                Ok(Some(freed)) => {
                    has_more |= freed.unfinished > 0;
                    all += freed.deliveries;
                }
                Ok(None) if !std::mem::take(&mut has_more) => return Ok(all),
                Ok(None) => {}
                Err(StoreError::Gone(why)) => return Err(StoreError::Gone(why)),
                Err(error) => {
                    let error = causes(&error);
                    tracing::warn!(
                        error,
                        "some lanes of a replica that left cannot be freed yet"
                    );
                }
            }
        }
    }

    /// Gives back the leases of which nothing had begun, before this replica leaves.
    pub(super) async fn give_back_unbegun(
        &self,
        mut lost: Vec<GiveBack>,
    ) -> Result<(), StoreError> {
        lost.retain(|it| !it.begun);
        self.others().lost = Pass::default();
        self.give_back_lost(lost, Duration::MAX).await
    }
}

/// In place of a sign, of a holder that has no row.
const ROWLESS: i64 = -1;

impl Tables<'_, '_> {
    /// The holders of leases that have no row.
    async fn rowless(&self) -> Result<Vec<i64>, Error> {
        self.numbers(
            "SELECT DISTINCT holder FROM lease WHERE holder <> $1
               AND NOT EXISTS (SELECT 1 FROM holder AS its WHERE its.id = lease.holder)",
            &[&self.shared.own.holder],
        )
        .await
    }

    /// Those that have left.
    async fn left(&self) -> Result<Vec<i64>, Error> {
        self.numbers("SELECT id FROM holder WHERE beat_at = 0", &[])
            .await
    }

    /// Some leases of the silent, behind the lane `after`.
    async fn leases_of(
        &self,
        silent: &[(i64, i64)],
        after: i64,
        limit: i64,
    ) -> Result<Vec<Lost>, Error> {
        let rows = self
            .query(
                "SELECT lane, epoch, holder, call FROM lease
                 WHERE lane > $1 AND holder = ANY($2) ORDER BY lane LIMIT $3",
                &[&after, &each(silent, |it| it.0), &limit],
            )
            .await?;
        let leases = rows.iter().map(|row| {
            Ok(Lost {
                lane: row.try_get(0)?,
                epoch: row.try_get(1)?,
                holder: row.try_get(2)?,
                call: row.try_get(3)?,
                begun: true,
            })
        });
        leases.collect()
    }

    /// Frees leases of holders whose signs are still those that were seen. The rows of these holders
    /// are locked: one that comes back gives its sign before, and keeps all, or after, and finds what
    /// it lost.
    async fn recover_silent(&self, page: &[Lost], silent: &[(i64, i64)]) -> Result<Freed, Error> {
        let still = self
            .numbers(
                "SELECT id FROM holder JOIN unnest($1::bigint[], $2::bigint[]) AS it (of, seen)
                   ON id = it.of AND beat_at = it.seen FOR UPDATE OF holder SKIP LOCKED",
                &[&each(silent, |it| it.0), &each(silent, |it| it.1)],
            )
            .await?;
        let rowless = self.rowless().await?;
        let is_rowless =
            |holder: &i64| rowless.contains(holder) && silent.contains(&(*holder, ROWLESS));
        let mut page = page.to_vec();
        page.retain(|it| still.contains(&it.holder) || is_rowless(&it.holder));
        self.recover(&page).await
    }
}
