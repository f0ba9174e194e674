//! Recording what became of leased lanes, and giving them back.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Error;

use super::append::each;
use super::tables::{Tables, earliest_release};
use crate::delivery::{Outcome, SortKey};
use crate::store::rows::{KIND_OWN, late_nanos, mark_bits, nanos, took_nanos};
use crate::store::{EventId, Settled, Settlement};

/// A lane that is being settled.
pub(super) struct LaneRow {
    pub(super) id: i64,
    epoch: i64,
    owner: Option<i64>,
    kind: i64,
    number: i64,
    instance: Vec<u8>,
    route: i64,
    pub(super) sink: i64,
    batch_upto: Option<Vec<u8>>,
}

/// One result that may be recorded, with its lane.
#[derive(Clone, Copy)]
struct Recorded<'a> {
    lane: &'a LaneRow,
    settled: &'a Settled,
}

/// What a delivery was when it was taken out.
struct Gone {
    tries: i64,
    bytes: i64,
}

impl Tables<'_> {
    /// Records the results of some lanes. Under an old epoch only what was sent is recorded: the rest
    /// is somebody else's by now.
    pub(super) async fn settle(
        &mut self,
        settlements: &[Settlement],
        names: &HashMap<String, i64>,
    ) -> Result<(), Error> {
        let ids = each(settlements, |it| it.lane.0);
        let lanes: HashMap<i64, LaneRow> = self
            .lock_lanes(&ids)
            .await?
            .into_iter()
            .map(|lane| (lane.id, lane))
            .collect();
        let replica = self.replica;
        let is_ours =
            |lane: &LaneRow, it: &Settlement| lane.owner == Some(replica) && lane.epoch == it.epoch;
        let mut results = Vec::new();
        for it in settlements {
            let Some(lane) = lanes.get(&it.lane.0) else {
                continue;
            };
            let ours = is_ours(lane, it);
            let each = it.results.iter();
            let recorded = each.filter(|it| ours || it.outcome == Outcome::Sent);
            results.extend(recorded.map(|settled| Recorded { lane, settled }));
        }
        let (diverted, rest): (Vec<_>, Vec<_>) = results
            .iter()
            .copied()
            .partition(|it| it.settled.divert_to.is_some());
        for it in diverted {
            self.hand_over(it.lane, it.settled, names).await?;
        }
        let mut arrived = self.record(&rest).await?;
        for it in settlements {
            let Some(lane) = lanes.get(&it.lane.0).filter(|lane| is_ours(lane, it)) else {
                continue;
            };
            for settled in &it.results {
                if lane.batch_upto.as_deref() == Some(settled.key.as_bytes()) {
                    self.record_batch(lane, settled, names).await?;
                }
            }
        }
        let (mut held, mut not_before, mut high) = (Vec::new(), Vec::new(), Vec::new());
        for it in settlements {
            let Some(lane) = lanes.get(&it.lane.0) else {
                continue;
            };
            let arrived = arrived.remove(&lane.id);
            if is_ours(lane, it) {
                // A lane that had its turn goes behind those that wait for theirs.
                let had_its_turn = it.results.iter().map(|settled| settled.at).max();
                held.push(lane.id);
                not_before.push(it.not_before.or(had_its_turn).map_or(0, nanos));
                high.push(arrived);
            } else if let Some(arrived) = arrived {
                self.execute(
                    "UPDATE lane SET high = GREATEST(high, $2) WHERE id = $1",
                    &[&lane.id, &arrived],
                )
                .await?;
            }
        }
        self.give_back(&held, &not_before, &high).await?;
        let own: Vec<i64> = held
            .iter()
            .filter(|id| lanes.get(id).is_some_and(|lane| lane.kind == KIND_OWN))
            .copied()
            .collect();
        self.drop_empty(&own).await?;
        self.write_tally().await
    }

    /// Locks lanes, in the order of their keys, as whoever appends does.
    pub(super) async fn lock_lanes(&self, ids: &[i64]) -> Result<Vec<LaneRow>, Error> {
        let rows = self
            .query(
                "SELECT id, epoch, owner, kind, number, instance, route, sink, batch_upto FROM lane
                 WHERE id = ANY($1) ORDER BY kind, number, instance, route, sink FOR UPDATE",
                &[&ids],
            )
            .await?;
        let lanes = rows.iter().map(|row| {
            Ok(LaneRow {
                id: row.try_get(0)?,
                epoch: row.try_get(1)?,
                owner: row.try_get(2)?,
                kind: row.try_get(3)?,
                number: row.try_get(4)?,
                instance: row.try_get(5)?,
                route: row.try_get(6)?,
                sink: row.try_get(7)?,
                batch_upto: row.try_get(8)?,
            })
        });
        lanes.collect()
    }

    /// Gives lanes back. When each is due is computed here, from what waits: a value computed
    /// elsewhere could lose what was appended meanwhile.
    pub(super) async fn give_back(
        &self,
        lanes: &[i64],
        not_before: &[i64],
        high: &[Option<Vec<u8>>],
    ) -> Result<(), Error> {
        if lanes.is_empty() {
            return Ok(());
        }
        self.execute(
            concat!(
                "UPDATE lane SET owner = NULL, leased_upto = NULL,
                   not_before = GREATEST(lane.not_before, it.not_before),
                   high = GREATEST(lane.high, it.high),
                   due_at = ",
                earliest_release!("GREATEST(lane.not_before, it.not_before)"),
                " FROM unnest($1::bigint[], $2::bigint[], $3::bytea[]) AS it (lane, not_before, high)
                 WHERE lane.id = it.lane"
            ),
            &[&lanes, &not_before, &high],
        )
        .await?;
        Ok(())
    }

    async fn drop_empty(&self, lanes: &[i64]) -> Result<(), Error> {
        if !lanes.is_empty() {
            self.execute(
                "DELETE FROM lane WHERE id = ANY($1)
                 AND NOT EXISTS (SELECT 1 FROM waiting WHERE waiting.lane = lane.id)",
                &[&lanes],
            )
            .await?;
        }
        Ok(())
    }

    /// Records results; for each lane the greatest key that arrived, or may have.
    async fn record(&mut self, results: &[Recorded<'_>]) -> Result<HashMap<i64, Vec<u8>>, Error> {
        if results.is_empty() {
            return Ok(HashMap::new());
        }
        let (waits, ends): (Vec<_>, Vec<_>) = results
            .iter()
            .copied()
            .partition(|it| it.settled.outcome.waits());
        let mut recorded = self.keep_waiting(&waits).await?;
        let gone = self.take_out(&ends).await?;
        let mut dead = Vec::new();
        let mut arrived: HashMap<i64, Vec<u8>> = HashMap::new();
        let mut written = Vec::new();
        let mut threads = Vec::new();
        for it in results {
            let key = (it.lane.id, it.settled.key.as_bytes());
            // It was recorded before; a result that is kept and written again changes nothing.
            let gone = gone.get(&key);
            if gone.is_none() && !recorded.remove(&key) {
                continue;
            }
            written.push(*it);
            let Settled {
                outcome, marks, at, ..
            } = it.settled;
            self.book(it.lane.sink, *at).count(outcome, 1);
            // What may have arrived counts: what comes below it may come too late.
            if *outcome == Outcome::Sent || (outcome.waits() && marks.possible_repeat) {
                let high = arrived.entry(it.lane.id).or_default();
                if high.as_slice() < it.settled.key.as_bytes() {
                    *high = it.settled.key.as_bytes().to_vec();
                }
            }
            if let (Outcome::Dead, Some(gone)) = (outcome, gone) {
                dead.push((*it, gone.tries, gone.bytes));
            }
            if let Some(message) = &it.settled.thread {
                threads.push((*it, message));
            }
        }
        self.insert_outcomes(&written).await?;
        for (it, tries, bytes) in dead {
            self.insert_dead(it, tries, bytes).await?;
        }
        for (it, message) in threads {
            self.keep_thread(it, message).await?;
        }
        Ok(arrived)
    }

    /// Takes deliveries out that wait no more.
    async fn take_out<'a>(
        &self,
        ends: &[Recorded<'a>],
    ) -> Result<HashMap<(i64, &'a [u8]), Gone>, Error> {
        let mut gone = HashMap::with_capacity(ends.len());
        if ends.is_empty() {
            return Ok(gone);
        }
        let rows = self
            .query(
                "DELETE FROM waiting USING unnest($1::bigint[], $2::bytea[]) AS it (lane, sort_key)
                 WHERE waiting.lane = it.lane AND waiting.sort_key = it.sort_key
                 RETURNING waiting.lane, waiting.sort_key, tries + 1, bytes",
                &[
                    &each(ends, |it| it.lane.id),
                    &each(ends, |it| it.settled.key.as_bytes()),
                ],
            )
            .await?;
        let taken: HashMap<(i64, &[u8]), Gone> = rows
            .iter()
            .map(|row| {
                let gone = Gone {
                    tries: row.try_get(2)?,
                    bytes: row.try_get(3)?,
                };
                Ok(((row.try_get(0)?, row.try_get(1)?), gone))
            })
            .collect::<Result<_, Error>>()?;
        let mut taken = taken;
        for it in ends {
            let key = (it.lane.id, it.settled.key.as_bytes());
            if let Some(was) = taken.remove(&key) {
                gone.insert(key, was);
            }
        }
        Ok(gone)
    }

    /// Notes a try of deliveries that wait on; which of them still do.
    async fn keep_waiting<'a>(
        &self,
        waits: &[Recorded<'a>],
    ) -> Result<HashSet<(i64, &'a [u8])>, Error> {
        if waits.is_empty() {
            return Ok(HashSet::new());
        }
        let parked_until = |it: &Recorded<'_>| {
            let again_at = it.settled.again_at.map(nanos);
            again_at.filter(|_| it.settled.outcome == Outcome::Parked)
        };
        let progress = |it: &Recorded<'a>| it.settled.progress.as_deref().map(str::as_bytes);
        let rows = self
            .query(
                "UPDATE waiting SET tries = tries + 1, failing_since = it.failing_since,
                   progress = coalesce(it.progress, waiting.progress),
                   high_then = CASE WHEN it.may_repeat AND NOT possible_repeat
                     THEN (SELECT high FROM lane WHERE lane.id = waiting.lane) ELSE high_then END,
                   possible_repeat = possible_repeat OR it.may_repeat,
                   alone = alone OR it.parked_until IS NOT NULL,
                   release_at = coalesce(it.parked_until, release_at)
                 FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[], $5::boolean[],
                   $6::bigint[]) AS it (lane, sort_key, failing_since, progress, may_repeat, parked_until)
                 WHERE waiting.lane = it.lane AND waiting.sort_key = it.sort_key
                 RETURNING waiting.lane, waiting.sort_key",
                &[
                    &each(waits, |it| it.lane.id),
                    &each(waits, |it| it.settled.key.as_bytes()),
                    &each(waits, |it| it.settled.failing_since.map(nanos)),
                    &each(waits, progress),
                    &each(waits, |it| it.settled.marks.possible_repeat),
                    &each(waits, parked_until),
                ],
            )
            .await?;
        let kept: HashSet<(i64, &[u8])> = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, Error>>()?;
        let keys = waits
            .iter()
            .map(|it| (it.lane.id, it.settled.key.as_bytes()));
        Ok(keys.filter(|key| kept.contains(key)).collect())
    }

    async fn insert_outcomes(&self, results: &[Recorded<'_>]) -> Result<(), Error> {
        let of = each(results, |it| {
            (it.settled.event.0, it.lane.route, it.lane.sink, it.settled)
        });
        self.write_outcomes(&of).await
    }

    /// Writes lines of history: event, route, sink, and what happened.
    pub(super) async fn write_outcomes(
        &self,
        of: &[(i64, i64, i64, &Settled)],
    ) -> Result<(), Error> {
        if of.is_empty() {
            return Ok(());
        }
        self.execute(
            "INSERT INTO outcome (event, route, sink, at, result, marks, late, answer, took)
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[],
               $5::text[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bigint[])",
            &[
                &each(of, |it| it.0),
                &each(of, |it| it.1),
                &each(of, |it| it.2),
                &each(of, |it| nanos(it.3.at)),
                &each(of, |it| it.3.outcome.word()),
                &each(of, |it| mark_bits(&it.3.marks)),
                &each(of, |it| late_nanos(it.3)),
                &each(of, |it| it.3.answer.as_deref().map(str::as_bytes)),
                &each(of, |it| took_nanos(it.3)),
            ],
        )
        .await?;
        Ok(())
    }

    async fn insert_dead(&self, it: Recorded<'_>, tries: i64, bytes: i64) -> Result<(), Error> {
        let (lane, settled) = (it.lane, it.settled);
        self.execute(
            "INSERT INTO dead (event, bytes, kind, number, instance, route, sink, sort_key, died_at,
               tries, answer) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            &[
                &settled.event.0,
                &bytes,
                &lane.kind,
                &lane.number,
                &lane.instance,
                &lane.route,
                &lane.sink,
                &settled.key.as_bytes(),
                &nanos(settled.at),
                &tries,
                &settled.answer.as_deref().map(str::as_bytes),
            ],
        )
        .await?;
        Ok(())
    }

    /// Remembers the message to which later notices of an event's command refer. All that was known
    /// when the lane was leased has been told with it.
    async fn keep_thread(&self, it: Recorded<'_>, message: &str) -> Result<(), Error> {
        let day = super::tables::span(&[it.settled.event.0]);
        self.execute(
            "INSERT INTO thread (sink, route, command_no, message, told)
             SELECT $1, $2, command_no, $5, (SELECT leased_told FROM lane WHERE id = $4)
             FROM event WHERE id = $3 AND sns_time >= $6 AND sns_time < $7
               AND command_no IS NOT NULL
             ON CONFLICT (command_no, sink, route) DO UPDATE SET message = excluded.message,
               told = GREATEST(thread.told, excluded.told)",
            &[
                &it.lane.sink,
                &it.lane.route,
                &it.settled.event.0,
                &it.lane.id,
                &message.as_bytes(),
                &day.0,
                &day.1,
            ],
        )
        .await?;
        Ok(())
    }

    /// Ends a delivery here and makes it wait for the sink it is diverted to, in the same place of the
    /// same lane. What that sink was told of the event already is not told again.
    async fn hand_over(
        &mut self,
        lane: &LaneRow,
        settled: &Settled,
        names: &HashMap<String, i64>,
    ) -> Result<(), Error> {
        let to = settled.divert_to.as_ref().and_then(|to| names.get(to));
        let Some(to) = to.copied() else { return Ok(()) };
        let key = settled.key.as_bytes();
        let waited = self
            .query_opt(
                "DELETE FROM waiting WHERE lane = $1 AND sort_key = $2
                 RETURNING bytes, release_at, alone, resent, instead_of",
                &[&lane.id, &key],
            )
            .await?;
        let Some(waited) = waited else { return Ok(()) };
        let there = self
            .lane_of(lane.kind, lane.number, &lane.instance, lane.route, to)
            .await?;
        let put = self
            .execute(
                "INSERT INTO waiting (lane, sort_key, event, bytes, fed, release_at, alone, resent,
                   instead_of)
                 SELECT $1, $2, $3, $4, (SELECT fed FROM lane WHERE id = $1), $5, $6, $7, $8
                 WHERE NOT EXISTS (SELECT 1 FROM outcome
                   WHERE event = $3 AND sink = $9 AND result = 'sent')
                 ON CONFLICT DO NOTHING",
                &[
                    &there,
                    &key,
                    &settled.event.0,
                    &waited.try_get::<_, i64>(0)?,
                    &waited.try_get::<_, i64>(1)?,
                    &waited.try_get::<_, bool>(2)?,
                    &waited.try_get::<_, bool>(3)?,
                    &waited.try_get::<_, Option<i64>>(4)?.unwrap_or(lane.sink),
                    &to,
                ],
            )
            .await?;
        self.make_due_unless_leased(there).await?;
        let outcome = if put > 0 {
            self.book(lane.sink, settled.at).owed -= 1;
            self.book(to, settled.at).owed += 1;
            Outcome::Diverted
        } else {
            self.book(lane.sink, settled.at).redundant += 1;
            Outcome::Redundant
        };
        let settled = Settled {
            outcome,
            ..settled.clone()
        };
        self.write_outcomes(&[(settled.event.0, lane.route, lane.sink, &settled)])
            .await
    }

    pub(super) async fn make_due_unless_leased(&self, lane: i64) -> Result<(), Error> {
        self.execute(
            concat!(
                "UPDATE lane SET due_at = ",
                earliest_release!("lane.not_before"),
                " WHERE id = $1 AND owner IS NULL"
            ),
            &[&lane],
        )
        .await?;
        Ok(())
    }

    /// The lane of a route and sink, counted as fed once more and locked; made if there is none.
    pub(super) async fn lane_of(
        &self,
        kind: i64,
        number: i64,
        instance: &[u8],
        route: i64,
        sink: i64,
    ) -> Result<i64, Error> {
        self.query_one(
            "INSERT INTO lane (kind, number, instance, route, sink, fed) VALUES ($1, $2, $3, $4, $5, 1)
             ON CONFLICT (kind, number, instance, route, sink) DO UPDATE SET fed = lane.fed + 1
             RETURNING id",
            &[&kind, &number, &instance, &route, &sink],
        )
        .await?
        .try_get(0)
    }

    /// What its last delivery stands for shares its outcome: all before it that was there when the
    /// batch was leased. A batch that is to be tried again stays as it is.
    async fn record_batch(
        &mut self,
        lane: &LaneRow,
        last: &Settled,
        names: &HashMap<String, i64>,
    ) -> Result<(), Error> {
        if last.outcome == Outcome::Retry {
            return Ok(());
        }
        if last.outcome != Outcome::Parked {
            let rows = self
                .query(
                    "SELECT event, sort_key FROM waiting WHERE lane = $1 AND NOT alone
                       AND sort_key < $2 AND fed <= (SELECT leased_fed FROM lane WHERE id = $1)",
                    &[&lane.id, &last.key.as_bytes()],
                )
                .await?;
            let before = rows.iter().map(|row| {
                Ok(Settled {
                    event: EventId(row.try_get(0)?),
                    key: SortKey::from_bytes(row.try_get(1)?),
                    marks: crate::delivery::Marks::default(),
                    thread: None,
                    ..last.clone()
                })
            });
            let before = before.collect::<Result<Vec<_>, Error>>()?;
            if last.divert_to.is_some() {
                for settled in &before {
                    self.hand_over(lane, settled, names).await?;
                }
            } else {
                let results = each(&before, |settled| Recorded { lane, settled });
                self.record(&results).await?;
            }
        }
        self.execute(
            "UPDATE lane SET batch_upto = NULL WHERE id = $1",
            &[&lane.id],
        )
        .await?;
        Ok(())
    }
}
