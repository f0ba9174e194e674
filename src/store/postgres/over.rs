//! Handing deliveries over to another sink: a constant number of statements, however many there are.

use std::collections::{BTreeMap, HashSet};

use tokio_postgres::{Error, Row};

use super::lanes::{Fed, LaneRow, Targets};
use super::outcome::{Line, One};
use super::tables::{Tables, each, earliest_release};
use crate::delivery::Outcome;
use crate::store::Settled;

/// A row that was taken out of its lane, and goes to the same lane of another sink.
pub(super) struct Over<'a> {
    pub(super) lane: &'a LaneRow,
    /// The other sink, and its lane.
    pub(super) to: (i64, Fed),
    pub(super) row: Waited,
    /// When, with which marks and answer.
    pub(super) settled: &'a Settled,
}

/// A row as it waited, with its marks.
pub(super) struct Waited {
    pub(super) event: i64,
    pub(super) key: Vec<u8>,
    pub(super) tries: i64,
    pub(super) bytes: i64,
    release_at: i64,
    alone: bool,
    resent: bool,
    instead_of: Option<i64>,
    possible_repeat: bool,
}

/// The columns of [`Waited`], in order, after the lane.
macro_rules! waited_columns {
    () => {
        "waiting.lane, event, waiting.sort_key, tries, bytes, release_at, alone, resent, instead_of,
         possible_repeat"
    };
}
pub(super) use waited_columns;

impl Waited {
    pub(super) fn of(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            event: row.try_get(1)?,
            key: row.try_get(2)?,
            tries: row.try_get(3)?,
            bytes: row.try_get(4)?,
            release_at: row.try_get(5)?,
            alone: row.try_get(6)?,
            resent: row.try_get(7)?,
            instead_of: row.try_get(8)?,
            possible_repeat: row.try_get(9)?,
        })
    }
}

