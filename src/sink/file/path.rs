//! Where a line goes: a path with placeholders, filled so that no value can lead elsewhere.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::event::CommandStatus;
use crate::fault::meant;
use crate::render::Notice;

/// A path with placeholders.
#[derive(Clone, Debug)]
pub(super) struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Literal(String),
    Field(&'static str),
}

/// The placeholders. `date` and `hour` are those of the moment of writing, in UTC: a file whose day
/// is over is never written again.
const FIELDS: [&str; 10] = [
    "date", "hour", "account", "region", "topic", "route", "command", "instance", "status", "kind",
];

/// The longest value in a path, in bytes.
const LONGEST: usize = 100;
/// The longest part of a path, in bytes; file systems take 255.
const LONGEST_PART: usize = 200;

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            let (name, after) = after
                .split_once('}')
                .ok_or("a `{` has no `}`: write placeholders like {date}")?;
            let field = FIELDS.into_iter().find(|field| *field == name);
            let field = field.ok_or_else(|| {
                format!(
                    "`{{{name}}}` is no placeholder{}; they are {{{}}}",
                    meant(name, FIELDS),
                    FIELDS.join("}, {")
                )
            })?;
            parts.push(Part::Literal(literal.to_owned()));
            parts.push(Part::Field(field));
            rest = after;
        }
        parts.push(Part::Literal(rest.to_owned()));
        if text.ends_with('/') || text.is_empty() {
            return Err("the path ends in no file name".to_owned());
        }
        Ok(Self {
            text: text.to_owned(),
            parts,
        })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The folder that no placeholder is part of: it has to exist, so that lines do not go to a
    /// folder on which a disk was to be mounted.
    pub(super) fn fixed_folder(&self) -> PathBuf {
        let fixed = self.text.split('{').next().unwrap_or_default();
        let folder = match fixed.rsplit_once('/') {
            Some(("", _)) => "/",
            Some((folder, _)) => folder,
            None => ".",
        };
        Path::new(folder).to_owned()
    }

    pub(super) fn expand(&self, notice: &Notice, now: Timestamp) -> PathBuf {
        let mut path = String::with_capacity(self.text.len() + 64);
        for part in &self.parts {
            match part {
                Part::Literal(text) => path.push_str(text),
                Part::Field(field) => path.push_str(&safe(&value(field, notice, now))),
            }
        }
        if path.split('/').any(|part| part.len() > LONGEST_PART) {
            path = path.split('/').map(bounded).collect::<Vec<_>>().join("/");
        }
        path.into()
    }
}

/// A part of a path that file systems take, with room for what rotation adds. What is cut is told
/// apart by its hash.
fn bounded(part: &str) -> String {
    if part.len() <= LONGEST_PART {
        return part.to_owned();
    }
    let hash = openssl::sha::sha256(part.as_bytes());
    let hash = hash.iter().take(8).fold(String::new(), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    let (stem, extension) = part
        .rsplit_once('.')
        .filter(|(_, extension)| extension.len() <= 10)
        .map_or((part, String::new()), |(stem, extension)| {
            (stem, format!(".{extension}"))
        });
    let mut end = LONGEST_PART - 1 - hash.len() - extension.len();
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    let stem = stem.get(..end).unwrap_or(stem);
    format!("{stem}-{hash}{extension}")
}

fn value(field: &str, notice: &Notice, now: Timestamp) -> String {
    let event = &notice.event;
    let of = |get: fn(&CommandStatus) -> Option<&str>| {
        event.command().and_then(get).unwrap_or("none").to_owned()
    };
    match field {
        "date" => now.strftime("%Y-%m-%d").to_string(),
        "hour" => now.strftime("%H").to_string(),
        "account" => event.account.clone(),
        "region" => event.region.clone(),
        "topic" => event
            .topic
            .rsplit(':')
            .next()
            .unwrap_or_default()
            .to_owned(),
        "route" => notice.route.clone(),
        "command" => of(|it| Some(&it.command)),
        "instance" => of(|it| it.instance.as_deref()),
        "status" => of(|it| Some(it.status.as_str())),
        _ => event.kind.word().to_owned(),
    }
}

/// A value that is one plain part of a name, whatever came in.
fn safe(value: &str) -> String {
    let plain: String = value
        .chars()
        .take(LONGEST)
        .map(|each| match each {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' => each,
            _ => '_',
        })
        .collect();
    if plain.chars().all(|each| each == '.') {
        return "_".to_owned();
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::record::tests::notice;

    fn expand(template: &str, instance: &str) -> String {
        let now = "2026-11-23T23:59:59.9Z".parse().unwrap();
        let template = Template::parse(template).unwrap();
        template
            .expand(&notice(instance), now)
            .to_string_lossy()
            .into_owned()
    }

    #[test]
    fn placeholders_are_filled() {
        assert_eq!(
            expand(
                "/a/{date}/{hour}-{account}-{region}-{topic}/{route}-{command}-{instance}-{status}-{kind}.jsonl",
                "i-1"
            ),
            "/a/2026-11-23/23-123456789012-eu-central-1-run-command/audit-c-1-i-1-TimedOut-invocation.jsonl"
        );
        assert_eq!(expand("plain", "i-1"), "plain");
    }

    #[test]
    fn no_value_leads_elsewhere() {
        let long = "x".repeat(500);
        for (value, expected) in [
            ("../../etc/passwd", "/a/.._.._etc_passwd"),
            ("..", "/a/_"),
            (".", "/a/_"),
            ("a b\\u0000c", "/a/a_b_c"),
            ("ä", "/a/_"),
            ("a/b", "/a/a_b"),
            (long.as_str(), &format!("/a/{}", "x".repeat(100))),
        ] {
            assert_eq!(expand("/a/{instance}", value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_and_told_apart() {
        let one = expand("/a/{instance}-{instance}-{instance}.jsonl", &"x".repeat(99));
        let other = expand("/a/{instance}-{instance}-{instance}.jsonl", &"x".repeat(98));
        for path in [&one, &other] {
            let name = path.strip_prefix("/a/").unwrap();
            assert_eq!(name.len(), LONGEST_PART);
            assert_eq!(name.rsplit_once('.').map(|it| it.1), Some("jsonl"));
        }
        assert_ne!(one, other);
    }

    #[test]
    fn wrong_placeholders_are_named() {
        let why = |text: &str| Template::parse(text).unwrap_err();
        assert!(why("/a/{dat}.jsonl").contains("did you mean `date`?"));
        assert!(why("/a/{date.jsonl").contains("has no `}`"));
        assert!(why("/a/").contains("no file name"));
    }

    #[test]
    fn the_fixed_folder_has_no_placeholder() {
        for (text, folder) in [
            ("/var/log/runbell/audit.jsonl", "/var/log/runbell"),
            (
                "/var/log/runbell/{date}/{account}.jsonl",
                "/var/log/runbell",
            ),
            ("/var/log/runbell-{date}.jsonl", "/var/log"),
            ("/{date}", "/"),
            ("a.jsonl", "."),
        ] {
            assert_eq!(
                Template::parse(text).unwrap().fixed_folder(),
                Path::new(folder),
                "{text}"
            );
        }
    }
}
