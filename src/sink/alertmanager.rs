//! Alertmanager, API v2: for teams that have their routing, silences and receivers there.
//!
//! What failed fires an alert; what succeeded, or began anew, ends the one of the same command and
//! instance. Answers: Alertmanager's own description of its API.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{self, Call, Checked, Vendor};
use crate::clock::later;
use crate::fault::Fault;
use crate::render::{Document, Notice, Plain, Tone};
use crate::secret::SecretText;
use crate::units::Span;

/// How long an alert fires when nothing ends it.
const USUAL_FIRING: std::time::Duration = std::time::Duration::from_hours(4);

/// Settings of an Alertmanager sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Base URL of the Alertmanager.
    pub url: String,
    /// How long an alert fires when nothing ends it.
    pub firing: Option<Span>,
    /// More labels for every alert.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct Alertmanager {
    url: Url,
    firing: std::time::Duration,
    labels: std::collections::BTreeMap<String, String>,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let base = format!("{}/", self.url.trim_end_matches('/'));
        let (connection, base) = self
            .http
            .check_with_url(folder, &SecretText::from(base.as_str()))?;
        let url = base
            .join("api/v2/alerts")
            .map_err(|_| vec![Fault::at(&["url"], "this is no base URL")])?;
        let is_name = |name: &str| {
            let mut bytes = name.bytes();
            bytes
                .next()
                .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if let Some(name) = self.labels.keys().find(|name| !is_name(name)) {
            let why = "a label's name is made of letters, digits and `_`";
            return Err(vec![Fault::at(&["labels", name], why)]);
        }
        Ok(Checked {
            vendor: Arc::new(Alertmanager {
                url,
                firing: self.firing.map_or(USUAL_FIRING, |span| span.0),
                labels: self.labels,
            }),
            connection,
        })
    }
}

impl Vendor for Alertmanager {
    fn at_once(&self) -> usize {
        4
    }

    fn takes_digests(&self) -> bool {
        false
    }

    fn destination(&self) -> String {
        self.url.to_string()
    }

    fn call(&self, notice: &Notice, at: Timestamp) -> Call {
        Call::json(&self.url, &json!([self.alert(notice, at)]))
    }
}

impl Alertmanager {
    fn alert(&self, notice: &Notice, at: Timestamp) -> Value {
        let event = &notice.event;
        let document = Document::of(notice);
        let mut labels = json!({
            "alertname": "RunCommand",
            "kind": event.kind.word(),
            "account": event.account,
            "region": event.region,
        });
        let mut label = |name: &str, value: &str| {
            let value = Plain::new(value);
            if let Some(labels) = labels.as_object_mut()
                && !value.text().is_empty()
            {
                labels.insert(name.to_owned(), value.text().into());
            }
        };
        match event.command() {
            Some(it) => {
                label("command", &it.command);
                label("document", &it.document);
                label("instance", it.instance.as_deref().unwrap_or_default());
            }
            None => label("message", &notice.id),
        }
        for (name, value) in &self.labels {
            label(name, value);
        }
        let ends_at = match document.tone {
            Tone::Bad | Tone::Warning => later(at, self.firing),
            Tone::Good | Tone::Neutral => at,
        };
        let facts = document.facts.iter();
        let facts: Vec<String> = facts
            .map(|fact| format!("{}: {}", fact.name, fact.value.text()))
            .collect();
        // It must not end before it began, however late it was told.
        let starts_at = event.sort_time.min(at);
        json!({
            "labels": labels,
            "annotations": {
                "summary": document.title.text(),
                "status": document.status.text(),
                "description": facts.join("\n"),
            },
            "startsAt": starts_at.to_string(),
            "endsAt": ends_at.to_string(),
            "generatorURL": document.link.map(|link| link.url).unwrap_or_default(),
        })
    }
}
