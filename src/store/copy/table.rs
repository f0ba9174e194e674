//! One table to copy, and the statement that reads its rows from the embedded store.

/// What one column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Bytes,
    Text,
    Flag,
    /// The place of the row in its table, from one.
    Count,
}

/// A column of the database, and how it is read.
pub(super) struct From {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// None: the column of the same name.
    of: Option<&'static str>,
}

/// One table, and how its rows are read. The row itself is `t`.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Tables beside it.
    join: &'static str,
    /// The primary key, by which it is stepped through.
    pub(super) key: &'static [(&'static str, Kind)],
    pub(super) columns: &'static [From],
    /// The database gives its rows numbers, and has to go on from there.
    pub(super) is_numbered: bool,
}

impl Table {
    /// A table by its name, its primary key and its columns.
    pub(super) const fn new(
        name: &'static str,
        key: &'static [(&'static str, Kind)],
        columns: &'static [From],
    ) -> Self {
        Self {
            name,
            join: "",
            key,
            columns,
            is_numbered: false,
        }
    }

    /// Joins another table.
    pub(super) const fn beside(mut self, join: &'static str) -> Self {
        self.join = join;
        self
    }

    /// Its rows have numbers that the database gave.
    pub(super) const fn numbered(mut self) -> Self {
        self.is_numbered = true;
        self
    }

    /// The columns of the database.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.columns.iter().map(|it| it.name).collect()
    }

    /// The statement that reads up to `limit` rows in the order of their keys, with the columns and
    /// behind them the key; from the beginning, or behind the key that is bound to it.
    pub(super) fn rows(&self, goes_on: bool, limit: usize) -> String {
        let columns = self.columns.iter().map(|it| match it.of {
            Some(of) => of.to_owned(),
            None => format!("t.{}", it.name),
        });
        let key: Vec<_> = self
            .key
            .iter()
            .map(|(name, _)| format!("t.{name}"))
            .collect();
        let key = key.join(", ");
        let (columns, name, join) = (columns.collect::<Vec<_>>().join(", "), self.name, self.join);
        let places = vec!["?"; self.key.len()].join(", ");
        let behind = if goes_on {
            format!(" WHERE ({key}) > ({places})")
        } else {
            String::new()
        };
        format!(
            "SELECT {columns}, {key} FROM {name} AS t {join}{behind} ORDER BY {key} LIMIT {limit}"
        )
    }
}

/// A number of the same name.
pub(super) const fn number(name: &'static str) -> From {
    of(name, Kind::Number, None)
}

/// Bytes, or a text as it is, of the same name.
pub(super) const fn bytes(name: &'static str) -> From {
    of(name, Kind::Bytes, None)
}

/// A text of the same name, which holds no NUL.
pub(super) const fn text(name: &'static str) -> From {
    of(name, Kind::Text, None)
}

/// A flag of the same name.
pub(super) const fn flag(name: &'static str) -> From {
    of(name, Kind::Flag, None)
}

/// A number that is reckoned from the row.
pub(super) const fn sql(name: &'static str, of_row: &'static str) -> From {
    of(name, Kind::Number, Some(of_row))
}

/// The place of the row in its table.
pub(super) const fn counted(name: &'static str) -> From {
    of(name, Kind::Count, Some("NULL"))
}

const fn of(name: &'static str, kind: Kind, of: Option<&'static str>) -> From {
    From { name, kind, of }
}
