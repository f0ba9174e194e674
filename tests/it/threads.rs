//! What later notices of a command make of the first message: they answer it, or take its place.

use axum::http::Method;
use runbell::delivery::Digest;
use runbell::event::Status;
use runbell::render::Notice;
use runbell::retry::Verdict;
use serde_json::{Value, json};

use crate::sinks::{Asked, CASES, Case, Service, failed, open, send};

/// A service that lets its messages be edited or answered: what it says, and how it is asked.
pub(crate) struct Threaded {
    pub(crate) case: &'static Case,
    /// What it calls the message that it was sent first.
    pub(crate) message: &'static str,
    /// What it answers when that message is no more.
    gone: (u16, &'static str),
    pub(crate) is_edit: fn(&Asked) -> bool,
    /// What names the first message in an answer to it; nothing where it has no answers.
    answers: fn(&Value) -> Option<&Value>,
}

pub(crate) const THREADED: [Threaded; 3] = [
    Threaded {
        case: &CASES[2],
        message: "C1:17.5",
        gone: (200, "{\"ok\":false,\"error\":\"message_not_found\"}"),
        is_edit: |asked| {
            asked.uri.path() == "/chat.update"
                && asked.body["ts"] == "17.5"
                && asked.body["channel"] == "C1"
                && asked.body.get("unfurl_links").is_none()
        },
        answers: |body| body.get("thread_ts").filter(|ts| **ts == "17.5"),
    },
    Threaded {
        case: &CASES[4],
        message: "99",
        gone: (404, "{\"message\":\"Unknown Message\",\"code\":10008}"),
        is_edit: |asked| {
            asked.method == Method::PATCH && asked.uri.path().ends_with("/hook/messages/99")
        },
        answers: |_| None,
    },
    Threaded {
        case: &CASES[8],
        message: "7",
        gone: (
            400,
            "{\"ok\":false,\"description\":\"Bad Request: message to edit not found\"}",
        ),
        is_edit: |asked| {
            asked.uri.path().ends_with("/editMessageText") && asked.body["message_id"] == 7
        },
        answers: |body| {
            let id = body.pointer("/reply_parameters/message_id");
            id.filter(|id| **id == 7)
        },
    },
];

pub(crate) fn digest(has_news: bool, thread: Option<&str>) -> Notice {
    let digest = Digest {
        succeeded: 3,
        failed: 1,
        running: 2,
        troubled: vec![("i-0bad".to_owned(), Status::Failed)],
        has_news,
        ..Digest::default()
    };
    Notice {
        digest: Some(digest),
        thread: thread.map(str::to_owned),
        ..failed("i-0abc", "AWS-RunPatchBaseline")
    }
}

fn is_sent_to(verdict: &Verdict, message: &str) -> bool {
    *verdict
        == Verdict::Sent {
            remote_id: Some(message.to_owned()),
        }
}

#[tokio::test]
async fn a_digest_takes_the_place_of_the_one_before() {
    for it in &THREADED {
        let service = Service::start().await;
        let sink = open(it.case, &service.base, "");
        assert!(sink.keeps_threads(), "{}", it.case.kind);
        service.will_answer(it.case.sent.0, it.case.sent.1);
        let first = send(&*sink, &digest(true, None)).await;
        assert!(is_sent_to(&first, it.message), "{first:?}");
        assert!(!(it.is_edit)(&service.asked()[0]));
        service.will_answer(it.case.sent.0, it.case.sent.1);
        let next = send(&*sink, &digest(false, Some(it.message))).await;
        assert!(is_sent_to(&next, it.message), "{next:?}");
        let asked = service.asked();
        assert_eq!(
            asked.len(),
            1,
            "{}: an edit, and nothing more",
            it.case.kind
        );
        assert!(
            (it.is_edit)(&asked[0]),
            "{} {}",
            asked[0].uri,
            asked[0].body
        );
        assert!(asked[0].body.to_string().contains("2 still running"));
    }
}

#[tokio::test]
async fn bad_news_is_told_besides_since_an_edit_calls_nobody() {
    for it in &THREADED {
        let service = Service::start().await;
        let sink = open(it.case, &service.base, "");
        for _ in 0..2 {
            service.will_answer(it.case.sent.0, it.case.sent.1);
        }
        let verdict = send(&*sink, &digest(true, Some(it.message))).await;
        assert!(is_sent_to(&verdict, it.message), "{verdict:?}");
        let asked = service.asked();
        assert_eq!(asked.len(), 2, "{}", it.case.kind);
        assert!((it.is_edit)(&asked[0]) && !(it.is_edit)(&asked[1]));
        assert!(asked[1].body.to_string().contains("i-0bad"));
        if it.case.kind != "discord" {
            assert!((it.answers)(&asked[1].body).is_some(), "{}", asked[1].body);
        }
        if it.case.kind == "slack" {
            assert_eq!(asked[1].body["reply_broadcast"], json!(true));
        }
    }
}

#[tokio::test]
async fn a_message_that_is_no_more_is_sent_anew() {
    for it in &THREADED {
        let service = Service::start().await;
        let sink = open(it.case, &service.base, "");
        service.will_answer(it.gone.0, it.gone.1);
        let anew = it.case.sent.1.replace("17.5", "18.0");
        service.will_answer(it.case.sent.0, &anew);
        let verdict = send(&*sink, &digest(true, Some(it.message))).await;
        let message = it.message.replace("17.5", "18.0");
        assert!(
            is_sent_to(&verdict, &message),
            "{}: {verdict:?}",
            it.case.kind
        );
        let asked = service.asked();
        assert_eq!(asked.len(), 2, "{}", it.case.kind);
        assert!((it.answers)(&asked[1].body).is_none(), "{}", asked[1].body);
    }
}

#[tokio::test]
async fn an_edit_that_fails_is_tried_again_and_nothing_is_sent_besides() {
    for it in &THREADED {
        let service = Service::start().await;
        let sink = open(it.case, &service.base, "");
        service.will_answer(503, "");
        let verdict = send(&*sink, &digest(true, Some(it.message))).await;
        assert_eq!(verdict.word(), "retry", "{}: {verdict:?}", it.case.kind);
        assert_eq!(service.asked().len(), 1, "{}", it.case.kind);
    }
}

#[tokio::test]
async fn notices_of_one_command_answer_its_first() {
    for it in &THREADED {
        let service = Service::start().await;
        let sink = open(it.case, &service.base, "");
        service.will_answer(it.case.sent.0, it.case.sent.1);
        let notice = Notice {
            thread: Some(it.message.to_owned()),
            ..failed("i-2", "d")
        };
        let verdict = send(&*sink, &notice).await;
        assert!(is_sent_to(&verdict, it.message), "{verdict:?}");
        let asked = service.asked();
        assert_eq!(asked.len(), 1);
        assert!(!(it.is_edit)(&asked[0]));
        let has_answers = it.case.kind != "discord";
        assert_eq!((it.answers)(&asked[0].body).is_some(), has_answers);
    }
}

#[tokio::test]
async fn a_bot_reads_what_slack_means_by_its_words() {
    let case = &CASES[2];
    for (body, word) in [
        ("{\"ok\":false,\"error\":\"ratelimited\"}", "retry"),
        ("{\"ok\":false,\"error\":\"internal_error\"}", "retry"),
        ("{\"ok\":false,\"error\":\"channel_not_found\"}", "broken"),
        ("{\"ok\":false,\"error\":\"invalid_auth\"}", "broken"),
        ("{\"ok\":false,\"error\":\"a_word_of_tomorrow\"}", "broken"),
        ("<html>proxy</html>", "retry"),
        ("{}", "retry"),
    ] {
        let service = Service::start().await;
        let sink = open(case, &service.base, "");
        service.will_answer(200, body);
        let verdict = send(&*sink, &failed("i-1", "d")).await;
        assert_eq!(verdict.word(), word, "{body}: {verdict:?}");
        let asked = service.asked();
        assert_eq!(asked[0].uri.path(), "/chat.postMessage");
        assert_eq!(asked[0].body["channel"], "ops");
    }
    let service = Service::start().await;
    let sink = open(case, &service.base, "");
    service.will_answer(200, "{\"ok\":false,\"error\":\"invalid_blocks\"}");
    service.will_answer(200, case.sent.1);
    assert_eq!(send(&*sink, &failed("i-1", "d")).await.word(), "sent");
    let asked = service.asked();
    assert!(asked[1].body.get("attachments").is_none(), "as plain text");
}
