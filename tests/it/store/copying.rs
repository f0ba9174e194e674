//! The steps of a copy into a database: bounded in rows and bytes, and broken off anywhere.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::{Duration, Instant};

use runbell::clock::Clock;
use runbell::store::postgres::Settings;
use runbell::store::sqlite::Sqlite;
use runbell::store::{StoreError, Terms, copy};
use rusqlite::Connection;

use crate::harness::postgres::server;
use crate::harness::store::folder;

/// Something of everything, in tables alone: events of three days that do not come in their order,
/// one before 1970, one whose row is missing, and a lane that is leased.
const EVERYTHING: &str = "
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
INSERT INTO event (id, topic, sns_time, message_id, envelope, received_at, command_no, instance,
  status, event_time, repeat_of, conflict, subject, body, signature, signature_version, timestamp,
  certificate, generation)
SELECT i, 7, (19000 + i * 2 % 3) * 86400000000000 + i, 'm-' || i, i % 3, i,
  CASE WHEN i % 5 THEN i % 4 END, CASE WHEN i % 5 THEN 'i-' || char(0) || i END,
  CASE WHEN i % 5 THEN 'Failed' END, CASE WHEN i % 5 THEN i END, nullif(1, i), i % 2,
  'about' || char(0), CAST('body ' || char(0) || i AS BLOB), randomblob(256), 1 + i % 2,
  '2024', i % 3, i % 2 FROM n;
UPDATE event SET sns_time = -1 WHERE id = 8;
INSERT INTO step SELECT command_no, instance, status, event_time, id FROM event WHERE id % 5;
INSERT INTO command SELECT DISTINCT command_no, 'aws', '1', 'r', 'c' || command_no, command_no, 9, 8,
  NULL, 6, 299, 4 FROM event WHERE command_no IS NOT NULL;
INSERT INTO lane VALUES (1, 2, 7, '', 1, 2, 50, 3, 1, 4, x'000000ff', 0, 12000),
  (2, 3, 8, '', 1, 2, 51, 0, 0, 0, NULL, 1, 1), (3, 3, 999, '', 1, 2, 52, 0, 0, 7, x'ff', 1, 2),
  (4, 0, 3, '', 1, 2, NULL, 0, 0, 0, NULL, 1, 0), (9, 1, 3, 'i' || char(0), 1, 2, 52, 0, 0, 1, NULL, 1, 1);
INSERT INTO lease VALUES (1, 4, 77, 1, x'00000040', 100, NULL, NULL);
INSERT INTO holder VALUES (77, 'h', 5);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000)
INSERT INTO waiting (lane, sort_key, event, fed, release_at, tries, failing_since, progress, instead_of)
  SELECT 1, unhex(printf('%08x', i)), 1 + i % 300, i, i, i % 3, nullif(i % 3, 0), 'p' || i, 5 FROM n;
INSERT INTO waiting (lane, sort_key, event, fed, release_at, alone, resent, possible_repeat, high_then)
  VALUES (2, x'01', 8, 1, 51, 1, 1, 1, x'02'), (3, x'00', 999, 2, 52, 0, 0, 0, NULL),
  (9, x'ff', 2, 1, 52, 0, 0, 0, NULL);
INSERT INTO outcome SELECT id, 1, sink.n, try.n, id + try.n, 'sent', 3, 4, 'ok' || char(0), 5, 2, 1,
  6, 'cause', 77 FROM event, (SELECT 2 AS n UNION SELECT 3) AS sink, (SELECT 1 AS n UNION SELECT 2) AS try;
INSERT INTO dead VALUES (5, 8, 3, 8, '', 1, 2, x'05', 9, 3, 'no'), (6, 1, 2, 7, '', 1, 2, x'06', 9, 3, NULL);
DELETE FROM dead WHERE id = 6;
INSERT INTO thread VALUES (1, 2, 1, 'C1:17', 4), (1, 3, 1, 'C1:18', 4);
INSERT INTO sink VALUES (2, 900, 800), (3, NULL, NULL);
INSERT INTO sink_part VALUES (2, 77, x'0001');
INSERT INTO act VALUES (3, 5, 'somebody', 'divert');
INSERT INTO tally VALUES (2, 19000, 1, 2, 3, 4, 5, 6), (3, 19000, 1, 2, 3, 4, 5, 6), (2, 19001, 1, 2, 3, 4, 5, 6);
INSERT INTO subscription VALUES (4, 'topic', 'token', 1, NULL);
INSERT INTO name VALUES (1, 'route'), (2, 's'), (3, 'other'), (7, 'topic');
INSERT INTO certificate VALUES (1, randomblob(32), x'01', 19000);
INSERT INTO certificate_at VALUES ('https://a', x'01', 1), ('https://b', x'02', 1);
INSERT INTO generation VALUES (1, randomblob(32), 'text');
INSERT INTO generation_use VALUES (1, 'a', 1), (1, 'a', 2), (1, 'b', 1);
UPDATE clock SET latest = latest + 1000, ahead = 17, step = 3;
";

