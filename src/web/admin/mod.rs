//! The door for people and their tools: health, metrics, reload, and the API that the command line
//! speaks. `app` runs it behind a TCP listener, the loopback by default, and behind a unix socket.
//!
//! [`guard`] decides who may ask; [`api`] reads and changes through the store and through what
//! [`Parts`] hands in; [`wire`] is what goes over the line, for both ends; [`socket`] opens the
//! unix socket.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use axum::{Json, Router, middleware};
use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::AdminSettings;
use super::serve::Limits;
use crate::clock::{Clock, since};
use crate::health::Readiness;
use crate::metrics::{CONTENT_TYPE, Metrics, SinkState};
use crate::store::{Care, History, StoreError};
use crate::wake::Wake;

pub mod api;
pub mod guard;
pub mod problem;
pub mod socket;
pub mod wire;

use problem::Problem;

/// An act of another part, asked for here. The text of a failure goes to whoever asked.
pub type Act<Q, A> = Arc<dyn Fn(Q) -> BoxFuture<'static, Result<A, String>> + Send + Sync>;

/// What the admin door looks at and acts on.
#[derive(Clone)]
pub struct Parts {
    /// Events, deliveries, dead letters.
    pub history: Arc<dyn History>,
    /// Acts on dead letters.
    pub care: Arc<dyn Care>,
    /// The sinks that run, each with what wakes it.
    pub wakes: Arc<HashMap<String, Wake>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What stands in the way.
    pub readiness: Readiness,
    /// What time it is for people.
    pub clock: Clock,
    /// The store's logical time.
    pub time: Clock,
    /// Reads the settings again; answers with one sentence on what changed.
    pub reload: Act<(), String>,
    /// Confirms the subscription of this number; `false` when there is none.
    pub confirm: Act<i64, bool>,
    /// The refused envelopes that are kept, newest first.
    pub refused: Act<(), Vec<wire::Refused>>,
    /// Judges a refused envelope again; `None` when it is not kept any more.
    pub judge: Act<u64, Option<wire::Judged>>,
}

/// The router that `serve` serves, on either kind of listener.
pub fn router(settings: &AdminSettings, parts: Parts) -> Router {
    let guard = Arc::new(guard::Guard::new(settings.token.as_ref()));
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route(
            "/-/reload",
            on(MethodFilter::POST.or(MethodFilter::PUT), reload),
        )
        .nest("/api/v1", api::router())
        .fallback(async || Problem::of(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async |method: Method| {
            Problem::of(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{method} is not for this"),
            )
        })
        .layer(middleware::from_fn_with_state(guard, guard::admit));
    Router::new()
        .route("/-/healthy", get(healthy))
        .route("/livez", get(healthy))
        .route("/-/ready", get(ready))
        .route("/readyz", get(ready))
        .merge(guarded)
        .layer(middleware::from_fn(guard::at_work))
        .with_state(parts)
}

/// The limits of the admin listeners: few clients, none of them in a hurry.
#[must_use]
pub const fn limits(drain: Duration) -> Limits {
    Limits {
        connections: 64,
        handshake: Duration::from_secs(10),
        header: Duration::from_secs(10),
        keep_alive: Duration::from_secs(75),
        drain,
    }
}

/// The process answers, and that is all: a dependency in trouble is no reason to be restarted.
async fn healthy() -> &'static str {
    "healthy\n"
}

#[derive(Deserialize)]
struct ReadyQuery {
    verbose: Option<String>,
}

async fn ready(
    State(parts): State<Parts>,
    query: Result<Query<ReadyQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let reasons = parts.readiness.reasons();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let verbose = query.is_ok_and(|Query(query)| query.verbose.is_some());
    let asks_for_json = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    if verbose || asks_for_json {
        let readiness = wire::Ready {
            ready: reasons.is_empty(),
            reasons: reasons
                .into_iter()
                .map(|(part, why)| wire::Reason {
                    part: part.to_owned(),
                    why,
                })
                .collect(),
        };
        return (status, Json(readiness)).into_response();
    }
    if reasons.is_empty() {
        return (status, "ready\n").into_response();
    }
    let lines: Vec<String> = reasons
        .into_iter()
        .map(|(part, why)| format!("{part}: {why}"))
        .collect();
    (status, lines.join("\n") + "\n").into_response()
}

async fn metrics(State(parts): State<Parts>) -> Result<Response, Problem> {
    let sinks = sink_states(&parts).await;
    if let Err(error) = &sinks {
        // A page without the store's part still says that, and why, to whoever watches.
        tracing::warn!(%error, "the store did not say what waits; the metrics page goes without");
    }
    let page = parts
        .metrics
        .encode(sinks.as_deref().ok())
        .map_err(|error| Problem::of(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response())
}

async fn sink_states(parts: &Parts) -> Result<Vec<SinkState>, StoreError> {
    let now = parts.clock.now();
    let backlog = parts.history.backlog().await?;
    Ok(backlog
        .into_iter()
        .map(|each| SinkState {
            sink: each.sink,
            waiting: each.waiting,
            oldest: each.oldest.map(|oldest| since(oldest, now)),
            dead: each.dead,
            in_backoff: each.backoff_until.is_some_and(|until| until > now),
        })
        .collect())
}

async fn reload(State(parts): State<Parts>) -> Result<Json<wire::Reloaded>, Problem> {
    let message = (parts.reload)(())
        .await
        .map_err(|why| Problem::of(StatusCode::INTERNAL_SERVER_ERROR, why))?;
    Ok(Json(wire::Reloaded { message }))
}
