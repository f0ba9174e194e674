//! Slack, through an incoming webhook.
//!
//! Limits and answers: Slack's documentation of incoming webhooks and Block Kit. An incoming webhook
//! gives back no id, so there are no threads and no edits, and a repeat can be told only by its text.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{self, Answer, Call, Checked, Rate, Vendor};
use crate::fault::Fault;
use crate::render::{Document, Markup, Notice};
use crate::retry::{Scope, Verdict};
use crate::secret::SecretText;

/// The longest text of one section block, in characters.
const SECTION: usize = 3000;
/// The longest message that is surely taken, in characters of its blocks; Slack gives no number for
/// their sum, and was seen to refuse 13,200.
const MESSAGE: usize = 10_000;

/// Settings of a Slack sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the incoming webhook; whoever has it may post.
    pub url: SecretText,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct Slack {
    url: Url,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let (connection, url) = self.http.check_with_url(folder, &self.url)?;
        Ok(Checked {
            vendor: Arc::new(Slack { url }),
            connection,
        })
    }
}

impl Vendor for Slack {
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_secs(1),
            burst: 3,
        })
    }

    fn destination(&self) -> String {
        self.url.to_string()
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        let fits = |document: &Document| {
            body(document).chars().count() <= SECTION
                && payload(document).to_string().chars().count() <= MESSAGE
        };
        let document = Document::of(notice).fitted(fits);
        Call::json(&self.url, &payload(&document))
    }

    fn plain(&self, notice: &Notice, _at: Timestamp) -> Option<Call> {
        let title = Document::of(notice).title.cut(500).in_markup(Markup::Slack);
        Some(Call::json(&self.url, &json!({ "text": title })))
    }

    fn verdict(&self, answer: &Answer) -> Verdict {
        match (answer.status, answer.body.trim()) {
            (200, "ok") => Verdict::Sent { remote_id: None },
            // Something between us and Slack answered in its place; or Slack could not just then.
            (200, _) | (500, "rollup_error") => answer.later(Scope::Sink),
            (400, "invalid_token" | "no_team" | "no_service" | "user_not_found") => answer.broken(),
            _ => answer.usual(),
        }
    }
}

fn payload(document: &Document) -> Value {
    let title = document.title.cut(300).in_markup(Markup::Slack);
    let sign = document.tone.sign();
    let headline = match &document.link {
        Some(link) => format!("{sign} *<{}|{title}>*", link.url),
        None => format!("{sign} *{title}*"),
    };
    let section =
        |text: String| json!({ "type": "section", "text": { "type": "mrkdwn", "text": text } });
    let mut blocks = vec![section(headline)];
    let body = body(document);
    if !body.is_empty() {
        blocks.push(section(body));
    }
    if let Some(paste) = &document.paste {
        let paste = paste.in_code(Markup::Slack);
        blocks.push(section(format!("```{paste}```")));
    }
    let colour = format!("#{:06x}", document.tone.colour());
    json!({
        "text": format!("{sign} {title}"),
        "attachments": [{ "color": colour, "blocks": blocks }],
        "unfurl_links": false,
        "unfurl_media": false,
    })
}

/// What stands below the title.
fn body(document: &Document) -> String {
    let mut lines = Vec::new();
    for mark in &document.marks {
        lines.push(format!("_{}_", mark.in_markup(Markup::Slack)));
    }
    for fact in &document.facts {
        let value = fact.value.in_markup(Markup::Slack);
        lines.push(format!("*{}:* {value}", fact.name));
    }
    if let Some(text) = &document.text {
        lines.push(text.in_markup(Markup::Slack));
    }
    if document.is_cut {
        lines.push("_shortened: `runbell event show` has all of it_".to_owned());
    }
    lines.join("\n")
}
