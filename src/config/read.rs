//! Reads a piece of settings and goes on where serde gives up.
//!
//! What is wrong is noted, taken out and looked past, so that all of it is found and not only the
//! first. `document` knows the place of each in the file.

use serde::de::DeserializeOwned;
use toml::Value;

use crate::fault::meant;

/// Something that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The keys that lead to it, as they are written.
    pub(super) path: Vec<String>,
    /// What is wrong, and the cure.
    pub(super) message: String,
    /// The key is wrong, and not what stands behind it.
    pub(super) is_key: bool,
}

/// Reads `value`, and says everything that is wrong with it. Something wrong does not keep the rest
/// from being read: what is there is to be checked as well. It is `None` where too little is left.
pub(super) fn read<T: DeserializeOwned>(value: &Value) -> (Option<T>, Vec<Wrong>) {
    let mut rest = value.clone();
    let mut wrong = Vec::new();
    let mut taken: Vec<Vec<String>> = Vec::new();
    let mut shortened: Vec<Vec<String>> = Vec::new();
    loop {
        let error = match serde_path_to_error::deserialize(rest.clone()) {
            Ok(read) => match shortened.pop() {
                None => return (Some(read), wrong),
                // What is left of a list has moved: nobody could say which of them is wrong.
                Some(list) => {
                    taken.push(written(value, &list, &taken));
                    take_out(&mut rest, &list);
                    continue;
                }
            },
            Err(error) => error,
        };
        let mut path: Vec<String> = error.path().iter().filter_map(key).collect();
        let said = Said::read(error.inner().message().trim_end());
        if let Said::UnknownKey { key, .. } = &said
            && path.last() != Some(key)
        {
            path.push(key.clone());
        }
        let place = written(value, &path, &taken);
        let is_known = matches!(&said, Said::Missing(key) if {
            let whole = [place.as_slice(), std::slice::from_ref(key)].concat();
            taken.contains(&whole)
        });
        // What is missing because it was wrong is not wrong twice.
        if !is_known {
            wrong.push(Wrong {
                path: place.clone(),
                is_key: matches!(said, Said::UnknownKey { .. }),
                message: said.in_words(),
            });
        }
        if !take_out(&mut rest, &path) {
            return (None, wrong);
        }
        if let Some((_, list)) = path.split_last()
            && at(&rest, list).is_some_and(Value::is_array)
            && !shortened.iter().any(|it| it == list)
        {
            shortened.push(list.to_vec());
        }
        taken.push(place);
    }
}

/// What serde said.
enum Said {
    UnknownKey { key: String, known: Vec<String> },
    UnknownWord { word: String, known: Vec<String> },
    Missing(String),
    Other(String),
}

impl Said {
    fn read(message: &str) -> Self {
        let quoted = |rest: &str| -> Option<(String, Vec<String>)> {
            let (word, expected) = rest.split_once('`')?;
            let known = expected.split('`').skip(1).step_by(2).map(str::to_owned);
            Some((word.to_owned(), known.collect()))
        };
        let after = |start| message.strip_prefix(start).and_then(quoted);
        if let Some((key, known)) = after("unknown field `") {
            Self::UnknownKey { key, known }
        } else if let Some((word, known)) = after("unknown variant `") {
            Self::UnknownWord { word, known }
        } else if let Some((key, _)) = after("missing field `") {
            Self::Missing(key)
        } else {
            Self::Other(message.replace("expected usize", "expected a whole number"))
        }
    }

    fn in_words(self) -> String {
        let suggestion = |word: &str, known: &[String], one: &str| {
            let meant = meant(word, known.iter().map(String::as_str));
            if meant.is_empty() && !known.is_empty() {
                format!("; {one} `{}`", known.join("`, `"))
            } else {
                meant
            }
        };
        match self {
            Self::UnknownKey { key, known } => {
                let suggestion = suggestion(&key, &known, "there are");
                format!("there is no key `{key}` here{suggestion}")
            }
            Self::UnknownWord { word, known } => {
                let suggestion = suggestion(&word, &known, "write one of");
                format!("`{word}` means nothing here{suggestion}")
            }
            Self::Missing(key) => format!("missing key `{key}`"),
            Self::Other(message) => message,
        }
    }
}

