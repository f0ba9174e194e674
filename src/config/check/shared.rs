//! What every sink can have, whatever its type: the replica that brings to it, a fallback that brings
//! what it cannot, and words.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::Value;

use crate::config::document::Document;
use crate::fault::meant;
use crate::render::{Template, TemplateSettings};
use crate::route::Route;
use crate::sink::{Configured, Fallback, Kind};
use crate::store::{self, Engine};
use crate::units::Span;

/// How long a sink may be in trouble before its fallback takes over, when nobody says.
const USUAL_FALLBACK: Duration = Duration::from_mins(5);

/// The keys, as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SharedFile {
    on: Option<String>,
    fallback: Option<String>,
    fallback_after: Option<Span>,
    template: Option<TemplateSettings>,
}

/// What was made of them.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) on: Option<String>,
    pub(super) fallback: Option<Fallback>,
    pub(super) template: Option<Arc<Template>>,
}

/// Takes what every sink can have out of the table of one.
pub(super) fn shared(document: &mut Document, name: &str, table: &mut toml::Table) -> Shared {
    let taken = ["on", "fallback", "fallback_after", "template"]
        .iter()
        .filter_map(|key| table.remove_entry(*key))
        .collect();
    let at = ["sink", name];
    let Some(file) = document.read::<SharedFile>(&at, &Value::Table(taken)) else {
        return Shared::default();
    };
    let template = file.template.and_then(|template| {
        let checked = template.check();
        checked.map_err(|faults| document.faults(&at, faults)).ok()
    });
    let after = file.fallback_after.map_or(USUAL_FALLBACK, |span| span.0);
    if file.fallback.is_none() && file.fallback_after.is_some() {
        document.fault(
            &["sink", name, "fallback_after"],
            "this needs a `fallback`: the name of another sink",
        );
    }
    Shared {
        on: file.on,
        fallback: file.fallback.map(|to| Fallback { to, after }),
        template,
    }
}

/// Whether it is clear which replica brings to which sink.
pub(super) fn replicas(
    document: &mut Document,
    sinks: &[Configured],
    store: &store::Settings,
    replica: &str,
) {
    for sink in sinks {
        let (name, at) = (&sink.name, ["sink", &sink.name, "on"]);
        match (&store.engine, &sink.on) {
            (Engine::Sqlite(_), Some(on)) if on != replica => document.fault(
                &at,
                format!(
                    "nobody else brings anything to `{name}`: nobody shares an embedded store, and \
                     this replica is called `{replica}`"
                ),
            ),
            (Engine::Postgres(_), None) => {
                if let Kind::File(file) = &sink.kind
                    && !file.is_of_replica()
                {
                    document.warn(
                        &["sink", name, "path"],
                        "each replica writes the part that it brings: put `{replica}` into the path, or \
                         say with `on` which one brings all",
                    );
                }
            }
            _ => {}
        }
    }
}

/// Whether every fallback leads somewhere else in the end.
pub(super) fn fallbacks(document: &mut Document, sinks: &[Configured]) {
    let known = document.names("sink");
    let next = |name: &str| {
        let sink = sinks.iter().find(|sink| sink.name == name);
        sink.and_then(|sink| sink.fallback.as_ref())
    };
    for sink in sinks {
        let Some(fallback) = &sink.fallback else {
            continue;
        };
        let at = ["sink", &sink.name, "fallback"];
        if !known.contains(&fallback.to) {
            let suggestion = meant(&fallback.to, known.iter().map(String::as_str));
            document.fault(
                &at,
                format!("there is no sink `{}`{suggestion}", fallback.to),
            );
        }
        let mut seen = vec![&sink.name];
        let mut here = Some(fallback);
        while let Some(fallback) = here {
            if seen.contains(&&fallback.to) {
                document.fault(
                    &at,
                    "this leads back to where it began: what no sink can bring is kept as a dead letter",
                );
                break;
            }
            seen.push(&fallback.to);
            here = next(&fallback.to);
        }
    }
}

/// A sink that a route may bring something to, by itself or as a fallback, and that takes no digests.
pub(super) fn one_by_one<'s>(sinks: &'s [Configured], route: &Route) -> Option<&'s Configured> {
    let mut names: Vec<&str> = route.to.iter().map(String::as_str).collect();
    let mut at = 0;
    while let Some(name) = names.get(at) {
        let sink = sinks.iter().find(|sink| sink.name == *name);
        let next = sink.and_then(|sink| sink.fallback.as_ref());
        if let Some(next) = next.filter(|next| !names.contains(&next.to.as_str())) {
            names.push(&next.to);
        }
        at += 1;
    }
    let reached = sinks
        .iter()
        .filter(|sink| names.contains(&sink.name.as_str()));
    reached.into_iter().find(|sink| !sink.takes_digests())
}
