//! One suite that every sink which speaks HTTP passes, against a server on the loopback that answers as
//! it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use proptest::prelude::*;
use runbell::clock::Clock;
use runbell::config::{Config, Surroundings};
use runbell::delivery::Marks;
use runbell::event::{EnvelopeKind, Event, Source};
use runbell::render::{self, Lines, Notice, Plain, TemplateSettings, Texts};
use runbell::retry::{Scope, Verdict};
use runbell::sink::http::{Paces, Vendor};
use runbell::sink::{Kind, Permit, Sink};
use serde_json::{Value, json};

use crate::harness::app::{Runbell, Setup, until};
use crate::harness::sns::Sns;
use crate::harness::store::folder;

/// Part of every secret here: it must be seen nowhere but in requests.
const CANARY: &str = "c4n4ry";

/// How a service is set up, what it answers when all is well, and what it takes.
pub(crate) struct Case {
    pub(crate) kind: &'static str,
    settings: &'static str,
    pub(crate) sent: (u16, &'static str),
    remote_id: Option<&'static str>,
    /// Whether it is told again in plain text what it refused for its form.
    has_plain: bool,
    /// What the service would say of a payload that is beyond its limits.
    limits: fn(&Value) -> Result<(), String>,
}

pub(crate) const CASES: [Case; 11] = [
    Case {
        kind: "webhook",
        settings: "url = { env = 'URL' }\nsecrets = [{ env = 'SIGN' }]\nheaders = { x-key = { env = 'KEY' } }",
        sent: (204, ""),
        remote_id: None,
        has_plain: false,
        limits: |body| at_most("body", &body.to_string(), 600_000),
    },
    Case {
        kind: "slack",
        settings: "url = { env = 'URL' }",
        sent: (200, "ok"),
        remote_id: None,
        has_plain: true,
        limits: |body| at_most("message", &body.to_string(), 13_200),
    },
    Case {
        kind: "slack",
        settings: "api = 'BASE'\ntoken = { env = 'KEY' }\nchannel = 'ops'",
        sent: (200, "{\"ok\":true,\"channel\":\"C1\",\"ts\":\"17.5\"}"),
        remote_id: Some("C1:17.5"),
        has_plain: true,
        limits: |body| at_most("message", &body.to_string(), 13_200),
    },
    Case {
        kind: "teams",
        settings: "url = { env = 'URL' }",
        sent: (202, ""),
        remote_id: None,
        has_plain: true,
        limits: |body| {
            let bytes = body.to_string().len();
            (bytes <= 21_000)
                .then_some(())
                .ok_or(format!("{bytes} bytes"))
        },
    },
    Case {
        kind: "discord",
        settings: "url = { env = 'URL' }",
        sent: (200, "{\"id\":\"99\"}"),
        remote_id: Some("99"),
        has_plain: true,
        limits: |body| {
            let Some(embed) = body.pointer("/embeds/0") else {
                return at_most("content", text(body, "/content"), 2000);
            };
            let (title, description) = (text(embed, "/title"), text(embed, "/description"));
            at_most("title", title, 256)?;
            at_most("description", description, 4096)?;
            let fields = embed["fields"].as_array().unwrap();
            let mut sum = format!("{title}{description}{}", text(embed, "/footer/text"));
            for field in fields {
                at_most("name", text(field, "/name"), 256)?;
                at_most("value", text(field, "/value"), 1024)?;
                if text(field, "/value").is_empty() {
                    return Err("an empty value".to_owned());
                }
                sum += text(field, "/name");
                sum += text(field, "/value");
            }
            at_most("embed", &sum, 6000)
        },
    },
    Case {
        kind: "google-chat",
        settings: "url = { env = 'URL' }",
        sent: (200, "{\"name\":\"spaces/a/messages/b\"}"),
        remote_id: Some("spaces/a/messages/b"),
        has_plain: true,
        limits: |body| {
            let bytes = body.to_string().len();
            (bytes <= 32_000)
                .then_some(())
                .ok_or(format!("{bytes} bytes"))
        },
    },
    Case {
        kind: "mattermost",
        settings: "url = { env = 'URL' }\nchannel = 'town'",
        sent: (200, "ok"),
        remote_id: None,
        has_plain: true,
        limits: |body| at_most("post", &body.to_string(), 16_383),
    },
    Case {
        kind: "pagerduty",
        settings: "url = 'BASE'\nkey = { env = 'KEY' }",
        sent: (202, "{\"status\":\"success\"}"),
        remote_id: None,
        has_plain: false,
        limits: |body| {
            at_most("summary", text(body, "/payload/summary"), 1024)?;
            at_most("dedup_key", text(body, "/dedup_key"), 255)?;
            let bytes = body.to_string().len();
            (bytes <= 512_000)
                .then_some(())
                .ok_or(format!("{bytes} bytes"))
        },
    },
    Case {
        kind: "telegram",
        settings: "url = 'BASE'\ntoken = { env = 'KEY' }\nchat = '-100'",
        sent: (200, "{\"ok\":true,\"result\":{\"message_id\":7}}"),
        remote_id: Some("7"),
        has_plain: true,
        limits: |body| at_most("text", text(body, "/text"), 4096),
    },
    Case {
        kind: "ntfy",
        settings: "url = 'BASE'\ntopic = { env = 'KEY' }\ntoken = { env = 'KEY' }",
        sent: (200, "{\"id\":\"n1\"}"),
        remote_id: Some("n1"),
        has_plain: false,
        limits: |body| {
            let bytes = text(body, "/message").len();
            (bytes <= 4096)
                .then_some(())
                .ok_or(format!("{bytes} bytes"))
        },
    },
    Case {
        kind: "alertmanager",
        settings: "url = 'BASE'\nlabels = { team = 'ops' }",
        sent: (200, ""),
        remote_id: None,
        has_plain: false,
        limits: |body| {
            let (starts, ends) = (text(body, "/0/startsAt"), text(body, "/0/endsAt"));
            let at = |text: &str| text.parse::<Timestamp>().map_err(|error| error.to_string());
            (at(starts)? <= at(ends)?)
                .then_some(())
                .ok_or(format!("ends at {ends} before {starts}"))
        },
    },
];

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn at_most(what: &str, text: &str, most: usize) -> Result<(), String> {
    let chars = text.chars().count();
    (chars <= most)
        .then_some(())
        .ok_or_else(|| format!("{what} has {chars} characters"))
}

/// What a service was asked.
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    headers: HeaderMap,
    pub(crate) body: Value,
}

