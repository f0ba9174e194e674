//! The whole service in this process, on port 0, with a folder of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};
use runbell::app::{App, AppError, Listeners, Signals};
use runbell::clock::Clock;
use runbell::config::{Config, Surroundings};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::sns::{Sns, TOPIC};
use super::store::folder;

pub struct Runbell {
    pub clock: Clock,
    pub hook: SocketAddr,
    pub admin: SocketAddr,
    pub http: reqwest::Client,
    folder: Arc<TempDir>,
    signals: Signals,
    settings: Arc<Mutex<String>>,
    running: JoinSet<Result<(), AppError>>,
    scheme: &'static str,
}

/// How it shall be started.
#[derive(Clone)]
pub struct Setup {
    /// Sinks and routes; one file for everything by default.
    pub routes: String,
    /// More keys of the topic.
    pub topic: String,
    /// More keys of the server.
    pub server: String,
    /// More keys of the admin listener.
    pub admin: String,
    pub tls: bool,
    pub clock: Clock,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            routes: "[sink.audit]\ntype = 'file'\npath = 'audit.jsonl'\n\
                     [[route]]\nname = 'all'\nto = ['audit']\norder = 'topic'\nhold = '0s'\n"
                .to_owned(),
            topic: String::new(),
            server: String::new(),
            admin: String::new(),
            tls: false,
            clock: Clock::system(),
        }
    }
}

impl Runbell {
    pub async fn start(sns: &Sns, setup: Setup) -> Self {
        Self::start_in(Arc::new(folder()), sns, setup).await
    }

    /// In a folder that may hold what an earlier one left.
    pub async fn start_in(folder: Arc<TempDir>, sns: &Sns, setup: Setup) -> Self {
        let tls = if setup.tls {
            write_certificate(folder.path(), "localhost");
            "tls = { cert = 'tls.crt', key = 'tls.key' }"
        } else {
            ""
        };
        let text = format!(
            "[server]\nlisten = '127.0.0.1:0'\n{tls}\n{}\n[admin]\nlisten = '127.0.0.1:0'\n{}\n\
             [store]\nurl = 'sqlite:runbell.db'\n\
             [[topic]]\narn = '{TOPIC}'\nendpoint = '{}'\n{}\n{}",
            setup.server, setup.admin, sns.base, setup.topic, setup.routes
        );
        let config = parse(&text, folder.path()).unwrap_or_else(|faults| panic!("{faults}"));
        let listeners = Listeners::bind(&config).await.unwrap();
        let hook = listeners.hook_address().unwrap();
        let admin = listeners.admin_address().unwrap().unwrap();
        let app = App::build(config, setup.clock.clone()).await.unwrap();
        let settings = Arc::new(Mutex::new(text));
        let signals = Signals {
            stop: CancellationToken::new(),
            settings: {
                let (settings, folder) = (Arc::clone(&settings), folder.path().to_owned());
                Arc::new(move || parse(&settings.lock().unwrap(), &folder))
            },
            reload: Arc::new(Notify::new()),
        };
        let mut running = JoinSet::new();
        running.spawn(app.run(listeners, signals.clone()));
        Self {
            clock: setup.clock,
            hook,
            admin,
            http: client(folder.path(), setup.tls),
            folder,
            signals,
            settings,
            running,
            scheme: if setup.tls { "https" } else { "http" },
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://localhost:{}{path}", self.scheme, self.hook.port())
    }

    /// Posts as SNS does; the status of the answer.
    pub async fn post(&self, body: impl Into<reqwest::Body>) -> u16 {
        let request = self.http.post(self.url("/sns")).body(body);
        request.send().await.unwrap().status().as_u16()
    }

    pub async fn admin(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.admin);
        let answer = self.http.get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// The value of a sample in the metrics; zero when it is not there.
    pub async fn metric(&self, sample: &str) -> f64 {
        let (_, page) = self.admin("/metrics").await;
        page.lines()
            .filter_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))
            .find_map(|value| value.parse().ok())
            .unwrap_or_default()
    }

    /// The lines of a file, once there are `count` of them.
    pub async fn lines(&self, name: &str, count: usize) -> Vec<Value> {
        let path = self.path(name);
        until(&format!("{count} lines in {name}"), async || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<Value> = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            (lines.len() >= count).then_some(lines)
        })
        .await
    }

    pub fn settings_become(&self, change: impl FnOnce(&str) -> String) {
        let mut settings = self.settings.lock().unwrap();
        *settings = change(&settings);
    }

    /// Asks for a reload and gives the answer.
    pub async fn reload(&self) -> (u16, String) {
        let url = format!("http://{}/-/reload", self.admin);
        let answer = self.http.post(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Stops in order; gives back the folder.
    pub async fn stop(mut self) -> Arc<TempDir> {
        self.signals.stop.cancel();
        self.running.join_next().await.unwrap().unwrap().unwrap();
        self.folder
    }
}

fn parse(text: &str, folder: &Path) -> Result<Config, String> {
    let around = Surroundings {
        folder,
        variable: &|name| (name == "PASSWORD").then(|| "secret".to_owned()),
    };
    Config::parse(text, Path::new("runbell.toml"), &around)
        .map(|(config, _)| config)
        .map_err(|faults| faults.render(false))
}

fn client(folder: &Path, tls: bool) -> reqwest::Client {
    let mut client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(30));
    if tls {
        let pem = std::fs::read(folder.join("tls.crt")).unwrap();
        let certificate = reqwest::Certificate::from_pem(&pem).unwrap();
        client = client.tls_certs_only([certificate]);
    }
    client.build().unwrap()
}

/// Writes a self-signed certificate for `name`, and its key.
pub fn write_certificate(folder: &Path, name: &str) {
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    let serial = BigNum::from_u32(rand_serial())
        .unwrap()
        .to_asn1_integer()
        .unwrap();
    builder.set_serial_number(&serial).unwrap();
    builder.set_subject_name(&subject).unwrap();
    builder.set_issuer_name(&subject).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder
        .set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    builder
        .set_not_after(&Asn1Time::days_from_now(2).unwrap())
        .unwrap();
    let context = builder.x509v3_context(None, None);
    let names = SubjectAlternativeName::new()
        .dns(name)
        .build(&context)
        .unwrap();
    builder.append_extension(names).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    std::fs::write(folder.join("tls.crt"), builder.build().to_pem().unwrap()).unwrap();
    std::fs::write(
        folder.join("tls.key"),
        key.private_key_to_pem_pkcs8().unwrap(),
    )
    .unwrap();
}

fn rand_serial() -> u32 {
    let mut bytes = [0; 4];
    openssl::rand::rand_bytes(&mut bytes).unwrap();
    u32::from_be_bytes(bytes) | 1
}

/// Waits until `look` finds what it looks for.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(Duration::from_secs(30), what, look).await
}

/// Waits for it no longer than `at_most`.
pub async fn until_within<T>(
    at_most: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let mut again = tokio::time::interval(Duration::from_millis(5));
    let found = tokio::time::timeout(at_most, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            again.tick().await;
        }
    });
    found
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
