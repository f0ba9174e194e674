//! Which events a route takes: patterns over an event's fields.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use wildmatch::WildMatch;

use crate::event::{CommandStatus, Event, Status, detail, letters};
use crate::fault::{Fault, meant};
use crate::sns::TopicArn;

/// `when` as it is written.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhenSettings {
    /// What the event is: `summary`, `invocation`, `alarm`…
    pub kind: Option<Texts>,
    /// The status, in any spelling.
    pub status: Option<Texts>,
    /// The detailed status.
    pub detail: Option<Texts>,
    /// The document: by its ARN, or by the bare name at its end.
    pub document: Option<Texts>,
    /// The instance; of a summary, any of those it lists.
    pub instance: Option<Texts>,
    /// The command's id.
    pub command: Option<Texts>,
    /// The topic: by its ARN, or by its name.
    pub topic: Option<Texts>,
    /// The topic's account.
    pub account: Option<Texts>,
    /// The topic's region.
    pub region: Option<Texts>,
    /// The subject.
    pub subject: Option<Texts>,
    /// Of messages in JSON: a pointer (`/detail/state`) and what it shall point to.
    pub message: BTreeMap<String, Texts>,
}

/// One text, or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

/// Which events a route takes; everything by default.
#[derive(Clone, Debug, Default)]
pub struct When {
    fields: Vec<(Field, Patterns)>,
    message: Vec<(String, Patterns)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Kind,
    Status,
    Detail,
    Document,
    Instance,
    Command,
    Topic,
    Account,
    Region,
    Subject,
}

impl Field {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::Status => "status",
            Self::Detail => "detail",
            Self::Document => "document",
            Self::Instance => "instance",
            Self::Command => "command",
            Self::Topic => "topic",
            Self::Account => "account",
            Self::Region => "region",
            Self::Subject => "subject",
        }
    }
}

/// Any of some, and none of others.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    any: Vec<Pattern>,
    none: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    glob: WildMatch,
    /// It is compared by letters alone: statuses come in many spellings.
    by_letters: bool,
}

/// The kinds that a route can name.
const KINDS: [&str; 7] = [
    "summary",
    "invocation",
    "alarm",
    "eventbridge",
    "subscribe",
    "unsubscribe",
    "other",
];

/// What a status filter may name besides statuses: they match the detail.
const DETAILS: [&str; 6] = [
    "ExecutionTimedOut",
    "DeliveryTimedOut",
    "Undeliverable",
    "Terminated",
    "InvalidPlatform",
    "AccessDenied",
];

const STATUSES: [&str; 5] = ["InProgress", "Success", "Failed", "TimedOut", "Cancelled"];

impl WhenSettings {
    /// Turns it into patterns.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn check(self) -> Result<When, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut when = When::default();
        let fields = [
            (Field::Kind, self.kind),
            (Field::Status, self.status),
            (Field::Detail, self.detail),
            (Field::Document, self.document),
            (Field::Instance, self.instance),
            (Field::Command, self.command),
            (Field::Topic, self.topic),
            (Field::Account, self.account),
            (Field::Region, self.region),
            (Field::Subject, self.subject),
        ];
        for (field, texts) in fields {
            let Some(texts) = texts else { continue };
            faults.extend(texts.faults(&["when", field.word()]));
            for text in &texts.0 {
                if let Some(message) = unknown_word(field, text) {
                    faults.push(Fault::at(&["when", field.word()], message));
                }
            }
            when.fields.push((field, Patterns::new(field, texts)));
        }
        for (pointer, texts) in self.message {
            let path = ["when", "message", &pointer];
            faults.extend(texts.faults(&path));
            if !pointer.is_empty() && !pointer.starts_with('/') {
                faults.push(Fault::at(
                    &path,
                    format!("`{pointer}` is no JSON pointer: write it like `/detail/state`"),
                ));
            }
            when.message
                .push((pointer, Patterns::new(Field::Subject, texts)));
        }
        if faults.is_empty() {
            Ok(when)
        } else {
            Err(faults)
        }
    }
}

