//! A stand-in for SNS on the loopback: signs, serves its certificate, takes confirmations. Runbell
//! is told to believe it by the compatible-endpoint setting, and by nothing else.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use runbell::sns::signer::{Certificate, Draft, Signer};
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:run-command";

/// What it answers when it is asked for its certificate, or to confirm.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub location: Option<String>,
    /// It never ends.
    pub hangs: bool,
}

impl Answer {
    pub fn of(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            location: None,
            hangs: false,
        }
    }
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Inner>>);

struct Inner {
    certificate: Answer,
    confirmation: Answer,
    asked: Vec<String>,
}

pub struct Sns {
    pub base: String,
    pub signer: Signer,
    shared: Shared,
    _server: JoinSet<()>,
}

impl Sns {
    pub async fn start() -> Self {
        Self::start_with(|url| Signer::new(url, &Certificate::default()).unwrap()).await
    }

    /// With a signer made for the URL of its certificate.
    pub async fn start_with(make: impl FnOnce(&str) -> Signer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let signer = make(&format!("{base}/certificate.pem"));
        let confirmed = "<SubscriptionArn>arn:aws:sns:x:y</SubscriptionArn>";
        let shared = Shared(Arc::new(Mutex::new(Inner {
            certificate: Answer::of(200, signer.pem().unwrap()),
            confirmation: Answer::of(200, confirmed),
            asked: Vec::new(),
        })));
        let router = Router::new()
            .route("/certificate.pem", get(certificate))
            .route("/other.pem", get(certificate))
            .route("/", get(confirm))
            .with_state(shared.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            base,
            signer,
            shared,
            _server: server,
        }
    }

    pub fn certificate_is(&self, answer: Answer) {
        self.shared.0.lock().unwrap().certificate = answer;
    }

    pub fn confirmation_is(&self, answer: Answer) {
        self.shared.0.lock().unwrap().confirmation = answer;
    }

    /// What was asked of it so far, oldest first.
    pub fn asked(&self) -> Vec<String> {
        self.shared.0.lock().unwrap().asked.clone()
    }

    pub fn draft(id: &str, message: &str, at: Timestamp) -> Draft {
        Draft {
            kind: "Notification".to_owned(),
            topic: TOPIC.to_owned(),
            message_id: id.to_owned(),
            subject: Some("EC2 Run Command Notification eu-central-1".to_owned()),
            message: message.to_owned(),
            timestamp: format!("{at:.3}"),
            token: "0123456789abcdef".to_owned(),
            is_version_2: false,
        }
    }

    pub fn fields(&self, draft: &Draft) -> Map<String, Value> {
        self.signer.envelope(draft).unwrap()
    }

    pub fn envelope(&self, draft: &Draft) -> String {
        Value::Object(self.fields(draft)).to_string()
    }

    /// A notification of an invocation's status that happens at `at`.
    pub fn status(&self, id: &str, instance: &str, status: &str, at: Timestamp) -> String {
        let message = serde_json::json!({
            "commandId": "c-1", "documentName": "AWS-RunShellScript", "instanceId": instance,
            "status": status, "eventTime": at.to_string(),
        });
        self.envelope(&Self::draft(id, &message.to_string(), at))
    }
}

async fn certificate(State(shared): State<Shared>) -> Response {
    let answer = {
        let mut inner = shared.0.lock().unwrap();
        inner.asked.push("certificate".to_owned());
        inner.certificate.clone()
    };
    respond(answer).await
}

async fn confirm(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let answer = {
        let mut inner = shared.0.lock().unwrap();
        inner.asked.push(query.unwrap_or_default());
        inner.confirmation.clone()
    };
    respond(answer).await
}

async fn respond(answer: Answer) -> Response {
    if answer.hangs {
        std::future::pending::<()>().await;
    }
    let status = StatusCode::from_u16(answer.status).unwrap();
    match answer.location {
        Some(location) => (status, [(header::LOCATION, location)], answer.body).into_response(),
        None => (status, answer.body).into_response(),
    }
}
