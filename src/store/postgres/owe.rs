//! Steps of new events, and the lanes that their deliveries join.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use tokio_postgres::{Error, Row};

use super::append::{New, Numbered};
use super::tables::{Tables, each};
use crate::delivery::{Owed, Release, from_nanos};
use crate::event::Status;
use crate::store::rules::columns::nanos;
use crate::store::rules::hold::Times;
use crate::store::rules::step::{LaneColumns, Step, Stored, Told};

/// A lane of a route and sink: by what all who lock lanes sort them.
type Place<'a> = (LaneColumns<'a>, i64, i64);

/// What a batch brings to one lane.
struct Feed<'a> {
    look_at: i64,
    at_end: i64,
    early: bool,
    count: i64,
    first_key: &'a [u8],
}

/// A lane, as it stands after it was fed.
struct Fed {
    id: i64,
    early: bool,
    /// When it is due; none of one that is leased, whose `due_at` is its lease's end.
    due_at: Option<i64>,
    /// How much had been put into it before.
    before: i64,
    /// How much has now.
    count: i64,
}

/// A row to be put into a lane.
struct Put {
    event: i64,
    bytes: i64,
    fed: i64,
    release_at: i64,
}

/// A delivery that is owed for a new event.
struct Debt<'b> {
    /// The event's place in the batch, and its number.
    at: usize,
    event: i64,
    place: Place<'b>,
    times: Times,
    owed: &'b Owed,
}

/// When the lanes are due that an event was put into, by their sinks.
type Due = Vec<(Arc<str>, Timestamp)>;

