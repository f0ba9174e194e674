//! Recording what became of leased lanes, and giving them back: a constant number of statements,
//! however many lanes and results there are.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_postgres::Error;

use super::elsewhere::Elsewhere;
use super::lanes::{LaneRow, Targets};
use super::outcome::{Key, Line, One};
use super::tables::{Tables, each};
use crate::store::lanes::Ended;
use crate::store::rules::columns::{nanos, took_nanos};
use crate::store::rules::settle::{Kept, Move, that_count};
use crate::store::rules::step::KIND_OWN;
use crate::store::{Ending, Settlement};

/// A row that no longer waits.
struct Gone {
    tries: i64,
    bytes: i64,
}

/// The results of one round by what they mean.
#[derive(Default)]
struct Plan<'a> {
    /// The row goes; the flag says that it becomes a dead letter.
    out: Vec<(One<'a>, bool)>,
    keep: Vec<(One<'a>, Kept<'a>)>,
    over: Vec<(One<'a>, &'a str)>,
    /// Lanes that are gone, with what was sent from them.
    elsewhere: Vec<Elsewhere<'a>>,
    /// Results under leases that are over.
    old: HashSet<Key<'a>>,
}

impl Tables<'_, '_> {
    /// Records the results of some lanes. Under a lease that is over only what was sent is recorded:
    /// the rest is somebody else's by now.
    pub(super) async fn settle(&mut self, settlements: &[Settlement]) -> Result<(), Error> {
        let results = settlements.iter().flat_map(Settlement::results);
        let names = results.filter_map(|it| match &it.ending {
            Ending::Diverted { to } => Some(to.as_str()),
            _ => None,
        });
        let names: HashSet<&str> = names.collect();
        self.put_names(&names.into_iter().collect::<Vec<_>>())
            .await?;
        let mut left: Vec<&Ended> = settlements.iter().map(Settlement::ended).collect();
        // A lane may be there twice, under two leases of which one at most is good. Each round has
        // each lane once, so that the second finds what the first has left.
        while !left.is_empty() {
            let mut lanes = HashSet::new();
            let (round, later) = left
                .into_iter()
                .partition::<Vec<_>, _>(|it| lanes.insert(it.lease.lane));
            self.settle_round(&round).await?;
            left = later;
        }
        self.write_tally().await
    }

    async fn settle_round(&mut self, round: &[&Ended]) -> Result<(), Error> {
        let (lanes, targets) = self.lock(round).await?;
        let ours = self.leased_by_us(round).await?;
        let plan = Plan::of(round, &lanes, &ours);
        let mut lines = Vec::new();
        let mut arrived: BTreeMap<i64, &[u8]> = BTreeMap::new();
        let kept = self.keep_waiting(&plan.keep).await?;
        for (one, how) in &plan.keep {
            // A result that is written again finds nothing to do, and changes nothing.
            if kept.contains(&one.key()) {
                lines.push(Line::of(one.lane, one.settled));
                if how.may_have_arrived {
                    raise_to(&mut arrived, one);
                }
            }
        }
        let mut elsewhere = plan.elsewhere;
        let (mut ended, mut batches) = (Vec::new(), Vec::new());
        let mut dead = Vec::new();
        let gone = self.take_out(&plan.out).await?;
        for (one, is_dead) in &plan.out {
            let Some(gone) = gone.get(&one.key()) else {
                // A digest that was told told of all its members, though somebody else may have
                // taken out the last of them meanwhile.
                if matches!(one.settled.ending, Ending::Sent { .. }) {
                    batches.push(*one);
                }
                if plan.old.contains(&one.key()) {
                    elsewhere.push(Elsewhere::of(one.lease, Some(one.lane), one.settled));
                }
                continue;
            };
            lines.push(Line::of(one.lane, one.settled));
            let outcome = one.settled.ending.outcome();
            self.book(one.lane.sink, one.settled.at).count(&outcome, 1);
            if *is_dead {
                dead.push((*one, gone.tries + 1, gone.bytes));
            }
            if matches!(one.settled.ending, Ending::Sent { .. }) {
                raise_to(&mut arrived, one);
            }
            ended.push(*one);
            batches.push(*one);
        }
        self.write_lines(&lines).await?;
        self.bury(&dead).await?;
        self.keep_threads(&ended).await?;
        self.end_batches(&batches).await?;
        self.divert(&plan.over, &targets).await?;
        self.sent_elsewhere(&elsewhere).await?;
        self.end_leases(round, &lanes, &ours, &arrived).await?;
        let own = lanes.values().filter(|it| it.kind == KIND_OWN);
        let own = own.map(|it| it.id).chain(targets.own());
        self.drop_empty(&own.collect::<Vec<_>>()).await
    }

