//! Settings that are good, and each rule that makes them bad.

use super::*;
use crate::store::Engine;

mod broken;
mod examples;

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

#[test]
fn a_syntax_error_is_one_fault_with_its_place() {
    for (text, place) in [
        ("[server\nlisten = 1", "1:8 "),
        ("[server]\n\npath = '/sns", "3:13 "),
        ("[server]\npath = '/a'\npath = '/b'", "3:1 "),
    ] {
        let found = faults(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].starts_with(place), "{text}: {found:?}");
    }
}

#[test]
fn a_secret_is_nowhere_shown() {
    for wrong in [
        "[admin]\ntoken = 'p4ssw0rd'",
        "[admin]\ntoken = p4ssw0rd",
        "[admin]\ntoken = ['p4ssw0rd']",
        "[admin]\ntoken = { text = 'p4ssw0rd' }",
        "[admin]\ntoken = { env = 'SET', text = 'p4ssw0rd' }",
        "[admin]\ntokn = 'p4ssw0rd'",
        "[server]\nbehind_proxy = true\nauth = [{ user = 'u', password = 'p4ssw0rd' }]",
        "[server]\nbehind_proxy = true\nauth = [{ name = 'u', password = 'p4ssw0rd' }]",
        "[store]\nurl = 'postgres://runbell:p4ssw0rd@db/runbell'",
    ] {
        let said = parse(&with(wrong)).map(|_| ()).unwrap_err();
        let debug = format!("{said:?}");
        let json = serde_json::to_string(&said.iter().collect::<Vec<_>>()).unwrap();
        for text in [said.render(false), said.render(true), debug, json] {
            assert!(!text.contains("p4ssw0rd"), "{text}");
        }
    }
    let right = with("[admin]\ntoken = { env = 'SET' }");
    let (config, _) = parse(&right).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(config.admin.token.is_some());
}

/// What is written before settings that are good, and what is said about it.
const RULES: &[(&str, &str)] = &[
    (
        "[server]\nauth = [{ user = 'u', password = { env = 'SET' } }]",
        "2:8 without TLS passwords go over the wire",
    ),
    (
        "[server]\ntls = { cert = 'none.crt', key = 'none.key' }",
        "2:16 cannot read /etc/runbell/none.crt",
    ),
    // What is wrong with `tls` does not make `auth` wrong as well; nor a wrong token the address.
    (
        "[server]\ntls = { key = 'k' }\nauth = [{ user = 'u', password = { env = 'SET' } }]",
        "2:7 missing key `cert`",
    ),
    (
        "[admin]\nlisten = '0.0.0.0:9644'\ntoken = { env = 'UNSET' }",
        "3:9 the variable `UNSET` is not set",
    ),
    (
        "[server]\nbehind_proxy = true\nauth = [{ user = 'u', password = 1 }]",
        "3:34 a secret is not written into the settings",
    ),
    ("[server]\npath = 'sns'", "2:8 the path begins with one `/`"),
    (
        "[server]\npath = '/sns?a=b'",
        "2:8 the path begins with one `/`",
    ),
    (
        "[server]\ntrusted_proxies = ['10.0.0.0/8', '::1', 'proxy']",
        "2:41 write an address, or a network",
    ),
    ("[server]\nmax_connections = 0", "2:19 allow at least one"),
    ("[server]\nbody_timeout = '0s'", "2:16 nothing can be done"),
    (
        "[server]\ngap_hold = '2h'",
        "2:12 a hold is at most an hour",
    ),
    (
        "[admin]\nlisten = '0.0.0.0:9644'",
        "2:10 everybody who can reach",
    ),
    (
        "[admin]\nlisten = '127.0.0.1:8443'",
        "2:10 this is the address for SNS",
    ),
    (
        "[store]\nretention = '1h'",
        "2:13 events have to be kept for 1h 30m 5s",
    ),
    (
        "[store]\nurl = 'postgres://db/x?sslmode=full'",
        "2:7 `sslmode=full` is not known: write disable, prefer",
    ),
    (
        "[store]\nurl = 'postgres://db/x?sslcert=a'",
        "2:7 `sslcert` and `sslkey` go together",
    ),
    (
        "[store]\nurl = 'postgres://db/x?target=any'",
        "2:7 it cannot be read: unknown option `target`; it looks like `postgres://",
    ),
    (
        "[store]\nurl = 'postgres:///x'",
        "2:7 it names no host; it looks like",
    ),
    (
        "[store]\nurl = 'postgres://db/x?sslmode=verify-full'\npassword = { env = 'UNSET' }",
        "3:12 the variable `UNSET` is not set",
    ),
    (
        "[store]\nurl = 'postgres://db/x?sslmode=verify-full'\nconnections = 1",
        "3:15 some are needed: write a number from 2",
    ),
    (
        "[store]\npassword = { file = 'x' }",
        "2:12 a file has no password",
    ),
    ("[store]\nurl = 'sqlite::memory:'", "2:7 this is no path"),
    ("[store]\nurl = 'sqlite:'", "2:7 this is no path"),
    (
        "[log]\nfilter = 'runbell=loud'",
        "2:10 this filter cannot be read",
    ),
    (
        "[log]\nformat = 'txt'",
        "2:10 `txt` means nothing here: did you mean `text`?",
    ),
    (
        "[sink.other]\ntype = 'file'\npath = '/etc/runbell/audit.jsonl'",
        "3:8 sink `audit` writes this file already",
    ),
    (
        "[sink.other]\npath = '/a'",
        "1:7 say what it is: `type` is one of",
    ),
    (
        "[sink.other]\ntype = 1",
        "2:8 say what it is: `type` is one of",
    ),
    ("[sink]\nother = 1", "2:9 write it as `[sink.other]`"),
    (
        "[[route]]\nname = 'all'\nto = ['audit']",
        "10:8 another route has this name",
    ),
    (
        "[[route]]\nname = ''\nto = ['audit']",
        "2:8 a route needs a name",
    ),
    (
        "[[route]]\nname = 'x'\nto = ['Audit']",
        "3:7 there is no sink `Audit`: did you mean `audit`?",
    ),
    (
        "[[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'",
        "4:7 this topic is there already",
    ),
    (
        "[[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:x'\nendpoint = 'http://u@h'",
        "3:12 this is no base URL",
    ),
    ("topic = []", "0:0 no topic is allowed"),
    ("topic = 1", "1:9 write each of them as `[[topic]]`"),
];

