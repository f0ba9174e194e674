//! Handing out the prefix of each due lane that may go, beside other replicas that do the same.
//!
//! A lane that somebody else is at is passed over, and found again at the next look. What a lease
//! holds is freed when its replica gives no sign of life any more.

use std::collections::HashMap;

use jiff::Timestamp;
use tokio_postgres::{Error, Row};

use super::append::each;
use super::read::{EVENT, optional_text};
use super::tables::{Tables, earliest_release, span};
use crate::delivery::SortKey;
use crate::event::Status;
use crate::store::rows::{
    Batch, KIND_DIGEST, RawEvent, RawLane, RawLeased, RawWaiting, Room, Taken, nanos, rows,
};
use crate::store::{Lane, LaneId};

/// How soon a lane that somebody else was at is looked at again.
const PASSED_OVER: i64 = 20_000_000;

/// The columns of [`RawWaiting`], in order.
macro_rules! waiting_columns {
    () => {
        "sort_key, event, alone, tries, failing_since, resent, possible_repeat, progress, high_then,
         instead_of, bytes"
    };
}
pub(super) use waiting_columns;

pub(super) struct Due {
    pub(super) lane: i64,
    kind: i64,
    pub(super) number: i64,
    pub(super) batch_upto: Option<Vec<u8>>,
    pub(super) route: i64,
    epoch: i64,
    high: Option<SortKey>,
    pub(super) not_before: i64,
}

/// What waits, and how large its message is.
pub(super) type Found = (RawWaiting, i64);

/// What a look at a sink says before anything is taken.
pub(super) struct Look {
    pub(super) rests_until: Option<i64>,
    pub(super) in_trouble_since: Option<i64>,
    pub(super) next_due: Option<i64>,
}

impl Look {
    /// Whether there is something to take at `now`; what else there is to say.
    pub(super) fn answer(&self, now: i64) -> (bool, RawLeased) {
        let rests = self.rests_until.filter(|until| *until > now);
        let leased = RawLeased {
            lanes: Vec::new(),
            next_due: rests.or(self.next_due),
            in_trouble_since: self.in_trouble_since,
        };
        let is_due = rests.is_none() && self.next_due.is_some_and(|due| due <= now);
        (is_due, leased)
    }
}

