//! Where messages come from and where notices go: topics, sinks, and the routes between them.

use std::collections::HashMap;

use secrecy::ExposeSecret as _;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use toml::Value;

use super::doors::reveal;
use super::shared::{Shared, fallbacks, one_by_one, shared};
use crate::config::Surroundings;
use crate::config::document::Document;
use crate::config::file::TopicFile;
use crate::config::secret::{SECRETS, Secret};
use crate::fault::{Fault, meant};
use crate::route::{self, Route};
use crate::secret::{REVEALED, SecretText};
use crate::sink::{
    Configured, Kind, alertmanager, discord, email, exec, file, google_chat, http, mattermost,
    ntfy, pagerduty, slack, stdout, teams, telegram, webhook,
};
use crate::sns::TopicSettings;

const SINKS: [&str; 14] = [
    "file",
    "stdout",
    "email",
    "exec",
    "webhook",
    "slack",
    "teams",
    "discord",
    "google-chat",
    "mattermost",
    "pagerduty",
    "telegram",
    "ntfy",
    "alertmanager",
];

pub(super) fn topics(document: &mut Document) -> Vec<TopicSettings> {
    let mut topics: Vec<TopicSettings> = Vec::new();
    let files = document.array::<TopicFile>(
        "topic",
        "no topic is allowed: add a `[[topic]]` with the `arn` of yours",
    );
    for (number, file) in files {
        let Some(file) = file else { continue };
        let path = |key| ["topic", number.as_str(), key];
        if let Some(endpoint) = &file.endpoint
            && !is_base_url(endpoint)
        {
            document.fault(
                &path("endpoint"),
                "this is no base URL: it looks like `http://localhost:4566`, without user, query or \
                 fragment",
            );
        }
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
        topics.push(TopicSettings {
            arn,
            confirm: file.confirm,
            endpoint: file.endpoint,
            allow_version_1: file.allow_version_1,
        });
    }
    topics
}

