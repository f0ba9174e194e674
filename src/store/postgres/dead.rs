//! Dead letters, as operators act on them: resent, or let go.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use tokio_postgres::{Error, Row};

use super::lanes::Place;
use super::outcome::Line;
use super::read::dead_condition;
use super::tables::{Tables, each};
use crate::delivery::{Outcome, SortKey};
use crate::store::rules::columns::{STEP, nanos};
use crate::store::rules::dead::Progress;
use crate::store::{DeadSelection, Ending, EventId, Settled};

struct Grave {
    id: i64,
    event: i64,
    bytes: i64,
    place: Place,
    sort_key: Vec<u8>,
}

impl Grave {
    fn of(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.try_get(0)?,
            event: row.try_get(1)?,
            bytes: row.try_get(2)?,
            place: (
                row.try_get(3)?,
                row.try_get(4)?,
                row.try_get(5)?,
                row.try_get(6)?,
                row.try_get(7)?,
            ),
            sort_key: row.try_get(8)?,
        })
    }

    const fn route(&self) -> i64 {
        self.place.3
    }

    const fn sink(&self) -> i64 {
        self.place.4
    }
}

impl Tables<'_, '_> {
    /// Puts some dead letters back to wait, for their own sink or for `to`. One that waits for that
    /// sink already stays.
    pub(super) async fn retry_dead(
        &mut self,
        selection: &DeadSelection,
        to: Option<&str>,
        after: i64,
        (now, wall): (Timestamp, Timestamp),
    ) -> Result<Progress, Error> {
        let to = match to {
            Some(name) => {
                self.put_names(&[name]).await?;
                Some(self.shared.names.number(name))
            }
            None => None,
        };
        let graves = self.graves(selection, after).await?;
        let Some(upto) = graves.last().map(|grave| grave.id) else {
            return Ok(Progress::OVER);
        };
        let place = |grave: &Grave| {
            let (kind, number, instance, route, sink) = grave.place.clone();
            (kind, number, instance, route, to.unwrap_or(sink))
        };
        let mut places: BTreeMap<Place, i64> = BTreeMap::new();
        for grave in &graves {
            *places.entry(place(grave)).or_default() += 1;
        }
        let fed = self.feed_lanes(&places).await?;
        let lanes = each(&graves, |grave| fed.get(&place(grave)).copied());
        let rows = self
            .query(
                "INSERT INTO waiting (lane, sort_key, event, bytes, fed, release_at, alone, resent)
                 SELECT lane, sort_key, event, bytes, fed, $6, true, true
                 FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[])
                   AS it (lane, sort_key, event, bytes, fed)
                 ON CONFLICT DO NOTHING RETURNING lane, sort_key",
                &[
                    &each(&lanes, |it| it.map(|it| it.id)),
                    &each(&graves, |it| it.sort_key.as_slice()),
                    &each(&graves, |it| it.event),
                    &each(&graves, |it| it.bytes),
                    &each(&lanes, |it| it.map(|it| it.fed)),
                    &nanos(now),
                ],
            )
            .await?;
        let put = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let mut put: HashSet<(i64, &[u8])> = put.collect::<Result<_, Error>>()?;
        let mut risen = Vec::new();
        for (grave, lane) in graves.iter().zip(&lanes) {
            let Some(lane) = lane else { continue };
            if !put.remove(&(lane.id, grave.sort_key.as_slice())) {
                continue;
            }
            risen.push(grave.id);
            let sink = to.unwrap_or(grave.sink());
            self.book(grave.sink(), wall).dead -= 1;
            if sink != grave.sink() {
                self.book(grave.sink(), wall).moved_away(1);
                self.book(sink, wall).moved_here(1);
            }
        }
        self.unbury(&risen).await?;
        let touched: Vec<i64> = fed.values().map(|it| it.id).collect();
        self.make_due(&touched).await?;
        self.drop_empty(&touched).await?;
        self.write_tally().await?;
        Ok(Progress {
            count: risen.len() as u64,
            upto: Some(upto),
        })
    }

    /// Lets some dead letters go.
    pub(super) async fn drop_dead(
        &mut self,
        selection: &DeadSelection,
        after: i64,
        now: Timestamp,
    ) -> Result<Progress, Error> {
        let graves = self.graves(selection, after).await?;
        let Some(upto) = graves.last().map(|grave| grave.id) else {
            return Ok(Progress::OVER);
        };
        let key = SortKey::from_bytes(Vec::new());
        let settled = Settled::new(EventId(0), key, Ending::Dead, now);
        let lines = each(&graves, |grave| Line {
            event: grave.event,
            route: grave.route(),
            sink: grave.sink(),
            outcome: Outcome::Dropped,
            settled: &settled,
        });
        self.write_lines(&lines).await?;
        self.unbury(&each(&graves, |grave| grave.id)).await?;
        for grave in &graves {
            let book = self.book(grave.sink(), now);
            book.dead -= 1;
            book.dropped += 1;
        }
        self.write_tally().await?;
        Ok(Progress {
            count: graves.len() as u64,
            upto: Some(upto),
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
        rows.iter().map(Grave::of).collect()
    }

    async fn unbury(&self, ids: &[i64]) -> Result<(), Error> {
        self.execute("DELETE FROM dead WHERE id = ANY($1)", &[&ids])
            .await?;
        Ok(())
    }
}
