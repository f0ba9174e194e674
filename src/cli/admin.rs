//! The command line's way to a running process: its admin socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::app::keeping::{self, Keeping, open_to_act};
use crate::clock::{Clock, later};
use crate::config::Config;
use crate::store::Store;
use crate::web::admin::problem::Problem;

/// How long what was changed may take to be written.
const CLOSES_IN: Duration = Duration::from_secs(10);

/// Who changes the store.
pub(super) enum Changer {
    /// The process that runs, asked over its socket.
    Running(Running),
    /// Nobody runs here: this process, under the lock of an embedded store.
    Alone(Alone),
}

/// A client of the admin socket.
pub(super) struct Running(reqwest::Client);

/// The store, opened for change.
pub(super) struct Alone {
    pub(super) store: Arc<dyn Store>,
    keeping: Keeping,
}

impl Changer {
    /// The running process if there is one, else the store itself.
    pub(super) async fn find(config: &Config) -> anyhow::Result<Self> {
        if let Some(running) = Running::find(config)? {
            return Ok(Self::Running(running));
        }
        let (store, keeping) = open_to_act(&config.store).await?;
        Ok(Self::Alone(Alone { store, keeping }))
    }
}

impl Alone {
    /// Lets the store go, once everything is written.
    pub(super) async fn close(self) {
        drop(self.store);
        let clock = Clock::system();
        let deadline = later(clock.now(), CLOSES_IN);
        self.keeping.end(&clock, deadline).await;
    }
}

impl Running {
    /// The running process, if somebody answers on its socket.
    pub(super) fn find(config: &Config) -> anyhow::Result<Option<Self>> {
        let socket = config.admin.socket.as_ref();
        let answers =
            |socket: &&std::path::PathBuf| std::os::unix::net::UnixStream::connect(socket).is_ok();
        socket.filter(answers).map(|it| Self::over(it)).transpose()
    }

    pub(super) fn over(socket: &Path) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .unix_socket(socket)
            .no_proxy()
            .timeout(Duration::from_mins(2))
            .build()
            .context("cannot make a client")?;
        Ok(Self(client))
    }

    /// Posts to the API; what comes back without content is `null`.
    pub(super) async fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<A> {
        let url = format!("http://localhost/api/v1/{path}");
        let answer = self
            .0
            .post(url)
            .json(body)
            .send()
            .await
            .context("the running process does not answer on its admin socket")?;
        let status = answer.status();
        let text = answer.text().await.context("its answer broke off")?;
        if !status.is_success() {
            match serde_json::from_str::<Problem>(&text) {
                Ok(problem) => bail!(problem.detail),
                Err(_) => bail!("the running process answered {status}"),
            }
        }
        let text = if text.is_empty() { "null" } else { &text };
        serde_json::from_str(text).context("its answer is not understood")
    }
}

/// The store, to look at.
pub(super) async fn look(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let store = keeping::look(&config.store).await;
    store.with_context(|| format!("cannot look into {}", config.store.engine.place()))
}
