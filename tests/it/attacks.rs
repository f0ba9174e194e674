//! What must be refused, at the door of the running service, and that it leaves no trace.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use runbell::clock::Clock;
use runbell::sns::signer::{Certificate, Draft, Signer};

use crate::harness::app::{Runbell, Setup, until};
use crate::harness::sns::{Answer, Sns, TOPIC};

fn now() -> Timestamp {
    Clock::system().now()
}

/// Nothing was kept, nothing owed.
async fn assert_untouched(runbell: &Runbell) {
    let (_, events) = runbell.admin("/api/v1/events").await;
    assert!(events.contains("\"events\":[]"), "{events}");
    let (_, subscriptions) = runbell.admin("/api/v1/subscriptions").await;
    assert!(
        subscriptions.contains("\"subscriptions\":[]"),
        "{subscriptions}"
    );
    assert!(!runbell.path("audit.jsonl").exists());
}

#[tokio::test]
async fn what_is_signed_for_a_foreign_topic_has_no_effect() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    for kind in [
        "Notification",
        "SubscriptionConfirmation",
        "UnsubscribeConfirmation",
    ] {
        let foreign = Draft {
            kind: kind.to_owned(),
            topic: "arn:aws:sns:eu-central-1:999999999999:run-command".to_owned(),
            ..Sns::draft("m", "hello", now())
        };
        assert_eq!(runbell.post(sns.envelope(&foreign)).await, 403);
    }
    assert_eq!(
        sns.asked(),
        Vec::<String>::new(),
        "nothing was fetched or confirmed"
    );
    assert_untouched(&runbell).await;
}

#[tokio::test]
async fn what_is_forged_has_no_effect_and_is_kept_to_be_judged_again() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let mut forged = sns.fields(&Sns::draft("m", "hello", now()));
    forged.insert("Message".to_owned(), "forged".into());
    let forged = serde_json::Value::Object(forged).to_string();
    assert_eq!(runbell.post(forged).await, 403);
    assert_untouched(&runbell).await;
    let (_, refused) = runbell.admin("/api/v1/refused").await;
    assert!(refused.contains("\"word\":\"signature\""), "{refused}");
    let sample = format!("runbell_received_total{{topic=\"{TOPIC}\",result=\"signature\"}}");
    assert!(runbell.metric(&sample).await >= 1.0);
    let url = format!("http://{}/api/v1/refused/1/judge", runbell.admin);
    let judged = runbell
        .http
        .post(url)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(judged.contains("\"accepted\":false"), "{judged}");
}

#[tokio::test]
async fn raw_messages_and_what_is_no_envelope_are_refused() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let raw = runbell
        .http
        .post(runbell.url("/sns"))
        .header("x-amz-sns-rawdelivery", "true")
        .body("{\"commandId\":\"c\"}");
    assert_eq!(raw.send().await.unwrap().status().as_u16(), 403);
    for body in ["", "{}", "hello", "[]", "{\"Type\":\"Notification\"}"] {
        assert_eq!(runbell.post(body).await, 400, "{body}");
    }
    assert_untouched(&runbell).await;
}

#[tokio::test]
async fn headers_that_contradict_the_body_are_refused() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let body = sns.envelope(&Sns::draft("m-1", "hello", now()));
    for (name, value) in [
        ("x-amz-sns-message-id", "m-2"),
        ("x-amz-sns-message-type", "SubscriptionConfirmation"),
        (
            "x-amz-sns-topic-arn",
            "arn:aws:sns:eu-central-1:123456789012:other",
        ),
    ] {
        let request = runbell.http.post(runbell.url("/sns")).header(name, value);
        let answer = request.body(body.clone()).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 403, "{name}");
    }
    assert_untouched(&runbell).await;
}

