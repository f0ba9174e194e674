//! Looking at what is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::SecretString;
use tokio_postgres::{Error, Row};

use super::tables::{Tables, day_of_event, first_of_day, start_of_day};
use super::values::Value;
use crate::delivery::{Outcome, from_nanos};
use crate::sns::KnownCertificate;
use crate::store::rules::columns::{RawEvent, marks, rows, took};
use crate::store::rules::number::name_no;
use crate::store::rules::step::{lane_key, terminal};
use crate::store::{
    Backlog, DeadLetter, DeadSelection, Delivery, EventId, EventQuery, PastOutcome, RouteBacklog,
    StoredEvent, Subscription, Tally,
};

/// The columns of [`RawEvent`], in order. What other events say of it is asked of the steps, which
/// every replica sees alike. An event is in conflict with another end that was known when it came;
/// the first that told its step, also with one that came later. Numbers within their days grow with
/// arrival.
pub(super) const EVENT: &str = concat!(
    "event.id, event.topic, sns_time, message_id, envelope, received_at,
    event.command_no, event.instance, event.status,
    (SELECT step.event FROM step WHERE step.command_no = event.command_no
       AND step.instance = event.instance AND step.status = event.status
       AND step.event_time = event.event_time AND step.event <> event.id) AS repeat_of,
    event.status IN ",
    terminal!(),
    " AND EXISTS (
       SELECT 1 FROM step WHERE step.command_no = event.command_no
       AND step.instance = event.instance AND step.status <> event.status
       AND step.status IN ",
    terminal!(),
    " AND (step.event % 10000000000 < event.id % 10000000000 OR EXISTS (
         SELECT 1 FROM step AS own WHERE own.command_no = event.command_no
         AND own.instance = event.instance AND own.status = event.status
         AND own.event_time = event.event_time AND own.event = event.id))) AS conflict,
    subject, body"
);

/// Values with the types of their columns.
type Values = Vec<Box<dyn Value + Send>>;

impl Tables<'_, '_> {
    pub(super) async fn event_of(&self, row: &Row) -> Result<RawEvent, Error> {
        Ok(RawEvent {
            id: row.try_get(0)?,
            topic: self.text(row.try_get(1)?).await?.as_ref().to_owned(),
            sns_time: row.try_get(2)?,
            message_id: text(row, 3)?,
            envelope: row.try_get(4)?,
            received_at: row.try_get(5)?,
            command_no: row.try_get(6)?,
            instance: optional_text(row, 7)?,
            status: optional_text(row, 8)?,
            repeat_of: row.try_get(9)?,
            conflict: row.try_get::<_, Option<bool>>(10)?.unwrap_or_default(),
            subject: optional_text(row, 11)?,
            body: row.try_get(12)?,
        })
    }

    pub(super) async fn known_event(
        &self,
        topic: &str,
        sent_at: i64,
        message_id: &str,
    ) -> Result<Option<EventId>, Error> {
        let row = self
            .query_opt(
                "SELECT id FROM event WHERE topic = $1 AND sns_time = $2 AND message_id = $3",
                &[&name_no(topic), &sent_at, &message_id.as_bytes()],
            )
            .await?;
        row.map(|row| row.try_get(0).map(EventId)).transpose()
    }

