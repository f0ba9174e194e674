//! SNS, played on the loopback: a signer, its certificate, and somebody who takes confirmations.

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::cli::Stop;
use crate::sns::signer::{Certificate, Signer};

/// The topic of the demo.
pub(super) const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:run-command";

pub(super) struct Sns {
    base: String,
    pub(super) signer: Signer,
}

impl Sns {
    /// The signer, and where it is asked.
    pub(super) async fn open() -> Result<(Self, TcpListener), Stop> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("cannot listen on the loopback")?;
        let base = format!("http://{}", listener.local_addr()?);
        let signer = Signer::new(&format!("{base}/certificate.pem"), &Certificate::default())?;
        Ok((Self { base, signer }, listener))
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Serves until it is dropped.
    pub(super) async fn serve(&self, listener: TcpListener) -> Result<(), Stop> {
        let pem = self.signer.pem()?;
        let confirmed = format!("<SubscriptionArn>{TOPIC}:demo</SubscriptionArn>");
        let router = Router::new()
            .route("/certificate.pem", get(async move || pem))
            .route("/", get(async move || confirmed));
        axum::serve(listener, router).await?;
        Ok(())
    }
}

/// The settings of the demo.
pub(super) fn settings(endpoint: &str) -> String {
    format!(
        r#"# Written by `runbell demo`.
[server]
listen = "127.0.0.1:0"
tls = {{ cert = "tls.crt", key = "tls.key" }}

[admin]
listen = "127.0.0.1:0"

[store]
url = "sqlite:runbell.db"

[log]
filter = "warn"

[[topic]]
arn = "{TOPIC}"
endpoint = "{endpoint}"   # the signer of the demo, in place of AWS

[sink.audit]
type = "file"
path = "audit.jsonl"

[sink.failures]
type = "file"
path = "failures.jsonl"

[[route]]
name = "audit"
to = ["audit"]
order = "topic"
hold = "5s"

[[route]]
name = "failures"
to = ["failures"]
when = {{ kind = "invocation", status = "!Success" }}
order = "instance"
"#
    )
}
