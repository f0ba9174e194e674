//! A proof outlives the envelope: OpenSSL alone verifies an event by what is kept of it.

use openssl::x509::X509;

use super::*;
use crate::sns::proof::Signed;
use crate::sns::signer::{self, Draft, Signer};

const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:run-command";
const AWS: &str = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem";
const BASE: &str = "http://localhost:4566";
const NOW: &str = "2026-11-23T10:00:00.000Z";

struct Service {
    signer: Signer,
    verifier: Verifier,
}

impl Service {
    /// AWS, or a compatible service at `endpoint`; the certificate is kept from an earlier start.
    fn at(endpoint: Option<&str>) -> Self {
        let url = endpoint.map_or_else(|| AWS.to_owned(), |base| format!("{base}/a.pem"));
        let signer = Signer::new(&url, &signer::Certificate::default()).unwrap();
        let topic = TopicSettings {
            arn: TOPIC.parse().unwrap(),
            confirm: true,
            endpoint: endpoint.map(str::to_owned),
            allow_version_1: true,
        };
        let known = KnownCertificate {
            url,
            pem: signer.pem().unwrap(),
            fetched_at: NOW.parse().unwrap(),
        };
        Self {
            signer,
            verifier: Verifier::new(vec![topic], Http::default(), vec![known]),
        }
    }

    async fn verify(&self, draft: &Draft) -> Result<Verified, Refusal> {
        let body = serde_json::Value::Object(self.signer.envelope(draft).unwrap()).to_string();
        let now = NOW.parse().unwrap();
        self.verifier.verify_file(body.as_bytes(), now).await
    }
}

fn draft(timestamp: &str, is_version_2: bool, subject: Option<&str>) -> Draft {
    Draft {
        kind: "Notification".to_owned(),
        topic: TOPIC.to_owned(),
        message_id: "0f3a9b52-2f3f-5d2e-9d0c-c5b6a8f0e1d2".to_owned(),
        subject: subject.map(str::to_owned),
        message: "a message\nwith \u{1f514} and a newline at its end\n".to_owned(),
        timestamp: timestamp.to_owned(),
        token: "0123456789abcdef".to_owned(),
        is_version_2,
    }
}

/// What a store keeps of a verified message: its event's fields, moments as nanoseconds, the proof.
struct Kept {
    topic: String,
    message_id: String,
    subject: Option<String>,
    message: String,
    sent_at: i128,
    proof: Proof,
}

impl Kept {
    fn of(verified: &Verified) -> Self {
        Self {
            topic: verified.topic().as_str().to_owned(),
            message_id: verified.message_id().to_owned(),
            subject: verified.subject().map(str::to_owned),
            message: verified.message().to_owned(),
            sent_at: verified.sent_at().as_nanosecond(),
            proof: verified.proof().clone(),
        }
    }

    /// Whether the signature fits, as anybody could find out with the certificate and OpenSSL.
    fn is_genuine(&self) -> bool {
        let text = Signed {
            message_type: MessageType::Notification,
            topic: &self.topic,
            message_id: &self.message_id,
            subject: self.subject.as_deref(),
            message: &self.message,
            sent_at: Timestamp::from_nanosecond(self.sent_at).unwrap(),
            timestamp: self.proof.timestamp.as_deref(),
            token: None,
            subscribe_url: None,
        }
        .string_to_sign()
        .unwrap();
        let digest = match self.proof.version {
            1 => MessageDigest::sha1(),
            2 => MessageDigest::sha256(),
            other => panic!("version {other}"),
        };
        let certificate = self.proof.certificate.as_ref().unwrap();
        let key = X509::from_pem(&certificate.pem).unwrap();
        let key = key.public_key().unwrap();
        let mut verifier = sign::Verifier::new(digest, &key).unwrap();
        verifier.update(text.as_bytes()).unwrap();
        verifier.verify(&self.proof.signature).unwrap()
    }
}

#[tokio::test]
async fn the_signature_fits_what_is_rebuilt_from_what_is_kept() {
    let (aws, other) = (Service::at(None), Service::at(Some(BASE)));
    for (service, timestamp, is_odd) in [
        (&aws, "2026-11-23T10:00:00.000Z", false),
        (&aws, "2026-11-23T09:59:59.120Z", false),
        (&aws, "2026-11-23T09:59:60.000Z", true),
        (&other, "2026-11-23T10:00:00.500Z", false),
        (&other, "2026-11-23T10:00:00Z", true),
        (&other, "2026-11-23T10:00:00.5Z", true),
        (&other, "2026-11-23T10:00:00+00:00", true),
        (&other, "2026-11-23T10:00:00.000+00:00", true),
        (&other, "2026-11-23T10:00:00.868954789+00:00", true),
        (&other, "2026-11-23T11:00:00.868954789+01:00", true),
    ] {
        for is_version_2 in [false, true] {
            for subject in [None, Some("a subject")] {
                let draft = draft(timestamp, is_version_2, subject);
                let verified = service.verify(&draft).await.unwrap();
                let kept = Kept::of(&verified);
                let case = format!("{timestamp} {is_version_2} {subject:?}");
                assert!(kept.is_genuine(), "{case}");
                assert_eq!(kept.proof.version, if is_version_2 { 2 } else { 1 });
                assert_eq!(
                    kept.proof.timestamp.as_deref(),
                    is_odd.then_some(timestamp),
                    "{case}"
                );
                let forged = Kept {
                    message: "forged".to_owned(),
                    ..kept
                };
                assert!(!forged.is_genuine(), "{case}");
            }
        }
    }
}

#[tokio::test]
async fn all_messages_of_a_certificate_share_it_with_the_hash_of_its_der() {
    let service = Service::at(None);
    let first = service.verify(&draft(NOW, true, None)).await.unwrap();
    let second = service.verify(&draft(NOW, false, None)).await.unwrap();
    let [first, second] = [first, second].map(|it| it.proof().certificate.clone().unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    let served = X509::from_pem(&service.signer.pem().unwrap()).unwrap();
    let digest = served.digest(MessageDigest::sha256()).unwrap();
    assert_eq!(first.sha256[..], digest[..]);
    let kept = X509::from_pem(&first.pem).unwrap();
    assert_eq!(kept.to_der().unwrap(), served.to_der().unwrap());
}

#[tokio::test]
async fn a_message_names_the_authority_that_vouches_for_it() {
    for (endpoint, trust) in [(None, "aws"), (Some(BASE), BASE)] {
        let service = Service::at(endpoint);
        let verified = service.verify(&draft(NOW, true, None)).await.unwrap();
        assert_eq!(&**verified.trust(), trust);
    }
}

#[tokio::test]
async fn an_odd_timestamp_is_refused_from_aws_itself() {
    let aws = Service::at(None);
    for timestamp in ["2026-11-23T10:00:00Z", "2026-11-23T10:00:00.000+00:00"] {
        let refusal = aws.verify(&draft(timestamp, true, None)).await.unwrap_err();
        assert_eq!(
            (refusal.word, refusal.answer),
            ("timestamp", Answer::Malformed)
        );
    }
}
