//! The services behind all sinks of all replicas: they note whatever they take, fail when they are
//! told to, and can hold an answer back so that somebody can be killed or paused before it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use runbell::clock::{Clock, later};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::publisher::COMMAND;

/// Long enough that whoever is killed is killed in the middle of something.
const MOMENT: Duration = Duration::from_millis(3);
/// Every sink has something to tell within this time.
const NEXT_CALL: Duration = Duration::from_mins(1);
/// No service is sent more at once.
const LARGEST: usize = 1 << 20;

/// A call that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub sink: String,
    /// The replica that made it.
    pub process: String,
    /// When its head came: it was under way from then on, whatever became of its process.
    pub at: Timestamp,
    /// The command that it tells of.
    command: String,
    pub body: Value,
}

struct Shared {
    clock: Clock,
    taken: Mutex<Vec<Taken>>,
    /// The status with which a sink refuses everything.
    failing: Mutex<BTreeMap<String, StatusCode>>,
    /// The sink whose answers are held back.
    held: watch::Sender<Option<String>>,
    /// The replica that waits for an answer that is held back.
    caught: watch::Sender<Option<String>>,
}

pub struct Services {
    /// Replica and sink follow as the path.
    pub base: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl Services {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            clock: Clock::system(),
            taken: Mutex::default(),
            failing: Mutex::default(),
            held: watch::Sender::new(None),
            caught: watch::Sender::new(None),
        });
        let router = axum::Router::new()
            .route("/{process}/{sink}", axum::routing::post(take))
            .with_state(Arc::clone(&shared));
        let mut server = JoinSet::new();
        server.spawn(async { axum::serve(listener, router).await.unwrap() });
        Self {
            base,
            shared,
            _server: server,
        }
    }

    /// Everything that was taken, in the order in which it came.
    pub fn taken(&self) -> Vec<Taken> {
        let mut taken = self.shared.taken.lock().unwrap().clone();
        taken.sort_by_key(|it| it.at);
        taken
    }

    /// Has a sink refuse everything from now on.
    pub fn fail(&self, sink: &str, status: u16) {
        let status = StatusCode::from_u16(status).unwrap();
        let mut failing = self.shared.failing.lock().unwrap();
        failing.insert(sink.to_owned(), status);
    }

    /// Has it take everything again.
    pub fn mend(&self, sink: &str) {
        self.shared.failing.lock().unwrap().remove(sink);
    }

    /// Holds back the answer to the next call that is the first to a sink about some command, and
    /// to any such call after it; gives the replica that made it, if one comes in time.
    pub async fn catch(&self, sink: &str) -> Option<String> {
        let mut caught = self.shared.caught.subscribe();
        self.shared.caught.send_replace(None);
        self.shared.held.send_replace(Some(sink.to_owned()));
        let came = tokio::time::timeout(NEXT_CALL, caught.wait_for(Option::is_some));
        came.await.ok().and_then(|it| it.unwrap().clone())
    }

    /// How many calls to a sink were taken.
    pub fn count(&self, sink: &str) -> usize {
        let taken = self.shared.taken.lock().unwrap();
        taken.iter().filter(|it| it.sink == sink).count()
    }

    /// Gives the answers that were held back.
    pub fn release(&self) {
        self.shared.held.send_replace(None);
    }
}

/// The id of the command in a body, whatever its form.
fn command(body: &str) -> String {
    let from = body.find(COMMAND).unwrap();
    body[from..from + COMMAND.len() + 12].to_owned()
}

async fn take(
    State(shared): State<Arc<Shared>>,
    Path((process, sink)): Path<(String, String)>,
    request: Request,
) -> Response {
    let at = shared.clock.now();
    let Ok(body) = axum::body::to_bytes(request.into_body(), LARGEST).await else {
        // Its process was killed in the middle of it.
        return StatusCode::BAD_REQUEST.into_response();
    };
    if let Some(status) = shared.failing.lock().unwrap().get(&sink) {
        return status.into_response();
    }
    let call = Taken {
        sink: sink.clone(),
        process: process.clone(),
        at,
        command: command(&String::from_utf8_lossy(&body)),
        body: serde_json::from_slice(&body).unwrap(),
    };
    let is_first = {
        let mut taken = shared.taken.lock().unwrap();
        let mut others = taken.iter().rev().filter(|it| it.sink == sink);
        let is_first = others.all(|it| it.command != call.command);
        taken.push(call);
        is_first
    };
    if is_first && shared.held.borrow().as_ref() == Some(&sink) {
        shared.caught.send_replace(Some(process));
        let mut held = shared.held.subscribe();
        // The sender lives as long as `shared`, which this function holds.
        let _ = held.wait_for(Option::is_none).await;
    }
    shared.clock.sleep_until(later(at, MOMENT)).await;
    // What an incoming webhook of Slack says; webhooks do not ask for more than the status.
    "ok".into_response()
}
