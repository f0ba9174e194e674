//! Looking at what is kept. Needs nothing but a connection, so that the command line can look beside
//! a running process.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter, types::Value};
use secrecy::SecretString;

use crate::delivery::{Outcome, from_nanos};
use crate::sns::KnownCertificate;
use crate::store::rules::columns::{RawEvent, marks, rows, took};
use crate::store::rules::number::name_no;
use crate::store::rules::step::lane_key;
use crate::store::{
    Backlog, DeadLetter, DeadSelection, Delivery, EventId, EventQuery, PastOutcome, RouteBacklog,
    StoredEvent, Subscription, Tally,
};

/// The columns of [`RawEvent`], in order.
const EVENT: &str = "event.id, (SELECT text FROM name WHERE name.id = event.topic), sns_time,
    message_id, envelope, received_at, command_no, event.instance, status, repeat_of, conflict,
    subject, body";

fn event_of(row: &Row<'_>) -> rusqlite::Result<RawEvent> {
    Ok(RawEvent {
        id: row.get(0)?,
        topic: row.get(1)?,
        sns_time: row.get(2)?,
        message_id: row.get(3)?,
        envelope: row.get(4)?,
        received_at: row.get(5)?,
        command_no: row.get(6)?,
        instance: row.get(7)?,
        status: row.get(8)?,
        repeat_of: row.get(9)?,
        conflict: row.get(10)?,
        subject: row.get(11)?,
        body: row.get(12)?,
    })
}

/// One event, if its row is there.
pub(super) fn raw_event(connection: &Connection, id: i64) -> rusqlite::Result<Option<RawEvent>> {
    connection
        .prepare_cached(&format!("SELECT {EVENT} FROM event WHERE id = ?1"))?
        .query_row([id], event_of)
        .optional()
}

pub(super) fn known(
    connection: &Connection,
    topic: &str,
    sent_at: i64,
    message_id: &str,
) -> rusqlite::Result<Option<EventId>> {
    connection
        .prepare_cached(
            "SELECT id FROM event WHERE topic = ?1 AND sns_time = ?2 AND message_id = ?3",
        )?
        .query_row(params![name_no(topic), sent_at, message_id], |row| {
            row.get(0)
        })
        .optional()
        .map(|id| id.map(EventId))
}

pub(super) fn events(
    connection: &Connection,
    query: &EventQuery,
) -> rusqlite::Result<Vec<StoredEvent>> {
    let mut sql = format!("SELECT {EVENT} FROM event WHERE 1");
    let mut values: Vec<Value> = Vec::new();
    let mut also = |condition: &str, value: Value| {
        sql.push_str(condition);
        values.push(value);
    };
    if let Some(command) = &query.command {
        // Several topics may tell of commands with the same id, each of its own.
        let numbers = "SELECT no FROM command WHERE id = ?";
        also(
            &format!(
                " AND event.id >= (SELECT min(first_event) FROM command WHERE no IN ({numbers}))"
            ),
            command.clone().into(),
        );
        // History has no index by command; its first event bounds how far back to look.
        also(
            &format!(" AND command_no IN ({numbers})"),
            command.clone().into(),
        );
    }
    if let Some(instance) = &query.instance {
        also(" AND event.instance = ?", instance.clone().into());
    }
    if let Some(topic) = &query.topic {
        also(" AND topic = ?", name_no(topic).into());
    }
    if let Some(before) = query.before {
        also(" AND event.id < ?", before.0.into());
    }
    also(" ORDER BY event.id DESC LIMIT ?", rows(query.limit).into());
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), event_of)?;
    rows.map(|row| row.map(RawEvent::read)).collect()
}

