//! From what is written to what may run: every section checked for itself, then against the others.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::DeserializeOwned;
use toml::Value;

use super::document::Document;
use super::file::{AdminFile, LogFile, ServerFile, StoreFile, TopicFile};
use super::secret::Secret;
use super::{Config, LogSettings, Server, Surroundings};
use crate::fault::{causes, meant};
use crate::route::{self, Route};
use crate::sink::{Configured, Kind, file, stdout};
use crate::sns::TopicSettings;
use crate::store::{self, Engine};
use crate::web::tls::Tls;
use crate::web::{AdminSettings, Credentials, HookSettings, TlsSettings};

const SECTIONS: [&str; 7] = ["server", "admin", "store", "topic", "sink", "route", "log"];
const SINKS: [&str; 2] = ["file", "stdout"];

/// How old a message may be when it arrives: what is kept shorter could not be told from a replay.
const FRESHNESS: Duration = Duration::from_mins(90);
/// SNS keeps connections for less than this only at a price.
const ADVISED_KEEP_ALIVE: Duration = Duration::from_mins(1);

/// Checks everything; whatever is wrong is left in `document`.
pub(super) fn config(document: &mut Document, around: &Surroundings<'_>) -> Option<Config> {
    document.keys_are_among(&SECTIONS);
    let server = document.section::<ServerFile>("server");
    let server = server.and_then(|file| server_of(document, around, file));
    let store = document.section::<StoreFile>("store");
    let store = store.and_then(|file| store_of(document, around, &file));
    let admin = document.section::<AdminFile>("admin");
    let admin = admin.and_then(|file| admin_of(document, around, file, store.as_ref()));
    let topics = topics(document);
    let sinks = sinks(document, around);
    let routes = routes(document, &sinks);
    let log = document.section::<LogFile>("log");
    let log = log.and_then(|file| log_of(document, file));
    if let (Some(server), Some(admin)) = (&server, &admin)
        && admin.listen == Some(server.hook.listen)
        && server.hook.listen.port() != 0
    {
        document.fault(
            &["admin", "listen"],
            "this is the address for SNS: give people and tools another",
        );
    }
    if let Some(store) = &store {
        let longest = routes.iter().map(|route| route.hold).max();
        let least = FRESHNESS + longest.unwrap_or_default();
        if store.retention < least {
            document.fault(
                &["store", "retention"],
                format!(
                    "events have to be kept for {} at least: so long a replay must be known, and so \
                     long something is held",
                    humantime::format_duration(least)
                ),
            );
        }
    }
    Some(Config {
        server: server?,
        admin: admin?,
        store: store?,
        topics,
        sinks,
        routes,
        log: log?,
    })
}

fn server_of(
    document: &mut Document,
    around: &Surroundings<'_>,
    file: ServerFile,
) -> Option<Server> {
    let listen = address(document, &["server", "listen"], &file.listen);
    let is_plain_path = file.path.starts_with('/')
        && file
            .path
            .bytes()
            .all(|it| it.is_ascii_graphic() && !b"?#%".contains(&it));
    if !is_plain_path {
        document.fault(
            &["server", "path"],
            "the path begins with `/` and has no blanks, `?`, `#` or `%`",
        );
    }
    let tls = file.tls.map(|tls| TlsSettings {
        cert: around.folder.join(tls.cert),
        key: around.folder.join(tls.key),
    });
    if let Some(settings) = &tls
        && let Err(error) = Tls::load(settings.clone())
    {
        document.fault(&["server", "tls"], causes(&error));
    }
    if !file.auth.is_empty() && tls.is_none() && !file.behind_proxy {
        document.fault(
            &["server", "auth"],
            "without TLS passwords go over the wire in the clear: set `tls`, or `behind_proxy = true` \
             when a TLS proxy stands before this listener",
        );
    }
    let mut auth = Vec::new();
    for (number, entry) in file.auth.into_iter().enumerate() {
        let number = number.to_string();
        if entry.user.is_empty() || entry.user.contains(':') {
            document.fault(
                &["server", "auth", &number, "user"],
                "a user has a name, without a colon",
            );
        }
        let path = ["server", "auth", &number, "password"];
        if let Some(password) = reveal(document, around, &path, &entry.password) {
            auth.push(Credentials {
                user: entry.user,
                password,
            });
        }
    }
    let mut trusted_proxies = Vec::new();
    for (number, net) in file.trusted_proxies.iter().enumerate() {
        let parsed = net
            .parse()
            .or_else(|_| net.parse::<std::net::IpAddr>().map(ipnet::IpNet::from));
        match parsed {
            Ok(net) => trusted_proxies.push(net),
            Err(_) => document.fault(
                &["server", "trusted_proxies", &number.to_string()],
                "write an address, or a network like `10.0.0.0/8`",
            ),
        }
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
        gap_hold: file.gap_hold.0,
        drain: file.drain.0,
    })
}

fn admin_of(
    document: &mut Document,
    around: &Surroundings<'_>,
    file: AdminFile,
    store: Option<&store::Settings>,
) -> Option<AdminSettings> {
    let listen = match file.listen.as_str() {
        "off" => None,
        text => Some(address(document, &["admin", "listen"], text)?),
    };
    let token = file
        .token
        .and_then(|token| reveal(document, around, &["admin", "token"], &token));
    if let Some(address) = listen
        && !address.ip().is_loopback()
        && token.is_none()
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
        None => store.map(|store| {
            let Engine::Sqlite(path) = &store.engine;
            path.with_file_name("runbell.sock")
        }),
    };
    Some(AdminSettings {
        listen,
        socket,
        token,
    })
}

