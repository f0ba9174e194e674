//! Discord, through a webhook.
//!
//! Limits and answers: Discord's documentation of webhooks, embeds and rate limits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::http::{self, Answer, Call, Checked, Rate, Vendor};
use crate::fault::Fault;
use crate::render::{Document, Markup, Notice};
use crate::retry::Verdict;
use crate::secret::SecretText;

/// Limits of an embed, in characters.
const TITLE: usize = 256;
const DESCRIPTION: usize = 4096;
const FIELD: usize = 1024;
/// How many fields it has at most.
const FIELDS: usize = 25;
/// The longest sum of all its texts.
const EMBED: usize = 6000;
/// Codes of answers by which a message cannot be edited: it is unknown, or too old for one more edit.
const GONE: [i64; 2] = [10_008, 30_046];

/// Settings of a Discord sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the webhook; whoever has it may post.
    pub url: SecretText,
    /// Who is called when something failed: `here`, `everyone`, `@` and the number of a user, or `@&` and
    /// the number of a role.
    #[serde(default)]
    pub mention: Vec<String>,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

struct Discord {
    url: Url,
    destination: String,
    mention: Vec<String>,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let mention = mentions(&self.mention)?;
        let (connection, mut url) = self.http.check_with_url(folder, &self.url)?;
        let destination = url.to_string();
        // Else it answers before it has looked at the message, and without an id.
        url.query_pairs_mut().append_pair("wait", "true");
        Ok(Checked {
            vendor: Arc::new(Discord {
                url,
                destination,
                mention,
            }),
            connection,
        })
    }
}

impl Vendor for Discord {
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_millis(400),
            burst: 5,
        })
    }

    fn destination(&self) -> String {
        self.destination.clone()
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        let mut payload = payload(notice);
        if notice.calls_for_people()
            && !self.mention.is_empty()
            && let Some(message) = payload.as_object_mut()
        {
            message.insert("content".to_owned(), self.mention.join(" ").into());
            let parse = ["everyone", "users", "roles"];
            // The embed mentions nobody, whatever stands in it: only the content does.
            message.insert("allowed_mentions".to_owned(), json!({ "parse": parse }));
        }
        Call::json(&self.url, &payload)
    }

    fn keeps_threads(&self) -> bool {
        true
    }

    fn edit(&self, notice: &Notice, message: &str) -> Option<Call> {
        let mut url = self.url.clone();
        url.path_segments_mut().ok()?.extend(["messages", message]);
        Some(Call {
            method: Method::PATCH,
            ..Call::json(&url, &payload(notice))
        })
    }

    fn is_gone(&self, answer: &Answer) -> bool {
        let said: Said = serde_json::from_str(&answer.body).unwrap_or_default();
        said.code.is_some_and(|code| GONE.contains(&code))
    }

    fn plain(&self, notice: &Notice, _at: Timestamp) -> Option<Call> {
        let title = Document::of(notice)
            .title
            .cut(900)
            .in_markup(Markup::Markdown);
        let payload = json!({ "content": title, "allowed_mentions": { "parse": [] } });
        Some(Call::json(&self.url, &payload))
    }

    fn verdict(&self, answer: &Answer) -> Verdict {
        let said: Said = serde_json::from_str(&answer.body).unwrap_or_default();
        let asked = said.retry_after.map(Duration::try_from_secs_f64);
        let answer = Answer {
            retry_after: asked.and_then(Result::ok).or(answer.retry_after),
            ..answer.clone()
        };
        match answer.usual() {
            Verdict::Sent { .. } => Verdict::Sent { remote_id: said.id },
            verdict => verdict,
        }
    }
}

/// What Discord says, of a message or of a limit.
#[derive(Default, Deserialize)]
struct Said {
    id: Option<String>,
    code: Option<i64>,
    retry_after: Option<f64>,
}

fn mentions(words: &[String]) -> Result<Vec<String>, Vec<Fault>> {
    let is_number = |text: &str| text.len() > 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let each = words.iter().enumerate().map(|(number, word)| {
        let id = word.strip_prefix('@');
        let id = id.map(|id| id.strip_prefix('&').unwrap_or(id));
        match word.as_str() {
            "here" | "everyone" => Ok(format!("@{word}")),
            _ if id.is_some_and(is_number) => Ok(format!("<{word}>")),
            _ => Err(vec![Fault::at(
                &["mention", &number.to_string()],
                "this calls nobody: write `here`, `everyone`, `@` and the number of a user, or `@&` \
                 and the number of a role",
            )]),
        }
    });
    each.collect()
}

fn payload(notice: &Notice) -> Value {
    let fits = |document: &Document| Embed::of(document).size() <= EMBED;
    let document = Document::of(notice).fitted(fits);
    json!({
        "embeds": [Embed::of(&document)],
        "allowed_mentions": { "parse": [] },
    })
}

#[derive(Serialize)]
struct Embed {
    title: String,
    description: String,
    color: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    fields: Vec<Field>,
    #[serde(skip_serializing_if = "Option::is_none")]
    footer: Option<Footer>,
}

#[derive(Serialize)]
struct Field {
    name: &'static str,
    value: String,
    inline: bool,
}

#[derive(Serialize)]
struct Footer {
    text: &'static str,
}

impl Embed {
    fn of(document: &Document) -> Self {
        let marks = document.marks.iter();
        let mut lines: Vec<String> = marks
            .map(|mark| format!("*{}*", mark.in_markup(Markup::Markdown)))
            .collect();
        // An escape doubles a character at most.
        if let Some(text) = &document.text {
            lines.push(text.cut(DESCRIPTION / 4).in_markup(Markup::Markdown, "\n"));
        }
        if let Some(paste) = &document.paste {
            let paste = paste.cut(FIELD).in_code(Markup::Markdown);
            lines.push(format!("```\n{paste}\n```"));
        }
        let fields = document.facts.iter().take(FIELDS).map(|fact| {
            let value = fact.value.cut(FIELD / 2);
            Field {
                name: fact.name,
                inline: value.text().chars().count() <= 40,
                value: value.in_markup(Markup::Markdown),
            }
        });
        let (sign, title) = (document.tone.sign(), document.title.cut(TITLE / 2 - 2));
        Self {
            title: format!("{sign} {}", title.in_markup(Markup::Markdown)),
            description: lines.join("\n"),
            color: document.tone.colour(),
            url: document.link.as_ref().map(|link| link.url.clone()),
            fields: fields.collect(),
            footer: document.is_cut.then_some(Footer {
                text: "shortened: runbell event show has all of it",
            }),
        }
    }

    /// What Discord counts, in characters.
    fn size(&self) -> usize {
        let count = |text: &str| text.chars().count();
        let fields = self.fields.iter();
        let fields: usize = fields.map(|it| count(it.name) + count(&it.value)).sum();
        let footer = self.footer.as_ref().map_or(0, |footer| count(footer.text));
        count(&self.title) + count(&self.description) + footer + fields
    }
}
