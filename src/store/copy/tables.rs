//! The tables to copy, and how their rows are read from the embedded store.
//!
//! Leases and holders stay: the embedded store frees its leases, with their marks, before it is
//! copied. An event's number there becomes its day and then the old number, wherever it is named.

use super::table::{Kind, Table, bytes, counted, flag, number, sql, text};

/// The first number of the day in which an event was signed, also of one before 1970.
macro_rules! first_of_day {
    ($sns_time:literal) => {
        concat!(
            "((",
            $sns_time,
            " - (",
            $sns_time,
            " % 86400000000000 + 86400000000000)
               % 86400000000000) / 86400000000000) * 10000000000"
        )
    };
}

/// The number of an event that is joined as `e`. One whose row is missing lies in the first day of
/// all, so that it is missing there as well and stops nothing.
macro_rules! joined {
    ($id:literal) => {
        concat!("coalesce(", first_of_day!("e.sns_time"), ", 0) + ", $id)
    };
}

/// The number of any event, or none.
macro_rules! event {
    ($id:literal) => {
        concat!(
            "coalesce((SELECT ",
            first_of_day!("x.sns_time"),
            " FROM event AS x WHERE x.id = ",
            $id,
            "), 0) + ",
            $id
        )
    };
}

/// The number in a lane's key: a lane of one event is named by that.
macro_rules! of_lane {
    () => {
        concat!(
            "CASE WHEN t.kind = 3 THEN ",
            event!("t.number"),
            " ELSE t.number END"
        )
    };
}

const BY_EVENT: &str = "LEFT JOIN event AS e ON e.id = t.event";

