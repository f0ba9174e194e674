//! The settings as they are kept beside what they judged: canonical, and without any secret.
//!
//! Made of what the file says, never of what was looked up for it, so that nothing of the environment
//! and nothing of a secret's file can be in it. Of a sink only such keys are shown as no secret can
//! stand behind; a key that nobody thought of is hidden. Whoever keeps a generation keeps it for years
//! and shows it to auditors: one key too few does no harm there.

use std::collections::BTreeMap;

use openssl::sha::sha256;
use toml::Value;

use crate::store::Generation;

/// In place of a value that may be a secret, say where one lies, or have one in it.
const HIDDEN: &str = "***";

/// The keys of a sink that are shown. Texts that people write freely are not among them, nor what is
/// handed to a program or to a service: somebody will have put a token there.
const SHOWN: [&str; 22] = [
    "at_once",
    "channel",
    "chat",
    "compress",
    "connections",
    "content_type",
    "fallback",
    "fallback_after",
    "firing",
    "from",
    "keep",
    "keep_files",
    "mention",
    "method",
    "mode",
    "on",
    "path",
    "rotate_every",
    "rotate_size",
    "timeout",
    "to",
    "type",
];

/// The generation of settings that were read as `values`. Keys are sorted, and what TOML lets a
/// writer choose (blanks, comments, quotes, inline tables) is gone: equal settings have one text.
pub(super) fn of(values: &toml::Table) -> Generation {
    let text = shown_table(&[], values).to_string();
    Generation {
        hash: sha256(text.as_bytes()),
        text,
    }
}

fn shown_table(path: &[&str], table: &toml::Table) -> toml::Table {
    let sorted: BTreeMap<&String, &Value> = table.iter().collect();
    sorted
        .into_iter()
        .map(|(key, value)| (key.clone(), shown(&[path, &[key]].concat(), value)))
        .collect()
}

fn shown(path: &[&str], value: &Value) -> Value {
    if is_hidden(path, value) {
        return Value::String(HIDDEN.to_owned());
    }
    match value {
        Value::Table(table) => Value::Table(shown_table(path, table)),
        // The path of a member is that of its array: which one it is changes nothing.
        Value::Array(members) => {
            Value::Array(members.iter().map(|value| shown(path, value)).collect())
        }
        other => other.clone(),
    }
}

