//! Text that somebody else wrote, and the only ways out of it.
//!
//! What a message says may look like markup, a mention or a link. A [`Plain`] can be written only in a
//! named [`Markup`], or as [`Plain::text`] where a format has a place for text that it never reads.

use std::borrow::Cow;

/// A line of text as somebody wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plain(String);

/// A language in which text is written, with characters that mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Markup {
    /// HTML, within an element or a quoted attribute.
    Html,
    /// HTML as Telegram reads it, which looks for `@` mentions besides.
    Telegram,
    /// Slack's: `&`, `<` and `>` begin everything that has a meaning, mentions included.
    Slack,
    /// Markdown as chat systems read it, and their `@` mentions.
    Markdown,
}

/// Says that something was left out.
const ELLIPSIS: char = '…';
/// Breaks a word for machines and not for people.
const ZERO_WIDTH_SPACE: char = '\u{200b}';

impl Plain {
    /// Takes a text. Line ends become spaces, and what would move or hide other text is left out:
    /// control characters, and those that turn the direction of writing.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let kept = text.chars().filter_map(|each| match each {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => Some(' '),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => None,
            _ if each.is_control() => None,
            _ => Some(each),
        });
        Self(kept.collect())
    }

    /// The text itself, for a place that is never read as markup: a JSON field of plain text, a
    /// terminal that was escaped for.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it to be seen.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.0.trim().is_empty()
    }

    /// The text in a markup: every character shows as itself.
    #[must_use]
    pub fn in_markup(&self, markup: Markup) -> String {
        let mut out = String::with_capacity(self.0.len() + 8);
        for each in self.0.chars() {
            match (markup, each) {
                (_, '&') if markup != Markup::Markdown => out.push_str("&amp;"),
                (Markup::Html | Markup::Telegram | Markup::Slack, '<') => out.push_str("&lt;"),
                (Markup::Html | Markup::Telegram | Markup::Slack, '>') => out.push_str("&gt;"),
                (Markup::Html | Markup::Telegram, '"') => out.push_str("&quot;"),
                (Markup::Html | Markup::Telegram, '\'') => out.push_str("&#39;"),
                // Slack has no escape for these: they are kept from being a pair.
                (Markup::Slack, '*' | '_' | '~' | '`') => {
                    out.push(ZERO_WIDTH_SPACE);
                    out.push(each);
                }
                (Markup::Markdown | Markup::Telegram, '@') => {
                    out.push(each);
                    out.push(ZERO_WIDTH_SPACE);
                }
                (
                    Markup::Markdown,
                    '\\' | '*' | '_' | '~' | '`' | '|' | '>' | '<' | '#' | '[' | ']' | '(' | ')'
                    | '!' | '&',
                ) => {
                    out.push('\\');
                    out.push(each);
                }
                _ => out.push(each),
            }
        }
        out
    }

    /// The text within a span of code; what would end the span is replaced.
    #[must_use]
    pub fn in_code(&self, markup: Markup) -> String {
        let text = self.0.replace('`', "'");
        match markup {
            Markup::Html | Markup::Telegram | Markup::Slack => Self(text).in_markup(Markup::Html),
            Markup::Markdown => text,
        }
    }

    /// At most so many characters, the last of them an ellipsis when something was left out.
    #[must_use]
    pub fn cut(&self, chars: usize) -> Cow<'_, Self> {
        let mut places = self.0.char_indices().map(|(at, _)| at);
        match (places.nth(chars.saturating_sub(1)), places.next()) {
            (Some(end), Some(_)) => {
                let mut cut = self.0.get(..end).unwrap_or_default().to_owned();
                cut.push(ELLIPSIS);
                Cow::Owned(Self(cut))
            }
            _ => Cow::Borrowed(self),
        }
    }
}

/// Text of several lines that somebody wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(Vec<Plain>);

