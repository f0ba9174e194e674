//! A settings file as text with places: sections are read out of it, and what is wrong with them is
//! found again in it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Value;
use toml_edit::Item;

use super::read::{Wrong, read};
use super::{Config, Diagnostic, Faults, generation};
use crate::fault::{Fault, meant};
use crate::store::Generation;

/// A file, what was taken out of it, and what was found wrong.
pub(super) struct Document {
    text: String,
    path: PathBuf,
    places: toml_edit::Document<String>,
    values: toml::Table,
    faults: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Document {
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, Faults> {
        let wrong = |span: Option<Range<usize>>, message: &str| {
            let message = message.trim_end().replace('\n', "; ");
            let span = span.unwrap_or(0..0);
            Faults::new(vec![Diagnostic::at(path, text, span, message)])
        };
        let places = toml_edit::Document::parse(text.to_owned())
            .map_err(|error| wrong(error.span(), error.message()))?;
        let values = toml::from_str(text).map_err(|error| wrong(error.span(), error.message()))?;
        Ok(Self {
            text: text.to_owned(),
            path: path.to_owned(),
            places,
            values,
            faults: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// The settings, if nothing was wrong.
    pub(super) fn finish(
        self,
        config: Option<Config>,
    ) -> Result<(Config, Vec<Diagnostic>), Faults> {
        match config {
            Some(config) if self.faults.is_empty() => Ok((config, self.warnings)),
            _ => Err(Faults::new(self.faults)),
        }
    }

    /// All that is written, canonical and without secrets.
    pub(super) fn generation(&self) -> Generation {
        generation::of(&self.values)
    }

    /// The keys at the top, which must be among `known`.
    pub(super) fn keys_are_among(&mut self, known: &[&str]) {
        let keys: Vec<String> = self.values.keys().cloned().collect();
        for key in keys {
            if !known.contains(&key.as_str()) {
                let suggestion = meant(&key, known.iter().copied());
                self.fault(&[&key], format!("there is no section `{key}`{suggestion}"));
            }
        }
    }

    /// The names in a table, whatever they stand for.
    pub(super) fn names(&self, name: &str) -> Vec<String> {
        let table = self.values.get(name).and_then(Value::as_table);
        table
            .into_iter()
            .flat_map(toml::Table::keys)
            .cloned()
            .collect()
    }

    /// One section; its defaults when it is left out.
    pub(super) fn section<T: DeserializeOwned + Default>(&mut self, name: &str) -> Option<T> {
        match self.values.get(name).cloned() {
            None => Some(T::default()),
            Some(value) => self.read(&[name], &value),
        }
    }

    /// The tables of an array, `[[name]]`, at least one; each with the number that leads to it.
    pub(super) fn array<T: DeserializeOwned>(
        &mut self,
        name: &str,
        none: &str,
    ) -> Vec<(String, Option<T>)> {
        let tables = match self.values.get(name).cloned() {
            None => Vec::new(),
            Some(Value::Array(tables)) => tables,
            Some(_) => {
                self.fault(&[name], format!("write each of them as `[[{name}]]`"));
                return Vec::new();
            }
        };
        if tables.is_empty() {
            self.fault(&[], none);
        }
        let numbered = tables.into_iter().enumerate();
        numbered
            .map(|(number, table)| {
                let number = number.to_string();
                let read = self.read(&[name, &number], &table);
                (number, read)
            })
            .collect()
    }

    /// The tables within a table, `[name.…]`, by name.
    pub(super) fn tables(&mut self, name: &str) -> Vec<(String, toml::Table)> {
        let tables = match self.values.get(name).cloned() {
            None => return Vec::new(),
            Some(Value::Table(tables)) => tables,
            Some(_) => {
                self.fault(&[name], format!("write each of them as `[{name}.NAME]`"));
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for (key, value) in tables {
            match value {
                Value::Table(table) => found.push((key, table)),
                _ => self.fault(&[name, &key], format!("write it as `[{name}.{key}]`")),
            }
        }
        found
    }

    /// Reads a value that stands at `path`; `None` when too much of it is wrong to check the rest.
    pub(super) fn read<T: DeserializeOwned>(&mut self, path: &[&str], value: &Value) -> Option<T> {
        let (read, wrong) = read(value);
        for Wrong {
            path: inner,
            message,
            is_key,
        } in wrong
        {
            let inner = inner.iter().map(String::as_str);
            let whole: Vec<&str> = path.iter().copied().chain(inner).collect();
            let diagnostic = self.diagnostic(&whole, message, is_key);
            self.faults.push(diagnostic);
        }
        read
    }

    /// Whether something is written at `path`, right or wrong.
    pub(super) fn has(&self, path: &[&str]) -> bool {
        path.iter()
            .try_fold(self.places.as_item(), |item, key| item_of(item, key))
            .is_some()
    }

    /// Something is wrong at `path`.
    pub(super) fn fault(&mut self, path: &[&str], message: impl Into<String>) {
        let diagnostic = self.diagnostic(path, message.into(), false);
        self.faults.push(diagnostic);
    }

    /// What a part found wrong with its settings at `path`.
    pub(super) fn faults(&mut self, path: &[&str], faults: Vec<Fault>) {
        for fault in faults {
            let inner = fault.path.iter().map(String::as_str);
            let whole: Vec<&str> = path.iter().copied().chain(inner).collect();
            self.fault(&whole, fault.message);
        }
    }

    /// Something at `path` is probably not meant.
    pub(super) fn warn(&mut self, path: &[&str], message: impl Into<String>) {
        let diagnostic = self.diagnostic(path, message.into(), false).warning();
        self.warnings.push(diagnostic);
    }

    fn diagnostic(&self, path: &[&str], message: String, is_key: bool) -> Diagnostic {
        if path.is_empty() {
            return Diagnostic::of_file(&self.path, message);
        }
        Diagnostic::at(&self.path, &self.text, self.place(path, is_key), message)
    }

    /// Where `path` leads, or as far as it does: to the value, or to the key when that is what is
    /// wrong.
    fn place(&self, path: &[&str], is_key: bool) -> Range<usize> {
        let mut span = 0..0;
        let mut item = self.places.as_item();
        for (at, key) in path.iter().enumerate() {
            let Some(next) = item_of(item, key) else {
                break;
            };
            let entry = item.as_table_like().and_then(|it| it.get_key_value(key));
            let name = entry.and_then(|(name, _)| name.span());
            // A table is where its name stands, not all of it; a member of a list has no name.
            let is_wide = next.is_table() || next.is_array_of_tables();
            let by_name = name.is_some() && (is_wide || (is_key && at + 1 == path.len()));
            let value = next.span().filter(|_| !by_name);
            span = value.or(name).unwrap_or(span);
            item = next;
        }
        span
    }
}

fn item_of<'i>(item: &'i Item, key: &str) -> Option<&'i Item> {
    match item {
        Item::ArrayOfTables(_) | Item::Value(toml_edit::Value::Array(_)) => {
            item.get(key.parse::<usize>().ok()?)
        }
        _ => item.get(key),
    }
}
