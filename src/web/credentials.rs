//! Secrets that requests bear: the passwords of `hook`, the token of `admin`.
//!
//! Only digests are compared, in constant time: what a comparison takes tells nothing about the
//! secret, not even its length.

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use openssl::sha::sha256;
use subtle::{Choice, ConstantTimeEq};

/// What a secret is recognised by.
#[derive(Clone)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(secret: &[u8]) -> Self {
        Self(sha256(secret))
    }

    /// Whether `secrets` hold `offered`; all of them are looked at, whichever fits.
    pub(super) fn any(secrets: &[Self], offered: &[u8]) -> bool {
        let offered = sha256(offered);
        secrets
            .iter()
            .fold(Choice::from(0), |found, secret| {
                found | secret.0.ct_eq(&offered)
            })
            .into()
    }
}

/// `user:password` of a Basic `Authorization`.
pub(super) fn basic(headers: &HeaderMap) -> Option<Vec<u8>> {
    BASE64_STANDARD
        .decode(authorization(headers, "basic")?)
        .ok()
}

/// The token of a Bearer `Authorization`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    authorization(headers, "bearer")
}

fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (named, rest) = value.split_once(' ')?;
    named
        .eq_ignore_ascii_case(scheme)
        .then(|| rest.trim_start_matches(' '))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn any_of_two_secrets_fits_and_nothing_else() {
        let secrets = [Digest::of(b"sns:old"), Digest::of(b"sns:new")];
        for (offered, fits) in [
            ("sns:old", true),
            ("sns:new", true),
            ("sns:ne", false),
            ("sns:new ", false),
            ("", false),
        ] {
            assert_eq!(
                Digest::any(&secrets, offered.as_bytes()),
                fits,
                "{offered:?}"
            );
        }
        assert!(!Digest::any(&[], b""));
    }

    #[test]
    fn schemes_are_read_in_any_case() {
        let check = |value: &str, basic_is: Option<&str>, bearer_is: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            assert_eq!(
                basic(&headers).as_deref(),
                basic_is.map(str::as_bytes),
                "{value}"
            );
            assert_eq!(bearer(&headers), bearer_is, "{value}");
        };
        check("Basic c25zOnB3", Some("sns:pw"), None);
        check("bASIC  c25zOnB3", Some("sns:pw"), None);
        check("Basic c25zOnB3=", None, None);
        check("Basic", None, None);
        check("Digest c25zOnB3", None, None);
        check("BEARER t0k", None, Some("t0k"));
    }
}
