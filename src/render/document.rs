//! What a person shall read, in parts that each sink brings into its own form.

use jiff::Timestamp;

use super::Notice;
use super::plain::{Lines, Plain};
use crate::delivery::Digest;
use crate::event::{CommandStatus, Event, Kind, Status};

/// What a person shall read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// One line that says it all; never left out.
    pub title: Plain,
    /// The status as one word.
    pub status: Plain,
    /// How it is to be taken.
    pub tone: Tone,
    /// What the reader has to know of the notice itself: late, repeated, resent.
    pub marks: Vec<Plain>,
    /// Names and values, the most important first.
    pub facts: Vec<Fact>,
    /// Where more is to be seen.
    pub link: Option<Link>,
    /// A command that shows more, ready to be pasted.
    pub paste: Option<Plain>,
    /// The text of a message that is no status.
    pub text: Option<Lines>,
    /// Whether something was left out to make it fit.
    pub is_cut: bool,
}

/// How a status is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Something is under way, or nobody knows what it means.
    Neutral,
    /// It went well.
    Good,
    /// It did not end as it should, and somebody wanted that or nobody noticed.
    Warning,
    /// It failed.
    Bad,
}

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is; ours, and short.
    pub name: &'static str,
    /// What it says.
    pub value: Plain,
}

/// A place to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What is there; ours.
    pub label: &'static str,
    /// Where it is: made of checked parts, safe in any markup.
    pub url: String,
}

impl Tone {
    /// Of a status.
    #[must_use]
    pub const fn of(status: &Status) -> Self {
        match status {
            Status::Success => Self::Good,
            Status::Failed | Status::TimedOut => Self::Bad,
            Status::Cancelled => Self::Warning,
            Status::InProgress | Status::Other(_) => Self::Neutral,
        }
    }

    /// Its colour as red, green and blue; readable beside text on light and on dark.
    #[must_use]
    pub const fn colour(self) -> u32 {
        match self {
            Self::Neutral => 0x0061_6e88,
            Self::Good => 0x001f_883d,
            Self::Warning => 0x00bf_8700,
            Self::Bad => 0x00cf_222e,
        }
    }

    /// The word for it in templates.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Neutral => "neutral",
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }

    /// A sign for those who do not see the colour.
    #[must_use]
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Neutral => "\u{1f535}",
            Self::Good => "\u{2705}",
            Self::Warning => "\u{26a0}\u{fe0f}",
            Self::Bad => "\u{274c}",
        }
    }
}

impl Document {
    /// What a person shall read of a notice: in the words of its template, if it has one that did not
    /// fail.
    #[must_use]
    pub fn of(notice: &Notice) -> Self {
        let mut document = Self::of_event(notice);
        match &notice.texts {
            None => {}
            Some(Ok(texts)) => {
                if let Some(title) = &texts.title {
                    document.title = title.clone();
                }
                if let Some(body) = &texts.body {
                    document.text = Some(body.clone());
                    document.facts = Vec::new();
                    document.paste = None;
                }
            }
            Some(Err(why)) => {
                let mark = format!("its template failed, so these are the usual words: {why}");
                document.marks.push(mark.into());
            }
        }
        document
    }

    /// What a person shall read of one event, in our own words.
    pub(super) fn of_event(notice: &Notice) -> Self {
        let event = &notice.event;
        let mut document = match (&event.kind, &notice.digest) {
            (Kind::Summary(it) | Kind::Invocation(it), Some(digest)) => {
                of_digest(event, it, digest)
            }
            (Kind::Summary(status), None) => of_status(event, status, false),
            (Kind::Invocation(status), None) => of_status(event, status, true),
            _ => of_message(event),
        };
        document.marks = marks(notice);
        document
    }

    /// The first form of it that `fits`, the least important left out first. What never is: title,
    /// status and link. Gives back the smallest there is when none fits.
    #[must_use]
    pub fn fitted(mut self, fits: impl Fn(&Self) -> bool) -> Self {
        while !fits(&self) && self.shrink() {}
        self
    }

    /// Leaves out, or shortens, the least important that is left; whether there was any.
    fn shrink(&mut self) -> bool {
        const SHORT: usize = 200;
        const SHORTER: usize = 40;
        self.is_cut = true;
        if let Some(text) = &self.text {
            let half = text.chars() / 2;
            self.text = (half > SHORT).then(|| text.cut(half));
            return true;
        }
        let too_long = |value: &Plain, most: usize| value.text().chars().count() > most;
        for most in [SHORT, SHORTER] {
            let long = self.facts.iter_mut().rev();
            if let Some(fact) = long.into_iter().find(|fact| too_long(&fact.value, most)) {
                fact.value = fact.value.cut(most).into_owned();
                return true;
            }
            if most == SHORT && self.paste.take().is_some() {
                return true;
            }
        }
        if self.facts.pop().is_some() || self.marks.pop().is_some() {
            return true;
        }
        if too_long(&self.title, SHORTER) {
            self.title = self.title.cut(SHORTER).into_owned();
            return true;
        }
        if too_long(&self.status, SHORTER) {
            self.status = self.status.cut(SHORTER).into_owned();
            return true;
        }
        false
    }
}

