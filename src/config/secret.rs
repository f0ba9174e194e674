//! Secrets: never in the file, but where it says that they are.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;

use secrecy::SecretString;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::Surroundings;

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
                    .is_ok_and(|found| found.permissions().mode() & 0o007 != 0);
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
        struct Place;

        const FORM: &str = "a secret is not written into the settings: \
            write { env = \"NAME\" } or { file = \"PATH\" }";

        impl<'de> Visitor<'de> for Place {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{ env = \"NAME\" } or { file = \"PATH\" }")
            }

            // The usual error would repeat what was written.
            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Secret, E> {
                Err(E::custom(FORM))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
                use serde::de::Error as _;
                let Some((key, value)) = map.next_entry::<String, String>()? else {
                    return Err(A::Error::custom(FORM));
                };
                if map.next_key::<String>()?.is_some() {
                    return Err(A::Error::custom(FORM));
                }
                match key.as_str() {
                    "env" => Ok(Secret::Env(value)),
                    "file" => Ok(Secret::File(value)),
                    _ => Err(A::Error::custom(FORM)),
                }
            }
        }

        deserializer.deserialize_any(Place)
    }
}
