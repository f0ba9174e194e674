//! Made-up notices of every kind, to try templates on before a real one comes.

use jiff::Timestamp;

use super::{Notice, notice};
use crate::delivery::{Digest, Marks};
use crate::event::{EnvelopeKind, Event, Source, Status};

const TOPIC: &str = "arn:aws:sns:eu-central-1:123456789012:run-command";

/// One of each kind: a failure first.
pub(super) fn samples() -> Vec<Notice> {
    let status = |status: &str, detail: &str| {
        format!(
            r#"{{"commandId":"0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11","documentName":"AWS-RunShellScript","instanceId":"i-0123456789abcdef0","status":"{status}","detailedStatus":"{detail}","eventTime":"2026-11-23T09:59:58.5Z","requestedDateTime":"2026-11-23T09:59:00Z"}}"#
        )
    };
    let summary = r#"{"commandId":"0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11","documentName":"AWS-RunShellScript","instanceIds":["i-0123456789abcdef0"],"status":"Success","eventTime":"2026-11-23T10:00:00Z","outputS3BucketName":"logs","outputS3KeyPrefix":"ssm"}"#;
    let failed = of(&status("Failed", "NonZeroExit"));
    let digest = Notice {
        digest: Some(Digest {
            succeeded: 3,
            failed: 1,
            running: 2,
            troubled: vec![("i-0123456789abcdef0".to_owned(), Status::Failed)],
            has_news: true,
            ..Digest::default()
        }),
        ..of(summary)
    };
    vec![
        failed,
        of(&status("InProgress", "InProgress")),
        of(&status("Success", "Success")),
        of(summary),
        digest,
        of(r#"{"AlarmName":"disk","NewStateValue":"ALARM"}"#),
        of("hello"),
    ]
}

fn of(body: &str) -> Notice {
    let at = Timestamp::from_second(1_795_428_000).unwrap_or_default();
    let event = Event::read(&Source {
        topic: TOPIC,
        account: "123456789012",
        region: "eu-central-1",
        message_id: "00000000-0000-4000-8000-000000000000",
        sent_at: at,
        subject: Some("EC2 Run Command Notification eu-central-1"),
        body,
        envelope: EnvelopeKind::Notification,
    });
    notice("sample", "sample", event, at, Marks::default())
}