#[tokio::test]
async fn a_replay_is_answered_and_changes_nothing_even_after_a_restart() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let body = sns.status("m-1", "i-1", "Success", now());
    assert_eq!(runbell.post(body.clone()).await, 200);
    assert_eq!(runbell.post(body.clone()).await, 200);
    assert_eq!(runbell.lines("audit.jsonl", 1).await.len(), 1);
    let folder = runbell.stop().await;
    // Two hours later it is stale, and known all the same.
    let clock = Clock::by_hand(now() + SignedDuration::from_hours(2));
    let setup = Setup {
        clock,
        ..Setup::default()
    };
    let runbell = Runbell::start_in(folder, &sns, setup).await;
    assert_eq!(runbell.post(body).await, 200);
    let known = format!("runbell_received_total{{topic=\"{TOPIC}\",result=\"known\"}}");
    assert!(runbell.metric(&known).await >= 1.0);
    let (_, events) = runbell.admin("/api/v1/events").await;
    assert_eq!(events.matches("\"message_id\"").count(), 1, "{events}");
    assert_eq!(
        sns.asked(),
        ["certificate"],
        "the restart needed no network"
    );
}

#[tokio::test]
async fn what_is_stale_is_refused_and_what_comes_from_the_future_comes_again() {
    let sns = Sns::start().await;
    let at = now();
    let setup = Setup {
        clock: Clock::by_hand(at),
        ..Setup::default()
    };
    let runbell = Runbell::start(&sns, setup).await;
    for (seconds, status) in [(-5401, 403), (301, 503), (-5399, 200), (299, 200)] {
        let signed_at = at + SignedDuration::from_secs(seconds);
        let body = sns.envelope(&Sns::draft(&format!("m{seconds}"), "hello", signed_at));
        assert_eq!(runbell.post(body).await, status, "{seconds}");
    }
}

#[tokio::test]
async fn a_certificate_elsewhere_is_not_fetched() {
    let elsewhere = Sns::start().await;
    let sns = Sns::start_with(|_| {
        Signer::new(
            &format!("{}/certificate.pem", elsewhere.base),
            &Certificate::default(),
        )
        .unwrap()
    })
    .await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    assert_eq!(
        runbell
            .post(sns.envelope(&Sns::draft("m", "hello", now())))
            .await,
        403
    );
    assert!(elsewhere.asked().is_empty() && sns.asked().is_empty());
    assert_untouched(&runbell).await;
}

#[tokio::test]
async fn what_is_fetched_must_be_a_certificate_of_the_right_kind() {
    let good = Sns::start().await;
    let pem = String::from_utf8(good.signer.pem().unwrap()).unwrap();
    let weak = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
    let weak = Signer::with_key(weak, "", &Certificate::default())
        .unwrap()
        .pem()
        .unwrap();
    let expired = Certificate {
        not_after: now().as_second() - 60,
        ..Certificate::default()
    };
    let expired = Signer::new("", &expired).unwrap().pem().unwrap();
    let redirect = Answer {
        location: Some(format!("{}/other.pem", good.base)),
        ..Answer::of(302, "")
    };
    for (name, answer, status) in [
        ("a redirect", redirect, 503),
        ("not there", Answer::of(404, ""), 503),
        ("in trouble", Answer::of(500, ""), 503),
        ("without content", Answer::of(204, ""), 503),
        ("too large", Answer::of(200, vec![b' '; 70_000]), 503),
        ("in XML", Answer::of(200, format!("<x>{pem}</x>")), 403),
        ("two of them", Answer::of(200, pem.repeat(2)), 403),
        ("weak", Answer::of(200, weak), 403),
        ("expired", Answer::of(200, expired), 503),
    ] {
        let sns = Sns::start().await;
        sns.certificate_is(answer);
        let runbell = Runbell::start(&sns, Setup::default()).await;
        let body = sns.envelope(&Sns::draft("m", "hello", now()));
        assert_eq!(runbell.post(body).await, status, "{name}");
        assert_untouched(&runbell).await;
        assert!(good.asked().is_empty(), "{name}: a redirect was followed");
    }
}

#[tokio::test]
async fn a_failed_fetch_is_remembered_for_less_than_sns_waits() {
    let sns = Sns::start().await;
    let at = now();
    let clock = Clock::by_hand(at);
    let runbell = Runbell::start(
        &sns,
        Setup {
            clock,
            ..Setup::default()
        },
    )
    .await;
    sns.certificate_is(Answer::of(404, ""));
    for id in 0..5 {
        let body = sns.envelope(&Sns::draft(&format!("m-{id}"), "hello", at));
        assert_eq!(runbell.post(body).await, 503);
    }
    assert_eq!(sns.asked().len(), 1);
    sns.certificate_is(Answer::of(200, sns.signer.pem().unwrap()));
    runbell.clock.advance(Duration::from_secs(16));
    let body = sns.envelope(&Sns::draft("m-0", "hello", at));
    assert_eq!(runbell.post(body).await, 200);
    assert_eq!(sns.asked().len(), 2);
}

