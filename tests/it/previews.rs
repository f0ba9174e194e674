//! What each service is sent, to the letter: whoever changes the looks of a notice sees it here.

use std::path::Path;

use runbell::clock::Clock;
use runbell::config::{Config, Surroundings};
use runbell::delivery::Digest;
use runbell::event::Status;
use runbell::render::Notice;
use runbell::sink::http::Paces;
use serde_json::json;

use crate::sinks::{CASES, notice_of, open_at};
use crate::store::at;

fn notices() -> Vec<(&'static str, Notice)> {
    let status = |status: &str, detail: &str, document: &str| {
        let body = json!({
            "commandId": "0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11", "documentName": document,
            "instanceId": "i-0123456789abcdef0", "status": status, "detailedStatus": detail,
            "requestedDateTime": "2026-11-23T09:59:00Z", "eventTime": "2026-11-23T09:59:58.5Z",
        });
        let mut notice = notice_of(&body.to_string());
        notice.marks = runbell::delivery::Marks::default();
        notice
    };
    let summary = json!({
        "commandId": "0b6b5a5c-0000-4c1e-8d3b-2f0f3a9c1d11", "documentName": "AWS-RunPatchBaseline",
        "instanceIds": ["i-0123456789abcdef0", "i-0fedcba9876543210"], "status": "Failed",
        "outputS3BucketName": "logs", "outputS3KeyPrefix": "ssm/out",
        "eventTime": "2026-11-23T10:00:00Z",
    });
    let digest = Digest {
        succeeded: 9980,
        failed: 17,
        timed_out: 3,
        overall: Some(Status::Failed),
        troubled: vec![
            ("i-0123456789abcdef0".to_owned(), Status::Failed),
            ("i-0fedcba9876543210".to_owned(), Status::TimedOut),
        ],
        ..Digest::default()
    };
    let mut late = status("Failed", "NonZeroExit", "AWS-RunShellScript");
    late.marks.late = Some(std::time::Duration::from_millis(4200));
    late.marks.instead_of = Some("ops".to_owned());
    vec![
        (
            "begun",
            status("InProgress", "InProgress", "AWS-RunShellScript"),
        ),
        (
            "failed",
            status("Failed", "NonZeroExit", "AWS-RunShellScript"),
        ),
        ("late", late),
        (
            "closing",
            Notice {
                digest: Some(digest),
                marks: runbell::delivery::Marks::default(),
                ..notice_of(&summary.to_string())
            },
        ),
        (
            "alarm",
            notice_of("{\n  \"AlarmName\": \"disk <full>\",\n  \"NewStateValue\": \"ALARM\"\n}"),
        ),
        (
            "hostile",
            status(
                "Fa<i>led",
                "*x*",
                "<!channel> @everyone [x](http://evil) \u{202e}`a`\n<b>b</b>",
            ),
        ),
    ]
}

#[test]
fn every_service_is_sent_what_was_looked_at() {
    let clock = Clock::by_hand(at(1));
    for (number, case) in CASES.iter().enumerate() {
        let sink = open_at(&clock, case, "http://127.0.0.1:9", "");
        let shown: Vec<String> = notices()
            .iter()
            .map(|(name, notice)| format!("# {name}\n{}", sink.preview(notice)))
            .collect();
        let name = format!("{number:02}-{}", case.kind);
        insta::assert_snapshot!(name, shown.join("\n\n"));
    }
}

#[test]
fn a_mail_reads_as_it_was_looked_at() {
    let text = "[server]\nlisten = '127.0.0.1:0'\n[store]\nurl = 'sqlite:x.db'\n\
        [[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'\n\
        [[route]]\nname = 'r'\nto = ['s']\n[sink.s]\ntype = 'email'\n\
        smtp = 'smtps://mail.example.com'\nfrom = 'a@example.com'\n\
        to = ['Ann <ann@example.com>', 'bob@example.com']\n";
    let around = Surroundings {
        folder: Path::new("/tmp"),
        variable: &|_| None,
    };
    let parsed = Config::parse(text, Path::new("runbell.toml"), &around);
    let (config, _) = parsed.unwrap_or_else(|faults| panic!("{faults}"));
    let sink = config.sinks[0].open(&Clock::by_hand(at(1)), &mut Paces::default());
    let shown: Vec<String> = notices()
        .iter()
        .map(|(name, notice)| format!("# {name}\n{}", sink.preview(notice)))
        .collect();
    insta::assert_snapshot!("mail", shown.join("\n\n"));
}
