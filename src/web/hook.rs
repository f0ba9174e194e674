//! The path that SNS posts to: turns a request into a [`Post`], or refuses it, and answers.
//!
//! `app` makes the router, hands it to `serve`, and says what receives a post: the receive path.
//! The order is fixed: path (404), method (405), credentials before the body (401), size (413),
//! body, then the receiver. Answers have no body and no `Retry-After`: SNS heeds neither, and a
//! stranger should learn nothing. What the content calls itself is not looked at, except that a
//! compressed body is refused: SNS sends none, and nothing here may be inflated.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use futures_util::StreamExt;
use ipnet::IpNet;
use secrecy::ExposeSecret;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::HookSettings;
use super::credentials::{Digest, basic};
use super::seats::{Phase, Seat};
use super::serve::Peer;
use crate::metrics::Metrics;
use crate::receive::Reply;
use crate::sns;

/// The largest body: 256 KiB of message, escaped in the worst way, with room to spare.
const LARGEST_BODY: usize = 2 * 1024 * 1024;

/// A body up to this size may always be held in memory; Run Command's are a tenth of it.
const SMALL_BODY: usize = 64 * 1024;

/// How much of larger bodies is held at once, in KiB, until they are answered; who wants more is sent
/// away for later. This, and the number of connections, bounds what strangers can make us allocate.
const LARGE_BODIES: usize = 64 * 1024;

/// One request whose body is complete.
#[derive(Clone, Debug)]
pub struct Post {
    /// What was posted.
    pub body: Bytes,
    /// Who posted it: the peer, or whom a trusted proxy names.
    pub client: IpAddr,
    message_type: Option<String>,
    message_id: Option<String>,
    topic_arn: Option<String>,
    raw: bool,
    /// Its share of what may be held.
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Post {
    /// What its headers say about the envelope.
    #[must_use]
    pub fn headers(&self) -> sns::Headers<'_> {
        sns::Headers {
            message_type: self.message_type.as_deref(),
            message_id: self.message_id.as_deref(),
            topic_arn: self.topic_arn.as_deref(),
            raw: self.raw,
        }
    }
}

/// The router that `serve` serves; `receive` judges each post.
pub fn router<R, F>(settings: &HookSettings, metrics: Arc<Metrics>, receive: R) -> Router
where
    R: Fn(Post) -> F + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let hook = Arc::new(Hook {
        secrets: settings
            .auth
            .iter()
            .map(|entry| {
                let password = entry.password.expose_secret();
                Digest::of(format!("{}:{password}", entry.user).as_bytes())
            })
            .collect(),
        trusted_proxies: settings.trusted_proxies.clone(),
        body_timeout: settings.body_timeout,
        large_bodies: Arc::new(Semaphore::new(LARGE_BODIES)),
        receive,
    });
    let take = move |peer, seat, request| {
        let hook = Arc::clone(&hook);
        async move { hook.take(peer, seat, request).await }
    };
    Router::new()
        .without_v07_checks()
        .route(&literal(&settings.path), post(take))
        .layer(axum::middleware::map_response(move |response: Response| {
            metrics.answered(response.status().as_u16());
            std::future::ready(response)
        }))
}

struct Hook<R> {
    /// Of `user:password`; anybody may post when empty.
    secrets: Vec<Digest>,
    trusted_proxies: Vec<IpNet>,
    body_timeout: Duration,
    large_bodies: Arc<Semaphore>,
    receive: R,
}

/// Why a request never became a [`Post`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfit {
    Unauthorized,
    TooLarge,
    Malformed,
    /// The body did not come in time, or there was no room for it.
    Slow,
}

impl<R, F> Hook<R>
where
    R: Fn(Post) -> F,
    F: Future<Output = Reply>,
{
    async fn take(
        &self,
        Extension(peer): Extension<Peer>,
        Extension(seat): Extension<Arc<Seat>>,
        request: Request,
    ) -> Response {
        match self.read(peer, &seat, request).await {
            Ok(post) => answer((self.receive)(post).await).into_response(),
            Err(unfit) => {
                tracing::debug!(?peer, ?unfit, "refused a request");
                refusal(unfit)
            }
        }
    }

    async fn read(&self, peer: Peer, seat: &Seat, request: Request) -> Result<Post, Unfit> {
        let (head, body) = request.into_parts();
        let headers = &head.headers;
        if !self.secrets.is_empty() {
            let offered = basic(headers).ok_or(Unfit::Unauthorized)?;
            if !Digest::any(&self.secrets, &offered) {
                return Err(Unfit::Unauthorized);
            }
        }
        if body.size_hint().lower() > LARGEST_BODY as u64 {
            return Err(Unfit::TooLarge);
        }
        if only(headers, &header::CONTENT_ENCODING)?
            .is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
        {
            return Err(Unfit::Malformed);
        }
        let text = |name| -> Result<Option<String>, Unfit> {
            Ok(only(headers, &HeaderName::from_static(name))?.map(str::to_owned))
        };
        let post = Post {
            body: Bytes::new(),
            client: client(peer, headers, &self.trusted_proxies),
            message_type: text("x-amz-sns-message-type")?,
            message_id: text("x-amz-sns-message-id")?,
            topic_arn: text("x-amz-sns-topic-arn")?,
            raw: text("x-amz-sns-rawdelivery")?
                .is_some_and(|raw| raw.trim().eq_ignore_ascii_case("true")),
            _room: None,
        };
        let (body, room) = timeout(self.body_timeout, self.collect(body))
            .await
            .map_err(|_| Unfit::Slow)??;
        seat.enter(Phase::Working);
        Ok(Post {
            body,
            _room: room.map(Arc::new),
            ..post
        })
    }

    /// Takes the body in as it comes; what a header promises is not allocated before it is there.
    async fn collect(&self, body: Body) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Unfit> {
        let mut room: Option<OwnedSemaphorePermit> = None;
        let mut whole = Vec::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| Unfit::Malformed)?;
            let length = whole.len() + chunk.len();
            if length > LARGEST_BODY {
                return Err(Unfit::TooLarge);
            }
            let wanted = length.saturating_sub(SMALL_BODY).div_ceil(1024);
            let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            if let Ok(more @ 1..) = u32::try_from(wanted.saturating_sub(held)) {
                let more = Arc::clone(&self.large_bodies)
                    .try_acquire_many_owned(more)
                    .map_err(|_| Unfit::Slow)?;
                match &mut room {
                    Some(room) => room.merge(more),
                    None => room = Some(more),
                }
            }
            whole.extend_from_slice(&chunk);
        }
        Ok((whole.into(), room))
    }
}

