//! From a socket to requests: accepts connections, bounds each in time and all in number, ends them
//! in good order. `app` runs one [`serve`] for each listener, with the router of `hook` or `admin`.
//!
//! It promises that no connection outlives its deadlines, that there are never more than
//! [`Limits::connections`] for longer than it takes to drop one, and that when it returns none is
//! left. The time for a body is the business of whoever reads it.
//!
//! hyper's own header timeout also ends idle connections, and SNS reconnects at a price; so the
//! deadlines are kept here, by what the connection is seen to be doing. Connection tasks live in a
//! [`JoinSet`] inside [`serve`]: who drops the future ends them all.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_openssl::SslStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::seats::{Phase, Seat, Seated, Seats};
use super::tls::Tls;
use crate::metrics::Metrics;

/// The most that a request's header may take; SNS needs about one kibibyte.
const HEADER_BYTES: usize = 64 * 1024;

/// How long the end of a connection waits for the other side to stop sending, so that what it
/// still sends does not wipe out the answer on its way.
const LINGER: Duration = Duration::from_secs(2);

/// How long accepting rests when the machine has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from. The listener is bound already.
#[derive(Debug)]
pub enum Door {
    /// Plain HTTP.
    Plain(TcpListener),
    /// HTTPS.
    Tls(TcpListener, Arc<Tls>),
    /// A unix socket.
    Unix(UnixListener),
}

/// Who is at the other end; an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An address; an IPv4 one that was mapped into IPv6 is mapped back.
    Address(IpAddr),
    /// Somebody on this machine who may open the unix socket.
    Socket,
}

/// How much and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many connections may be open at once.
    pub connections: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a header may take from its first byte, and a first request from the handshake.
    pub header: Duration,
    /// How long an answered connection may stay silent.
    pub keep_alive: Duration,
    /// How long requests under way may take when it stops.
    pub drain: Duration,
}

/// Serves `router` behind `door` until `shutdown`: then no connection is accepted any more, idle
/// ones end, requests under way are finished within [`Limits::drain`], and what is left is cut.
/// `name` is the listener's label in metrics and logs.
pub async fn serve(
    name: &'static str,
    door: Door,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let seats = Seats::new(limits.connections);
    let mut connections = JoinSet::new();
    let mut starved = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report_panic(name, ended);
                continue;
            }
            accepted = door.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_the_clients(&error) => continue,
            Err(error) => {
                if !starved {
                    tracing::error!(listener = name, %error, "cannot accept connections");
                }
                starved = true;
                let _ = timeout(ACCEPT_PAUSE, pending::<()>()).await;
                continue;
            }
        };
        starved = false;
        let Some((seated, crowded)) = seats.take() else {
            metrics.cut(name, "full");
            continue;
        };
        if crowded {
            metrics.cut(name, "crowded");
        }
        let connection = Connection {
            name,
            router: router.clone(),
            limits,
            metrics: Arc::clone(&metrics),
            shutdown: shutdown.clone(),
            seat: Arc::clone(&seated.0),
            peer,
        };
        connections.spawn(connection.run(socket, seated));
    }
    drop(door);
    let finished = async {
        while let Some(ended) = connections.join_next().await {
            report_panic(name, ended);
        }
    };
    if timeout(limits.drain, finished).await.is_err() {
        tracing::warn!(
            listener = name,
            connections = connections.len(),
            "requests were still under way at the deadline, and were cut"
        );
        connections.shutdown().await;
    }
}

enum Socket {
    Plain(TcpStream),
    Tls(TcpStream, Arc<Tls>),
    Unix(tokio::net::UnixStream),
}

impl Door {
    async fn accept(&self) -> io::Result<(Socket, Peer)> {
        let (listener, tls) = match self {
            Self::Plain(listener) => (listener, None),
            Self::Tls(listener, tls) => (listener, Some(Arc::clone(tls))),
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                return Ok((Socket::Unix(stream), Peer::Socket));
            }
        };
        let (stream, address) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let peer = Peer::Address(address.ip().to_canonical());
        Ok((
            match tls {
                None => Socket::Plain(stream),
                Some(tls) => Socket::Tls(stream, tls),
            },
            peer,
        ))
    }
}

/// One connection and what it needs.
struct Connection {
    name: &'static str,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    seat: Arc<Seat>,
    peer: Peer,
}

/// Why serving a connection ended.
enum End {
    /// It was closed by either side, in order.
    Closed,
    /// What came was no HTTP, or the connection broke.
    Broken,
    /// It did one thing for too long.
    TooSlow(Phase),
    /// Somebody else needed the room.
    Crowded,
}