    /// Locks the lanes of a round in the order of their keys, as whoever appends does, and with them
    /// the lanes of other sinks that take over from them.
    async fn lock(&self, round: &[&Ended]) -> Result<(HashMap<i64, LaneRow>, Targets), Error> {
        let ids = each(round, |it| it.lease.lane.0);
        let mut to: HashSet<(i64, i64)> = HashSet::new();
        for it in round {
            for settled in &it.results {
                if let Ending::Diverted { to: sink } = &settled.ending {
                    to.insert((it.lease.lane.0, self.shared.names.number(sink)));
                }
            }
        }
        if to.is_empty() {
            return Ok((self.lock_lanes(&ids).await?, Targets::default()));
        }
        self.lock_with_targets(&ids, &to).await
    }

    /// The lanes whose leases are still there. Asked after the lanes were locked: whoever frees a
    /// lease holds that lock. The take counts too: after a failover that lost the last seconds, this
    /// replica may have taken a lane again under the same number.
    async fn leased_by_us(&self, round: &[&Ended]) -> Result<HashSet<i64>, Error> {
        let lanes = self
            .numbers(
                "SELECT lane FROM lease JOIN unnest($1::bigint[], $2::bigint[], $3::bigint[])
                   AS it (of, epoch, call) ON lane = it.of AND lease.epoch = it.epoch
                     AND lease.call = it.call
                 WHERE holder = $4",
                &[
                    &each(round, |it| it.lease.lane.0),
                    &each(round, |it| it.lease.epoch),
                    &each(round, |it| it.lease.hold().key().0),
                    &self.shared.own.holder,
                ],
            )
            .await?;
        Ok(lanes.into_iter().collect())
    }

