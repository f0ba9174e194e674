//! The price of large work on PostgreSQL: in round trips, and in index entries that are walked over.

use runbell::store::postgres::Settings;

use super::*;
use crate::harness::postgres::Server;

/// Fewer than one step of long work has.
const FEW: i64 = 20;
const MANY: i64 = 400;

/// A server that logs every statement, and a store on it.
struct Counted {
    server: Server,
    store: TestStore,
}

impl Counted {
    async fn open() -> Self {
        let server = Server::start(None, false);
        let schema = server.new_schema().await;
        let url = format!("{}%20-clog_statement%3Dall", server.url(&schema));
        let settings = Settings::parse(&url, None, 8, "test".to_owned()).unwrap();
        let clock = Clock::by_hand(at(0));
        let store = TestStore::open_with(&settings, schema, clock).await;
        Self { server, store }
    }

    /// How many statements there were so far.
    fn statements(&self) -> usize {
        let log = std::fs::read_to_string(self.server.folder.join("log")).unwrap();
        let is_one =
            |line: &&str| line.contains("LOG:  execute ") || line.contains("LOG:  statement: ");
        log.lines().filter(is_one).count()
    }

    /// How many statements an act takes.
    async fn price(&self, act: impl Future<Output = ()>) -> usize {
        let before = self.statements();
        act.await;
        self.statements() - before
    }
}

/// So many failures of one command at `second`, for the sink `s`.
async fn fill(store: &dyn Store, name: &str, count: i64, lane: LaneKey, second: i64) {
    let appends = (0..count).map(|number| {
        let body = serde_json::json!({
            "commandId": name, "documentName": "AWS-RunShellScript",
            "instanceId": format!("i-{number}"), "status": "Failed",
            "eventTime": at(second).to_string(),
        });
        let event = read(&format!("{name}-{number}"), &body.to_string(), second);
        let owed = vec![owed(&event, "s", lane, 0)];
        store.append(Append::new(event, owed, at(second)))
    });
    for appended in futures_util::future::join_all(appends).await {
        appended.unwrap();
    }
}

/// All of one lane ends so.
async fn ends(store: &dyn Store, sink: &str, ending: Ending) {
    let lane = one(store.lease(sink, at(1000), 1000).await.unwrap().lanes);
    let mut results = results(&lane, &Outcome::Sent, 1000);
    for one in &mut results {
        one.ending = ending.clone();
    }
    let settlement = lane.lease.settle(results, at(1000), None);
    store.settle(vec![settlement]).await.unwrap();
}

/// What each kind of large work costs with so many rows.
async fn prices(place: &Counted, count: i64) -> Vec<(&'static str, usize)> {
    let store = place.store.handle();
    let store = &*store;
    let over = || Ending::Diverted { to: "t".to_owned() };
    let mut prices = Vec::new();
    for (what, lane, ending) in [
        ("a lane that is given up", LaneKey::Command, Ending::Dead),
        ("a lane that others are to bring", LaneKey::Command, over()),
        ("a lane that is sent", LaneKey::Command, Ending::SENT),
        ("a digest that is given up", LaneKey::Digest, Ending::Dead),
        ("a digest that others are to bring", LaneKey::Digest, over()),
        ("a digest that is sent", LaneKey::Digest, Ending::SENT),
    ] {
        fill(store, &format!("{what} {count}"), count, lane, 0).await;
        prices.push((what, place.price(ends(store, "s", ending)).await));
    }
    let all = || DeadSelection::All;
    let price = place.price(async {
        let done = store.retry_dead(all(), None, at(1001)).await.unwrap();
        assert_eq!(done, 2 * count.unsigned_abs());
    });
    prices.push(("dead letters that are sent again", price.await));
    let price = place.price(async {
        let done = store.divert("s", "t", at(1002)).await.unwrap();
        assert_eq!(done, 2 * count.unsigned_abs());
    });
    prices.push(("what a fallback takes over", price.await));
    let price = place.price(async {
        let done = store.bury("t", at(1003)).await.unwrap();
        assert_eq!(done, 4 * count.unsigned_abs());
    });
    prices.push(("what is buried by hand", price.await));
    let price = place.price(async {
        let done = store.drop_dead(all(), at(1004)).await.unwrap();
        assert_eq!(done, 4 * count.unsigned_abs());
    });
    prices.push(("dead letters that are dropped", price.await));
    prices
}

