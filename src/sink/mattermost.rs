//! Mattermost, and what takes the same: Rocket.Chat. An incoming webhook.
//!
//! Limits and answers: Mattermost's documentation of incoming webhooks and message attachments.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{self, Call, Checked, Rate, Vendor};
use crate::fault::Fault;
use crate::render::{Document, Markup, Notice};
use crate::secret::SecretText;

/// The longest post that is not split, in characters, less what frames it.
const LONGEST: usize = 14_000;

/// Settings of a Mattermost sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the incoming webhook; whoever has it may post.
    pub url: SecretText,
    /// The channel, if not that of the webhook.
    pub channel: Option<String>,
    /// Who is called when something failed: `here`, `channel`, `all`, or names of users and groups.
    #[serde(default)]
    pub mention: Vec<String>,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct Mattermost {
    url: Url,
    channel: Option<String>,
    mention: Vec<String>,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let mention = mentions(&self.mention)?;
        let (connection, url) = self.http.check_with_url(folder, &self.url)?;
        Ok(Checked {
            vendor: Arc::new(Mattermost {
                url,
                channel: self.channel,
                mention,
            }),
            connection,
        })
    }
}

impl Vendor for Mattermost {
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_millis(100),
            burst: 10,
        })
    }

    fn destination(&self) -> String {
        format!(
            "{} {}",
            self.url,
            self.channel.as_deref().unwrap_or_default()
        )
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        let fits =
            |document: &Document| attachment(document).to_string().chars().count() <= LONGEST;
        let document = Document::of(notice).fitted(fits);
        let mut message = json!({ "attachments": [attachment(&document)] });
        if notice.calls_for_people()
            && !self.mention.is_empty()
            && let Some(message) = message.as_object_mut()
        {
            message.insert("text".to_owned(), self.mention.join(" ").into());
        }
        self.post(message)
    }

    fn plain(&self, notice: &Notice, _at: Timestamp) -> Option<Call> {
        let title = Document::of(notice)
            .title
            .cut(1000)
            .in_markup(Markup::Markdown);
        Some(self.post(json!({ "text": title })))
    }
}

impl Mattermost {
    fn post(&self, mut message: Value) -> Call {
        if let (Some(channel), Some(message)) = (&self.channel, message.as_object_mut()) {
            message.insert("channel".to_owned(), channel.as_str().into());
        }
        Call::json(&self.url, &message)
    }
}

fn mentions(words: &[String]) -> Result<Vec<String>, Vec<Fault>> {
    let is_name = |word: &str| {
        let kept = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        !word.is_empty() && word.bytes().all(kept)
    };
    let each = words.iter().enumerate().map(|(number, word)| {
        if is_name(word) {
            Ok(format!("@{word}"))
        } else {
            Err(vec![Fault::at(
                &["mention", &number.to_string()],
                "this calls nobody: write `here`, `channel`, `all`, or a name without its `@`",
            )])
        }
    });
    each.collect()
}

fn attachment(document: &Document) -> Value {
    let mut lines: Vec<String> = document
        .marks
        .iter()
        .map(|mark| format!("*{}*", mark.in_markup(Markup::Markdown)))
        .collect();
    if let Some(text) = &document.text {
        lines.push(text.in_markup(Markup::Markdown, "\n"));
    }
    if let Some(paste) = &document.paste {
        lines.push(format!("```\n{}\n```", paste.in_code(Markup::Markdown)));
    }
    if document.is_cut {
        lines.push("*shortened: `runbell event show` has all of it*".to_owned());
    }
    let facts = document.facts.iter().map(|fact| {
        let is_short = fact.value.text().chars().count() <= 40;
        let value = fact.value.in_markup(Markup::Markdown);
        json!({ "title": fact.name, "value": value, "short": is_short })
    });
    let sign = document.tone.sign();
    let mut attachment = json!({
        "fallback": format!("{sign} {}", document.title.text()),
        "color": format!("#{:06x}", document.tone.colour()),
        "title": format!("{sign} {}", document.title.in_markup(Markup::Markdown)),
        "text": lines.join("\n"),
        "fields": facts.collect::<Vec<_>>(),
    });
    // Rocket.Chat refuses a null here.
    if let (Some(link), Some(attachment)) = (&document.link, attachment.as_object_mut()) {
        attachment.insert("title_link".to_owned(), link.url.as_str().into());
    }
    attachment
}
