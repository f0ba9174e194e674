//! The receive street: bytes in, an answer out, and in between everything that makes the answer
//! true. `web::hook` calls it for each request; it waits for no sink.

use std::net::IpAddr;

use crate::sns;

/// Takes what SNS posts.
pub struct Receiver {}

/// What to answer SNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// 200: it is kept, or was known.
    Accepted,
    /// 400: that is no envelope.
    Malformed,
    /// 403: refused for good.
    Forbidden,
    /// 503: not now; SNS shall try again.
    Later,
}

impl Receiver {
    /// Judges one request and keeps what it proves.
    pub async fn receive(
        &self,
        _body: &[u8],
        _headers: sns::Headers<'_>,
        _client: IpAddr,
    ) -> Reply {
        todo!()
    }
}
