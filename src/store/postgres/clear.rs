//! Ending what waits for a sink and what nobody carries: buried by hand, or handed over to another.
//!
//! One step ends up to [`STEP`] rows in a constant number of statements, whether they lie in one lane
//! or in five hundred, so that a database far away makes it slower and not impossible.

use std::collections::HashMap;

use jiff::Timestamp;
use tokio_postgres::{Error, Row};

use super::lanes::{Fed, LaneRow, Targets};
use super::outcome::Line;
use super::over::{Over, Waited, waited_columns};
use super::tables::{Tables, each};
use crate::delivery::{Outcome, SortKey};
use crate::store::rules::columns::{STEP, nanos};
use crate::store::rules::dead::{BY_HAND, Progress};
use crate::store::rules::step::KIND_OWN;
use crate::store::{Ending, EventId, Settled};

impl Tables<'_, '_> {
    /// Ends some of the deliveries that wait for `sink` and that nobody carries: they are buried, or
    /// handed over to the sink `to`. `wall` is written to their history.
    ///
    /// Lanes are gone through by number. The next step begins behind those of which there was nothing
    /// to take, since somebody has locked them all, and otherwise where this one did.
    pub(super) async fn clear(
        &mut self,
        sink: i64,
        to: Option<&str>,
        after: i64,
        wall: Timestamp,
    ) -> Result<Progress, Error> {
        let to = match to {
            Some(name) => {
                self.put_names(&[name]).await?;
                Some(self.shared.names.number(name))
            }
            None => None,
        };
        let due = self
            .numbers(
                "SELECT id FROM lane WHERE sink = $1 AND due_at IS NOT NULL AND NOT leased
                   AND id > $2 ORDER BY id LIMIT $3",
                &[&sink, &after, &STEP],
            )
            .await?;
        let Some(last) = due.last() else {
            return Ok(Progress::OVER);
        };
        if to == Some(sink) {
            return Ok(Progress::OVER);
        }
        let (lanes, targets, made) = self.lock_free(&due, to).await?;
        let rows = self.take_some(&lanes).await?;
        if rows.is_empty() {
            // All of them are locked; or they are due and hold nothing, which ends here.
            let empty = each(&lanes, |it| it.id);
            self.make_due(&empty).await?;
            self.drop_empty(&made).await?;
            return Ok(Progress {
                count: 0,
                upto: Some(*last),
            });
        }
        let key = SortKey::from_bytes(Vec::new());
        let mut settled = Settled::new(EventId(0), key, Ending::Dead, wall);
        if to.is_none() {
            settled.answer = Some(BY_HAND.to_owned());
        }
        let by_id: HashMap<i64, &LaneRow> = lanes.iter().map(|lane| (lane.id, lane)).collect();
        let mut ended = Vec::with_capacity(rows.len());
        for row in &rows {
            if let Some(lane) = by_id.get(&row.try_get(0)?) {
                ended.push((*lane, Waited::of(row)?));
            }
        }
        let count = ended.len() as u64;
        match to {
            Some(to) => {
                let over = ended.into_iter().filter_map(|(lane, row)| {
                    Some(Over {
                        lane,
                        to: (to, targets.get(lane.id, to)?),
                        row,
                        settled: &settled,
                    })
                });
                self.hand_over(&over.collect::<Vec<_>>()).await?;
            }
            None => self.bury_all(&ended, &settled).await?,
        }
        self.make_due(&each(&lanes, |it| it.id)).await?;
        let own = lanes.iter().filter(|it| it.kind == KIND_OWN);
        let own = own.map(|it| it.id).chain(targets.own()).chain(made);
        self.drop_empty(&own.collect::<Vec<_>>()).await?;
        self.write_tally().await?;
        Ok(Progress {
            count,
            upto: Some(after),
        })
    }