impl Lines {
    /// Takes a text line by line. Blank lines at its ends, and more than one in a row, are left out.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut lines: Vec<Plain> = Vec::new();
        for line in text.lines().map(Plain::new) {
            let follows_blank = lines.last().is_none_or(Plain::is_blank);
            if !(follows_blank && line.is_blank()) {
                lines.push(line);
            }
        }
        if lines.last().is_some_and(Plain::is_blank) {
            lines.pop();
        }
        Self(lines)
    }

    /// The text itself, for a place that is never read as markup.
    #[must_use]
    pub fn text(&self) -> String {
        self.joined(|line| line.text().to_owned(), "\n")
    }

    /// The text in a markup, with what breaks a line there.
    #[must_use]
    pub fn in_markup(&self, markup: Markup, line_break: &str) -> String {
        self.joined(|line| line.in_markup(markup), line_break)
    }

    /// How many characters it has.
    #[must_use]
    pub fn chars(&self) -> usize {
        let each = self.0.iter();
        let chars: usize = each.map(|line| line.text().chars().count() + 1).sum();
        chars.saturating_sub(1)
    }

    /// At most so many characters, the last of them an ellipsis when something was left out.
    #[must_use]
    pub fn cut(&self, chars: usize) -> Self {
        if self.chars() <= chars {
            return self.clone();
        }
        let mut left = chars;
        let mut kept = Vec::new();
        for line in &self.0 {
            let size = line.text().chars().count();
            if size + 1 >= left {
                // One less, so that it shows even where a line ends just there.
                let most = if size > left {
                    left
                } else {
                    size.saturating_sub(1)
                };
                kept.push(line.cut(most).into_owned());
                break;
            }
            left -= size + 1;
            kept.push(line.clone());
        }
        Self(kept)
    }

    fn joined(&self, line: impl Fn(&Plain) -> String, line_break: &str) -> String {
        self.0.iter().map(line).collect::<Vec<_>>().join(line_break)
    }
}

impl From<&str> for Plain {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Plain {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_means_anything() {
        let evil = Plain::new("<!channel> *b* `c` @everyone [a](http://x) & \"q\"");
        assert_eq!(
            evil.in_markup(Markup::Html),
            "&lt;!channel&gt; *b* `c` @everyone [a](http://x) &amp; &quot;q&quot;"
        );
        let slack = evil.in_markup(Markup::Slack);
        assert!(
            slack.starts_with("&lt;!channel&gt; \u{200b}*b\u{200b}* \u{200b}`c"),
            "{slack}"
        );
        let markdown = evil.in_markup(Markup::Markdown);
        assert!(
            markdown.starts_with("\\<\\!channel\\> \\*b\\* \\`c\\` @\u{200b}everyone \\[a\\]\\("),
            "{markdown}"
        );
        assert_eq!(Plain::new("a`b<").in_code(Markup::Slack), "a&#39;b&lt;");
    }

    #[test]
    fn what_hides_or_moves_text_is_left_out() {
        let text = Plain::new("a\r\nb\u{202e}c\u{0007}d\u{2066}e\u{0}");
        assert_eq!(text.text(), "a  bcde");
    }

    #[test]
    fn lines_stay_lines_and_a_cut_says_so() {
        let text = Lines::new("\n\none *a*\r\n\n\n\ntwo\n");
        assert_eq!(text.text(), "one *a*\n\ntwo");
        assert_eq!(
            text.in_markup(Markup::Markdown, "<br>"),
            "one \\*a\\*<br><br>two"
        );
        assert_eq!(text.cut(100), text);
        assert_eq!(text.cut(10).text(), "one *a*\n\n…");
        assert_eq!(text.cut(4).text(), "one…");
        for most in 0..20 {
            assert!(text.cut(most).text().chars().count() <= most.max(1));
        }
        assert_eq!(Lines::new("  \n").text(), "");
    }

    #[test]
    fn a_cut_counts_characters_and_shows() {
        let text = Plain::new("grüße");
        assert_eq!(text.cut(5).text(), "grüße");
        assert_eq!(text.cut(4).text(), "grü…");
        assert_eq!(text.cut(1).text(), "…");
        assert_eq!(text.cut(0).text(), "…");
    }
}
