//! What people write in place of our own words: templates for title, body and payload.
//!
//! A template sees what an event says and nothing else: no files, no environment, no other template.
//! It has so much fuel and so much room; one that fails costs its notice nothing but its own words.

use std::fmt;
use std::io;
use std::sync::Arc;

use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::{Deserialize, Serialize};

use super::plain::{Lines, Plain};
use super::samples::samples;
use super::{Document, Notice};
use crate::fault::{Fault, meant};

/// How many steps a template may take.
const FUEL: u64 = 100_000;
/// How much it may write, in bytes.
const LARGEST: usize = 256 * 1024;

/// `template = { … }` of a route or a sink.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// In place of the title.
    pub title: Option<String>,
    /// In place of everything between title and link.
    pub body: Option<String>,
}

/// Templates for what people read.
#[derive(Clone, Debug)]
pub struct Template {
    title: Option<Compiled>,
    body: Option<Compiled>,
}

/// What templates made of a notice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// In place of the title.
    pub title: Option<Plain>,
    /// In place of everything between title and link.
    pub body: Option<Lines>,
}

/// Why a template made nothing of a notice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

/// One template, ready to be used.
#[derive(Clone)]
pub struct Compiled(Arc<Environment<'static>>);

/// The one template in its environment.
const NAME: &str = "template";

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compiled")
    }
}

impl Settings {
    /// Compiles the templates.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self) -> Result<Arc<Template>, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut compiled = |key: &str, text: Option<String>| {
            text.and_then(|text| {
                Compiled::new(text)
                    .map_err(|error| faults.push(Fault::at(&["template", key], error.0)))
                    .ok()
            })
        };
        let template = Template {
            title: compiled("title", self.title),
            body: compiled("body", self.body),
        };
        if faults.is_empty() {
            Ok(Arc::new(template))
        } else {
            Err(faults)
        }
    }
}

impl Template {
    /// What it makes of a notice.
    ///
    /// # Errors
    /// When it takes too long, writes too much, leaves the title blank, or asks for what cannot be
    /// done.
    pub fn texts(&self, notice: &Notice) -> Result<Texts, TemplateError> {
        let seen = seen(notice);
        let render = |compiled: &Option<Compiled>| {
            let rendered = compiled.as_ref().map(|compiled| compiled.render(&seen));
            rendered.transpose()
        };
        let title = render(&self.title)?.map(|text| Plain::new(text.trim()));
        if title.as_ref().is_some_and(Plain::is_blank) {
            return Err(TemplateError("the title is blank".to_owned()));
        }
        let body = render(&self.body)?.map(|text| Lines::new(&text));
        Ok(Texts { title, body })
    }
}

impl Compiled {
    /// Compiles one template, and tries it on notices of every kind.
    ///
    /// # Errors
    /// What is wrong with it, with its line.
    pub fn new(text: String) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(50);
        // What an event does not have shows as nothing.
        environment.set_formatter(|out, state, value| {
            if value.is_none() {
                return Ok(());
            }
            minijinja::escape_formatter(out, state, value)
        });
        environment
            .add_template_owned(NAME, text)
            .map_err(|error| said(&error))?;
        let compiled = Self(Arc::new(environment));
        compiled.knows_its_words()?;
        for notice in samples() {
            compiled.render(&seen(&notice))?;
        }
        Ok(compiled)
    }

    /// The same, for a template that writes JSON.
    ///
    /// # Errors
    /// What is wrong with it, with its line.
    pub fn json(text: String) -> Result<Self, TemplateError> {
        let compiled = Self::new(text)?;
        for notice in samples() {
            compiled.json_of(&notice)?;
        }
        Ok(compiled)
    }

    /// What it makes of a notice, which must be JSON.
    ///
    /// # Errors
    /// Those of [`Compiled::of`], and when it is no JSON.
    pub fn json_of(&self, notice: &Notice) -> Result<String, TemplateError> {
        let text = self.of(notice)?;
        match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
            Ok(_) => Ok(text),
            Err(error) => Err(TemplateError(format!(
                "for {} it writes no JSON ({error}): `{{{{ word | tojson }}}}` quotes and escapes",
                notice.event.kind.word()
            ))),
        }
    }

    /// What it makes of a notice.
    ///
    /// # Errors
    /// When it takes too long, writes too much, or asks for what cannot be done.
    pub fn of(&self, notice: &Notice) -> Result<String, TemplateError> {
        self.render(&seen(notice))
    }

    fn knows_its_words(&self) -> Result<(), TemplateError> {
        let template = self.0.get_template(NAME).map_err(|error| said(&error))?;
        let given: Vec<&str> = self.0.globals().map(|(name, _)| name).collect();
        let mut unknown: Vec<String> = template
            .undeclared_variables(false)
            .into_iter()
            .filter(|word| !WORDS.contains(&word.as_str()) && !given.contains(&word.as_str()))
            .collect();
        unknown.sort();
        match unknown.first() {
            None => Ok(()),
            Some(word) => {
                let meant = meant(word, WORDS);
                let known = if meant.is_empty() {
                    format!("; there are {}", WORDS.join(", "))
                } else {
                    meant
                };
                Err(TemplateError(format!("nothing is called `{word}`{known}")))
            }
        }
    }

    fn render(&self, seen: &Value) -> Result<String, TemplateError> {
        let template = self.0.get_template(NAME).map_err(|error| said(&error))?;
        let mut room = Room(Vec::new());
        template
            .render_captured_to(seen.clone(), &mut room)
            .map_err(|error| said(&error))?;
        String::from_utf8(room.0).map_err(|_| TemplateError("it wrote no text".to_owned()))
    }
}

