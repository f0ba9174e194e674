//! From a verified message's text to what happened.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;

use super::message::Message;
use super::{CommandStatus, EnvelopeKind, Event, Kind, Source, Status, detail};
use crate::clock::{earlier, later};

/// How long before its signature an event may have happened and still be believed.
const OLDEST: Duration = Duration::from_hours(48);
/// How far after its signature.
const NEWEST: Duration = Duration::from_mins(5);

pub(super) fn read(source: &Source<'_>) -> Event {
    let (kind, time) = match source.envelope {
        EnvelopeKind::SubscriptionConfirmation => (Kind::Subscribe, Time::Absent),
        EnvelopeKind::UnsubscribeConfirmation => (Kind::Unsubscribe, Time::Absent),
        EnvelopeKind::Notification => classify(source.body),
    };
    let (sort_time, time_doubted) = match time {
        Time::Read(at) if is_credible(at, source.sent_at) => (at, false),
        Time::Read(_) | Time::Unreadable => (source.sent_at, true),
        Time::Absent => (source.sent_at, false),
    };
    Event {
        topic: source.topic.to_owned(),
        account: source.account.to_owned(),
        region: source.region.to_owned(),
        message_id: source.message_id.to_owned(),
        sent_at: source.sent_at,
        subject: source.subject.map(str::to_owned),
        body: source.body.to_owned(),
        kind,
        sort_time,
        time_doubted,
    }
}

/// When an event says that it happened.
enum Time {
    Read(Timestamp),
    Unreadable,
    Absent,
}

fn classify(body: &str) -> (Kind, Time) {
    let Some(message) = Message::parse(body) else {
        return (Kind::Other, Time::Absent);
    };
    if let (Some(detail_type), Some(source)) = (message.detail_type.get(), message.source.get()) {
        return event_bridge(&message, detail_type, source);
    }
    if message.has_alarm_name && message.has_new_state {
        return (Kind::Alarm, Time::Absent);
    }
    match command(&message, false) {
        Some(kind) => (kind, time(message.event_time.get())),
        None => (Kind::Other, Time::Absent),
    }
}

/// `EventBridge` tells of Run Command as well, with keys of its own and whole seconds.
fn event_bridge(message: &Message<'_>, detail_type: &str, source: &str) -> (Kind, Time) {
    let is_run_command = source == "aws.ssm"
        && matches!(
            detail_type,
            "EC2 Command Status-change Notification"
                | "EC2 Command Invocation Status-change Notification"
        );
    let time = time(message.time.get());
    let told = message
        .detail
        .filter(|_| is_run_command)
        .and_then(|detail| Message::parse(detail.get()))
        .and_then(|mut detail| {
            // Only the detail type tells them apart: both may carry any of the keys.
            detail.is_summary = !detail_type.contains("Invocation");
            let kind = command(&detail, true)?;
            Some(at(kind, &time))
        });
    (told.unwrap_or(Kind::EventBridge), time)
}

/// The same status, with the time that stood outside of it.
fn at(mut kind: Kind, time: &Time) -> Kind {
    if let (Kind::Summary(status) | Kind::Invocation(status), Time::Read(at)) = (&mut kind, time) {
        status.event_time = Some(*at);
    }
    kind
}

fn command(message: &Message<'_>, from_event_bridge: bool) -> Option<Kind> {
    let command = message.command_id.owned()?;
    let told = message.status.get()?;
    if !message.is_summary && message.instance_id.get().is_none() {
        return None;
    }
    let status = Status::parse(told);
    // People write `Execution Timed Out` where the wire has a status and a detail.
    let finer = Some(detail(told)).filter(|finer| {
        status != Status::Other(told.to_owned()) && *finer != status.as_str() && *finer != told
    });
    let detail = message.detailed_status.get().map(detail).or(finer);
    let told = CommandStatus {
        command,
        instance: message.instance_id.owned(),
        instances: message
            .instance_ids
            .iter()
            .flatten()
            .map(|id| Cow::clone(id).into_owned())
            .collect(),
        document: message.document_name.owned().unwrap_or_default(),
        status,
        detail: detail.map(str::to_owned),
        event_time: moment(message.event_time.get()),
        requested_at: moment(message.requested_date_time.get()),
        expires_at: moment(message.expires_after.get()),
        output_bucket: message.bucket.owned(),
        output_prefix: message.prefix.owned(),
        from_event_bridge,
    };
    Some(if message.is_summary {
        Kind::Summary(told)
    } else {
        Kind::Invocation(told)
    })
}

