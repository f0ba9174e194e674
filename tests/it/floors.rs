//! Holds the architecture: which module may import which, and what a pure module may not touch.
//!
//! The floors are read from the head of `src/lib.rs`, so that the map people read is the law. Every
//! path in `src` counts, in a `use` or in the middle of a line; comments and literals do not. A
//! finding names the file, the line and the cure.

use std::path::Path;
use std::{fs, io};

mod rules;
mod scan;

use rules::findings;

#[test]
fn the_source_keeps_to_its_floors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(root, Path::new("src"), &mut files).unwrap();
    let map = fs::read_to_string(root.join("src/lib.rs")).unwrap();

    let findings = findings(&floors(&map), &files);

    assert!(
        findings.is_empty(),
        "the floors do not hold:\n{}",
        findings.join("\n")
    );
}

#[test]
fn the_map_in_lib_names_every_module_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    let mut declared: Vec<String> = map
        .lines()
        .filter_map(|line| {
            line.trim_start_matches("pub ")
                .strip_prefix("mod ")?
                .strip_suffix(';')
        })
        .chain(["main"])
        .map(str::to_owned)
        .collect();
    declared.sort();

    let mut named: Vec<String> = floors(&map).into_iter().flatten().collect();
    named.sort();

    assert_eq!(
        named, declared,
        "left: the floors in the head of src/lib.rs; right: its modules"
    );
}

const MAP: &str = "\
//! A file imports only from lower floors; floors from the ground up: [`clock`], [`wake`] ·
//! [`event`], [`retry`], [`delivery`], [`sns`] · [`store`], [`order`], [`route`], [`render`] · [`sink`] · [`config`] ·
//! [`cli`]. And [`this`] is no floor.
";

#[test]
fn the_floors_are_read_from_the_map() {
    let floors = floors(MAP);

    let sizes: Vec<usize> = floors.iter().map(Vec::len).collect();
    assert_eq!(sizes, [2, 4, 4, 1, 1, 1, 1]);
    assert_eq!(floors.last().unwrap(), &["main"]);
}

/// A file, its text, and how the finding begins.
const VIOLATIONS: [(&str, &str, &str); 27] = [
    // A floor above, in every way of writing it.
    (
        "src/order.rs",
        "use crate::sink::Sink;",
        "src/order.rs:1: order imports sink",
    ),
    (
        "src/order.rs",
        "\n\nfn f(s: &crate::sink::Sink) {}",
        "src/order.rs:3: order imports sink",
    ),
    (
        "src/order.rs",
        "use crate::{clock::Clock,\n sink::{self, Sink}};",
        "src/order.rs:2: order imports sink",
    ),
    (
        "src/order.rs",
        "use super::sink;",
        "src/order.rs:1: order imports sink",
    ),
    (
        "src/store/sqlite/read.rs",
        "use super::super::super::cli::X;",
        "src/store/sqlite/read.rs:1: store imports cli",
    ),
    (
        "src/store/mod.rs",
        "mod tests { use super::super::cli::X; }",
        "src/store/mod.rs:1: store imports cli",
    ),
    (
        "src/order.rs",
        "macro_rules! m { () => { $crate::cli::run() } }",
        "src/order.rs:1: order imports cli",
    ),
    (
        "src/order.rs",
        "let c = '\"'; crate::cli::run(); // \"",
        "src/order.rs:1: order imports cli",
    ),
    (
        "src/config/mod.rs",
        "use crate::cli;",
        "src/config/mod.rs:1: config imports cli",
    ),
    (
        "src/order.rs",
        "mod a {} use super::sink;",
        "src/order.rs:1: order imports sink",
    ),
    (
        "src/order.rs",
        "fn f<'a>() { crate::cli::f(); 'x' }",
        "src/order.rs:1: order imports cli",
    ),
    // A way round the map.
    (
        "src/order.rs",
        "use crate::Sink;",
        "src/order.rs:1: order imports crate::Sink, which",
    ),
    (
        "src/common.rs",
        "",
        "src/common.rs:1: common stands on no floor",
    ),
    // Strangers.
    (
        "src/sns/verify.rs",
        "use crate::event::Event;",
        "src/sns/verify.rs:1: sns knows event",
    ),
    (
        "src/event.rs",
        "use crate::sns::Verified;",
        "src/event.rs:1: event knows sns",
    ),
    (
        "src/sink/file.rs",
        "use crate::store::Lane;",
        "src/sink/file.rs:1: sink knows store",
    ),
    (
        "src/store/mod.rs",
        "use crate::sink::Sink;",
        "src/store/mod.rs:1: store knows sink",
    ),
    // Purity.
    (
        "src/order.rs",
        "pub async fn plan() {}",
        "src/order.rs:1: order is pure but names async",
    ),
    (
        "src/event.rs",
        "use tokio::sync::mpsc;",
        "src/event.rs:1: event is pure but names tokio",
    ),
    (
        "src/retry.rs",
        "use std::{net::IpAddr, time::Duration};",
        "src/retry.rs:1: retry is pure but names std::net",
    ),
    (
        "src/delivery.rs",
        "\nlet x = std::fs::read(p);",
        "src/delivery.rs:2: delivery is pure but names std::fs",
    ),
    (
        "src/route/when.rs",
        "use tokio::time;",
        "src/route/when.rs:1: route is pure but names tokio",
    ),
    (
        "src/render.rs",
        "async {}",
        "src/render.rs:1: render is pure but names async",
    ),
    // Environment.
    (
        "src/sink.rs",
        "env::vars();",
        "src/sink.rs:1: sink reads the environment",
    ),
    (
        "src/wake.rs",
        "use std::env::var_os;",
        "src/wake.rs:1: wake reads the environment",
    ),
    (
        "src/cli/serve.rs",
        "let x = std::env::var(\"X\");",
        "src/cli/serve.rs:1: cli reads the environment",
    ),
    (
        "src/main.rs",
        "use std::env::{self, vars_os};",
        "src/main.rs:1: main reads the environment",
    ),
];

