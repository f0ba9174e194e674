//! PagerDuty, Events API v2: what failed triggers an incident, what succeeded resolves the one of the
//! same command and instance, anything else is a change event that pages nobody.
//!
//! Limits and answers: PagerDuty's documentation of the Events API v2 and of change events.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{self, Call, Checked, Rate, Vendor};
use crate::fault::Fault;
use crate::render::{Document, Notice, Plain, Tone};
use crate::secret::SecretText;

/// Where events go when nobody says; the European service has another host.
const USUAL_URL: &str = "https://events.pagerduty.com";
/// The longest summary, in characters.
const SUMMARY: usize = 1024;
/// The largest event that is surely taken, in bytes; PagerDuty takes 512 KB.
const LARGEST: usize = 400_000;

/// Settings of a `PagerDuty` sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The integration key of a service.
    pub key: SecretText,
    /// Base URL of the Events API, if not that of the United States.
    pub url: Option<String>,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct PagerDuty {
    key: SecretText,
    events: Url,
    changes: Url,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let base = SecretText::from(self.url.as_deref().unwrap_or(USUAL_URL));
        let (connection, base) = self.http.check_with_url(folder, &base)?;
        let at = |path| {
            base.join(path)
                .map_err(|_| vec![Fault::at(&["url"], "this is no base URL")])
        };
        Ok(Checked {
            vendor: Arc::new(PagerDuty {
                events: at("/v2/enqueue")?,
                changes: at("/v2/change/enqueue")?,
                key: self.key,
            }),
            connection,
        })
    }
}

impl Vendor for PagerDuty {
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_millis(500),
            burst: 10,
        })
    }

    fn takes_digests(&self) -> bool {
        false
    }

    fn destination(&self) -> String {
        format!("pagerduty {}", self.key.expose())
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        let fits =
            |document: &Document| self.event(notice, document).1.to_string().len() <= LARGEST;
        let document = Document::of(notice).fitted(fits);
        let (url, event) = self.event(notice, &document);
        Call::json(url, &event)
    }
}

impl PagerDuty {
    fn event(&self, notice: &Notice, document: &Document) -> (&Url, Value) {
        let links: Vec<Value> = document
            .link
            .iter()
            .map(|link| json!({ "href": link.url, "text": link.label }))
            .collect();
        let facts = document.facts.iter();
        let mut details: serde_json::Map<String, Value> = facts
            .map(|fact| (fact.name.to_owned(), fact.value.text().into()))
            .collect();
        if let Some(paste) = &document.paste {
            details.insert("Show its output".to_owned(), paste.text().into());
        }
        if let Some(text) = &document.text {
            details.insert("Message".to_owned(), text.text().into());
        }
        for (number, mark) in document.marks.iter().enumerate() {
            details.insert(format!("Note {}", number + 1), mark.text().into());
        }
        let event = &notice.event;
        let summary = document.title.cut(SUMMARY).text().to_owned();
        let mut payload = json!({
            "summary": summary,
            "source": event.account,
            "timestamp": event.sort_time.to_string(),
            "custom_details": details,
        });
        let key = self.key.expose();
        let action = match document.tone {
            Tone::Bad | Tone::Warning => "trigger",
            // A status that is final for one command opens no incident that a later one closes, but
            // for commands that told two of them.
            Tone::Good if notice.marks.conflict => "resolve",
            Tone::Good | Tone::Neutral => {
                let change = json!({ "routing_key": key, "payload": payload, "links": links });
                return (&self.changes, change);
            }
        };
        let severity = if document.tone == Tone::Bad {
            "error"
        } else {
            "warning"
        };
        if let (Some(payload), Some(it)) = (payload.as_object_mut(), event.command()) {
            payload.insert("severity".to_owned(), severity.into());
            payload.insert(
                "component".to_owned(),
                plain(it.instance.as_deref().unwrap_or("command")),
            );
            payload.insert("group".to_owned(), plain(&it.document));
            payload.insert("class".to_owned(), plain(it.status.as_str()));
        } else if let Some(payload) = payload.as_object_mut() {
            payload.insert("severity".to_owned(), severity.into());
        }
        let event = json!({
            "routing_key": key,
            "event_action": action,
            "dedup_key": incident(notice),
            "payload": payload,
            "links": links,
            "client": "Runbell",
        });
        (&self.events, event)
    }
}

/// A text that somebody wrote, without what hides or moves other text.
fn plain(text: &str) -> Value {
    Plain::new(text).text().into()
}

/// What names the incident: the same for every status of one command on one instance.
fn incident(notice: &Notice) -> String {
    let event = &notice.event;
    match event.command() {
        Some(it) => {
            let instance = it.instance.as_deref().unwrap_or_default();
            let text = format!(
                "{}/{}/{}/{instance}",
                event.account, event.region, it.command
            );
            Plain::new(&text).text().chars().take(255).collect()
        }
        None => notice.id.clone(),
    }
}
