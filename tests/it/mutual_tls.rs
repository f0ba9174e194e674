//! A service that wants to know who calls.

use std::path::Path;
use std::pin::Pin;

use openssl::ssl::{Ssl, SslAcceptor, SslFiletype, SslMethod, SslVerifyMode};
use runbell::clock::Clock;
use runbell::config::{Config, Surroundings};
use runbell::sink::http::Paces;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_openssl::SslStream;

use crate::harness::app::write_certificate;
use crate::harness::store::folder;
use crate::sinks::{failed, send};

/// Answers 204 to whoever shows the certificate in `clients`; says its port.
async fn service(own: &Path, clients: &Path, tasks: &mut JoinSet<()>) -> u16 {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor
        .set_private_key_file(own.join("tls.key"), SslFiletype::PEM)
        .unwrap();
    acceptor
        .set_certificate_chain_file(own.join("tls.crt"))
        .unwrap();
    acceptor.set_ca_file(clients.join("tls.crt")).unwrap();
    acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let ssl = Ssl::new(acceptor.context()).unwrap();
            let mut stream = SslStream::new(ssl, tcp).unwrap();
            if Pin::new(&mut stream).accept().await.is_err() {
                continue;
            }
            let mut asked = Vec::new();
            while !asked.ends_with(b"}") && stream.read_buf(&mut asked).await.unwrap() > 0 {}
            let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    port
}

/// The word of a verdict, or what is wrong with the settings.
async fn told(folder: &Path, port: u16, http: &str) -> String {
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\n[store]\nurl = 'sqlite:x.db'\n\
         [[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'\n\
         [[route]]\nname = 'r'\nto = ['s']\n[sink.s]\ntype = 'webhook'\nurl = {{ env = 'URL' }}\n\
         http = {{ allow_private = true, ca = 'service/tls.crt'{http} }}\n"
    );
    let around = Surroundings {
        folder,
        variable: &|_| Some(format!("https://localhost:{port}/hook")),
    };
    match Config::parse(&text, Path::new("runbell.toml"), &around) {
        Err(faults) => faults.to_string(),
        Ok((config, _)) => {
            let sink = config.sinks[0].open(&Clock::system(), &mut Paces::default());
            send(&*sink, &failed("i-1", "d")).await.word().to_owned()
        }
    }
}

#[tokio::test]
async fn who_shows_its_certificate_is_let_in_and_nobody_else() {
    let folder = folder();
    for name in ["service", "ours", "other"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        write_certificate(&folder.path().join(name), "localhost");
    }
    std::fs::write(folder.path().join("none.pem"), "nothing").unwrap();
    let mut tasks = JoinSet::new();
    let (own, ours) = (folder.path().join("service"), folder.path().join("ours"));
    let port = service(&own, &ours, &mut tasks).await;
    let (cert, key) = (", client_cert = ", ", client_key = ");
    for (http, said) in [
        (format!("{cert}'ours/tls.crt'{key}'ours/tls.key'"), "sent"),
        (
            format!("{cert}'ours/tls.crt'"),
            "a certificate needs its key",
        ),
        (
            format!("{key}'ours/tls.key'"),
            "a key needs its certificate",
        ),
        (
            format!("{cert}'ours/tls.crt'{key}'other/tls.key'"),
            "is not the key of the certificate",
        ),
        (
            format!("{cert}'none.pem'{key}'ours/tls.key'"),
            "holds no certificate in PEM form",
        ),
        (
            format!("{cert}'ours/tls.crt'{key}'none.pem'"),
            "holds no private key in PEM form",
        ),
        (format!("{cert}'gone'{key}'ours/tls.key'"), "cannot be read"),
    ] {
        let told = told(folder.path(), port, &http).await;
        assert!(told.contains(said), "{http}: {told}");
    }
    for http in [
        String::new(),
        format!("{cert}'other/tls.crt'{key}'other/tls.key'"),
    ] {
        let word = told(folder.path(), port, &http).await;
        assert_ne!(word, "sent", "{http}");
    }
}
