//! What is wrong with a settings file, each with its place, for people and for tools.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use super::secret::may_show;
use crate::secret::NOT_HERE;

/// One thing that is wrong, or probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 when it is about the whole file.
    pub line: usize,
    /// The column in characters, from 1; 0 when it is about the whole file.
    pub column: usize,
    /// What is wrong, and the cure.
    pub message: String,
    /// It keeps nothing from running.
    pub is_warning: bool,
    /// The line that it is about, and where in it; not shown where a secret may stand.
    #[serde(skip)]
    excerpt: Option<(String, Range<usize>)>,
}

/// Everything that is wrong with a settings file, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(Vec<Diagnostic>);

impl Diagnostic {
    /// Something about a `span` of `text`.
    pub(super) fn at(file: &Path, text: &str, span: Range<usize>, message: String) -> Self {
        let before = text.get(..span.start).unwrap_or_default();
        let begins = before.rfind('\n').map_or(0, |at| at + 1);
        let line = text
            .get(begins..)
            .and_then(|rest| rest.lines().next())
            .unwrap_or_default();
        let from = span.start.saturating_sub(begins).min(line.len());
        // A table goes over many lines: its first is enough to find it.
        let upto = span.end.saturating_sub(begins).clamp(from, line.len());
        let in_line = line.get(..from).unwrap_or_default();
        Self {
            file: file.display().to_string(),
            line: before.matches('\n').count() + 1,
            column: in_line.chars().count() + 1,
            is_warning: false,
            excerpt: (!may_show(line) && !message.contains(NOT_HERE))
                .then(|| (line.to_owned(), from..upto.max(from))),
            message,
        }
    }

    /// Something about a file as a whole.
    pub(super) fn of_file(file: &Path, message: String) -> Self {
        Self {
            file: file.display().to_string(),
            line: 0,
            column: 0,
            message,
            is_warning: false,
            excerpt: None,
        }
    }

    /// The same, as a warning.
    #[must_use]
    pub(super) fn warning(self) -> Self {
        Self {
            is_warning: true,
            ..self
        }
    }

    /// As a person reads it, with the line and a caret under the place.
    #[must_use]
    pub fn render(&self, coloured: bool) -> String {
        let renderer = if coloured {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let level = if self.is_warning {
            Level::WARNING
        } else {
            Level::ERROR
        };
        let title = level.primary_title(self.message.as_str());
        let Some((line, range)) = &self.excerpt else {
            let place = Origin::path(self.file.as_str());
            let place = match self.line {
                0 => place,
                line => place.line(line).char_column(self.column),
            };
            let report = [title.element(place)];
            return format!("{}\n\n", renderer.render(&report));
        };
        let snippet = Snippet::source(line.as_str())
            .line_start(self.line)
            .path(self.file.as_str())
            .annotation(AnnotationKind::Primary.span(range.clone()));
        format!("{}\n\n", renderer.render(&[title.element(snippet)]))
    }
}

impl Faults {
    pub(super) fn new(mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|it| (it.line, it.column));
        Self(diagnostics)
    }

    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let message = format!("the settings cannot be read: {error}; name them with --config");
        Self(vec![Diagnostic::of_file(path, message)])
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }

    /// As a person reads them.
    #[must_use]
    pub fn render(&self, coloured: bool) -> String {
        self.0.iter().map(|it| it.render(coloured)).collect()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}
