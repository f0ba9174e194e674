//! What an HTTP service answered, and what that means where its vendor says nothing else.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;

use crate::clock::since;
use crate::render::Plain;
use crate::retry::{Scope, Verdict};

/// How much of an answer is shown to people, in characters.
const SHOWN: usize = 200;

/// An answer, as far as verdicts look at it.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// How long it asks us to wait.
    pub retry_after: Option<Duration>,
    /// The beginning of its body.
    pub body: String,
}

impl Answer {
    /// The verdict for a service that means what HTTP says:
    ///
    /// | answer | verdict |
    /// |---|---|
    /// | 2xx | sent |
    /// | 429, 502, 503, 504 | later, the whole sink rests |
    /// | 408, 425, other 5xx but 501 | later, this notice |
    /// | 401, 403, 404, 407, 410 | the sink is broken |
    /// | 400, 413, 422 | refused for its content |
    /// | 3xx and everything else | refused |
    #[must_use]
    pub fn usual(&self) -> Verdict {
        match self.status {
            200..=299 => Verdict::Sent { remote_id: None },
            429 | 502..=504 => self.later(Scope::Sink),
            408 | 425 | 500 | 505..=599 => self.later(Scope::Notice),
            401 | 403 | 404 | 407 | 410 => self.broken(),
            400 | 413 | 422 => self.refused(true),
            _ => self.refused(false),
        }
    }

    /// To be tried again.
    #[must_use]
    pub fn later(&self, scope: Scope) -> Verdict {
        Verdict::Retry {
            why: self.shown(),
            after: self.retry_after,
            scope,
            progress: None,
        }
    }

    /// The sink itself is at fault.
    #[must_use]
    pub fn broken(&self) -> Verdict {
        Verdict::Broken { why: self.shown() }
    }

    /// Never taken; `content` when plain text in its place may be.
    #[must_use]
    pub fn refused(&self, content: bool) -> Verdict {
        Verdict::Refused {
            why: self.shown(),
            content,
        }
    }

    /// The code and the beginning of the body, on one line.
    #[must_use]
    pub fn shown(&self) -> String {
        let body = Plain::new(self.body.trim());
        if body.is_blank() {
            self.status.to_string()
        } else {
            format!("{} {}", self.status, body.cut(SHOWN).text())
        }
    }
}

/// Reads a `Retry-After`: seconds, also with a fraction, or a date.
#[must_use]
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return (seconds >= 0.0)
            .then(|| Duration::try_from_secs_f64(seconds).ok())
            .flatten();
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(since(now, date))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_in_every_form() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        for (text, seconds) in [
            ("30", Some(30.0)),
            (" 0.25 ", Some(0.25)),
            ("Mon, 23 Nov 2026 10:01:00 GMT", Some(60.0)),
            ("Mon, 23 Nov 2026 09:00:00 GMT", Some(0.0)),
            ("-1", None),
            ("NaN", None),
            ("1e300", None),
            ("soon", None),
            ("", None),
        ] {
            let read = retry_after(text, now).map(|it| it.as_secs_f64());
            assert_eq!(read, seconds, "{text}");
        }
    }

    /// What people read is what the code does.
    #[test]
    fn the_documentation_says_what_each_code_means() {
        let page = include_str!("../../../docs/sinks.md");
        let (_, rest) = page
            .split_once("## What an answer over HTTP means")
            .unwrap();
        let (table, _) = rest.split_once("\n## ").unwrap_or((rest, ""));
        let mut codes = 0;
        for row in table.lines().filter(|line| line.starts_with("| ")) {
            let mut columns = row.split('|').map(str::trim).skip(1);
            let (said, meaning) = (columns.next().unwrap(), columns.next().unwrap());
            let digits = |each: char| !each.is_ascii_digit();
            for code in said.split(digits).filter(|code| code.len() == 3) {
                let answer = Answer {
                    status: code.parse().unwrap(),
                    ..Answer::default()
                };
                let verdict = answer.usual();
                let word = match verdict.word() {
                    "retry" if verdict.is_of_the_sink() => "later; the whole sink rests",
                    "retry" => "later; this notice",
                    "broken" => "the sink is broken",
                    "refused" if matches!(verdict, Verdict::Refused { content: true, .. }) => {
                        "refused for its form"
                    }
                    word => word,
                };
                assert!(
                    meaning.starts_with(word),
                    "{code}: {word}, and the page says {meaning}"
                );
                codes += 1;
            }
        }
        assert!(codes >= 15, "the page names {codes} codes");
    }

    #[test]
    fn every_code_has_a_verdict() {
        for (status, word) in [
            (200, "sent"),
            (202, "sent"),
            (204, "sent"),
            (301, "refused"),
            (400, "refused"),
            (401, "broken"),
            (403, "broken"),
            (404, "broken"),
            (408, "retry"),
            (410, "broken"),
            (413, "refused"),
            (418, "refused"),
            (422, "refused"),
            (425, "retry"),
            (429, "retry"),
            (500, "retry"),
            (501, "refused"),
            (503, "retry"),
            (599, "retry"),
        ] {
            let answer = Answer {
                status,
                ..Answer::default()
            };
            assert_eq!(answer.usual().word(), word, "{status}");
        }
        let long = Answer {
            status: 400,
            body: "no\r\n".repeat(500),
            ..Answer::default()
        };
        let shown = long.shown();
        assert!(
            shown.starts_with("400 no  no") && shown.chars().count() <= 204,
            "{shown}"
        );
    }
}
