//! The rules of routes, and the truth table of the documentation.

use super::*;
use crate::event::{EnvelopeKind, Source};

fn route(text: &str) -> Route {
    let text = format!("name = 'r'\nto = ['s']\n{text}");
    toml::from_str::<Settings>(&text).unwrap().check().unwrap()
}

fn faults(text: &str) -> Vec<(String, String)> {
    let text = format!("name = 'r'\n{text}");
    let faults = toml::from_str::<Settings>(&text)
        .unwrap()
        .check()
        .unwrap_err();
    faults
        .into_iter()
        .map(|fault| (fault.path.join("."), fault.message))
        .collect()
}

fn event(body: &str) -> Event {
    Event::read(&Source {
        topic: "arn:aws:sns:eu-central-1:123456789012:run-command",
        account: "123456789012",
        region: "eu-central-1",
        message_id: "m",
        sent_at: "2026-01-01T00:00:01Z".parse().unwrap(),
        subject: Some("EC2 Run Command Notification eu-central-1"),
        body,
        envelope: EnvelopeKind::Notification,
    })
}

fn invocation(status: &str, detail: &str) -> Event {
    event(&format!(
        r#"{{"commandId":"c","documentName":"arn:aws:ssm:eu-central-1:1:document/My-Doc","instanceId":"i-1",
        "status":"{status}","detailedStatus":"{detail}","eventTime":"2026-01-01T00:00:00Z"}}"#
    ))
}

fn summary(status: &str) -> Event {
    event(&format!(
        r#"{{"commandId":"c","documentName":"AWS-RunShellScript","instanceIds":["i-1","i-2"],
        "status":"{status}","eventTime":"2026-01-01T00:00:00Z"}}"#
    ))
}

