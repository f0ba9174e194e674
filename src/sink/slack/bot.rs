//! The bot: one thread for each command, failures shown in the channel as well, digests edited in
//! place.
//!
//! Answers: Slack's documentation of `chat.postMessage`, `chat.update` and rate limits. Slack calls
//! everything but a rate limit a 200 and says in the body what it means.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Mentions, message, plain_message};
use crate::fault::Fault;
use crate::render::{Document, Notice, Tone};
use crate::retry::{Scope, Verdict};
use crate::secret::SecretText;
use crate::sink::http::{Answer, Call, Rate, Vendor};

/// What Slack may say in place of `ok`. Anything else is taken for a fault of the sink: its words are
/// many, and most tell of tokens, channels and rights.
const ERRORS: &[(&str, Meaning)] = &[
    ("ratelimited", Meaning::LaterAll),
    ("rate_limited", Meaning::LaterAll),
    ("internal_error", Meaning::LaterAll),
    ("fatal_error", Meaning::LaterAll),
    ("service_unavailable", Meaning::LaterAll),
    ("request_timeout", Meaning::Later),
    ("msg_too_long", Meaning::Content),
    ("msg_blocks_too_long", Meaning::Content),
    ("invalid_blocks", Meaning::Content),
    ("invalid_blocks_format", Meaning::Content),
    ("invalid_attachments", Meaning::Content),
    ("too_many_attachments", Meaning::Content),
    ("no_text", Meaning::Content),
    ("invalid_arguments", Meaning::Content),
    ("message_not_found", Meaning::Gone),
    ("cant_update_message", Meaning::Gone),
    ("edit_window_closed", Meaning::Gone),
    ("thread_not_found", Meaning::Gone),
    ("invalid_thread_ts", Meaning::Gone),
    ("cannot_reply_to_message", Meaning::Gone),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Slack is in trouble, or wants to be left alone.
    LaterAll,
    /// This call did not get through.
    Later,
    /// The form is refused: plain text may pass.
    Content,
    /// The message that was referred to is no more, or no longer open to it.
    Gone,
}

struct Bot {
    post: Url,
    update: Url,
    authorization: HeaderValue,
    channel: String,
    /// What names bot and channel.
    destination: String,
    mentions: Mentions,
}

/// # Errors
/// When the token cannot be one, or the API lies nowhere.
pub(super) fn vendor(
    api: &Url,
    token: &SecretText,
    channel: String,
    mentions: Mentions,
) -> Result<Arc<dyn Vendor>, Vec<Fault>> {
    let method = |name| {
        api.join(name)
            .map_err(|_| vec![Fault::at(&["api"], "this is no base URL")])
    };
    let token = token.expose();
    let bearer = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut authorization =
        bearer.map_err(|_| vec![Fault::at(&["token"], "this is no token of a bot")])?;
    authorization.set_sensitive(true);
    Ok(Arc::new(Bot {
        post: method("chat.postMessage")?,
        update: method("chat.update")?,
        authorization,
        destination: format!("slack {token} {channel}"),
        channel,
        mentions,
    }))
}

impl Vendor for Bot {
    /// A channel takes a message a second, and fifty edits a minute.
    fn rate(&self) -> Option<Rate> {
        Some(Rate {
            each: Duration::from_millis(1200),
            burst: 3,
        })
    }

    fn destination(&self) -> String {
        self.destination.clone()
    }

    fn keeps_threads(&self) -> bool {
        true
    }

    fn call(&self, notice: &Notice, _at: Timestamp) -> Call {
        self.posted(notice, message(notice, &self.mentions))
    }

    fn plain(&self, notice: &Notice, _at: Timestamp) -> Option<Call> {
        Some(self.posted(notice, plain_message(notice)))
    }

    fn edit(&self, notice: &Notice, message_id: &str) -> Option<Call> {
        let (channel, ts) = message_id.split_once(':')?;
        // Whom it calls was called before.
        let mut edit = message(notice, &[]);
        // Said once, when a message is posted; an edit does not know them.
        edit.retain(|key, _| !matches!(key.as_str(), "unfurl_links" | "unfurl_media"));
        edit.insert("channel".to_owned(), channel.into());
        edit.insert("ts".to_owned(), ts.into());
        Some(self.call_with(&self.update, edit))
    }

    fn is_gone(&self, answer: &Answer) -> bool {
        Said::of(answer).meaning() == Some(Meaning::Gone)
    }

    fn verdict(&self, answer: &Answer) -> Verdict {
        if answer.status != 200 {
            return answer.usual();
        }
        let said = Said::of(answer);
        match said.meaning() {
            None if said.ok => Verdict::Sent {
                remote_id: said.message_id(),
            },
            // Something between us and Slack answered in its place.
            None if said.error.is_empty() => answer.later(Scope::Sink),
            None => answer.broken(),
            Some(Meaning::LaterAll) => answer.later(Scope::Sink),
            Some(Meaning::Later) => answer.later(Scope::Notice),
            Some(Meaning::Content) => answer.refused(true),
            Some(Meaning::Gone) => answer.refused(false),
        }
    }
}

impl Bot {
    fn posted(&self, notice: &Notice, mut message: Map<String, Value>) -> Call {
        message.insert("channel".to_owned(), self.channel.as_str().into());
        let first = notice.thread.as_ref().and_then(|id| id.split_once(':'));
        if let Some((_, ts)) = first {
            message.insert("thread_ts".to_owned(), ts.into());
            // Who reads the channel does not see what is said in a thread.
            let is_bad = Document::of(notice).tone == Tone::Bad;
            message.insert("reply_broadcast".to_owned(), is_bad.into());
        }
        self.call_with(&self.post, message)
    }

    fn call_with(&self, url: &Url, message: Map<String, Value>) -> Call {
        let mut call = Call::json(url, &message.into());
        call.headers
            .insert(AUTHORIZATION, self.authorization.clone());
        call
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    ok: bool,
    error: String,
    channel: String,
    ts: String,
}

impl Said {
    fn of(answer: &Answer) -> Self {
        serde_json::from_str(&answer.body).unwrap_or_default()
    }

    fn meaning(&self) -> Option<Meaning> {
        let mut known = ERRORS.iter();
        let found = known.find(|(word, _)| *word == self.error)?;
        Some(found.1)
    }

    /// Channel and time stamp: an edit asks for the channel's id, whatever it was called by.
    fn message_id(&self) -> Option<String> {
        let is_named = !self.channel.is_empty() && !self.ts.is_empty();
        is_named.then(|| format!("{}:{}", self.channel, self.ts))
    }
}