fn store_of(
    document: &mut Document,
    around: &Surroundings<'_>,
    file: &StoreFile,
) -> Option<store::Settings> {
    let path = file
        .url
        .strip_prefix("sqlite:")
        .filter(|path| !path.is_empty());
    let Some(path) = path else {
        document.fault(
            &["store", "url"],
            "this version keeps events in SQLite: write `sqlite:/path/to/runbell.db`",
        );
        return None;
    };
    Some(store::Settings {
        engine: Engine::Sqlite(around.folder.join(path)),
        retention: file.retention.0,
    })
}

fn topics(document: &mut Document) -> Vec<TopicSettings> {
    let mut topics: Vec<TopicSettings> = Vec::new();
    let files = document.array::<TopicFile>("topic");
    if files.is_empty() {
        document.fault(
            &[],
            "no topic is allowed: add a `[[topic]]` with the `arn` of yours",
        );
    }
    for (number, file) in files {
        let Some(file) = file else { continue };
        let path = |key| ["topic", number.as_str(), key];
        let Ok(arn) = file.arn.parse() else {
            document.fault(
                &path("arn"),
                "this is no topic's ARN: it looks like \
                 `arn:aws:sns:eu-central-1:123456789012:run-command`",
            );
            continue;
        };
        if topics.iter().any(|topic| topic.arn == arn) {
            document.fault(&path("arn"), "this topic is there already");
        }
        if let Some(endpoint) = &file.endpoint
            && !is_base_url(endpoint)
        {
            document.fault(
                &path("endpoint"),
                "this is no base URL: it looks like `http://localhost:4566`, without user, query or \
                 fragment",
            );
        }
        topics.push(TopicSettings {
            arn,
            confirm: file.confirm,
            endpoint: file.endpoint,
            allow_version_1: file.allow_version_1,
        });
    }
    topics
}

fn sinks(document: &mut Document, around: &Surroundings<'_>) -> Vec<Configured> {
    let mut sinks = Vec::new();
    let mut paths: HashMap<String, String> = HashMap::new();
    for (name, mut table) in document.tables("sink") {
        let at = ["sink", name.as_str()];
        let Some(Value::String(kind)) = table.remove("type") else {
            let known = SINKS.join("`, `");
            document.fault(&at, format!("say what it is: `type` is one of `{known}`"));
            continue;
        };
        let rest = Value::Table(table);
        let kind = match kind.as_str() {
            "file" => sink(document, &at, rest, |it: file::Settings| {
                it.check(around.folder)
            })
            .map(Kind::File),
            "stdout" => sink(document, &at, rest, |it: stdout::Settings| Ok(it)).map(Kind::Stdout),
            other => {
                let known = SINKS.join("`, `");
                document.fault(
                    &["sink", &name, "type"],
                    format!(
                        "there is no sink `{other}`{}; there are `{known}`",
                        meant(other, SINKS)
                    ),
                );
                None
            }
        };
        if let Some(Kind::File(file)) = &kind
            && let Some(other) = paths.insert(file.path().to_owned(), name.clone())
        {
            document.fault(
                &["sink", &name, "path"],
                format!("sink `{other}` writes this file already"),
            );
        }
        // One that is wrong is there all the same: routes may name it.
        if let Some(kind) = kind {
            sinks.push(Configured { name, kind });
        }
    }
    sinks
}

fn sink<S: DeserializeOwned, C>(
    document: &mut Document,
    at: &[&str],
    table: Value,
    check: impl FnOnce(S) -> Result<C, Vec<crate::fault::Fault>>,
) -> Option<C> {
    let settings = document.read(at, table)?;
    check(settings)
        .map_err(|faults| document.faults(at, faults))
        .ok()
}

fn routes(document: &mut Document, sinks: &[Configured]) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    let known: Vec<String> = document
        .tables("sink")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let files = document.array::<route::Settings>("route");
    if files.is_empty() {
        document.fault(
            &[],
            "no route brings anything anywhere: add a `[[route]]` with a `name` and `to`",
        );
    }
    let mut named: Vec<String> = Vec::new();
    for (number, file) in files {
        let at = ["route", number.as_str()];
        let Some(file) = file else { continue };
        for (place, sink) in file.to.iter().enumerate() {
            named.push(sink.clone());
            if !known.contains(sink) {
                let suggestion = meant(sink, known.iter().map(String::as_str));
                document.fault(
                    &["route", &number, "to", &place.to_string()],
                    format!("there is no sink `{sink}`{suggestion}"),
                );
            }
        }
        match file.check() {
            Ok(route) => {
                if routes.iter().any(|other| other.name == route.name) {
                    document.fault(
                        &["route", &number, "name"],
                        "another route has this name: deliveries are kept by it",
                    );
                }
                if route.witness().is_none() {
                    document.warn(&at, "no event could be made that this route takes");
                }
                routes.push(route);
            }
            Err(faults) => document.faults(&at, faults),
        }
    }
    for sink in sinks {
        if !named.contains(&sink.name) {
            document.warn(
                &["sink", &sink.name],
                "no route brings anything to this sink",
            );
        }
    }
    routes
}

fn log_of(document: &mut Document, file: LogFile) -> Option<LogSettings> {
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&file.filter) {
        document.fault(
            &["log", "filter"],
            format!("this filter cannot be read: {error}"),
        );
        return None;
    }
    Some(LogSettings {
        format: file.format,
        filter: file.filter,
    })
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

fn reveal(
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

fn is_base_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        let authority = rest.split('/').next().unwrap_or_default();
        !authority.is_empty()
            && rest
                .bytes()
                .all(|it| it.is_ascii_graphic() && !b"@?#\\%".contains(&it))
    })
}
