//! The composition root: builds the parts from checked settings, runs them, and stops them in
//! order.
//!
//! `cli` calls it to serve, the tests to serve on port 0. Only here tasks are started and the clock
//! is made. It stops by first saying that it is not ready, then closing the doors, then letting the
//! workers finish what is under way; all within a deadline. A part that dies stops the whole.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, later};
use crate::config::Config;
use crate::deliver::{Surroundings, Worker};
use crate::health::Readiness;
use crate::metrics::Metrics;
use crate::receive::{Parts, Receiver};
use crate::route::Routes;
use crate::sink::{self, Sink};
use crate::sns::{KnownCertificate, Verifier, confirm};
use crate::store::{self, Opened, Store, StoreError, sqlite::Sqlite};
use crate::wake::Wake;
use crate::web::serve::{Door, Limits, serve};
use crate::web::tls::{Tls, TlsError};
use crate::web::{admin, hook};

/// How often this process says that it lives.
const BEAT: Duration = Duration::from_secs(2);
/// How often lanes are looked after and old events forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// Why it cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address cannot be listened on.
    #[error("cannot listen on {place}")]
    Listen {
        /// The address or path.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("cannot serve TLS")]
    Tls(#[from] TlsError),
    /// The store cannot be opened or read.
    #[error("cannot use the store")]
    Store(#[from] StoreError),
    /// The client that talks to SNS cannot be made.
    #[error("cannot make a client for SNS")]
    Client(#[from] reqwest::Error),
    /// A thread cannot be started.
    #[error("cannot start the thread that writes")]
    Thread(#[source] io::Error),
    /// A part ended that should not have.
    #[error("{0} stopped unexpectedly")]
    Died(String),
}

/// The sockets, bound before anything else starts: who asks for a taken port learns it at once.
#[derive(Debug)]
pub struct Listeners {
    hook: TcpListener,
    admin: Option<TcpListener>,
    socket: Option<(UnixListener, PathBuf)>,
}

impl Listeners {
    /// Binds what the settings name.
    ///
    /// # Errors
    /// When an address or path cannot be listened on.
    pub async fn bind(config: &Config) -> Result<Self, AppError> {
        let hook = tcp(config.server.hook.listen).await?;
        let admin = match config.admin.listen {
            Some(address) => Some(tcp(address).await?),
            None => None,
        };
        let socket = match &config.admin.socket {
            Some(path) => Some((unix(path)?, path.clone())),
            None => None,
        };
        Ok(Self { hook, admin, socket })
    }

    /// Where SNS may post.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn hook_address(&self) -> io::Result<SocketAddr> {
        self.hook.local_addr()
    }

    /// Where people and their tools may look, if anywhere.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn admin_address(&self) -> io::Result<Option<SocketAddr>> {
        self.admin.as_ref().map(TcpListener::local_addr).transpose()
    }
}

async fn tcp(address: SocketAddr) -> Result<TcpListener, AppError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| AppError::Listen { place: address.to_string(), source })
}
