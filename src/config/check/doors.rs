//! The two doors, as they are written and as they may open: the listener for SNS and the one for people
//! and their tools. What `serve` would find out before it binds is found out here.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::SecretString;

use crate::config::document::Document;
use crate::config::file::{AdminFile, CredentialsFile, ServerFile};
use crate::config::secret::Secret;
use crate::config::{Server, Surroundings};
use crate::fault::causes;
use crate::route::LONGEST_HOLD;
use crate::store::{self, Engine};
use crate::web::tls::{Tls, TlsError};
use crate::web::{AdminSettings, Credentials, HookSettings, TlsSettings};

/// SNS keeps connections for less than this only at a price.
const ADVISED_KEEP_ALIVE: Duration = Duration::from_mins(1);

pub(super) fn server(
    document: &mut Document,
    around: &Surroundings<'_>,
    file: ServerFile,
    replica: &str,
) -> Option<Server> {
    let listen = address(document, &["server", "listen"], &file.listen);
    let is_plain_path = file.path.starts_with('/')
        && file
            .path
            .bytes()
            .all(|it| it.is_ascii_graphic() && !b"?#%\"<>\\^`|".contains(&it))
        && !file.path.contains("//");
    if !is_plain_path {
        document.fault(
            &["server", "path"],
            "the path begins with one `/` and has nothing in it that URLs encode: no blanks, `?`, `#`, `%`…",
        );
    }
    let tls = file.tls.map(|tls| TlsSettings {
        cert: around.folder.join(tls.cert),
        key: around.folder.join(tls.key),
    });
    if let Some(settings) = &tls
        && let Err(error) = Tls::load(settings.clone())
    {
        let key = match &error {
            TlsError::Read { path, .. } if *path == settings.key => "key",
            TlsError::ParseKey { .. } => "key",
            _ => "cert",
        };
        document.fault(&["server", "tls", key], causes(&error));
    }
    // Wrong TLS settings are meant to be some.
    if document.has(&["server", "auth", "0"])
        && !document.has(&["server", "tls"])
        && !file.behind_proxy
    {
        document.fault(
            &["server", "auth"],
            "without TLS passwords go over the wire in the clear: set `tls`, or `behind_proxy = true` \
             when a TLS proxy stands before this listener",
        );
    }
    let auth = credentials(document, around, file.auth);
    let trusted_proxies = networks(document, &file.trusted_proxies);
    if replica.is_empty() || replica.len() > 63 {
        document.fault(
            &["server", "replica"],
            "a replica has a name of up to 63 bytes: that of its machine, say",
        );
    }
    if file.max_connections == 0 {
        document.fault(&["server", "max_connections"], "allow at least one");
    }
    for (key, span) in [
        ("handshake_timeout", file.handshake_timeout),
        ("header_timeout", file.header_timeout),
        ("body_timeout", file.body_timeout),
        ("keep_alive", file.keep_alive),
    ] {
        if span.0.is_zero() {
            document.fault(&["server", key], "nothing can be done in no time");
        }
    }
    if file.keep_alive.0 < ADVISED_KEEP_ALIVE {
        document.warn(
            &["server", "keep_alive"],
            "SNS will have to reconnect often: a minute or more is advised",
        );
    }
    if file.gap_hold.0 > LONGEST_HOLD {
        document.fault(&["server", "gap_hold"], "a hold is at most an hour");
    }
    Some(Server {
        hook: HookSettings {
            listen: listen?,
            path: file.path,
            tls,
            auth,
            behind_proxy: file.behind_proxy,
            trusted_proxies,
            max_connections: file.max_connections,
            handshake_timeout: file.handshake_timeout.0,
            header_timeout: file.header_timeout.0,
            body_timeout: file.body_timeout.0,
            keep_alive: file.keep_alive.0,
        },
        replica: replica.to_owned(),
        gap_hold: file.gap_hold.0,
        leave_after: file.leave_after.0,
        drain: file.drain.0,
    })
}

pub(super) fn admin(
    document: &mut Document,
    around: &Surroundings<'_>,
    file: AdminFile,
    store: Option<&store::Settings>,
) -> Option<AdminSettings> {
    let listen = match file.listen.as_str() {
        "off" => Some(None),
        text => address(document, &["admin", "listen"], text).map(Some),
    };
    let token = file
        .token
        .and_then(|token| reveal(document, around, &["admin", "token"], &token));
    if let Some(Some(address)) = listen
        && !address.ip().is_loopback()
        && !document.has(&["admin", "token"])
    {
        document.fault(
            &["admin", "listen"],
            "everybody who can reach this address could read events: set `token`, or listen on \
             127.0.0.1",
        );
    }
    let socket = match file.socket.as_deref() {
        Some("off") => None,
        Some(path) => Some(around.folder.join(path)),
        None => store.map(|store| match &store.engine {
            Engine::Sqlite(path) => path.with_file_name("runbell.sock"),
            Engine::Postgres(_) => "/var/lib/runbell/runbell.sock".into(),
        }),
    };
    Some(AdminSettings {
        listen: listen?,
        socket,
        token,
    })
}

/// What this machine calls itself.
pub(super) fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

fn credentials(
    document: &mut Document,
    around: &Surroundings<'_>,
    files: Vec<CredentialsFile>,
) -> Vec<Credentials> {
    let mut auth = Vec::new();
    for (number, CredentialsFile { user, password }) in files.into_iter().enumerate() {
        let number = number.to_string();
        if user.is_empty() || user.contains(':') {
            document.fault(
                &["server", "auth", &number, "user"],
                "a user has a name, without a colon",
            );
        }
        let path = ["server", "auth", &number, "password"];
        if let Some(password) = reveal(document, around, &path, &password) {
            auth.push(Credentials { user, password });
        }
    }
    auth
}

fn networks(document: &mut Document, texts: &[String]) -> Vec<ipnet::IpNet> {
    let mut networks = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let parsed = text
            .parse()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from));
        match parsed {
            Ok(network) => networks.push(network),
            Err(_) => document.fault(
                &["server", "trusted_proxies", &number.to_string()],
                "write an address, or a network like `10.0.0.0/8`",
            ),
        }
    }
    networks
}

fn address(document: &mut Document, path: &[&str], text: &str) -> Option<SocketAddr> {
    let parsed = text.parse();
    if parsed.is_err() {
        document.fault(
            path,
            "this is no address with a port: write it like `0.0.0.0:8443` or `[::]:8443`",
        );
    }
    parsed.ok()
}

pub(super) fn reveal(
    document: &mut Document,
    around: &Surroundings<'_>,
    path: &[&str],
    secret: &Secret,
) -> Option<SecretString> {
    match secret.reveal(around) {
        Ok((secret, warning)) => {
            if let Some(warning) = warning {
                document.warn(path, warning);
            }
            Some(secret)
        }
        Err(why) => {
            document.fault(path, why);
            None
        }
    }
}