/// Tables, and columns to compare: numbers, `'` texts, `*` bytes, `?` flags, `@` events by their
/// messages, `#` the number in a lane's key.
const COMPARED: &[(&str, &str)] = &[
    ("name", "id 'text"),
    ("certificate", "no *sha256 *pem last_used_day"),
    ("certificate_at", "'url *pem fetched_at"),
    ("generation", "no *hash 'text"),
    ("generation_use", "no 'replica since"),
    (
        "event",
        "@id topic sns_time *message_id envelope received_at command_no *instance *status event_time \
         *subject *body *signature signature_version *timestamp certificate generation",
    ),
    (
        "command",
        "no *trust *account *region *id last_event_at requested_at expires_at ended_at @summary_event named",
    ),
    ("step", "command_no *instance *status event_time @event"),
    (
        "lane",
        "id kind #number *instance route sink due_at not_before ?leased epoch *high ?early fed",
    ),
    (
        "waiting",
        "lane *sort_key @event fed release_at ?alone ?resent ?possible_repeat *high_then instead_of tries \
         failing_since *progress",
    ),
    (
        "outcome",
        "@event route sink at 'result marks late *answer took arrived blame batch *cause holder",
    ),
    (
        "dead",
        "id @event kind #number *instance route sink *sort_key died_at tries *answer",
    ),
    ("thread", "command_no sink route *message told"),
    ("sink", "name backoff_until failing_since"),
    ("sink_part", "sink holder *state"),
    ("act", "id at *who *act"),
    ("tally", "sink day owed sent muted redundant dropped dead"),
    ("subscription", "id 'topic 'token asked_at confirmed_at"),
    ("clock", "latest ahead step"),
    ("lease", "lane"),
];

/// A store of which these statements make the rows.
fn filled(sql: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join("runbell.db");
    Sqlite::open(&path, Terms::default(), &Clock::system()).unwrap();
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    (folder, path)
}

/// A schema that nobody has used.
async fn target() -> (String, Settings) {
    let schema = server().new_schema().await;
    let to = server().settings(&schema, "copy");
    (schema, to)
}

/// Rows of the embedded store and of the database, in one form.
async fn both_sides(
    path: &Path,
    schema: &str,
) -> (BTreeMap<String, Vec<String>>, BTreeMap<String, Vec<String>>) {
    let (mut here, mut there) = (BTreeMap::new(), BTreeMap::new());
    let source = Connection::open(path).unwrap();
    for (table, columns) in COMPARED {
        let message = |id: &str| format!("(SELECT message_id FROM event AS x WHERE x.id = {id})");
        let of = |column: &str, is_here: bool| {
            let hex = |bytes: &str| {
                if is_here {
                    format!("lower(hex(CAST({bytes} AS BLOB)))")
                } else {
                    format!("encode({bytes}, 'hex')")
                }
            };
            let (kind, name) = column.split_at(1);
            let name = format!("t.{name}");
            let of_event = hex(&message(&name));
            let value = match kind {
                "'" => name,
                "*" => format!("CASE WHEN {name} IS NOT NULL THEN {} END", hex(&name)),
                "?" => format!("CAST({name} AS INTEGER)"),
                "@" => of_event,
                "#" => format!("CASE WHEN kind = 3 THEN {of_event} ELSE CAST({name} AS TEXT) END"),
                _ => format!("t.{column}"),
            };
            format!("coalesce(nullif(CAST({value} AS TEXT), ''), '-')")
        };
        let sql = |is_here| {
            let columns: Vec<_> = columns
                .split(' ')
                .map(|column| of(column, is_here))
                .collect();
            format!("SELECT {} FROM {table} AS t", columns.join(" || '|' || "))
        };
        let mut statement = source.prepare(&sql(true)).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        let mut rows: Vec<String> = rows.map(Result::unwrap).collect();
        rows.sort_unstable();
        here.insert((*table).to_owned(), rows);
        let mut rows = server().query(schema, &sql(false)).await;
        rows.sort_unstable();
        there.insert((*table).to_owned(), rows);
    }
    (here, there)
}

