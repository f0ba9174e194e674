//! The sockets that the process listens on.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use tokio::net::{TcpListener, UnixListener};

use super::AppError;
use crate::config::Config;
use crate::web::admin;

/// The sockets, bound before anything else starts: who asks for a taken port learns it at once.
#[derive(Debug)]
pub struct Listeners {
    pub(super) hook: TcpListener,
    pub(super) admin: Option<TcpListener>,
    pub(super) socket: Option<UnixListener>,
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
            Some(path) => Some(unix(path)?),
            None => None,
        };
        Ok(Self {
            hook,
            admin,
            socket,
        })
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
    bound.map_err(|source| AppError::Listen {
        place: address.to_string(),
        source,
    })
}

fn unix(path: &Path) -> Result<UnixListener, AppError> {
    Ok(admin::socket::bind(path)?)
}