#[test]
fn each_violation_is_found_where_it_stands() {
    for (file, text, expected) in VIOLATIONS {
        let found = findings(&floors(MAP), &[(file.to_owned(), text.to_owned())]);
        assert!(
            found.iter().any(|finding| finding.starts_with(expected)),
            "{text:?} in {file}: {found:?}"
        );
    }
}

#[test]
fn what_is_allowed_passes() {
    for (file, text) in [
        (
            "src/order.rs",
            "use crate::{clock, delivery::{Marks, SortKey}};\nuse crate::order::Plan;",
        ),
        (
            "src/order.rs",
            "//! see [`crate::cli`]\n/* use crate::cli; /* nested */ crate::cli */",
        ),
        (
            "src/order.rs",
            "let a = \"crate::cli \\\" crate::cli\"; let b = r#\"\" crate::cli \"#;",
        ),
        (
            "src/order.rs",
            "mod tests { use super::*; fn f<'a>() { super::sink(); let _ = 'x'; } }",
        ),
        (
            "src/store/sqlite.rs",
            "use super::Store; pub(crate) fn f() { super::sink() }",
        ),
        (
            "src/retry.rs",
            "let async_ish = 1; use std::time::Duration;",
        ),
        (
            "src/wake.rs",
            "use crate::clock::Clock; async fn f() { tokio::task::yield_now().await }",
        ),
        (
            "src/cli/mod.rs",
            "use crate::store::Store; use crate::config::Config; std::env::args_os();",
        ),
        ("src/config/mod.rs", "let x = std::env::var(\"X\");"),
        ("src/main.rs", "use runbell::cli;"),
        ("src/lib.rs", "pub mod cli;"),
    ] {
        let found = findings(&floors(MAP), &[(file.to_owned(), text.to_owned())]);
        assert!(found.is_empty(), "{text:?} in {file}: {found:?}");
    }
}

#[test]
fn a_circle_on_one_floor_is_found_and_a_line_is_not() {
    let file = |name: &str, text: &str| (format!("src/{name}.rs"), text.to_owned());
    let line = [
        file("event", "use crate::retry::X;"),
        file("retry", "\nuse crate::delivery::X;"),
    ];
    assert_eq!(findings(&floors(MAP), &line), Vec::<String>::new());

    let closing = file("delivery", "\n\nuse crate::event::X;");
    let found = findings(&floors(MAP), &[line.as_slice(), &[closing]].concat());

    let places: Vec<&str> = found
        .iter()
        .filter_map(|finding| finding.split(" imports").next())
        .collect();
    assert_eq!(
        places,
        [
            "src/event.rs:1: event",
            "src/retry.rs:2: retry",
            "src/delivery.rs:3: delivery"
        ]
    );
}

/// The floors as the head of `src/lib.rs` writes them, the ground first, and `main` above them all.
fn floors(map: &str) -> Vec<Vec<String>> {
    let head: String = map
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .collect();
    let sentence = head
        .split_once("floors from the ground up:")
        .and_then(|(_, rest)| rest.split_once('.'))
        .map_or("", |(sentence, _)| sentence);
    sentence
        .split('·')
        .map(|floor| {
            floor
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        })
        .chain([vec!["main".to_owned()]])
        .collect()
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push((
                path.display().to_string(),
                fs::read_to_string(entry.path())?,
            ));
        }
    }
    files.sort();
    Ok(())
}

#[test]
fn rule_of_keeping_that_reaches_for_an_engine_or_a_clock_is_found() {
    let map = "//! floors from the ground up: [`clock`] · [`store`].";
    for (text, finds) in [
        ("use crate::clock::later;", 0),
        ("use crate::store::rules::columns::nanos;", 0),
        ("use crate::clock::Clock;", 1),
        ("use crate::store::sqlite::X;", 1),
        ("use crate::store::register::Take;", 1),
        ("use tokio::sync::Mutex;", 1),
    ] {
        let file = ("src/store/rules/lease.rs".to_owned(), text.to_owned());
        let found = findings(&floors(map), &[file]);
        assert_eq!(found.len(), finds, "{text}: {found:?}");
    }
}
