//! Events into what sinks send: a [`Notice`] carries everything that a sink may say.
//!
//! Pure. `deliver` renders; sinks that speak to machines write the event, sinks that speak to people
//! ask for its [`Document`], fit it into their measure and bring it into their markup. Nobody builds
//! either by hand.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::delivery::{Digest, Marks};
use crate::event::Event;

mod document;
mod plain;
mod samples;
mod template;

pub use document::{Document, Fact, Link, Tone};
pub use plain::{Lines, Markup, Plain};
pub use template::{Compiled, Settings as TemplateSettings, Template, TemplateError, Texts, WORDS};

/// What a sink is to tell: one event, with what its reader has to know besides.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Stable over tries, restarts and stores: the same event for the same route and sink.
    pub id: String,
    /// The route that owes it.
    pub route: String,
    /// What happened.
    pub event: Event,
    /// When that arrived here.
    pub received_at: Timestamp,
    /// What the reader has to know besides.
    pub marks: Marks,
    /// How the whole command stands, when it is a digest: `event` is the last that it tells.
    pub digest: Option<Digest>,
    /// What part of it arrived at an earlier attempt, in the sink's own words.
    pub progress: Option<String>,
    /// What templates made of it, or why they did not: then it goes in our own words.
    pub texts: Option<Result<Texts, TemplateError>>,
    /// What the sink calls the message to which notices of this command refer: they answer it, and a
    /// digest takes its place.
    pub thread: Option<String>,
}

/// Renders what `route` owes `sink` for one event.
#[must_use]
pub fn notice(
    route: &str,
    sink: &str,
    event: Event,
    received_at: Timestamp,
    marks: Marks,
) -> Notice {
    Notice {
        id: id(&event, route, sink),
        route: route.to_owned(),
        event,
        received_at,
        marks,
        digest: None,
        progress: None,
        texts: None,
        thread: None,
    }
}

impl Notice {
    /// Whether people are to be called, where somebody said whom: something failed that they were not
    /// told of before.
    #[must_use]
    pub fn calls_for_people(&self) -> bool {
        let is_news = self.digest.as_ref().is_none_or(|digest| digest.has_news);
        is_news && Document::of_event(self).tone == Tone::Bad
    }

    /// The same in the words of a template, if there is one.
    #[must_use]
    pub fn in_words_of(mut self, template: Option<&Template>) -> Self {
        self.texts = template.map(|template| template.texts(&self));
        self
    }
}

/// What names a delivery towards the outside: 32 hexadecimal digits made of what SNS signed
/// together (topic, timestamp, message id), the route and the sink.
fn id(event: &Event, route: &str, sink: &str) -> String {
    let mut hash = openssl::sha::Sha256::new();
    let sent_at = event.sent_at.as_nanosecond().to_string();
    for part in [&event.topic, &sent_at, &event.message_id, route, sink] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    let digest = hash.finish();
    let mut id = String::with_capacity(32);
    for byte in digest.iter().take(16) {
        // Writing to a text cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}
