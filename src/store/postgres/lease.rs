//! Handing out the prefix of each due lane that may go, beside other replicas that do the same.
//!
//! A lane that somebody has locked is passed over, and found again at the next look. A cheap look
//! comes first, so that a replica with nothing to do asks one statement.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio_postgres::Error;

use super::shared::Shared;
use super::tables::{Path, Tables, each, earliest_release};
use super::waiting::Bounded;
use crate::delivery::SortKey;
use crate::store::StoreError;
use crate::store::leased::{RawLane, RawLeased};
use crate::store::rules::columns::{length, nanos, rows};
use crate::store::rules::lease::{Batch, Bounds, PASSED_OVER, Room, SPARE_LANES};
use crate::store::rules::step::KIND_DIGEST;
use crate::store::rules::time::latest_wait;

/// How many pages of lanes one transaction looks at. What it passed over stays passed over, and the
/// next transaction goes on.
const MOST_PAGES: usize = 16;

/// For how long one transaction looks. A digest costs some questions of its own, so that a page of
/// those that yield nothing could take longer than a transaction may, and be looked at for ever.
const LOOKS_FOR: Duration = Duration::from_millis(500);

/// A take, and who asks for it.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) sink: i64,
    pub(super) call: i64,
    pub(super) now: i64,
    pub(super) limit: usize,
    /// Whether leases of others that have run out may be freed.
    may_free: bool,
    /// No lane of the sink is due before this.
    low: i64,
}

/// From where on a sink's due lanes are looked for.
///
/// Each lease and each end of one leaves an entry in the index over `due_at`, which stays there for
/// as long as anybody's snapshot is older. Nothing is made due before the time of whoever makes it,
/// so no lane can be due much earlier than the earliest that was seen; the margin is longer than a
/// transaction lives and than two replicas' clocks may differ.
#[derive(Clone, Copy)]
pub(super) struct Low {
    due_at: i64,
    /// Boot time of the last look without a bound.
    looked_at: Duration,
    /// How many lanes were leased since: so many entries are walked over by a look without one.
    leased: usize,
}

const MARGIN: i64 = 10_000_000_000;
const FULL_LOOK_EVERY: Duration = Duration::from_mins(1);
const FEW: usize = 256;

/// The findings of a look at a sink before anything is taken.
pub(super) struct Look {
    backoff_until: Option<i64>,
    failing_since: Option<i64>,
    next_due: Option<i64>,
}

impl Look {
    /// The answer where nothing is to be taken.
    fn answer(&self, asked: Asked, latest: i64) -> Option<RawLeased> {
        // A moment further ahead than any wait is a fault, and holds nothing up.
        let is_over = |until: &i64| *until > asked.now && *until <= latest;
        let backs_off = self.backoff_until.filter(is_over);
        let is_due = self.next_due.is_some_and(|due| due <= asked.now);
        (backs_off.is_some() || !is_due).then(|| RawLeased {
            lanes: Vec::new(),
            next_due: backs_off.or(self.next_due),
            failing_since: self.failing_since,
        })
    }
}

impl Shared {
    /// Leases due lanes of one sink, at most `limit` deliveries in all, for the take `call`.
    pub(super) async fn lease(
        &self,
        sink: i64,
        call: i64,
        now: Timestamp,
        limit: usize,
    ) -> Result<RawLeased, StoreError> {
        let now = nanos(now);
        let asked = Asked {
            sink,
            call,
            now,
            limit,
            may_free: self.own.register.may_free(),
            low: self.low(sink),
        };
        let look = self.read(|tables| tables.look(asked).boxed()).await?;
        self.learn_low(asked, look.next_due);
        if let Some(answer) = look.answer(asked, latest_wait(now, self.own.terms.longest_wait)) {
            return Ok(answer);
        }
        let mut leased = self
            .write(Path::Deliver, |tables| tables.lease(asked).boxed())
            .await?;
        if let Some(low) = self.lows().get_mut(&sink) {
            low.leased = low.leased.saturating_add(leased.lanes.len());
        }
        leased.failing_since = look.failing_since;
        Ok(leased)
    }

    fn low(&self, sink: i64) -> i64 {
        let boot = self.own.clock.boot();
        let lows = self.lows();
        let low = lows.get(&sink).filter(|low| {
            low.leased >= FEW && boot.saturating_sub(low.looked_at) < FULL_LOOK_EVERY
        });
        low.map_or(i64::MIN, |low| low.due_at)
    }