/// The truth table of the documentation.
#[test]
fn patterns_take_what_they_say() {
    let failed = invocation("Failed", "Undeliverable");
    let timed_out = invocation("TimedOut", "ExecutionTimedOut");
    let success = summary("Success");
    let alarm = event(r#"{"AlarmName":"cpu","NewStateValue":"ALARM","Trigger":{"Period":60}}"#);
    let text = event("hello");
    for (when, expected) in [
        ("", [true, true, true, true, true]),
        ("kind = 'invocation'", [true, true, false, false, false]),
        (
            "kind = ['summary', 'alarm']",
            [false, false, true, true, false],
        ),
        ("kind = '!invocation'", [false, false, true, true, true]),
        (
            "kind = ['!alarm', '!other']",
            [true, true, true, false, false],
        ),
        ("status = 'failed'", [true, false, false, false, false]),
        (
            "status = ['Failed', 'Timed Out']",
            [true, true, false, false, false],
        ),
        ("status = 'Canceled'", [false; 5]),
        (
            "status = 'undeliverable'",
            [true, false, false, false, false],
        ),
        (
            "status = 'Execution Timed Out'",
            [false, true, false, false, false],
        ),
        ("status = '!Success'", [true, true, false, true, true]),
        (
            "status = ['*', '!Failed']",
            [false, true, true, false, false],
        ),
        ("status = '*TimedOut'", [false, true, false, false, false]),
        ("status = '*timed out'", [false, true, false, false, false]),
        ("status = 'fail*'", [true, false, false, false, false]),
        ("status = '*X'", [false; 5]),
        ("status = 'Fail?d*'", [true, false, false, false, false]),
        ("status = 'S*'", [false, false, true, false, false]),
        (
            "detail = 'execution timed out'",
            [false, true, false, false, false],
        ),
        ("detail = '!Undeliverable'", [false, true, true, true, true]),
        ("document = 'My-*'", [true, true, false, false, false]),
        ("document = 'AWS-*'", [false, false, true, false, false]),
        (
            "document = 'arn:aws:ssm:*'",
            [true, true, false, false, false],
        ),
        ("document = 'my-doc'", [false; 5]),
        ("instance = 'i-2'", [false, false, true, false, false]),
        ("instance = 'i-?'", [true, true, true, false, false]),
        ("instance = '!i-2'", [true, true, false, true, true]),
        ("command = 'c'", [true, true, true, false, false]),
        ("topic = '*:run-command'", [true; 5]),
        ("topic = 'run-command'", [true; 5]),
        ("account = ['1*', '2*']", [true; 5]),
        ("region = '!eu-*'", [false; 5]),
        ("subject = '*Run Command*'", [true; 5]),
        (
            "message = { '/NewStateValue' = 'ALARM' }",
            [false, false, false, true, false],
        ),
        (
            "message = { '/Trigger/Period' = '60' }",
            [false, false, false, true, false],
        ),
        ("message = { '/AlarmName' = ['disk', '!cpu'] }", [false; 5]),
        (
            "kind = 'invocation'\nstatus = 'Failed'\ninstance = 'i-9'",
            [false; 5],
        ),
    ] {
        let lines = when.replace('\n', "\nwhen.");
        let route = route(
            if when.is_empty() {
                String::new()
            } else {
                format!("when.{lines}")
            }
            .as_str(),
        );
        let taken =
            [&failed, &timed_out, &success, &alarm, &text].map(|event| route.when.takes(event));
        assert_eq!(taken, expected, "{when}");
    }
}

#[test]
fn wrong_words_are_named_with_the_cure() {
    for (text, path, part) in [
        ("to = []", "to", "at least one sink"),
        ("to = ['s']\nhold = '2h'", "hold", "at most an hour"),
        (
            "to = ['s']\norder = 'none'\nhold = '5s'",
            "hold",
            "nothing to hold for",
        ),
        (
            "to = ['s']\nwhen.kind = 'invocaton'",
            "when.kind",
            "did you mean `invocation`?",
        ),
        (
            "to = ['s']\nwhen.status = 'Faild'",
            "when.status",
            "did you mean `Failed`?",
        ),
        (
            "to = ['s']\nwhen.status = []",
            "when.status",
            "matches nothing",
        ),
        (
            "to = ['s']\nwhen.subject = '!'",
            "when.subject",
            "negates nothing",
        ),
        (
            "to = ['s']\nwhen.message = { 'a' = 'b' }",
            "when.message.a",
            "no JSON pointer",
        ),
    ] {
        let found = faults(text);
        assert!(
            found
                .iter()
                .any(|(at, message)| at == path && message.contains(part)),
            "{text}: {found:?}"
        );
    }
    assert_eq!(faults("to = []\nhold = '2h'\nwhen.kind = 'x'").len(), 3);
}

#[test]
fn each_sink_gets_an_event_once_unless_asked_again() {
    let routes = Routes::new(
        [
            "name = 'a'\nto = ['x', 'y', 'x']",
            "name = 'b'\nto = ['y', 'z']",
            "name = 'c'\nto = ['y']\nagain = true\nstop = true",
            "name = 'd'\nto = ['never']",
        ]
        .iter()
        .map(|text| toml::from_str::<Settings>(text).unwrap().check().unwrap())
        .collect(),
    );
    let owed = routes.owed(&summary("Failed"), None);
    let pairs: Vec<_> = owed
        .iter()
        .map(|it| (it.route.as_str(), it.sink.as_str()))
        .collect();
    assert_eq!(pairs, [("a", "x"), ("a", "y"), ("b", "z"), ("c", "y")]);
    let explained = routes.explain(&summary("Failed"));
    assert_eq!(explained.len(), 3, "the walk ended");
    assert_eq!(explained[1].already, ["y"]);
}

#[test]
fn a_route_that_does_not_take_an_event_says_why() {
    let routes = Routes::new(vec![route("when.status = 'Failed'")]);
    let explained = routes.explain(&summary("Success"));
    assert_eq!(
        explained[0].why_not.as_deref(),
        Some("status is Success, not Failed")
    );
    assert!(explained[0].to.is_empty());
    let explained = routes.explain(&event("hello"));
    assert_eq!(
        explained[0].why_not.as_deref(),
        Some("it has no status, and Failed is wanted")
    );
}

#[test]
fn lanes_and_holds_follow_the_order() {
    let foreign = event("hello");
    let (start, end) = (
        invocation("InProgress", "InProgress"),
        invocation("Failed", "Failed"),
    );
    let unknown = invocation("Rebooting", "");
    let five = Duration::from_secs(5);
    for (text, event, lane, at_most, release) in [
        ("", &end, LaneKey::Command, five, Release::AtEnd),
        ("", &foreign, LaneKey::Own, Duration::ZERO, Release::AtEnd),
        (
            "order = 'topic'\nhold = '65s'",
            &foreign,
            LaneKey::Topic,
            Duration::from_secs(65),
            Release::AtEnd,
        ),
        (
            "order = 'none'",
            &end,
            LaneKey::Own,
            Duration::ZERO,
            Release::AtEnd,
        ),
        (
            "order = 'instance'",
            &start,
            LaneKey::Instance,
            five,
            Release::First,
        ),
        (
            "order = 'instance'",
            &end,
            LaneKey::Instance,
            five,
            Release::AfterFirst,
        ),
        (
            "order = 'instance'",
            &unknown,
            LaneKey::Instance,
            five,
            Release::Never,
        ),
        (
            "order = 'instance'\nwhen.status = ['Failed', 'TimedOut']",
            &end,
            LaneKey::Instance,
            five,
            Release::First,
        ),
        (
            "order = 'instance'\nwhen.status = '!InProgress'",
            &end,
            LaneKey::Instance,
            five,
            Release::First,
        ),
        (
            "order = 'instance'\nwhen.status = '!Success'",
            &end,
            LaneKey::Instance,
            five,
            Release::AfterFirst,
        ),
        (
            "hold = '0s'",
            &end,
            LaneKey::Command,
            Duration::ZERO,
            Release::AtEnd,
        ),
    ] {
        let owed = route(text).owe("s", event, None);
        assert_eq!(owed.lane, lane, "{text}");
        assert_eq!(owed.hold, Hold { at_most, release }, "{text}");
    }
    let least = Some(Duration::from_secs(25));
    let gap = route("order = 'instance'").owe("s", &start, least);
    assert_eq!(
        gap.hold,
        Hold {
            at_most: Duration::from_secs(25),
            release: Release::AtEnd
        }
    );
    let gap = route("order = 'instance'").owe("s", &unknown, least);
    assert_eq!(gap.hold.release, Release::Never);
    let long = route("hold = '65s'").owe("s", &start, least);
    assert_eq!(long.hold.at_most, Duration::from_secs(65));
    let none = route("hold = '0s'").owe("s", &start, least);
    assert_eq!(none.hold.at_most, Duration::ZERO);
}

#[test]
fn a_route_shows_an_event_that_it_takes() {
    for text in [
        "",
        "when.kind = 'summary'",
        "when.status = ['TimedOut', '!Failed']",
        "when.status = 'Undeliverable'",
        "when.document = 'AWS-*'\nwhen.instance = 'mi-*'",
        "when.account = '999999999999'\nwhen.region = 'cn-*'",
        "when.kind = 'unsubscribe'",
        "when.message = { '/detail/state' = 'stopped', '/a~1b' = 'x?' }",
        "when.subject = 'Deploy *'",
    ] {
        let route = route(text);
        let witness = route.witness().unwrap_or_else(|| panic!("{text}"));
        assert!(route.when.takes(&witness), "{text}: {witness:?}");
    }
    for text in [
        "when.kind = 'alarm'\nwhen.status = 'Failed'",
        "when.status = ['Failed', '!F*']",
    ] {
        assert!(route(text).witness().is_none(), "{text}");
    }
}