    /// Notes a try of rows that wait on; which of them still do.
    async fn keep_waiting<'a>(
        &self,
        keep: &[(One<'a>, Kept<'a>)],
    ) -> Result<HashSet<Key<'a>>, Error> {
        if keep.is_empty() {
            return Ok(HashSet::new());
        }
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
                    &each(keep, |(one, _)| one.lane.id),
                    &each(keep, |(one, _)| one.settled.key.as_bytes()),
                    &each(keep, |(_, how)| how.failing_since),
                    &each(keep, |(_, how)| how.progress.map(str::as_bytes)),
                    &each(keep, |(_, how)| how.may_have_arrived),
                    &each(keep, |(_, how)| how.parked_until),
                ],
            )
            .await?;
        let kept: HashSet<(i64, &[u8])> = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, Error>>()?;
        let keys = keep.iter().map(|(one, _)| one.key());
        Ok(keys.filter(|key| kept.contains(key)).collect())
    }

    /// Takes rows out that wait no more. One that was put there by hand since the lease is another.
    async fn take_out<'a>(&self, out: &[(One<'a>, bool)]) -> Result<HashMap<Key<'a>, Gone>, Error> {
        if out.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = self
            .query(
                "DELETE FROM waiting USING unnest($1::bigint[], $2::bytea[], $3::bigint[])
                   AS it (lane, sort_key, fed)
                 WHERE waiting.lane = it.lane AND waiting.sort_key = it.sort_key
                   AND waiting.fed <= it.fed
                 RETURNING waiting.lane, waiting.sort_key, tries, bytes",
                &[
                    &each(out, |(one, _)| one.lane.id),
                    &each(out, |(one, _)| one.settled.key.as_bytes()),
                    &each(out, |(one, _)| one.lease.fed),
                ],
            )
            .await?;
        let mut taken: HashMap<(i64, &[u8]), Gone> = HashMap::with_capacity(rows.len());
        for row in &rows {
            let gone = Gone {
                tries: row.try_get(2)?,
                bytes: row.try_get(3)?,
            };
            taken.insert((row.try_get(0)?, row.try_get(1)?), gone);
        }
        let mut gone = HashMap::with_capacity(rows.len());
        for (one, _) in out {
            if let Some(was) = taken.remove(&one.key()) {
                gone.insert(one.key(), was);
            }
        }
        Ok(gone)
    }

    async fn bury(&self, dead: &[(One<'_>, i64, i64)]) -> Result<(), Error> {
        if dead.is_empty() {
            return Ok(());
        }
        self.execute(
            "INSERT INTO dead (event, kind, number, instance, route, sink, sort_key, died_at, tries,
               bytes, answer)
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[],
               $6::bigint[], $7::bytea[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bytea[])",
            &[
                &each(dead, |(one, ..)| one.settled.event.0),
                &each(dead, |(one, ..)| one.lane.kind),
                &each(dead, |(one, ..)| one.lane.number),
                &each(dead, |(one, ..)| one.lane.instance.as_slice()),
                &each(dead, |(one, ..)| one.lane.route),
                &each(dead, |(one, ..)| one.lane.sink),
                &each(dead, |(one, ..)| one.settled.key.as_bytes()),
                &each(dead, |(one, ..)| nanos(one.settled.at)),
                &each(dead, |(_, tries, _)| *tries),
                &each(dead, |(.., bytes)| *bytes),
                &each(dead, |(one, ..)| {
                    one.settled.answer.as_deref().map(str::as_bytes)
                }),
            ],
        )
        .await?;
        Ok(())
    }

    /// Gives the rows that a digest's last delivery stands for the same end: all in turn before it
    /// that were there at the lease. One statement, whether there are ten of them or ten thousand.
    async fn end_batches(&mut self, ended: &[One<'_>]) -> Result<(), Error> {
        let last: Vec<_> = ended.iter().filter(|one| one.lease.batch).collect();
        if last.is_empty() {
            return Ok(());
        }
        let rows = self
            .query(
                "WITH gone AS (DELETE FROM waiting USING unnest($1::bigint[], $2::bytea[], $3::bytea[],
                     $4::bigint[], $5::bigint[], $6::text[], $7::bytea[], $8::bigint[])
                     AS it (lane, from_key, upto, fed, at, result, answer, took)
                   WHERE waiting.lane = it.lane AND NOT alone AND sort_key >= it.from_key
                     AND sort_key < it.upto AND waiting.fed <= it.fed
                   RETURNING waiting.lane, event, sort_key, tries, bytes, it.at, it.result, it.answer,
                     it.took),
                 each AS (SELECT gone.*, kind, number, instance, route, sink
                   FROM gone JOIN lane ON lane.id = gone.lane),
                 noted AS (INSERT INTO outcome (event, route, sink, at, result, marks, answer, took)
                   SELECT event, route, sink, at, result, 0, answer, took FROM each),
                 buried AS (INSERT INTO dead (event, kind, number, instance, route, sink, sort_key,
                     died_at, tries, bytes, answer)
                   SELECT event, kind, number, instance, route, sink, sort_key, at, tries + 1, bytes,
                     answer FROM each WHERE result = 'dead')
                 SELECT lane, count(*) FROM gone GROUP BY lane",
                &[
                    &each(&last, |one| one.lane.id),
                    &each(&last, |one| one.lane.first_key.as_slice()),
                    &each(&last, |one| one.settled.key.as_bytes()),
                    &each(&last, |one| one.lease.fed),
                    &each(&last, |one| nanos(one.settled.at)),
                    &each(&last, |one| one.settled.ending.outcome().word()),
                    &each(&last, |one| {
                        one.settled.answer.as_deref().map(str::as_bytes)
                    }),
                    &each(&last, |one| took_nanos(one.settled)),
                ],
            )
            .await?;
        for row in &rows {
            let lane: i64 = row.try_get(0)?;
            if let Some(one) = last.iter().find(|one| one.lane.id == lane) {
                let outcome = one.settled.ending.outcome();
                let many = row.try_get(1)?;
                self.book(one.lane.sink, one.settled.at)
                    .count(&outcome, many);
            }
        }
        Ok(())
    }
}

impl<'a> Plan<'a> {
    /// Sorts the results of a round by what they mean. A lane that is gone went with its last
    /// delivery, which may lie elsewhere.
    fn of(round: &[&'a Ended], lanes: &'a HashMap<i64, LaneRow>, ours: &HashSet<i64>) -> Self {
        let mut plan = Self::default();
        for it in round {
            let lease = &it.lease;
            let Some(lane) = lanes.get(&lease.lane.0) else {
                let sent = that_count(it, false);
                plan.elsewhere
                    .extend(sent.map(|settled| Elsewhere::of(lease, None, settled)));
                continue;
            };
            let is_ours = ours.contains(&lane.id);
            for settled in that_count(it, is_ours) {
                let one = One {
                    lane,
                    lease,
                    settled,
                };
                if !is_ours {
                    plan.old.insert(one.key());
                }
                match Move::of(settled) {
                    Move::Out(_) => plan.out.push((one, false)),
                    Move::Bury(_) => plan.out.push((one, true)),
                    Move::Keep(_, kept) => plan.keep.push((one, kept)),
                    Move::HandOver(_, to) => plan.over.push((one, to)),
                }
            }
        }
        plan
    }
}

/// Raises the watermark of a lane to one result.
fn raise_to<'a>(arrived: &mut BTreeMap<i64, &'a [u8]>, one: &One<'a>) {
    let (lane, key) = one.key();
    let high = arrived.entry(lane).or_default();
    *high = (*high).max(key);
}