async fn assert_copied(path: &Path, schema: &str) {
    let (here, there) = both_sides(path, schema).await;
    for ((table, rows), others) in here.iter().zip(there.values()) {
        let differs = rows.iter().zip(others).find(|(one, other)| one != other);
        assert_eq!((rows.len(), differs), (others.len(), None), "{table}");
    }
}

/// How a copy goes.
#[derive(Default)]
struct Seen {
    polls: usize,
    /// Rows that are copied.
    rows: u64,
}

/// Copies until that is enough, and gives the copy up in the middle of whatever comes then; its end,
/// if it came to one before.
async fn copy_until(
    path: &Path,
    to: &Settings,
    is_enough: impl Fn(&Seen) -> bool,
) -> Option<Result<Vec<(&'static str, u64)>, StoreError>> {
    let seen = RefCell::new(Seen::default());
    let mut copying = Box::pin(copy(path, to, |it| {
        seen.borrow_mut().rows = it.rows;
    }));
    poll_fn(|context| {
        let polled = copying.as_mut().poll(context);
        seen.borrow_mut().polls += 1;
        match polled {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if is_enough(&seen.borrow()) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The rows that each step of a copy brought.
async fn steps(path: &Path, to: &Settings) -> Vec<u64> {
    let mut rows = Vec::new();
    copy(path, to, |it| rows.push(it.rows)).await.unwrap();
    let steps = rows.array_windows().map(|[one, next]| next - one);
    steps.filter(|rows| *rows > 0).collect()
}

#[tokio::test]
async fn copy_broken_off_behind_every_step_is_the_same_store() {
    let (_folder, path) = filled(EVERYTHING);
    let (schema, to) = target().await;
    let mut breaks = 0;
    let reached = Cell::new(0);
    let is_further = |it: &Seen| it.rows > reached.replace(reached.get().max(it.rows));
    loop {
        match copy_until(&path, &to, is_further).await {
            Some(ended) => break drop(ended.unwrap()),
            None => breaks += 1,
        }
    }
    // The lane of 12,000 alone takes three.
    assert!((COMPARED.len()..60).contains(&breaks), "{breaks} breaks");
    assert_copied(&path, &schema).await;
}

#[tokio::test]
async fn copy_broken_off_at_every_pause_is_the_same_store() {
    let (_folder, path) = filled(EVERYTHING);
    let (schema, to) = target().await;
    let is_finished = async || {
        let sql = "SELECT (version > 0)::text FROM runbell WHERE to_regclass('copied') IS NULL
           AND EXISTS (SELECT 1 FROM event)";
        server().query(&schema, sql).await == ["true"]
    };
    for polls in 1.. {
        match copy_until(&path, &to, |it| it.polls >= polls).await {
            // It may have been broken off while its last answer was on the way.
            Some(ended) => {
                assert!(
                    ended.is_ok() || is_finished().await,
                    "after {polls}: {ended:?}"
                );
                break;
            }
            None => assert!(polls < 2000, "it does not come to its end"),
        }
    }
    assert_copied(&path, &schema).await;
}

#[tokio::test]
async fn copy_goes_on_with_the_numbers_that_follow() {
    let (_folder, path) = filled(EVERYTHING);
    let (schema, to) = target().await;
    let counted = copy(&path, &to, |_| ()).await.unwrap();
    assert!(counted.contains(&("waiting", 12_003)) && counted.contains(&("outcome", 1200)));
    assert_copied(&path, &schema).await;
    for (sql, expected) in [
        ("SELECT nextval('event_no') > 300", "t"),
        ("SELECT nextval('outcome_no') > max(n) FROM outcome", "t"),
        // Dead letter 6 is gone, and its number with it.
        ("INSERT INTO dead (event, kind, number, instance, route, sink, sort_key, died_at, tries, bytes)
          VALUES (1, 2, 3, '', 4, 5, '', 6, 7, 8) RETURNING id > 6", "t"),
        ("INSERT INTO lane (kind, number, instance, route, sink) VALUES (0, 1, '', 1, 1) RETURNING id > 9", "t"),
        ("INSERT INTO act (at, who, act) VALUES (1, '', '') RETURNING id > 3", "t"),
        ("INSERT INTO subscription (topic, token, asked_at) VALUES ('a', 'b', 1) RETURNING id > 4", "t"),
        // A lease of the process before it was freed, with its marks.
        ("SELECT count(*) FROM waiting WHERE possible_repeat AND lane = 1", "64"),
        ("SELECT encode(high, 'hex') FROM lane WHERE id = 1", "000000ff"),
        ("SELECT count(*) FROM waiting JOIN event ON event.id = event WHERE bytes <> length(body)", "0"),
        ("SELECT count(*) FROM event JOIN command ON no = command_no WHERE event.id < first_event", "0"),
        ("SELECT count(*) FROM outcome AS one JOIN outcome AS next ON one.event = next.event
          AND one.route = next.route AND one.sink = next.sink AND one.at < next.at AND one.n > next.n", "0"),
        ("SELECT count(*) FROM tally WHERE holder = 0 AND path = 1", "3"),
        ("SELECT count(*) FROM holder", "0"),
    ] {
        assert_eq!(server().query(&schema, sql).await, [expected], "{sql}");
    }
    let again = copy(&path, &to, |_| ()).await.unwrap_err();
    assert!(matches!(again, StoreError::Unusable(_)), "{again:?}");
}

#[tokio::test]
async fn copy_of_a_store_that_was_used_meanwhile_does_not_go_on() {
    let (_folder, path) = filled(EVERYTHING);
    let (_, to) = target().await;
    let begun = copy_until(&path, &to, |it| it.rows > 0).await;
    assert!(begun.is_none());
    // As a process does that opens the store.
    Sqlite::open(&path, Terms::default(), &Clock::system()).unwrap();
    let refused = copy(&path, &to, |_| ()).await.unwrap_err();
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("was used since the copy began"), "{why}");
}

#[tokio::test]
async fn lane_in_which_much_waits_is_copied_in_many_steps() {
    let (_folder, path) = filled(&one_lane(20_000, 8));
    let (schema, to) = target().await;
    let steps = steps(&path, &to).await;
    assert!(
        steps.len() >= 9 && steps.iter().all(|rows| *rows <= 5000),
        "{steps:?}"
    );
    assert_copied(&path, &schema).await;
}

#[tokio::test]
async fn messages_that_are_large_are_copied_in_many_steps() {
    let (_folder, path) = filled(&one_lane(100, 256 << 10));
    let (schema, to) = target().await;
    let steps = steps(&path, &to).await;
    // Of the 25 MiB eight go at a time.
    assert_eq!(
        steps.iter().filter(|rows| **rows == 32).count(),
        3,
        "{steps:?}"
    );
    assert_copied(&path, &schema).await;
}

/// So many deliveries, of messages of that length, that wait in one lane.
fn one_lane(many: u32, length: u32) -> String {
    format!(
        "INSERT INTO name VALUES (1, 'route'), (2, 's'), (7, 'topic');
         INSERT INTO lane (id, kind, number, instance, route, sink, due_at, fed)
           VALUES (1, 2, 7, '', 1, 2, 1, {many});
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {many})
           INSERT INTO event (id, topic, sns_time, message_id, envelope, received_at, body)
           SELECT i, 7, 1700000000000000000 + i, 'm-' || i, 0, i, zeroblob({length}) FROM n;
         INSERT INTO waiting (lane, sort_key, event, fed, release_at)
           SELECT 1, unhex(printf('%08x', id)), id, id, id FROM event;"
    )
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "the figures are worth reading")]
#[expect(clippy::disallowed_methods, reason = "real time is measured")]
#[ignore = "takes minutes: what a copy of 1,600,000 deliveries in one lane costs"]
async fn lane_of_more_than_a_million_is_copied_to_its_end() {
    let (_folder, path) = filled(&one_lane(1_600_000, 700));
    let (schema, to) = target().await;
    let (began, mut slowest) = (Instant::now(), Duration::ZERO);
    let mut last = began;
    let counted = copy(&path, &to, |_| {
        slowest = slowest.max(last.elapsed());
        last = Instant::now();
    });
    let counted = counted.await.unwrap();
    let took = began.elapsed();
    println!(
        "1,600,000 deliveries of 700 bytes in one lane: {took:?}, the slowest step {slowest:?}"
    );
    assert!(counted.contains(&("waiting", 1_600_000)));
    let waiting = server()
        .query(&schema, "SELECT count(*) FROM waiting")
        .await;
    assert_eq!(waiting, ["1600000"]);
}
