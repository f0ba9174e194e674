//! Keeping a batch of events with everything owed for them, in four questions to the database.
//!
//! Whatever two transactions may both want is asked for in the order of its key: first the
//! notifications, then the steps, the lanes, and the books. Unsorted, they would wait for each other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio_postgres::Error;

use super::tables::{Tables, day_of, first_of_day};
use crate::delivery::{Owed, Release, from_nanos};
use crate::event::Status;
use crate::store::rows::{LaneColumns, Step, Times, Told, envelope_number, nanos};
use crate::store::{Append, Appended, EventId};

/// An event to be kept, with the numbers of what it names.
pub(super) struct Numbered {
    pub(super) append: Arc<Append>,
    pub(super) topic: i64,
    pub(super) command_no: Option<i64>,
    /// Route and sink of each delivery owed.
    pub(super) owed: Vec<(i64, i64)>,
}

impl Numbered {
    fn step(&self) -> Option<Step<'_>> {
        Step::of(&self.append.event, self.command_no?)
    }

    /// What names the notification.
    fn key(&self) -> Key<'_> {
        let event = &self.append.event;
        (
            self.topic,
            nanos(event.sent_at),
            event.message_id.as_bytes(),
        )
    }
}

type Key<'a> = (i64, i64, &'a [u8]);

/// Which lane of which route and sink.
type Place<'a> = (LaneColumns<'a>, i64, i64);

/// What a batch brings to one lane.
struct Feed {
    look_at: i64,
    at_end: i64,
    early: bool,
    count: i64,
}

/// A lane, as it stands after it was fed.
struct Fed {
    id: i64,
    early: bool,
    due_at: Option<i64>,
    /// How much had been put into it before.
    before: i64,
    /// How much has now.
    count: i64,
}

/// What is put into a lane.
struct Put {
    event: i64,
    bytes: i64,
    fed: i64,
    release_at: i64,
}

/// A step that is stored: the status, when it was reached, and the event that told it first.
type Stored = (Status, i64, i64);