#[tokio::test]
async fn many_requests_share_one_fetch_and_strangers_cause_few() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let bodies = (0..20).map(|id| sns.envelope(&Sns::draft(&format!("m-{id}"), "hello", now())));
    let answers = futures_util::future::join_all(bodies.map(|body| runbell.post(body))).await;
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    assert_eq!(sns.asked().len(), 1);
    // Names that differ are fetches that differ, up to what one address may cause.
    for number in 0..30 {
        let mut fields = sns.fields(&Sns::draft("m", "hello", now()));
        let url = format!("{}/stranger-{number}.pem", sns.base);
        fields.insert("SigningCertURL".to_owned(), url.into());
        let status = runbell
            .post(serde_json::Value::Object(fields).to_string())
            .await;
        assert_eq!(status, 503);
    }
    let budget =
        format!("runbell_received_total{{topic=\"{TOPIC}\",result=\"certificate-budget\"}}");
    assert!(runbell.metric(&budget).await >= 25.0);
    let body = sns.envelope(&Sns::draft("m-later", "hello", now()));
    assert_eq!(
        runbell.post(body).await,
        200,
        "what is kept needs no budget"
    );
}

#[tokio::test]
async fn a_compatible_service_that_begins_anew_is_asked_once_more() {
    let sns = Sns::start().await;
    let at = now();
    let clock = Clock::by_hand(at);
    let runbell = Runbell::start(
        &sns,
        Setup {
            clock,
            ..Setup::default()
        },
    )
    .await;
    assert_eq!(
        runbell
            .post(sns.envelope(&Sns::draft("m-1", "hello", at)))
            .await,
        200
    );
    let url = format!("{}/certificate.pem", sns.base);
    let anew = Signer::new(&url, &Certificate::default()).unwrap();
    sns.certificate_is(Answer::of(200, anew.pem().unwrap()));
    let body = anew.envelope(&Sns::draft("m-2", "hello", at)).unwrap();
    let body = serde_json::Value::Object(body).to_string();
    assert_eq!(
        runbell.post(body.clone()).await,
        403,
        "what was just fetched is current"
    );
    runbell.clock.advance(Duration::from_secs(11));
    assert_eq!(runbell.post(body).await, 200);
    assert_eq!(sns.asked().len(), 2);
    let old = sns.envelope(&Sns::draft("m-3", "hello", at));
    assert_eq!(runbell.post(old).await, 403);
    assert_eq!(sns.asked().len(), 2, "what is forged causes no fetch");
}

#[tokio::test]
async fn a_confirmation_calls_a_fixed_host_with_topic_and_token_only() {
    let sns = Sns::start().await;
    let victim = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let draft = Draft {
        kind: "SubscriptionConfirmation".to_owned(),
        ..Sns::draft("m-1", "You have chosen to subscribe", now())
    };
    // Its SubscribeURL leads to AWS, which is not reachable here; nobody may even try.
    assert_eq!(runbell.post(sns.envelope(&draft)).await, 200);
    let asked = sns.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1].contains("Action=ConfirmSubscription"), "{asked:?}");
    assert!(asked[1].contains("Token=0123456789abcdef"), "{asked:?}");
    assert!(victim.asked().is_empty());
    let (_, subscriptions) = runbell.admin("/api/v1/subscriptions").await;
    assert!(
        !subscriptions.contains("0123456789abcdef"),
        "the token is shown: {subscriptions}"
    );
    assert!(
        !subscriptions.contains("\"confirmed_at\":null"),
        "{subscriptions}"
    );
    // Told again it is known, and confirmed no second time.
    assert_eq!(runbell.post(sns.envelope(&draft)).await, 200);
    assert_eq!(sns.asked().len(), 2);
    let lines = runbell.lines("audit.jsonl", 1).await;
    assert_eq!(lines[0]["kind"], "subscribe");
}

