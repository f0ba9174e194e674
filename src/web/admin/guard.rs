//! Who may ask anything but health at the admin door.
//!
//! Whoever bears the token may. Without it: whoever comes over the unix socket, which the file
//! system guards, and whoever sits on this machine and speaks for himself. A browser or a proxy on
//! this machine speaks for others: a page from elsewhere may have made it ask (a foreign `Origin`,
//! or a name that was made to point here, so that `Host` is not the loopback's), and a proxy adds
//! `X-Forwarded-For`. Those need the token like everybody else.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};

use super::problem::Problem;
use crate::web::credentials::{Digest, bearer};
use crate::web::seats::{Phase, Seat};
use crate::web::serve::Peer;

/// Knows the token, if there is one.
#[derive(Clone)]
pub struct Guard {
    token: Option<Digest>,
}

/// Why somebody may not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denial {
    /// He has to show the token.
    NeedsToken,
    /// There is no token that he could show.
    NoTokenSet,
}

impl Guard {
    /// A guard that lets `token` in; only the socket and the loopback without one.
    #[must_use]
    pub fn new(token: Option<&SecretString>) -> Self {
        let token = token.map(|token| Digest::of(token.expose_secret().as_bytes()));
        Self { token }
    }

    fn judge(&self, peer: Peer, method: &Method, headers: &HeaderMap) -> Result<(), Denial> {
        let shown = bearer(headers);
        if let (Some(token), Some(shown)) = (&self.token, shown)
            && Digest::any(std::slice::from_ref(token), shown.as_bytes())
        {
            return Ok(());
        }
        // Who shows a wrong token shall learn that it is wrong, wherever he sits.
        let speaks_for_himself = shown.is_none()
            && match peer {
                Peer::Socket => true,
                Peer::Address(address) => {
                    address.is_loopback() && is_first_hand(headers) && is_own(method, headers)
                }
            };
        if speaks_for_himself {
            return Ok(());
        }
        Err(match self.token {
            Some(_) => Denial::NeedsToken,
            None => Denial::NoTokenSet,
        })
    }
}

/// The middleware before everything that is guarded.
pub(super) async fn admit(
    State(guard): State<Arc<Guard>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match guard.judge(peer, request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(Denial::NeedsToken) => (
            [(header::WWW_AUTHENTICATE, "Bearer")],
            Problem::of(StatusCode::UNAUTHORIZED, "this needs the admin token"),
        )
            .into_response(),
        Err(Denial::NoTokenSet) => Problem::of(
            StatusCode::FORBIDDEN,
            "this is for the unix socket and for the loopback under its own name; set a token in the \
             admin settings to ask from elsewhere",
        )
        .into_response(),
    }
}

/// The middleware that keeps the connection of a request from being crowded out.
pub(super) async fn at_work(
    seat: Option<Extension<Arc<Seat>>>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(Extension(seat)) = seat {
        seat.enter(Phase::Working);
    }
    next.run(request).await
}

/// Whether the request comes from the one who connected, by a name that only this machine has.
fn is_first_hand(headers: &HeaderMap) -> bool {
    let is_loopback = headers
        .get(header::HOST)
        .is_none_or(|host| host.to_str().is_ok_and(is_loopback_name));
    let came_through_a_proxy = ["x-forwarded-for", "forwarded", "via"]
        .iter()
        .any(|name| headers.contains_key(*name));
    is_loopback && !came_through_a_proxy
}

/// Whether no page from elsewhere made a browser send this. Reading is harmless: a page cannot see
/// the answer.
fn is_own(method: &Method, headers: &HeaderMap) -> bool {
    if method.is_safe() {
        return true;
    }
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().ok());
    let site_is_own = headers
        .get("sec-fetch-site")
        .is_none_or(|site| site == "same-origin" || site == "none");
    let origin_is_own = match text(header::ORIGIN) {
        None => true,
        Some(origin) => {
            let authority = origin.and_then(|origin| origin.split_once("://"));
            text(header::HOST).flatten().is_some()
                && authority.map(|(_, authority)| authority) == text(header::HOST).flatten()
        }
    };
    site_is_own && origin_is_own
}

