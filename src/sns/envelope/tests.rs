//! What is an envelope, and all that is not.

use super::*;

const GOOD: &str = r#"{"Type":"Notification","MessageId":"m-1",
    "TopicArn":"arn:aws:sns:us-east-1:123456789012:t","Subject":"s","Message":"hello\n",
    "Timestamp":"2026-11-23T10:00:00.000Z","SignatureVersion":"1","Signature":"AAAA",
    "SigningCertURL":"https://example.com/","UnsubscribeURL":"https://example.com/",
    "MessageAttributes":{"a":{"Type":"String","Value":"b"}},"Future":[1]}"#;

fn word(body: &str) -> &'static str {
    Envelope::read(body.as_bytes()).map_or_else(|error| error.word, |_| "good")
}

#[test]
fn a_good_envelope_is_read_and_its_string_to_sign_is_literal() {
    let envelope = Envelope::read(GOOD.as_bytes()).unwrap();
    assert_eq!(
        envelope.signed().string_to_sign().unwrap(),
        "Message\nhello\n\nMessageId\nm-1\nSubject\ns\nTimestamp\n2026-11-23T10:00:00.000Z\n\
         TopicArn\narn:aws:sns:us-east-1:123456789012:t\nType\nNotification\n"
    );
}

#[test]
fn a_confirmation_signs_token_and_url_and_no_subject() {
    let body = GOOD
        .replace("Notification", "SubscriptionConfirmation")
        .replace(
            "\"Future\":[1]",
            "\"Token\":\"0af\",\"SubscribeURL\":\"https://u/\"",
        );
    let envelope = Envelope::read(body.as_bytes()).unwrap();
    assert_eq!(
        envelope.signed().string_to_sign().unwrap(),
        "Message\nhello\n\nMessageId\nm-1\nSubscribeURL\nhttps://u/\n\
         Timestamp\n2026-11-23T10:00:00.000Z\nToken\n0af\n\
         TopicArn\narn:aws:sns:us-east-1:123456789012:t\nType\nSubscriptionConfirmation\n"
    );
    assert_eq!(word(&body.replace("0af", "0AF")), "token");
    assert_eq!(word(&body.replace("0af", "")), "token");
    assert_eq!(word(&body.replace("\"Token\":\"0af\",", "")), "field");
    assert_eq!(
        word(&body.replace("https://u/", "https://u/\\n")),
        "control"
    );
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    let change = |from: &str, to: &str| {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replace(from, to)
    };
    let tall = format!("{}{}", "[".repeat(500), "]".repeat(500));
    for (body, expected) in [
        (GOOD.to_owned(), "good"),
        (change("\"Subject\":\"s\",", ""), "good"),
        (change("\"Subject\":\"s\"", "\"Subject\":null"), "good"),
        (
            change("\"UnsubscribeURL\":\"https://example.com/\",", ""),
            "good",
        ),
        (change("\"Subject\":\"s\"", "\"Subject\":\"\""), "subject"),
        (change("\"Subject\":\"s\"", "\"Subject\":1"), "json"),
        (
            change("\"Subject\":\"s\"", "\"Subject\":\"s\",\"Subject\":\"s\""),
            "duplicate",
        ),
        (change("\"Subject\"", "\"\\u0053ubject\""), "good"),
        (
            change(
                "\"Subject\":\"s\"",
                "\"Subject\":\"s\",\"\\u0053ubject\":\"t\"",
            ),
            "duplicate",
        ),
        (change("\"Subject\"", "\"subject\""), "spelling"),
        (change("SigningCertURL", "SigningCertUrl"), "spelling"),
        (
            change("\"Future\":[1]", "\"SigningCertUrl\":\"https://evil/\""),
            "spelling",
        ),
        (change("\"MessageId\":\"m-1\",", ""), "field"),
        (
            change("\"MessageId\":\"m-1\"", "\"MessageId\":null"),
            "field",
        ),
        (
            change("\"MessageId\":\"m-1\"", "\"MessageId\":\"\""),
            "message-id",
        ),
        (change("\"m-1\"", "\"m-1\\nSubject\\nforged\""), "control"),
        (change("\"m-1\"", "\"m-1\\u0000\""), "control"),
        (change("\"m-1\"", "\"m-1\\u0085\""), "control"),
        (
            change("\"Subject\":\"s\"", "\"Subject\":\"s\\nTimestamp\\n\""),
            "control",
        ),
        (change("\"Message\":\"hello\\n\",", ""), "field"),
        (change("10:00:00.000Z", "10:00:00z"), "timestamp"),
        (change("10:00:00.000Z", "10:00:00"), "timestamp"),
        (change("10:00:00.000Z", "10:00:00.Z"), "timestamp"),
        (change("10:00:00.000Z", "10:00:00.0123456789Z"), "timestamp"),
        (change("10:00:00.000Z", "10:00:00.000Z[UTC]"), "timestamp"),
        (change("10:00:00.000Z", "10:00:00.000+0000"), "timestamp"),
        (change("10:00:00.000Z", "10:00:00.000+99:00"), "timestamp"),
        (
            change("10:00:00.000Z", "10:00:00.000\u{0660}Z"),
            "timestamp",
        ),
        (change("10:00:00.000Z", "10:00\u{0660}00.000Z"), "timestamp"),
        (change("2026-11-23T", "2026-13-23T"), "timestamp"),
        (change("2026-11-23T", "2026-11-23 "), "timestamp"),
        (change("\"1\"", "\"3\""), "version"),
        (
            change("\"SignatureVersion\":\"1\"", "\"SignatureVersion\":1"),
            "json",
        ),
        (change("AAAA", "AA_-"), "base64"),
        (change("AAAA", "AA\\nAA"), "base64"),
        (change("AAAA", "AAA"), "base64"),
        (change("\"Notification\"", "\"notification\""), "type"),
        (change("arn:aws:sns", "arn:aws:sqs"), "topic"),
        (change("[1]", &tall), "good"),
        (format!("\u{feff}{GOOD}"), "json"),
        (format!("{GOOD} {{}}"), "json"),
        (format!("[{GOOD}]"), "json"),
        (serde_json::to_string(GOOD).unwrap(), "json"),
        (String::new(), "json"),
        ("{}".to_owned(), "field"),
    ] {
        assert_eq!(word(&body), expected, "{body:.200}");
    }
    assert!(Envelope::read(b"{\"Type\":\"\xff\"}").is_err());
}

