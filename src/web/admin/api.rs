//! `/api/v1`: what the command line lists and changes while the process runs.
//!
//! Reading goes to the store. Changing goes to the store, or to the act that [`Parts`] hands in
//! where another part has to be asked. Everything that can be wrong with a request is a
//! [`Problem`]; lists are bounded.

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Deserialize;

use super::Parts;
use super::problem::Problem;
use super::wire::{
    Backlogs, Bury, Count, DeadAct, DeadLetter, DeadLetters, Event, EventShown, Events, Judged,
    RefusedList, Subscription, Subscriptions, Tallies,
};
use crate::store::{Care, DeadSelection, EventId, EventQuery, History};

/// How many entries a list has when nobody says.
const USUAL_LIMIT: usize = 100;

/// How many it has at most.
const GREATEST_LIMIT: usize = 1000;

type Answer<T> = Result<Json<T>, Problem>;
type Asked<T> = Result<Query<T>, QueryRejection>;

pub(super) fn router() -> Router<Parts> {
    Router::new()
        .route("/events", get(events))
        .route("/events/{id}", get(event))
        .route("/dead", get(dead))
        .route("/dead/{id}", get(dead_letter))
        .route("/dead/retry", post(retry_dead))
        .route("/dead/drop", post(drop_dead))
        .route("/dead/bury", post(bury))
        .route("/subscriptions", get(subscriptions))
        .route("/subscriptions/{id}/confirm", post(confirm))
        .route("/refused", get(refused))
        .route("/refused/{id}/judge", post(judge))
        .route("/backlog", get(backlog))
        .route("/tally", get(tally))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsAsked {
    command: Option<String>,
    instance: Option<String>,
    topic: Option<String>,
    before: Option<i64>,
    limit: Option<usize>,
}

async fn events(State(parts): State<Parts>, asked: Asked<EventsAsked>) -> Answer<Events> {
    let asked = understood(asked)?;
    let limit = bounded(asked.limit)?;
    let events = parts
        .history
        .events(EventQuery {
            command: asked.command,
            instance: asked.instance,
            topic: asked.topic,
            before: asked.before.map(EventId),
            limit,
        })
        .await?;
    let last = events.last().filter(|_| events.len() >= limit);
    Ok(Json(Events {
        next: last.map(|event| event.id.0),
        events: events.into_iter().map(Event::brief).collect(),
    }))
}

async fn event(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<EventShown> {
    let id = number(&id)?;
    let (event, deliveries) = parts
        .history
        .event(EventId(id))
        .await?
        .ok_or_else(|| missing("event", id))?;
    Ok(Json(EventShown {
        event: Event::whole(event),
        deliveries: deliveries.into_iter().map(Into::into).collect(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadAsked {
    sink: Option<String>,
    limit: Option<usize>,
}

async fn dead(State(parts): State<Parts>, asked: Asked<DeadAsked>) -> Answer<DeadLetters> {
    let asked = understood(asked)?;
    let limit = bounded(asked.limit)?;
    let selection = asked.sink.map_or(DeadSelection::All, DeadSelection::Sink);
    let letters = parts.history.dead(selection, limit).await?;
    let dead = letters.into_iter().map(DeadLetter::from).map(|mut letter| {
        letter.event.message = None;
        letter
    });
    Ok(Json(DeadLetters {
        dead: dead.collect(),
    }))
}

async fn dead_letter(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<DeadLetter> {
    let id = number(&id)?;
    let found = parts.history.dead(DeadSelection::Ids(vec![id]), 1).await?;
    let letter = found
        .into_iter()
        .next()
        .ok_or_else(|| missing("dead letter", id))?;
    Ok(Json(letter.into()))
}

async fn retry_dead(State(parts): State<Parts>, body: Bytes) -> Answer<Count> {
    let act: DeadAct = read(&body)?;
    let to = act.to.clone();
    if let Some(sink) = to.as_ref().filter(|sink| !parts.wakes.contains_key(*sink)) {
        return Err(wrong(format!("no sink `{sink}` runs here")));
    }
    let now = parts.time.now();
    let runs = |sink: &str| parts.wakes.contains_key(sink);
    let store = (&*parts.history, &*parts.care);
    let count = retry(store, selection(act)?, to, &runs, now).await?;
    for wake in parts.wakes.values() {
        wake.at(now);
    }
    Ok(Json(Count { count }))
}

/// Puts dead letters back to wait; `now` is logical time. Without `to`, those of sinks that do not run stay where they can be
/// seen.
///
/// # Errors
/// When the store fails, or a sink or a letter was named that cannot go anywhere.
pub async fn retry(
    (history, care): (&dyn History, &dyn Care),
    selection: DeadSelection,
    to: Option<String>,
    runs: &(dyn Fn(&str) -> bool + Sync),
    now: Timestamp,
) -> Result<u64, Problem> {
    let gone = |sink: &str| {
        wrong(format!(
            "no sink `{sink}` runs here: say to which the letters shall go"
        ))
    };
    match selection {
        _ if to.is_some() => Ok(care.retry_dead(selection, to, now).await?),
        DeadSelection::All => {
            let mut count = 0;
            for sink in history.backlog().await? {
                if runs(&sink.sink) {
                    let its = DeadSelection::Sink(sink.sink);
                    count += care.retry_dead(its, None, now).await?;
                }
            }
            Ok(count)
        }
        DeadSelection::Sink(sink) if !runs(&sink) => Err(gone(&sink)),
        DeadSelection::Ids(ids) => {
            let letters = history
                .dead(DeadSelection::Ids(ids.clone()), ids.len())
                .await?;
            if let Some(letter) = letters.iter().find(|letter| !runs(&letter.sink)) {
                return Err(gone(&letter.sink));
            }
            Ok(care.retry_dead(DeadSelection::Ids(ids), None, now).await?)
        }
        DeadSelection::Sink(_) => Ok(care.retry_dead(selection, None, now).await?),
    }
}

async fn bury(State(parts): State<Parts>, body: Bytes) -> Answer<Count> {
    let Bury { sink } = read(&body)?;
    let count = parts.care.bury(&sink, parts.time.now()).await?;
    Ok(Json(Count { count }))
}

async fn drop_dead(State(parts): State<Parts>, body: Bytes) -> Answer<Count> {
    let act: DeadAct = read(&body)?;
    if act.to.is_some() {
        return Err(wrong("`to` has no meaning when dead letters are dropped"));
    }
    let now = parts.time.now();
    let count = parts.care.drop_dead(selection(act)?, now).await?;
    Ok(Json(Count { count }))
}

async fn subscriptions(State(parts): State<Parts>) -> Answer<Subscriptions> {
    let subscriptions = parts.history.subscriptions().await?;
    Ok(Json(Subscriptions {
        subscriptions: subscriptions.into_iter().map(Subscription::from).collect(),
    }))
}

async fn confirm(
    State(parts): State<Parts>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let id = number(&id)?;
    if (parts.confirm)(id).await.map_err(failed)? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing("subscription", id))
    }
}

async fn refused(State(parts): State<Parts>) -> Answer<RefusedList> {
    let refused = (parts.refused)(()).await.map_err(failed)?;
    Ok(Json(RefusedList { refused }))
}

async fn judge(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<Judged> {
    let id = number(&id)?;
    let judged = (parts.judge)(id).await.map_err(failed)?;
    judged
        .map(Json)
        .ok_or_else(|| missing("refused envelope", id))
}

async fn backlog(State(parts): State<Parts>) -> Answer<Backlogs> {
    let sinks = parts.history.backlog().await?;
    Ok(Json(Backlogs {
        sinks: sinks.into_iter().map(Into::into).collect(),
    }))
}

async fn tally(State(parts): State<Parts>) -> Answer<Tallies> {
    let sinks = parts.history.tally().await?;
    Ok(Json(Tallies {
        sinks: sinks.into_iter().map(Into::into).collect(),
    }))
}

fn understood<T>(asked: Asked<T>) -> Result<T, Problem> {
    asked
        .map(|Query(asked)| asked)
        .map_err(|rejection| wrong(rejection.body_text()))
}

fn bounded(limit: Option<usize>) -> Result<usize, Problem> {
    match limit.unwrap_or(USUAL_LIMIT) {
        limit @ 1..=GREATEST_LIMIT => Ok(limit),
        _ => Err(wrong(format!("`limit` is from 1 to {GREATEST_LIMIT}"))),
    }
}

fn number<N: std::str::FromStr>(id: &str) -> Result<N, Problem> {
    id.parse()
        .map_err(|_| wrong("the number in the path is none"))
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| wrong(format!("the body is not what it should be: {error}")))
}

fn selection(act: DeadAct) -> Result<DeadSelection, Problem> {
    match (act.all, act.sink, act.ids) {
        (true, None, None) => Ok(DeadSelection::All),
        (false, Some(sink), None) => Ok(DeadSelection::Sink(sink)),
        (false, None, Some(ids)) => Ok(DeadSelection::Ids(ids)),
        _ => Err(wrong("say exactly one of `all`, `sink` and `ids`")),
    }
}

fn wrong(detail: impl Into<String>) -> Problem {
    Problem::of(StatusCode::BAD_REQUEST, detail)
}

fn missing(what: &str, id: impl std::fmt::Display) -> Problem {
    Problem::of(StatusCode::NOT_FOUND, format!("there is no {what} {id}"))
}

fn failed(why: String) -> Problem {
    Problem::of(StatusCode::BAD_GATEWAY, why)
}
