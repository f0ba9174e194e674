//! What a settings file can say, as it is written. Routes and sinks own their settings; the rest is
//! mirrored here.

use serde::Deserialize;

use super::LogFormat;
use super::secret::Secret;
use crate::units::Span;

/// `[server]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServerFile {
    pub(super) listen: String,
    pub(super) path: String,
    pub(super) tls: Option<TlsFile>,
    pub(super) auth: Vec<CredentialsFile>,
    pub(super) replica: Option<String>,
    pub(super) behind_proxy: bool,
    pub(super) trusted_proxies: Vec<String>,
    pub(super) max_connections: usize,
    pub(super) handshake_timeout: Span,
    pub(super) header_timeout: Span,
    pub(super) body_timeout: Span,
    pub(super) keep_alive: Span,
    pub(super) leave_after: Span,
    pub(super) drain: Span,
    pub(super) gap_hold: Span,
}

/// `tls = { … }`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsFile {
    pub(super) cert: String,
    pub(super) key: String,
}

/// `auth = [{ … }]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialsFile {
    pub(super) user: String,
    pub(super) password: Secret,
}

/// `[admin]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AdminFile {
    pub(super) listen: String,
    pub(super) socket: Option<String>,
    pub(super) token: Option<Secret>,
}

/// `[store]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StoreFile {
    pub(super) url: String,
    pub(super) password: Option<Secret>,
    pub(super) connections: usize,
    pub(super) retention: Span,
}

/// `[[topic]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicFile {
    pub(super) arn: String,
    #[serde(default = "yes")]
    pub(super) confirm: bool,
    pub(super) endpoint: Option<String>,
    #[serde(default = "yes")]
    pub(super) allow_version_1: bool,
}

/// `[log]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogFile {
    pub(super) format: LogFormat,
    pub(super) filter: String,
}

const fn yes() -> bool {
    true
}

const fn seconds(seconds: u64) -> Span {
    Span(std::time::Duration::from_secs(seconds))
}

impl Default for ServerFile {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:8443".to_owned(),
            path: "/sns".to_owned(),
            tls: None,
            auth: Vec::new(),
            replica: None,
            behind_proxy: false,
            trusted_proxies: Vec::new(),
            max_connections: 512,
            handshake_timeout: seconds(10),
            header_timeout: seconds(10),
            // SNS gives up after 15 s in all.
            body_timeout: seconds(10),
            keep_alive: seconds(75),
            leave_after: seconds(0),
            drain: seconds(10),
            gap_hold: seconds(25),
        }
    }
}

impl Default for AdminFile {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9644".to_owned(),
            socket: None,
            token: None,
        }
    }
}

impl Default for StoreFile {
    fn default() -> Self {
        Self {
            url: "sqlite:/var/lib/runbell/runbell.db".to_owned(),
            password: None,
            connections: 10,
            retention: seconds(30 * 24 * 60 * 60),
        }
    }
}

impl Default for LogFile {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            filter: "info".to_owned(),
        }
    }
}