impl Tables<'_, '_> {
    /// Hands over what is to be brought by others, and what the last of a batch stands for.
    pub(super) async fn divert(
        &mut self,
        diverted: &[(One<'_>, &str)],
        targets: &Targets,
    ) -> Result<(), Error> {
        if diverted.is_empty() {
            return Ok(());
        }
        let rows = self
            .query(
                concat!(
                    "DELETE FROM waiting USING unnest($1::bigint[], $2::bytea[], $3::bytea[],
                       $4::bigint[], $5::boolean[]) WITH ORDINALITY
                       AS it (lane, from_key, upto, fed, batch, place)
                     WHERE waiting.lane = it.lane AND waiting.sort_key >= it.from_key
                       AND waiting.sort_key <= it.upto AND waiting.fed <= it.fed
                       AND (waiting.sort_key = it.upto OR (it.batch AND NOT alone))
                     RETURNING ",
                    waited_columns!(),
                    ", it.place"
                ),
                &[
                    &each(diverted, |(one, _)| one.lane.id),
                    &each(diverted, |(one, _)| {
                        let key = one.settled.key.as_bytes();
                        let first = one.lane.first_key.as_slice();
                        if one.lease.batch { first.min(key) } else { key }
                    }),
                    &each(diverted, |(one, _)| one.settled.key.as_bytes()),
                    &each(diverted, |(one, _)| one.lease.fed),
                    &each(diverted, |(one, _)| one.lease.batch),
                ],
            )
            .await?;
        let mut over = Vec::with_capacity(rows.len());
        for row in &rows {
            let place = row.try_get::<_, i64>(10)?.saturating_sub(1);
            let found = usize::try_from(place).ok().and_then(|at| diverted.get(at));
            let Some((one, to)) = found else { continue };
            let sink = self.shared.names.number(to);
            let Some(target) = targets.get(one.lane.id, sink) else {
                continue;
            };
            let mut row = Waited::of(row)?;
            row.tries += 1;
            over.push(Over {
                lane: one.lane,
                to: (sink, target),
                row,
                settled: one.settled,
            });
        }
        self.hand_over(&over).await
    }

    /// Makes rows that were taken out wait for other sinks, in the same place of the same lane, with
    /// their marks. An event that such a sink was told of already is not told again. What may be a
    /// repeat there is held against the watermark of there.
    pub(super) async fn hand_over(&mut self, over: &[Over<'_>]) -> Result<(), Error> {
        if over.is_empty() {
            return Ok(());
        }
        let rows = self
            .query(
                "INSERT INTO waiting (lane, sort_key, event, bytes, fed, release_at, alone, resent,
                   instead_of, possible_repeat, high_then, tries)
                 SELECT lane, sort_key, event, bytes, fed, release_at, alone, resent, instead_of,
                   possible_repeat,
                   CASE WHEN possible_repeat THEN (SELECT high FROM lane WHERE id = it.lane) END,
                   tries
                 FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[],
                   $6::bigint[], $7::boolean[], $8::boolean[], $9::bigint[], $10::boolean[],
                   $11::bigint[], $12::bigint[]) AS it (lane, sort_key, event, bytes,
                   fed, release_at, alone, resent, instead_of, possible_repeat, tries, to_sink)
                 WHERE NOT EXISTS (SELECT 1 FROM outcome WHERE outcome.event = it.event
                   AND outcome.sink = it.to_sink AND result = 'sent')
                 ON CONFLICT DO NOTHING RETURNING lane, sort_key",
                &[
                    &each(over, |it| it.to.1.id),
                    &each(over, |it| it.row.key.as_slice()),
                    &each(over, |it| it.row.event),
                    &each(over, |it| it.row.bytes),
                    &each(over, |it| it.to.1.fed),
                    &each(over, |it| it.row.release_at),
                    &each(over, |it| it.row.alone),
                    &each(over, |it| it.row.resent),
                    &each(over, |it| it.row.instead_of.unwrap_or(it.lane.sink)),
                    // The try that ended so may itself have arrived.
                    &each(over, |it| {
                        it.row.possible_repeat || it.settled.marks.possible_repeat
                    }),
                    &each(over, |it| it.row.tries),
                    &each(over, |it| it.to.0),
                ],
            )
            .await?;
        let put = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let put: HashSet<(i64, &[u8])> = put.collect::<Result<_, Error>>()?;
        let mut lines = Vec::with_capacity(over.len());
        let mut bounds: BTreeMap<i64, Bounds<'_>> = BTreeMap::new();
        for it in over {
            let (to, target) = it.to;
            let is_put = put.contains(&(target.id, it.row.key.as_slice()));
            if is_put {
                self.book(it.lane.sink, it.settled.at).moved_away(1);
                self.book(to, it.settled.at).moved_here(1);
                bounds.entry(target.id).or_default().lower(&it.row);
            } else {
                self.book(it.lane.sink, it.settled.at).redundant += 1;
            }
            lines.push(Line {
                event: it.row.event,
                route: it.lane.route,
                sink: it.lane.sink,
                outcome: if is_put {
                    Outcome::Diverted
                } else {
                    Outcome::Redundant
                },
                settled: it.settled,
            });
        }
        self.lower_bounds(&bounds).await?;
        self.write_lines(&lines).await
    }

    /// Lowers the bounds of lanes to what was put into them, and makes them due in time.
    async fn lower_bounds(&self, bounds: &BTreeMap<i64, Bounds<'_>>) -> Result<(), Error> {
        if bounds.is_empty() {
            return Ok(());
        }
        let all: Vec<_> = bounds.values().collect();
        self.execute(
            concat!(
                "UPDATE lane SET first_key = LEAST(lane.first_key, it.first_key),
                   first_release = LEAST(lane.first_release, it.first_release),
                   due_at = CASE WHEN leased THEN due_at ELSE ",
                earliest_release!(
                    "lane.not_before",
                    "LEAST(lane.first_release, it.first_release)",
                    "$4"
                ),
                " END FROM unnest($1::bigint[], $2::bytea[], $3::bigint[])
                   AS it (lane, first_key, first_release) WHERE lane.id = it.lane"
            ),
            &[
                &bounds.keys().copied().collect::<Vec<_>>(),
                &each(&all, |it| it.key),
                &each(&all, |it| it.release),
                &self.now,
            ],
        )
        .await?;
        Ok(())
    }
}

/// The least of what was put into a lane in turn.
#[derive(Default)]
struct Bounds<'a> {
    key: Option<&'a [u8]>,
    release: Option<i64>,
}

impl<'a> Bounds<'a> {
    fn lower(&mut self, row: &'a Waited) {
        if !row.alone {
            let key = row.key.as_slice();
            self.key = Some(self.key.map_or(key, |least| least.min(key)));
            let release = self.release.unwrap_or(i64::MAX);
            self.release = Some(release.min(row.release_at));
        }
    }
}
