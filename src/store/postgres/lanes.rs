//! Lanes as a settlement locks them, and the end of their leases.
//!
//! Whoever locks several lanes and would wait for one does it in the order (kind, number, instance,
//! route, sink), in one statement. Two who lock in other orders would wait for each other.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_postgres::{Error, Row};

use super::recover::End;
use super::tables::{Tables, each, earliest_release, raised_bounds};
use crate::store::lanes::Ended;
use crate::store::rules::settle::not_before;
use crate::store::rules::step::KIND_OWN;

/// A lane that is locked.
pub(super) struct LaneRow {
    pub(super) id: i64,
    pub(super) kind: i64,
    pub(super) number: i64,
    pub(super) instance: Vec<u8>,
    pub(super) route: i64,
    pub(super) sink: i64,
    /// No row in turn has a smaller sort key.
    pub(super) first_key: Vec<u8>,
}

/// What names a lane: kind, number, instance, route, sink.
pub(super) type Place = (i64, i64, Vec<u8>, i64, i64);

impl LaneRow {
    /// Reads the columns `id, kind, number, instance, route, sink, first_key`.
    pub(super) fn of(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get(0)?,
            kind: row.try_get(1)?,
            number: row.try_get(2)?,
            instance: row.try_get(3)?,
            route: row.try_get(4)?,
            sink: row.try_get(5)?,
            first_key: row.try_get(6)?,
        })
    }

    pub(super) fn place(&self) -> Place {
        let Self {
            kind,
            number,
            route,
            sink,
            ..
        } = *self;
        (kind, number, self.instance.clone(), route, sink)
    }
}

/// A lane that was fed, locked.
#[derive(Clone, Copy)]
pub(super) struct Fed {
    pub(super) id: i64,
    pub(super) fed: i64,
}

/// The lanes that take over from others: by the lane and the other sink.
#[derive(Default)]
pub(super) struct Targets {
    lanes: HashMap<(i64, i64), Fed>,
    own: Vec<i64>,
}

impl Targets {
    pub(super) fn get(&self, lane: i64, sink: i64) -> Option<Fed> {
        self.lanes.get(&(lane, sink)).copied()
    }

    pub(super) fn insert(&mut self, lane: &LaneRow, sink: i64, target: Fed) {
        self.lanes.insert((lane.id, sink), target);
        if lane.kind == KIND_OWN {
            self.own.push(target.id);
        }
    }

    /// Those that go when nothing waits in them.
    pub(super) fn own(&self) -> impl Iterator<Item = i64> {
        self.own.iter().copied()
    }
}

impl Tables<'_, '_> {
    /// Locks lanes, by number.
    pub(super) async fn lock_lanes(&self, ids: &[i64]) -> Result<HashMap<i64, LaneRow>, Error> {
        let rows = self
            .query(
                "SELECT id, kind, number, instance, route, sink, first_key FROM lane
                 WHERE id = ANY($1) ORDER BY kind, number, instance, route, sink FOR UPDATE",
                &[&ids],
            )
            .await?;
        by_id(&rows)
    }

    /// Locks lanes, and feeds the lanes of other sinks that take over from them: (lane, sink).
    pub(super) async fn lock_with_targets(
        &self,
        ids: &[i64],
        to: &HashSet<(i64, i64)>,
    ) -> Result<(HashMap<i64, LaneRow>, Targets), Error> {
        // What names a lane never changes, so it can be read before the lock.
        let rows = self
            .query(
                "SELECT id, kind, number, instance, route, sink, first_key FROM lane
                 WHERE id = ANY($1)",
                &[&ids],
            )
            .await?;
        let mut lanes = by_id(&rows)?;
        let mut places: BTreeMap<Place, i64> = lanes.values().map(|it| (it.place(), 0)).collect();
        for (lane, sink) in to {
            if let Some(lane) = lanes.get(lane) {
                let (kind, number, instance, route, _) = lane.place();
                places.insert((kind, number, instance, route, *sink), 1);
            }
        }
        let fed = self.feed_lanes(&places).await?;
        // One that was made anew is another; it goes at the end, since nothing waits in it.
        let mut targets = Targets::default();
        lanes.retain(|id, lane| match fed.get(&lane.place()) {
            Some(made) if made.id != *id => {
                targets.own.push(made.id);
                false
            }
            _ => true,
        });
        for (lane, sink) in to {
            let Some(lane) = lanes.get(lane) else {
                continue;
            };
            let (kind, number, instance, route, _) = lane.place();
            if let Some(target) = fed.get(&(kind, number, instance, route, *sink)) {
                targets.insert(lane, *sink, *target);
            }
        }
        Ok((lanes, targets))
    }