/// Whether a secret may stand at `path`.
fn is_hidden(path: &[&str], value: &Value) -> bool {
    match path {
        ["sink", _, key, ..] => !SHOWN.contains(key),
        // Free texts like those of a sink, a path that nobody knows, and one URL of several hosts.
        ["route", "template", ..] | ["server", "path"] | ["store", "url"] => true,
        // They decide what is believed and where it goes; they are names, patterns and base URLs.
        ["route" | "topic", ..] => false,
        [.., "password" | "token" | "secret" | "secrets" | "proxy"] => true,
        // A URL may have a user with a password, or a query with a key.
        _ => value.as_str().is_some_and(|text| text.contains("://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::secret::SECRETS;

    const EXAMPLES: [&str; 3] = [
        include_str!("../../config/runbell.example.toml"),
        include_str!("../../config/sinks.example.toml"),
        include_str!("../../config/quickstart.toml"),
    ];
    const CANARY: &str = "c4n4ry";
    const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:run-command";

    fn text(settings: &str) -> String {
        of(&toml::from_str(settings).unwrap_or_else(|error| panic!("{error}\n{settings}"))).text
    }

    #[test]
    fn no_key_of_a_secret_is_shown() {
        for key in SECRETS {
            assert!(!SHOWN.contains(&key), "{key}");
        }
        assert!(SHOWN.is_sorted(), "for those who look a key up");
    }

    #[test]
    fn the_hash_is_that_of_the_text() {
        let generation = of(&toml::from_str(EXAMPLES[1]).unwrap());
        let digest = openssl::hash::MessageDigest::sha256();
        let expected = openssl::hash::hash(digest, generation.text.as_bytes()).unwrap();
        assert_eq!(generation.hash[..], expected[..]);
    }

    #[test]
    fn settings_that_say_the_same_have_one_text() {
        let one = "[server]\nlisten = '[::1]:1'\n[[topic]]\narn = 'a'\nconfirm = false\n\
                   [sink.b]\ntype = 'file'\npath = 'p'\n[sink.a]\ntype = 'stdout'\n";
        let other = "# another hand\nsink = { a = { type = \"stdout\" }, b = { path = \"p\", \
                     type = \"file\" } }\ntopic = [{ confirm = false, arn = 'a' }]\n\
                     server.listen = '''[::1]:1'''\n";
        assert_eq!(text(one), text(other));
        assert_eq!(
            text(one),
            "[server]\nlisten = \"[::1]:1\"\n\n[sink.a]\ntype = \"stdout\"\n\n\
             [sink.b]\npath = \"p\"\ntype = \"file\"\n\n[[topic]]\narn = \"a\"\nconfirm = false\n"
        );
        assert_ne!(text(one), text(&one.replace("false", "true")));
    }

    #[test]
    fn what_decides_is_shown() {
        let settings = format!(
            "[[topic]]\narn = '{TOPIC}'\nendpoint = 'http://localhost:4566'\n\
             [[route]]\nname = 'r'\nto = ['s']\nwhen = {{ subject = 'https://*', topic = '*' }}\n\
             [sink.s]\ntype = 'slack'\nchannel = 'C1'\ntoken = {{ env = 'T' }}\n\
             [store]\nretention = '30d'\n"
        );
        let text = text(&settings);
        for shown in [
            TOPIC,
            "http://localhost:4566",
            "https://*",
            "C1",
            "30d",
            "slack",
        ] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        assert!(text.contains("token = \"***\""), "{text}");
    }

    /// A section and a line in it with a secret, or with the place of one: where it belongs, and
    /// where somebody may put it all the same.
    const PLACES: &[(&str, &str)] = &[
        ("server", "path = '/sns/CANARY'"),
        (
            "server",
            "auth = [{ user = 'u', password = { env = 'CANARY' } }]",
        ),
        ("server", "auth = [{ user = 'u', password = 'CANARY' }]"),
        ("server", "proxy = 'u:CANARY@proxy:3128'"),
        ("server", "upstream = 'http://u:CANARY@proxy:3128'"),
        ("server", "some = [['http://u:CANARY@proxy:3128']]"),
        ("admin", "token = { file = '/run/CANARY' }"),
        ("admin", "token = 'CANARY'"),
        ("store", "password = { file = 'CANARY' }"),
        ("store", "url = 'postgres://u:CANARY@db/x'"),
        ("store", "url = 'postgres://db/x?password=CANARY'"),
        (
            "sink.slack",
            "url = 'https://hooks.slack.com/services/T/B/CANARY'",
        ),
        ("sink.slack", "url = { env = 'CANARY' }"),
        ("sink.slack", "token = { file = 'CANARY', x = ['CANARY'] }"),
        ("sink.slack", "api = 'https://example.com/CANARY'"),
        (
            "sink.slack",
            "http = { proxy = 'http://u:CANARY@p:1', ca = 'CANARY' }",
        ),
        (
            "sink.slack",
            "template = { title = 'https://x/?key=CANARY' }",
        ),
        ("sink.slack", "invented = 'CANARY'"),
        (
            "sink.webhook",
            "headers = { authorization = 'Bearer CANARY' }",
        ),
        ("sink.webhook", "headers = { CANARY = { env = 'X' } }"),
        ("sink.webhook", "secrets = ['CANARY', { env = 'CANARY' }]"),
        ("sink.webhook", "payload = '{\"token\": \"CANARY\"}'"),
        ("sink.program", "command = ['/bin/x', '--token', 'CANARY']"),
        ("sink.program", "env = { TOKEN = 'CANARY' }"),
        ("sink.pagerduty", "key = 'CANARY'"),
        ("sink.ntfy", "topic = 'CANARY'"),
        (
            "sink.alertmanager",
            "url = 'http://u:CANARY@alertmanager:9093'",
        ),
        ("sink.alertmanager", "labels = { token = 'CANARY' }"),
        ("sink.oncall", "smtp = 'smtps://u:CANARY@mail'"),
        ("sink.oncall", "password = ['CANARY']"),
    ];

    /// An example with `line` in `section`, in place of whatever has its key there.
    fn example_with(example: &str, section: &str, line: &str) -> toml::Table {
        let mut whole: toml::Table = toml::from_str(example).unwrap();
        let mut table = &mut whole;
        for key in section.split('.') {
            let entry = table.entry(key.to_owned());
            let entry = entry.or_insert_with(|| Value::Table(toml::Table::new()));
            table = entry.as_table_mut().unwrap();
        }
        table.extend(toml::from_str::<toml::Table>(line).unwrap());
        whole
    }

    #[test]
    fn a_secret_stands_nowhere_in_the_text_and_changes_nothing_of_it() {
        for example in EXAMPLES {
            for (section, line) in PLACES {
                let [one, other] = [CANARY, "an0ther"].map(|secret| {
                    let line = line.replace("CANARY", secret);
                    of(&example_with(example, section, &line))
                });
                assert!(!one.text.contains(CANARY), "{line}: {}", one.text);
                assert_eq!(one, other, "{line}");
            }
        }
    }

    #[test]
    fn places_of_secrets_are_hidden_in_every_example() {
        for example in EXAMPLES {
            for place in ["env = \"", "file = \""] {
                let moved = example.replace(place, &format!("{place}{CANARY}"));
                assert_eq!(text(&moved), text(example));
            }
        }
    }

    #[test]
    fn what_every_template_says_is_hidden() {
        let [one, other] = [CANARY, "other"].map(|word| {
            text(&format!(
                "[[route]]\nname = 'r'\nto = []\ntemplate = {{ title = '{word}' }}\n"
            ))
        });
        assert_eq!(one, other);
        assert!(!one.contains(CANARY), "{one}");
    }
}
