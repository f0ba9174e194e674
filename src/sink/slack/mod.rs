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

/// The longest text of one section block, in characters.
const SECTION: usize = 3000;
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
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        match (self.url, self.token, self.channel) {
            (Some(url), None, None) => {
                let (connection, url) = self.http.check_with_url(folder, &url)?;
                Ok(Checked {
                    vendor: webhook::vendor(url),
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
                    vendor: bot::vendor(&api, &token, channel)?,
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

/// The message that a notice becomes.
fn message(notice: &Notice) -> Map<String, Value> {
    let fits = |document: &Document| {
        body(document).chars().count() <= SECTION
            && Value::from(payload(document)).to_string().chars().count() <= MESSAGE
    };
    payload(&Document::of(notice).fitted(fits))
}

/// The same without any form.
fn plain_message(notice: &Notice) -> Map<String, Value> {
    let title = Document::of(notice).title.cut(500).in_markup(Markup::Slack);
    Map::from_iter([("text".to_owned(), title.into())])
}

fn payload(document: &Document) -> Map<String, Value> {
    let title = document.title.cut(300).in_markup(Markup::Slack);
    let sign = document.tone.sign();
    let headline = match &document.link {
        Some(link) => format!("{sign} *<{}|{title}>*", link.url),
        None => format!("{sign} *{title}*"),
    };
    let section = |text: String| {
        json!({
            "type": "section",
            // Nothing is made a link or a mention by itself.
            "text": { "type": "mrkdwn", "text": text, "verbatim": true },
        })
    };
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
    Map::from_iter([
        // A text of its own would stand above the attachment, and say the title twice. The fallback is
        // what notifications show.
        (
            "attachments".to_owned(),
            json!([{
                "color": colour,
                "fallback": format!("{sign} {title}"),
                "blocks": blocks,
            }]),
        ),
        ("unfurl_links".to_owned(), false.into()),
        ("unfurl_media".to_owned(), false.into()),
    ])
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
        lines.push(text.in_markup(Markup::Slack, "\n"));
    }
    if document.is_cut {
        lines.push("_shortened: `runbell event show` has all of it_".to_owned());
    }
    lines.join("\n")
}
