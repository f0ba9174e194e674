//! The incoming webhook: it gives back no id, so there are no threads and no edits, and a repeat can
//! be told only by its text.
//!
//! Answers: Slack's documentation of incoming webhooks.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;

use super::{Mentions, message, plain_message};
use crate::render::Notice;
use crate::retry::{Scope, Verdict};
use crate::sink::http::{Answer, Call, Rate, Vendor};

struct Webhook {
    url: Url,
    mentions: Mentions,
}

pub(super) fn vendor(url: Url, mentions: Mentions) -> Arc<dyn Vendor> {
    Arc::new(Webhook { url, mentions })
}

impl Vendor for Webhook {
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
        Call::json(&self.url, &message(notice, &self.mentions).into())
    }

    fn plain(&self, notice: &Notice, _at: Timestamp) -> Option<Call> {
        Some(Call::json(&self.url, &plain_message(notice).into()))
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