    /// Locks lanes, makes those that are missing, and counts what is put into each.
    pub(super) async fn feed_lanes(
        &self,
        places: &BTreeMap<Place, i64>,
    ) -> Result<HashMap<Place, Fed>, Error> {
        let keys: Vec<&Place> = places.keys().collect();
        let rows = self
            .query(
                "INSERT INTO lane (kind, number, instance, route, sink, fed)
                 SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[],
                   $5::bigint[], $6::bigint[])
                 ON CONFLICT (kind, number, instance, route, sink)
                   DO UPDATE SET fed = lane.fed + excluded.fed
                 RETURNING id, kind, number, instance, route, sink, first_key, fed",
                &[
                    &each(&keys, |it| it.0),
                    &each(&keys, |it| it.1),
                    &each(&keys, |it| it.2.as_slice()),
                    &each(&keys, |it| it.3),
                    &each(&keys, |it| it.4),
                    &places.values().copied().collect::<Vec<_>>(),
                ],
            )
            .await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let lane = LaneRow::of(row)?;
            let fed = Fed {
                id: lane.id,
                fed: row.try_get(7)?,
            };
            found.insert(lane.place(), fed);
        }
        Ok(found)
    }

    /// Ends the leases of a round that are ours; raises the watermarks of the other lanes, and makes
    /// them due where they are not leased.
    pub(super) async fn end_leases(
        &self,
        round: &[&Ended],
        lanes: &HashMap<i64, LaneRow>,
        ours: &HashSet<i64>,
        arrived: &BTreeMap<i64, &[u8]>,
    ) -> Result<(), Error> {
        let (mut ends, mut others) = (Vec::new(), Vec::new());
        for it in round {
            let lane = it.lease.lane.0;
            if ours.contains(&lane) && lanes.contains_key(&lane) {
                ends.push(End {
                    lane,
                    not_before: not_before(it),
                    arrived: arrived.get(&lane).map(|key| key.to_vec()),
                });
            } else if lanes.contains_key(&lane) {
                others.push(lane);
            }
        }
        self.give_back(&ends).await?;
        let raised: Vec<(i64, &[u8])> = others
            .iter()
            .filter_map(|lane| Some((*lane, *arrived.get(lane)?)))
            .collect();
        if !raised.is_empty() {
            self.execute(
                "UPDATE lane SET high = GREATEST(lane.high, it.high)
                 FROM unnest($1::bigint[], $2::bytea[]) AS it (lane, high) WHERE lane.id = it.lane",
                &[&each(&raised, |it| it.0), &each(&raised, |it| it.1)],
            )
            .await?;
        }
        self.make_due(&others).await
    }

    /// Ends leases of lanes that are locked. When each lane is due is computed here, from the rows
    /// that wait: a value computed elsewhere could lose an append of meanwhile.
    pub(super) async fn give_back(&self, ends: &[End]) -> Result<(), Error> {
        if ends.is_empty() {
            return Ok(());
        }
        self.execute(
            concat!(
                "WITH ended AS (DELETE FROM lease WHERE lane = ANY($1))
                 UPDATE lane SET leased = false, epoch = epoch + 1,
                   not_before = GREATEST(lane.not_before, it.not_before),
                   high = GREATEST(lane.high, it.high), ",
                raised_bounds!(),
                ", due_at = ",
                earliest_release!(
                    "GREATEST(lane.not_before, it.not_before)",
                    "lane.first_release",
                    "$4"
                ),
                " FROM unnest($1::bigint[], $2::bigint[], $3::bytea[]) AS it (lane, not_before, high)
                 WHERE lane.id = it.lane"
            ),
            &[
                &each(ends, |it| it.lane),
                &each(ends, |it| it.not_before),
                &each(ends, |it| it.arrived.as_deref()),
                &self.now,
            ],
        )
        .await?;
        Ok(())
    }

    /// Drops lanes of one event that nothing waits in any more.
    pub(super) async fn drop_empty(&self, lanes: &[i64]) -> Result<(), Error> {
        if !lanes.is_empty() {
            self.execute(
                "DELETE FROM lane WHERE id = ANY($1) AND kind = $2 AND due_at IS NULL",
                &[&lanes, &KIND_OWN],
            )
            .await?;
        }
        Ok(())
    }
}

fn by_id(rows: &[Row]) -> Result<HashMap<i64, LaneRow>, Error> {
    let lanes = rows.iter().map(|row| {
        let lane = LaneRow::of(row)?;
        Ok((lane.id, lane))
    });
    lanes.collect()
}
