//! Envelopes that the signer made, and what was then done to them.

use openssl::ec::{EcGroup, EcKey};
use openssl::nid::Nid;
use openssl::rsa::Rsa;

use super::*;
use crate::sns::certificate::tests::hostile_urls;
use crate::sns::signer::{Certificate, Draft, Signer};

const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:run-command";
const URL: &str = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem";
const NOW: &str = "2026-11-23T10:00:00.000Z";

fn signer(certificate: &Certificate<'_>) -> Signer {
    Signer::new(URL, certificate).unwrap()
}

fn draft(kind: &str, is_version_2: bool) -> Draft {
    Draft {
        kind: kind.to_owned(),
        topic: TOPIC.to_owned(),
        message_id: "0f3a9b52-2f3f-5d2e-9d0c-c5b6a8f0e1d2".to_owned(),
        subject: Some("a subject".to_owned()),
        message: "a message\nwith \u{1f514} and a newline at its end\n".to_owned(),
        timestamp: NOW.to_owned(),
        token: "0123456789abcdef".to_owned(),
        is_version_2,
    }
}

fn settings(allow_version_1: bool) -> TopicSettings {
    TopicSettings {
        arn: TOPIC.parse().unwrap(),
        confirm: true,
        endpoint: None,
        allow_version_1,
    }
}

/// The word of the refusal, or `good`.
async fn judge_with(verifier: &Verifier, body: &str, headers: Headers<'_>) -> &'static str {
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let verdict = verifier
        .verify(body.as_bytes(), headers, nobody, NOW.parse().unwrap())
        .await;
    verdict.map_or_else(|refusal| refusal.word, |_| "good")
}

async fn judge(signer: &Signer, body: &str) -> &'static str {
    let verifier = Verifier::offline(vec![settings(true)], Some(signer.pem().unwrap()));
    judge_with(&verifier, body, Headers::default()).await
}

fn body(signer: &Signer, draft: &Draft) -> String {
    serde_json::Value::Object(signer.envelope(draft).unwrap()).to_string()
}

#[tokio::test]
async fn every_type_and_version_that_was_signed_is_verified() {
    let signer = signer(&Certificate::default());
    let verifier = Verifier::offline(vec![settings(true)], Some(signer.pem().unwrap()));
    for kind in [
        "Notification",
        "SubscriptionConfirmation",
        "UnsubscribeConfirmation",
    ] {
        for is_version_2 in [false, true] {
            for subject in [None, Some("a subject".to_owned())] {
                let draft = Draft {
                    subject,
                    ..draft(kind, is_version_2)
                };
                let body = body(&signer, &draft);
                let it = verifier
                    .verify_file(body.as_bytes(), NOW.parse().unwrap())
                    .await
                    .unwrap();
                assert_eq!(it.message_type().as_str(), kind);
                assert_eq!(it.topic().as_str(), TOPIC);
                assert_eq!(it.message(), draft.message);
                assert_eq!(it.message_id(), draft.message_id);
                assert_eq!(it.sent_at(), NOW.parse().unwrap());
                let is_notification = kind == "Notification";
                assert_eq!(
                    it.subject(),
                    draft.subject.as_deref().filter(|_| is_notification)
                );
                assert_eq!(it.token().is_some(), !is_notification);
            }
        }
    }
}

