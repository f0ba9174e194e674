use super::*;
use crate::store::Engine;

fn parse(text: &str) -> Result<(Config, Vec<Diagnostic>), Faults> {
    let variable = |name: &str| (name == "SET").then(|| "hunter2".to_owned());
    let around = Surroundings {
        folder: Path::new("/etc/runbell"),
        variable: &variable,
    };
    Config::parse(text, Path::new("runbell.toml"), &around)
}

/// Settings that are good, with `more` before the tables.
fn with(more: &str) -> String {
    format!(
        "{more}
[[topic]]
arn = 'arn:aws:sns:eu-central-1:123456789012:run-command'
[sink.audit]
type = 'file'
path = 'audit.jsonl'
[[route]]
name = 'all'
to = ['audit']
"
    )
}

fn faults(text: &str) -> Vec<String> {
    let faults = parse(text).map(|_| ()).unwrap_err();
    faults
        .iter()
        .map(|it| format!("{}:{} {}", it.line, it.column, it.message))
        .collect()
}

#[test]
fn few_keys_are_enough_and_the_rest_has_defaults() {
    let (config, warnings) = parse(&with("")).unwrap();
    assert_eq!(config.server.hook.listen.to_string(), "0.0.0.0:8443");
    assert_eq!(
        config.store.engine,
        Engine::Sqlite("/var/lib/runbell/runbell.db".into())
    );
    assert_eq!(
        config.admin.socket.unwrap(),
        Path::new("/var/lib/runbell/runbell.sock")
    );
    assert!(config.topics[0].confirm && config.topics[0].allow_version_1);
    assert!(warnings.is_empty(), "{warnings:?}");
    let sink::Kind::File(file) = &config.sinks[0].kind else {
        panic!()
    };
    assert_eq!(file.path(), "/etc/runbell/audit.jsonl");
}

/// What `text` is said to be wrong with, as a person reads it.
fn said(text: &str) -> String {
    parse(text).map(|_| ()).unwrap_err().render(false)
}

#[test]
fn everything_wrong_is_said_at_once_with_its_place() {
    let text = "\
[sever]
[server]
listen = 'everywhere'
pth = '/sns'
max_connections = 'many'
auth = [{ user = 'a:b', password = { env = 'UNSET' } }]
[store]
url = 'mysql:db'
retention = '1h'
[[topic]]
arn = 'arn:aws:sqs:eu-central-1:123456789012:q'
endpoint = 'localhost:4566'
[[topic]]
[sink.a]
type = 'fle'
[sink.b]
type = 'file'
path = '/x/{dat}'
mod = '0640'
[[route]]
name = 'r'
to = ['aa', 'b', 7]
hold = '2h'
when = { kind = 'invocaton', sttus = 'Failed' }
";
    assert_eq!(said(text), "");
}

#[test]
fn a_syntax_error_is_one_fault_with_its_place() {
    let found = faults("[server\nlisten = 1");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("1:"), "{found:?}");
}

#[test]
fn a_secret_is_nowhere_shown() {
    let wrong = with(
        "[admin]\ntoken = 'p4ssw0rd'\n[server]\nbehind_proxy = true\nauth = [{ user = 'u', password = 'p4ssw0rd' }]",
    );
    let said = parse(&wrong).map(|_| ()).unwrap_err();
    assert_eq!(said.iter().count(), 2, "{said}");
    for text in [said.render(false), format!("{said:?}")] {
        assert!(!text.contains("p4ssw0rd"), "{text}");
        assert!(text.contains("not written into the settings"), "{text}");
    }
    let right = with("[admin]\ntoken = { env = 'SET' }");
    let (config, _) = parse(&right).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(config.admin.token.is_some());
}

