//! The doors: [`hook`] for SNS, [`admin`] for people and their tools; [`mod@serve`] carries both from a
//! socket to requests, over [`tls`] where it is asked for.
//!
//! `app` binds the listeners, makes the routers and runs one [`serve::serve`] for each. Nothing that
//! a stranger sends makes this floor fetch, allocate or log without bound: what strangers get wrong
//! is counted, and logged at debug level only.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

pub mod admin;
mod credentials;
pub mod hook;
mod seats;
pub mod serve;
pub mod tls;

/// Settings of the listener that SNS posts to.
#[derive(Clone, Debug)]
pub struct HookSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The one path that takes notifications.
    pub path: String,
    /// Certificate and key; plain HTTP without.
    pub tls: Option<TlsSettings>,
    /// Who may post; anybody when empty. Two entries while a password is changed.
    pub auth: Vec<Credentials>,
    /// A TLS proxy stands before this listener.
    pub behind_proxy: bool,
    /// Addresses of proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// How many connections may be open at once.
    pub max_connections: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long the header of a request may take.
    pub header_timeout: Duration,
    /// How long the body of a request may take.
    pub body_timeout: Duration,
    /// How long an idle connection is kept; SNS reconnects at a price when it is short.
    pub keep_alive: Duration,
}

impl HookSettings {
    /// The limits of its listener; requests under way may take `drain` when it stops.
    #[must_use]
    pub const fn limits(&self, drain: Duration) -> serve::Limits {
        serve::Limits {
            connections: self.max_connections,
            handshake: self.handshake_timeout,
            header: self.header_timeout,
            keep_alive: self.keep_alive,
            drain,
        }
    }
}

/// Where a certificate lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// PEM file with the whole chain, leaf first.
    pub cert: PathBuf,
    /// PEM file with the key of the leaf.
    pub key: PathBuf,
}

/// A user and a password for HTTP Basic authentication.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The name; has no colon.
    pub user: String,
    /// The password.
    pub password: SecretString,
}

/// Settings of the listener for people and their tools.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// Where it listens; nowhere when absent.
    pub listen: Option<SocketAddr>,
    /// Path of the unix socket that the command line uses; none when absent.
    pub socket: Option<PathBuf>,
    /// What a request has to bear, for anything but health, unless it comes over the socket or
    /// from the loopback.
    pub token: Option<SecretString>,
}