#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Response>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

pub(crate) struct Service {
    script: Script,
    pub(crate) base: String,
    _task: tokio::task::JoinSet<()>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        let script = Script::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let router = {
            let script = script.clone();
            axum::Router::new().fallback(
                async move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                    let body = serde_json::from_slice(&body).unwrap();
                    script.asked.lock().unwrap().push(Asked {
                        method,
                        uri,
                        headers,
                        body,
                    });
                    let answer = script.answers.lock().unwrap().pop_front();
                    match answer {
                        Some(answer) => answer,
                        None => std::future::pending().await,
                    }
                },
            )
        };
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async { axum::serve(listener, router).await.unwrap() });
        Self {
            script,
            base,
            _task: task,
        }
    }

    pub(crate) fn will_answer(&self, status: u16, body: &str) {
        self.will_say(status, &[], body);
    }

    fn will_say(&self, status: u16, headers: &[(&'static str, &str)], body: &str) {
        let status = StatusCode::from_u16(status).unwrap();
        let mut answer = (status, body.to_owned()).into_response();
        for (name, value) in headers {
            answer.headers_mut().insert(*name, value.parse().unwrap());
        }
        self.script.answers.lock().unwrap().push_back(answer);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.script.asked.lock().unwrap())
    }
}

fn configured(case: &Case, base: &str, http: &str) -> Kind {
    let settings = case.settings.replace("BASE", base);
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\n[store]\nurl = 'sqlite:x.db'\n\
         [[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'\n\
         [[route]]\nname = 'r'\nto = ['s']\n\
         [sink.s]\ntype = '{}'\n{settings}\nhttp = {{ allow_private = true, {http} }}\n",
        case.kind
    );
    let variable = |name: &str| {
        Some(match name {
            "URL" => format!("{base}/{CANARY}/hook?key={CANARY}"),
            "SIGN" => "whsec_YzRuNHJ5YzRuNHJ5YzRuNHJ5YzRuNHJ5".to_owned(),
            _ => format!("123:{CANARY}"),
        })
    };
    let around = Surroundings {
        folder: std::path::Path::new("/tmp"),
        variable: &variable,
    };
    let parsed = Config::parse(&text, std::path::Path::new("runbell.toml"), &around);
    let (mut config, _) = parsed.unwrap_or_else(|faults| panic!("{faults}"));
    config.sinks.remove(0).kind
}

pub(crate) fn open(case: &Case, base: &str, http: &str) -> Arc<dyn Sink> {
    open_at(&Clock::system(), case, base, http)
}

pub(crate) fn open_at(clock: &Clock, case: &Case, base: &str, http: &str) -> Arc<dyn Sink> {
    let configured = runbell::sink::Configured {
        name: "s".to_owned(),
        kind: configured(case, base, http),
        on: None,
        fallback: None,
        template: None,
    };
    configured.open(clock, &mut Paces::default())
}

fn vendor(case: &Case) -> Arc<dyn Vendor> {
    match configured(case, "http://127.0.0.1:9", "") {
        Kind::Http(checked) => checked.vendor,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn notice_of(body: &str) -> Notice {
    let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
    let event = Event::read(&Source {
        topic: "arn:aws:sns:eu-central-1:123456789012:run-command",
        account: "123456789012",
        region: "eu-central-1",
        message_id: "m-1",
        sent_at: now,
        subject: Some("EC2 Run Command Notification eu-central-1"),
        body,
        envelope: EnvelopeKind::Notification,
    });
    let marks = Marks {
        late: Some(Duration::from_secs(4)),
        possible_repeat: true,
        ..Marks::default()
    };
    render::notice("r", "s", event, now, marks)
}

pub(crate) fn failed(instance: &str, document: &str) -> Notice {
    let body = json!({
        "commandId": "0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11", "documentName": document,
        "instanceId": instance, "status": "Failed", "detailedStatus": "Failed",
        "eventTime": "2026-11-23T09:59:58.5Z",
    });
    notice_of(&body.to_string())
}

pub(crate) async fn send(sink: &dyn Sink, notice: &Notice) -> Verdict {
    let mut verdicts = sink
        .send(std::slice::from_ref(notice), &Permit::always())
        .await;
    assert_eq!(verdicts.len(), 1);
    verdicts.remove(0)
}

/// Everything that a person would be shown.
fn shown(verdict: &Verdict) -> String {
    format!("{verdict:?}")
}

#[tokio::test]
async fn what_is_taken_is_sent_with_its_status_and_a_link() {
    for case in &CASES {
        let service = Service::start().await;
        let sink = open(case, &service.base, "");
        service.will_answer(case.sent.0, case.sent.1);
        let verdict = send(&*sink, &failed("i-0abc", "AWS-RunShellScript")).await;
        let remote_id = case.remote_id.map(str::to_owned);
        assert_eq!(verdict, Verdict::Sent { remote_id }, "{}", case.kind);
        let asked = service.asked();
        assert_eq!(asked.len(), 1, "{}", case.kind);
        let body = asked[0].body.to_string();
        for part in ["Failed", "i-0abc", "AWS-RunShellScript"] {
            assert!(body.contains(part), "{}: {part} in {body}", case.kind);
        }
        if case.kind != "webhook" {
            let link = "https://eu-central-1.console.aws.amazon.com/systems-manager/run-command/0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11/i-0abc?region=eu-central-1";
            assert!(body.contains(link), "{}: {body}", case.kind);
        }
        (case.limits)(&asked[0].body).unwrap_or_else(|why| panic!("{}: {why}", case.kind));
    }
}

#[tokio::test]
async fn every_kind_of_answer_has_its_verdict() {
    for case in &CASES {
        let service = Service::start().await;
        for (status, word) in [
            (302, "refused"),
            (401, "broken"),
            (403, "broken"),
            (404, "broken"),
            (410, "broken"),
            (408, "retry"),
            (429, "retry"),
            (500, "retry"),
            (501, "refused"),
            (503, "retry"),
        ] {
            // Opened anew: a sink keeps the pace of its service.
            let sink = open(case, &service.base, "");
            service.will_say(status, &[("location", &service.base)], "{\"no\":1}");
            let verdict = send(&*sink, &failed("i-1", "d")).await;
            assert_eq!(verdict.word(), word, "{} {status}: {verdict:?}", case.kind);
            assert!(!shown(&verdict).contains(CANARY), "{verdict:?}");
            assert_eq!(service.asked().len(), 1, "{} {status}: one call", case.kind);
        }
    }
}

#[tokio::test]
async fn a_wait_that_is_asked_for_is_for_the_whole_sink() {
    for case in &CASES {
        let service = Service::start().await;
        let sink = open(case, &service.base, "");
        service.will_say(429, &[("retry-after", "30")], "");
        let verdict = send(&*sink, &failed("i-1", "d")).await;
        let Verdict::Retry { after, scope, .. } = verdict else {
            panic!("{}: {verdict:?}", case.kind);
        };
        assert_eq!(
            (after, scope),
            (Some(Duration::from_secs(30)), Scope::Sink),
            "{}",
            case.kind
        );
    }
    for (kind, body, seconds) in [
        ("discord", "{\"retry_after\":0.75,\"global\":false}", 0.75),
        (
            "telegram",
            "{\"ok\":false,\"parameters\":{\"retry_after\":12}}",
            12.0,
        ),
    ] {
        let case = CASES.iter().find(|case| case.kind == kind).unwrap();
        let service = Service::start().await;
        let sink = open(case, &service.base, "");
        service.will_answer(429, body);
        let verdict = send(&*sink, &failed("i-1", "d")).await;
        let Verdict::Retry { after, .. } = verdict else {
            panic!("{kind}: {verdict:?}");
        };
        assert_eq!(after, Some(Duration::from_secs_f64(seconds)), "{kind}");
    }
}

#[tokio::test]
async fn what_is_refused_for_its_form_is_told_in_plain_text() {
    for case in &CASES {
        let service = Service::start().await;
        let sink = open(case, &service.base, "");
        service.will_answer(400, "invalid_payload");
        service.will_answer(case.sent.0, case.sent.1);
        let verdict = send(&*sink, &failed("i-1", "d")).await;
        let word = if case.has_plain { "sent" } else { "refused" };
        assert_eq!(verdict.word(), word, "{}: {verdict:?}", case.kind);
        let asked = service.asked();
        assert_eq!(
            asked.len(),
            1 + usize::from(case.has_plain),
            "{}",
            case.kind
        );
        assert!(asked.last().unwrap().body.to_string().contains("Failed"));
    }
}

#[tokio::test]
async fn who_does_not_answer_may_have_heard_and_who_is_not_there_has_not() {
    for case in &CASES {
        let service = Service::start().await;
        let sink = open(case, &service.base, "timeout = '200ms'");
        let verdict = send(&*sink, &failed("i-1", "d")).await;
        assert_eq!(verdict.word(), "unknown", "{}: {verdict:?}", case.kind);
        assert!(!shown(&verdict).contains(CANARY), "{verdict:?}");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let verdict = send(&*open(case, &nobody, ""), &failed("i-1", "d")).await;
        let is_of_the_sink = verdict.word() == "retry" && verdict.is_of_the_sink();
        assert!(is_of_the_sink, "{}: {verdict:?}", case.kind);
        assert!(!shown(&verdict).contains(CANARY), "{verdict:?}");
    }
}

#[tokio::test]
async fn nothing_in_a_message_means_anything_to_a_service() {
    let evil = "<!channel> <@U1> @everyone @here [x](http://evil) <b>b</b> `code` *bold*";
    for case in &CASES {
        let service = Service::start().await;
        let sink = open(case, &service.base, "");
        service.will_answer(case.sent.0, case.sent.1);
        send(&*sink, &failed("i-1", evil)).await;
        let asked = service.asked();
        let forbidden: &[&str] = match case.kind {
            "slack" => &["<!channel>", "<@U1>", " *bold*"],
            "discord" | "mattermost" => &["@everyone", "@here", "[x](", " *bold*"],
            "telegram" | "google-chat" => &["<b>b</b>"],
            _ => &[],
        };
        let mut read = String::new();
        let headline = [
            asked[0].body.pointer("/cardsV2/0/card/header"),
            asked[0].body.get("fallbackText"),
        ];
        collect(&asked[0].body, &mut read, &headline);
        if case.kind == "slack" {
            // Rich text says by type what is a mention; markup is read in the fallback alone.
            let fallback = text(&asked[0].body, "/attachments/0/fallback");
            only_text_and_links(&asked[0].body["attachments"][0]["blocks"]);
            read = fallback.to_owned();
        }
        if case.kind == "mattermost" {
            // What a notification shows is never read as markup.
            read = read.replace(text(&asked[0].body, "/attachments/0/fallback"), "");
        }
        for part in forbidden {
            assert!(!read.contains(part), "{}: {part} in {read}", case.kind);
        }
        if case.kind == "discord" {
            assert_eq!(asked[0].body["allowed_mentions"], json!({ "parse": [] }));
        }
    }
}

/// A payload of each service but those whose lines have everything that was signed.
fn payloads(notice: &Notice) -> impl Iterator<Item = (&'static str, String)> {
    let cases = CASES.iter().filter(|case| case.kind != "webhook");
    cases.map(|case| {
        let body = vendor(case).call(notice, Timestamp::UNIX_EPOCH).body;
        (case.kind, String::from_utf8(body).unwrap())
    })
}

/// Google Chat refuses a widget without text, Rocket.Chat a link that is null.
#[test]
fn what_there_is_nothing_of_is_left_out() {
    for (kind, payload) in payloads(&notice_of("\n")) {
        assert!(!payload.contains("null"), "{kind}: {payload}");
        assert!(!payload.contains("\"text\":\"\""), "{kind}: {payload}");
    }
}

#[test]
fn no_service_is_sent_what_hides_or_moves_text() {
    let hostile = "a\u{202e}b\r\nc\u{7f}d";
    let body = json!({
        "commandId": hostile, "documentName": hostile, "instanceId": hostile, "status": "Failed",
        "detailedStatus": hostile,
    });
    for (kind, payload) in payloads(&notice_of(&body.to_string())) {
        assert!(payload.contains("ab  cd"), "{kind}: {payload}");
        for hidden in ["\u{202e}", "\\r", "\u{7f}"] {
            assert!(!payload.contains(hidden), "{kind}: {payload}");
        }
    }
}

fn only_text_and_links(blocks: &Value) {
    match blocks {
        Value::Array(each) => each.iter().for_each(only_text_and_links),
        Value::Object(parts) => {
            let known = [
                "rich_text",
                "rich_text_section",
                "rich_text_preformatted",
                "text",
                "link",
            ];
            assert!(
                known.contains(&parts["type"].as_str().unwrap()),
                "{parts:?}"
            );
            parts
                .get("elements")
                .iter()
                .for_each(|it| only_text_and_links(it));
        }
        _ => panic!("{blocks}"),
    }
}

/// All texts of a value, but those of `plain`, which the service never reads as markup.
fn collect(value: &Value, into: &mut String, plain: &[Option<&Value>]) {
    if plain.iter().flatten().any(|it| std::ptr::eq(*it, value)) {
        return;
    }
    match value {
        Value::String(text) => {
            into.push_str(text);
            into.push('\n');
        }
        Value::Array(values) => values.iter().for_each(|it| collect(it, into, plain)),
        Value::Object(values) => values.values().for_each(|it| collect(it, into, plain)),
        _ => {}
    }
}

#[tokio::test]
async fn a_webhook_is_signed_and_its_id_is_the_same_at_every_try() {
    let case = &CASES[0];
    let service = Service::start().await;
    let sink = open(case, &service.base, "");
    service.will_answer(503, "");
    service.will_answer(204, "");
    let notice = failed("i-1", "d");
    assert_eq!(send(&*sink, &notice).await.word(), "retry");
    assert_eq!(send(&*sink, &notice).await.word(), "sent");
    let asked = service.asked();
    let header = |at: usize, name: &str| asked[at].headers[name].to_str().unwrap().to_owned();
    assert_eq!(header(0, "webhook-id"), notice.id);
    assert_eq!(header(0, "webhook-id"), header(1, "webhook-id"));
    assert!(header(0, "webhook-signature").starts_with("v1,"));
    assert_eq!(header(0, "x-key"), format!("123:{CANARY}"));
    assert_eq!(asked[0].uri.path(), format!("/{CANARY}/hook"));
    assert_eq!(asked[0].body["status"], "Failed");
}

#[tokio::test]
async fn a_payload_can_be_a_template_of_its_own() {
    let case = Case {
        settings: "url = { env = 'URL' }\nsecrets = [{ env = 'SIGN' }]\n\
                   payload = '{\"text\": {{ title | tojson }}, \"doc\": {{ document | tojson }}{% if instance == \"i-9\" %}, oops{% endif %}}'",
        ..webhook()
    };
    let service = Service::start().await;
    let sink = open(&case, &service.base, "");
    service.will_answer(204, "");
    let evil = "\"}, {\"a\": \"b";
    assert_eq!(send(&*sink, &failed("i-1", evil)).await.word(), "sent");
    let asked = service.asked();
    assert_eq!(asked[0].body["doc"], evil);
    assert_eq!(asked[0].body.as_object().unwrap().len(), 2);
    assert!(asked[0].headers.contains_key("webhook-signature"));
    // One that turns out to write no JSON costs the notice its words and nothing else.
    service.will_answer(204, "");
    assert_eq!(send(&*sink, &failed("i-9", "d")).await.word(), "sent");
    assert_eq!(service.asked()[0].body["instance"], "i-9");
}

fn webhook() -> Case {
    let [webhook, ..] = CASES;
    webhook
}

#[tokio::test]
async fn a_template_chooses_the_words_and_means_nothing_to_a_service() {
    let settings = TemplateSettings {
        title: Some("{{ document }} {{ status }}".to_owned()),
        body: Some("<!channel> on\n*{{ instance }}*".to_owned()),
    };
    let template = settings.check().unwrap();
    for case in CASES.iter().filter(|case| case.kind != "webhook") {
        let service = Service::start().await;
        let sink = open(case, &service.base, "");
        assert!(sink.speaks_to_people(), "{}", case.kind);
        service.will_answer(case.sent.0, case.sent.1);
        let notice = failed("i-0abc", "AWS-Doc").in_words_of(Some(&template));
        assert_eq!(send(&*sink, &notice).await.word(), "sent");
        let body = service.asked()[0].body.to_string();
        assert!(body.contains("AWS-Doc Failed"), "{}: {body}", case.kind);
        assert!(!body.contains("Event time"), "{}: {body}", case.kind);
        assert!(
            body.contains("console.aws.amazon.com"),
            "{}: {body}",
            case.kind
        );
        if case.kind == "google-chat" || case.kind == "telegram" {
            assert!(!body.contains("<!channel>"), "{body}");
        }
    }
}

#[tokio::test]
async fn people_are_called_when_it_was_said_whom_and_only_for_failures() {
    let url = "url = { env = 'URL' }";
    for (kind, mention, called) in [
        (
            "slack",
            "['here', 'U0123456', 'S0123456']",
            &[
                "{\"range\":\"here\",\"type\":\"broadcast\"}",
                "\"user_id\":\"U0123456\"",
                "\"usergroup_id\":\"S0123456\"",
            ][..],
        ),
        (
            "discord",
            "['here', '@123456', '@&1234567']",
            &["\"content\":\"@here <@123456> <@&1234567>\""],
        ),
        (
            "mattermost",
            "['here', 'ann.b']",
            &["\"text\":\"@here @ann.b\""],
        ),
    ] {
        let settings = format!("{url}\nmention = {mention}").leak();
        let case = CASES.iter().find(|case| case.kind == kind).unwrap();
        let case = Case {
            kind,
            settings,
            sent: case.sent,
            ..webhook()
        };
        let service = Service::start().await;
        let sink = open(&case, &service.base, "");
        let success = notice_of(
            &json!({ "commandId": "c-1", "documentName": "d", "instanceId": "i-1", "status": "Success" })
                .to_string(),
        );
        for notice in [failed("i-1", "d"), success] {
            service.will_answer(case.sent.0, case.sent.1);
            assert_eq!(send(&*sink, &notice).await.word(), "sent");
        }
        let asked = service.asked();
        for part in called {
            assert!(
                asked[0].body.to_string().contains(part),
                "{}",
                asked[0].body
            );
            assert!(
                !asked[1].body.to_string().contains(part),
                "{}",
                asked[1].body
            );
        }
    }
}

#[tokio::test]
async fn a_success_is_a_change_and_an_incident_ends_when_another_end_is_told() {
    let case = CASES.iter().find(|case| case.kind == "pagerduty").unwrap();
    let service = Service::start().await;
    let sink = open(case, &service.base, "");
    let status = |status: &str| {
        notice_of(
            &json!({
                "commandId": "c-1", "documentName": "d", "instanceId": "i-1", "status": status,
                "eventTime": "2026-11-23T09:59:58.5Z",
            })
            .to_string(),
        )
    };
    for _ in 0..3 {
        service.will_answer(202, "{}");
    }
    for word in ["Success", "Failed"] {
        assert_eq!(send(&*sink, &status(word)).await.word(), "sent");
    }
    let mut after_all = status("Success");
    after_all.marks.conflict = true;
    assert_eq!(send(&*sink, &after_all).await.word(), "sent");
    let asked = service.asked();
    assert_eq!(asked[0].uri.path(), "/v2/change/enqueue");
    assert_eq!(asked[1].uri.path(), "/v2/enqueue");
    assert_eq!(asked[1].body["event_action"], "trigger");
    assert_eq!(asked[2].body["event_action"], "resolve");
    assert_eq!(asked[1].body["dedup_key"], asked[2].body["dedup_key"]);
}

#[test]
fn private_addresses_and_plain_http_are_refused_unless_they_are_meant() {
    let text = |url: &str, http: &str| {
        format!(
            "[store]\nurl = 'sqlite:x.db'\n\
             [[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'\n\
             [[route]]\nname = 'r'\nto = ['s']\n[server]\nlisten = '127.0.0.1:0'\n\
             [sink.s]\ntype = 'alertmanager'\nurl = '{url}'\n{http}"
        )
    };
    let check = |text: &str| {
        let around = Surroundings {
            folder: std::path::Path::new("/tmp"),
            variable: &|_| None,
        };
        let parsed = Config::parse(text, std::path::Path::new("runbell.toml"), &around);
        parsed.map(drop).map_err(|faults| faults.to_string())
    };
    for (url, why) in [
        ("https://169.254.169.254/", "this address is private"),
        ("https://[::1]:9093", "this address is private"),
        ("https://0x7f.1/", "this address is private"),
        ("http://alerts.example.com", "without TLS"),
        ("ftp://example.com", "no URL of a web service"),
        ("alerts", "no URL"),
    ] {
        let said = check(&text(url, "")).unwrap_err();
        assert!(said.contains(why), "{url}: {said}");
    }
    let meant = "http = { allow_private = true }";
    assert_eq!(check(&text("http://127.0.0.1:9093", meant)), Ok(()));
    assert_eq!(check(&text("https://alerts.example.com", "")), Ok(()));
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,40}",
        "[<>&*_`@\\[\\]()~|\\\\#!\"']{0,400}",
        "\\PC{0,3000}",
        "x{0,20000}",
        "(😀|é|\u{202e}|\u{0}|\n){0,2000}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    /// Whatever a message says, what is sent is within the limits, and says the status.
    #[test]
    fn any_message_fits_any_service(
        document in any_text(), instance in any_text(), command in any_text(), other in any_text(),
        is_status in any::<bool>(), title in any_text(), has_template in any::<bool>(),
    ) {
        let body = if is_status {
            json!({
                "commandId": command, "documentName": document, "instanceId": instance,
                "status": "Failed", "detailedStatus": other, "eventTime": "2026-11-23T09:59:58.5Z",
            }).to_string()
        } else {
            other
        };
        let mut notice = notice_of(&body);
        if has_template {
            let title = Some(Plain::new(&format!("Failed essage {title}")));
            let body = Some(Lines::new(&document));
            notice.texts = Some(Ok(Texts { title, body }));
        }
        let at: Timestamp = "2026-11-23T10:00:01Z".parse().unwrap();
        for case in &CASES {
            let vendor = vendor(case);
            for call in [Some(vendor.call(&notice, at)), vendor.plain(&notice, at)].into_iter().flatten() {
                let sent: Value = serde_json::from_slice(&call.body).unwrap();
                let fits = (case.limits)(&sent);
                prop_assert!(fits.is_ok(), "{}: {:?} {}", case.kind, fits, sent);
                let status = if notice.event.command().is_some() { "Failed" } else { "essage" };
                prop_assert!(sent.to_string().contains(status), "{}: {}", case.kind, sent);
            }
        }
    }
}

/// A file beside a webhook that leads to `service`.
async fn beside_a_file(service: &Service, http: &str, order: &str) -> (Sns, Runbell) {
    let sns = Sns::start().await;
    let folder = Arc::new(folder());
    std::fs::write(folder.path().join("url"), format!("{}/hook", service.base)).unwrap();
    let routes = format!(
        "[sink.audit]\ntype = 'file'\npath = 'audit.jsonl'\n\
         [sink.hook]\ntype = 'webhook'\nurl = {{ file = 'url' }}\n\
         http = {{ allow_private = true, {http} }}\n\
         [[route]]\nname = 'all'\nto = ['audit', 'hook']\norder = '{order}'\n{}",
        if order == "none" { "" } else { "hold = '0s'\n" }
    );
    let setup = Setup {
        routes,
        ..Setup::default()
    };
    let runbell = Runbell::start_in(folder, &sns, setup).await;
    (sns, runbell)
}

#[tokio::test]
async fn a_sink_that_hangs_keeps_no_other_waiting_and_is_not_hammered() {
    let service = Service::start().await;
    let (sns, runbell) = beside_a_file(&service, "timeout = '60s'", "none").await;
    let now = Clock::system().now();
    for number in 0..100 {
        let id = format!("m-{number}");
        assert_eq!(
            runbell.post(sns.status(&id, &id, "Success", now)).await,
            200
        );
    }
    assert_eq!(runbell.lines("audit.jsonl", 100).await.len(), 100);
    // As many as it takes at once, and no more before they end.
    until("four calls", async || {
        (service.script.asked.lock().unwrap().len() == 4).then_some(())
    })
    .await;
    let waiting = "runbell_waiting{sink=\"hook\"}";
    assert!((runbell.metric(waiting).await - 100.0).abs() < 0.5);
}

#[tokio::test]
async fn a_sink_that_asks_for_a_rest_gets_it_and_then_everything_in_order() {
    let service = Service::start().await;
    let (sns, runbell) = beside_a_file(&service, "", "topic").await;
    service.will_say(429, &[("retry-after", "1.5")], "");
    for _ in 0..30 {
        service.will_answer(204, "");
    }
    let now = Clock::system().now();
    for number in 0..30 {
        let id = format!("m-{number:02}");
        let at = now + jiff::SignedDuration::from_millis(number);
        assert_eq!(runbell.post(sns.status(&id, &id, "Success", at)).await, 200);
    }
    runbell.lines("audit.jsonl", 30).await;
    assert!(
        service.script.asked.lock().unwrap().len() <= 1,
        "it was asked while it rests"
    );
    until("all of them", async || {
        (service.script.asked.lock().unwrap().len() == 31).then_some(())
    })
    .await;
    let asked = service.asked();
    let told: Vec<_> = asked[1..]
        .iter()
        .map(|asked| text(&asked.body, "/message_id").to_owned())
        .collect();
    let in_order: Vec<_> = (0..30).map(|number| format!("m-{number:02}")).collect();
    assert_eq!(told, in_order);
    assert_eq!(
        asked[0].headers["webhook-id"],
        asked[1].headers["webhook-id"]
    );
    let history = until("both attempts", async || {
        let (_, shown) = runbell.admin("/api/v1/events/1").await;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let deliveries = shown["deliveries"].as_array().unwrap();
        let hook = deliveries.iter().find(|it| it["sink"] == "hook").unwrap();
        let history = hook["history"].as_array().unwrap().clone();
        (history.len() == 2).then_some(history)
    })
    .await;
    let results = [&history[0]["result"], &history[1]["result"]];
    assert_eq!(results, ["retry", "sent"]);
    assert_eq!(history[0]["answer"], "429");
    for attempt in &history {
        let took = attempt["took_seconds"].as_f64().unwrap();
        assert!(took > 0.0 && took < 15.0, "{attempt}");
    }
}
