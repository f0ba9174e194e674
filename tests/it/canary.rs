//! Secrets are nowhere to be seen, whatever goes wrong: services that repeat all they were told, that
//! hang, that lead elsewhere; and every way to look at what happened.

use std::process::{Child, Command, Stdio};

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use runbell::clock::Clock;

use crate::harness::app::until;
use crate::harness::sns::{Sns, TOPIC};
use crate::harness::store::folder;

const CANARY: &str = "c4n4ry-0123456789abcdef";
const FAULTS: [&str; 10] = [
    "400", "401", "404", "410", "429", "500", "503", "302", "200", "hang",
];

/// Repeats everything that it was told, with the status that its path asks for.
async fn parrot(uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let fault = FAULTS.iter().find(|fault| uri.path().contains(*fault));
    if fault == Some(&"hang") {
        return std::future::pending().await;
    }
    let status = fault.and_then(|fault| fault.parse().ok()).unwrap_or(400);
    let said = format!("{uri} {headers:?} {}", String::from_utf8_lossy(&body));
    let location = uri.to_string();
    (
        StatusCode::from_u16(status).unwrap(),
        [("location", location), ("retry-after", "1".to_owned())],
        said,
    )
        .into_response()
}

struct Service {
    process: Child,
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn settings(sns: &Sns, base: &str, ports: [u16; 2], nobody: u16) -> String {
    let http = "http = { allow_private = true, timeout = '500ms' }";
    let mut sinks = Vec::new();
    let mut names = Vec::new();
    let mut sink = |name: String, keys: String| {
        names.push(format!("'{name}'"));
        sinks.push(format!("[sink.{name}]\n{keys}\n{http}\n"));
    };
    let secrets = "secrets = [{ env = 'SIGN' }]\nheaders = { x-key = { env = 'CANARY' } }";
    for fault in FAULTS {
        let url = format!("url = {{ env = 'URL_{fault}' }}");
        sink(
            format!("hook-{fault}"),
            format!("type = 'webhook'\n{url}\n{secrets}"),
        );
        // Channels of their own: else they would keep one pace.
        let keys = format!("token = {{ env = 'CANARY' }}\nchannel = 'c-{fault}'");
        sink(
            format!("bot-{fault}"),
            format!("type = 'slack'\n{keys}\napi = '{base}/{fault}/'"),
        );
    }
    let nobody = format!("url = {{ env = 'NOBODY' }}\n# {nobody}");
    sink("nobody".to_owned(), format!("type = 'webhook'\n{nobody}"));
    let key = "{ env = 'CANARY' }";
    sink(
        "telegram".to_owned(),
        format!("type = 'telegram'\nurl = '{base}'\ntoken = {key}\nchat = '1'"),
    );
    sink(
        "pagerduty".to_owned(),
        format!("type = 'pagerduty'\nurl = '{base}'\nkey = {key}"),
    );
    sink(
        "ntfy".to_owned(),
        format!("type = 'ntfy'\nurl = '{base}'\ntopic = {key}\ntoken = {key}"),
    );
    format!(
        "[server]\nlisten = '127.0.0.1:{}'\n[admin]\nlisten = '127.0.0.1:{}'\nsocket = 'admin.sock'\n\
         [store]\nurl = 'sqlite:runbell.db'\n[[topic]]\narn = '{TOPIC}'\nendpoint = '{}'\n{}\
         [[route]]\nname = 'all'\nto = [{}]\norder = 'none'\n",
        ports[0],
        ports[1],
        sns.base,
        sinks.concat(),
        names.join(", ")
    )
}

/// Where the secrets are.
fn environment(base: &str, nobody: u16) -> Vec<(String, String)> {
    let mut environment = vec![
        ("CANARY".to_owned(), CANARY.to_owned()),
        (
            "SIGN".to_owned(),
            "whsec_YzRuNHJ5YzRuNHJ5YzRuNHJ5YzRuNHJ5".to_owned(),
        ),
        (
            "NOBODY".to_owned(),
            format!("http://127.0.0.1:{nobody}/{CANARY}"),
        ),
    ];
    for fault in FAULTS {
        let url = format!("{base}/{fault}/{CANARY}?key={CANARY}");
        environment.push((format!("URL_{fault}"), url));
    }
    environment
}

#[tokio::test]
async fn no_secret_is_seen_wherever_one_looks() {
    let sns = Sns::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    let router = axum::Router::new().fallback(parrot);
    tasks.spawn(async { axum::serve(listener, router).await.unwrap() });
    let folder = folder();
    let (ports, nobody) = ([free_port(), free_port()], free_port());
    let config = folder.path().join("runbell.toml");
    std::fs::write(&config, settings(&sns, &base, ports, nobody)).unwrap();
    let environment = environment(&base, nobody);
    let runbell = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runbell"));
        command.args(arguments).args(["--config"]).arg(&config);
        command.env_clear().envs(environment.clone());
        command
    };
    let log = folder.path().join("log");
    let service = Service {
        process: runbell(&["serve"])
            .env("RUST_LOG", "trace")
            .stderr(std::fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    };
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |path: &str| {
        let url = format!("http://127.0.0.1:{}{path}", ports[1]);
        let answer = client.get(url).send().await.ok()?;
        answer.error_for_status().ok()?.text().await.ok()
    };
    until("the service", async || get("/-/healthy").await).await;
    let message = sns.status("m-1", "i-1", "Failed", Clock::system().now());
    let url = format!("http://127.0.0.1:{}/sns", ports[0]);
    let mut post = client.post(url).body(message);
    for (name, value) in [
        ("x-amz-sns-message-type", "Notification"),
        ("x-amz-sns-topic-arn", TOPIC),
    ] {
        post = post.header(name, value);
    }
    assert_eq!(post.send().await.unwrap().status(), 200);
    // Each was tried at least once.
    let sinks = 2 * FAULTS.len() + 4;
    let shown = until("an attempt of every sink", async || {
        let shown = get("/api/v1/events/1").await?;
        let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let tried = value["deliveries"].as_array()?.iter();
        let tried = tried.filter(|it| it["history"].as_array().is_some_and(|all| !all.is_empty()));
        (tried.count() == sinks).then_some(shown)
    })
    .await;
    let mut seen = vec![("the API", shown)];
    seen.push(("the metrics", get("/metrics").await.unwrap()));
    seen.push(("the sinks", get("/api/v1/tally").await.unwrap()));
    let body = folder.path().join("message.json");
    let text = r#"{"commandId":"c","documentName":"d","instanceId":"i-1","status":"Failed"}"#;
    std::fs::write(&body, text).unwrap();
    for arguments in [
        &["event", "show", "1"][..],
        &["event", "show", "1", "--json"],
        &["dead", "list"],
        &["route", body.to_str().unwrap()],
        &["check"],
        &["sink", "test", "hook-400"],
        &["sink", "test", "hook-302"],
        &["sink", "test", "bot-401"],
        &["sink", "test", "nobody"],
    ] {
        let done = runbell(arguments).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        assert!(!said.is_empty(), "{arguments:?}");
        seen.push(("a command", String::from_utf8_lossy(&said).into_owned()));
    }
    drop(service);
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("a delivery failed"), "{log}");
    seen.push(("the log", log));
    for (place, text) in seen {
        for secret in [CANARY, "YzRuNHJ5"] {
            let at = text.find(secret).map(|at| {
                let from = text.floor_char_boundary(at.saturating_sub(200));
                &text[from..at]
            });
            assert_eq!(at, None, "{place} shows {secret} after this");
        }
    }
}