fn of_status(event: &Event, it: &CommandStatus, is_invocation: bool) -> Document {
    let status = it.status.as_str();
    let document = bare(&it.document);
    let instance = it.instance.as_deref().filter(|_| is_invocation);
    let title = match instance {
        Some(instance) => format!("{status}: {document} on {instance}"),
        None => format!("{status}: {document}, the whole command"),
    };
    let mut facts = Vec::new();
    let mut fact = |name, value: Option<&str>| {
        // Some services refuse a whole message for one empty value.
        if let Some(value) = value.map(Plain::new).filter(|value| !value.is_blank()) {
            facts.push(Fact { name, value });
        }
    };
    fact(
        "Detail",
        it.detail.as_deref().filter(|detail| *detail != status),
    );
    fact("Instance", instance);
    fact("Account", Some(&place(event)));
    fact("Document", Some(&it.document));
    fact("Command", Some(&it.command));
    fact("Event time", it.event_time.map(shown).as_deref());
    fact("Instances", some(&it.instances).as_deref());
    fact("Output", output(it).as_deref());
    Document {
        title: title.into(),
        status: status.into(),
        tone: Tone::of(&it.status),
        marks: Vec::new(),
        facts,
        link: console(event, it, instance),
        paste: paste(event, it, instance),
        text: None,
        is_cut: false,
    }
}

/// What a digest says: how the command stands, and where it did not go well.
fn of_digest(event: &Event, it: &CommandStatus, digest: &Digest) -> Document {
    let status = &digest.status();
    let counts = counts(digest);
    let document = bare(&it.document);
    let facts = [
        ("Not well", troubled(digest)),
        ("Account", place(event)),
        ("Document", it.document.clone()),
        ("Command", it.command.clone()),
        ("Event time", it.event_time.map(shown).unwrap_or_default()),
        ("Output", output(it).unwrap_or_default()),
    ];
    let facts = facts.into_iter().map(|(name, value)| Fact {
        name,
        value: value.into(),
    });
    let has_failed = digest.failed + digest.timed_out > 0;
    Document {
        title: format!("{status}: {document}: {counts}").into(),
        status: status.as_str().into(),
        tone: match status {
            Status::InProgress if has_failed => Tone::Bad,
            status => Tone::of(status),
        },
        marks: Vec::new(),
        facts: facts.filter(|fact| !fact.value.is_blank()).collect(),
        link: console(event, it, None),
        paste: paste(event, it, None),
        text: None,
        is_cut: false,
    }
}

fn counts(digest: &Digest) -> String {
    let unheard = if digest.is_over() {
        "never heard of"
    } else {
        "not started"
    };
    let parts = [
        (digest.succeeded, "succeeded"),
        (digest.failed, "failed"),
        (digest.timed_out, "timed out"),
        (digest.cancelled, "cancelled"),
        (digest.running, "still running"),
        (digest.unheard, unheard),
    ];
    let said: Vec<String> = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{} {word}", grouped(count)))
        .collect();
    if said.is_empty() {
        "nothing is known of its instances".to_owned()
    } else {
        said.join(", ")
    }
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut said = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            said.push(',');
        }
        said.push(digit);
    }
    said
}

/// The instances that did not end well; what they were is said where they did not simply fail.
fn troubled(digest: &Digest) -> String {
    const SHOWN: usize = 40;
    let all = digest.failed + digest.timed_out + digest.cancelled;
    let shown: Vec<String> = digest
        .troubled
        .iter()
        .take(SHOWN)
        .map(|(instance, status)| match status {
            Status::Failed => instance.clone(),
            status => format!("{instance} ({status})"),
        })
        .collect();
    let more = all.saturating_sub(shown.len() as u64);
    let rest = if more > 0 && !shown.is_empty() {
        format!(" and {} more", grouped(more))
    } else {
        String::new()
    };
    format!("{}{rest}", shown.join(", "))
}

