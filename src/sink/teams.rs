//! Microsoft Teams, through a webhook of a Workflows flow; an Adaptive Card.
//!
//! Limits and answers: Microsoft's documentation of Workflows webhooks and of Adaptive Cards. A 202
//! says that the flow has taken the card, not that it was posted: what fails after that is seen in
//! the history of the flow only.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{self, Call, Checked, Rate, Vendor};
use crate::fault::Fault;
use crate::render::{Document, Link, Notice, Tone};
use crate::secret::SecretText;

/// The largest request that is surely taken, in bytes; Teams gives 28 KB for it and all it adds.
const LARGEST: usize = 20_000;

/// Settings of a Teams sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the flow; whoever has it may post.
    pub url: SecretText,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct Teams {
    url: Url,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let (connection, url) = self.http.check_with_url(folder, &self.url)?;
        let is_retired = url.host_str().is_some_and(|host| {
            host == "outlook.office.com" || host.ends_with(".webhook.office.com")
        });
        if is_retired {
            return Err(vec![Fault::at(
                &["url"],
                "connectors of Office 365 are retired, and answer as if they were not: make a webhook \
                 with Workflows",
            )]);
        }
        Ok(Checked {
            vendor: Arc::new(Teams { url }),
            connection,
        })
    }
}

impl Vendor for Teams {
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_millis(500),
            burst: 2,
        })
    }

    fn destination(&self) -> String {
        self.url.to_string()
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        let fits = |document: &Document| message(document).to_string().len() <= LARGEST;
        let document = Document::of(notice).fitted(fits);
        Call::json(&self.url, &message(&document))
    }

    fn plain(&self, notice: &Notice, _at: Timestamp) -> Option<Call> {
        let title = Document::of(notice).title.cut(1000).into_owned();
        let line = paragraph(&[run(title.text(), &[])]);
        Some(Call::json(&self.url, &card(&json!([line]), None)))
    }
}

fn message(document: &Document) -> Value {
    let colour = match document.tone {
        Tone::Neutral => "Accent",
        Tone::Good => "Good",
        Tone::Warning => "Warning",
        Tone::Bad => "Attention",
    };
    let title = format!("{} {}", document.tone.sign(), document.title.text());
    let bold = ("weight", "Bolder");
    let mut body = vec![paragraph(&[run(
        &title,
        &[bold, ("size", "Large"), ("color", colour)],
    )])];
    for mark in &document.marks {
        body.push(paragraph(&[run(mark.text(), &[("color", "Warning")])]));
    }
    for fact in &document.facts {
        body.push(paragraph(&[
            run(&format!("{}: ", fact.name), &[bold]),
            run(fact.value.text(), &[]),
        ]));
    }
    if let Some(text) = &document.text {
        // A run without text is refused; paragraphs are apart as it is.
        for line in text.text().lines().filter(|line| !line.trim().is_empty()) {
            body.push(paragraph(&[run(line, &[])]));
        }
    }
    if let Some(paste) = &document.paste {
        body.push(paragraph(&[run(
            paste.text(),
            &[("fontType", "Monospace")],
        )]));
    }
    if document.is_cut {
        let note = "shortened: runbell event show has all of it";
        body.push(paragraph(&[run(note, &[("size", "Small")])]));
    }
    card(&json!(body), document.link.as_ref())
}

fn card(body: &Value, link: Option<&Link>) -> Value {
    let mut content = json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": { "width": "Full" },
        "body": body,
    });
    if let (Some(link), Some(content)) = (link, content.as_object_mut()) {
        let action = json!({ "type": "Action.OpenUrl", "title": link.label, "url": link.url });
        content.insert("actions".to_owned(), json!([action]));
    }
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "content": content,
        }],
    })
}

/// Text in a run is never read as Markdown; in a text block it would be.
fn run(text: &str, form: &[(&str, &str)]) -> Value {
    let mut run = serde_json::Map::new();
    run.insert("type".to_owned(), "TextRun".into());
    run.insert("text".to_owned(), text.into());
    for (key, value) in form {
        run.insert((*key).to_owned(), (*value).into());
    }
    run.into()
}

fn paragraph(runs: &[Value]) -> Value {
    json!({ "type": "RichTextBlock", "inlines": runs, "spacing": "Small" })
}