/// A text that ends where there is no more room.
struct Room(Vec<u8>);

impl io::Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST {
            return Err(io::Error::other("it writes more than 256 KiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn said(error: &minijinja::Error) -> TemplateError {
    let place = error
        .line()
        .map_or_else(String::new, |line| format!("line {line}: "));
    let mut said = format!("{place}{}", error.kind());
    if let Some(detail) = error.detail() {
        said = format!("{said}: {detail}");
    }
    let cause = std::error::Error::source(error);
    if let Some(cause) = cause {
        said = format!("{said}: {cause}");
    }
    TemplateError(said)
}

/// What a template can ask for; docs/templates.md says what each is.
pub const WORDS: [&str; 30] = [
    "id",
    "route",
    "kind",
    "title",
    "status",
    "detail",
    "tone",
    "sign",
    "is_bad",
    "command",
    "instance",
    "instances",
    "document",
    "event_time",
    "requested_at",
    "expires_at",
    "received_at",
    "sent_at",
    "late_seconds",
    "output",
    "topic",
    "account",
    "region",
    "message_id",
    "subject",
    "message",
    "marks",
    "facts",
    "link",
    "digest",
];

/// What a template sees: the words of [`WORDS`].
#[derive(Serialize)]
struct Seen<'a> {
    id: &'a str,
    route: &'a str,
    kind: &'a str,
    title: &'a str,
    status: &'a str,
    detail: Option<&'a str>,
    tone: &'a str,
    sign: &'a str,
    is_bad: bool,
    command: Option<&'a str>,
    instance: Option<&'a str>,
    instances: &'a [String],
    document: Option<&'a str>,
    event_time: Option<String>,
    requested_at: Option<String>,
    expires_at: Option<String>,
    received_at: String,
    sent_at: String,
    late_seconds: Option<f64>,
    output: Option<&'a str>,
    topic: &'a str,
    account: &'a str,
    region: &'a str,
    message_id: &'a str,
    subject: Option<&'a str>,
    message: serde_json::Value,
    marks: Vec<&'a str>,
    facts: Vec<SeenFact<'a>>,
    link: Option<&'a str>,
    digest: Option<SeenDigest<'a>>,
}

#[derive(Serialize)]
struct SeenFact<'a> {
    name: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct SeenDigest<'a> {
    is_over: bool,
    succeeded: u64,
    failed: u64,
    timed_out: u64,
    cancelled: u64,
    running: u64,
    unheard: u64,
    troubled: Vec<SeenTroubled<'a>>,
}

#[derive(Serialize)]
struct SeenTroubled<'a> {
    instance: &'a str,
    status: &'a str,
}

