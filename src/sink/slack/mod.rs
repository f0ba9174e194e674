//! Slack, through an incoming webhook or as a bot.
//!
//! Limits: Slack's documentation of messages and Block Kit. Both ways carry the same message; what
//! they differ in is how they answer, and what can be done with a message afterwards.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::http::{self, Checked};
use crate::fault::Fault;
use crate::render::{Document, Markup, Notice};
use crate::secret::SecretText;

mod bot;
mod webhook;

/// The longest title, in characters.
const TITLE: usize = 300;
/// The longest message that is surely taken, in characters of its blocks; Slack gives no number for
/// their sum, and was seen to refuse 13,200.
const MESSAGE: usize = 10_000;
/// Where the Web API is.
const USUAL_API: &str = "https://slack.com/api/";

/// Settings of a Slack sink: either the URL of an incoming webhook, or a bot's token and a channel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the incoming webhook; whoever has it may post.
    pub url: Option<SecretText>,
    /// The bot's token.
    pub token: Option<SecretText>,
    /// The channel that the bot writes to: its id, or its name.
    pub channel: Option<String>,
    /// Base URL of the Web API, if not Slack's own.
    pub api: Option<String>,
    /// Who is called when something failed: `here`, `channel`, `everyone`, or ids of users and user
    /// groups.
    #[serde(default)]
    pub mention: Vec<String>,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

/// Who is called when something failed, as elements of rich text.
type Mentions = Vec<Value>;

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let mentions = mentions(&self.mention)?;
        match (self.url, self.token, self.channel) {
            (Some(url), None, None) => {
                let (connection, url) = self.http.check_with_url(folder, &url)?;
                Ok(Checked {
                    vendor: webhook::vendor(url, mentions),
                    connection,
                })
            }
            (None, Some(token), Some(channel)) => {
                let connection = self.http.check(folder)?;
                let api = self.api.as_deref().unwrap_or(USUAL_API);
                let mut api = connection
                    .url(api)
                    .map_err(|why| vec![Fault::at(&["api"], why)])?;
                if !api.path().ends_with('/') {
                    api.set_path(&format!("{}/", api.path()));
                }
                Ok(Checked {
                    vendor: bot::vendor(&api, &token, channel, mentions)?,
                    connection,
                })
            }
            (None, Some(_), None) => Err(vec![Fault::at(
                &["token"],
                "a bot needs to know where it writes: say `channel`",
            )]),
            (None, None, _) => Err(vec![Fault::at(
                &[],
                "say either `url`, of an incoming webhook, or a bot's `token` and its `channel`",
            )]),
            (Some(_), ..) => Err(vec![Fault::at(
                &["url"],
                "an incoming webhook has its channel by itself: leave `token` and `channel` out",
            )]),
        }
    }
}

fn mentions(words: &[String]) -> Result<Mentions, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut mentions = Vec::new();
    for (number, word) in words.iter().enumerate() {
        let is_id = word.len() > 5 && word.bytes().all(|byte| byte.is_ascii_alphanumeric());
        mentions.push(match word.as_str() {
            "here" | "channel" | "everyone" => json!({ "type": "broadcast", "range": word }),
            id if is_id && id.starts_with(['U', 'W']) => json!({ "type": "user", "user_id": id }),
            id if is_id && id.starts_with('S') => {
                json!({ "type": "usergroup", "usergroup_id": id })
            }
            _ => {
                faults.push(Fault::at(
                    &["mention", &number.to_string()],
                    "this calls nobody: write `here`, `channel`, `everyone`, the id of a user (U…) \
                     or of a user group (S…)",
                ));
                continue;
            }
        });
    }
    if faults.is_empty() {
        Ok(mentions)
    } else {
        Err(faults)
    }
}

/// The message that a notice becomes.
fn message(notice: &Notice, mentions: &[Value]) -> Map<String, Value> {
    let mentions = if notice.calls_for_people() {
        mentions
    } else {
        &[]
    };
    let fits = |document: &Document| {
        let message = Value::from(payload(document, mentions));
        message.to_string().chars().count() <= MESSAGE
    };
    payload(&Document::of(notice).fitted(fits), mentions)
}

/// The same without any form.
fn plain_message(notice: &Notice) -> Map<String, Value> {
    let title = Document::of(notice).title.cut(500).in_markup(Markup::Slack);
    Map::from_iter([("text".to_owned(), title.into())])
}

/// Rich text says by type what is text, bold or a link: nothing in a text is read as markup.
fn payload(document: &Document, mentions: &[Value]) -> Map<String, Value> {
    let sign = document.tone.sign();
    let title = document.title.cut(TITLE);
    let mut parts = vec![text(&format!("{sign} "), None)];
    parts.push(match &document.link {
        Some(link) => json!({
            "type": "link", "url": link.url, "text": title.text(), "style": { "bold": true },
        }),
        None => text(title.text(), Some("bold")),
    });
    for mention in mentions {
        parts.push(text(" ", None));
        parts.push(mention.clone());
    }
    for mark in &document.marks {
        parts.push(text(&format!("\n{}", mark.text()), Some("italic")));
    }
    for fact in &document.facts {
        parts.push(text(&format!("\n{}: ", fact.name), Some("bold")));
        parts.push(text(fact.value.text(), None));
    }
    if let Some(lines) = &document.text {
        parts.push(text(&format!("\n{}", lines.text()), None));
    }
    if document.is_cut {
        let note = "\nshortened: runbell event show has all of it";
        parts.push(text(note, Some("italic")));
    }
    let mut elements = vec![json!({ "type": "rich_text_section", "elements": parts })];
    if let Some(paste) = &document.paste {
        let paste = [text(paste.text(), None)];
        elements.push(json!({ "type": "rich_text_preformatted", "elements": paste }));
    }
    let fallback = title.in_markup(Markup::Slack);
    Map::from_iter([
        // A text of its own would stand above the attachment, and say the title twice. The fallback is
        // what notifications show.
        (
            "attachments".to_owned(),
            json!([{
                "color": format!("#{:06x}", document.tone.colour()),
                "fallback": format!("{sign} {fallback}"),
                "blocks": [{ "type": "rich_text", "elements": elements }],
            }]),
        ),
        ("unfurl_links".to_owned(), false.into()),
        ("unfurl_media".to_owned(), false.into()),
    ])
}

fn text(text: &str, style: Option<&str>) -> Value {
    match style {
        None => json!({ "type": "text", "text": text }),
        Some(style) => json!({ "type": "text", "text": text, "style": { style: true } }),
    }
}
