//! What all sinks that speak HTTP share: connections, deadlines, pace, verdicts.
//!
//! A vendor is one small file that says how its call looks and what its answers mean ([`Vendor`]);
//! [`HttpSink`] does the rest. Redirects are never followed, proxies are used only when configured,
//! private addresses are spoken to only when that was said. URLs may hold secrets, so no error names
//! one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Url};
use tokio::sync::OnceCell;

use super::permit::refused;
use super::{Capacity, Permit, Sink};
use crate::clock::Clock;
use crate::fault::causes;
use crate::render::Notice;
use crate::retry::{Scope, Verdict};
use crate::secret::SecretText;

mod address;
mod answer;
mod body;
mod connection;
mod pace;

use body::Guarded;

pub use answer::{Answer, retry_after};
pub use connection::{Connection, Settings};
pub use pace::{Pace, Paces, Rate, Sharers};

/// How much of an answer is read, in bytes.
const LARGEST_ANSWER: usize = 16 * 1024;

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// What besides the body is said.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Call {
    /// Posts JSON.
    #[must_use]
    pub fn json(url: &Url, value: &serde_json::Value) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self {
            method: Method::POST,
            url: url.clone(),
            headers,
            body: value.to_string().into_bytes(),
        }
    }
}

/// How one service is spoken to.
pub trait Vendor: Send + Sync + 'static {
    /// How fast one destination may be written to; `None` when the service says nothing of it.
    fn rate(&self) -> Option<Rate> {
        None
    }

    /// How many calls may be under way at once.
    fn at_once(&self) -> usize {
        1
    }

    /// What names the destination: sinks that share it share its pace.
    fn destination(&self) -> String;

    /// The call that brings a notice, within the service's limits.
    fn call(&self, notice: &Notice, at: Timestamp) -> Call;

    /// The same as text without any form, for a service that refused the form; `None` when there is
    /// nothing plainer.
    fn plain(&self, _notice: &Notice, _at: Timestamp) -> Option<Call> {
        None
    }

    /// Whether a message, once sent, can be answered or edited. Then [`Vendor::call`] heeds the
    /// notice's thread, and verdicts of success say the id of the message.
    fn keeps_threads(&self) -> bool {
        false
    }

    /// The call that puts a notice in the place of the message that an earlier one became.
    fn edit(&self, _notice: &Notice, _message: &str) -> Option<Call> {
        None
    }

    /// Whether an answer says that the message which was to be edited or answered is no more, or no
    /// longer open to it.
    fn is_gone(&self, _answer: &Answer) -> bool {
        false
    }

    /// Whether it tells people what happened, in words that they can choose.
    fn speaks_to_people(&self) -> bool {
        true
    }

    /// Whether it has a place for a notice that tells of many events at once.
    fn takes_digests(&self) -> bool {
        true
    }

    /// What an answer means.
    fn verdict(&self, answer: &Answer) -> Verdict {
        answer.usual()
    }
}

/// A service and the way to it, checked.
#[derive(Clone)]
pub struct Checked {
    /// How it is spoken to.
    pub vendor: Arc<dyn Vendor>,
    /// The connection.
    pub connection: Connection,
}

impl Checked {
    /// The same, knowing the secrets in its settings: they are shown nowhere, whoever repeats them.
    #[must_use]
    pub fn hiding(mut self, secrets: &[SecretText]) -> Self {
        self.connection.hide(secrets);
        self
    }
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What a vendor keeps is mostly secret.
        f.debug_struct("Checked").finish_non_exhaustive()
    }
}

/// A sink that speaks HTTP.
pub struct HttpSink {
    vendor: Arc<dyn Vendor>,
    connection: Connection,
    client: OnceCell<reqwest::Client>,
    pace: Option<Arc<Pace>>,
    clock: Clock,
}

impl HttpSink {
    /// A sink that brings notices to a service, at the pace of its destination.
    #[must_use]
    pub fn new(checked: Checked, clock: Clock, paces: &mut Paces) -> Self {
        let Checked { vendor, connection } = checked;
        let pace = vendor
            .rate()
            .map(|rate| paces.of(&vendor.destination(), rate));
        Self {
            vendor,
            connection,
            client: OnceCell::new(),
            pace,
            clock,
        }
    }

    /// A verdict that says nothing of our secrets: some services repeat what they were asked.
    fn shown(&self, mut verdict: Verdict) -> Verdict {
        let said = match &mut verdict {
            Verdict::Sent { remote_id } => remote_id.as_mut(),
            Verdict::Retry { why, .. }
            | Verdict::Refused { why, .. }
            | Verdict::Broken { why }
            | Verdict::Unknown { why } => Some(why),
        };
        if let Some(said) = said {
            *said = self.connection.without_secrets(std::mem::take(said));
        }
        verdict
    }

