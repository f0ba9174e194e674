//! Secrets: never in the settings, but where these say that they lie.
//!
//! `check` asks for them; what is written in place of a secret by mistake is shown to nobody.

use std::os::unix::fs::PermissionsExt as _;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer};
use toml::Value;

use super::Surroundings;
use crate::secret::NOT_HERE;

/// The keys of sinks behind which secrets are; anywhere else a table is what it says.
pub(super) const SECRETS: [&str; 7] = [
    "url", "key", "token", "topic", "password", "secrets", "headers",
];

/// Where a secret lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Secret {
    /// In a variable of the environment.
    Env(String),
    /// In a file.
    File(String),
}

impl Secret {
    /// The secret itself, and a warning if others can read it as well.
    pub(super) fn reveal(
        &self,
        around: &Surroundings<'_>,
    ) -> Result<(SecretString, Option<String>), String> {
        let (secret, warning) = match self {
            Self::Env(name) => {
                let secret = (around.variable)(name)
                    .ok_or_else(|| format!("the variable `{name}` is not set"))?;
                (secret, None)
            }
            Self::File(path) => {
                let path = around.folder.join(path);
                let shown = path.display();
                let secret = std::fs::read_to_string(&path)
                    .map_err(|error| format!("{shown} cannot be read: {error}"))?;
                let is_open = std::fs::metadata(&path)
                    .is_ok_and(|found| found.permissions().mode() & 0o004 != 0);
                let warning =
                    is_open.then(|| format!("everybody on this machine can read {shown}"));
                (secret, warning)
            }
        };
        let secret = secret.strip_suffix('\n').unwrap_or(&secret);
        let secret = secret.strip_suffix('\r').unwrap_or(secret);
        if secret.is_empty() {
            return Err("the secret is empty".to_owned());
        }
        Ok((SecretString::from(secret), warning))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Serde's own errors would repeat what was written.
        let written = Value::deserialize(deserializer)?;
        let mut entries = written.as_table().into_iter().flatten();
        match (entries.next(), entries.next()) {
            (Some((key, Value::String(name))), None) if key == "env" => Ok(Self::Env(name.clone())),
            (Some((key, Value::String(path))), None) if key == "file" => {
                Ok(Self::File(path.clone()))
            }
            _ => Err(serde::de::Error::custom(NOT_HERE)),
        }
    }
}

/// A path that is longer than this may be one that nobody can guess.
const LONGEST_PATH: usize = 16;

/// Whether a line of settings may show a secret that should not be there: a reader of what we say
/// about that line may be somebody else than its writer.
pub(super) fn may_show(line: &str) -> bool {
    let lower = line.to_lowercase();
    // A word that was mistyped is told by its value: only places look like `{ env` or `{ file`.
    let is_said = ["pass", "pasw", "pwd", "token", "tokn", "secret"]
        .iter()
        .flat_map(|word| lower.match_indices(word))
        .filter_map(|(at, _)| lower.get(at..)?.split_once('='))
        .any(|(_, value)| {
            let value = value.trim_start();
            let inner = value.strip_prefix('{').unwrap_or_default().trim_start();
            let entry = inner.split('}').next().unwrap_or_default();
            let is_place = entry.starts_with("env") || entry.starts_with("file");
            !is_place || entry.contains(',')
        });
    let is_in_url = lower
        .split("://")
        .skip(1)
        .filter_map(|rest| rest.split(['"', '\'']).next())
        .any(|rest| {
            // A webhook's URL is a secret from its path on.
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            authority.contains('@') || path.len() > LONGEST_PATH || path.contains(['?', '='])
        });
    is_said || is_in_url
}

#[cfg(test)]
mod tests {
    use std::fs;

    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_secret_comes_from_where_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write("good", "p w\r\n", 0o640);
        write("lines", "p\n\n", 0o400);
        write("open", "pw", 0o644);
        write("empty", "\n", 0o600);
        let variable = |name: &str| match name {
            "SET" => Some("pw\n".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let around = Surroundings {
            folder: folder.path(),
            variable: &variable,
        };
        let file = |name: &str| Secret::File(name.to_owned());
        let env = |name: &str| Secret::Env(name.to_owned());
        for (secret, expected) in [
            (file("good"), Ok(("p w", false))),
            (file("lines"), Ok(("p\n", false))),
            (file("open"), Ok(("pw", true))),
            (file("empty"), Err("is empty")),
            (file("none"), Err("none cannot be read: No such file")),
            (env("SET"), Ok(("pw", false))),
            (env("EMPTY"), Err("is empty")),
            (env("UNSET"), Err("the variable `UNSET` is not set")),
        ] {
            match (secret.reveal(&around), expected) {
                (Ok((text, warning)), Ok((expected, warns))) => {
                    assert_eq!(text.expose_secret(), expected, "{secret:?}");
                    assert_eq!(warning.is_some(), warns, "{secret:?}: {warning:?}");
                }
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
                (found, _) => panic!("{secret:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_line_that_may_show_a_secret_is_known() {
        for (line, may) in [
            ("token = 'abc'", true),
            ("\"token\" = 'abc'", true),
            ("token = abc'", true),
            ("pasword = 'abc'", true),
            ("auth = [{ usr = 'u', password = \"abc\" }]", true),
            ("password = { value = 'abc' }", true),
            ("password = { env = 'A', value = 'abc' }", true),
            ("password = { env = 'A' }, x = { password = 'abc' }", true),
            ("url = 'postgres://u:abc@db/x'", true),
            ("ur = 'https://hooks.example.com/services/T0/B0/abc'", true),
            ("ur = 'https://example.com/a?key=abc'", true),
            ("token = { file = '/a' }", false),
            ("auth = [{ user = 'u', password = {env = 'A' } }]", false),
            ("endpoint = 'http://localhost:4566'", false),
            ("path = '/a@b' # see https://example.com", false),
            ("listen = '0.0.0.0:8443'", false),
        ] {
            assert_eq!(may_show(line), may, "{line}");
        }
    }
}