    pub(super) async fn events(&self, query: &EventQuery) -> Result<Vec<StoredEvent>, Error> {
        let mut sql = format!("SELECT {EVENT} FROM event WHERE true");
        let mut values: Values = Vec::new();
        if let Some(command) = &query.command {
            // Several topics may tell of commands with the same id, each of its own.
            let rows = self
                .query(
                    "SELECT no, first_event FROM command WHERE id = $1",
                    &[&command.as_bytes()],
                )
                .await?;
            let found = rows
                .iter()
                .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
            let found: Vec<(i64, i64)> = found.collect::<Result<_, Error>>()?;
            let (numbers, first): (Vec<i64>, Vec<i64>) = found.into_iter().unzip();
            // History has no index by command; its first day bounds how far back to look.
            let Some(first) = first.into_iter().min() else {
                return Ok(Vec::new());
            };
            also(&mut sql, &mut values, " AND event.id >= ", first);
            let start = start_of_day(day_of_event(first));
            also(&mut sql, &mut values, " AND sns_time >= ", start);
            also(&mut sql, &mut values, " AND command_no = ANY(", numbers);
            sql.push(')');
        }
        if let Some(instance) = &query.instance {
            let instance = instance.as_bytes().to_vec();
            also(&mut sql, &mut values, " AND event.instance = ", instance);
        }
        if let Some(topic) = &query.topic {
            also(&mut sql, &mut values, " AND topic = ", name_no(topic));
        }
        if let Some(before) = query.before {
            also(&mut sql, &mut values, " AND event.id < ", before.0);
            let end = start_of_day(day_of_event(before.0).saturating_add(1));
            also(&mut sql, &mut values, " AND sns_time < ", end);
        }
        also(
            &mut sql,
            &mut values,
            " ORDER BY event.id DESC LIMIT ",
            rows(query.limit),
        );
        let values: Vec<_> = values.iter().map(|it| &**it as &dyn Value).collect();
        let mut events = Vec::new();
        for row in self.query(&sql, &values).await? {
            events.push(self.event_of(&row).await?.read());
        }
        Ok(events)
    }

    pub(super) async fn event(
        &self,
        id: EventId,
    ) -> Result<Option<(StoredEvent, Vec<Delivery>)>, Error> {
        let Some(raw) = self.raw_event(id.0).await? else {
            return Ok(None);
        };
        let mut deliveries: BTreeMap<(Arc<str>, Arc<str>), Delivery> = BTreeMap::new();
        let past = self
            .query(
                "SELECT route, sink, at, result, marks, late, answer, took FROM outcome
                 WHERE event = $1 ORDER BY n",
                &[&id.0],
            )
            .await?;
        for row in &past {
            let delivery = self.delivery_of(&mut deliveries, row).await?;
            delivery.outcomes.push(PastOutcome {
                at: from_nanos(row.try_get(2)?),
                outcome: Outcome::from_word(row.try_get(3)?).unwrap_or(Outcome::Retry),
                marks: marks(row.try_get(4)?, row.try_get(5)?),
                answer: optional_text(row, 6)?,
                took: took(row.try_get(7)?),
            });
        }
        // By event there is no index over what waits: it would be paid for at every delivery.
        let now = self
            .query(
                "SELECT route, sink,
                   CASE WHEN alone THEN release_at ELSE GREATEST(release_at, not_before) END
                     - (SELECT ahead FROM clock), false
                 FROM waiting JOIN lane ON lane.id = waiting.lane WHERE event = $1
                 UNION ALL SELECT route, sink, NULL, true FROM dead WHERE event = $1",
                &[&id.0],
            )
            .await?;
        for row in &now {
            let delivery = self.delivery_of(&mut deliveries, row).await?;
            // It may wait and be dead as well: handed over by a fallback to a sink that gave it up.
            if let Some(until) = row.try_get::<_, Option<i64>>(2)? {
                delivery.waits_until = Some(from_nanos(until));
            }
            delivery.dead |= row.try_get::<_, bool>(3)?;
        }
        Ok(Some((raw.read(), deliveries.into_values().collect())))
    }