impl Tables<'_, '_> {
    /// Enters the steps of new events, and says how they stand to those told before.
    pub(super) async fn tell(
        &self,
        batch: &[Numbered<'_>],
        new: &New,
    ) -> Result<HashMap<usize, Told>, Error> {
        let mut steps: Vec<(usize, i64, Step<'_>)> = new
            .iter()
            .filter_map(|(at, id)| Some((*at, *id, batch.get(*at)?.step()?)))
            .collect();
        if steps.is_empty() {
            return Ok(HashMap::new());
        }
        // By the key of the table; of one step that is told twice in a batch the first event counts.
        let key = |(_, id, it): &(usize, i64, Step<'_>)| {
            let names = (it.instance.to_owned(), it.status.as_str().to_owned());
            (it.command_no, names, it.event_time, *id)
        };
        steps.sort_by_cached_key(key);
        let numbers = each(&steps, |(_, _, it)| it.command_no);
        let instances = each(&steps, |(_, _, it)| it.instance.as_bytes());
        self.execute(
            "INSERT INTO step (command_no, instance, status, event_time, event)
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[])
             ON CONFLICT DO NOTHING",
            &[
                &numbers,
                &instances,
                &each(&steps, |(_, _, it)| it.status.as_str().as_bytes()),
                &each(&steps, |(_, _, it)| it.event_time),
                &each(&steps, |(_, id, _)| *id),
            ],
        )
        .await?;
        let rows = self
            .query(
                "SELECT step.* FROM (SELECT DISTINCT * FROM unnest($1::bigint[], $2::bytea[]))
                   AS it (command_no, instance)
                 CROSS JOIN LATERAL (
                   SELECT command_no, instance, status, event_time, event FROM step
                   WHERE step.command_no = it.command_no AND step.instance = it.instance
                   -- So that it is looked up, however little is known of the table yet.
                   OFFSET 0) AS step",
                &[&numbers, &instances],
            )
            .await?;
        let mut all: HashMap<(i64, &[u8]), Vec<Stored>> = HashMap::new();
        for row in &rows {
            let status = String::from_utf8_lossy(row.try_get(2)?).into_owned();
            let stored = Stored {
                status: Status::parse(&status),
                event_time: row.try_get(3)?,
                event: row.try_get(4)?,
            };
            let of = (row.try_get(0)?, row.try_get(1)?);
            all.entry(of).or_default().push(stored);
        }
        let told = steps.iter().map(|(at, id, step)| {
            let of_it = all.get(&(step.command_no, step.instance.as_bytes()));
            (*at, Told::of(step, *id, of_it.into_iter().flatten()))
        });
        Ok(told.collect())
    }

    /// Puts the deliveries of new events into their lanes; says when each lane is due.
    pub(super) async fn owe(
        &mut self,
        batch: &[Numbered<'_>],
        new: &New,
        told: &HashMap<usize, Told>,
    ) -> Result<HashMap<usize, Due>, Error> {
        let debts = debts(batch, new, told);
        if debts.is_empty() {
            return Ok(HashMap::new());
        }
        let mut lanes = self.feed(&feeds(&debts)).await?;
        let mut dues: HashMap<usize, Due> = HashMap::new();
        let mut rows: BTreeMap<(i64, &[u8]), Put> = BTreeMap::new();
        let mut starts: BTreeMap<i64, i64> = BTreeMap::new();
        let mut sinks: BTreeMap<i64, (i64, Timestamp)> = BTreeMap::new();
        for debt in &debts {
            let (Some(lane), Some(it)) = (lanes.get_mut(&debt.place), batch.get(debt.at)) else {
                continue;
            };
            let append = it.append;
            let release_at = debt.times.release_at(lane.before == 0, lane.early);
            // Only the first that is put into a lane begins it.
            lane.before = lane.before.max(1);
            if lane.early && debt.owed.hold.release == Release::First {
                let now = nanos(append.now);
                let first = starts.entry(lane.id).or_insert(now);
                *first = now.min(*first);
            }
            rows.entry((lane.id, debt.owed.key.as_bytes()))
                .or_insert(Put {
                    event: debt.event,
                    bytes: i64::try_from(append.event.body.len()).unwrap_or(i64::MAX),
                    fed: lane.count,
                    release_at,
                });
            sinks.insert(lane.id, (debt.place.2, append.received_at));
            let sink = self.text(debt.place.2).await?;
            let due_at = from_nanos(lane.due_at.unwrap_or(release_at));
            dues.entry(debt.at).or_default().push((sink, due_at));
        }
        for lane in self.put(&rows).await? {
            if let Some((sink, at)) = sinks.get(&lane) {
                self.book(*sink, *at).owed += 1;
            }
        }
        self.start(starts).await?;
        Ok(dues)
    }

    /// Puts rows to wait, and says into which lanes, once for each. The same message, signed anew at
    /// another time, is owed already.
    async fn put(&self, rows: &BTreeMap<(i64, &[u8]), Put>) -> Result<Vec<i64>, Error> {
        let (lanes, keys): (Vec<i64>, Vec<&[u8]>) = rows.keys().copied().unzip();
        let column = |of: fn(&Put) -> i64| rows.values().map(of).collect::<Vec<_>>();
        self.numbers(
            "INSERT INTO waiting (lane, sort_key, event, bytes, fed, release_at)
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[],
               $5::bigint[], $6::bigint[])
             ON CONFLICT (lane, sort_key) DO NOTHING RETURNING lane",
            &[
                &lanes,
                &keys,
                &column(|it| it.event),
                &column(|it| it.bytes),
                &column(|it| it.fed),
                &column(|it| it.release_at),
            ],
        )
        .await
    }

    /// Lets the rows go that waited for the start of something: a terminal status that came first
    /// waits for its `InProgress` alone.
    async fn start(&self, starts: BTreeMap<i64, i64>) -> Result<(), Error> {
        if starts.is_empty() {
            return Ok(());
        }
        let (lanes, nows): (Vec<i64>, Vec<i64>) = starts.into_iter().unzip();
        self.execute(
            "UPDATE waiting SET release_at = started.at
             FROM unnest($1::bigint[], $2::bigint[]) AS started (lane, at)
             WHERE waiting.lane = started.lane AND release_at > started.at AND NOT alone",
            &[&lanes, &nows],
        )
        .await?;
        Ok(())
    }

    /// Makes the lanes that are missing, and has all of them looked at in time.
    ///
    /// A lane that has switched early release off is due at the end of the hold, any other at
    /// `look_at`; which of the two, only the row knows, so both come along. A leased lane keeps its
    /// due time, which is the end of its lease; its settlement makes it due for what came meanwhile.
    /// The bounds of scans are lowered to what is put. No release comes before `look_at`, nor does
    /// that of a row which `start` lets go, for it is let go by a row of this feed. In a lane where
    /// nothing waits the bounds begin anew.
    async fn feed<'b>(
        &self,
        feeds: &BTreeMap<Place<'b>, Feed<'b>>,
    ) -> Result<HashMap<Place<'b>, Fed>, Error> {
        let places: Vec<_> = feeds.keys().collect();
        let feed: Vec<_> = feeds.values().collect();
        let rows = self
            .query(
                "INSERT INTO lane (kind, number, instance, route, sink, due_at, held_until, early, fed,
                   first_key, first_release)
                 SELECT kind, number, instance, route, sink, look_at, at_end, early, fed, first_key,
                   look_at
                 FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[],
                   $5::bigint[], $6::bigint[], $7::bigint[], $8::boolean[], $9::bigint[], $10::bytea[])
                   AS it (kind, number, instance, route, sink, look_at, at_end, early, fed, first_key)
                 ON CONFLICT (kind, number, instance, route, sink) DO UPDATE SET
                   due_at = CASE WHEN lane.leased THEN lane.due_at ELSE LEAST(lane.due_at, GREATEST(
                     lane.not_before, CASE WHEN lane.early AND excluded.early
                       THEN excluded.due_at ELSE excluded.held_until END)) END,
                   held_until = excluded.held_until,
                   early = lane.early AND excluded.early,
                   fed = lane.fed + excluded.fed,
                   first_key = CASE WHEN lane.due_at IS NULL THEN excluded.first_key
                     ELSE LEAST(lane.first_key, excluded.first_key) END,
                   first_release = CASE WHEN lane.due_at IS NULL THEN excluded.first_release
                     ELSE LEAST(lane.first_release, excluded.first_release) END
                 RETURNING id, kind, number, instance, route, sink, early, leased, due_at, fed",
                &[
                    &each(&places, |(lane, ..)| lane.kind),
                    &each(&places, |(lane, ..)| lane.number),
                    &each(&places, |(lane, ..)| lane.instance.as_bytes()),
                    &each(&places, |(_, route, _)| *route),
                    &each(&places, |(.., sink)| *sink),
                    &each(&feed, |it| it.look_at),
                    &each(&feed, |it| it.at_end),
                    &each(&feed, |it| it.early),
                    &each(&feed, |it| it.count),
                    &each(&feed, |it| it.first_key),
                ],
            )
            .await?;
        let mut by_key: HashMap<(i64, i64, &[u8], i64, i64), Fed> =
            HashMap::with_capacity(rows.len());
        for row in &rows {
            let key = (
                row.try_get(1)?,
                row.try_get(2)?,
                row.try_get(3)?,
                row.try_get(4)?,
                row.try_get(5)?,
            );
            by_key.insert(key, fed(row)?);
        }
        let found = feeds.iter().filter_map(|(place, feed)| {
            let (lane, route, sink) = place;
            let instance = lane.instance.as_bytes();
            let mut fed = by_key.remove(&(lane.kind, lane.number, instance, *route, *sink))?;
            fed.before = fed.count - feed.count;
            Some((*place, fed))
        });
        Ok(found.collect())
    }
}