    /// Locks those of some lanes that nobody carries or has locked; and those of the sink `to` that
    /// take over from them, which are fed. One whose successor is locked is passed over with it, so
    /// that nobody is waited for in any order. Last, the lanes that were made for it: nothing may come
    /// to wait in some of them.
    async fn lock_free(
        &self,
        due: &[i64],
        to: Option<i64>,
    ) -> Result<(Vec<LaneRow>, Targets, Vec<i64>), Error> {
        let mut targets = Targets::default();
        let Some(to) = to else {
            let rows = self
                .query(
                    "SELECT id, kind, number, instance, route, sink, first_key FROM lane
                     WHERE id = ANY($1) AND due_at IS NOT NULL AND NOT leased
                     ORDER BY kind, number, instance, route FOR UPDATE SKIP LOCKED",
                    &[&due],
                )
                .await?;
            let lanes: Result<_, Error> = rows.iter().map(LaneRow::of).collect();
            return Ok((lanes?, targets, Vec::new()));
        };
        let made = self
            .numbers(
                "INSERT INTO lane (kind, number, instance, route, sink)
                 SELECT kind, number, instance, route, $2 FROM lane WHERE id = ANY($1)
                 ORDER BY kind, number, instance, route ON CONFLICT DO NOTHING RETURNING id",
                &[&due, &to],
            )
            .await?;
        let rows = self
            .query(
                "SELECT source.id, source.kind, source.number, source.instance, source.route,
                   source.sink, source.first_key, target.id
                 FROM lane AS source JOIN lane AS target ON target.kind = source.kind
                   AND target.number = source.number AND target.instance = source.instance
                   AND target.route = source.route AND target.sink = $2
                 WHERE source.id = ANY($1) AND source.due_at IS NOT NULL AND NOT source.leased
                 ORDER BY source.kind, source.number, source.instance, source.route
                 FOR UPDATE SKIP LOCKED",
                &[&due, &to],
            )
            .await?;
        let fed = self
            .query(
                "UPDATE lane SET fed = fed + 1 WHERE id = ANY($1) RETURNING id, fed",
                &[&rows
                    .iter()
                    .map(|row| row.try_get(7))
                    .collect::<Result<Vec<i64>, _>>()?],
            )
            .await?;
        let count = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
        let fed: HashMap<i64, i64> = fed.iter().map(count).collect::<Result<_, Error>>()?;
        let mut lanes = Vec::with_capacity(rows.len());
        for row in &rows {
            let lane = LaneRow::of(row)?;
            let id: i64 = row.try_get(7)?;
            if let Some(fed) = fed.get(&id) {
                targets.insert(&lane, to, Fed { id, fed: *fed });
            }
            lanes.push(lane);
        }
        Ok((lanes, targets, made))
    }

    /// Takes the first rows of some lanes out, [`STEP`] of them in all. Those in turn begin at the
    /// lane's bound: the steps before this one have left what they took in the index.
    async fn take_some(&self, lanes: &[LaneRow]) -> Result<Vec<Row>, Error> {
        if lanes.is_empty() {
            return Ok(Vec::new());
        }
        self.query(
            concat!(
                "DELETE FROM waiting USING (
                   SELECT first.lane, first.sort_key
                   FROM unnest($1::bigint[], $2::bytea[]) AS it (lane, first_key)
                   CROSS JOIN LATERAL (
                     (SELECT lane, sort_key FROM waiting WHERE waiting.lane = it.lane
                        AND NOT alone AND sort_key >= it.first_key ORDER BY sort_key LIMIT $3)
                     UNION ALL
                     (SELECT lane, sort_key FROM waiting WHERE waiting.lane = it.lane AND alone
                      ORDER BY release_at LIMIT $3)) AS first
                   LIMIT $3) AS picked
                 WHERE waiting.lane = picked.lane AND waiting.sort_key = picked.sort_key
                 RETURNING ",
                waited_columns!()
            ),
            &[
                &each(lanes, |it| it.id),
                &each(lanes, |it| it.first_key.as_slice()),
                &STEP,
            ],
        )
        .await
    }

    /// Makes dead letters of rows that were taken out.
    async fn bury_all(
        &mut self,
        ended: &[(&LaneRow, Waited)],
        settled: &Settled,
    ) -> Result<(), Error> {
        self.execute(
            "INSERT INTO dead (event, kind, number, instance, route, sink, sort_key, died_at, tries,
               bytes, answer)
             SELECT event, kind, number, instance, route, sink, sort_key, $10, tries, bytes, $11
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[],
               $6::bigint[], $7::bytea[], $8::bigint[], $9::bigint[]) AS it (event, kind, number,
               instance, route, sink, sort_key, tries, bytes)",
            &[
                &each(ended, |(_, row)| row.event),
                &each(ended, |(lane, _)| lane.kind),
                &each(ended, |(lane, _)| lane.number),
                &each(ended, |(lane, _)| lane.instance.as_slice()),
                &each(ended, |(lane, _)| lane.route),
                &each(ended, |(lane, _)| lane.sink),
                &each(ended, |(_, row)| row.key.as_slice()),
                &each(ended, |(_, row)| row.tries),
                &each(ended, |(_, row)| row.bytes),
                &nanos(settled.at),
                &settled.answer.as_deref().map(str::as_bytes),
            ],
        )
        .await?;
        let lines = each(ended, |(lane, row)| Line {
            event: row.event,
            route: lane.route,
            sink: lane.sink,
            outcome: Outcome::Dead,
            settled,
        });
        self.write_lines(&lines).await?;
        for (lane, _) in ended {
            self.book(lane.sink, settled.at).count(&Outcome::Dead, 1);
        }
        Ok(())
    }
}