/// All of them.
pub(super) const TABLES: &[Table] = &[
    Table::new(
        "name",
        &[("id", Kind::Number)],
        &[number("id"), text("text")],
    ),
    Table::new(
        "certificate",
        &[("no", Kind::Number)],
        &[
            number("no"),
            bytes("sha256"),
            bytes("pem"),
            number("last_used_day"),
        ],
    ),
    Table::new(
        "certificate_at",
        &[("url", Kind::Text)],
        &[text("url"), bytes("pem"), number("fetched_at")],
    ),
    Table::new(
        "generation",
        &[("no", Kind::Number)],
        &[number("no"), bytes("hash"), text("text")],
    ),
    Table::new(
        "generation_use",
        &[
            ("no", Kind::Number),
            ("replica", Kind::Text),
            ("since", Kind::Number),
        ],
        &[number("no"), text("replica"), number("since")],
    ),
    Table::new(
        "event",
        &[("id", Kind::Number)],
        &[
            sql("id", concat!(first_of_day!("t.sns_time"), " + t.id")),
            number("topic"),
            number("sns_time"),
            bytes("message_id"),
            number("envelope"),
            number("received_at"),
            number("command_no"),
            bytes("instance"),
            bytes("status"),
            number("event_time"),
            bytes("subject"),
            bytes("body"),
            bytes("signature"),
            number("signature_version"),
            bytes("timestamp"),
            number("certificate"),
            number("generation"),
        ],
    ),
    Table::new(
        "command",
        &[("no", Kind::Number)],
        &[
            number("no"),
            bytes("trust"),
            bytes("account"),
            bytes("region"),
            bytes("id"),
            // Events are not in the order of their days. That of the first is known; a repeat of
            // something, signed before it and arrived behind it, is a day older at most.
            sql(
                "first_event",
                concat!(
                    "min(coalesce((SELECT ",
                    first_of_day!("x.sns_time"),
                    " - 10000000000 FROM event AS x WHERE x.id >= t.first_event
                       ORDER BY x.id LIMIT 1), 0),
                     coalesce((SELECT min(",
                    event!("s.event"),
                    ") FROM step AS s WHERE s.command_no = t.no), 9223372036854775807))"
                ),
            ),
            number("last_event_at"),
            number("requested_at"),
            number("expires_at"),
            number("ended_at"),
            sql("summary_event", event!("t.summary_event")),
            number("named"),
        ],
    ),
    Table::new(
        "step",
        &[
            ("command_no", Kind::Number),
            ("instance", Kind::Text),
            ("status", Kind::Text),
            ("event_time", Kind::Number),
        ],
        &[
            number("command_no"),
            bytes("instance"),
            bytes("status"),
            number("event_time"),
            sql("event", joined!("t.event")),
        ],
    )
    .beside(BY_EVENT),
    Table::new(
        "lane",
        &[("id", Kind::Number)],
        &[
            number("id"),
            number("kind"),
            sql("number", of_lane!()),
            bytes("instance"),
            number("route"),
            number("sink"),
            number("due_at"),
            number("not_before"),
            number("epoch"),
            bytes("high"),
            flag("early"),
            number("fed"),
        ],
    )
    .numbered(),
    Table::new(
        "waiting",
        &[("lane", Kind::Number), ("sort_key", Kind::Bytes)],
        &[
            number("lane"),
            bytes("sort_key"),
            sql("event", joined!("t.event")),
            sql("bytes", "coalesce(length(e.body), 0)"),
            number("fed"),
            number("release_at"),
            flag("alone"),
            flag("resent"),
            flag("possible_repeat"),
            bytes("high_then"),
            number("instead_of"),
            number("tries"),
            number("failing_since"),
            bytes("progress"),
        ],
    )
    .beside(BY_EVENT),
    Table::new(
        "outcome",
        &[
            ("event", Kind::Number),
            ("route", Kind::Number),
            ("sink", Kind::Number),
            ("n", Kind::Number),
        ],
        &[
            sql("event", joined!("t.event")),
            number("route"),
            number("sink"),
            // There it tells the tries of all deliveries of an event apart.
            counted("n"),
            number("at"),
            text("result"),
            number("marks"),
            number("late"),
            bytes("answer"),
            number("took"),
            number("arrived"),
            number("blame"),
            number("batch"),
            bytes("cause"),
            number("holder"),
        ],
    )
    .beside(BY_EVENT),
    Table::new(
        "dead",
        &[("id", Kind::Number)],
        &[
            number("id"),
            sql("event", joined!("t.event")),
            number("kind"),
            sql("number", of_lane!()),
            bytes("instance"),
            number("route"),
            number("sink"),
            bytes("sort_key"),
            number("died_at"),
            number("tries"),
            sql("bytes", "coalesce(length(e.body), 0)"),
            bytes("answer"),
        ],
    )
    .beside(BY_EVENT)
    .numbered(),
    Table::new(
        "thread",
        &[
            ("command_no", Kind::Number),
            ("sink", Kind::Number),
            ("route", Kind::Number),
        ],
        &[
            number("command_no"),
            number("sink"),
            number("route"),
            bytes("message"),
            number("told"),
        ],
    ),
    Table::new(
        "sink",
        &[("name", Kind::Number)],
        &[
            number("name"),
            number("backoff_until"),
            number("failing_since"),
        ],
    ),
    Table::new(
        "sink_part",
        &[("sink", Kind::Number), ("holder", Kind::Number)],
        &[number("sink"), number("holder"), bytes("state")],
    ),
    Table::new(
        "act",
        &[("id", Kind::Number)],
        &[number("id"), number("at"), bytes("who"), bytes("act")],
    )
    .numbered(),
    Table::new(
        "tally",
        &[("sink", Kind::Number), ("day", Kind::Number)],
        &[
            // Of a holder that is gone, on the deliver path.
            sql("holder", "0"),
            sql("path", "1"),
            number("sink"),
            number("day"),
            number("owed"),
            number("sent"),
            number("muted"),
            number("redundant"),
            number("dropped"),
            number("dead"),
        ],
    ),
    Table::new(
        "subscription",
        &[("id", Kind::Number)],
        &[
            number("id"),
            text("topic"),
            text("token"),
            number("asked_at"),
            number("confirmed_at"),
        ],
    )
    .numbered(),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rusqlite::Connection;

    use super::*;

    fn empty() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(include_str!("../sqlite/schema.sql"))
            .unwrap();
        connection
    }

    fn texts(connection: &Connection, sql: &str, column: &str) -> Vec<String> {
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(column)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn every_table_and_column_is_copied_but_what_the_database_has_no_use_for() {
        let connection = empty();
        let tables =
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'";
        let mut left = BTreeSet::new();
        for name in texts(&connection, tables, "name") {
            let Some(table) = TABLES.iter().find(|table| table.name == name) else {
                left.insert(name);
                continue;
            };
            for column in texts(&connection, &format!("PRAGMA table_info({name})"), "name") {
                if !table.names().contains(&&*column) {
                    left.insert(format!("{name}.{column}"));
                }
            }
        }
        let known = [
            "clock",
            "event.conflict",
            "event.repeat_of",
            "holder",
            "lane.leased",
            "lease",
        ];
        assert_eq!(left, known.map(ToOwned::to_owned).into());
    }

    #[test]
    fn every_step_begins_where_the_one_before_it_ended_and_sorts_nothing() {
        let connection = empty();
        for table in TABLES {
            let sql = format!("EXPLAIN QUERY PLAN {}", table.rows(true, 9));
            let sql = sql.replace('?', "0");
            let plan = texts(&connection, &sql, "detail");
            assert!(
                plan.iter().any(|it| it.starts_with("SEARCH t ")),
                "{}: {plan:?}",
                table.name
            );
            assert!(
                !plan.iter().any(|it| it.contains("TEMP B-TREE")),
                "{}: {plan:?}",
                table.name
            );
        }
    }
}
