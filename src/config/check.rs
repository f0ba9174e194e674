//! From what is written to what may run: every section checked for itself, then against the others.

use std::net::SocketAddr;

use super::document::Document;
use super::file::{AdminFile, LogFile, ServerFile, StoreFile};
use super::{Config, LogSettings, Surroundings};
use crate::route::Route;
use crate::sns::verify::OLDEST;
use crate::store::{self, Engine};

mod doors;
mod shared;
mod streets;

const SECTIONS: [&str; 7] = ["server", "admin", "store", "topic", "sink", "route", "log"];

/// Checks everything; whatever is wrong is left in `document`.
pub(super) fn config(document: &mut Document, around: &Surroundings<'_>) -> Option<Config> {
    document.keys_are_among(&SECTIONS);
    let server = document.section::<ServerFile>("server");
    let server = server.and_then(|file| doors::server(document, around, file));
    let topics = streets::topics(document);
    let sinks = streets::sinks(document, around);
    let routes = streets::routes(document, &topics, &sinks);
    let store = document.section::<StoreFile>("store");
    let store = store.and_then(|file| store_of(document, around, &file, &routes));
    let admin = document.section::<AdminFile>("admin");
    let admin = admin.and_then(|file| doors::admin(document, around, file, store.as_ref()));
    let log = document.section::<LogFile>("log");
    let log = log.and_then(|file| log_of(document, file));
    if let (Some(server), Some(admin)) = (&server, &admin)
        && let Some(listen) = admin.listen
        && collide(listen, server.hook.listen)
    {
        document.fault(
            &["admin", "listen"],
            "this is the address for SNS: give people and tools another",
        );
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

fn store_of(
    document: &mut Document,
    around: &Surroundings<'_>,
    file: &StoreFile,
    routes: &[Route],
) -> Option<store::Settings> {
    let longest = routes.iter().map(|route| route.hold).max();
    let least = OLDEST + longest.unwrap_or_default();
    if file.retention.0 < least {
        document.fault(
            &["store", "retention"],
            format!(
                "events have to be kept for {} at least: so long a replay must be known, and so long \
                 something is held",
                humantime::format_duration(least)
            ),
        );
    }
    let (scheme, path) = file.url.split_once(':').unwrap_or((&file.url, ""));
    let why = match scheme {
        "sqlite" if path.is_empty() || path.starts_with(':') || path.starts_with("//") => {
            "this is no path of a database"
        }
        "sqlite" => {
            return Some(store::Settings {
                engine: Engine::Sqlite(around.folder.join(path)),
                retention: file.retention.0,
            });
        }
        "postgres" | "postgresql" => "`postgres://` is not supported by this version",
        _ => "this is no database that is known",
    };
    let message = format!("{why}: write `sqlite:/path/to/runbell.db`");
    document.fault(&["store", "url"], message);
    None
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

/// Whether the two cannot be bound both: an unspecified address takes its port on all others.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let is_same_host =
        one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    is_same_host && one.port() == other.port() && one.port() != 0
}
