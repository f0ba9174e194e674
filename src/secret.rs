//! A secret on its way from where it lies to the part that needs it.
//!
//! Settings never hold a secret, only where it lies: `{ env = … }` or `{ file = … }`. `config` looks
//! there and puts what it found in its place, marked, so that a secret written into the settings by
//! mistake is refused, and no error repeats it.

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer};

/// The key that marks a revealed secret; no TOML file can be asked to have it by accident.
pub const REVEALED: &str = "\u{0}revealed";

/// What a wrong place for a secret is told.
pub const NOT_HERE: &str =
    "a secret is not written into the settings: write { env = \"NAME\" } or { file = \"PATH\" }";

/// A secret that was revealed; shows nothing when it is printed.
#[derive(Clone, Debug)]
pub struct SecretText(SecretString);

impl SecretText {
    /// The secret itself, for the one who needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        Self(SecretString::from(text))
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Serde's own errors would repeat what was written.
        let written = toml::Value::deserialize(deserializer)?;
        match written.get(REVEALED) {
            Some(toml::Value::String(secret)) => Ok(Self::from(secret.as_str())),
            _ => Err(serde::de::Error::custom(NOT_HERE)),
        }
    }
}