    fn learn_low(&self, asked: Asked, next_due: Option<i64>) {
        let seen = next_due.map_or(asked.now, |due| due.min(asked.now));
        let due_at = seen.saturating_sub(MARGIN);
        let boot = self.own.clock.boot();
        let mut lows = self.lows();
        let low = lows.entry(asked.sink).or_insert(Low {
            due_at,
            looked_at: boot,
            leased: 0,
        });
        low.due_at = due_at;
        // A look without a bound counts as a full one once the last of them is old: before that, few
        // lanes were leased, and it saw no more than the bound would have shown.
        if asked.low == i64::MIN && boot.saturating_sub(low.looked_at) >= FULL_LOOK_EVERY {
            (low.looked_at, low.leased) = (boot, 0);
        }
    }
}

impl Tables<'_, '_> {
    /// The standing of a sink. While no leases may be freed, those that have run out are not due.
    async fn look(&self, asked: Asked) -> Result<Look, Error> {
        let row = self
            .query_one(
                "SELECT (SELECT min(due_at) FROM lane
                     WHERE sink = $1 AND due_at >= $2 AND (NOT leased OR $3)),
                   backoff_until, failing_since
                 FROM (SELECT $1 AS name) AS it LEFT JOIN sink USING (name)",
                &[&asked.sink, &asked.low, &asked.may_free],
            )
            .await?;
        Ok(Look {
            next_due: row.try_get(0)?,
            backoff_until: row.try_get(1)?,
            failing_since: row.try_get(2)?,
        })
    }

    async fn lease(&mut self, asked: Asked) -> Result<RawLeased, Error> {
        let mut room = Room::new(asked.limit);
        let mut leased = RawLeased::default();
        let (mut pages, until) = (0, self.shared.own.clock.boot() + LOOKS_FOR);
        let is_late = || self.shared.own.clock.boot() >= until;
        // Each pass gives every lane that it sees a later due time, so the next sees others: a lane
        // that yields nothing hides none. A lane that is freed on the way comes again in the next.
        while !room.is_full() && pages < MOST_PAGES && (pages == 0 || !is_late()) {
            let page = self.due_lanes(asked).await?;
            if page.is_empty() {
                break;
            }
            pages += 1;
            let (expired, due): (Vec<_>, Vec<_>) = page.into_iter().partition(|it| it.due.leased);
            // Their holders did not end them in time; whatever they began may have arrived.
            let expired: BTreeMap<i64, bool> =
                expired.iter().map(|it| (it.due.lane, true)).collect();
            self.free(&expired).await?;
            self.take(due, asked, until, (&mut room, &mut leased))
                .await?;
        }
        leased.next_due = self.look(asked).await?.next_due;
        // Lanes that somebody else has locked are due still, and to be looked at a little later.
        let is_passed_over = pages < MOST_PAGES && !room.is_full() && !is_late();
        if is_passed_over && leased.next_due.is_some_and(|due| due <= asked.now) {
            leased.next_due = Some(asked.now.saturating_add(PASSED_OVER));
        }
        Ok(leased)
    }

    /// The next due lanes, locked.
    async fn due_lanes(&self, asked: Asked) -> Result<Vec<Bounded>, Error> {
        let page = asked.limit.saturating_add(SPARE_LANES);
        let found = self
            .query(
                "SELECT id, kind, number, route, epoch, high, not_before, fed, leased, first_key,
                   first_release
                 FROM lane WHERE sink = $1 AND due_at >= $2 AND due_at <= $3 AND (NOT leased OR $4)
                 ORDER BY due_at, id LIMIT $5 FOR UPDATE SKIP LOCKED",
                &[
                    &asked.sink,
                    &asked.low,
                    &asked.now,
                    &asked.may_free,
                    &rows(page),
                ],
            )
            .await?;
        found.iter().map(Bounded::of).collect()
    }

    /// Leases the lanes of one page of which anything may go, as far as there is room. Digests are
    /// looked at until the boot time `until`; the rest of them stay due.
    async fn take(
        &mut self,
        page: Vec<Bounded>,
        asked: Asked,
        until: Duration,
        (room, leased): (&mut Room, &mut RawLeased),
    ) -> Result<(), Error> {
        let mut found = self.prefixes(&page, asked.now, room.deliveries).await?;
        let (mut passed_over, mut plain, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        let mut has_looked = false;
        for due in page {
            if room.is_full() {
                break;
            }
            if due.due.kind == KIND_DIGEST {
                // One at least, so that every take comes further.
                if std::mem::replace(&mut has_looked, true) && self.shared.own.clock.boot() >= until
                {
                    continue;
                }
                match self.batch(&due, asked, room).await? {
                    Some(batch) => taken.push((due, batch)),
                    None => passed_over.push(due.due.lane),
                }
                continue;
            }
            let Some(found) = found.remove(&due.due.lane) else {
                passed_over.push(due.due.lane);
                continue;
            };
            let mut rows = Vec::with_capacity(found.len());
            for (row, bytes) in found {
                if room.is_full() {
                    break;
                }
                room.take(bytes);
                rows.push(row);
            }
            plain.push((due, rows));
        }
        for (due, rows) in self.with_events(plain, asked.sink).await? {
            taken.push((due, Batch::plain(rows)));
        }
        self.hold(&taken, asked).await?;
        self.pass_over(&passed_over, asked).await?;
        let sink = self.text(asked.sink).await?;
        for (due, batch) in taken {
            leased.lanes.push(RawLane {
                route: self.text(due.due.route).await?.as_ref().to_owned(),
                sink: sink.as_ref().to_owned(),
                sink_no: asked.sink,
                due: due.due,
                batch,
            });
        }
        Ok(())
    }

    /// Makes lanes ours until they are settled. A lease's end is the lane's due time.
    async fn hold(&self, taken: &[(Bounded, Batch)], asked: Asked) -> Result<(), Error> {
        let bounds: Vec<_> = taken
            .iter()
            .filter_map(|(due, batch)| Some((due, Bounds::of(&batch.taken)?)))
            .collect();
        if bounds.is_empty() {
            return Ok(());
        }
        let own = &self.shared.own;
        let lanes = each(&bounds, |(it, _)| it.due.lane);
        self.execute(
            "INSERT INTO lease (lane, epoch, holder, call, upto, upto_fed, alone_upto)
             SELECT lane, epoch + 1, $1, $2, upto, fed, alone_upto
             FROM unnest($3::bigint[], $4::bigint[], $5::bytea[], $6::bigint[], $7::bigint[])
               AS it (lane, epoch, upto, fed, alone_upto)
             ON CONFLICT (lane) DO UPDATE SET epoch = excluded.epoch, holder = excluded.holder,
               call = excluded.call, upto = excluded.upto, upto_fed = excluded.upto_fed,
               alone_upto = excluded.alone_upto",
            &[
                &own.holder,
                &asked.call,
                &lanes,
                &each(&bounds, |(it, _)| it.due.epoch),
                &each(&bounds, |(_, to)| to.upto.as_ref().map(SortKey::as_bytes)),
                &each(&bounds, |(it, _)| it.due.fed),
                &each(&bounds, |(_, to)| to.alone_upto),
            ],
        )
        .await?;
        self.execute(
            "UPDATE lane SET leased = true, epoch = epoch + 1, due_at = $2 WHERE id = ANY($1)",
            &[
                &lanes,
                &asked.now.saturating_add(length(own.terms.lease_for)),
            ],
        )
        .await?;
        Ok(())
    }

    /// Gives lanes that had nothing to send a later due time, so that none can stand first for ever.
    /// Times further ahead than any wait are cut, with the bound that lies on them.
    async fn pass_over(&self, lanes: &[i64], asked: Asked) -> Result<(), Error> {
        if lanes.is_empty() {
            return Ok(());
        }
        let latest = latest_wait(asked.now, self.shared.own.terms.longest_wait);
        self.execute(
            "UPDATE waiting SET release_at = $2 WHERE lane = ANY($1)
             AND alone = ANY('{false,true}'::boolean[]) AND release_at > $2",
            &[&lanes, &latest],
        )
        .await?;
        self.execute(
            concat!(
                "UPDATE lane SET not_before = LEAST(not_before, $2),
                   first_release = LEAST(first_release, $2), due_at = ",
                earliest_release!(
                    "LEAST(lane.not_before, $2)",
                    "LEAST(lane.first_release, $2)",
                    "$3"
                ),
                " WHERE id = ANY($1)"
            ),
            &[&lanes, &latest, &asked.now.saturating_add(PASSED_OVER)],
        )
        .await?;
        Ok(())
    }

    /// Makes lanes due that are not leased when the rows in them say, in SQL: a value computed
    /// elsewhere could lose an append of meanwhile. The bounds of their scans are raised on the way.
    pub(super) async fn make_due(&self, lanes: &[i64]) -> Result<(), Error> {
        if lanes.is_empty() {
            return Ok(());
        }
        self.execute(
            concat!(
                "UPDATE lane SET ",
                super::tables::raised_bounds!(),
                ", due_at = ",
                earliest_release!("lane.not_before", "lane.first_release", "$2"),
                " WHERE id = ANY($1) AND NOT leased"
            ),
            &[&lanes, &self.now],
        )
        .await?;
        Ok(())
    }
}
