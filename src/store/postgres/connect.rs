//! Where the database is and how to reach it, as libpq's URLs say it.

use std::path::PathBuf;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use postgres_openssl::MakeTlsConnector;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

use super::schema::unusable;
use crate::store::StoreError;

/// How long a connection may take to come about, on each host.
const CONNECT: Duration = Duration::from_secs(2);

/// How long may be waited for one of the connections.
const WAIT: Duration = Duration::from_secs(3);

/// A database and how to reach it. [`Settings::parse`] reads it from a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    config: Config,
    trust: Trust,
    /// Who we are, and the key to prove it.
    identity: Option<(PathBuf, PathBuf)>,
    /// How many connections there are at most.
    pub connections: usize,
    /// What this replica is called, among those that share the database.
    pub replica: String,
}

/// Whom we believe to be the database.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trust {
    /// Whoever answers.
    Anybody,
    /// Whoever has a certificate of these authorities, or of those the system trusts.
    Authority(Option<PathBuf>),
    /// The same, and it is for the host that was asked for.
    Host(Option<PathBuf>),
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("hosts", &self.config.get_hosts())
            .field("database", &self.config.get_dbname())
            .field("trust", &self.trust)
            .field("connections", &self.connections)
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads a URL, `postgres://user@host:port,host:port/database?sslmode=verify-full`, with the
    /// parameters that libpq names: all of `tokio-postgres`, and `sslrootcert`, `sslcert`, `sslkey`,
    /// with `sslmode` as libpq means it.
    ///
    /// # Errors
    /// A sentence that says what cannot be used, and never shows the URL.
    pub fn parse(
        url: &str,
        password: Option<&SecretString>,
        connections: usize,
        replica: String,
    ) -> Result<Self, String> {
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let pairs = reqwest::Url::parse(&format!("query:?{query}"))
            .map_err(|error| format!("its parameters cannot be read: {error}"))?;
        let mut kept = Vec::new();
        let (mut mode, mut root, mut certificate, mut key) = (None, None, None, None);
        for (name, value) in pairs.query_pairs() {
            match &*name {
                "sslmode" => mode = Some(value.into_owned()),
                "sslrootcert" => root = Some(PathBuf::from(value.into_owned())),
                "sslcert" => certificate = Some(PathBuf::from(value.into_owned())),
                "sslkey" => key = Some(PathBuf::from(value.into_owned())),
                "password" => return Err(NO_PASSWORD.to_owned()),
                _ => kept.push((name.into_owned(), value.into_owned())),
            }
        }
        let mut rest = reqwest::Url::parse("query:").map_err(|error| error.to_string())?;
        rest.query_pairs_mut().extend_pairs(&kept);
        // What a form writes as a plus, libpq's URLs read as one.
        let rest = rest.query().unwrap_or_default().replace('+', "%20");
        let mut config: Config = format!("{place}?{rest}").parse().map_err(|error| {
            let error: &dyn std::error::Error = &error;
            let why = error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string);
            format!("it cannot be read: {why}")
        })?;
        if config.get_password().is_some() {
            return Err(NO_PASSWORD.to_owned());
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err("it names no host".to_owned());
        }
        let root = root.filter(|path| path.as_os_str() != "system");
        let (tls, trust) = match (mode.as_deref().unwrap_or("prefer"), &root) {
            ("disable", _) => (SslMode::Disable, Trust::Anybody),
            ("prefer", _) => (SslMode::Prefer, Trust::Anybody),
            // As libpq has it: who names authorities wants them asked.
            ("require", None) => (SslMode::Require, Trust::Anybody),
            ("require" | "verify-ca", _) => (SslMode::Require, Trust::Authority(root)),
            ("verify-full", _) => (SslMode::Require, Trust::Host(root)),
            (other, _) => {
                return Err(format!(
                    "`sslmode={other}` is not known: write disable, prefer, require, verify-ca or verify-full"
                ));
            }
        };
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("`sslcert` and `sslkey` go together".to_owned()),
        };
        config.ssl_mode(tls);
        if let Some(password) = password {
            config.password(password.expose_secret());
        }
        if config.get_application_name().is_none() {
            config.application_name(format!("runbell {replica}"));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(WAIT);
        }
        // What changes is written: a server that only follows is of no use.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        Ok(Self {
            config,
            trust,
            identity,
            connections,
            replica,
        })
    }

    /// Whether what goes over a network may be read, or answered by somebody else.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        let is_far = self.config.get_hosts().iter().any(|host| match host {
            tokio_postgres::config::Host::Tcp(name) => {
                name != "localhost"
                    && !name
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|address| address.is_loopback())
            }
            tokio_postgres::config::Host::Unix(_) => false,
        });
        is_far && !matches!(self.trust, Trust::Host(_))
    }

    /// The place, to be named to people.
    #[must_use]
    pub fn place(&self) -> String {
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            tokio_postgres::config::Host::Tcp(name) => name.clone(),
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        });
        let hosts: Vec<_> = hosts.collect();
        let database = self.config.get_dbname().unwrap_or("the default database");
        format!("{database} on {}", hosts.join(", "))
    }

    /// So many connections, none of them open yet.
    pub(super) fn pool(&self, size: usize) -> Result<Pool, StoreError> {
        let manager = Manager::from_config(
            self.config.clone(),
            self.tls()?,
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let hosts = u32::try_from(self.config.get_hosts().len()).unwrap_or(1);
        Pool::builder(manager)
            .max_size(size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(WAIT))
            .create_timeout(Some(CONNECT * hosts.max(1) + WAIT))
            .recycle_timeout(Some(WAIT))
            .build()
            .map_err(|error| StoreError::Unusable(error.into()))
    }

    fn tls(&self) -> Result<MakeTlsConnector, StoreError> {
        let failed = |error: openssl::error::ErrorStack| StoreError::Unusable(error.into());
        let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(failed)?;
        match &self.trust {
            Trust::Anybody => builder.set_verify(SslVerifyMode::NONE),
            Trust::Authority(root) | Trust::Host(root) => {
                if let Some(root) = root {
                    builder
                        .set_ca_file(root)
                        .map_err(|error| of_file("sslrootcert", root, &error))?;
                }
            }
        }
        if let Some((certificate, key)) = &self.identity {
            builder
                .set_certificate_chain_file(certificate)
                .map_err(|error| of_file("sslcert", certificate, &error))?;
            builder
                .set_private_key_file(key, SslFiletype::PEM)
                .map_err(|error| of_file("sslkey", key, &error))?;
            builder
                .check_private_key()
                .map_err(|error| of_file("sslkey", key, &error))?;
        }
        let mut connector = MakeTlsConnector::new(builder.build());
        if !matches!(self.trust, Trust::Host(_)) {
            connector.set_callback(|tls, _| {
                tls.set_verify_hostname(false);
                Ok(())
            });
        }
        Ok(connector)
    }
}

const NO_PASSWORD: &str = "a password does not belong here: write `store.password = { env = \"…\" }` or `{ file = \"…\" }`";

fn of_file(what: &str, path: &std::path::Path, error: &openssl::error::ErrorStack) -> StoreError {
    let path = path.display();
    unusable(&format!("`{what}` {path} cannot be used: {error}"))
}