impl Tables<'_> {
    /// Keeps what is new of a batch; with what is owed unless it is `raw`.
    pub(super) async fn append(
        &mut self,
        batch: &[Numbered],
        raw: bool,
    ) -> Result<Vec<Appended>, Error> {
        let new = self.insert_events(batch, raw).await?;
        let told = if raw {
            HashMap::new()
        } else {
            self.tell(batch, &new).await?
        };
        let mut due = if raw {
            HashMap::new()
        } else {
            self.owe(batch, &new, &told).await?
        };
        let known = self.known_events(batch, &new).await?;
        self.write_tally().await?;
        let answers = batch.iter().enumerate().map(|(at, it)| match new.get(&at) {
            Some(id) => {
                let told = told.get(&at).cloned().unwrap_or_default();
                Appended::Stored {
                    id: EventId(*id),
                    repeat_of: told.before.map(EventId),
                    conflict: told.conflict,
                    due: due.remove(&at).unwrap_or_default(),
                }
            }
            None => Appended::Known {
                id: EventId(known.get(&it.key()).copied().unwrap_or_default()),
            },
        });
        Ok(answers.collect())
    }

    /// Enters what is new; its numbers, by its place in the batch.
    async fn insert_events(
        &self,
        batch: &[Numbered],
        raw: bool,
    ) -> Result<HashMap<usize, i64>, Error> {
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_by_key(|at| batch.get(*at).map(Numbered::key));
        order.dedup_by_key(|at| batch.get(*at).map(Numbered::key));
        let sorted: Vec<&Numbered> = order.iter().filter_map(|at| batch.get(*at)).collect();
        let steps: Vec<_> = sorted.iter().map(|it| it.step().filter(|_| !raw)).collect();
        let event = |it: &&Numbered| Arc::clone(&it.append);
        let appends: Vec<_> = sorted.iter().map(event).collect();
        let rows = self
            .query(
                "INSERT INTO event (id, topic, sns_time, message_id, envelope, received_at,
                   command_no, instance, status, event_time, subject, body)
                 SELECT day + nextval('event_no') % 10000000000, topic, sns_time, message_id,
                   envelope, received_at, command_no, instance, status, event_time, subject, body
                 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[],
                   $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[], $10::bigint[],
                   $11::bytea[], $12::bytea[]) AS new (day, topic, sns_time, message_id, envelope,
                   received_at, command_no, instance, status, event_time, subject, body)
                 ON CONFLICT (topic, sns_time, message_id) DO NOTHING
                 RETURNING id, topic, sns_time, message_id",
                &[
                    &each(&appends, |it| first_of_day(day_of(it.event.sent_at))),
                    &each(&sorted, |it| it.topic),
                    &each(&appends, |it| nanos(it.event.sent_at)),
                    &each(&appends, |it| it.event.message_id.as_bytes()),
                    &each(&appends, |it| envelope_number(&it.event.kind)),
                    &each(&appends, |it| nanos(it.received_at)),
                    &each(&steps, |it| it.as_ref().map(|step| step.command_no)),
                    &each(&steps, |it| {
                        it.as_ref().map(|step| step.instance.as_bytes())
                    }),
                    &each(&steps, |it| {
                        it.as_ref().map(|step| step.status.as_str().as_bytes())
                    }),
                    &each(&steps, |it| it.as_ref().map(|step| step.event_time)),
                    &each(&appends, |it| {
                        it.event.subject.as_ref().map(String::as_bytes)
                    }),
                    &each(&appends, |it| it.event.body.as_bytes()),
                ],
            )
            .await?;
        let places: HashMap<Key<'_>, usize> = order
            .iter()
            .filter_map(|at| Some((batch.get(*at)?.key(), *at)))
            .collect();
        let mut new = HashMap::with_capacity(rows.len());
        for row in &rows {
            let key = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            if let Some(at) = places.get(&key) {
                new.insert(*at, row.try_get(0)?);
            }
        }
        Ok(new)
    }

    /// The numbers of the events that were stored before.
    async fn known_events<'b>(
        &self,
        batch: &'b [Numbered],
        new: &HashMap<usize, i64>,
    ) -> Result<HashMap<Key<'b>, i64>, Error> {
        let mut known = HashMap::new();
        for (at, it) in batch.iter().enumerate() {
            if !new.contains_key(&at) {
                let (topic, sent_at, message_id) = it.key();
                let row = self
                    .query_opt(
                        "SELECT id FROM event
                         WHERE topic = $1 AND sns_time = $2 AND message_id = $3",
                        &[&topic, &sent_at, &message_id],
                    )
                    .await?;
                if let Some(row) = row {
                    known.insert(it.key(), row.try_get(0)?);
                }
            }
        }
        Ok(known)
    }

    /// Enters the steps of new events, and says what was told before.
    async fn tell(
        &self,
        batch: &[Numbered],
        new: &HashMap<usize, i64>,
    ) -> Result<HashMap<usize, Told>, Error> {
        let mut steps: Vec<(usize, i64, Step<'_>)> = new
            .iter()
            .filter_map(|(at, id)| Some((*at, *id, batch.get(*at)?.step()?)))
            .collect();
        if steps.is_empty() {
            return Ok(HashMap::new());
        }
        // Of one step told twice in a batch the first counts.
        steps.sort_by(|(_, one_id, one), (_, other_id, other)| {
            let key = |it: &Step<'_>, id: i64| {
                (
                    it.command_no,
                    it.instance.to_owned(),
                    it.status.as_str().to_owned(),
                    it.event_time,
                    id,
                )
            };
            key(one, *one_id).cmp(&key(other, *other_id))
        });
        let numbers = each(&steps, |(_, _, it)| it.command_no);
        let instances = each(&steps, |(_, _, it)| it.instance.as_bytes());
        let statuses = each(&steps, |(_, _, it)| it.status.as_str().as_bytes());
        let times = each(&steps, |(_, _, it)| it.event_time);
        let events = each(&steps, |(_, id, _)| *id);
        self.execute(
            "INSERT INTO step (command_no, instance, status, event_time, event)
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[])
             ON CONFLICT DO NOTHING",
            &[&numbers, &instances, &statuses, &times, &events],
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
            let step = (Status::parse(&status), row.try_get(3)?, row.try_get(4)?);
            all.entry((row.try_get(0)?, row.try_get(1)?))
                .or_default()
                .push(step);
        }
        let told = steps.iter().map(|(at, id, step)| {
            let mut told = Told::default();
            let of_it = all.get(&(step.command_no, step.instance.as_bytes()));
            for (status, event_time, event) in of_it.into_iter().flatten() {
                if status == step.status && *event_time == step.event_time {
                    told.before = (event != id).then_some(*event);
                }
                told.conflict |=
                    status.is_terminal() && step.status.is_terminal() && status != step.status;
                told.started |= *status == Status::InProgress;
            }
            (*at, told)
        });
        Ok(told.collect())
    }

    /// Puts the deliveries of new events into their lanes; says when each lane is due.
    async fn owe(
        &mut self,
        batch: &[Numbered],
        new: &HashMap<usize, i64>,
        told: &HashMap<usize, Told>,
    ) -> Result<HashMap<usize, Vec<(Arc<str>, jiff::Timestamp)>>, Error> {
        let mut puts: Vec<(usize, i64, Place<'_>, Times, &Owed)> = Vec::new();
        let mut feeds: BTreeMap<Place<'_>, Feed> = BTreeMap::new();
        for (at, it) in batch.iter().enumerate() {
            let Some(id) = new.get(&at) else { continue };
            let started = told.get(&at).is_some_and(|told| told.started);
            let step = it.step();
            for (owed, (route, sink)) in it.append.owed.iter().zip(&it.owed) {
                let times = Times::of(owed, it.append.received_at, started);
                let lane = LaneColumns::new(owed.lane, step.as_ref(), it.topic, *id);
                let place = (lane, *route, *sink);
                let feed = feeds.entry(place).or_insert(Feed {
                    look_at: i64::MAX,
                    at_end: i64::MAX,
                    early: true,
                    count: 0,
                });
                feed.look_at = feed.look_at.min(times.look_at);
                feed.at_end = feed.at_end.min(times.at_end);
                feed.early &= times.goes_early;
                feed.count += 1;
                puts.push((at, *id, place, times, owed));
            }
        }
        if puts.is_empty() {
            return Ok(HashMap::new());
        }
        let mut lanes = self.feed(&feeds).await?;
        let mut dues: HashMap<usize, Vec<_>> = HashMap::new();
        let mut rows: BTreeMap<(i64, &[u8]), Put> = BTreeMap::new();
        let mut starts: BTreeMap<i64, i64> = BTreeMap::new();
        let mut sinks: BTreeMap<i64, (i64, jiff::Timestamp)> = BTreeMap::new();
        for (at, id, place, times, owed) in puts {
            let Some(lane) = lanes.get_mut(&place) else {
                continue;
            };
            let Some(append) = batch.get(at).map(|it| &it.append) else {
                continue;
            };
            let release_at = times.release_at(lane.before == 0, lane.early);
            // Only the first that is put into a lane begins it.
            lane.before = lane.before.max(1);
            let now = nanos(append.received_at);
            if lane.early && owed.hold.release == Release::First {
                starts
                    .entry(lane.id)
                    .and_modify(|first| *first = now.min(*first))
                    .or_insert(now);
            }
            let bytes = i64::try_from(append.event.body.len()).unwrap_or(i64::MAX);
            rows.entry((lane.id, owed.key.as_bytes())).or_insert(Put {
                event: id,
                bytes,
                fed: lane.count,
                release_at,
            });
            sinks.insert(lane.id, (place.2, append.received_at));
            let sink = self.text(place.2).await?;
            let due_at = lane.due_at.unwrap_or(release_at);
            dues.entry(at).or_default().push((sink, from_nanos(due_at)));
        }
        let (lanes, keys): (Vec<i64>, Vec<&[u8]>) = rows.keys().copied().unzip();
        let column = |of: fn(&Put) -> i64| rows.values().map(of).collect::<Vec<_>>();
        let put = self
            .query(
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
            .await?;
        // The same message, signed anew at another time, is owed already.
        for row in &put {
            if let Some((sink, at)) = sinks.get(&row.try_get(0)?) {
                self.book(*sink, *at).owed += 1;
            }
        }
        if !starts.is_empty() {
            // A terminal status that came first waits for this one alone.
            let (lanes, nows): (Vec<i64>, Vec<i64>) = starts.into_iter().unzip();
            self.execute(
                "UPDATE waiting SET release_at = started.at
                 FROM unnest($1::bigint[], $2::bigint[]) AS started (lane, at)
                 WHERE waiting.lane = started.lane AND release_at > started.at AND NOT alone",
                &[&lanes, &nows],
            )
            .await?;
        }
        Ok(dues)
    }

    /// Makes the lanes that are missing, and has all of them looked at in time.
    async fn feed<'b>(
        &self,
        feeds: &BTreeMap<Place<'b>, Feed>,
    ) -> Result<HashMap<Place<'b>, Fed>, Error> {
        let places: Vec<_> = feeds.keys().collect();
        let feed: Vec<_> = feeds.values().collect();
        let rows = self
            .query(
                "INSERT INTO lane (kind, number, instance, route, sink, due_at, held_until, early, fed)
                 SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[],
                   $5::bigint[], $6::bigint[], $7::bigint[], $8::boolean[], $9::bigint[])
                 ON CONFLICT (kind, number, instance, route, sink) DO UPDATE SET
                   due_at = CASE WHEN lane.owner IS NULL THEN LEAST(lane.due_at, GREATEST(
                     lane.not_before, CASE WHEN lane.early AND excluded.early
                       THEN excluded.due_at ELSE excluded.held_until END)) END,
                   held_until = excluded.held_until,
                   early = lane.early AND excluded.early,
                   fed = lane.fed + excluded.fed
                 RETURNING id, kind, number, instance, route, sink, early, due_at, fed",
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
            let fed = Fed {
                id: row.try_get(0)?,
                early: row.try_get(6)?,
                due_at: row.try_get(7)?,
                before: 0,
                count: row.try_get(8)?,
            };
            by_key.insert(key, fed);
        }
        let found = feeds.iter().filter_map(|(place, feed)| {
            let (lane, route, sink) = place;
            let key = (
                lane.kind,
                lane.number,
                lane.instance.as_bytes(),
                *route,
                *sink,
            );
            let mut fed = by_key.remove(&key)?;
            fed.before = fed.count - feed.count;
            Some((*place, fed))
        });
        Ok(found.collect())
    }
}

/// One column of some rows.
pub(super) fn each<'a, T, C>(rows: &'a [T], column: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(column).collect()
}
