//! Finds the paths in a piece of Rust: enough of the language to tell code from comments and
//! literals, a group from its parts, and whose parent `super` is. No types, no macros expanded.
//!
//! The floors call it for every file. What it yields starts with `crate` where the source says
//! `crate`, `self` or `super`, and is as written otherwise.

/// A path as it stands in a file: its line, counted from one, and its segments.
pub type Found = (usize, Vec<String>);

struct Token<'a> {
    line: usize,
    text: &'a str,
}

/// Every path in `text`, which is the module at `home`, groups taken apart.
pub fn paths(text: &str, home: &[String]) -> Vec<Found> {
    let code = bare(text);
    let tokens = tokens(&code);
    let mut rest = tokens.as_slice();
    let mut paths = Vec::new();
    let mut here = home.to_vec();
    let mut depth = 0_usize;
    let mut opened = Vec::new();
    while let [first, tail @ ..] = rest {
        rest = match (first.text, tail) {
            ("mod", [name, Token { text: "{", .. }, tail @ ..]) => {
                here.push(name.text.to_owned());
                opened.push(depth);
                depth += 1;
                tail
            }
            ("{", _) => {
                depth += 1;
                tail
            }
            ("}", _) => {
                depth = depth.saturating_sub(1);
                if opened.pop_if(|outside| *outside == depth).is_some() {
                    here.pop();
                }
                tail
            }
            _ if is_word(first.text) => {
                let mut found = Vec::new();
                let tail = read(rest, &[], &mut found);
                paths.extend(
                    found
                        .iter()
                        .map(|(line, path)| (*line, resolve(path, &here))),
                );
                tail
            }
            _ => tail,
        };
    }
    paths
}

/// Reads one path, or the whole tree of a group, and returns what follows it.
fn read<'a>(
    mut rest: &'a [Token<'a>],
    prefix: &[&'a str],
    found: &mut Vec<(usize, Vec<&'a str>)>,
) -> &'a [Token<'a>] {
    let line = rest.first().map_or(0, |token| token.line);
    let mut path = prefix.to_vec();
    loop {
        match rest {
            [Token { text: "{", .. }, tail @ ..] => return read_group(tail, &path, found),
            [name, Token { text: "::", .. }, tail @ ..] if is_word(name.text) => {
                path.push(name.text);
                rest = tail;
            }
            [name, tail @ ..] if is_word(name.text) || name.text == "*" => {
                path.push(name.text);
                found.push((line, path));
                return tail;
            }
            _ => {
                found.push((line, path));
                return rest;
            }
        }
    }
}

fn read_group<'a>(
    mut rest: &'a [Token<'a>],
    prefix: &[&'a str],
    found: &mut Vec<(usize, Vec<&'a str>)>,
) -> &'a [Token<'a>] {
    loop {
        rest = match rest {
            [] => return rest,
            [Token { text: "}", .. }, tail @ ..] => return tail,
            [Token { text: "as", .. }, _, tail @ ..] => tail,
            [first, ..] if first.text == "*" || is_word(first.text) => read(rest, prefix, found),
            [_, tail @ ..] => tail,
        };
    }
}

/// The path from the root of the crate, for one that is written from `here`.
fn resolve(path: &[&str], here: &[String]) -> Vec<String> {
    let mut base = here;
    let mut rest = path;
    loop {
        rest = match rest {
            ["super", tail @ ..] => {
                base = base.split_last().map_or(base, |(_, parent)| parent);
                tail
            }
            ["self", tail @ ..] => tail,
            _ => break,
        }
    }
    let from_here = rest.len() < path.len();
    let root = from_here.then(|| ["crate"].into_iter().chain(base.iter().map(String::as_str)));
    root.into_iter()
        .flatten()
        .chain(rest.iter().copied())
        .map(str::to_owned)
        .collect()
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (line, mut rest) in (1..).zip(code.lines()) {
        while let Some(first) = rest.trim_start().chars().next() {
            rest = rest.trim_start();
            let word = rest.find(|letter| !is_letter(letter)).unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                _ => word,
            };
            let (text, tail) = rest.split_at(length);
            tokens.push(Token { line, text });
            rest = tail;
        }
    }
    tokens
}

fn is_letter(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| is_letter(first) && !first.is_ascii_digit())
}

/// `text` without comments and literals; the lines stay where they are.
fn bare(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest)
            .or_else(|| raw(rest))
            .or_else(|| quoted(rest))
            .or_else(|| character(rest));
        let (taken, tail) = rest.split_at(skipped.unwrap_or(first.len_utf8()));
        if skipped.is_some() {
            code.push(' ');
            code.extend(taken.matches('\n'));
        } else {
            code.push_str(taken);
        }
        rest = tail;
    }
    code
}

/// The length of the comment that `text` starts with; block comments nest.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    let mut depth = 0_usize;
    let mut length = 0;
    while let Some(rest) = text.get(length..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            length += 2;
        } else if depth == 0 {
            break;
        } else if rest.starts_with("*/") {
            depth -= 1;
            length += 2;
        } else {
            length += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    (length > 0).then_some(length)
}

/// The length of the raw text literal that `text` starts with.
fn raw(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let opened = after.trim_start_matches('#').strip_prefix('"')?;
    let hashes = after.len() - opened.len() - 1;
    let end = format!("\"{}", "#".repeat(hashes));
    let body = opened
        .find(&end)
        .unwrap_or(opened.len() - end.len().min(opened.len()));
    Some(1 + hashes + 1 + body + end.len())
}

/// The length of the text literal that `text` starts with.
fn quoted(text: &str) -> Option<usize> {
    let body = text.strip_prefix('"')?;
    let mut escaped = false;
    let end = body.find(|letter| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends
    });
    Some(end.map_or(text.len(), |end| end + 2))
}

/// The length of the character literal that `text` starts with; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let first = body.chars().next()?;
    let skip = if first == '\\' { 2 } else { first.len_utf8() };
    let end = body.get(skip..)?.find('\'')?;
    (first == '\\' || end == 0).then_some(skip + end + 2)
}