fn of_message(event: &Event) -> Document {
    let what = match &event.kind {
        Kind::Alarm => "CloudWatch alarm",
        Kind::EventBridge => "EventBridge event",
        Kind::Subscribe => "Subscription asks to be confirmed",
        Kind::Unsubscribe => "Subscription ended",
        _ => "Message",
    };
    let topic = event.topic.rsplit(':').next().unwrap_or_default();
    let title = match &event.subject {
        Some(subject) => format!("{what} on {topic}: {subject}"),
        None => format!("{what} on {topic}"),
    };
    Document {
        title: title.into(),
        status: what.into(),
        tone: match &event.kind {
            Kind::Alarm | Kind::Unsubscribe => Tone::Warning,
            _ => Tone::Neutral,
        },
        marks: Vec::new(),
        facts: vec![
            Fact {
                name: "Account",
                value: place(event).into(),
            },
            Fact {
                name: "Signed",
                value: shown(event.sent_at).into(),
            },
        ],
        link: None,
        paste: None,
        // Some services refuse a whole message for one empty value.
        text: Some(Lines::new(&event.body)).filter(|text| !text.text().is_empty()),
        is_cut: false,
    }
}

fn marks(notice: &Notice) -> Vec<Plain> {
    let marks = &notice.marks;
    let mut said = Vec::new();
    let mut mark = |set: bool, text: &str| {
        if set {
            said.push(Plain::new(text));
        }
    };
    if let Some(late) = marks.late {
        let text = format!(
            "late: what came {:.1} s after it was told before",
            late.as_secs_f64()
        );
        mark(true, &text);
    }
    mark(
        marks.possible_repeat,
        "possible repeat: an earlier try may have arrived",
    );
    mark(marks.repeat, "repeat: told before");
    mark(marks.resent, "sent again by hand");
    mark(
        marks.conflict,
        "conflict: another final status was told as well",
    );
    if let Some(sink) = &marks.instead_of {
        mark(
            true,
            &format!("in place of sink {sink}, which could not bring it"),
        );
    }
    mark(notice.event.time_doubted, "its event time is not credible");
    said
}

/// The name of a document without the rest of its ARN.
fn bare(document: &str) -> &str {
    document
        .strip_prefix("arn:")
        .and_then(|rest| rest.split_once("document/"))
        .map_or(document, |(_, name)| name)
}

fn place(event: &Event) -> String {
    format!("{} {}", event.account, event.region)
}

fn shown(at: Timestamp) -> String {
    format!("{} UTC", at.strftime("%Y-%m-%d %H:%M:%S%.3f"))
}

fn some(instances: &[String]) -> Option<String> {
    const SHOWN: usize = 10;
    let more = instances.len().saturating_sub(SHOWN);
    let first: Vec<&str> = instances.iter().take(SHOWN).map(String::as_str).collect();
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    (!first.is_empty()).then(|| format!("{}{rest}", first.join(", ")))
}

fn output(it: &CommandStatus) -> Option<String> {
    let bucket = it
        .output_bucket
        .as_deref()
        .filter(|bucket| !bucket.is_empty())?;
    let prefix = it.output_prefix.as_deref().unwrap_or_default();
    let prefix = prefix.trim_matches('/');
    let slash = if prefix.is_empty() { "" } else { "/" };
    Some(format!("s3://{bucket}/{prefix}{slash}{}/", it.command))
}

/// Ids come from whoever may publish to the topic: only what an id may be made of gets into a link or
/// a command line.
fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The command, or its part on one instance, in the console of the region's partition.
/// Hosts: AWS's lists of console endpoints.
fn console(event: &Event, it: &CommandStatus, instance: Option<&str>) -> Option<Link> {
    let region = event.region.as_str();
    if !is_id(&it.command) || !is_id(region) {
        return None;
    }
    let host = if region.starts_with("cn-") {
        "console.amazonaws.cn"
    } else if region.starts_with("us-gov-") {
        "console.amazonaws-us-gov.com"
    } else {
        "console.aws.amazon.com"
    };
    let instance = instance.filter(|instance| is_id(instance));
    let part = instance.map_or_else(String::new, |instance| format!("/{instance}"));
    let command = &it.command;
    Some(Link {
        label: "Open in Systems Manager",
        url: format!(
            "https://{region}.{host}/systems-manager/run-command/{command}{part}?region={region}"
        ),
    })
}

fn paste(event: &Event, it: &CommandStatus, instance: Option<&str>) -> Option<Plain> {
    let (command, region) = (&it.command, &event.region);
    if !is_id(command) || !is_id(region) {
        return None;
    }
    let text = match instance {
        Some(instance) if is_id(instance) => format!(
            "aws ssm get-command-invocation --region {region} --command-id {command} --instance-id {instance}"
        ),
        Some(_) => return None,
        None => {
            format!("aws ssm list-command-invocations --region {region} --command-id {command}")
        }
    };
    Some(text.into())
}
