//! The shared engine on a real server. Each call runs on a runtime of its own while the simulated
//! thread waits: a call takes no virtual time but the latency of its round trips, and cannot be
//! broken off amid its statements.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use runbell::clock::Clock;
use runbell::sns::KnownCertificate;
use runbell::store::postgres::Postgres;
use runbell::store::{
    Append, Appended, Backlog, Care, DeadLetter, DeadSelection, Delivery, EventId, EventQuery,
    Generation, History, Intake, Lanes, Leased, RouteBacklog, Settlement, Store, StoreError,
    StoredEvent, Subscription, Tally,
};
use secrecy::SecretString;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use crate::engine::{Engine, Pump, terms};
use crate::harness::postgres::server;

/// Empties all tables, drops the days, and sets the stored clock and all numbers to the beginning.
/// A day that is there already would spare the first append a try, and with it a number.
const RESET: &str = "DO $$ DECLARE it record; BEGIN
    FOR it IN SELECT inhrelid::regclass::text AS name FROM pg_inherits
      JOIN pg_class c ON c.oid = inhparent AND c.relkind = 'p'
      WHERE c.relnamespace = current_schema()::regnamespace
    LOOP EXECUTE 'DROP TABLE ' || it.name; END LOOP;
    FOR it IN SELECT c.oid::regclass::text AS name FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = current_schema() AND c.relkind = 'r'
        AND c.relname NOT IN ('clock', 'runbell')
    LOOP EXECUTE 'DELETE FROM ' || it.name; END LOOP;
    FOR it IN SELECT c.oid AS id FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = current_schema() AND c.relkind = 'S'
    LOOP PERFORM setval(it.id::regclass, 1, false); END LOOP;
    UPDATE clock SET latest = 0, ahead = 0, step = 0; END $$";

/// PostgreSQL, shared by two processes.
pub struct OnPostgres {
    runtime: Arc<Runtime>,
    schema: String,
    beside: Client,
}

impl OnPostgres {
    pub fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let schema = runtime.block_on(server().new_schema());
        let url = server().url(&schema);
        let (beside, connection) = runtime
            .block_on(tokio_postgres::connect(&url, NoTls))
            .unwrap();
        runtime.spawn(connection);
        let mut it = Self {
            runtime: Arc::new(runtime),
            schema,
            beside,
        };
        // Makes the tables.
        let clock = Clock::by_hand("2026-11-23T09:00:00Z".parse().unwrap());
        drop(it.open(&clock));
        it
    }
}

impl Engine for OnPostgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn processes(&self) -> usize {
        2
    }

    fn latencies(&self) -> &'static [u64] {
        &[0, 1, 3]
    }

    fn reset(&mut self) {
        self.runtime
            .block_on(self.beside.batch_execute(RESET))
            .unwrap();
    }

    fn open(&mut self, clock: &Clock) -> (Arc<dyn Store>, Box<dyn Pump>) {
        let settings = server().settings(&self.schema, "sim");
        let opening = Postgres::open(&settings, terms(), clock);
        let (inner, keeper, _) = self.runtime.block_on(opening).unwrap();
        let keeper = Keeping(self.runtime.spawn(keeper.run()));
        let runtime = Arc::clone(&self.runtime);
        (Arc::new(Blocking { inner, runtime }), Box::new(keeper))
    }

    fn leftovers(&self) -> Vec<String> {
        let looks = [
            ("lease rows", "SELECT count(*) FROM lease"),
            (
                "lanes that are due for nothing",
                "SELECT count(*) FROM lane WHERE due_at IS NOT NULL
                   AND NOT EXISTS (SELECT 1 FROM waiting WHERE lane = lane.id)",
            ),
            (
                "lanes that wait and are not due",
                "SELECT count(*) FROM lane WHERE due_at IS NULL
                   AND EXISTS (SELECT 1 FROM waiting WHERE lane = lane.id)",
            ),
            ("rows that wait", "SELECT count(*) FROM waiting"),
        ];
        let count = |(what, look): (&str, &str)| {
            let row = self
                .runtime
                .block_on(self.beside.query_one(look, &[]))
                .unwrap();
            let many: i64 = row.get(0);
            (many > 0).then(|| format!("{many} {what}"))
        };
        looks.into_iter().filter_map(count).collect()
    }
}

