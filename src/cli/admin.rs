//! The command line's way to a running process: its admin socket.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::store::Engine;
use crate::store::sqlite::Sqlite;
use crate::web::admin::problem::Problem;

/// Who changes the store.
pub(super) enum Changer {
    /// The process that runs, asked over its socket.
    Running(Running),
    /// Nobody runs: this process, under the store's lock.
    Alone(Alone),
}

/// A client of the admin socket.
pub(super) struct Running(reqwest::Client);

/// The store, opened for change.
pub(super) struct Alone {
    pub(super) store: Sqlite,
    writer: std::thread::JoinHandle<()>,
}

impl Changer {
    /// The running process if there is one, else the file itself.
    pub(super) fn find(config: &Config) -> anyhow::Result<Self> {
        if let Some(running) = Running::find(config)? {
            return Ok(Self::Running(running));
        }
        let Engine::Sqlite(file) = &config.store.engine;
        let (store, writer, _) = Sqlite::open(file)?;
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run())
            .context("cannot start a thread")?;
        Ok(Self::Alone(Alone { store, writer }))
    }
}

impl Alone {
    /// Lets the store go, once everything is written.
    pub(super) fn close(self) {
        drop(self.store);
        // A writer that panicked has said so.
        let _ = self.writer.join();
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
            .timeout(std::time::Duration::from_mins(2))
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
pub(super) fn look(config: &Config) -> anyhow::Result<Sqlite> {
    let Engine::Sqlite(file) = &config.store.engine;
    Sqlite::look(file).with_context(|| format!("cannot look into {}", file.display()))
}
