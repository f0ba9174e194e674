//! What is wrong, said to people: the same way everywhere.
//!
//! Each part checks its own settings and says everything that is wrong at once; `config` finds the
//! place in the file. Words that were probably meant are suggested here, and errors told with their
//! causes.

/// One thing that is wrong, and where within the part's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The keys that lead to the place.
    pub path: Vec<String>,
    /// What is wrong, and the cure.
    pub message: String,
}

impl Fault {
    /// A fault at `path`.
    #[must_use]
    pub fn at(path: &[&str], message: impl Into<String>) -> Self {
        Self {
            path: path.iter().map(|key| (*key).to_owned()).collect(),
            message: message.into(),
        }
    }
}

/// `: did you mean …?`, when one of the `known` words is close to `word`; else nothing.
#[must_use]
pub fn meant<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&lower, &known.to_lowercase()), known))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| format!(": did you mean `{known}`?"))
        .unwrap_or_default()
}

/// An error and everything that caused it, in one line.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_word_is_suggested_and_a_strange_one_is_not() {
        let known = ["invocation", "summary", "alarm"];
        assert_eq!(meant("invocaton", known), ": did you mean `invocation`?");
        assert_eq!(meant("Summary", known), ": did you mean `summary`?");
        assert_eq!(meant("banana", known), "");
    }
}