#[tokio::test]
async fn a_confirmation_that_fails_comes_again_and_one_that_is_refused_does_not() {
    let sns = Sns::start().await;
    let setup = Setup {
        clock: Clock::by_hand(now()),
        ..Setup::default()
    };
    let runbell = Runbell::start(&sns, setup).await;
    let draft = |id: &str, token: &str| Draft {
        kind: "SubscriptionConfirmation".to_owned(),
        token: token.to_owned(),
        ..Sns::draft(id, "subscribe", now())
    };
    let first = sns.envelope(&draft("m-1", "aaaa"));
    sns.confirmation_is(Answer::of(500, ""));
    assert_eq!(runbell.post(first.clone()).await, 503);
    let asked = sns.asked().len();
    sns.confirmation_is(Answer::of(200, "<p>Welcome</p>"));
    // Whoever tells it again at once makes nobody call.
    assert_eq!(runbell.post(first.clone()).await, 503);
    assert_eq!(sns.asked().len(), asked);
    runbell.clock.advance(Duration::from_secs(20));
    assert_eq!(
        runbell.post(first.clone()).await,
        503,
        "it names no subscription"
    );
    runbell.clock.advance(Duration::from_secs(20));
    sns.confirmation_is(Answer::of(200, "<SubscriptionArn>arn</SubscriptionArn>"));
    assert_eq!(runbell.post(first).await, 200);
    sns.confirmation_is(Answer::of(400, "<Code>InvalidParameter</Code>"));
    let refused = sns.envelope(&draft("m-2", "bbbb"));
    assert_eq!(runbell.post(refused.clone()).await, 200);
    let asked = sns.asked().len();
    assert_eq!(runbell.post(refused).await, 200);
    assert_eq!(
        sns.asked().len(),
        asked,
        "a token that was refused is not tried again"
    );
    let (_, subscriptions) = runbell.admin("/api/v1/subscriptions").await;
    assert_eq!(
        subscriptions.matches("\"confirmed_at\":null").count(),
        1,
        "{subscriptions}"
    );
}

#[tokio::test]
async fn a_person_confirms_where_the_settings_say_so() {
    let sns = Sns::start().await;
    let setup = Setup {
        topic: "confirm = false".to_owned(),
        ..Setup::default()
    };
    let runbell = Runbell::start(&sns, setup).await;
    let draft = Draft {
        kind: "SubscriptionConfirmation".to_owned(),
        ..Sns::draft("m-1", "subscribe", now())
    };
    assert_eq!(runbell.post(sns.envelope(&draft)).await, 200);
    assert_eq!(sns.asked(), ["certificate"]);
    let url = |id: u32| format!("http://{}/api/v1/subscriptions/{id}/confirm", runbell.admin);
    let confirm = async |id| {
        runbell
            .http
            .post(url(id))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(confirm(7).await, 404);
    assert_eq!(confirm(1).await, 204);
    assert_eq!(sns.asked().len(), 2);
}

#[tokio::test]
async fn an_end_of_subscription_is_an_event_and_never_subscribes_again() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let draft = Draft {
        kind: "UnsubscribeConfirmation".to_owned(),
        ..Sns::draft("m-1", "You have chosen to deactivate", now())
    };
    assert_eq!(runbell.post(sns.envelope(&draft)).await, 200);
    let lines = runbell.lines("audit.jsonl", 1).await;
    assert_eq!(lines[0]["kind"], "unsubscribe");
    assert_eq!(sns.asked(), ["certificate"], "it was not confirmed");
}

#[tokio::test]
async fn a_slow_certificate_holds_up_nobody_else() {
    let slow = Sns::start().await;
    let runbell = Runbell::start(&slow, Setup::default()).await;
    slow.certificate_is(Answer {
        hangs: true,
        ..Answer::of(200, "")
    });
    let body = slow.envelope(&Sns::draft("m", "hello", now()));
    let waiting = runbell.post(body);
    tokio::pin!(waiting);
    until("the fetch", async || {
        let _ = futures_util::poll!(&mut waiting);
        (!slow.asked().is_empty()).then_some(())
    })
    .await;
    assert_eq!(runbell.post("{}").await, 400);
    assert_eq!(waiting.await, 503);
}
