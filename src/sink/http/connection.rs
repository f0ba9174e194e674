//! The way to a service: deadlines, addresses, proxies, and who each side is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::x509::X509;
use reqwest::Url;
use serde::Deserialize;

use super::address;
use crate::fault::Fault;
use crate::secret::SecretText;
use crate::units::Span;

/// How long one attempt may take when nobody says.
const USUAL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Settings of the connection, `http = { … }` in each sink that speaks HTTP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How long one attempt may take.
    pub timeout: Option<Span>,
    /// Whether addresses of private networks are spoken to.
    pub allow_private: bool,
    /// A proxy; none is taken from the environment.
    pub proxy: Option<String>,
    /// A file with certificates of authorities to trust besides the system's.
    pub ca: Option<std::path::PathBuf>,
    /// A file with the certificate by which we show who we are, and what vouches for it.
    pub client_cert: Option<std::path::PathBuf>,
    /// A file with its private key, without a password.
    pub client_key: Option<std::path::PathBuf>,
}

/// Checked settings of the connection.
#[derive(Clone, Debug)]
pub struct Connection {
    timeout: Duration,
    allow_private: bool,
    proxy: Option<Url>,
    ca: Option<Vec<u8>>,
    identity: Option<reqwest::Identity>,
    /// What nobody may see, longest first.
    hidden: Vec<String>,
}

impl Settings {
    /// Turns them into a connection; relative paths start from `folder`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Connection, Vec<Fault>> {
        let mut faults = Vec::new();
        let proxy = self.proxy.and_then(|text| {
            let url = Url::parse(&text).ok().filter(Url::has_host);
            if url.is_none() {
                faults.push(Fault::at(
                    &["http", "proxy"],
                    "this is no URL of a proxy: it looks like `http://proxy.example.com:3128`",
                ));
            }
            url
        });
        let ca = self.ca.and_then(|path| {
            let path = folder.join(path);
            let shown = path.display();
            let read = std::fs::read(&path)
                .map_err(|error| format!("{shown} cannot be read: {error}"))
                .and_then(|pem| match reqwest::Certificate::from_pem_bundle(&pem) {
                    Ok(found) if !found.is_empty() => Ok(pem),
                    _ => Err(format!("{shown} holds no certificate in PEM form")),
                });
            read.map_err(|why| faults.push(Fault::at(&["http", "ca"], why)))
                .ok()
        });
        let identity = match (self.client_cert, self.client_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => identity(&folder.join(cert), &folder.join(key))
                .map_err(|fault| faults.push(fault))
                .ok(),
            (Some(_), None) => {
                faults.push(Fault::at(
                    &["http", "client_cert"],
                    "a certificate needs its key: say `client_key`",
                ));
                None
            }
            (None, Some(_)) => {
                faults.push(Fault::at(
                    &["http", "client_key"],
                    "a key needs its certificate: say `client_cert`",
                ));
                None
            }
        };
        let timeout = self.timeout.map_or(USUAL_TIMEOUT, |span| span.0);
        if timeout.is_zero() {
            faults.push(Fault::at(&["http", "timeout"], "no time is too little"));
        }
        if faults.is_empty() {
            Ok(Connection {
                timeout,
                allow_private: self.allow_private,
                proxy,
                ca,
                identity,
                hidden: Vec::new(),
            })
        } else {
            Err(faults)
        }
    }
}