fn seen(notice: &Notice) -> Value {
    let document = Document::of_event(notice);
    let event = &notice.event;
    let it = event.command();
    let fact = |name: &str| {
        let fact = document.facts.iter().find(|fact| fact.name == name);
        fact.map(|fact| fact.value.text())
    };
    // A message that is no JSON is a text.
    let message = serde_json::from_str(&event.body)
        .unwrap_or_else(|_| serde_json::Value::from(event.body.as_str()));
    Value::from(Serde(Seen {
        id: &notice.id,
        route: &notice.route,
        kind: event.kind.word(),
        title: document.title.text(),
        status: document.status.text(),
        detail: it.and_then(|it| it.detail.as_deref()),
        tone: document.tone.word(),
        sign: document.tone.sign(),
        is_bad: document.tone == super::Tone::Bad,
        command: it.map(|it| it.command.as_str()),
        instance: it.and_then(|it| it.instance.as_deref()),
        instances: it.map_or(&[], |it| it.instances.as_slice()),
        document: it.map(|it| it.document.as_str()),
        event_time: it.and_then(|it| it.event_time).map(|at| at.to_string()),
        requested_at: it.and_then(|it| it.requested_at).map(|at| at.to_string()),
        expires_at: it.and_then(|it| it.expires_at).map(|at| at.to_string()),
        received_at: notice.received_at.to_string(),
        sent_at: event.sent_at.to_string(),
        late_seconds: notice.marks.late.map(|late| late.as_secs_f64()),
        output: fact("Output"),
        topic: &event.topic,
        account: &event.account,
        region: &event.region,
        message_id: &event.message_id,
        subject: event.subject.as_deref(),
        message,
        marks: document.marks.iter().map(Plain::text).collect(),
        facts: document
            .facts
            .iter()
            .map(|fact| SeenFact {
                name: fact.name,
                value: fact.value.text(),
            })
            .collect(),
        link: document.link.as_ref().map(|link| link.url.as_str()),
        digest: notice.digest.as_ref().map(|digest| SeenDigest {
            is_over: digest.is_over(),
            succeeded: digest.succeeded,
            failed: digest.failed,
            timed_out: digest.timed_out,
            cancelled: digest.cancelled,
            running: digest.running,
            unheard: digest.unheard,
            troubled: digest
                .troubled
                .iter()
                .map(|(instance, status)| SeenTroubled {
                    instance,
                    status: status.as_str(),
                })
                .collect(),
        }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(title: &str, body: &str) -> Result<Arc<Template>, String> {
        let settings = Settings {
            title: Some(title.to_owned()),
            body: Some(body.to_owned()),
        };
        settings.check().map_err(|faults| {
            let said = faults.iter();
            said.map(|fault| format!("{}: {}", fault.path.join("."), fault.message))
                .collect::<Vec<_>>()
                .join("; ")
        })
    }

    #[test]
    fn every_word_is_there_and_no_other() {
        let all = format!("{{{{ {} }}}}", WORDS.join(" }}{{ "));
        let notice = &samples()[0];
        let written = Compiled::new(all).unwrap().of(notice).unwrap();
        assert!(
            written.contains("Failed") && written.contains("i-0"),
            "{written}"
        );
        let keys = serde_json::to_value(seen(notice)).unwrap();
        let mut keys: Vec<_> = keys
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut words = WORDS;
        keys.sort_unstable();
        words.sort_unstable();
        assert_eq!(keys, words);
    }

    #[test]
    fn what_is_wrong_is_found_before_a_notice_comes() {
        for (body, why) in [
            (
                "{{ statsu }}",
                "template.body: nothing is called `statsu`: did you mean `status`?",
            ),
            ("a\n{% if %}", "template.body: line 2: syntax error"),
            ("{{ status|uper }}", "template.body: line 1: unknown filter"),
            ("{% include 'x' %}", "unknown statement include"),
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
                "engine ran out of fuel",
            ),
            ("{{ 'x' * 300000 }}", "it writes more than 256 KiB"),
            ("{{ message.a.b.c }}{{ facts[99].name }}", ""),
            ("{{ 1 / 0 }}", "template.body: line 1"),
        ] {
            let checked = template("t", body);
            match checked {
                Ok(_) => assert_eq!(why, "", "{body}"),
                Err(said) => assert!(!why.is_empty() && said.contains(why), "{body}: {said}"),
            }
        }
    }

    #[test]
    fn a_template_says_it_in_its_own_words() {
        let template = template(
            "{{ sign }} {{ document }} {{ status | lower }}",
            "on {{ instance }}{% if detail %} ({{ detail }}){% endif %}\n\nsee {{ link }}",
        )
        .unwrap();
        let texts = template.texts(&samples()[0]).unwrap();
        assert_eq!(
            texts.title.unwrap().text(),
            "\u{274c} AWS-RunShellScript failed"
        );
        let body = texts.body.unwrap().text();
        assert!(
            body.starts_with("on i-0123456789abcdef0 (NonZeroExit)\n\nsee https://"),
            "{body}"
        );
    }

    #[test]
    fn a_blank_title_is_a_failure() {
        let template = template("{{ subject if kind == 'nothing' }}", "b");
        assert_eq!(
            template.unwrap().texts(&samples()[0]),
            Err(TemplateError("the title is blank".to_owned()))
        );
    }
}