pub(super) fn sinks(
    document: &mut Document,
    around: &Surroundings<'_>,
    replica: &str,
) -> Vec<Configured> {
    let mut sinks = Vec::new();
    let mut paths: HashMap<String, String> = HashMap::new();
    for (name, mut table) in document.tables("sink") {
        let at = ["sink", name.as_str()];
        let kinds = SINKS.join("`, `");
        let Some(Value::String(kind)) = table.remove("type") else {
            document.fault(
                &["sink", &name, "type"],
                format!("say what it is: `type` is one of `{kinds}`"),
            );
            continue;
        };
        let Shared {
            on,
            fallback,
            template,
        } = shared(document, &name, &mut table);
        let mut rest = Value::Table(table);
        let mut path: Vec<String> = at.iter().map(|key| (*key).to_owned()).collect();
        if !reveal_all(document, around, &mut path, &mut rest) {
            continue;
        }
        let folder = around.folder;
        let kind = match kind.as_str() {
            "file" => sink(document, &at, &rest, |it: file::Settings| {
                it.check(folder, replica)
            })
            .map(Kind::File),
            "stdout" => sink(document, &at, &rest, |it: stdout::Settings| Ok(it)).map(Kind::Stdout),
            "email" => {
                sink(document, &at, &rest, |it: email::Settings| it.check(folder)).map(Kind::Email)
            }
            "exec" => {
                sink(document, &at, &rest, |it: exec::Settings| it.check(folder)).map(Kind::Exec)
            }
            "webhook" => http(document, &at, &rest, |it: webhook::Settings| {
                it.check(folder)
            }),
            "slack" => http(document, &at, &rest, |it: slack::Settings| it.check(folder)),
            "teams" => http(document, &at, &rest, |it: teams::Settings| it.check(folder)),
            "discord" => http(document, &at, &rest, |it: discord::Settings| {
                it.check(folder)
            }),
            "google-chat" => http(document, &at, &rest, |it: google_chat::Settings| {
                it.check(folder)
            }),
            "mattermost" => http(document, &at, &rest, |it: mattermost::Settings| {
                it.check(folder)
            }),
            "pagerduty" => http(document, &at, &rest, |it: pagerduty::Settings| {
                it.check(folder)
            }),
            "telegram" => http(document, &at, &rest, |it: telegram::Settings| {
                it.check(folder)
            }),
            "ntfy" => http(document, &at, &rest, |it: ntfy::Settings| it.check(folder)),
            "alertmanager" => http(document, &at, &rest, |it: alertmanager::Settings| {
                it.check(folder)
            }),
            other => {
                let suggestion = meant(other, SINKS);
                document.fault(
                    &["sink", &name, "type"],
                    if suggestion.is_empty() {
                        format!("no sink is of type `{other}`; there are `{kinds}`")
                    } else {
                        format!("no sink is of type `{other}`{suggestion}")
                    },
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
        if let Some(kind) = kind {
            let configured = Configured {
                name,
                kind,
                on,
                fallback,
                template,
            };
            if configured.template.is_some() && !configured.speaks_to_people() {
                document.fault(
                    &["sink", &configured.name, "template"],
                    "this sink writes events as data: there is no title and no body in them",
                );
            }
            sinks.push(configured);
        }
    }
    fallbacks(document, &sinks);
    sinks
}

/// Puts every secret that `value` says the place of in that place, marked; whether all were there.
fn reveal_all(
    document: &mut Document,
    around: &Surroundings<'_>,
    path: &mut Vec<String>,
    value: &mut Value,
) -> bool {
    let is_secret = path
        .get(2)
        .is_some_and(|key| SECRETS.contains(&key.as_str()));
    if is_secret && let Ok(secret) = Secret::deserialize(value.clone()) {
        let keys: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some(revealed) = reveal(document, around, &keys, &secret) else {
            return false;
        };
        let revealed = Value::String(revealed.expose_secret().to_owned());
        *value = Value::Table([(REVEALED.to_owned(), revealed)].into_iter().collect());
        return true;
    }
    let mut all = true;
    let mut each = |path: &mut Vec<String>, key: String, value: &mut Value| {
        path.push(key);
        all &= reveal_all(document, around, path, value);
        path.pop();
    };
    match value {
        Value::Table(table) => {
            for (key, value) in table.iter_mut() {
                each(path, key.clone(), value);
            }
        }
        Value::Array(array) => {
            for (number, value) in array.iter_mut().enumerate() {
                each(path, number.to_string(), value);
            }
        }
        _ => {}
    }
    all
}

/// The secrets that [`reveal_all`] put in their places.
fn revealed(value: &Value, into: &mut Vec<SecretText>) {
    match value {
        Value::Table(table) => match table.get(REVEALED) {
            Some(Value::String(secret)) => into.push(SecretText::from(secret.as_str())),
            _ => table.values().for_each(|value| revealed(value, into)),
        },
        Value::Array(array) => array.iter().for_each(|value| revealed(value, into)),
        _ => {}
    }
}

fn http<S: DeserializeOwned>(
    document: &mut Document,
    at: &[&str],
    table: &Value,
    check: impl FnOnce(S) -> Result<http::Checked, Vec<Fault>>,
) -> Option<Kind> {
    let mut secrets = Vec::new();
    revealed(table, &mut secrets);
    sink(document, at, table, check).map(|checked| Kind::Http(checked.hiding(&secrets)))
}

fn sink<S: DeserializeOwned, C>(
    document: &mut Document,
    at: &[&str],
    table: &Value,
    check: impl FnOnce(S) -> Result<C, Vec<Fault>>,
) -> Option<C> {
    let settings = document.read(at, table)?;
    check(settings)
        .map_err(|faults| document.faults(at, faults))
        .ok()
}

pub(super) fn routes(
    document: &mut Document,
    topics: &[TopicSettings],
    sinks: &[Configured],
) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    let known = document.names("sink");
    let files = document.array::<route::Settings>(
        "route",
        "no route brings anything anywhere: add a `[[route]]` with a `name` and `to`",
    );
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
                if let (Some(_), Some(sink)) = (route.digest, one_by_one(sinks, &route)) {
                    document.fault(
                        &["route", &number, "digest"],
                        format!(
                            "sink `{}` takes events one by one: give it a route of its own",
                            sink.name
                        ),
                    );
                }
                if routes.iter().any(|other| other.name == route.name) {
                    document.fault(
                        &["route", &number, "name"],
                        "another route has this name: deliveries are kept by it",
                    );
                }
                if !topics.iter().any(|it| route.when.can_take_from(&it.arn)) {
                    document.warn(
                        &["route", &number, "when"],
                        "this route takes nothing from any topic that is allowed",
                    );
                } else if route.witness().is_none() {
                    document.warn(&at, "no event could be made that this route takes");
                }
                routes.push(route);
            }
            Err(faults) => document.faults(&at, faults),
        }
    }
    for sink in sinks {
        let fallbacks = sinks.iter().filter_map(|other| other.fallback.as_ref());
        let is_fallback = fallbacks.into_iter().any(|it| it.to == sink.name);
        if !is_fallback && !named.contains(&sink.name) {
            document.warn(
                &["sink", &sink.name],
                "no route brings anything to this sink",
            );
        }
    }
    routes
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