    async fn delivery_of<'d>(
        &self,
        deliveries: &'d mut BTreeMap<(Arc<str>, Arc<str>), Delivery>,
        row: &Row,
    ) -> Result<&'d mut Delivery, Error> {
        let route = self.text(row.try_get(0)?).await?;
        let sink = self.text(row.try_get(1)?).await?;
        let new = Delivery {
            route: route.as_ref().to_owned(),
            sink: sink.as_ref().to_owned(),
            waits_until: None,
            dead: false,
            outcomes: Vec::new(),
        };
        Ok(deliveries.entry((route, sink)).or_insert(new))
    }

    pub(super) async fn dead(
        &self,
        selection: &DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, Error> {
        let (condition, value) = dead_condition(selection);
        // A number says in which partition its event lies.
        let (day, nanos) = (first_of_day(1), start_of_day(1));
        let rows = self
            .query(
                &format!(
                    "SELECT {EVENT}, dead.id, dead.route, dead.sink, died_at, tries, answer, dead.event
                     FROM dead LEFT JOIN event ON event.id = dead.event
                       AND sns_time >= dead.event / {day} * {nanos}
                       AND sns_time < (dead.event / {day} + 1) * {nanos}
                     WHERE {condition}
                     ORDER BY dead.id DESC LIMIT $2"
                ),
                &[&*value, &rows(limit)],
            )
            .await?;
        let mut letters = Vec::with_capacity(rows.len());
        for row in &rows {
            let event = match row.try_get::<_, Option<i64>>(0)? {
                Some(_) => self.event_of(row).await?,
                None => RawEvent::missing(row.try_get(19)?),
            };
            letters.push(DeadLetter {
                event: event.read(),
                id: row.try_get(13)?,
                route: self.text(row.try_get(14)?).await?.as_ref().to_owned(),
                sink: self.text(row.try_get(15)?).await?.as_ref().to_owned(),
                died_at: from_nanos(row.try_get(16)?),
                tries: u32::try_from(row.try_get::<_, i64>(17)?).unwrap_or(u32::MAX),
                answer: optional_text(row, 18)?,
            });
        }
        Ok(letters)
    }

    pub(super) async fn subscriptions(&self) -> Result<Vec<Subscription>, Error> {
        let rows = self
            .query(
                "SELECT id, topic, token, asked_at, confirmed_at FROM subscription ORDER BY id DESC",
                &[],
            )
            .await?;
        rows.iter().map(subscription).collect()
    }

    pub(super) async fn subscription_of(&self, id: i64) -> Result<Option<Subscription>, Error> {
        let row = self
            .query_opt(
                "SELECT id, topic, token, asked_at, confirmed_at FROM subscription WHERE id = $1",
                &[&id],
            )
            .await?;
        row.as_ref().map(subscription).transpose()
    }

    pub(super) async fn certificates(&self) -> Result<Vec<KnownCertificate>, Error> {
        let rows = self
            .query("SELECT url, pem, fetched_at FROM certificate_at", &[])
            .await?;
        let each = rows.iter().map(|row| {
            Ok(KnownCertificate {
                url: row.try_get(0)?,
                pem: row.try_get(1)?,
                fetched_at: from_nanos(row.try_get(2)?),
            })
        });
        each.collect()
    }

    pub(super) async fn backlog(&self) -> Result<Vec<Backlog>, Error> {
        let rows = self
            .query(
                "WITH waits AS (
                   SELECT lane.sink AS sink, count(*) AS number, min(event) AS oldest
                   FROM waiting JOIN lane ON lane.id = waiting.lane GROUP BY lane.sink),
                 buried AS (SELECT sink, count(*) AS number FROM dead GROUP BY sink)
                 SELECT name.text, coalesce(waits.number, 0),
                   (SELECT received_at FROM event WHERE event.id = waits.oldest),
                   coalesce(buried.number, 0),
                   sink.backoff_until - (SELECT ahead FROM clock)
                 FROM name LEFT JOIN waits ON waits.sink = name.id
                   LEFT JOIN buried ON buried.sink = name.id LEFT JOIN sink ON sink.name = name.id
                 WHERE waits.sink IS NOT NULL OR buried.sink IS NOT NULL
                   OR sink.backoff_until IS NOT NULL
                 ORDER BY name.text COLLATE \"C\"",
                &[],
            )
            .await?;
        let each = rows.iter().map(|row| {
            Ok(Backlog {
                sink: row.try_get(0)?,
                waiting: count(row, 1)?,
                oldest: row.try_get::<_, Option<i64>>(2)?.map(from_nanos),
                dead: count(row, 3)?,
                backoff_until: row.try_get::<_, Option<i64>>(4)?.map(from_nanos),
            })
        });
        each.collect()
    }

    pub(super) async fn route_backlog(&self) -> Result<Vec<RouteBacklog>, Error> {
        let rows = self
            .query(
                "SELECT name.text, kind, sum((SELECT count(*) FROM waiting
                   WHERE waiting.lane = lane.id))::bigint
                 FROM lane JOIN name ON name.id = route WHERE due_at IS NOT NULL
                 GROUP BY name.text, kind
                 HAVING sum((SELECT count(*) FROM waiting WHERE waiting.lane = lane.id)) > 0
                 ORDER BY name.text COLLATE \"C\", kind",
                &[],
            )
            .await?;
        let each = rows.iter().map(|row| {
            Ok(RouteBacklog {
                route: row.try_get(0)?,
                lanes: lane_key(row.try_get(1)?),
                waiting: count(row, 2)?,
            })
        });
        each.collect()
    }

    pub(super) async fn tally(&self) -> Result<Vec<Tally>, Error> {
        let rows = self
            .query(
                "SELECT name.text, sum(owed)::bigint, sum(sent)::bigint, sum(muted)::bigint,
                   sum(redundant)::bigint, sum(dropped)::bigint, sum(dead)::bigint,
                   (SELECT count(*) FROM waiting JOIN lane ON lane.id = waiting.lane
                    WHERE lane.sink = tally.sink)
                 FROM tally JOIN name ON name.id = tally.sink GROUP BY tally.sink, name.text
                 ORDER BY name.text COLLATE \"C\"",
                &[],
            )
            .await?;
        let each = rows.iter().map(|row| {
            Ok(Tally {
                sink: row.try_get(0)?,
                owed: count(row, 1)?,
                sent: count(row, 2)?,
                muted: count(row, 3)?,
                redundant: count(row, 4)?,
                dropped: count(row, 5)?,
                dead: count(row, 6)?,
                waiting: count(row, 7)?,
            })
        });
        each.collect()
    }

    /// Lanes in which something waits and that are not due at any time.
    pub(super) async fn forgotten_lanes(&self) -> Result<Vec<i64>, Error> {
        self.numbers(
            "SELECT lane.id FROM (SELECT DISTINCT lane FROM waiting) AS waits
             JOIN lane ON lane.id = waits.lane WHERE due_at IS NULL",
            &[],
        )
        .await
    }
}