#[tokio::test]
async fn round_trips_of_large_work_do_not_grow_with_its_rows() {
    let place = Counted::open().await;
    let few = prices(&place, FEW).await;
    let many = prices(&place, MANY).await;
    for ((what, few), (_, many)) in few.iter().zip(&many) {
        // Long work is done in steps of some hundred rows, each of its own transaction.
        assert!(*many <= few * 5, "{what}: {few} statements, then {many}");
    }
    let counts = |prices: &[(&str, usize)]| prices[..6].iter().map(|it| it.1).collect::<Vec<_>>();
    assert_eq!(counts(&few), counts(&many), "{few:?}");
}

/// How many index entries of a table the store walked over so far. Sessions tell that when they end.
async fn walked(place: &Counted, table: &str) -> u64 {
    let (server, schema) = (&place.server, place.store.schema());
    let ours = "FROM pg_stat_activity WHERE application_name = 'runbell test'";
    let end = format!("SELECT pg_terminate_backend(pid) {ours}");
    let left = format!("SELECT count(*) {ours}");
    server.run(schema, &end).await;
    while server.query(schema, &left).await != ["0"] {
        tokio::task::yield_now().await;
    }
    // The store has to notice, too.
    while place
        .store
        .handle()
        .lease("nobody", at(0), 1)
        .await
        .is_err()
    {
        tokio::task::yield_now().await;
    }
    let read = format!(
        "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
         WHERE schemaname = '{schema}' AND relname = '{table}'"
    );
    server.query(schema, &read).await[0].parse().unwrap()
}

/// A transaction that began before everything that follows, and sees none of it.
async fn snapshot(place: &Counted) -> (tokio_postgres::Client, tokio::task::JoinSet<()>) {
    let url = place.server.url(place.store.schema());
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM waiting";
    client.batch_execute(begin).await.unwrap();
    (client, tasks)
}

/// Leases up to `limit` deliveries at `second` and settles them, so many times.
async fn drain(store: &dyn Store, second: i64, limit: usize, rounds: usize) {
    for round in 0..rounds {
        let lanes = store.lease("s", at(second), limit).await.unwrap().lanes;
        assert!(!lanes.is_empty(), "nothing is left in round {round}");
        let sent = lanes
            .into_iter()
            .map(|it| settled(it, &Outcome::Sent, second));
        store.settle(sent.collect()).await.unwrap();
    }
}

#[tokio::test]
async fn snapshot_makes_no_look_at_a_lane_walk_over_all_that_was_settled() {
    let place = Counted::open().await;
    let store = place.store.handle();
    let _open = snapshot(&place).await;
    for second in 0..200 {
        fill(&*store, &format!("c-{second}"), 10, LaneKey::Topic, second).await;
    }
    drain(&*store, 200, 99, 20).await;
    let before = walked(&place, "waiting").await;
    drain(&*store, 201, 1, 20).await;
    let walked = walked(&place, "waiting").await - before;
    assert!(
        walked < 2000,
        "20 of 2000 deliveries walked over {walked} index entries"
    );
}

#[tokio::test]
async fn snapshot_makes_no_look_at_a_sink_walk_over_all_lanes_that_were_due() {
    let place = Counted::open().await;
    let store = place.store.handle();
    let _open = snapshot(&place).await;
    fill(&*store, "c", 2000, LaneKey::Instance, 0).await;
    place.store.clock.set(at(1));
    drain(&*store, 1, 100, 20).await;
    let mut before = 0;
    // Later than the ends of those leases; the first look of them learns from where on to look.
    for second in 50..58 {
        place.store.clock.set(at(second));
        fill(
            &*store,
            &format!("c-{second}"),
            1,
            LaneKey::Instance,
            second,
        )
        .await;
        drain(&*store, second, 100, 1).await;
        if second == 50 {
            before = walked(&place, "lane").await;
        }
    }
    let walked = walked(&place, "lane").await - before;
    assert!(
        walked < 2000,
        "7 deliveries after 2000 lanes walked over {walked} index entries"
    );
}
