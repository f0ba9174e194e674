//! ntfy: push messages to phones, from ntfy.sh or a server of one's own.
//!
//! Limits and answers: ntfy's documentation of publishing as JSON.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{self, Answer, Call, Checked, Rate, Vendor};
use crate::fault::Fault;
use crate::render::{Document, Lines, Notice, Tone};
use crate::retry::{Scope, Verdict};
use crate::secret::SecretText;

const USUAL_URL: &str = "https://ntfy.sh";
/// The longest message, in bytes; a longer one becomes a file.
const LONGEST: usize = 4096;
/// The longest title that a phone shows, in characters.
const TITLE: usize = 200;

/// Settings of an ntfy sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The server.
    pub url: Option<String>,
    /// The topic; whoever knows it may read, unless the server asks for credentials.
    pub topic: SecretText,
    /// An access token.
    pub token: Option<SecretText>,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct Ntfy {
    url: Url,
    topic: SecretText,
    token: Option<HeaderValue>,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let url = SecretText::from(self.url.as_deref().unwrap_or(USUAL_URL));
        let (connection, url) = self.http.check_with_url(folder, &url)?;
        let token = match &self.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                    .map_err(|_| vec![Fault::at(&["token"], "this is no token")])?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Checked {
            vendor: Arc::new(Ntfy {
                url,
                topic: self.topic,
                token,
            }),
            connection,
        })
    }
}

impl Vendor for Ntfy {
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_secs(5),
            burst: 40,
        })
    }

    fn destination(&self) -> String {
        self.url.to_string()
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        let document = Document::of(notice).fitted(|document| text(document).len() <= LONGEST);
        let (priority, tag) = match document.tone {
            Tone::Bad => (4, "x"),
            Tone::Warning => (3, "warning"),
            Tone::Good => (2, "white_check_mark"),
            Tone::Neutral => (2, "large_blue_circle"),
        };
        let mut message = json!({
            "topic": self.topic.expose(),
            "title": document.title.cut(TITLE).text(),
            "message": text(&document),
            "priority": priority,
            "tags": [tag],
        });
        if let (Some(link), Some(message)) = (&document.link, message.as_object_mut()) {
            message.insert("click".to_owned(), link.url.as_str().into());
        }
        self.publish(&message)
    }

    fn verdict(&self, answer: &Answer) -> Verdict {
        #[derive(Default, Deserialize)]
        struct Said {
            id: Option<String>,
        }
        match (answer.status, answer.usual()) {
            // The server has no room left.
            (507, _) => answer.later(Scope::Sink),
            (_, Verdict::Sent { .. }) => {
                let said: Said = serde_json::from_str(&answer.body).unwrap_or_default();
                Verdict::Sent { remote_id: said.id }
            }
            (_, verdict) => verdict,
        }
    }
}

impl Ntfy {
    fn publish(&self, message: &Value) -> Call {
        let mut call = Call::json(&self.url, message);
        if let Some(token) = &self.token {
            call.headers.insert(AUTHORIZATION, token.clone());
        }
        call
    }
}

fn text(document: &Document) -> String {
    let marks = document.marks.iter().map(|mark| mark.text().to_owned());
    let facts = document.facts.iter();
    let facts = facts.map(|fact| format!("{}: {}", fact.name, fact.value.text()));
    let text = document.text.iter().map(Lines::text);
    let cut = document.is_cut.then(|| "(shortened)".to_owned());
    let mut lines: Vec<String> = marks.chain(facts).chain(text).chain(cut).collect();
    if lines.is_empty() {
        lines.push(document.status.text().to_owned());
    }
    lines.join("\n")
}
