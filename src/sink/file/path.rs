//! Where a line goes: a path with placeholders, filled so that no value can lead elsewhere.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::clock::{earlier, later};
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
const FIELDS: [&str; 11] = [
    "date", "hour", "account", "region", "topic", "route", "command", "instance", "status", "kind",
    REPLICA,
];

/// The placeholder that is the same in every path of this process.
const REPLICA: &str = "replica";

/// The longest value in a path, in bytes; file systems take 255.
const LONGEST: usize = 100;

/// The longest name that is made of values, in bytes: setting aside and compressing add to it.
const LONGEST_NAME: usize = 200;

/// A longer extension is none that people look for.
const LONGEST_EXTENSION: usize = 16;

impl Template {
    /// Reads a path as it is written; `replica` is the name of this one.
    pub(super) fn parse(text: &str, replica: &str) -> Result<Self, String> {
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
            parts.push(match field {
                REPLICA => Part::Literal(safe(replica)),
                field => Part::Field(field),
            });
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

    /// Whether what is in an event, and not the time alone, decides where its line goes.
    pub(super) fn spreads(&self) -> bool {
        self.fields()
            .any(|field| field != "date" && field != "hour")
    }

    pub(super) fn expand(&self, notice: &Notice, now: Timestamp) -> PathBuf {
        let mut path = String::with_capacity(self.text.len() + 64);
        let (mut start, mut is_filled) = (0, false);
        for part in &self.parts {
            match part {
                Part::Field(field) => {
                    path.push_str(&safe(&value(field, notice, now)));
                    is_filled = true;
                }
                Part::Literal(text) => {
                    for (at, piece) in text.split('/').enumerate() {
                        if at > 0 {
                            end_name(&mut path, start, is_filled);
                            path.push('/');
                            (start, is_filled) = (path.len(), false);
                        }
                        path.push_str(piece);
                    }
                }
            }
        }
        end_name(&mut path, start, is_filled);
        path.into()
    }

    /// Where the line may have gone at another date or hour: when it came in or just after, or just
    /// before `now`. None for a path without them.
    pub(super) fn expand_earlier(&self, notice: &Notice, now: Timestamp) -> Vec<PathBuf> {
        let period = if self.fields().any(|field| field == "hour") {
            Duration::from_hours(1)
        } else if self.fields().any(|field| field == "date") {
            Duration::from_hours(24)
        } else {
            return Vec::new();
        };
        let current = self.expand(notice, now);
        let received = notice.received_at;
        let mut paths = Vec::new();
        for moment in [earlier(now, period), later(received, period), received] {
            let path = self.expand(notice, moment);
            if path != current && !paths.contains(&path) {
                paths.push(path);
            }
        }
        paths
    }

    fn fields(&self) -> impl Iterator<Item = &'static str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field(field) => Some(*field),
            Part::Literal(_) => None,
        })
    }
}

/// Bounds the name that begins at `start`, if values are in it: whoever publishes chooses them, and a
/// name that no file system takes would come back for ever. A hash of the whole keeps names apart.
fn end_name(path: &mut String, start: usize, is_filled: bool) {
    if !is_filled || path.len().saturating_sub(start) <= LONGEST_NAME {
        return;
    }
    let name = path.split_off(start);
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if extension.len() <= LONGEST_EXTENSION => (stem, extension),
        _ => (name.as_str(), ""),
    };
    let mut end = String::from("-");
    for byte in openssl::sha::sha256(name.as_bytes()).iter().take(8) {
        // Writing to a text cannot fail.
        let _ = write!(end, "{byte:02x}");
    }
    if !extension.is_empty() {
        end.push('.');
        end.push_str(extension);
    }
    let room = stem.floor_char_boundary(LONGEST_NAME - end.len());
    path.push_str(stem.get(..room).unwrap_or_default());
    path.push_str(&end);
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
        let template = Template::parse(template, "r-1").unwrap();
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
    fn a_name_of_many_long_values_is_bounded_and_still_its_own() {
        let template = "/a/{instance}/{instance}-{instance}-ä-{instance}.jsonl";
        let names = ["x", "y"].map(|last| {
            let path = expand(template, &format!("{}{last}", "i".repeat(99)));
            let names: Vec<_> = path.split('/').map(str::to_owned).collect();
            assert_eq!((names.len(), names[2].len()), (4, 100), "{path}");
            names[3].clone()
        });
        assert_ne!(names[0], names[1]);
        for name in names {
            let extension = Path::new(&name).extension().unwrap();
            assert!(name.len() <= 200 && extension == "jsonl", "{name}");
        }
        let literal = format!("/a/{}/{{instance}}", "l".repeat(210));
        assert_eq!(
            expand(&literal, "i-1"),
            literal.replace("{instance}", "i-1")
        );
    }

    #[test]
    fn the_paths_of_earlier_hours_and_dates_are_known() {
        let now = "2026-11-25T10:30:00Z".parse().unwrap();
        for (text, expected) in [
            ("/a/{instance}", vec![]),
            ("/a/{date}/x", vec!["/a/2026-11-24/x", "/a/2026-11-23/x"]),
            ("/a/{hour}", vec!["/a/09", "/a/11"]),
        ] {
            let template = Template::parse(text, "r-1").unwrap();
            let paths = template.expand_earlier(&notice("i-1"), now);
            let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(paths, expected, "{text}");
        }
    }

    #[test]
    fn the_replica_is_part_of_the_path_and_leads_nowhere_else() {
        let of = |replica: &str| {
            let template = Template::parse("/a/{replica}-{instance}.jsonl", replica).unwrap();
            assert!(template.fixed_folder() == Path::new("/a"));
            let path = template.expand(&notice("i-1"), Timestamp::UNIX_EPOCH);
            path.to_string_lossy().into_owned()
        };
        assert_eq!(of("b"), "/a/b-i-1.jsonl");
        assert_eq!(of("../b"), "/a/.._b-i-1.jsonl");
    }

    #[test]
    fn wrong_placeholders_are_named() {
        let why = |text: &str| Template::parse(text, "r-1").unwrap_err();
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
                Template::parse(text, "r-1").unwrap().fixed_folder(),
                Path::new(folder),
                "{text}"
            );
        }
    }
}