impl Tables<'_> {
    /// How a sink stands.
    pub(super) async fn look(&self, sink: i64) -> Result<Look, Error> {
        let row = self
            .query_one(
                "SELECT (SELECT min(due_at) FROM lane WHERE sink = $1 AND due_at IS NOT NULL),
                   (SELECT paused_until FROM sink WHERE name = $1),
                   (SELECT trouble_since FROM sink WHERE name = $1)",
                &[&sink],
            )
            .await?;
        Ok(Look {
            next_due: row.try_get(0)?,
            rests_until: row.try_get(1)?,
            in_trouble_since: row.try_get(2)?,
        })
    }

    /// Leases due lanes of one sink, at most `limit` deliveries in all.
    pub(super) async fn lease(
        &mut self,
        sink: i64,
        now: Timestamp,
        limit: usize,
    ) -> Result<RawLeased, Error> {
        let now = nanos(now);
        self.be_alive().await?;
        let due = self.due_lanes(sink, now, limit).await?;
        let (digests, plain): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|due| due.kind == KIND_DIGEST);
        let mut room = Room::new(limit);
        let (mut batches, mut too_early) = (Vec::new(), Vec::new());
        for due in digests {
            if room.is_full() {
                break;
            }
            let (batch, told) = self.batch(&due, sink, now, &mut room).await?;
            if batch.waiting.is_empty() {
                too_early.push(due.lane);
            } else {
                batches.push((due, batch, told));
            }
        }
        let mut found = self.prefixes(&plain, now, room.deliveries).await?;
        let mut chosen = Vec::new();
        for due in plain {
            let Some(found) = found.remove(&due.lane) else {
                // It was due too early; say when it really is.
                too_early.push(due.lane);
                continue;
            };
            let mut rows = Vec::with_capacity(found.len());
            for (row, bytes) in found {
                if room.is_full() {
                    break;
                }
                room.take(usize::try_from(bytes).unwrap_or_default());
                rows.push(row);
            }
            if !rows.is_empty() {
                chosen.push((due, rows));
            }
        }
        for (due, taken) in self.with_events(chosen, sink).await? {
            batches.push((due, Batch::plain(taken), 0));
        }
        self.hold(&batches).await?;
        self.make_due(&too_early).await?;
        let mut leased = RawLeased {
            next_due: self.next_due(sink).await?,
            ..RawLeased::default()
        };
        for (due, batch, _) in batches {
            leased.lanes.push(RawLane {
                lane: Lane {
                    id: LaneId(due.lane),
                    route: self.text(due.route).await?.as_ref().to_owned(),
                    sink: self.text(sink).await?.as_ref().to_owned(),
                    epoch: due.epoch + 1,
                    high: due.high,
                    waiting: Vec::new(),
                    digest: batch.digest,
                },
                waiting: batch.waiting,
                summary: batch.summary,
            });
        }
        if leased.lanes.is_empty() && leased.next_due.is_some_and(|due| due <= now) {
            leased.next_due = Some(now + PASSED_OVER);
        }
        Ok(leased)
    }

    /// Makes lanes due when what waits in them says, in SQL: a value computed elsewhere could lose
    /// what was appended meanwhile.
    pub(super) async fn make_due(&self, lanes: &[i64]) -> Result<(), Error> {
        if !lanes.is_empty() {
            self.execute(
                concat!(
                    "UPDATE lane SET due_at = ",
                    earliest_release!("lane.not_before"),
                    " WHERE id = ANY($1)"
                ),
                &[&lanes],
            )
            .await?;
        }
        Ok(())
    }

    async fn next_due(&self, sink: i64) -> Result<Option<i64>, Error> {
        self.query_one(
            "SELECT min(due_at) FROM lane WHERE sink = $1 AND due_at IS NOT NULL",
            &[&sink],
        )
        .await?
        .try_get(0)
    }

    async fn due_lanes(&self, sink: i64, now: i64, limit: usize) -> Result<Vec<Due>, Error> {
        let found = self
            .query(
                "SELECT id, route, epoch, high, not_before, kind, number, batch_upto FROM lane
                 WHERE sink = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3
                 FOR UPDATE SKIP LOCKED",
                &[&sink, &now, &rows(limit)],
            )
            .await?;
        let due = found.iter().map(|row| {
            Ok(Due {
                lane: row.try_get(0)?,
                route: row.try_get(1)?,
                epoch: row.try_get(2)?,
                high: row
                    .try_get::<_, Option<Vec<u8>>>(3)?
                    .map(SortKey::from_bytes),
                not_before: row.try_get(4)?,
                kind: row.try_get(5)?,
                number: row.try_get(6)?,
                batch_upto: row.try_get(7)?,
            })
        });
        due.collect()
    }

    /// What of each lane may go. What goes alone neither waits for its turn nor brings others along;
    /// of the rest, everything goes up to a delivery whose release has come.
    async fn prefixes(
        &self,
        due: &[Due],
        now: i64,
        limit: usize,
    ) -> Result<HashMap<i64, Vec<Found>>, Error> {
        let mut found: HashMap<i64, Vec<Found>> = HashMap::new();
        if due.is_empty() || limit == 0 {
            return Ok(found);
        }
        let lanes = each(due, |due| due.lane);
        // No more are asked for their keys than may go, however many wait.
        let rows = self
            .query(
                concat!(
                    "SELECT ",
                    waiting_columns!(),
                    ", due.lane
                     FROM unnest($1::bigint[]) AS due (lane) CROSS JOIN LATERAL (
                       SELECT * FROM waiting WHERE waiting.lane = due.lane AND alone
                         AND release_at <= $3 ORDER BY release_at LIMIT $4) AS it
                     UNION ALL
                     SELECT ",
                    waiting_columns!(),
                    ", due.lane
                     FROM unnest($1::bigint[], $2::bigint[]) AS due (lane, not_before)
                     CROSS JOIN LATERAL (
                       SELECT * FROM waiting WHERE waiting.lane = due.lane AND NOT alone
                         AND due.not_before <= $3 AND sort_key <= (
                           SELECT sort_key FROM (SELECT sort_key FROM waiting AS first
                             WHERE first.lane = due.lane AND NOT alone AND release_at <= $3
                             ORDER BY release_at LIMIT $4) AS released ORDER BY sort_key DESC LIMIT 1)
                       ORDER BY sort_key LIMIT $4) AS it"
                ),
                &[&lanes, &each(due, |due| due.not_before), &now, &rows(limit)],
            )
            .await?;
        for row in &rows {
            let lane = found.entry(row.try_get(11)?).or_default();
            // What goes alone comes first, and leaves the rest less room.
            if lane.len() < limit {
                lane.push(waiting_of(row)?);
            }
        }
        for lane in found.values_mut() {
            lane.sort_by(|(one, _), (other, _)| one.key.cmp(&other.key));
        }
        Ok(found)
    }

    /// What of a lane goes by itself.
    pub(super) async fn alone(
        &self,
        due: &Due,
        now: i64,
        room: &Room,
    ) -> Result<Vec<Found>, Error> {
        self.query(
            concat!(
                "SELECT ",
                waiting_columns!(),
                " FROM waiting
                 WHERE lane = $1 AND alone AND release_at <= $2 ORDER BY release_at LIMIT $3"
            ),
            &[&due.lane, &now, &rows(room.deliveries)],
        )
        .await?
        .iter()
        .map(waiting_of)
        .collect()
    }

    /// Deliveries with their events, and what is known of others that told the same.
    pub(super) async fn with_events<D: std::borrow::Borrow<Due>>(
        &self,
        chosen: Vec<(D, Vec<RawWaiting>)>,
        sink: i64,
    ) -> Result<Vec<(D, Taken)>, Error> {
        let wanted = chosen
            .iter()
            .flat_map(|(due, rows)| rows.iter().map(|row| (row.event, due.borrow().route)));
        let (events, routes): (Vec<i64>, Vec<i64>) = wanted.unzip();
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let (start, end) = span(&events);
        let rows = self
            .query(
                &format!(
                    "SELECT {EVENT}, thread.message
                     FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS wanted (event, route, place)
                     JOIN event ON event.id = wanted.event AND sns_time >= $3 AND sns_time < $4
                     LEFT JOIN thread ON thread.command_no = event.command_no
                       AND thread.sink = $5 AND thread.route = wanted.route
                     ORDER BY wanted.place"
                ),
                &[&events, &routes, &start, &end, &sink],
            )
            .await?;
        let mut rows = rows.iter();
        let mut all = Vec::with_capacity(chosen.len());
        for (due, waiting) in chosen {
            let mut taken = Vec::with_capacity(waiting.len());
            for mut row in waiting {
                let Some(found) = rows.next() else { break };
                let mut event = self.event_of(found).await?;
                row.thread = optional_text(found, 13)?;
                self.complete(&mut row, &mut event, due.borrow(), sink)
                    .await?;
                taken.push((row, event));
            }
            all.push((due, taken));
        }
        Ok(all)
    }

    /// Adds to a delivery what is rarely to be known.
    async fn complete(
        &self,
        row: &mut RawWaiting,
        event: &mut RawEvent,
        due: &Due,
        sink: i64,
    ) -> Result<(), Error> {
        if let Some(first) = event.repeat_of
            && !self.is_told(first, due, sink).await?
        {
            // The first notification of this step went elsewhere: here it is news.
            event.repeat_of = None;
        }
        let high = if row.possible_repeat {
            &row.high_then
        } else {
            &due.high
        };
        if high.as_ref().is_some_and(|high| row.key < *high) {
            row.terminal_sent = self.is_ended(event, due.route, sink).await?;
        }
        if let Some(sink) = row.instead_of.0 {
            row.instead_of.1 = Some(self.text(sink).await?.as_ref().to_owned());
        }
        Ok(())
    }

    /// Makes lanes ours until they are settled.
    async fn hold(&self, batches: &[(Due, Batch, i64)]) -> Result<(), Error> {
        if batches.is_empty() {
            return Ok(());
        }
        let last = |(_, batch, _): &(Due, Batch, i64)| {
            let last = batch.waiting.last();
            last.map_or_else(Vec::new, |(row, _)| row.key.as_bytes().to_vec())
        };
        self.execute(
            "UPDATE lane SET owner = $1, epoch = epoch + 1, due_at = NULL, leased_upto = it.upto,
               batch_upto = CASE WHEN it.is_digest THEN it.upto ELSE batch_upto END,
               leased_fed = fed, leased_told = it.told
             FROM unnest($2::bigint[], $3::bytea[], $4::boolean[], $5::bigint[])
               AS it (lane, upto, is_digest, told)
             WHERE lane.id = it.lane",
            &[
                &self.replica,
                &each(batches, |(due, ..)| due.lane),
                &each(batches, last),
                &each(batches, |(_, batch, _)| batch.digest.is_some()),
                &each(batches, |(.., told)| *told),
            ],
        )
        .await?;
        Ok(())
    }

    /// Whether an event was brought to this sink by this route, or is going to be in this lane.
    async fn is_told(&self, event: i64, due: &Due, sink: i64) -> Result<bool, Error> {
        self.query_one(
            "SELECT EXISTS (SELECT 1 FROM outcome
                 WHERE event = $1 AND route = $2 AND sink = $3 AND result = 'sent')
               OR EXISTS (SELECT 1 FROM waiting WHERE lane = $4 AND event = $1)",
            &[&event, &due.route, &sink, &due.lane],
        )
        .await?
        .try_get(0)
    }

    /// Whether the terminal status of the thing that `event` says to be in progress was sent.
    async fn is_ended(&self, event: &RawEvent, route: i64, sink: i64) -> Result<bool, Error> {
        if event.status.as_deref() != Some(Status::InProgress.as_str()) {
            return Ok(false);
        }
        let instance = event.instance.as_deref().unwrap_or_default().as_bytes();
        self.query_one(
            "SELECT EXISTS (
               SELECT 1 FROM step JOIN outcome ON outcome.event = step.event
               WHERE step.command_no = $1 AND step.instance = $2
                 AND step.status IN ('Success', 'Failed', 'TimedOut', 'Cancelled')
                 AND outcome.route = $3 AND outcome.sink = $4 AND outcome.result = 'sent')",
            &[&event.command_no, &instance, &route, &sink],
        )
        .await?
        .try_get(0)
    }
}

pub(super) fn waiting_of(row: &Row) -> Result<Found, Error> {
    let key = |at| {
        Ok(row
            .try_get::<_, Option<Vec<u8>>>(at)?
            .map(SortKey::from_bytes))
    };
    let waiting = RawWaiting {
        key: SortKey::from_bytes(row.try_get(0)?),
        event: row.try_get(1)?,
        alone: row.try_get(2)?,
        tries: u32::try_from(row.try_get::<_, i64>(3)?).unwrap_or(u32::MAX),
        failing_since: row.try_get(4)?,
        resent: row.try_get(5)?,
        possible_repeat: row.try_get(6)?,
        progress: optional_text(row, 7)?,
        high_then: key(8)?,
        terminal_sent: false,
        thread: None,
        instead_of: (row.try_get(9)?, None),
    };
    Ok((waiting, row.try_get(10)?))
}
