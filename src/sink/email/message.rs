//! A notice as a mail.

use std::fmt::Write as _;
use std::time::SystemTime;

use jiff::Timestamp;
use lettre::Message;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use openssl::sha::Sha256;

use super::html;
use crate::event::Event;
use crate::render::{Document, Notice, Plain};

/// Longer HTML is cut off by Gmail, with the link at its end.
const LONGEST_HTML: usize = 90_000;
/// A subject that a telephone shows at all.
const LONGEST_TITLE: usize = 150;

/// How much of a notice a mail says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// All of it, as text and as HTML.
    Whole,
    /// Its title and link, as text: nothing that a filter could take offence at.
    Plain,
}

/// The mail as it goes to the server.
pub(super) fn build(
    notice: &Notice,
    form: Form,
    sink: &str,
    from: &Mailbox,
    to: &[Mailbox],
    now: Timestamp,
) -> Result<Vec<u8>, lettre::error::Error> {
    let mut document =
        Document::of(notice).fitted(|document| html::written(document).len() <= LONGEST_HTML);
    let domain = from.email.domain();
    let mut builder = Message::builder()
        .from(from.clone())
        .date(SystemTime::from(now))
        .message_id(Some(format!("<{}@{domain}>", notice.id)))
        .subject(subject(&document, &notice.event));
    for mailbox in to {
        builder = builder.to(mailbox.clone());
    }
    if let Some(thread) = thread(&notice.event) {
        let root = format!("<{thread}@{domain}>");
        builder = builder.in_reply_to(root.clone()).references(root);
    }
    let list = format!("<runbell.{}.{domain}>", list_word(sink));
    for (name, value) in [
        // RFC 3834: nobody's holiday is of interest to us.
        ("Auto-Submitted", "auto-generated"),
        // The same to Exchange.
        ("X-Auto-Response-Suppress", "All"),
        // RFC 2919: what filters go by.
        ("List-Id", &list),
    ] {
        let name = HeaderName::new_from_ascii_str(name);
        builder = builder.raw_header(HeaderValue::new(name, value.to_owned()));
    }
    let mail = match form {
        Form::Whole => {
            let parts = (text(&document), html::written(&document));
            builder.multipart(MultiPart::alternative_plain_html(parts.0, parts.1))?
        }
        Form::Plain => {
            document.facts.clear();
            document.marks.clear();
            document.text = None;
            document.paste = None;
            document.is_cut = true;
            builder.singlepart(SinglePart::plain(text(&document)))?
        }
    };
    Ok(mail.formatted())
}

/// The mail for people to look at: whom it goes to, its subject, and its text.
pub(super) fn shown(notice: &Notice, to: &str) -> String {
    let document = Document::of(notice);
    let subject = subject(&document, &notice.event);
    format!(
        "To: {to}\nSubject: {subject}\n\n{}",
        text(&document).trim_end()
    )
}

/// What it says, and where.
fn subject(document: &Document, event: &Event) -> String {
    let title = document.title.cut(LONGEST_TITLE);
    let place = Plain::new(&format!(" ({} {})", event.account, event.region));
    let subject = format!("{}{}", title.text(), place.text());
    // What looks like an encoded word would be decoded.
    subject.replace("=?", "= ?")
}

