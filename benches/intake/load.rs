//! The client: as lean as it can be, because it shares the machine with what it measures. It posts
//! over keep-alive TLS connections and notes when each notification was answered.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use axum::body::{Body, HttpBody as _};
use axum::http::{Request, StatusCode};
use futures_util::future::{poll_fn, try_join_all};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use openssl::ssl::{Ssl, SslContext, SslMethod};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::notifications::Notification;

/// How many connections, each with one request under way.
pub(crate) const CONNECTIONS: usize = 64;

/// Connections that stand.
pub(crate) struct Load {
    senders: Vec<SendRequest<Body>>,
}

/// How long it took, in all and each.
pub(crate) struct Took {
    pub(crate) whole: Duration,
    /// From the moment a notification was due to its 200.
    pub(crate) each: Vec<Duration>,
    /// When each notification was due, in their order.
    pub(crate) due: Vec<Instant>,
}

impl Load {
    pub(crate) async fn connect(port: u16) -> anyhow::Result<Self> {
        let senders = (0..CONNECTIONS).map(|_| connect(port));
        Ok(Self {
            senders: try_join_all(senders).await?,
        })
    }

    /// Posts all of them as fast as they are answered.
    pub(crate) async fn post(&mut self, notifications: &[Notification]) -> anyhow::Result<Took> {
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        let posts = self.senders.iter_mut().map(async |sender| {
            let mut took = Vec::new();
            while let Some(one) = notifications.get(next.fetch_add(1, Ordering::Relaxed)) {
                let begun = Instant::now();
                accepted(post(sender, one).await?)?;
                took.push(begun.elapsed());
            }
            anyhow::Ok(took)
        });
        let each = try_join_all(posts).await?.concat();
        Ok(Took {
            whole: start.elapsed(),
            each,
            due: Vec::new(),
        })
    }

    /// Posts one every `pace`, whether the others are answered or not as long as a connection is
    /// free; time counts from when it was due.
    pub(crate) async fn post_paced(
        &mut self,
        notifications: &[Notification],
        pace: Duration,
    ) -> anyhow::Result<Took> {
        let start = Instant::now() + Duration::from_millis(50);
        let due: Vec<Instant> = (0..)
            .zip(notifications)
            .map(|(number, _)| start + pace * number)
            .collect();
        let posts = self
            .senders
            .iter_mut()
            .enumerate()
            .map(async |(first, sender)| {
                let mut took = Vec::new();
                let own = notifications
                    .iter()
                    .zip(&due)
                    .skip(first)
                    .step_by(CONNECTIONS);
                for (one, due) in own {
                    tokio::time::sleep_until((*due).into()).await;
                    accepted(post(sender, one).await?)?;
                    took.push(due.elapsed());
                }
                anyhow::Ok(took)
            });
        let each = try_join_all(posts).await?.concat();
        Ok(Took {
            whole: start.elapsed(),
            each,
            due,
        })
    }
}

/// Whether it answers at all: the first request of a process's life, which is no envelope.
pub(crate) async fn knock(port: u16) -> anyhow::Result<()> {
    let nothing = Notification {
        message_id: "".into(),
        body: "{}".into(),
    };
    let mut sender = connect(port).await?;
    post(&mut sender, &nothing).await?;
    Ok(())
}

async fn connect(port: u16) -> anyhow::Result<SendRequest<Body>> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    stream.set_nodelay(true)?;
    // Bare: a connector would read every root certificate of this machine, at each connection.
    let context = SslContext::builder(SslMethod::tls_client())?.build();
    let mut stream = SslStream::new(Ssl::new(&context)?, stream)?;
    Pin::new(&mut stream).connect().await.context("no TLS")?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn post(
    sender: &mut SendRequest<Body>,
    notification: &Notification,
) -> anyhow::Result<StatusCode> {
    sender.ready().await?;
    let request = Request::post("/sns")
        .header("host", "localhost")
        .header("content-type", "text/plain; charset=UTF-8")
        .header("user-agent", "Amazon Simple Notification Service Agent")
        .header("x-amz-sns-message-type", "Notification")
        .header("x-amz-sns-message-id", &*notification.message_id)
        .header("x-amz-sns-topic-arn", crate::notifications::TOPIC)
        .body(Body::from(notification.body.clone()))?;
    let (head, mut body) = sender.send_request(request).await?.into_parts();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        frame?;
    }
    Ok(head.status)
}

fn accepted(status: StatusCode) -> anyhow::Result<()> {
    if status != StatusCode::OK {
        bail!("a notification was answered {status}");
    }
    Ok(())
}