/// The certificate and the key by which we show who we are.
fn identity(cert: &Path, key: &Path) -> Result<reqwest::Identity, Fault> {
    let read = |path: &Path, which: &str| {
        std::fs::read(path).map_err(|error| {
            let shown = path.display();
            Fault::at(&["http", which], format!("{shown} cannot be read: {error}"))
        })
    };
    let (certificate, private) = (read(cert, "client_cert")?, read(key, "client_key")?);
    let first = X509::from_pem(&certificate).map_err(|_| {
        let shown = cert.display();
        Fault::at(
            &["http", "client_cert"],
            format!("{shown} holds no certificate in PEM form"),
        )
    })?;
    let shown = key.display();
    let wrong = |why: &str| Fault::at(&["http", "client_key"], format!("{shown} {why}"));
    let parsed = PKey::private_key_from_pem_passphrase(&private, b"")
        .map_err(|_| wrong("holds no private key in PEM form without a password"))?;
    let fits = first
        .public_key()
        .is_ok_and(|public| public.public_eq(&parsed));
    if !fits {
        return Err(wrong("is not the key of the certificate"));
    }
    // Whatever form it came in, this is the one that is understood.
    let private = parsed.private_key_to_pem_pkcs8();
    private
        .ok()
        .and_then(|private| reqwest::Identity::from_pkcs8_pem(&certificate, &private).ok())
        .ok_or_else(|| wrong("cannot be used with that certificate"))
}

impl Settings {
    /// The connection and the URL of the service, which the settings call `url`.
    ///
    /// # Errors
    /// Everything that is wrong with either.
    pub fn check_with_url(
        self,
        folder: &Path,
        url: &SecretText,
    ) -> Result<(Connection, Url), Vec<Fault>> {
        let connection = self.check(folder)?;
        match connection.url(url.expose()) {
            Ok(url) => Ok((connection, url)),
            Err(why) => Err(vec![Fault::at(&["url"], why)]),
        }
    }
}

/// A part of a secret this short is a word like any other.
const SHORTEST_SECRET: usize = 12;

impl Connection {
    /// The longest that a call takes.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Learns secrets, and what they are made of: the parts of a URL are as secret as the whole.
    pub(super) fn hide(&mut self, secrets: &[SecretText]) {
        for secret in secrets {
            let secret = secret.expose().trim();
            let parts = secret.split(['/', '?', '&', '=', '#']);
            let parts = parts.filter(|part| !part.contains("://") && part.len() >= SHORTEST_SECRET);
            self.hidden.extend(parts.map(str::to_owned));
            if !secret.is_empty() {
                self.hidden.push(secret.to_owned());
            }
        }
        if let Some(host) = secrets.iter().find_map(|it| host(it.expose())) {
            self.hidden.retain(|part| *part != host);
        }
        self.hidden
            .sort_by_key(|part| std::cmp::Reverse(part.len()));
    }

    /// A text that came from outside, without any of the secrets that it may repeat.
    pub(super) fn without_secrets(&self, text: String) -> String {
        let mut text = text;
        for secret in &self.hidden {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), "…");
            }
        }
        text
    }

    /// Reads the URL of a service, and says what is wrong with it without repeating it.
    ///
    /// # Errors
    /// When it is none, or leads where this connection may not go.
    pub fn url(&self, text: &str) -> Result<Url, &'static str> {
        let url = Url::parse(text.trim()).map_err(|_| "this is no URL")?;
        if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
            return Err("this is no URL of a web service: it begins with `https://`");
        }
        let host = url.host_str().unwrap_or_default();
        let literal = host.trim_matches(['[', ']']).parse();
        let is_private = literal.is_ok_and(|literal| !address::is_public(literal));
        if is_private && !self.allow_private {
            return Err(
                "this address is private; if that is meant, say `http = { allow_private = true }`",
            );
        }
        if url.scheme() == "http" && !self.allow_private {
            return Err("without TLS anybody on the way can read it: use `https://`");
        }
        Ok(url)
    }

    pub(super) fn client(&self) -> Result<reqwest::Client, reqwest::Error> {
        let mut client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT.min(self.timeout))
            .timeout(self.timeout)
            .tcp_nodelay(true)
            .user_agent(concat!("runbell/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = &self.proxy {
            client = client.proxy(reqwest::Proxy::all(proxy.clone())?);
        } else if !self.allow_private {
            client = client.dns_resolver(Arc::new(address::PublicOnly));
        }
        if let Some(pem) = &self.ca {
            client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        if let Some(identity) = &self.identity {
            client = client.identity(identity.clone());
        }
        client.build()
    }
}

/// Host and port of a URL: where a sink leads is no secret.
fn host(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}