pub(super) fn event(
    connection: &Connection,
    id: EventId,
) -> rusqlite::Result<Option<(StoredEvent, Vec<Delivery>)>> {
    let Some(raw) = raw_event(connection, id.0)? else {
        return Ok(None);
    };
    let mut deliveries: BTreeMap<(String, String), Delivery> = BTreeMap::new();
    let of = |route: String, sink: String| Delivery {
        route,
        sink,
        waits_until: None,
        dead: false,
        outcomes: Vec::new(),
    };
    let mut statement = connection.prepare_cached(
        "SELECT r.text, s.text, at, result, marks, late, answer, took FROM outcome
         JOIN name r ON r.id = route JOIN name s ON s.id = sink WHERE event = ?1 ORDER BY n",
    )?;
    let mut rows = statement.query([id.0])?;
    while let Some(row) = rows.next()? {
        let (route, sink): (String, String) = (row.get(0)?, row.get(1)?);
        let result: String = row.get(3)?;
        let past = PastOutcome {
            at: from_nanos(row.get(2)?),
            outcome: Outcome::from_word(&result).unwrap_or(Outcome::Retry),
            marks: marks(row.get(4)?, row.get(5)?),
            answer: row.get(6)?,
            took: took(row.get(7)?),
        };
        deliveries
            .entry((route.clone(), sink.clone()))
            .or_insert_with(|| of(route, sink))
            .outcomes
            .push(past);
    }
    // By event there is no index over what waits: it would be paid for at every delivery.
    let mut statement = connection.prepare_cached(
        "SELECT r.text, s.text, CASE WHEN alone THEN release_at ELSE max(release_at, not_before) END
           - (SELECT ahead FROM clock), 0 FROM waiting
         JOIN lane ON lane.id = waiting.lane JOIN name r ON r.id = route
         JOIN name s ON s.id = sink WHERE event = ?1
         UNION ALL SELECT r.text, s.text, NULL, 1 FROM dead
         JOIN name r ON r.id = route JOIN name s ON s.id = sink WHERE event = ?1",
    )?;
    let mut rows = statement.query([id.0])?;
    while let Some(row) = rows.next()? {
        let (route, sink): (String, String) = (row.get(0)?, row.get(1)?);
        let delivery = deliveries
            .entry((route.clone(), sink.clone()))
            .or_insert_with(|| of(route, sink));
        // It may wait and be dead as well: handed over by a fallback to a sink that gave it up.
        if let Some(until) = row.get::<_, Option<i64>>(2)? {
            delivery.waits_until = Some(from_nanos(until));
        }
        delivery.dead |= row.get::<_, bool>(3)?;
    }
    Ok(Some((raw.read(), deliveries.into_values().collect())))
}

/// The condition, over `dead`, that a selection stands for, and its values.
pub(super) fn dead_condition(selection: &DeadSelection) -> (String, Vec<Value>) {
    match selection {
        DeadSelection::All => ("1".to_owned(), Vec::new()),
        DeadSelection::Sink(sink) => ("dead.sink = ?".to_owned(), vec![name_no(sink).into()]),
        DeadSelection::Ids(ids) => (
            format!("dead.id IN ({})", vec!["?"; ids.len()].join(", ")),
            ids.iter().map(|id| (*id).into()).collect(),
        ),
    }
}

pub(super) fn dead(
    connection: &Connection,
    selection: &DeadSelection,
    limit: usize,
) -> rusqlite::Result<Vec<DeadLetter>> {
    let (condition, mut values) = dead_condition(selection);
    values.push(rows(limit).into());
    let mut statement = connection.prepare(&format!(
        "SELECT {EVENT}, dead.id, r.text, s.text, died_at, tries, answer, dead.event FROM dead
         LEFT JOIN event ON event.id = dead.event JOIN name r ON r.id = route
         JOIN name s ON s.id = sink WHERE {condition} ORDER BY dead.id DESC LIMIT ?"
    ))?;
    let rows = statement.query_map(params_from_iter(values), |row| {
        let event = match row.get::<_, Option<i64>>(0)? {
            Some(_) => event_of(row)?,
            None => RawEvent::missing(row.get(19)?),
        };
        Ok(DeadLetter {
            event: event.read(),
            id: row.get(13)?,
            route: row.get(14)?,
            sink: row.get(15)?,
            died_at: from_nanos(row.get(16)?),
            tries: row.get(17)?,
            answer: row.get(18)?,
        })
    })?;
    rows.collect()
}

pub(super) fn subscription_of(
    connection: &Connection,
    id: i64,
) -> rusqlite::Result<Option<Subscription>> {
    connection
        .prepare_cached(
            "SELECT id, topic, token, asked_at, confirmed_at FROM subscription WHERE id = ?1",
        )?
        .query_row([id], subscription)
        .optional()
}