impl Texts {
    fn faults(&self, path: &[&str]) -> Option<Fault> {
        let message = if self.0.is_empty() {
            "an empty list matches nothing: leave the key out, or name something"
        } else if self.0.iter().any(|text| text == "!") {
            "`!` negates nothing: write what shall not match after it"
        } else {
            return None;
        };
        Some(Fault::at(path, message))
    }
}

/// Why a text of a field with a fixed vocabulary can never match.
fn unknown_word(field: Field, text: &str) -> Option<String> {
    let word = text.strip_prefix('!').unwrap_or(text);
    if word.contains(['*', '?']) {
        return None;
    }
    match field {
        Field::Kind if !KINDS.contains(&word) => Some(format!(
            "`{word}` is no kind{}; the kinds are {}",
            meant(word, KINDS),
            KINDS.join(", ")
        )),
        Field::Status => match Status::parse(word) {
            Status::Other(_) if !DETAILS.contains(&detail(word)) => {
                let suggestion = meant(word, STATUSES.into_iter().chain(DETAILS));
                // An unknown status can come one day; a misspelt one never does.
                (!suggestion.is_empty()).then(|| format!("`{word}` is no status{suggestion}"))
            }
            _ => None,
        },
        _ => None,
    }
}

impl Pattern {
    fn hits(&self, value: &str) -> bool {
        if self.by_letters {
            self.glob.matches(&letters(value))
        } else {
            self.glob.matches(value)
        }
    }
}

impl Patterns {
    fn new(field: Field, texts: Texts) -> Self {
        let mut patterns = Self::default();
        for text in texts.0 {
            let (negated, text) = match text.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, text.as_str()),
            };
            let is_glob = text.contains(['*', '?']);
            let text = match field {
                _ if is_glob => text.to_owned(),
                Field::Status => match Status::parse(text) {
                    _ if DETAILS.contains(&detail(text)) => detail(text).to_owned(),
                    status => status.as_str().to_owned(),
                },
                Field::Detail => detail(text).to_owned(),
                _ => text.to_owned(),
            };
            let by_letters = is_glob && matches!(field, Field::Status | Field::Detail);
            let glob = if by_letters {
                let kept = text
                    .chars()
                    .filter(|it| it.is_alphanumeric() || "*?".contains(*it));
                WildMatch::new(&kept.collect::<String>().to_lowercase())
            } else {
                WildMatch::new(&text)
            };
            let list = if negated {
                &mut patterns.none
            } else {
                &mut patterns.any
            };
            list.push(Pattern {
                text,
                glob,
                by_letters,
            });
        }
        patterns
    }

    /// Whether some value is wanted and none is unwanted.
    fn take(&self, values: &[&str]) -> bool {
        let hits = |patterns: &[Pattern]| {
            patterns
                .iter()
                .any(|pattern| values.iter().any(|value| pattern.hits(value)))
        };
        (self.any.is_empty() || hits(&self.any)) && !hits(&self.none)
    }

    /// A value that is taken, if one can be told from the patterns.
    pub(super) fn example(&self, usual: &str) -> Option<String> {
        let wanted = self.any.iter().map(|pattern| filled(&pattern.text, usual));
        wanted
            .chain([usual.to_owned(), "another".to_owned()])
            .find(|value| self.take(&[value]))
    }
}

/// A text that a glob matches, near to what is usual.
fn filled(glob: &str, usual: &str) -> String {
    if WildMatch::new(glob).matches(usual) {
        return usual.to_owned();
    }
    glob.replace('*', "").replace('?', "x")
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = self.any.iter().map(|pattern| pattern.text.clone());
        let none = self.none.iter().map(|pattern| format!("!{}", pattern.text));
        f.write_str(&any.chain(none).collect::<Vec<_>>().join(", "))
    }
}

impl When {
    /// Whether it takes this event.
    #[must_use]
    pub fn takes(&self, event: &Event) -> bool {
        self.why_not(event).is_none()
    }

