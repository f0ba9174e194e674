//! Google Chat, through a webhook of a space; a card, in a thread of its command.
//!
//! Limits and answers: Google's documentation of Chat webhooks and cards.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{self, Answer, Call, Checked, Rate, Vendor};
use crate::fault::Fault;
use crate::render::{Document, Markup, Notice, Plain};
use crate::retry::Verdict;
use crate::secret::SecretText;

/// The largest message that is surely taken, in bytes; Chat takes 32,000.
const LARGEST: usize = 28_000;

/// Settings of a Google Chat sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the webhook, with its key and token; whoever has it may post.
    pub url: SecretText,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct GoogleChat {
    url: Url,
    destination: String,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let (connection, mut url) = self.http.check_with_url(folder, &self.url)?;
        let destination = url.path().to_owned();
        url.query_pairs_mut()
            .append_pair("messageReplyOption", "REPLY_MESSAGE_FALLBACK_TO_NEW_THREAD");
        Ok(Checked {
            vendor: Arc::new(GoogleChat { url, destination }),
            connection,
        })
    }
}

impl Vendor for GoogleChat {
    /// One write a second for a space, whoever writes.
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_millis(1100),
            burst: 1,
        })
    }

    fn destination(&self) -> String {
        self.destination.clone()
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        let message = |document: &Document| message(document, notice);
        let fits = |document: &Document| message(document).to_string().len() <= LARGEST;
        Call::json(&self.url, &message(&Document::of(notice).fitted(fits)))
    }

    fn plain(&self, notice: &Notice, _at: Timestamp) -> Option<Call> {
        let title = Document::of(notice).title.cut(1000).into_owned();
        let message = json!({ "text": unmarked(&title), "thread": thread(notice) });
        Some(Call::json(&self.url, &message))
    }

    fn verdict(&self, answer: &Answer) -> Verdict {
        #[derive(Deserialize)]
        struct Said {
            name: Option<String>,
        }
        match answer.usual() {
            Verdict::Sent { .. } => Verdict::Sent {
                remote_id: serde_json::from_str(&answer.body)
                    .ok()
                    .and_then(|said: Said| said.name),
            },
            verdict => verdict,
        }
    }
}

fn message(document: &Document, notice: &Notice) -> Value {
    let widget = |label: &str, text: String| json!({ "decoratedText": { "topLabel": label, "text": text, "wrapText": true } });
    let mut widgets: Vec<Value> = Vec::new();
    for mark in &document.marks {
        widgets.push(widget("Note", mark.in_markup(Markup::Html)));
    }
    for fact in &document.facts {
        widgets.push(widget(fact.name, fact.value.in_markup(Markup::Html)));
    }
    if let Some(text) = &document.text {
        widgets.push(widget("Message", text.in_markup(Markup::Html, "<br>")));
    }
    if let Some(paste) = &document.paste {
        widgets.push(widget("Show its output", paste.in_markup(Markup::Html)));
    }
    if document.is_cut {
        widgets.push(widget(
            "Shortened",
            "runbell event show has all of it".to_owned(),
        ));
    }
    if let Some(link) = &document.link {
        widgets.push(json!({ "buttonList": { "buttons": [{
            "text": link.label,
            "onClick": { "openLink": { "url": link.url } },
        }] } }));
    }
    let sign = document.tone.sign();
    json!({
        "fallbackText": format!("{sign} {}", document.title.text()),
        "cardsV2": [{
            "cardId": "status",
            "card": {
                "header": { "title": format!("{sign} {}", document.title.text()) },
                "sections": [{ "widgets": widgets }],
            },
        }],
        "thread": thread(notice),
    })
}

/// One thread for each command.
fn thread(notice: &Notice) -> Value {
    let event = &notice.event;
    let key = event.command().map_or(notice.id.as_str(), |it| &it.command);
    let key: String = Plain::new(key).text().chars().take(200).collect();
    json!({ "threadKey": key })
}

/// Chat reads markup in plain text and has no escape for it.
fn unmarked(text: &Plain) -> String {
    text.text().replace(['<', '>', '*', '_', '~', '`'], " ")
}
