//! A small SMTP server that says what a test wants it to say.

use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{Ssl, SslAcceptor, SslMethod};
use openssl::x509::X509;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_openssl::SslStream;

use super::{Email, checked, sink};
use crate::clock::Clock;
use crate::sns::signer::{Certificate, Signer};

/// The key of all servers, and the certificate that vouches for itself.
static KEY: LazyLock<(PKey<Private>, Vec<u8>)> = LazyLock::new(|| {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let wanted = Certificate {
        name: "localhost",
        is_authority: true,
        ..Certificate::default()
    };
    let signer = Signer::with_key(key.clone(), "", &wanted).unwrap();
    (key, signer.pem().unwrap())
});

/// What the server does about one line: `""` is a new connection, `"."` the end of a mail.
pub(super) enum Say {
    /// What any server would.
    Usual,
    /// This.
    This(&'static str),
    /// Repeats the line.
    Echo,
    /// It closes the connection.
    HangUp,
    /// Nothing, ever.
    Nothing,
}
use Say::{Echo, HangUp, Nothing, This, Usual};

pub(super) type Script = Box<dyn Fn(&str) -> Say + Send + Sync>;
type Guarded<T> = Arc<Mutex<T>>;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

type Stream = BufReader<Box<dyn Duplex>>;

pub(super) struct Server {
    pub(super) port: u16,
    pub(super) said: Guarded<Vec<String>>,
    mails: Guarded<Vec<String>>,
    _tasks: JoinSet<()>,
}

/// The server's part of every connection.
struct Desk {
    script: Script,
    said: Guarded<Vec<String>>,
    mails: Guarded<Vec<String>>,
    acceptor: SslAcceptor,
    is_implicit: bool,
}

impl Server {
    pub(super) async fn start(script: impl Fn(&str) -> Say + Send + Sync + 'static) -> Self {
        Self::with(Box::new(script), false).await
    }

    pub(super) async fn with(script: Script, is_implicit: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.set_private_key(&KEY.0).unwrap();
        let certificate = X509::from_pem(&KEY.1).unwrap();
        acceptor.set_certificate(&certificate).unwrap();
        let (said, mails) = <(Guarded<Vec<String>>, Guarded<Vec<String>>)>::default();
        let desk = Arc::new(Desk {
            script,
            said: Arc::clone(&said),
            mails: Arc::clone(&mails),
            acceptor: acceptor.build(),
            is_implicit,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                tcp.set_nodelay(true).unwrap();
                let desk = Arc::clone(&desk);
                connections.spawn(async move {
                    // A client that goes away is no failure of the test.
                    let _ = desk.serve(tcp).await;
                });
            }
        });
        Self {
            port,
            said,
            mails,
            _tasks: tasks,
        }
    }

    pub(super) fn said(&self, verb: &str) -> usize {
        let said = self.said.lock().unwrap();
        said.iter()
            .filter(|line| line.split(' ').next() == Some(verb))
            .count()
    }

    pub(super) fn connections(&self) -> usize {
        self.said("")
    }

    pub(super) fn mails(&self) -> Vec<String> {
        self.mails.lock().unwrap().clone()
    }

    /// A sink for this server, with the recipients a, b and c.
    pub(super) fn sink(&self) -> (Email, Clock) {
        let settings = format!("smtp = 'smtp+plain://127.0.0.1:{}'", self.port);
        sink(checked(&settings, None, Path::new("/")).unwrap())
    }

    pub(super) fn sink_with(&self, scheme: &str) -> Email {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), &KEY.1).unwrap();
        let settings = format!("smtp = '{scheme}localhost:{}'\nca = 'ca.pem'", self.port);
        let password = scheme.contains('@').then(|| "hunter2".into());
        sink(checked(&settings, password, folder.path()).unwrap()).0
    }
}

impl Desk {
    async fn serve(&self, tcp: TcpStream) -> std::io::Result<()> {
        let mut stream: Stream = BufReader::new(Box::new(tcp));
        if self.is_implicit {
            stream = self.protected(stream).await?;
        }
        let mut line = String::new();
        loop {
            let command = line.trim_end();
            self.said.lock().unwrap().push(command.to_owned());
            let answer = match (self.script)(command) {
                Usual => usual(command).to_owned(),
                This(answer) => answer.to_owned(),
                Echo => format!("535 5.7.8 no: {command}"),
                HangUp => return Ok(()),
                Nothing => return std::future::pending().await,
            };
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
            stream.flush().await?;
            if command == "STARTTLS" && answer.starts_with("220") {
                stream = self.protected(stream).await?;
            }
            if answer.starts_with("354") {
                let mail = mail(&mut stream).await?;
                self.mails.lock().unwrap().push(mail);
                ".".clone_into(&mut line);
                continue;
            }
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn protected(&self, stream: Stream) -> std::io::Result<Stream> {
        let ssl = Ssl::new(self.acceptor.context()).unwrap();
        let mut stream = SslStream::new(ssl, stream.into_inner()).unwrap();
        let accepted = std::pin::Pin::new(&mut stream).accept().await;
        accepted.map_err(std::io::Error::other)?;
        Ok(BufReader::new(Box::new(stream)))
    }
}

/// A mail as it was before it was sent: dots that were doubled are single again.
async fn mail(stream: &mut Stream) -> std::io::Result<String> {
    let mut mail = String::new();
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 && line != ".\r\n" {
        mail.push_str(line.strip_prefix('.').unwrap_or(&line));
        line.clear();
    }
    Ok(mail)
}

fn usual(command: &str) -> &'static str {
    match command.split(' ').next().unwrap_or_default() {
        "" => "220 test ESMTP",
        "EHLO" => "250-test\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN",
        "STARTTLS" => "220 go on",
        "AUTH" => "235 2.7.0 welcome",
        "DATA" => "354 go on",
        "." => "250 2.0.0 queued as 4F1",
        _ => "250 2.1.0 ok",
    }
}
