//! What is copied: every table, and how its rows are read from the embedded store.

/// What one column holds.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Number,
    Bytes,
    Text,
    Flag,
}

use Type::{Bytes, Flag, Number, Text};

/// One table, and how its rows are read from the embedded store.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// What it is stepped through by.
    pub(super) key: &'static str,
    /// The rows with keys above `?1` up to `?2`.
    pub(super) rows: &'static str,
    pub(super) columns: &'static [(&'static str, Type)],
    /// What numbers its rows, if the database has to go on from there.
    pub(super) numbered: bool,
}

/// The number of an event as the database gives them: its day, and then the old number.
macro_rules! event {
    ($id:literal) => {
        concat!(
            "(SELECT e.sns_time / 86400000000000 * 10000000000 + e.id FROM event e WHERE e.id = ",
            $id,
            ")"
        )
    };
}

/// All of them, in an order in which each finds what it names.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "name",
        key: "id",
        rows: "SELECT id, text FROM name WHERE id > ?1 AND id <= ?2",
        columns: &[("id", Number), ("text", Text)],
        numbered: true,
    },
    Table {
        name: "event",
        key: "id",
        rows: "SELECT sns_time / 86400000000000 * 10000000000 + id, topic, sns_time,
               CAST(message_id AS BLOB), envelope, received_at, command_no, CAST(instance AS BLOB),
               CAST(status AS BLOB), event_time, CAST(subject AS BLOB), body
               FROM event WHERE id > ?1 AND id <= ?2",
        columns: &[
            ("id", Number),
            ("topic", Number),
            ("sns_time", Number),
            ("message_id", Bytes),
            ("envelope", Number),
            ("received_at", Number),
            ("command_no", Number),
            ("instance", Bytes),
            ("status", Bytes),
            ("event_time", Number),
            ("subject", Bytes),
            ("body", Bytes),
        ],
        numbered: false,
    },
    Table {
        name: "command",
        key: "no",
        rows: "SELECT no, CAST(id AS BLOB), ((SELECT e.sns_time FROM event e WHERE e.id >= first_event
                 ORDER BY e.id LIMIT 1) / 86400000000000 - 1) * 10000000000,
               (SELECT max(e.received_at) FROM event e)
               FROM command WHERE no > ?1 AND no <= ?2",
        columns: &[
            ("no", Number),
            ("id", Bytes),
            ("first_event", Number),
            ("seen_at", Number),
        ],
        numbered: true,
    },
    Table {
        name: "step",
        key: "command_no",
        rows: concat!(
            "SELECT command_no, CAST(instance AS BLOB), CAST(status AS BLOB), event_time, ",
            event!("step.event"),
            " FROM step WHERE command_no > ?1 AND command_no <= ?2"
        ),
        columns: &[
            ("command_no", Number),
            ("instance", Bytes),
            ("status", Bytes),
            ("event_time", Number),
            ("event", Number),
        ],
        numbered: false,
    },
    Table {
        name: "lane",
        key: "id",
        rows: concat!(
            "SELECT id, kind, CASE WHEN kind = 3 THEN ",
            event!("number"),
            " ELSE number END, CAST(instance AS BLOB), route, sink, due_at, not_before, batch_upto,
             epoch, high, early, 1 FROM lane WHERE id > ?1 AND id <= ?2"
        ),
        columns: &[
            ("id", Number),
            ("kind", Number),
            ("number", Number),
            ("instance", Bytes),
            ("route", Number),
            ("sink", Number),
            ("due_at", Number),
            ("not_before", Number),
            ("batch_upto", Bytes),
            ("epoch", Number),
            ("high", Bytes),
            ("early", Flag),
            ("fed", Number),
        ],
        numbered: true,
    },
    Table {
        name: "waiting",
        key: "lane",
        rows: concat!(
            "SELECT lane, sort_key, ",
            event!("waiting.event"),
            ", (SELECT length(e.body) FROM event e WHERE e.id = waiting.event), 1, release_at, alone,
             resent, possible_repeat, high_then, instead_of, tries, failing_since,
             CAST(progress AS BLOB) FROM waiting WHERE lane > ?1 AND lane <= ?2"
        ),
        columns: &[
            ("lane", Number),
            ("sort_key", Bytes),
            ("event", Number),
            ("bytes", Number),
            ("fed", Number),
            ("release_at", Number),
            ("alone", Flag),
            ("resent", Flag),
            ("possible_repeat", Flag),
            ("high_then", Bytes),
            ("instead_of", Number),
            ("tries", Number),
            ("failing_since", Number),
            ("progress", Bytes),
        ],
        numbered: false,
    },
    Table {
        name: "outcome",
        key: "event",
        rows: concat!(
            "SELECT ",
            event!("outcome.event"),
            ", n, route, sink, at, result, marks, late, CAST(answer AS BLOB), took FROM (
               SELECT event, row_number() OVER (PARTITION BY event ORDER BY at, route, sink, n) AS n,
                 route, sink, at, result, marks, late, answer, took
               FROM outcome WHERE event > ?1 AND event <= ?2) AS outcome"
        ),
        columns: &[
            ("event", Number),
            ("n", Number),
            ("route", Number),
            ("sink", Number),
            ("at", Number),
            ("result", Text),
            ("marks", Number),
            ("late", Number),
            ("answer", Bytes),
            ("took", Number),
        ],
        numbered: false,
    },
    Table {
        name: "dead",
        key: "id",
        rows: concat!(
            "SELECT id, ",
            event!("dead.event"),
            ", (SELECT length(e.body) FROM event e WHERE e.id = dead.event), kind,
             CASE WHEN kind = 3 THEN ",
            event!("dead.number"),
            " ELSE number END, CAST(instance AS BLOB), route, sink, sort_key, died_at, tries,
             CAST(answer AS BLOB) FROM dead WHERE id > ?1 AND id <= ?2"
        ),
        columns: &[
            ("id", Number),
            ("event", Number),
            ("bytes", Number),
            ("kind", Number),
            ("number", Number),
            ("instance", Bytes),
            ("route", Number),
            ("sink", Number),
            ("sort_key", Bytes),
            ("died_at", Number),
            ("tries", Number),
            ("answer", Bytes),
        ],
        numbered: true,
    },
    Table {
        name: "thread",
        key: "command_no",
        rows: "SELECT command_no, sink, route, CAST(message AS BLOB), (
                 SELECT count(*) FROM step WHERE step.command_no = thread.command_no
                 AND instance <> '' AND status IN ('Failed', 'TimedOut', 'Cancelled')
                 AND event <= told_upto)
               FROM thread WHERE command_no > ?1 AND command_no <= ?2",
        columns: &[
            ("command_no", Number),
            ("sink", Number),
            ("route", Number),
            ("message", Bytes),
            ("told", Number),
        ],
        numbered: false,
    },
    Table {
        name: "sink",
        key: "name",
        rows: "SELECT name, paused_until, trouble_since FROM sink WHERE name > ?1 AND name <= ?2",
        columns: &[
            ("name", Number),
            ("paused_until", Number),
            ("trouble_since", Number),
        ],
        numbered: false,
    },
    Table {
        name: "tally",
        key: "day",
        rows: "SELECT 0, 1, sink, day, owed, sent, muted, redundant, dropped, dead
               FROM tally WHERE day > ?1 AND day <= ?2",
        columns: &[
            ("replica", Number),
            ("street", Number),
            ("sink", Number),
            ("day", Number),
            ("owed", Number),
            ("sent", Number),
            ("muted", Number),
            ("redundant", Number),
            ("dropped", Number),
            ("dead", Number),
        ],
        numbered: false,
    },
    Table {
        name: "subscription",
        key: "id",
        rows: "SELECT id, topic, token, asked_at, confirmed_at
               FROM subscription WHERE id > ?1 AND id <= ?2",
        columns: &[
            ("id", Number),
            ("topic", Text),
            ("token", Text),
            ("asked_at", Number),
            ("confirmed_at", Number),
        ],
        numbered: true,
    },
    Table {
        name: "certificate",
        key: "fetched_at",
        rows: "SELECT url, pem, fetched_at FROM certificate WHERE fetched_at > ?1 AND fetched_at <= ?2",
        columns: &[("url", Text), ("pem", Bytes), ("fetched_at", Number)],
        numbered: false,
    },
];