/// What names the thread that the mails of one command make. None of them is its root, so that it
/// does not matter which of them comes first.
fn thread(event: &Event) -> Option<String> {
    let command = &event.command()?.command;
    let mut hash = Sha256::new();
    for part in [&event.account, &event.region, command] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    let mut name = String::with_capacity(32);
    for byte in hash.finish().iter().take(16) {
        // Writing to a text cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    Some(name)
}

/// A sink's name as a part of a domain.
fn list_word(sink: &str) -> String {
    let kept = |each: char| each.is_ascii_alphanumeric() || each == '-' || each == '_';
    sink.chars()
        .map(|each| if kept(each) { each } else { '-' })
        .collect()
}

/// The document without any markup.
fn text(document: &Document) -> String {
    let mut text = format!("{}\n", document.title.text());
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    if !document.marks.is_empty() {
        line("");
    }
    for mark in &document.marks {
        line(&format!("! {}", mark.text()));
    }
    if !document.facts.is_empty() {
        line("");
    }
    let facts = document.facts.iter();
    let width = facts.map(|fact| fact.name.len()).max().unwrap_or_default();
    for fact in &document.facts {
        line(&format!("{:width$}  {}", fact.name, fact.value.text()));
    }
    if let Some(said) = &document.text {
        line(&format!("\n{}", said.text()));
    }
    if document.is_cut {
        line("\n(shortened)");
    }
    if let Some(link) = &document.link {
        line(&format!("\n{}:\n{}", link.label, link.url));
    }
    if let Some(paste) = &document.paste {
        line(&format!("\n{}", paste.text()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EnvelopeKind, Source};
    use crate::sink::record::tests::notice;

    fn built(notice: &Notice) -> String {
        let from = "Runbell <runbell@example.com>".parse().unwrap();
        let to = ["Ann <a@example.com>", "b@example.com"].map(|to| to.parse().unwrap());
        let now = "2026-11-23T10:00:02Z".parse().unwrap();
        let mail =
            String::from_utf8(build(notice, Form::Whole, "on call", &from, &to, now).unwrap())
                .unwrap();
        for line in mail.split("\r\n") {
            assert!(line.is_ascii() && line.len() <= 78, "{line}");
            assert!(!line.contains(['\r', '\n']), "{line:?}");
        }
        mail
    }

    /// Names and values of the headers, unfolded.
    fn headers(mail: &str) -> Vec<(String, String)> {
        let (head, _) = mail.split_once("\r\n\r\n").unwrap();
        let head = head.replace("\r\n ", " ");
        let split = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        };
        head.split("\r\n").map(split).collect()
    }

    fn header(mail: &str, name: &str) -> Option<String> {
        let mut headers = headers(mail).into_iter();
        headers.find(|(its, _)| its == name).map(|(_, value)| value)
    }

    fn message(subject: &str, body: &str) -> Notice {
        let event = Event::read(&Source {
            topic: "arn:aws:sns:eu-central-1:123456789012:run-command",
            account: "123456789012",
            region: "eu-central-1",
            message_id: "m-1",
            sent_at: "2026-11-23T10:00:00Z".parse().unwrap(),
            subject: Some(subject),
            body,
            envelope: EnvelopeKind::Notification,
        });
        Notice {
            event,
            ..notice("i-1")
        }
    }

    #[test]
    fn the_headers_say_what_programs_go_by() {
        let notice = notice("i-0123456789abcdef0");
        let mail = built(&notice);
        let thread = "<b8a2fae15f2584c37dcd5683b225935e@example.com>";
        for (name, value) in [
            ("From", "Runbell <runbell@example.com>"),
            ("To", "Ann <a@example.com>, b@example.com"),
            ("Date", "Mon, 23 Nov 2026 10:00:02 +0000"),
            ("Message-ID", &format!("<{}@example.com>", notice.id)),
            (
                "Subject",
                "TimedOut: AWS-RunShellScript on i-0123456789abcdef0 \
                 (123456789012 eu-central-1)",
            ),
            ("In-Reply-To", thread),
            ("References", thread),
            ("Auto-Submitted", "auto-generated"),
            ("X-Auto-Response-Suppress", "All"),
            ("List-Id", "<runbell.on-call.example.com>"),
            ("MIME-Version", "1.0"),
        ] {
            assert_eq!(header(&mail, name).as_deref(), Some(value), "{name}");
        }
        let kind = header(&mail, "Content-Type").unwrap();
        assert!(kind.starts_with("multipart/alternative;"), "{kind}");
    }

    #[test]
    fn a_mail_keeps_its_name_and_a_command_its_thread() {
        let first = notice("i-1");
        let mut again = first.clone();
        again.marks.possible_repeat = true;
        again.progress = Some("{}".to_owned());
        let other = notice("i-2");
        let of = |notice: &Notice, name| header(&built(notice), name).unwrap();
        assert_eq!(of(&first, "Message-ID"), of(&again, "Message-ID"));
        assert_ne!(of(&first, "Message-ID"), of(&other, "Message-ID"));
        assert_eq!(of(&first, "References"), of(&other, "References"));
        let mut elsewhere = first.clone();
        elsewhere.event.account = "210987654321".to_owned();
        assert_ne!(of(&first, "References"), of(&elsewhere, "References"));
        assert_eq!(header(&built(&message("s", "b")), "References"), None);
    }

    #[test]
    fn no_title_breaks_out_of_its_header() {
        for subject in [
            "a\r\nBcc: x@example.com\r\n\r\nhello",
            "\u{2028}Bcc: x@example.com\u{85}\u{0}\u{1b}[31m",
            "Störung: Größe überschritten, Überprüfung nötig, 温度が高すぎます 🔥🔥🔥",
            "=?utf-8?B?DQpCY2M6IHhAeS56?=",
            &"x".repeat(5000),
            &"ü".repeat(5000),
        ] {
            let mail = built(&message(subject, "body"));
            let names: Vec<_> = headers(&mail).into_iter().map(|(name, _)| name).collect();
            let expected = [
                "From",
                "Date",
                "Message-ID",
                "Subject",
                "To",
                "Auto-Submitted",
                "X-Auto-Response-Suppress",
                "List-Id",
                "MIME-Version",
                "Content-Type",
            ];
            assert_eq!(names, expected, "{subject}");
            let shown = header(&mail, "Subject").unwrap();
            assert!(!shown.contains("=?utf-8?B?DQ"), "{shown}");
            assert!(shown.ends_with("(123456789012 eu-central-1)"), "{shown}");
        }
    }

    #[test]
    fn the_text_says_it_without_markup() {
        let mut notice = notice("i-1");
        notice.marks.resent = true;
        let expected = "\
TimedOut: AWS-RunShellScript on i-1

! sent again by hand

Detail      ExecutionTimedOut
Instance    i-1
Account     123456789012 eu-central-1
Document    AWS-RunShellScript
Command     c-1
Event time  2026-11-23 09:59:59.025 UTC

Open in Systems Manager:
https://eu-central-1.console.aws.amazon.com/systems-manager/run-command/c-1/i-1?region=eu-central-1

aws ssm get-command-invocation --region eu-central-1 --command-id c-1 --instance-id i-1
";
        assert_eq!(text(&Document::of(&notice)), expected);
    }

    #[test]
    fn html_shows_what_was_said_and_never_obeys_it() {
        let page = html::written(&Document::of(&notice("i-1")));
        for part in [
            "bgcolor=\"#cf222e\"",
            "TimedOut: AWS-RunShellScript on i-1</td>",
            ">Instance</th>",
            "href=\"https://eu-central-1.console.aws.amazon.com/",
            ">aws ssm get-command-invocation --region eu-central-1 --command-id c-1",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let said = "<img src=x onerror='alert(1)'>\" & </td>";
        let hostile = html::written(&Document::of(&message(said, said)));
        let harmless = html::written(&Document::of(&message("s", "b")));
        let tags = |page: &str| page.matches('<').count();
        assert_eq!(tags(&hostile), tags(&harmless));
        assert!(
            hostile
                .contains("&lt;img src=x onerror=&#39;alert(1)&#39;&gt;&quot; &amp; &lt;/td&gt;")
        );
    }

    #[test]
    fn a_long_message_is_cut_before_mail_programs_do_it() {
        let notice = message("long", &"<&>".repeat(80_000));
        assert!(built(&notice).contains("(shortened)"));
        let fits = |document: &Document| html::written(document).len() <= LONGEST_HTML;
        assert!(fits(&Document::of(&notice).fitted(fits)));
    }
}