#[test]
fn what_is_shown_of_a_stranger_is_bounded_and_escaped() {
    let piece = shown(&"\u{1b}[2J".repeat(1000));
    assert!(piece.len() < 1000 && !piece.contains('\u{1b}'), "{piece}");
}

#[test]
fn timestamps_of_compatible_services_are_read_and_kept_to_the_letter() {
    for (written, moment, is_odd) in [
        ("2026-11-23T10:00:00.000Z", "2026-11-23T10:00:00Z", false),
        ("2026-11-23T10:00:00.120Z", "2026-11-23T10:00:00.12Z", false),
        ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00Z", true),
        ("2026-11-23T10:00:00.12Z", "2026-11-23T10:00:00.12Z", true),
        ("2026-11-23T10:00:00+00:00", "2026-11-23T10:00:00Z", true),
        ("2026-11-23T12:30:00-00:30", "2026-11-23T13:00:00Z", true),
        (
            "2026-11-23T10:00:00.868954789+00:00",
            "2026-11-23T10:00:00.868954789Z",
            true,
        ),
        // In SNS's own form, and yet not what the moment alone would give.
        ("2016-12-31T23:59:60.000Z", "2016-12-31T23:59:59Z", true),
    ] {
        let body = GOOD.replace("2026-11-23T10:00:00.000Z", written);
        let envelope = Envelope::read(body.as_bytes()).unwrap();
        assert_eq!(envelope.sent_at, moment.parse().unwrap(), "{written}");
        assert_eq!(envelope.odd_timestamp(), is_odd.then_some(written));
    }
}
