//! A notice as a mail.

use std::fmt::Write as _;
use std::time::SystemTime;

use jiff::Timestamp;
use lettre::Message;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use openssl::sha::Sha256;

use super::html;
use crate::event::Event;
use crate::render::{Document, Notice, Plain};

/// Longer HTML is cut off by Gmail, with the link at its end.
const LONGEST_HTML: usize = 90_000;
/// A subject that a telephone shows at all.
const LONGEST_TITLE: usize = 150;

/// The mail as it goes to the server.
pub(super) fn build(
    notice: &Notice,
    sink: &str,
    from: &Mailbox,
    to: &[Mailbox],
    now: Timestamp,
) -> Result<Vec<u8>, lettre::error::Error> {
    let document =
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
    let parts = MultiPart::alternative_plain_html(text(&document), html::written(&document));
    Ok(builder.multipart(parts)?.formatted())
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
    use crate::sink::record::tests::notice;

    #[test]
    fn show() {
        let to: Vec<Mailbox> = vec![
            "Ann <a@example.com>".parse().unwrap(),
            "b@example.com".parse().unwrap(),
        ];
        let from: Mailbox = "Runbell <runbell@example.com>".parse().unwrap();
        for text in [
            "i-0123456789abcdef0",
            "i-\u{2028}\r\nBcc: x@y.z\u{e4}\u{e4}<b>&=?utf-8?B?aGFsbG8=?=",
        ] {
            let bytes = build(
                &notice(&text.replace('\r', "\\r").replace('\n', "\\n")),
                "on call",
                &from,
                &to,
                "2026-11-23T10:00:00Z".parse().unwrap(),
            )
            .unwrap();
            std::fs::write(format!("/tmp/mail{}.eml", text.len()), &bytes).unwrap();
            println!("{}", String::from_utf8(bytes).unwrap());
        }
    }
}