#[tokio::test]
async fn nothing_that_was_signed_can_be_changed() {
    let signer = signer(&Certificate::default());
    for kind in ["Notification", "SubscriptionConfirmation"] {
        let envelope = signer.envelope(&draft(kind, true)).unwrap();
        let keys = [
            "Message",
            "MessageId",
            "Subject",
            "Timestamp",
            "Token",
            "SubscribeURL",
            "Type",
        ];
        for key in keys.into_iter().filter(|key| envelope.contains_key(*key)) {
            let mut forged = envelope.clone();
            let other = match key {
                "Timestamp" => "2026-11-23T10:00:00.001Z",
                "Token" => "0123",
                "Type" if kind == "SubscriptionConfirmation" => "UnsubscribeConfirmation",
                "Type" => continue,
                _ => "forged",
            };
            forged.insert(key.to_owned(), other.into());
            let body = serde_json::Value::Object(forged).to_string();
            assert_eq!(judge(&signer, &body).await, "signature", "{kind} {key}");
        }
        let mut without = envelope.clone();
        if without.remove("Subject").is_some() {
            let body = serde_json::Value::Object(without).to_string();
            assert_eq!(judge(&signer, &body).await, "signature");
        }
    }
    let silent = Draft {
        subject: None,
        ..draft("Notification", false)
    };
    let mut added = signer.envelope(&silent).unwrap();
    added.insert("Subject".to_owned(), "added".into());
    let body = serde_json::Value::Object(added).to_string();
    assert_eq!(judge(&signer, &body).await, "signature");
}

#[tokio::test]
async fn another_key_another_version_and_a_cut_signature_do_not_fit() {
    let ours = signer(&Certificate::default());
    let theirs = signer(&Certificate::default());
    assert_eq!(
        judge(&ours, &body(&theirs, &draft("Notification", false))).await,
        "signature"
    );
    for (key, value) in [
        ("SignatureVersion", "1"),
        ("Signature", ""),
        ("Signature", "AAAA"),
        ("Signature", &"A".repeat(344)),
    ] {
        let mut forged = ours.envelope(&draft("Notification", true)).unwrap();
        forged.insert(key.to_owned(), value.into());
        let body = serde_json::Value::Object(forged).to_string();
        let word = judge(&ours, &body).await;
        assert!(
            ["signature", "base64"].contains(&word),
            "{key} {value}: {word}"
        );
    }
}

#[tokio::test]
async fn version_1_can_be_refused() {
    let signer = signer(&Certificate::default());
    let verifier = Verifier::offline(vec![settings(false)], Some(signer.pem().unwrap()));
    for (is_version_2, word) in [(false, "version"), (true, "good")] {
        let body = body(&signer, &draft("Notification", is_version_2));
        assert_eq!(judge_with(&verifier, &body, Headers::default()).await, word);
    }
}

#[tokio::test]
async fn headers_may_be_absent_but_not_contradict() {
    let signer = signer(&Certificate::default());
    let verifier = Verifier::offline(vec![settings(true)], Some(signer.pem().unwrap()));
    let body = body(&signer, &draft("Notification", false));
    let none = Headers::default();
    let id = "0f3a9b52-2f3f-5d2e-9d0c-c5b6a8f0e1d2";
    for (headers, word) in [
        (none, "good"),
        (
            Headers {
                message_id: Some(id),
                topic_arn: Some(TOPIC),
                message_type: Some("Notification"),
                raw: false,
            },
            "good",
        ),
        (
            Headers {
                message_id: Some("other"),
                ..none
            },
            "header",
        ),
        (
            Headers {
                topic_arn: Some("arn:aws:sns:us-east-1:123456789012:other"),
                ..none
            },
            "header",
        ),
        (
            Headers {
                message_type: Some("SubscriptionConfirmation"),
                ..none
            },
            "header",
        ),
        (Headers { raw: true, ..none }, "raw"),
    ] {
        assert_eq!(
            judge_with(&verifier, &body, headers).await,
            word,
            "{headers:?}"
        );
    }
    assert_eq!(
        judge_with(&verifier, "{}", Headers { raw: true, ..none }).await,
        "raw"
    );
}

#[tokio::test]
async fn a_foreign_topic_is_refused_whoever_signed_it() {
    let signer = signer(&Certificate::default());
    for topic in [
        "arn:aws:sns:us-east-1:999999999999:run-command",
        "arn:aws:sns:us-east-1:123456789012:run-command2",
        "arn:aws:sns:us-east-2:123456789012:run-command",
    ] {
        let foreign = Draft {
            topic: topic.to_owned(),
            ..draft("SubscriptionConfirmation", false)
        };
        assert_eq!(
            judge(&signer, &body(&signer, &foreign)).await,
            "foreign-topic"
        );
    }
}

