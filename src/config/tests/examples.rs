//! The settings that ship: good, complete, and true about the defaults.

use super::*;

const EXAMPLE: &str = include_str!("../../../config/runbell.example.toml");
const SINKS: &str = include_str!("../../../config/sinks.example.toml");
const QUICKSTART: &str = include_str!("../../../config/quickstart.toml");

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
fn the_templates_of_the_documentation_work() {
    let page = include_str!("../../../docs/templates.md");
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (example, table) = rest.split_once("```").unwrap();
    let text = format!(
        "{example}\n[server]\nlisten = '127.0.0.1:0'\n[store]\nurl = 'sqlite:x.db'\n\
         [[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'\n\
         [[route]]\nname = 'rest'\nto = ['hook']\n\
         [sink.ops]\ntype = 'slack'\nurl = {{ env = 'URL' }}\n\
         [sink.oncall]\ntype = 'teams'\nurl = {{ env = 'URL' }}\n"
    );
    let around = Surroundings {
        folder: Path::new("/etc/runbell"),
        variable: &|_| Some("https://example.com/x".to_owned()),
    };
    let parsed = Config::parse(&text, Path::new("runbell.toml"), &around);
    parsed.unwrap_or_else(|faults| panic!("{faults}"));
    let words: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(words, crate::render::WORDS);
}

#[test]
fn the_example_shows_the_defaults() {
    let (shown, warnings) = parse(&uncommented(false)).unwrap_or_else(|faults| panic!("{faults}"));
    let (mut left_out, _) = parse(EXAMPLE).unwrap_or_else(|faults| panic!("{faults}"));
    // It tells what was written.
    left_out.generation = shown.generation.clone();
    assert_eq!(format!("{shown:#?}"), format!("{left_out:#?}"));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn the_example_of_sinks_is_good_and_has_every_kind() {
    let variable = |name: &str| {
        let url = || "https://example.com/hook".to_owned();
        let secret = || "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
        Some(match name {
            name if name.ends_with("_URL") => url(),
            "WEBHOOK_SECRET" => secret(),
            _ => "123:abc".to_owned(),
        })
    };
    let around = Surroundings {
        folder: Path::new("/etc/runbell"),
        variable: &variable,
    };
    let parsed = Config::parse(SINKS, Path::new("sinks.example.toml"), &around);
    let (config, warnings) = parsed.unwrap_or_else(|faults| panic!("{faults}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.sinks.len(), 12);
}

#[test]
fn the_generation_of_the_example_does_not_depend_on_its_secrets() {
    let generation = |canary: &str| {
        let variable = |name: &str| {
            Some(match name {
                name if name.ends_with("_URL") => format!("https://example.com/{canary}"),
                "WEBHOOK_SECRET" => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
                _ => format!("123:{canary}"),
            })
        };
        let around = Surroundings {
            folder: Path::new("/etc/runbell"),
            variable: &variable,
        };
        let parsed = Config::parse(SINKS, Path::new("sinks.example.toml"), &around);
        let (config, _) = parsed.unwrap_or_else(|faults| panic!("{faults}"));
        config.generation
    };
    let one = generation("c4n4ry");
    assert!(!one.text.contains("c4n4ry"), "{}", one.text);
    assert!(one.text.contains("run-command"), "{}", one.text);
    assert_eq!(one, generation("an0ther"));
}

#[test]
fn the_example_has_every_key() {
    // Where a key is unknown serde names those that are known.
    let all = uncommented(true);
    for (section, place) in [
        ("server", "[server]"),
        ("server.tls", "tls = {"),
        ("server.auth", "auth = [{"),
        ("admin", "[admin]"),
        ("store", "[store]"),
        ("log", "[log]"),
        ("topic", "[[topic]]"),
        ("sink", "type = \"file\""),
        ("route", "name = \"failures\""),
        ("when", "when = {"),
    ] {
        let strange = all.replacen(
            &format!("\n{place}"),
            &if place.ends_with('{') {
                format!("\n{place} zzz = 1, ")
            } else {
                format!("\n{place}\nzzz = 1")
            },
            1,
        );
        let value: toml::Table = toml::from_str(&strange).unwrap();
        let known = match section {
            "server" => known::<file::ServerFile>(&value["server"]),
            "server.tls" => known::<file::TlsFile>(&value["server"]["tls"]),
            "server.auth" => known::<file::CredentialsFile>(&value["server"]["auth"][0]),
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