fn time(text: Option<&str>) -> Time {
    match text {
        None => Time::Absent,
        Some(_) => moment(text).map_or(Time::Unreadable, Time::Read),
    }
}

/// A moment with any number of fraction digits; beyond nanoseconds they are cut.
fn moment(text: Option<&str>) -> Option<Timestamp> {
    let text = text?;
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    let (whole, rest) = text.split_once('.')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (fraction, zone) = rest.split_at(digits);
    let fraction = fraction.get(..9)?;
    format!("{whole}.{fraction}{zone}").parse().ok()
}

fn is_credible(at: Timestamp, sent_at: Timestamp) -> bool {
    at >= earlier(sent_at, OLDEST) && at <= later(sent_at, NEWEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_body(body: &str) -> Event {
        read(&Source {
            topic: "arn:aws:sns:us-east-1:123456789012:t",
            account: "123456789012",
            region: "us-east-1",
            message_id: "m",
            sent_at: "2019-04-25T18:00:00Z".parse().unwrap(),
            subject: None,
            body,
            envelope: EnvelopeKind::Notification,
        })
    }

    fn summary(body: &str) -> CommandStatus {
        match read_body(body).kind {
            Kind::Summary(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn invocation(body: &str) -> CommandStatus {
        match read_body(body).kind {
            Kind::Invocation(status) => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_real_summary_names_its_instances_and_where_its_output_lies() {
        let it = summary(
            r#"{"commandId":"a8c7","documentName":"AWS-RunPowerShellScript",
            "instanceIds":["i-1","mi-2"],"requestedDateTime":"2019-04-25T17:57:09.17Z",
            "expiresAfter":"2019-04-25T19:07:09.17Z","outputS3BucketName":"bucket",
            "outputS3KeyPrefix":"","status":"InProgress","eventTime":"2019-04-25T17:57:09.236Z"}"#,
        );
        assert_eq!(
            (it.command.as_str(), it.document.as_str()),
            ("a8c7", "AWS-RunPowerShellScript")
        );
        assert_eq!(it.instances, ["i-1", "mi-2"]);
        assert_eq!(it.instance, None);
        assert_eq!(
            (it.output_bucket.as_deref(), it.output_prefix),
            (Some("bucket"), None)
        );
        assert_eq!(it.event_time, "2019-04-25T17:57:09.236Z".parse().ok());
        assert_eq!(it.expires_at, "2019-04-25T19:07:09.17Z".parse().ok());
        assert_eq!(it.status, Status::InProgress);
    }

    #[test]
    fn a_summary_without_instances_is_targeted_by_tags() {
        let it = summary(r#"{"commandId":"c","instanceIds":[],"status":"Success"}"#);
        assert!(it.instances.is_empty());
    }

    #[test]
    fn a_real_invocation_has_a_detail_and_nanoseconds() {
        let it = invocation(
            r#"{"commandId":"0d4b","documentName":"AWS-RunShellScript","instanceId":"i-0",
            "requestedDateTime":"2026-10-01T09:39:33.726Z","status":"TimedOut",
            "detailedStatus":"ExecutionTimedOut","eventTime":"2026-10-01T09:39:39.025740242Z"}"#,
        );
        assert_eq!(it.instance.as_deref(), Some("i-0"));
        assert_eq!(it.status, Status::TimedOut);
        assert_eq!(it.detail.as_deref(), Some("ExecutionTimedOut"));
        assert_eq!(it.event_time.unwrap().subsec_nanosecond(), 25_740_242);
    }

    /// The two tables of the 2018 documentation: every key in its spelling, the summary with an
    /// `InstanceId`.
    #[test]
    fn the_documented_spelling_is_read() {
        let it = summary(
            r#"{"EventTime":"2019-04-25T13:15:30Z","DocumentName":"AWS-RunShellScript",
            "CommandId":"c","ExpiresAfter":"2019-04-25T14:15:30Z","OutputS3BucketName":"b",
            "OutputS3KeyPrefix":"p","RequestedDateTime":"2019-04-25T13:15:00Z",
            "InstanceId":"i-1","Status":"Success"}"#,
        );
        assert_eq!(it.instance.as_deref(), Some("i-1"));
        assert_eq!(it.output_prefix.as_deref(), Some("p"));
        assert_eq!(it.requested_at, "2019-04-25T13:15:00Z".parse().ok());
        let it = invocation(
            r#"{"EventTime":"2019-04-25T13:15:30Z","DocumentName":"AWS-RunShellScript",
            "RequestedDateTime":"2019-04-25T13:15:00Z","CommandId":"c","InstanceId":"i-1",
            "Status":"Failed"}"#,
        );
        assert_eq!(it.status, Status::Failed);
        assert_eq!(it.event_time, "2019-04-25T13:15:30Z".parse().ok());
    }

    #[test]
    fn awss_own_spelling_wins() {
        let it = invocation(
            r#"{"CommandID":"wrong","commandId":"right","INSTANCEID":"i","status":"Success","Status":"Failed"}"#,
        );
        assert_eq!((it.command.as_str(), it.status), ("right", Status::Success));
    }

    #[test]
    fn event_bridge_twins_are_run_command() {
        let it = invocation(
            r#"{"version":"0","detail-type":"EC2 Command Invocation Status-change Notification",
            "source":"aws.ssm","time":"2019-04-25T17:59:00Z","detail":{"command-id":"c",
            "document-name":"d","instance-id":"i-1","requested-date-time":"2019-04-25T17:58:00Z",
            "status":"Success"}}"#,
        );
        assert!(it.from_event_bridge);
        assert_eq!(it.event_time, "2019-04-25T17:59:00Z".parse().ok());
        let it = summary(
            r#"{"detail-type":"EC2 Command Status-change Notification","source":"aws.ssm",
            "time":"2019-04-25T17:59:00Z","detail":{"command-id":"c","document-name":"d",
            "expire-after":"2019-04-25T18:59:00Z","parameters":{"commands":["echo"]},
            "status":"Failed"}}"#,
        );
        assert_eq!(it.expires_at, "2019-04-25T18:59:00Z".parse().ok());
    }

    #[test]
    fn what_is_no_status_is_kept_whole() {
        for (body, kind) in [
            (r#"{"AlarmName":"a","NewStateValue":"ALARM"}"#, Kind::Alarm),
            (
                r#"{"detail-type":"x","source":"aws.ec2","detail":{}}"#,
                Kind::EventBridge,
            ),
            (
                r#"{"detail-type":"x","source":"aws.ssm"}"#,
                Kind::EventBridge,
            ),
            (r#"{"commandId":"c","status":"Success"}"#, Kind::Other),
            (
                r#"{"commandId":"","instanceId":"i","status":"Success"}"#,
                Kind::Other,
            ),
            (
                r#"{"commandId":7,"instanceId":"i","status":"Success"}"#,
                Kind::Other,
            ),
            ("[]", Kind::Other),
            ("hello", Kind::Other),
            ("", Kind::Other),
            ("{", Kind::Other),
            (&"[".repeat(100_000), Kind::Other),
        ] {
            let event = read_body(body);
            assert_eq!(event.kind, kind, "{body:.60}");
            assert_eq!(event.body, body);
            assert_eq!(event.sort_time, event.sent_at);
            assert!(!event.time_doubted);
        }
    }

    #[test]
    fn a_time_that_is_not_credible_does_not_order() {
        for (time, doubted) in [
            ("2019-04-25T17:57:09.17Z", false),
            ("2019-04-25T17:57:09Z", false),
            ("2019-04-25T17:57:09.123456789123Z", false),
            ("2019-04-25T19:57:09+02:00", false),
            ("2019-04-23T18:00:00Z", false),
            ("2019-04-23T17:59:59Z", true),
            ("2019-04-25T18:05:00Z", false),
            ("2019-04-25T18:05:00.001Z", true),
            ("1970-01-01T00:00:00Z", true),
            ("9999-12-31T23:59:59Z", true),
            ("yesterday", true),
            ("2019-04-25T17:57:09", true),
            ("", false),
        ] {
            let body = format!(
                r#"{{"commandId":"c","instanceId":"i","status":"Success","eventTime":"{time}"}}"#
            );
            let event = read_body(&body);
            assert_eq!(event.time_doubted, doubted, "{time}");
            if doubted || time.is_empty() {
                assert_eq!(event.sort_time, event.sent_at, "{time}");
            } else {
                let told = event.command().unwrap().event_time.unwrap();
                assert_eq!(event.sort_time, told, "{time}");
            }
        }
    }

    #[test]
    fn statuses_are_read_in_every_spelling() {
        for (text, status, finer) in [
            ("InProgress", Status::InProgress, None),
            ("In Progress", Status::InProgress, None),
            ("Success", Status::Success, None),
            ("Canceled", Status::Cancelled, None),
            ("Cancelled", Status::Cancelled, None),
            ("Timed Out", Status::TimedOut, None),
            ("TimedOut", Status::TimedOut, None),
            (
                "Execution Timed Out",
                Status::TimedOut,
                Some("ExecutionTimedOut"),
            ),
            (
                "DELIVERY_TIMED_OUT",
                Status::TimedOut,
                Some("DeliveryTimedOut"),
            ),
            ("Rebooting", Status::Other("Rebooting".to_owned()), None),
        ] {
            let body = format!(r#"{{"commandId":"c","instanceId":"i","status":"{text}"}}"#);
            let it = invocation(&body);
            assert_eq!(it.status, status, "{text}");
            assert_eq!(it.detail.as_deref(), finer, "{text}");
            assert_eq!(Status::parse(status.as_str()), status);
        }
    }

    #[test]
    fn ranks_follow_the_life_of_a_command() {
        let rank = |body: &str| read_body(body).rank();
        assert_eq!(
            rank(r#"{"commandId":"c","instanceIds":[],"status":"InProgress"}"#),
            0
        );
        assert_eq!(
            rank(r#"{"commandId":"c","instanceId":"i","status":"InProgress"}"#),
            1
        );
        assert_eq!(
            rank(r#"{"commandId":"c","instanceId":"i","status":"Failed"}"#),
            2
        );
        assert_eq!(
            rank(r#"{"commandId":"c","instanceIds":[],"status":"Failed"}"#),
            3
        );
        assert_eq!(rank("hello"), 3);
    }

    proptest! {
        #[test]
        fn no_text_stops_the_reader(body in "\\PC*") {
            prop_assert_eq!(read_body(&body).body, body);
        }

        #[test]
        fn no_json_stops_the_reader(
            key in "(commandId|instanceId|instanceIds|status|eventTime|detail|source)",
            value in "(null|1|-1.5|true|\"\"|\"x\"|\\[\\]|\\[1\\]|\\{\\}|\\{\"a\":\\[\\{\\}\\]\\})",
        ) {
            let body = format!(r#"{{"commandId":"c","instanceId":"i","status":"s","{key}":{value}}}"#);
            prop_assert_eq!(read_body(&body).body, body);
        }
    }
}