    /// Whether it can take events of this topic, as far as that depends on the topic.
    #[must_use]
    pub fn can_take_from(&self, topic: &TopicArn) -> bool {
        self.fields.iter().all(|(field, patterns)| match field {
            Field::Topic => patterns.take(&[topic.as_str(), topic.name()]),
            Field::Account => patterns.take(&[topic.account()]),
            Field::Region => patterns.take(&[topic.region()]),
            _ => true,
        })
    }

    /// The first condition that this event does not meet, in words.
    #[must_use]
    pub fn why_not(&self, event: &Event) -> Option<String> {
        for (field, patterns) in &self.fields {
            let values = values(*field, event);
            if !patterns.take(&values) {
                let word = field.word();
                return Some(match values.as_slice() {
                    [] => format!("it has no {word}, and {patterns} is wanted"),
                    values => format!("{word} is {}, not {patterns}", values.join(" or ")),
                });
            }
        }
        if self.message.is_empty() {
            return None;
        }
        // In what is no JSON no pointer finds anything.
        let message: Option<Value> = serde_json::from_str(&event.body).ok();
        for (pointer, patterns) in &self.message {
            let found = message.as_ref().and_then(|it| it.pointer(pointer));
            let found = found.map(text);
            let values: Vec<&str> = found.as_deref().into_iter().collect();
            if !patterns.take(&values) {
                let found = found.unwrap_or_else(|| "absent".to_owned());
                return Some(format!(
                    "{pointer} of the message is {found}, not {patterns}"
                ));
            }
        }
        None
    }

    /// Whether an `InProgress` of some command can be taken at all; if not, nothing that is taken
    /// has a predecessor to wait for.
    #[must_use]
    pub(super) fn can_take_in_progress(&self) -> bool {
        self.fields.iter().all(|(field, patterns)| match field {
            Field::Status => patterns.take(&["InProgress"]),
            Field::Detail => patterns.take(&[]) || patterns.take(&["InProgress"]),
            _ => true,
        })
    }

    pub(super) fn patterns(&self, of: Field) -> Option<&Patterns> {
        let found = self.fields.iter().find(|(field, _)| *field == of);
        found.map(|(_, patterns)| patterns)
    }

    pub(super) fn message_patterns(&self) -> &[(String, Patterns)] {
        &self.message
    }
}

/// What a JSON value is compared as.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What an event has to say about a field; several where any of them may match.
fn values(field: Field, event: &Event) -> Vec<&str> {
    let command = event.command();
    let of = |get: fn(&CommandStatus) -> Option<&str>| command.and_then(get).into_iter().collect();
    match field {
        Field::Kind => vec![event.kind.word()],
        Field::Status => command.map(statuses).unwrap_or_default(),
        Field::Detail => of(|it| it.detail.as_deref()),
        Field::Document => command
            .map(|it| {
                let bare = it.document.rsplit('/').next().unwrap_or_default();
                vec![it.document.as_str(), bare]
            })
            .unwrap_or_default(),
        Field::Instance => command
            .map(|it| {
                let own = it.instance.iter().map(String::as_str);
                own.chain(it.instances.iter().map(String::as_str)).collect()
            })
            .unwrap_or_default(),
        Field::Command => of(|it| Some(it.command.as_str())),
        Field::Topic => {
            let bare = event.topic.rsplit(':').next().unwrap_or_default();
            vec![&event.topic, bare]
        }
        Field::Account => vec![&event.account],
        Field::Region => vec![&event.region],
        Field::Subject => event.subject.as_deref().into_iter().collect(),
    }
}

/// A status filter that names a detail matches the detail.
fn statuses(command: &CommandStatus) -> Vec<&str> {
    let finer = command.detail.as_deref().filter(|it| DETAILS.contains(it));
    [Some(command.status.as_str()), finer]
        .into_iter()
        .flatten()
        .collect()
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }

        deserializer.deserialize_any(Either)
    }
}
