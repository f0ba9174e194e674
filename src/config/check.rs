//! From what is written to what may run: every section checked for itself, then against the others.

use std::net::SocketAddr;

use super::document::Document;
use super::file::{AdminFile, LogFile, ServerFile, StoreFile};
use super::{Config, LogSettings, Surroundings};
use crate::route::Route;
use crate::sink::Configured;
use crate::sns::verify::OLDEST;
use crate::store::{self, Engine, postgres};

mod doors;
mod shared;
mod streets;

const SECTIONS: [&str; 7] = ["server", "admin", "store", "topic", "sink", "route", "log"];

/// Checks everything; whatever is wrong is left in `document`.
pub(super) fn config(document: &mut Document, around: &Surroundings<'_>) -> Option<Config> {
    document.keys_are_among(&SECTIONS);
    let server = document.section::<ServerFile>("server");
    let replica = server.as_ref().and_then(|file| file.replica.clone());
    let replica = replica.unwrap_or_else(doors::host_name);
    let server = server.and_then(|file| doors::server(document, around, file, &replica));
    let topics = streets::topics(document);
    let sinks = streets::sinks(document, around, &replica);
    let routes = streets::routes(document, &topics, &sinks);
    let store = document.section::<StoreFile>("store");
    let store =
        store.and_then(|file| store_of(document, around, &file, &replica, (&sinks, &routes)));
    if let Some(store) = &store {
        shared::replicas(document, &sinks, store, &replica);
    }
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
        generation: document.generation(),
    })
}

fn store_of(
    document: &mut Document,
    around: &Surroundings<'_>,
    file: &StoreFile,
    replica: &str,
    (sinks, routes): (&[Configured], &[Route]),
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
    let engine = match scheme {
        "sqlite" if path.is_empty() || path.starts_with(':') || path.starts_with("//") => {
            Err("this is no path of a database: write `sqlite:/path/to/runbell.db`".to_owned())
        }
        "sqlite" => Ok(Engine::Sqlite(around.folder.join(path))),
        "postgres" | "postgresql" => {
            let password = match &file.password {
                Some(secret) => Some(doors::reveal(
                    document,
                    around,
                    &["store", "password"],
                    secret,
                )?),
                None => None,
            };
            let replica = replica.to_owned();
            postgres::Settings::parse(&file.url, password.as_ref(), file.connections, replica)
                .map(|settings| Engine::Postgres(Box::new(settings)))
                .map_err(|why| format!("{why}; it looks like `postgres://runbell@db.example.com/runbell?sslmode=verify-full`"))
        }
        _ => Err(
            "this is no database that is known: write `sqlite:/path/to/runbell.db`, or a URL that \
             begins with `postgres://`"
                .to_owned(),
        ),
    };
    let engine = engine
        .map_err(|why| document.fault(&["store", "url"], why))
        .ok()?;
    match &engine {
        Engine::Sqlite(_) => {
            if file.password.is_some() {
                document.fault(&["store", "password"], "a file has no password");
            }
        }
        Engine::Postgres(settings) => {
            if !(2..=1000).contains(&file.connections) {
                document.fault(
                    &["store", "connections"],
                    "some are needed: write a number from 2 to 1000",
                );
            }
            if settings.is_exposed() {
                document.warn(
                    &["store", "url"],
                    "whoever is between here and the database can read and change what goes there: \
                     add `sslmode=verify-full`",
                );
            }
        }
    }
    Some(store::Settings {
        engine,
        retention: file.retention.0,
        terms: terms(sinks, routes),
    })
}

/// The bounds of waiting that sinks and routes ask for.
fn terms(sinks: &[Configured], routes: &[Route]) -> store::Terms {
    let timeouts = sinks.iter().map(Configured::timeout);
    let waits = routes.iter().flat_map(|route| {
        let every = route.digest.as_ref().map(|digest| digest.every);
        [Some(route.hold), every]
    });
    store::Terms::new(
        timeouts.max().unwrap_or_default(),
        waits.flatten().max().unwrap_or_default(),
    )
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
