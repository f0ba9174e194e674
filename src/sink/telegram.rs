//! Telegram, as a bot.
//!
//! Limits and answers: Telegram's documentation of the Bot API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::http::{self, Answer, Call, Checked, Rate, Vendor};
use crate::fault::Fault;
use crate::render::{Document, Markup, Notice};
use crate::retry::{Scope, Verdict};
use crate::secret::SecretText;

const USUAL_URL: &str = "https://api.telegram.org";
/// The longest message, in UTF-16 units and before its markup is read, which is the stricter count.
const LONGEST: usize = 4096;

/// Settings of a Telegram sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The bot's token.
    pub token: SecretText,
    /// The chat: its number, or the name of a public channel with its `@`.
    pub chat: String,
    /// A topic within the chat.
    pub topic: Option<i64>,
    /// Base URL of the Bot API, if not Telegram's own.
    pub url: Option<String>,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct Telegram {
    /// The bot's own URL: the methods of the Bot API are below it.
    bot: Url,
    chat: String,
    topic: Option<i64>,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let base = SecretText::from(self.url.as_deref().unwrap_or(USUAL_URL));
        let (connection, base) = self.http.check_with_url(folder, &base)?;
        let token = self.token.expose();
        let is_token = token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b":-_".contains(&byte));
        let bot = base.join(&format!("/bot{token}")).ok();
        let Some(bot) = bot.filter(|_| is_token) else {
            return Err(vec![Fault::at(&["token"], "this is no token of a bot")]);
        };
        Ok(Checked {
            vendor: Arc::new(Telegram {
                bot,
                chat: self.chat,
                topic: self.topic,
            }),
            connection,
        })
    }
}

impl Vendor for Telegram {
    /// A group takes twenty messages a minute.
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_secs(3),
            burst: 5,
        })
    }

    fn destination(&self) -> String {
        format!("{} {}", self.bot, self.chat)
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        let mut message = self.message(&fitted(notice), Some("HTML"));
        self.answer_to(notice, &mut message);
        Call::json(&self.method("sendMessage"), &message.into())
    }

    fn plain(&self, notice: &Notice, _at: Timestamp) -> Option<Call> {
        let title = Document::of(notice).title.cut(1000).into_owned();
        let mut message = self.message(title.text(), None);
        self.answer_to(notice, &mut message);
        Some(Call::json(&self.method("sendMessage"), &message.into()))
    }

    fn keeps_threads(&self) -> bool {
        true
    }

    fn edit(&self, notice: &Notice, message: &str) -> Option<Call> {
        let id: i64 = message.parse().ok()?;
        let mut message = self.message(&fitted(notice), Some("HTML"));
        message.insert("message_id".to_owned(), id.into());
        let url = self.method("editMessageText");
        Some(Call::json(&url, &message.into()))
    }

    fn is_gone(&self, answer: &Answer) -> bool {
        [
            "message to edit not found",
            "message can't be edited",
            "MESSAGE_ID_INVALID",
        ]
        .iter()
        .any(|word| answer.body.contains(word))
    }

    fn verdict(&self, answer: &Answer) -> Verdict {
        let said: Said = serde_json::from_str(&answer.body).unwrap_or_default();
        let asked = said.parameters.retry_after.map(Duration::from_secs);
        let answer = Answer {
            retry_after: asked.or(answer.retry_after),
            ..answer.clone()
        };
        if said.parameters.migrate_to_chat_id.is_some()
            || said.description.contains("chat not found")
        {
            return answer.broken();
        }
        if said.description.contains("message is not modified") {
            return Verdict::Sent { remote_id: None };
        }
        match answer.usual() {
            // Without its own word for it the message was not taken.
            Verdict::Sent { .. } if !said.ok => answer.later(Scope::Sink),
            Verdict::Sent { .. } => Verdict::Sent {
                remote_id: said.result.message_id.map(|id| id.to_string()),
            },
            verdict => verdict,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    ok: bool,
    description: String,
    parameters: Parameters,
    result: Message,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    retry_after: Option<u64>,
    migrate_to_chat_id: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Message {
    message_id: Option<i64>,
}

impl Telegram {
    fn method(&self, name: &str) -> Url {
        let mut url = self.bot.clone();
        url.set_path(&format!("{}/{name}", url.path()));
        url
    }

    fn message(&self, text: &str, markup: Option<&str>) -> Map<String, Value> {
        let mut message = Map::new();
        message.insert("chat_id".to_owned(), self.chat.as_str().into());
        message.insert("text".to_owned(), text.into());
        let no_preview = json!({ "is_disabled": true });
        message.insert("link_preview_options".to_owned(), no_preview);
        if let Some(markup) = markup {
            message.insert("parse_mode".to_owned(), markup.into());
        }
        message
    }

    /// Says where a new message belongs: to a topic of the chat, and to the first one of its command.
    fn answer_to(&self, notice: &Notice, message: &mut Map<String, Value>) {
        if let Some(topic) = self.topic {
            message.insert("message_thread_id".to_owned(), topic.into());
        }
        let first = notice.thread.as_ref().and_then(|id| id.parse::<i64>().ok());
        if let Some(first) = first {
            let reply = json!({ "message_id": first, "allow_sending_without_reply": true });
            message.insert("reply_parameters".to_owned(), reply);
        }
    }
}

fn fitted(notice: &Notice) -> String {
    let fits = |document: &Document| text(document).encode_utf16().count() <= LONGEST;
    text(&Document::of(notice).fitted(fits))
}

fn text(document: &Document) -> String {
    let html = |text: &crate::render::Plain| text.in_markup(Markup::Telegram);
    let sign = document.tone.sign();
    let mut lines = vec![format!("{sign} <b>{}</b>", html(&document.title))];
    for mark in &document.marks {
        lines.push(format!("<i>{}</i>", html(mark)));
    }
    for fact in &document.facts {
        lines.push(format!("<b>{}:</b> {}", fact.name, html(&fact.value)));
    }
    if let Some(text) = &document.text {
        lines.push(text.in_markup(Markup::Telegram, "\n"));
    }
    if let Some(paste) = &document.paste {
        lines.push(format!("<pre>{}</pre>", html(paste)));
    }
    if let Some(link) = &document.link {
        lines.push(format!("<a href=\"{}\">{}</a>", link.url, link.label));
    }
    if document.is_cut {
        lines.push("<i>shortened: runbell event show has all of it</i>".to_owned());
    }
    lines.join("\n")
}