#[test]
fn each_rule_says_what_it_wants_and_where() {
    for (more, expected) in RULES.iter().copied() {
        let text = match more {
            "topic = 1" | "topic = []" => with(more).replace("[[topic]]\narn", "[log]\n#"),
            _ => with(more),
        };
        let found = faults(&text);
        assert_eq!(found.len(), 1, "{more}: {found:?}");
        assert!(found[0].starts_with(expected), "{more}: {found:?}");
    }
}

#[test]
fn what_is_missing_is_about_the_whole_file() {
    let said = parse("").map(|_| ()).unwrap_err();
    let expected = "\
error: no topic is allowed: add a `[[topic]]` with the `arn` of yours
--> runbell.toml

error: no route brings anything anywhere: add a `[[route]]` with a `name` and `to`
--> runbell.toml

";
    assert_eq!(said.render(false), expected);
    assert_eq!(said.iter().map(|it| it.line).max(), Some(0));
}

#[test]
fn a_file_that_is_not_there_is_a_fault() {
    let said = Config::load(Path::new("/none/runbell.toml"))
        .map(|_| ())
        .unwrap_err();
    assert!(
        said.to_string()
            .starts_with("error: the settings cannot be read: No such file")
    );
}

#[test]
fn paths_start_from_the_folder_of_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runbell.toml");
    std::fs::write(folder.path().join("token"), "t0k").unwrap();
    std::fs::write(
        &path,
        with("[admin]\ntoken = { file = 'token' }\n[store]\nurl = 'sqlite:a.db'"),
    )
    .unwrap();
    let (config, _) = Config::load(&path).unwrap();
    let Engine::Sqlite(store) = config.store.engine else {
        panic!("{:?}", config.store.engine);
    };
    assert_eq!(store, folder.path().join("a.db"));
    assert!(config.admin.token.is_some());
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
        (
            "[[route]]\nname = 'far'\nto = ['audit']\nwhen = { region = 'us-*' }",
            "nothing from any topic",
        ),
    ] {
        let (_, warnings) = parse(&with(more)).unwrap();
        assert_eq!(warnings.len(), 1, "{more}: {warnings:?}");
        assert!(warnings[0].render(false).starts_with("warning: "), "{more}");
        assert!(warnings[0].message.contains(part), "{more}: {warnings:?}");
    }
    let near =
        "[[route]]\nname = 'near'\nto = ['audit']\nwhen = { topic = 'run-*', region = 'eu-*' }";
    let (_, warnings) = parse(&with(near)).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_fallback_is_another_sink_that_can_stand_in() {
    let said = |sinks: &str| {
        let text = format!(
            "[server]\nlisten = '127.0.0.1:0'\n[store]\nurl = 'sqlite:x.db'\n\
             [[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'\n\
             [[route]]\nname = 'r'\nto = ['a']\ndigest = {{}}\n{sinks}"
        );
        parse(&text).map(drop).map_err(|faults| faults.to_string())
    };
    let sink = |name: &str, more: &str| {
        format!(
            "[sink.{name}]\ntype = 'email'\nsmtp = 'smtps://mail.example.com'\n\
             from = 'a@example.com'\nto = ['b@example.com']\n{more}\n"
        )
    };
    let (a, b) = (sink("a", "fallback = 'b'"), sink("b", ""));
    assert_eq!(said(&format!("{a}{b}")), Ok(()));
    let back = sink("b", "fallback = 'a'\nfallback_after = '1m'");
    for (sinks, why) in [
        (
            sink("a", "fallback = 'bb'") + &b,
            "there is no sink `bb`: did you mean `b`?",
        ),
        (
            sink("a", "fallback = 'a'"),
            "this leads back to where it began",
        ),
        (format!("{a}{back}"), "this leads back to where it began"),
        (
            sink("a", "fallback_after = '1m'"),
            "this needs a `fallback`",
        ),
        (sink("a", "fallback = 1") + &b, "invalid type"),
        (
            format!("{a}[sink.b]\ntype = 'file'\npath = 'x'\n"),
            "sink `b` takes events one by one",
        ),
    ] {
        let said = said(&sinks).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    }
}