fn also(
    sql: &mut String,
    values: &mut Values,
    condition: &str,
    value: impl Value + Send + 'static,
) {
    values.push(Box::new(value));
    sql.push_str(condition);
    sql.push('$');
    sql.push_str(&values.len().to_string());
}

/// The condition, over `dead`, that a selection stands for, and its value, `$1`.
pub(super) fn dead_condition(selection: &DeadSelection) -> (&'static str, Box<dyn Value + Send>) {
    match selection {
        DeadSelection::All => ("$1::boolean", Box::new(true)),
        DeadSelection::Sink(sink) => ("dead.sink = $1", Box::new(name_no(sink))),
        DeadSelection::Ids(ids) => ("dead.id = ANY($1)", Box::new(ids.clone())),
    }
}

pub(super) fn subscription(row: &Row) -> Result<Subscription, Error> {
    Ok(Subscription {
        id: row.try_get(0)?,
        topic: row.try_get(1)?,
        token: SecretString::from(row.try_get::<_, String>(2)?),
        asked_at: from_nanos(row.try_get(3)?),
        confirmed_at: row.try_get::<_, Option<i64>>(4)?.map(from_nanos),
    })
}

/// Text that is kept as bytes.
pub(super) fn text(row: &Row, at: usize) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(row.try_get(at)?).into_owned())
}

pub(super) fn optional_text(row: &Row, at: usize) -> Result<Option<String>, Error> {
    let bytes: Option<&[u8]> = row.try_get(at)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}

fn count(row: &Row, at: usize) -> Result<u64, Error> {
    Ok(u64::try_from(row.try_get::<_, i64>(at)?).unwrap_or_default())
}