fn key(segment: &serde_path_to_error::Segment) -> Option<String> {
    use serde_path_to_error::Segment;
    match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// A path into what is left, as it was before the members of lists in `taken` were taken out.
fn written(value: &Value, path: &[String], taken: &[Vec<String>]) -> Vec<String> {
    let mut whole: Vec<String> = Vec::new();
    for key in path {
        let is_list = at(value, &whole).is_some_and(Value::is_array);
        let key = match key.parse::<usize>() {
            Ok(number) if is_list => {
                let mut gone: Vec<usize> = taken
                    .iter()
                    .filter_map(|it| it.strip_prefix(whole.as_slice()))
                    .filter_map(|rest| match rest {
                        [number] => number.parse().ok(),
                        _ => None,
                    })
                    .collect();
                gone.sort_unstable();
                let moved = |number, gone: usize| if gone <= number { number + 1 } else { number };
                gone.into_iter().fold(number, moved).to_string()
            }
            _ => key.clone(),
        };
        whole.push(key);
    }
    whole
}

/// What lies at `path`.
fn at<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |here, key| match here {
        Value::Table(table) => table.get(key),
        Value::Array(array) => array.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Takes what lies at `path` out of a value; `false` when there is nothing to take.
fn take_out(value: &mut Value, path: &[String]) -> bool {
    let Some((last, before)) = path.split_last() else {
        return false;
    };
    let place = before.iter().try_fold(value, |here, key| match here {
        Value::Table(table) => table.get_mut(key),
        Value::Array(array) => array.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    });
    match place {
        Some(Value::Table(table)) => table.remove(last).is_some(),
        Some(Value::Array(array)) => match last.parse::<usize>() {
            Ok(number) if number < array.len() => {
                array.remove(number);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Section {
        count: usize,
        words: Vec<String>,
        pairs: Vec<Pair>,
        pair: Option<Pair>,
        side: Side,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair {
        #[expect(dead_code, reason = "only whether it can be read matters")]
        left: String,
        #[expect(dead_code, reason = "only whether it can be read matters")]
        right: String,
    }

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Side {
        #[default]
        Left,
        Right,
    }

    fn section(text: &str) -> (Option<Section>, Vec<String>) {
        let table: toml::Table = toml::from_str(text).unwrap();
        let (read, wrong) = read(&Value::Table(table));
        let said = wrong
            .into_iter()
            .map(|it| format!("{}: {}", it.path.join("."), it.message));
        (read, said.collect())
    }

    #[test]
    fn everything_wrong_is_found_where_it_was_written() {
        let no_text = "invalid type: integer `1`, expected a string";
        let cases: &[(&str, &[&str])] = &[
            (
                "side = 'rihgt'",
                &["side: `rihgt` means nothing here: did you mean `right`?"],
            ),
            (
                "side = 'up'",
                &["side: `up` means nothing here; write one of `left`, `right`"],
            ),
            (
                "zzz = 1",
                &[
                    "zzz: there is no key `zzz` here; there are `count`, `words`, `pairs`, `pair`, `side`",
                ],
            ),
            (
                "count = 'x'\ncuont = 1",
                &[
                    "count: invalid type: string \"x\", expected a whole number",
                    "cuont: there is no key `cuont` here: did you mean `count`?",
                ],
            ),
            (
                "words = ['a', 1, 'b', 1, 1]",
                &[
                    &format!("words.1: {no_text}"),
                    &format!("words.3: {no_text}"),
                    &format!("words.4: {no_text}"),
                ],
            ),
            // The first of each pair is lost, and with it the pair; the second is said all the same.
            (
                "pairs = [{ left = 1, right = 'r' }, { left = 'l' }, { left = 1, right = 1 }]\nzzzz = 1",
                &[
                    &format!("pairs.0.left: {no_text}"),
                    "pairs.1: missing key `right`",
                    &format!("pairs.2.left: {no_text}"),
                    &format!("pairs.2.right: {no_text}"),
                    "zzzz: there is no key `zzzz` here; there are `count`, `words`, `pairs`, `pair`, `side`",
                ],
            ),
            (
                "[pair]\nleft = 1\nrigth = 'r'",
                &[
                    &format!("pair.left: {no_text}"),
                    "pair.rigth: there is no key `rigth` here: did you mean `right`?",
                ],
            ),
            ("[pair]\nleft = 'l'", &["pair: missing key `right`"]),
        ];
        for (text, expected) in cases {
            let (read, said) = section(text);
            assert_eq!(said, *expected, "{text}");
            assert!(read.is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_left_is_read_and_a_list_with_holes_is_left_out() {
        let (read, said) = section("count = 3\nwords = ['a', 1]\npairs = []\nside = 7");
        let read = read.unwrap();
        assert_eq!((read.count, read.words.len(), said.len()), (3, 0, 2));
        assert!(read.pairs.is_empty() && read.pair.is_none());
        assert_eq!(read.side, Side::Left);
    }
}
