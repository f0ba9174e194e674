//! The rules themselves: what may import what, and what a pure module may not touch.
//!
//! The floors test hands in the floors and the files, and gets back what is wrong. A finding is one
//! line for a person: file, line, what it does, and the cure after the colon.

use std::collections::BTreeSet;

use super::scan;

/// Neighbours that must stay strangers although their floors would let one see the other.
const STRANGERS: [(&str, &str, &str); 4] = [
    (
        "sns",
        "event",
        "only receive knows both: pass plain values through it",
    ),
    (
        "event",
        "sns",
        "only receive knows both: pass plain values through it",
    ),
    (
        "sink",
        "store",
        "only deliver and app know both: hand over what delivery, render or retry name",
    ),
    (
        "store",
        "sink",
        "only deliver and app know both: hand over what delivery, render or retry name",
    ),
];

/// Modules that decide and do nothing else.
const PURE: [&str; 6] = ["event", "delivery", "order", "route", "render", "retry"];

/// What a pure module may not name.
const IMPURE: [&[&str]; 4] = [&["async"], &["tokio"], &["std", "fs"], &["std", "net"]];

/// The readers of the environment, which only `config` calls.
const ENVIRONMENT: [&[&str]; 4] = [
    &["env", "var"],
    &["env", "var_os"],
    &["env", "vars"],
    &["env", "vars_os"],
];

/// The rules of keeping, which are pure within a module that is not.
const RULES: &str = "src/store/rules/";

/// What a rule of keeping may not name besides what is impure.
const OF_ENGINES: [&str; 4] = ["sqlite", "postgres", "copy", "register"];

const NAME_IT: &str = "name the module in the head of src/lib.rs";
const MOVE_DOWN: &str = "move the word that they share to a lower floor";
const HAND_DOWN: &str = "say here what is needed, and let a caller above hand it down";
const STAY_PURE: &str = "take the value as an argument, or act in receive, deliver or app";

struct Import {
    place: String,
    from: String,
    to: String,
}

/// Everything in `files` that breaks a rule, each as one line for a person.
pub fn findings(floors: &[Vec<String>], files: &[(String, String)]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut level = Vec::new();
    for (file, text) in files {
        let home = home(file);
        let Some(module) = home.first() else { continue };
        let Some(floor) = floor_of(floors, module) else {
            findings.push(format!("{file}:1: {module} stands on no floor: {NAME_IT}"));
            continue;
        };
        for (line, path) in scan::paths(text, &home) {
            let place = format!("{file}:{line}: {module}");
            findings.extend(touches(module, &path).map(|what| format!("{place} {what}")));
            if file.starts_with(RULES) {
                findings.extend(rule_touches(&path).map(|what| format!("{place} {what}")));
            }
            let [root, other, ..] = path.as_slice() else {
                continue;
            };
            if root != "crate" || other == module {
                continue;
            }
            match imports(floors, module, other) {
                Err(what) => findings.push(format!("{place} {what}")),
                Ok(below) if below < floor => {}
                Ok(_) => level.push(Import {
                    place,
                    from: module.clone(),
                    to: other.clone(),
                }),
            }
        }
    }
    findings.dedup();
    findings.extend(circles(&level).map(|Import { place, to, .. }| {
        format!("{place} imports {to}, which leads back to it: {MOVE_DOWN}")
    }));
    findings
}

fn floor_of(floors: &[Vec<String>], module: &str) -> Option<usize> {
    floors
        .iter()
        .position(|floor| floor.iter().any(|name| name == module))
}

/// What is wrong with `module` naming `path`, whatever the floors say.
fn touches(module: &str, path: &[String]) -> Option<String> {
    let begins = |what: &&&[&str]| path.get(..what.len()).is_some_and(|start| start == **what);
    let within = |what: &&[&str]| path.windows(what.len()).any(|part| part == *what);
    if PURE.contains(&module)
        && let Some(what) = IMPURE.iter().find(begins)
    {
        return Some(format!(
            "is pure but names {}: {STAY_PURE}",
            what.join("::")
        ));
    }
    (module != "config" && ENVIRONMENT.iter().any(within))
        .then(|| "reads the environment: only config may; take a setting".to_owned())
}

/// What is wrong with a rule of keeping that names `path`.
fn rule_touches(path: &[String]) -> Option<String> {
    let is_impure = IMPURE
        .iter()
        .any(|what| path.get(..what.len()).is_some_and(|start| start == *what));
    let is_clock = path.iter().any(|part| part == "Clock");
    let engine = OF_ENGINES.iter().find(|name| {
        path.first().is_some_and(|root| root == "crate")
            && path.get(2).is_some_and(|part| part == *name)
    });
    if is_impure || is_clock {
        return Some(format!(
            "is pure but names {}: {STAY_PURE}",
            path.join("::")
        ));
    }
    engine.map(|name| format!("is a rule but names {name}: {MOVE_DOWN}"))
}

/// The floor of `other`, when `module` may import from there.
fn imports(floors: &[Vec<String>], module: &str, other: &str) -> Result<usize, String> {
    if let Some((.., cure)) = STRANGERS
        .iter()
        .find(|pair| (pair.0, pair.1) == (module, other))
    {
        return Err(format!("knows {other}: {cure}"));
    }
    match floor_of(floors, other) {
        None => Err(format!(
            "imports crate::{other}, which stands on no floor: import from a module, or {NAME_IT}"
        )),
        above if above > floor_of(floors, module) => {
            Err(format!("imports {other}, which stands higher: {HAND_DOWN}"))
        }
        Some(floor) => Ok(floor),
    }
}

/// Those of the imports along one floor that lead back to where they start.
fn circles(level: &[Import]) -> impl Iterator<Item = &Import> {
    let mut reached: BTreeSet<(&str, &str)> = level
        .iter()
        .map(|import| (import.from.as_str(), import.to.as_str()))
        .collect();
    loop {
        let before = reached.len();
        let further: Vec<(&str, &str)> = reached
            .iter()
            .flat_map(|(start, end)| {
                let onward = level.iter().filter(move |import| import.from == *end);
                onward.map(move |import| (*start, import.to.as_str()))
            })
            .collect();
        reached.extend(further);
        if reached.len() == before {
            break;
        }
    }
    level
        .iter()
        .filter(move |import| reached.contains(&(&import.to, &import.from)))
}

/// The module that `file` is, from the root of the crate; none for the root itself.
fn home(file: &str) -> Vec<String> {
    let path = file
        .trim_start_matches("src/")
        .trim_end_matches(".rs")
        .trim_end_matches("/mod");
    path.split('/')
        .filter(|part| *part != "lib")
        .map(str::to_owned)
        .collect()
}
