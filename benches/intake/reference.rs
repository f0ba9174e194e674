//! What Runbell is compared with: the least that an honest receiver does. Bare axum over the same
//! TLS reads the envelope, writes the string to sign, verifies it with a cached key, and answers. It
//! keeps nothing, and looks at nothing else.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Public};
use openssl::sign::Verifier;
use openssl::ssl::{Ssl, SslAcceptor, SslFiletype, SslMethod};
use openssl::x509::X509;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

/// Serves until the parent ends it. `folder` holds the certificates.
pub(crate) async fn serve(folder: &Path) -> anyhow::Result<()> {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    acceptor.set_groups_list("X25519:P-256:P-384")?;
    acceptor.set_certificate_chain_file(folder.join("tls.crt"))?;
    acceptor.set_private_key_file(folder.join("tls.key"), SslFiletype::PEM)?;
    let key = X509::from_pem(&std::fs::read(folder.join("sns.pem"))?)?.public_key()?;
    let listener = Listener {
        tcp: TcpListener::bind("127.0.0.1:0").await?,
        acceptor: acceptor.build(),
    };
    let router = Router::new()
        .route("/sns", post(receive))
        .with_state(Arc::new(key));
    crate::child::say_port(listener.tcp.local_addr()?.port());
    let served = axum::serve(listener, router);
    Ok(served
        .with_graceful_shutdown(crate::child::told_to_stop())
        .await?)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    #[serde(borrow)]
    topic_arn: Cow<'a, str>,
    #[serde(borrow)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow)]
    signature: Cow<'a, str>,
}

async fn receive(State(key): State<Arc<PKey<Public>>>, body: Bytes) -> StatusCode {
    match is_signed(&key, &body) {
        Ok(true) => StatusCode::OK,
        Ok(false) => StatusCode::FORBIDDEN,
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

fn is_signed(key: &PKey<Public>, body: &[u8]) -> anyhow::Result<bool> {
    let envelope: Envelope<'_> = serde_json::from_slice(body)?;
    let mut text = String::with_capacity(body.len());
    for (name, value) in [
        ("Message", Some(&envelope.message)),
        ("MessageId", Some(&envelope.message_id)),
        ("Subject", envelope.subject.as_ref()),
        ("Timestamp", Some(&envelope.timestamp)),
        ("TopicArn", Some(&envelope.topic_arn)),
        ("Type", Some(&envelope.r#type)),
    ] {
        if let Some(value) = value {
            text.extend([name, "\n", value, "\n"]);
        }
    }
    let signature = BASE64_STANDARD.decode(envelope.signature.as_bytes())?;
    let mut verifier = Verifier::new(MessageDigest::sha1(), key)?;
    Ok(verifier.verify_oneshot(&signature, text.as_bytes())?)
}

/// Connections that have shaken hands.
struct Listener {
    tcp: TcpListener,
    acceptor: SslAcceptor,
}

impl Listener {
    async fn secured(&self) -> anyhow::Result<(SslStream<TcpStream>, SocketAddr)> {
        let (stream, address) = self.tcp.accept().await?;
        stream.set_nodelay(true)?;
        let mut stream = SslStream::new(Ssl::new(self.acceptor.context())?, stream)?;
        Pin::new(&mut stream).accept().await?;
        Ok((stream, address))
    }
}

impl axum::serve::Listener for Listener {
    type Io = SslStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok(accepted) = self.secured().await {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