const fn answer(reply: Reply) -> StatusCode {
    match reply {
        Reply::Accepted => StatusCode::OK,
        Reply::Malformed => StatusCode::BAD_REQUEST,
        Reply::Forbidden => StatusCode::FORBIDDEN,
        Reply::Later => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn refusal(unfit: Unfit) -> Response {
    match unfit {
        Unfit::Unauthorized => (
            StatusCode::UNAUTHORIZED,
            [(
                header::WWW_AUTHENTICATE,
                r#"Basic realm="notifications", charset="UTF-8""#,
            )],
        )
            .into_response(),
        Unfit::TooLarge => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Unfit::Malformed => StatusCode::BAD_REQUEST.into_response(),
        Unfit::Slow => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// The one value of a header; two of them, or one that is no text, could be read in two ways.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Unfit> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Unfit::Malformed);
    }
    value.to_str().map(Some).map_err(|_| Unfit::Malformed)
}

/// Who posts: walking back from the peer, the first that is no trusted proxy. Whatever stands
/// further left in `X-Forwarded-For` may have been written by anybody.
fn client(peer: Peer, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let Peer::Address(mut client) = peer else {
        return Ipv4Addr::UNSPECIFIED.into();
    };
    let named = headers
        .get_all("x-forwarded-for")
        .iter()
        .rev()
        .flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
    for entry in named {
        if !trusted.iter().any(|net| net.contains(&client)) {
            break;
        }
        let Some(before) = address(entry.trim()) else {
            break;
        };
        client = before;
    }
    client
}

/// An address, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let address = bare
        .unwrap_or(text)
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()));
    address.ok().map(|address| address.to_canonical())
}

/// A path in which the router sees no pattern.
fn literal(path: &str) -> String {
    let braces_doubled = path.replace('{', "{{").replace('}', "}}");
    format!("/{}", braces_doubled.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_first_from_the_right_that_is_not_trusted() {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap());
        let check = |peer: &str, forwarded: &[&'static str], expected: &str| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            let peer = Peer::Address(peer.parse().unwrap());
            let found = client(peer, &headers, &trusted);
            assert_eq!(found.to_string(), expected, "{peer:?} {forwarded:?}");
        };
        check("192.0.2.1", &[], "192.0.2.1");
        check("192.0.2.1", &["198.51.100.7"], "192.0.2.1");
        check("10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &["1.1.1.1, 198.51.100.7"], "198.51.100.7");
        check(
            "10.0.0.1",
            &["1.1.1.1", "198.51.100.7 , 10.9.9.9"],
            "198.51.100.7",
        );
        check("10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7");
        check("fd00::1", &["[2001:db8::7]:443"], "2001:db8::7");
        check("fd00::1", &["[2001:db8::7]"], "2001:db8::7");
        check("10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &["198.51.100.7, unknown"], "10.0.0.1");
        check("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        check("10.0.0.1", &[""], "10.0.0.1");
    }

    #[test]
    fn a_header_given_twice_or_not_as_text_is_refused() {
        let name = HeaderName::from_static("x-amz-sns-topic-arn");
        let mut headers = HeaderMap::new();
        assert_eq!(only(&headers, &name), Ok(None));
        headers.append(&name, "a".parse().unwrap());
        assert_eq!(only(&headers, &name), Ok(Some("a")));
        headers.append(&name, "a".parse().unwrap());
        assert_eq!(only(&headers, &name), Err(Unfit::Malformed));
        headers.insert(&name, axum::http::HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(only(&headers, &name), Err(Unfit::Malformed));
    }

    #[test]
    fn no_path_is_a_pattern() {
        for (path, expected) in [
            ("/sns", "/sns"),
            ("sns", "/sns"),
            ("/{any}", "/{{any}}"),
            ("/", "/"),
        ] {
            assert_eq!(literal(path), expected);
        }
    }
}