    async fn bring(&self, notice: &Notice, permit: &Permit) -> Verdict {
        let Some(message) = &notice.thread else {
            return self.post(notice, permit).await.verdict;
        };
        let anew = Notice {
            thread: None,
            ..notice.clone()
        };
        if let Some(digest) = &notice.digest
            && let Some(edit) = self.vendor.edit(notice, message)
        {
            let edited = self.attempt(edit, permit).await;
            match edited.verdict {
                // An edit calls nobody: bad news is told besides.
                Verdict::Sent { .. } if digest.has_news => {}
                Verdict::Sent { .. } => return sent_to(message),
                Verdict::Refused { content: true, .. } => {
                    return self.post(&anew, permit).await.verdict;
                }
                _ if edited.is_gone => return self.post(&anew, permit).await.verdict,
                verdict => return verdict,
            }
        }
        let posted = self.post(notice, permit).await;
        match posted.verdict {
            Verdict::Sent { .. } => sent_to(message),
            _ if posted.is_gone => self.post(&anew, permit).await.verdict,
            verdict => verdict,
        }
    }

    /// Sends a notice as a message of its own; one whose form is refused as plain text.
    async fn post(&self, notice: &Notice, permit: &Permit) -> Attempt {
        let attempt = self
            .attempt(self.vendor.call(notice, self.clock.now()), permit)
            .await;
        // A notice is never lost to its looks.
        if let Verdict::Refused { content: true, why } = &attempt.verdict
            && !attempt.is_gone
            && let Some(plain) = self.vendor.plain(notice, self.clock.now())
        {
            tracing::warn!(
                why,
                "a notice was refused for its form; it is sent as plain text"
            );
            return self.attempt(plain, permit).await;
        }
        attempt
    }

    /// Makes one call. Everything that takes time comes before the permit, which the body asks for.
    async fn attempt(&self, call: Call, permit: &Permit) -> Attempt {
        if let Some(pace) = &self.pace {
            self.clock.sleep(pace.take(self.clock.boot())).await;
        }
        let client = match self
            .client
            .get_or_try_init(async || self.connection.client())
            .await
        {
            Ok(client) => client,
            Err(error) => {
                return Attempt::failed(Verdict::Broken {
                    why: causes(&error.without_url()),
                });
            }
        };
        let request = client
            .request(call.method, call.url)
            .headers(call.headers)
            .body(reqwest::Body::wrap(Guarded::new(call.body, permit)));
        match self.answer(request).await {
            Ok(answer) => Attempt {
                verdict: self.shown(self.vendor.verdict(&answer)),
                is_gone: self.vendor.is_gone(&answer),
            },
            Err(_) if permit.is_refused() => Attempt::failed(refused()),
            // Whatever went wrong, it was before the first byte.
            Err(error) if !permit.has_begun() => Attempt::failed(self.shown(unreached(error))),
            Err(error) => Attempt::failed(self.shown(trouble(error))),
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
        let mut response = request.send().await?;
        let said = response.headers().get(RETRY_AFTER);
        let retry_after = said
            .and_then(|value| value.to_str().ok())
            .and_then(|text| retry_after(text, self.clock.now()));
        let mut body = Vec::new();
        while body.len() < LARGEST_ANSWER
            && let Some(chunk) = response.chunk().await?
        {
            body.extend_from_slice(&chunk);
        }
        body.truncate(LARGEST_ANSWER);
        Ok(Answer {
            status: response.status().as_u16(),
            retry_after,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

/// What came of one call.
struct Attempt {
    verdict: Verdict,
    /// What it referred to is no more.
    is_gone: bool,
}

impl Attempt {
    const fn failed(verdict: Verdict) -> Self {
        Self {
            verdict,
            is_gone: false,
        }
    }
}

fn sent_to(message: &str) -> Verdict {
    Verdict::Sent {
        remote_id: Some(message.to_owned()),
    }
}

/// Judges a call that brought no answer. Until a connection stands nothing was said; after that nobody
/// knows how much of it was heard.
fn trouble(error: reqwest::Error) -> Verdict {
    if error.is_connect() || error.is_builder() {
        unreached(error)
    } else {
        Verdict::Unknown {
            why: causes(&error.without_url()),
        }
    }
}

/// Judges a call of which nothing was said.
fn unreached(error: reqwest::Error) -> Verdict {
    Verdict::Retry {
        why: causes(&error.without_url()),
        after: None,
        scope: Scope::Sink,
        progress: None,
    }
}

#[async_trait]
impl Sink for HttpSink {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 1,
            at_once: self.vendor.at_once(),
        }
    }

    fn free_in(&self) -> Duration {
        let pace = self.pace.as_ref();
        pace.map_or(Duration::ZERO, |pace| pace.free_in(self.clock.boot()))
    }

    fn keeps_threads(&self) -> bool {
        self.vendor.keeps_threads()
    }

    fn speaks_to_people(&self) -> bool {
        self.vendor.speaks_to_people()
    }

    fn preview(&self, notice: &Notice) -> String {
        let call = self.vendor.call(notice, self.clock.now());
        let body: serde_json::Value = serde_json::from_slice(&call.body).unwrap_or_default();
        self.connection.without_secrets(format!("{body:#}"))
    }

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(notices.len());
        for notice in notices {
            let verdict = self.bring(notice, permit).await;
            let is_sent = matches!(verdict, Verdict::Sent { .. });
            verdicts.push(verdict);
            if !is_sent {
                break;
            }
        }
        verdicts
    }
}