#[test]
fn what_cannot_work_together_is_said() {
    for (more, part) in [
        (
            "[server]\nauth = [{ user = 'u', password = { env = 'SET' } }]",
            "passwords go over the wire",
        ),
        (
            "[server]\ntls = { cert = 'none.crt', key = 'none.key' }",
            "cannot read /etc/runbell/none.crt",
        ),
        ("[admin]\nlisten = '0.0.0.0:9644'", "set `token`"),
        (
            "[admin]\nlisten = '127.0.0.1:8443'\n[server]\nlisten = '127.0.0.1:8443'",
            "give people and tools another",
        ),
        ("[store]\nretention = '1h'", "kept for 1h 30m 5s at least"),
        ("[server]\npath = 'sns'", "begins with `/`"),
        (
            "[server]\ntrusted_proxies = ['10.0.0.0/8', 'proxy']",
            "an address, or a network",
        ),
        ("[log]\nfilter = 'runbell=loud'", "cannot be read"),
        (
            "[sink.other]\ntype = 'file'\npath = '/etc/runbell/audit.jsonl'",
            "writes this file already",
        ),
        (
            "[[route]]\nname = 'all'\nto = ['audit']",
            "another route has this name",
        ),
        (
            "[[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'",
            "there already",
        ),
        (
            "[[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:x'\nendpoint = 'http://u@h'",
            "no base URL",
        ),
    ] {
        let found = faults(&with(more));
        assert_eq!(found.len(), 1, "{more}: {found:?}");
        assert!(found[0].contains(part), "{more}: {found:?}");
    }
    assert!(
        faults("")
            .iter()
            .any(|it| it.contains("no topic is allowed"))
    );
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    for (more, part) in [
        ("[server]\nkeep_alive = '5s'", "reconnect often"),
        ("[sink.idle]\ntype = 'stdout'", "no route brings anything"),
        (
            "[[route]]\nname = 'never'\nto = ['audit']\nwhen = { status = ['Failed', '!F*'] }",
            "no event could be made",
        ),
    ] {
        let (_, warnings) = parse(&with(more)).unwrap();
        assert_eq!(warnings.len(), 1, "{more}: {warnings:?}");
        assert!(warnings[0].render(false).starts_with("warning: "), "{more}");
        assert!(warnings[0].message.contains(part), "{more}: {warnings:?}");
    }
}

const EXAMPLE: &str = include_str!("../../config/runbell.example.toml");
const QUICKSTART: &str = include_str!("../../config/quickstart.toml");

/// The example with its commented defaults in force; its examples too when `all`.
fn uncommented(all: bool) -> String {
    let lines = EXAMPLE.lines().map(|line| {
        let Some(rest) = line.strip_prefix("# ") else {
            return line.to_owned();
        };
        let is_key = rest
            .split_once(" = ")
            .is_some_and(|(key, _)| !key.contains(' '));
        let is_example = rest.ends_with("# example");
        if is_key && (all || !is_example) {
            rest.to_owned()
        } else {
            line.to_owned()
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_shows_the_defaults() {
    let (shown, warnings) = parse(&uncommented(false)).unwrap_or_else(|faults| panic!("{faults}"));
    let (left_out, _) = parse(EXAMPLE).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(format!("{shown:#?}"), format!("{left_out:#?}"));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn the_example_has_every_key() {
    // Where a key is unknown serde names those that are known.
    let all = uncommented(true);
    for (section, place) in [
        ("server", "[server]"),
        ("server.tls", "tls = {"),
        ("admin", "[admin]"),
        ("store", "[store]"),
        ("log", "[log]"),
        ("topic", "[[topic]]"),
        ("sink", "type = \"file\""),
        ("route", "name = \"audit\""),
        ("when", "when = {"),
    ] {
        let strange = all.replacen(
            &format!("\n{place}"),
            &match place.ends_with('{') {
                true => format!("\n{place} zzz = 1, "),
                false => format!("\n{place}\nzzz = 1"),
            },
            1,
        );
        let value: toml::Table = toml::from_str(&strange).unwrap();
        let known = match section {
            "server" => known::<file::ServerFile>(&value["server"]),
            "server.tls" => known::<file::TlsFile>(&value["server"]["tls"]),
            "admin" => known::<file::AdminFile>(&value["admin"]),
            "store" => known::<file::StoreFile>(&value["store"]),
            "log" => known::<file::LogFile>(&value["log"]),
            "topic" => known::<file::TopicFile>(&value["topic"][0]),
            "sink" => {
                let mut table = value["sink"]["audit"].clone();
                table.as_table_mut().unwrap().remove("type");
                known::<sink::file::Settings>(&table)
            }
            "when" => known::<crate::route::WhenSettings>(&value["route"][0]["when"]),
            _ => known::<crate::route::Settings>(&value["route"][0]),
        };
        let (keys, present) = known;
        for key in keys {
            assert!(
                present.contains(&key),
                "{section}: `{key}` is not in the example"
            );
        }
    }
}

/// The keys that a section knows, and those that it has.
fn known<T: serde::de::DeserializeOwned>(section: &toml::Value) -> (Vec<String>, Vec<String>) {
    let error = section.clone().try_into::<T>().err().unwrap().to_string();
    let expected = error
        .split_once("expected")
        .unwrap_or_else(|| panic!("{error}"))
        .1;
    let keys = expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    (keys, section.as_table().unwrap().keys().cloned().collect())
}

#[test]
fn the_quickstart_is_good_but_for_its_certificate() {
    let found = faults(QUICKSTART);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("/etc/runbell/tls.crt"), "{found:?}");
}