#[tokio::test]
async fn a_foreign_topic_causes_no_fetch() {
    // Nobody listens there: a fetch would be another word.
    let verifier = Verifier::new(vec![settings(true)], Http::default(), Vec::new());
    let signer = signer(&Certificate::default());
    let topic = "arn:aws:sns:us-east-1:999999999999:t".to_owned();
    let body = body(
        &signer,
        &Draft {
            topic,
            ..draft("Notification", false)
        },
    );
    assert_eq!(
        judge_with(&verifier, &body, Headers::default()).await,
        "foreign-topic"
    );
}

#[tokio::test]
async fn the_certificate_must_lie_where_sns_keeps_it() {
    let signer = signer(&Certificate::default());
    let honest = signer.envelope(&draft("Notification", true)).unwrap();
    // Nobody signed the URL: whoever changes it leaves the signature valid.
    for url in hostile_urls() {
        let mut moved = honest.clone();
        moved.insert("SigningCertURL".to_owned(), url.as_str().into());
        let body = serde_json::Value::Object(moved).to_string();
        assert_eq!(judge(&signer, &body).await, "certificate-url", "{url:?}");
    }
    for (arn, host) in [
        (
            "arn:aws-cn:sns:cn-north-1:123456789012:t",
            "sns.cn-north-1.amazonaws.com.cn",
        ),
        (
            "arn:aws-us-gov:sns:us-gov-west-1:123456789012:t",
            "sns.us-gov-west-1.amazonaws.com",
        ),
        (
            "arn:aws-eusc:sns:eusc-de-east-1:123456789012:t",
            "sns.eusc-de-east-1.amazonaws.eu",
        ),
        (
            "arn:aws-iso:sns:us-iso-east-1:123456789012:t",
            "sns.us-iso-east-1.c2s.ic.gov",
        ),
        (
            "arn:aws-iso-b:sns:us-isob-east-1:123456789012:t",
            "sns.us-isob-east-1.sc2s.sgov.gov",
        ),
    ] {
        let file = "SimpleNotificationService-0123456789abcdef0123456789abcdef.pem";
        let certificate = Certificate {
            name: host,
            ..Certificate::default()
        };
        let signer = Signer::new(&format!("https://{host}/{file}"), &certificate).unwrap();
        let draft = Draft {
            topic: arn.to_owned(),
            ..draft("Notification", false)
        };
        let verifier = Verifier::offline(Vec::new(), Some(signer.pem().unwrap()));
        let word = judge_with(&verifier, &body(&signer, &draft), Headers::default()).await;
        assert_eq!(word, "good", "{arn}");
    }
}