impl Connection {
    async fn run(self, socket: Socket, seated: Seated) {
        self.metrics.connected(self.name);
        match socket {
            Socket::Plain(stream) => self.attend(stream).await,
            Socket::Unix(stream) => self.attend(stream).await,
            Socket::Tls(stream, tls) => {
                let secured = tokio::select! {
                    secured = timeout(self.limits.handshake, shake_hands(&tls, stream)) => secured,
                    () = self.seat.has_to_leave() => Ok(None),
                    () = self.shutdown.cancelled() => Ok(None),
                };
                match secured {
                    Ok(Some(stream)) => self.attend(stream).await,
                    Ok(None) => {}
                    Err(_) => self.metrics.cut(self.name, "handshake"),
                }
            }
        }
        self.metrics.disconnected(self.name);
        drop(seated);
    }

    async fn attend<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S) {
        let observed = Observed {
            stream,
            seat: Arc::clone(&self.seat),
        };
        let requests = Requests {
            router: self.router.clone(),
            seat: Arc::clone(&self.seat),
            peer: self.peer,
        };
        let mut http = http1::Builder::new()
            .max_buf_size(HEADER_BYTES)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(observed), requests);
        match self.watch(&mut http).await {
            End::Closed => {
                let stream = http.into_parts().io.into_inner().stream;
                tokio::select! {
                    _ = timeout(LINGER, close(stream)) => {}
                    () = self.seat.has_to_leave() => {}
                    () = self.shutdown.cancelled() => {}
                }
            }
            End::TooSlow(Phase::Idle) => self.metrics.cut(self.name, "idle"),
            End::TooSlow(_) => self.metrics.cut(self.name, "header"),
            End::Broken | End::Crowded => {}
        }
    }

    /// Drives the connection, and ends it when it is too slow, crowded out, or told to stop.
    async fn watch<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        http: &mut http1::Connection<TokioIo<Observed<S>>, Requests>,
    ) -> End {
        let mut leave = pin!(self.seat.has_to_leave());
        let mut stop = pin!(self.shutdown.cancelled());
        let mut stopping = false;
        let mut deadline = Deadline::default();
        poll_fn(|cx| {
            if leave.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Crowded);
            }
            if !stopping && stop.as_mut().poll(cx).is_ready() {
                stopping = true;
                Pin::new(&mut *http).graceful_shutdown();
            }
            if let Poll::Ready(ended) = http.poll_without_shutdown(cx) {
                return Poll::Ready(match ended {
                    Ok(()) => End::Closed,
                    Err(error) => {
                        tracing::debug!(listener = self.name, %error, "a connection broke");
                        End::Broken
                    }
                });
            }
            let state = self.seat.state();
            let limit = match state.phase {
                Phase::Arriving | Phase::Header => Some(self.limits.header),
                Phase::Idle => Some(self.limits.keep_alive),
                Phase::Body | Phase::Working => None,
            };
            deadline
                .poll(state.ticket, limit, cx)
                .map(|()| End::TooSlow(state.phase))
        })
        .await
    }
}

/// A timer that starts anew with each ticket.
#[derive(Default)]
struct Deadline {
    of: Option<u64>,
    timer: Option<Pin<Box<tokio::time::Timeout<std::future::Pending<()>>>>>,
}

impl Deadline {
    fn poll(&mut self, ticket: u64, limit: Option<Duration>, cx: &mut Context<'_>) -> Poll<()> {
        if self.of != Some(ticket) {
            self.of = Some(ticket);
            self.timer = limit.map(|limit| Box::pin(timeout(limit, pending())));
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx).map(|_| ()),
            None => Poll::Pending,
        }
    }
}

/// Hands hyper's requests to the router and tells the seat how they fare.
struct Requests {
    router: Router,
    seat: Arc<Seat>,
    peer: Peer,
}

impl hyper::service::Service<hyper::Request<Incoming>> for Requests {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        self.seat.enter(Phase::Body);
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(Arc::clone(&self.seat));
        let seat = Arc::clone(&self.seat);
        let answer = self.router.clone().oneshot(request);
        Box::pin(async move {
            let response = answer.await?;
            seat.answered(response.status().is_success());
            Ok(response)
        })
    }
}

/// A stream that tells the seat when something was heard on it.
struct Observed<S> {
    stream: S,
    seat: Arc<Seat>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.seat.heard();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// `None` when no TLS came of it; what strangers get wrong is no news.
async fn shake_hands(tls: &Tls, stream: TcpStream) -> Option<SslStream<TcpStream>> {
    let session = tls.session().ok()?;
    let mut stream = SslStream::new(session, stream).ok()?;
    match Pin::new(&mut stream).accept().await {
        Ok(()) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
    }
}

/// Says that nothing more comes, and takes in what the other side still sends: closing a socket
/// with unread bytes resets it, and a reset can overtake the answer.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut scrap = vec![0; 8 * 1024];
    while matches!(stream.read(&mut scrap).await, Ok(1..)) {}
}

fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
    )
}

fn report_panic(name: &'static str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(
            listener = name,
            "a request panicked; its connection was cut"
        );
    }
}