/// The keeper's task, which dies with its process and takes leave of nobody.
struct Keeping(JoinHandle<()>);

impl Drop for Keeping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Pump for Keeping {
    fn turn(&mut self) -> bool {
        false
    }
}

/// A store whose calls are over when they return.
struct Blocking {
    inner: Postgres,
    runtime: Arc<Runtime>,
}

impl Blocking {
    fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }
}

#[async_trait]
impl Intake for Blocking {
    async fn append(&self, append: Append) -> Result<Appended, StoreError> {
        self.wait(self.inner.append(append))
    }

    async fn known(
        &self,
        topic: &str,
        sent_at: Timestamp,
        message_id: &str,
    ) -> Result<Option<EventId>, StoreError> {
        self.wait(self.inner.known(topic, sent_at, message_id))
    }

    async fn put_subscription(
        &self,
        topic: &str,
        token: &SecretString,
        at: Timestamp,
    ) -> Result<Subscription, StoreError> {
        self.wait(self.inner.put_subscription(topic, token, at))
    }

    async fn subscription(&self, id: i64) -> Result<Option<Subscription>, StoreError> {
        self.wait(self.inner.subscription(id))
    }

    async fn subscription_confirmed(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.wait(self.inner.subscription_confirmed(id, at))
    }

    async fn put_certificate(&self, certificate: KnownCertificate) -> Result<(), StoreError> {
        self.wait(self.inner.put_certificate(certificate))
    }

    async fn put_generation(
        &self,
        generation: Generation,
        replica: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.wait(self.inner.put_generation(generation, replica, at))
    }
}

#[async_trait]
impl Lanes for Blocking {
    fn clock(&self) -> &Clock {
        self.inner.clock()
    }

    fn replicas(&self) -> u32 {
        self.inner.replicas()
    }

    async fn lease(&self, sink: &str, now: Timestamp, limit: usize) -> Result<Leased, StoreError> {
        self.wait(self.inner.lease(sink, now, limit))
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), StoreError> {
        self.wait(self.inner.settle(settlements))
    }

    async fn divert(&self, sink: &str, to: &str, now: Timestamp) -> Result<u64, StoreError> {
        self.wait(self.inner.divert(sink, to, now))
    }

    async fn back_off(
        &self,
        sink: &str,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.wait(self.inner.back_off(sink, until, now))
    }
}

#[async_trait]
impl Care for Blocking {
    async fn beat(&self) -> Result<(), StoreError> {
        self.wait(self.inner.beat())
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        self.wait(self.inner.sweep())
    }

    async fn prune(&self, now: Timestamp, keep: Duration) -> Result<bool, StoreError> {
        self.wait(self.inner.prune(now, keep))
    }

    async fn retry_dead(
        &self,
        selection: DeadSelection,
        to: Option<String>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        self.wait(self.inner.retry_dead(selection, to, now))
    }

    async fn bury(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError> {
        self.wait(self.inner.bury(sink, now))
    }

    async fn drop_dead(&self, selection: DeadSelection, now: Timestamp) -> Result<u64, StoreError> {
        self.wait(self.inner.drop_dead(selection, now))
    }
}

#[async_trait]
impl History for Blocking {
    async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, StoreError> {
        self.wait(self.inner.events(query))
    }

    async fn event(&self, id: EventId) -> Result<Option<(StoredEvent, Vec<Delivery>)>, StoreError> {
        self.wait(self.inner.event(id))
    }

    async fn dead(
        &self,
        selection: DeadSelection,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.wait(self.inner.dead(selection, limit))
    }

    async fn subscriptions(&self) -> Result<Vec<Subscription>, StoreError> {
        self.wait(self.inner.subscriptions())
    }

    async fn certificates(&self) -> Result<Vec<KnownCertificate>, StoreError> {
        self.wait(self.inner.certificates())
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, StoreError> {
        self.wait(self.inner.backlog())
    }

    async fn route_backlog(&self) -> Result<Vec<RouteBacklog>, StoreError> {
        self.wait(self.inner.route_backlog())
    }

    async fn tally(&self) -> Result<Vec<Tally>, StoreError> {
        self.wait(self.inner.tally())
    }
}