#[tokio::test]
async fn the_certificate_must_be_one_of_snss() {
    let good = Certificate::default();
    let rsa = |bits| PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap();
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let ec = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
    let now: Timestamp = NOW.parse().unwrap();
    let second = now.as_second();
    for (name, key, certificate, word) in [
        ("good", rsa(2048), good.clone(), "good"),
        (
            "by its region",
            rsa(3072),
            Certificate {
                name: "sns.us-east-1.amazonaws.com",
                ..good.clone()
            },
            "good",
        ),
        (
            "of an opt-in region",
            rsa(2048),
            Certificate {
                name: "sns-signing.us-east-1.amazonaws.com",
                ..good.clone()
            },
            "good",
        ),
        ("weak", rsa(1024), good.clone(), "weak-key"),
        ("elliptic", ec, good.clone(), "certificate-key"),
        (
            "an authority",
            rsa(2048),
            Certificate {
                is_authority: true,
                ..good.clone()
            },
            "certificate-authority",
        ),
        (
            "expired",
            rsa(2048),
            Certificate {
                not_after: second - 1,
                ..good.clone()
            },
            "certificate-time",
        ),
        (
            "not yet valid",
            rsa(2048),
            Certificate {
                not_before: second + 1,
                ..good.clone()
            },
            "certificate-time",
        ),
        (
            "of another region",
            rsa(2048),
            Certificate {
                name: "sns.us-west-2.amazonaws.com",
                ..good.clone()
            },
            "certificate-name",
        ),
        (
            "of another service",
            rsa(2048),
            Certificate {
                name: "s3.amazonaws.com",
                ..good.clone()
            },
            "certificate-name",
        ),
        (
            "of a stranger",
            rsa(2048),
            Certificate {
                name: "sns.amazonaws.com.evil.tld",
                ..good.clone()
            },
            "certificate-name",
        ),
        (
            "of all",
            rsa(2048),
            Certificate {
                name: "*.amazonaws.com",
                ..good.clone()
            },
            "certificate-name",
        ),
    ] {
        let signer = Signer::with_key(key, URL, &certificate).unwrap();
        let body = body(&signer, &draft("Notification", true));
        assert_eq!(judge(&signer, &body).await, word, "{name}");
    }
}

#[tokio::test]
async fn the_file_must_be_one_certificate_and_nothing_else() {
    let signer = signer(&Certificate::default());
    let body = body(&signer, &draft("Notification", true));
    let pem = String::from_utf8(signer.pem().unwrap()).unwrap();
    let der = openssl::x509::X509::from_pem(pem.as_bytes())
        .unwrap()
        .to_der()
        .unwrap();
    for (name, pem, word) in [
        (
            "with blanks around",
            format!("\n{pem}\n\n").into_bytes(),
            "good",
        ),
        ("two", pem.repeat(2).into_bytes(), "certificate-form"),
        (
            "in XML",
            format!("<x>{pem}</x>").into_bytes(),
            "certificate-form",
        ),
        (
            "after text",
            format!("hello\n{pem}").into_bytes(),
            "certificate-form",
        ),
        (
            "cut",
            pem.as_bytes()[..pem.len() / 2].to_vec(),
            "certificate-form",
        ),
        ("empty", Vec::new(), "certificate-form"),
        ("as DER", der, "certificate-form"),
        (
            "huge",
            format!("{pem}{}", " ".repeat(70_000)).into_bytes(),
            "certificate-form",
        ),
    ] {
        let verifier = Verifier::offline(vec![settings(true)], Some(pem));
        assert_eq!(
            judge_with(&verifier, &body, Headers::default()).await,
            word,
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_moved_boundary_leaves_the_signature_valid_and_is_refused_all_the_same() {
    let signer = signer(&Certificate::default());
    let honest = signer.envelope(&draft("Notification", true)).unwrap();
    let mut moved = honest.clone();
    let id = format!(
        "{}\nSubject\na subject",
        honest["MessageId"].as_str().unwrap()
    );
    moved.insert("MessageId".to_owned(), id.into());
    moved.remove("Subject");
    let body = serde_json::Value::Object(moved).to_string();
    assert_eq!(judge(&signer, &body).await, "control");
}

#[test]
fn freshness_looks_ninety_minutes_back_and_five_ahead() {
    let now: Timestamp = NOW.parse().unwrap();
    let word = |seconds: i64| match freshness(now + jiff::SignedDuration::from_secs(seconds), now) {
        Freshness::Fresh => "fresh",
        Freshness::Stale(refusal) | Freshness::Ahead(refusal) => refusal.word,
    };
    for (seconds, expected) in [
        (0, "fresh"),
        (-5400, "fresh"),
        (-5401, "stale"),
        (300, "fresh"),
        (301, "clock"),
    ] {
        assert_eq!(word(seconds), expected, "{seconds}");
    }
}
