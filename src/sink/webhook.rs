//! Any service that takes JSON: one event a call, in the form of the file sink's lines.
//!
//! Signed as the Standard Webhooks specification says (`v1`: HMAC-SHA256 over id, time and body), with
//! two secrets while one replaces the other. The id is stable over retries, the time is that of the
//! attempt.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::http::{self, Call, Checked, Vendor};
use super::record::write_line;
use crate::fault::Fault;
use crate::render::{Compiled, Notice, TemplateError};
use crate::secret::SecretText;

/// What a secret begins with, as the specification has it.
const PREFIX: &str = "whsec_";
/// How long a secret is, in bytes.
const SECRET: std::ops::RangeInclusive<usize> = 24..=64;

/// Settings of a webhook sink.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where to.
    pub url: SecretText,
    /// With which method.
    #[serde(default)]
    pub method: Verb,
    /// Secrets to sign with, `whsec_…`; two while one replaces the other.
    #[serde(default)]
    pub secrets: Vec<SecretText>,
    /// More headers.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretText>,
    /// How many calls may be under way at once.
    pub at_once: Option<usize>,
    /// A template of the whole payload; the event as JSON when it is left out.
    pub payload: Option<String>,
    /// What the payload is, if not JSON.
    pub content_type: Option<String>,
    /// The connection.
    #[serde(default)]
    pub http: http::Settings,
}

/// With which method a webhook is called.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// `POST`
    #[default]
    Post,
    /// `PUT`
    Put,
    /// `PATCH`
    Patch,
}

struct Webhook {
    url: Url,
    method: Method,
    keys: Vec<PKey<openssl::pkey::Private>>,
    headers: HeaderMap,
    at_once: usize,
    /// Written in place of the event.
    payload: Option<Compiled>,
}

impl Settings {
    /// Turns them into a service to speak to.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn check(self, folder: &Path) -> Result<Checked, Vec<Fault>> {
        let mut faults = Vec::new();
        let reached = self.http.check_with_url(folder, &self.url);
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let parsed = HeaderName::try_from(name.as_str())
                .ok()
                .zip(HeaderValue::from_str(value.expose()).ok());
            match parsed {
                Some((known, mut value)) => {
                    value.set_sensitive(true);
                    headers.insert(known, value);
                }
                None => faults.push(Fault::at(&["headers", name], "this is no header")),
            }
        }
        let mut keys = Vec::new();
        for (number, secret) in self.secrets.iter().enumerate() {
            match key(secret.expose()) {
                Ok(key) => keys.push(key),
                Err(why) => faults.push(Fault::at(&["secrets", &number.to_string()], why)),
            }
        }
        if let Some(text) = self.content_type {
            match HeaderValue::from_str(&text) {
                Ok(value) => drop(headers.insert(CONTENT_TYPE, value)),
                Err(_) => faults.push(Fault::at(&["content_type"], "this is no content type")),
            }
        }
        let payload = self.payload.and_then(|text| {
            let compiled = if is_json(&headers) {
                Compiled::json(text)
            } else {
                Compiled::new(text)
            };
            let wrong = |error: TemplateError| Fault::at(&["payload"], error.to_string());
            compiled.map_err(|error| faults.push(wrong(error))).ok()
        });
        let at_once = self.at_once.unwrap_or(4);
        if !(1..=64).contains(&at_once) {
            faults.push(Fault::at(&["at_once"], "from 1 to 64"));
        }
        match reached {
            Ok((connection, url)) if faults.is_empty() => Ok(Checked {
                vendor: Arc::new(Webhook {
                    url,
                    method: match self.method {
                        Verb::Post => Method::POST,
                        Verb::Put => Method::PUT,
                        Verb::Patch => Method::PATCH,
                    },
                    keys,
                    headers,
                    payload,
                    at_once,
                }),
                connection,
            }),
            Ok(_) => Err(faults),
            Err(more) => {
                faults.extend(more);
                Err(faults)
            }
        }
    }
}

/// Whether the payload is JSON, as it is when nobody says.
fn is_json(headers: &HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE);
    said.is_none_or(|value| value.to_str().is_ok_and(|text| text.contains("json")))
}

fn key(secret: &str) -> Result<PKey<openssl::pkey::Private>, &'static str> {
    let encoded = secret.strip_prefix(PREFIX).unwrap_or(secret);
    let bytes = BASE64_STANDARD
        .decode(encoded)
        .map_err(|_| "a secret is `whsec_` and base64 after it")?;
    if !SECRET.contains(&bytes.len()) {
        return Err("a secret has 24 to 64 bytes: `openssl rand -base64 32` makes one");
    }
    PKey::hmac(&bytes).map_err(|_| "OpenSSL makes no key of this")
}

impl Webhook {
    /// What its template makes of a notice, or the event as JSON.
    fn body(&self, notice: &Notice) -> Vec<u8> {
        if let Some(payload) = &self.payload {
            let written = if is_json(&self.headers) {
                payload.json_of(notice)
            } else {
                payload.of(notice)
            };
            match written {
                Ok(text) => return text.into_bytes(),
                Err(error) => tracing::warn!(
                    route = notice.route,
                    %error,
                    "the payload's template failed; the event goes as it would without"
                ),
            }
        }
        let mut body = Vec::new();
        write_line(notice, &mut body);
        body.pop();
        body
    }

    /// One signature for each secret.
    fn signatures(&self, id: &str, at: &str, body: &[u8]) -> String {
        let sign = |key| {
            let mut signer = Signer::new(MessageDigest::sha256(), key)?;
            for part in [id.as_bytes(), b".", at.as_bytes(), b".", body] {
                signer.update(part)?;
            }
            let signature = BASE64_STANDARD.encode(signer.sign_to_vec()?);
            Ok::<_, openssl::error::ErrorStack>(format!("v1,{signature}"))
        };
        let signed = self.keys.iter().filter_map(|key| sign(key).ok());
        signed.collect::<Vec<_>>().join(" ")
    }
}

impl Vendor for Webhook {
    fn at_once(&self) -> usize {
        self.at_once
    }

    fn takes_digests(&self) -> bool {
        self.payload.is_some()
    }

    fn speaks_to_people(&self) -> bool {
        false
    }

    fn destination(&self) -> String {
        self.url.to_string()
    }

    fn call(&self, notice: &Notice, at: Timestamp) -> Call {
        let body = self.body(notice);
        let at = at.as_second().to_string();
        let mut headers = self.headers.clone();
        let mut header = |name, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        header("webhook-id", &notice.id);
        header("webhook-timestamp", &at);
        if !self.keys.is_empty() {
            header(
                "webhook-signature",
                &self.signatures(&notice.id, &at, &body),
            );
        }
        headers
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/json"));
        Call {
            method: self.method.clone(),
            url: self.url.clone(),
            headers,
            body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference implementations.
    #[test]
    fn a_signature_is_the_one_that_others_make() {
        let webhook = Webhook {
            url: Url::parse("https://example.com").unwrap(),
            method: Method::POST,
            keys: vec![key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap()],
            headers: HeaderMap::new(),
            payload: None,
            at_once: 1,
        };
        assert_eq!(
            webhook.signatures(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "1614265330",
                b"{\"test\": 2432232314}"
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn a_secret_that_is_none_is_refused() {
        for wrong in ["whsec_", "whsec_c2hvcnQ=", "whsec_%%%"] {
            assert!(key(wrong).is_err(), "{wrong}");
        }
    }
}