fn is_loopback_name(host: &str) -> bool {
    let Some(name) = host
        .parse::<Uri>()
        .ok()
        .and_then(|uri| uri.host().map(str::to_owned))
    else {
        return false;
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1";
    const AWAY: &str = "192.0.2.1";

    fn judge(
        token: Option<&str>,
        peer: &str,
        method: &Method,
        lines: &[(&'static str, &str)],
    ) -> Result<(), Denial> {
        let guard = Guard::new(token.map(SecretString::from).as_ref());
        let peer = match peer {
            "socket" => Peer::Socket,
            address => Peer::Address(address.parse().unwrap()),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        guard.judge(peer, method, &headers)
    }

    #[test]
    fn the_token_opens_from_everywhere_and_a_wrong_one_from_nowhere() {
        for peer in [HERE, "::1", AWAY, "socket"] {
            for method in [Method::GET, Method::POST] {
                let right = [("authorization", "Bearer right"), ("host", "any.example")];
                let wrong = [("authorization", "Bearer wrong")];
                let set = Some("right");
                assert_eq!(judge(set, peer, &method, &right), Ok(()), "{peer} {method}");
                assert_eq!(
                    judge(set, peer, &method, &wrong),
                    Err(Denial::NeedsToken),
                    "{peer} {method}"
                );
            }
        }
    }

    #[test]
    fn without_a_token_only_this_machine_asks() {
        for (token, denial) in [
            (None, Denial::NoTokenSet),
            (Some("right"), Denial::NeedsToken),
        ] {
            for method in [Method::GET, Method::POST, Method::PUT] {
                for here in [HERE, "127.9.9.9", "::1", "socket"] {
                    assert_eq!(judge(token, here, &method, &[]), Ok(()), "{here} {method}");
                }
                for away in [AWAY, "10.0.0.1", "2001:db8::1"] {
                    assert_eq!(
                        judge(token, away, &method, &[]),
                        Err(denial),
                        "{away} {method}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_name_that_was_made_to_point_here_is_not_ours() {
        for (host, own) in [
            ("localhost", true),
            ("LOCALHOST:9644", true),
            ("127.0.0.1:9644", true),
            ("[::1]:9644", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example:9644", false),
            ("localhost.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("", false),
            ("10.0.0.1", false),
        ] {
            let judged = judge(None, HERE, &Method::GET, &[("host", host)]);
            assert_eq!(judged.is_ok(), own, "{host}");
        }
    }

    #[test]
    fn a_proxy_on_this_machine_speaks_for_others() {
        for name in ["x-forwarded-for", "forwarded", "via"] {
            let judged = judge(
                None,
                HERE,
                &Method::GET,
                &[("host", "localhost"), (name, "x")],
            );
            assert_eq!(judged, Err(Denial::NoTokenSet), "{name}");
        }
    }

    #[test]
    fn a_page_from_elsewhere_cannot_make_a_browser_change_anything() {
        let host = ("host", "localhost:9644");
        for (lines, own) in [
            (vec![host], true),
            (vec![host, ("sec-fetch-site", "same-origin")], true),
            (vec![host, ("sec-fetch-site", "none")], true),
            (vec![host, ("sec-fetch-site", "cross-site")], false),
            (vec![host, ("sec-fetch-site", "same-site")], false),
            (vec![host, ("origin", "http://localhost:9644")], true),
            (vec![host, ("origin", "http://localhost:8080")], false),
            (vec![host, ("origin", "https://evil.example")], false),
            (vec![host, ("origin", "null")], false),
            (vec![("origin", "null")], false),
        ] {
            for method in [Method::POST, Method::PUT, Method::DELETE] {
                let judged = judge(None, HERE, &method, &lines);
                assert_eq!(judged.is_ok(), own, "{method} {lines:?}");
            }
            assert_eq!(
                judge(None, HERE, &Method::GET, &lines),
                Ok(()),
                "reading {lines:?}"
            );
        }
    }
}