pub(super) fn subscriptions(connection: &Connection) -> rusqlite::Result<Vec<Subscription>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, topic, token, asked_at, confirmed_at FROM subscription ORDER BY id DESC",
    )?;
    let rows = statement.query_map([], subscription)?;
    rows.collect()
}

pub(super) fn subscription(row: &Row<'_>) -> rusqlite::Result<Subscription> {
    Ok(Subscription {
        id: row.get(0)?,
        topic: row.get(1)?,
        token: SecretString::from(row.get::<_, String>(2)?),
        asked_at: from_nanos(row.get(3)?),
        confirmed_at: row.get::<_, Option<i64>>(4)?.map(from_nanos),
    })
}

pub(super) fn certificates(connection: &Connection) -> rusqlite::Result<Vec<KnownCertificate>> {
    let mut statement = connection.prepare("SELECT url, pem, fetched_at FROM certificate_at")?;
    let rows = statement.query_map([], |row| {
        Ok(KnownCertificate {
            url: row.get(0)?,
            pem: row.get(1)?,
            fetched_at: from_nanos(row.get(2)?),
        })
    })?;
    rows.collect()
}

pub(super) fn backlog(connection: &Connection) -> rusqlite::Result<Vec<Backlog>> {
    let mut statement = connection.prepare_cached(
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
         WHERE waits.sink IS NOT NULL OR buried.sink IS NOT NULL OR sink.backoff_until IS NOT NULL
         ORDER BY name.text",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Backlog {
            sink: row.get(0)?,
            waiting: count(row, 1)?,
            oldest: row.get::<_, Option<i64>>(2)?.map(from_nanos),
            dead: count(row, 3)?,
            backoff_until: row.get::<_, Option<i64>>(4)?.map(from_nanos),
        })
    })?;
    rows.collect()
}

pub(super) fn route_backlog(connection: &Connection) -> rusqlite::Result<Vec<RouteBacklog>> {
    let mut statement = connection.prepare_cached(
        "SELECT name.text, kind,
           sum((SELECT count(*) FROM waiting WHERE waiting.lane = lane.id)) AS waits
         FROM lane JOIN name ON name.id = route WHERE due_at IS NOT NULL
         GROUP BY route, kind HAVING waits > 0 ORDER BY name.text, kind",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(RouteBacklog {
            route: row.get(0)?,
            lanes: lane_key(row.get(1)?),
            waiting: count(row, 2)?,
        })
    })?;
    rows.collect()
}

pub(super) fn tally(connection: &Connection) -> rusqlite::Result<Vec<Tally>> {
    let mut statement = connection.prepare_cached(
        "SELECT name.text, sum(owed), sum(sent), sum(muted), sum(redundant), sum(dropped),
           sum(dead), (SELECT count(*) FROM waiting JOIN lane ON lane.id = waiting.lane
                       WHERE lane.sink = tally.sink)
         FROM tally JOIN name ON name.id = tally.sink GROUP BY tally.sink ORDER BY name.text",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Tally {
            sink: row.get(0)?,
            owed: count(row, 1)?,
            sent: count(row, 2)?,
            muted: count(row, 3)?,
            redundant: count(row, 4)?,
            dropped: count(row, 5)?,
            dead: count(row, 6)?,
            waiting: count(row, 7)?,
        })
    })?;
    rows.collect()
}

fn count(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(at)?).unwrap_or_default())
}

/// Lanes in which something waits and that are not due at any time.
pub(super) fn forgotten_lanes(connection: &Connection) -> rusqlite::Result<Vec<i64>> {
    let mut next = connection.prepare_cached(
        "SELECT waiting.lane, due_at IS NULL FROM waiting
         LEFT JOIN lane ON lane.id = waiting.lane WHERE waiting.lane > ?1
         ORDER BY waiting.lane LIMIT 1",
    )?;
    let mut forgotten = Vec::new();
    let mut at = i64::MIN;
    while let Some((lane, is_forgotten)) = next
        .query_row([at], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<bool>>(1)?))
        })
        .optional()?
    {
        at = lane;
        if is_forgotten == Some(true) {
            forgotten.push(lane);
        }
    }
    Ok(forgotten)
}
