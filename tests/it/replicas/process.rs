//! One replica: its settings, and the process while it runs.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::settings::{Route, Settings, variable};
use crate::harness::app::until_within;
use crate::harness::sns::Sns;
use crate::harness::store::folder;

/// How long a start may take on a machine that is busy with other tests as well.
const LONG: Duration = Duration::from_mins(3);

pub struct Replica {
    pub name: String,
    pub hook: u16,
    pub admin: u16,
    pub process: Option<Child>,
    folder: tempfile::TempDir,
    /// The variables of its environment.
    variables: Vec<(String, String)>,
}

impl Replica {
    /// Writes the settings of a replica of this name; its sinks are `services`, by name and sink.
    pub fn new(name: &str, database: &str, sns: &Sns, services: &str, routes: &[Route]) -> Self {
        let folder = folder();
        let (hook, admin) = (super::free_port(), super::free_port());
        let settings = Settings {
            name,
            hook,
            admin,
            database,
            sns,
            routes,
        };
        std::fs::write(folder.path().join("runbell.toml"), settings.text()).unwrap();
        let sinks = routes.iter().flat_map(|route| route.sinks);
        let variables = sinks.map(|sink| {
            let url = format!("{services}/{name}/{}", sink.name);
            (variable(sink.name), url)
        });
        Self {
            name: name.to_owned(),
            hook,
            admin,
            process: None,
            folder,
            variables: variables.collect(),
        }
    }

    /// Starts the process, and returns when it answers.
    pub async fn start(&mut self, http: &reqwest::Client) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"));
        let process = Command::new(env!("CARGO_BIN_EXE_runbell"))
            .args(["serve", "--config"])
            .arg(self.path("runbell.toml"))
            .envs(self.variables.iter().cloned())
            .stderr(log.unwrap())
            .stdout(Stdio::null())
            .spawn();
        self.process = Some(process.unwrap());
        until_within(LONG, "a replica to start", async || {
            self.admin(http, "/-/healthy").await.map(drop)
        })
        .await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The answer of its admin listener, if it gives one.
    pub async fn admin(&self, http: &reqwest::Client, path: &str) -> Option<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin);
        let asked = http.get(url).timeout(Duration::from_secs(5));
        let answer = asked.send().await.ok()?;
        answer.error_for_status().ok()?.text().await.ok()
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.process.as_ref().unwrap().id();
        let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.take().unwrap().wait().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(60)..] {
                #[expect(clippy::print_stderr, reason = "it says why the test failed")]
                {
                    eprintln!("{}: {line}", self.name);
                }
            }
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