fn fed(row: &Row) -> Result<Fed, Error> {
    let leased: bool = row.try_get(7)?;
    let due_at: Option<i64> = row.try_get(8)?;
    Ok(Fed {
        id: row.try_get(0)?,
        early: row.try_get(6)?,
        due_at: due_at.filter(|_| !leased),
        before: 0,
        count: row.try_get(9)?,
    })
}

fn debts<'b>(batch: &[Numbered<'b>], new: &New, told: &HashMap<usize, Told>) -> Vec<Debt<'b>> {
    let mut debts = Vec::new();
    for (at, event) in new {
        let Some(it) = batch.get(*at) else { continue };
        let append = it.append;
        let started = told.get(at).is_some_and(|told| told.started);
        let step = it.step();
        for (owed, (route, sink)) in append.owed.iter().zip(&it.owed) {
            let lane = LaneColumns::new(owed.lane, step.as_ref(), it.topic, *event);
            debts.push(Debt {
                at: *at,
                event: *event,
                place: (lane, *route, *sink),
                times: Times::of(owed, append.now, started),
                owed,
            });
        }
    }
    debts
}

fn feeds<'b>(debts: &[Debt<'b>]) -> BTreeMap<Place<'b>, Feed<'b>> {
    let mut feeds: BTreeMap<Place<'b>, Feed<'b>> = BTreeMap::new();
    for debt in debts {
        let key = debt.owed.key.as_bytes();
        let feed = feeds.entry(debt.place).or_insert(Feed {
            look_at: i64::MAX,
            at_end: i64::MAX,
            early: true,
            count: 0,
            first_key: key,
        });
        feed.look_at = feed.look_at.min(debt.times.look_at);
        feed.at_end = feed.at_end.min(debt.times.at_end);
        feed.early &= debt.times.goes_early;
        feed.count += 1;
        feed.first_key = feed.first_key.min(key);
    }
    feeds
}
