//! One event as one line of JSON: what file and standard output write.
//!
//! A format that people keep for years: keys are only ever added. Times are RFC 3339 in UTC with the
//! precision they came with; what an event does not have is null.

use jiff::Timestamp;
use serde::Serialize;

use crate::delivery::Marks;
use crate::event::CommandStatus;
use crate::render::Notice;

/// The keys, in the order in which they are written.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    kind: &'a str,
    event_time: Option<Timestamp>,
    sort_time: Timestamp,
    received_at: Timestamp,
    sent_at: Timestamp,
    late_seconds: Option<f64>,
    marks: Vec<&'static str>,
    command: Option<&'a str>,
    instance: Option<&'a str>,
    instances: Option<&'a [String]>,
    document: Option<&'a str>,
    status: Option<&'a str>,
    detail: Option<&'a str>,
    requested_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    output_bucket: Option<&'a str>,
    output_prefix: Option<&'a str>,
    topic: &'a str,
    account: &'a str,
    region: &'a str,
    message_id: &'a str,
    route: &'a str,
    subject: Option<&'a str>,
    message: &'a str,
}

/// Appends `notice` as one line, with its newline. JSON has no bare newline inside.
pub fn write_line(notice: &Notice, to: &mut Vec<u8>) {
    let event = &notice.event;
    let command = event.command();
    let text = |get: fn(&CommandStatus) -> Option<&str>| command.and_then(get);
    let time = |get: fn(&CommandStatus) -> Option<Timestamp>| command.and_then(get);
    let record = Record {
        id: &notice.id,
        kind: event.kind.word(),
        event_time: time(|it| it.event_time),
        sort_time: event.sort_time,
        received_at: notice.received_at,
        sent_at: event.sent_at,
        late_seconds: notice.marks.late.map(|late| late.as_secs_f64()),
        marks: words(&notice.marks, event.time_doubted),
        command: text(|it| Some(&it.command)),
        instance: text(|it| it.instance.as_deref()),
        instances: command
            .map(|it| it.instances.as_slice())
            .filter(|them| !them.is_empty()),
        document: text(|it| Some(&it.document)),
        status: text(|it| Some(it.status.as_str())),
        detail: text(|it| it.detail.as_deref()),
        requested_at: time(|it| it.requested_at),
        expires_at: time(|it| it.expires_at),
        output_bucket: text(|it| it.output_bucket.as_deref()),
        output_prefix: text(|it| it.output_prefix.as_deref()),
        topic: &event.topic,
        account: &event.account,
        region: &event.region,
        message_id: &event.message_id,
        route: &notice.route,
        subject: event.subject.as_deref(),
        message: &event.body,
    };
    // Texts, numbers and lists, written to memory: there is nothing that could fail.
    let _ = serde_json::to_writer(&mut *to, &record);
    to.push(b'\n');
}

/// The id of a line that [`write_line`] made; `None` for any other line.
pub(super) fn id(line: &[u8]) -> Option<&str> {
    let rest = line.strip_prefix(b"{\"id\":\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

fn words(marks: &Marks, time_doubted: bool) -> Vec<&'static str> {
    [
        ("late", marks.late.is_some()),
        ("repeat", marks.repeat),
        ("possible-repeat", marks.possible_repeat),
        ("resent", marks.resent),
        ("conflict", marks.conflict),
        ("time-doubted", time_doubted),
    ]
    .into_iter()
    .filter(|(_, set)| *set)
    .map(|(word, _)| word)
    .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{EnvelopeKind, Event, Source};
    use crate::render;

    /// A notice of an invocation on an instance of that name.
    pub(in crate::sink) fn notice(instance: &str) -> Notice {
        let body = format!(
            r#"{{"commandId":"c-1","documentName":"AWS-RunShellScript","instanceId":"{instance}","status":"TimedOut","detailedStatus":"ExecutionTimedOut","eventTime":"2026-11-23T09:59:59.025740242Z"}}"#
        );
        let event = Event::read(&Source {
            topic: "arn:aws:sns:eu-central-1:123456789012:run-command",
            account: "123456789012",
            region: "eu-central-1",
            message_id: &format!("m-{instance}"),
            sent_at: "2026-11-23T10:00:00Z".parse().unwrap(),
            subject: Some("EC2 Run Command Notification eu-central-1"),
            body: &body,
            envelope: EnvelopeKind::Notification,
        });
        let received_at = "2026-11-23T10:00:01.5Z".parse().unwrap();
        render::notice("audit", "file", event, received_at, Marks::default())
    }

    #[test]
    fn a_line_has_everything_and_is_one_line() {
        let mut notice = notice("i-1");
        notice.marks = Marks {
            late: Some(Duration::from_millis(2500)),
            possible_repeat: true,
            ..Marks::default()
        };
        notice.event.body.push_str("\n\u{2028}");
        let mut line = Vec::new();
        write_line(&notice, &mut line);
        assert_eq!(
            line.split(|byte| *byte == b'\n').count(),
            2,
            "a line and what follows it"
        );
        assert_eq!(id(&line), Some(notice.id.as_str()));
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let expected = serde_json::json!({
            "id": notice.id, "kind": "invocation",
            "event_time": "2026-11-23T09:59:59.025740242Z",
            "sort_time": "2026-11-23T09:59:59.025740242Z",
            "received_at": "2026-11-23T10:00:01.5Z", "sent_at": "2026-11-23T10:00:00Z",
            "late_seconds": 2.5, "marks": ["late", "possible-repeat"],
            "command": "c-1", "instance": "i-1", "instances": null,
            "document": "AWS-RunShellScript", "status": "TimedOut", "detail": "ExecutionTimedOut",
            "requested_at": null, "expires_at": null, "output_bucket": null, "output_prefix": null,
            "topic": "arn:aws:sns:eu-central-1:123456789012:run-command",
            "account": "123456789012", "region": "eu-central-1", "message_id": "m-i-1",
            "route": "audit", "subject": "EC2 Run Command Notification eu-central-1",
            "message": notice.event.body,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_foreign_line_has_no_id() {
        for line in [
            "",
            "{}",
            "{\"id\":\"cut",
            "plain",
            "{\"other\":1,\"id\":\"x\"}",
        ] {
            assert_eq!(id(line.as_bytes()), None, "{line}");
        }
    }
}
