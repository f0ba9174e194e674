//! From a host name to a protected stream that SMTP is spoken on.
//!
//! lettre's own streams leave Nagle's algorithm on, and the last dot of every mail waits for it. TLS
//! is OpenSSL's, and STARTTLS is asked for here: what somebody slipped in before the handshake never
//! reaches the conversation after it.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use lettre::transport::smtp::client::AsyncTokioStream;
use lettre::transport::smtp::extension::ClientId;
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use openssl::x509::{X509, X509VerifyResult};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
    ReadBuf,
};
use tokio::net::{TcpStream, lookup_host};
use tokio_openssl::SslStream;

use super::server::{Security, Server};
use super::smtp::Answer;
use super::tally::Trouble;
use crate::fault::causes;

/// The longest answer before TLS.
const LONGEST_ANSWER: usize = 16 * 1024;
/// What lettre waits for on a stream where the server has greeted already.
const GREETING: &[u8] = b"220 ready\r\n";

/// What trusts the system's authorities, and those in a file.
pub(super) fn connector(ca: Option<&Path>) -> Result<SslConnector, String> {
    let failed = |error: openssl::error::ErrorStack| format!("OpenSSL refuses: {error}");
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(failed)?;
    builder
        .set_min_proto_version(Some(SslVersion::TLS1_2))
        .map_err(failed)?;
    if let Some(path) = ca {
        let shown = path.display();
        let pem =
            std::fs::read(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
        let certificates = X509::stack_from_pem(&pem)
            .map_err(|error| format!("{shown} has no certificates in PEM: {error}"))?;
        if certificates.is_empty() {
            return Err(format!("{shown} has no certificates in PEM"));
        }
        for certificate in certificates {
            builder
                .cert_store_mut()
                .add_cert(certificate)
                .map_err(failed)?;
        }
    }
    Ok(builder.build())
}

/// A stream that SMTP is spoken on.
#[derive(Debug)]
pub(super) struct Wire {
    /// Read before the stream.
    first: &'static [u8],
    stream: Stream,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(SslStream<TcpStream>),
}

impl Wire {
    /// Connects, and protects the connection as the server's settings say. `tls` is there unless
    /// they say that it is plain.
    pub(super) async fn open(
        server: &Server,
        tls: Option<&SslConnector>,
        hello: &ClientId,
        limit: Duration,
    ) -> Result<Self, Trouble> {
        let away = |error: io::Error| Trouble::Away(format!("{server}: {error}"));
        let tcp = connect(server, limit).await.map_err(away)?;
        tcp.set_nodelay(true).map_err(away)?;
        match (server.security, tls) {
            (Security::Plain, _) => Ok(Self {
                first: &[],
                stream: Stream::Plain(tcp),
            }),
            (Security::Implicit, Some(tls)) => Ok(Self {
                first: &[],
                stream: handshake(server, tls, tcp).await?,
            }),
            (Security::StartTls, Some(tls)) => {
                let tcp = start_tls(server, hello, tcp).await?;
                Ok(Self {
                    first: GREETING,
                    stream: handshake(server, tls, tcp).await?,
                })
            }
            (_, None) => Err(Trouble::Broken(format!("{server}: TLS is not set up"))),
        }
    }
}

/// Tries each address of the server, none so long that there is no time for the others.
async fn connect(server: &Server, limit: Duration) -> io::Result<TcpStream> {
    let found = lookup_host((server.host.as_str(), server.port)).await?;
    let addresses: Vec<SocketAddr> = found.collect();
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let each = limit.checked_div(count).unwrap_or(limit);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match tokio::time::timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
        }
    }
    Err(failure)
}

async fn handshake(server: &Server, tls: &SslConnector, tcp: TcpStream) -> Result<Stream, Trouble> {
    let away = |error: &dyn std::error::Error| {
        Trouble::Away(format!("{server}: no TLS: {}", causes(error)))
    };
    let ssl = tls
        .configure()
        .and_then(|configured| configured.into_ssl(&server.host))
        .map_err(|error| away(&error))?;
    let mut stream = SslStream::new(ssl, tcp).map_err(|error| away(&error))?;
    match Pin::new(&mut stream).connect().await {
        Ok(()) => Ok(Stream::Tls(stream)),
        Err(error) => {
            let verified = stream.ssl().verify_result();
            if verified == X509VerifyResult::OK {
                return Err(away(&error));
            }
            Err(Trouble::Away(format!(
                "{server}: its certificate is not trusted: {} (for an authority of your own set \
                 `ca`)",
                verified.error_string()
            )))
        }
    }
}

/// Asks for TLS, and goes no further without.
async fn start_tls(
    server: &Server,
    hello: &ClientId,
    tcp: TcpStream,
) -> Result<TcpStream, Trouble> {
    let mut early = BufReader::new(tcp);
    let away = |what: String| Trouble::Away(format!("{server}: {what}"));
    let greeted = early_answer(&mut early).await.map_err(away)?;
    if greeted.code != 220 {
        return Err(away(greeted.to_string()));
    }
    let offered = ask(&mut early, &format!("EHLO {hello}\r\n"))
        .await
        .map_err(away)?;
    if !offered.is_done() && !offered.is_for_good() {
        return Err(away(offered.to_string()));
    }
    let is_offered = |line: &str| line.trim().eq_ignore_ascii_case("STARTTLS");
    if !offered.is_done() || !offered.text.lines().any(is_offered) {
        return Err(Trouble::Broken(format!(
            "{server} does not offer STARTTLS: is it the right port, or does it want smtps://?"
        )));
    }
    let started = ask(&mut early, "STARTTLS\r\n").await.map_err(away)?;
    if started.is_for_good() {
        return Err(Trouble::Broken(format!(
            "{server} refuses STARTTLS: {started}"
        )));
    }
    if started.code != 220 {
        return Err(away(started.to_string()));
    }
    if !early.buffer().is_empty() {
        return Err(away(
            "somebody spoke between STARTTLS and the handshake".to_owned(),
        ));
    }
    Ok(early.into_inner())
}

async fn ask(early: &mut BufReader<TcpStream>, command: &str) -> Result<Answer, String> {
    let written = early.get_mut().write_all(command.as_bytes()).await;
    written.map_err(|error| error.to_string())?;
    early_answer(early).await
}

/// An answer of one or more lines, its text with one line for each.
async fn early_answer(early: &mut BufReader<TcpStream>) -> Result<Answer, String> {
    let mut text = String::new();
    let mut left = LONGEST_ANSWER;
    loop {
        let mut line = String::new();
        let limit = u64::try_from(left).unwrap_or(u64::MAX);
        let read = (&mut *early).take(limit).read_line(&mut line).await;
        left -= read.map_err(|error| error.to_string())?.min(left);
        let line = line
            .strip_suffix('\n')
            .ok_or("the connection ended, or the answer never does")?;
        let line = line.strip_suffix('\r').unwrap_or(line);
        let code = line.get(..3).and_then(|code| code.parse().ok());
        let code: u16 = code.ok_or("this is no SMTP server")?;
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{}", line.get(4..).unwrap_or_default());
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(Answer { code, text });
        }
    }
}

impl AsyncTokioStream for Wire {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.stream {
            Stream::Plain(tcp) => tcp.peer_addr(),
            Stream::Tls(tls) => tls.get_ref().peer_addr(),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            return Pin::new(&mut self.first).poll_read(context, buffer);
        }
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Stream::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
