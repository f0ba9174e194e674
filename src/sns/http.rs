//! The one way to call SNS: for a certificate, and to confirm.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;

/// How long a call to SNS may take to connect, and in all.
const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(10);

/// Calls SNS; follows no redirects, and knows no proxy. Cheap to clone, all clones share.
///
/// It is made at the first call: reading the root certificates takes longer than all the rest of a
/// start, and most starts find what they need in the store.
#[derive(Clone, Debug, Default)]
pub struct Http(Arc<OnceCell<reqwest::Client>>);

impl Http {
    /// Begins a `GET`.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(super) async fn get(&self, url: &str) -> Result<reqwest::RequestBuilder, reqwest::Error> {
        let make = async || {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .connect_timeout(CONNECT)
                .timeout(CALL)
                .user_agent(concat!("runbell/", env!("CARGO_PKG_VERSION")))
                .build()
        };
        Ok(self.0.get_or_try_init(make).await?.get(url))
    }
}
