//! The lower bounds of scans, and the due times of lanes, after any history.

use super::*;
use crate::harness::postgres::server;

/// Whatever is wrong with a lane, in SQL: a row in turn below a bound, a lane that is due and holds
/// nothing or the other way round, a lease without its lane or the other way round.
const WRONG: &str = "
    SELECT 'bound ' || lane.id FROM lane JOIN waiting ON waiting.lane = lane.id
      WHERE NOT alone AND (sort_key < first_key OR release_at < first_release)
    UNION ALL SELECT 'due ' || id FROM lane
      WHERE (due_at IS NULL) = EXISTS (SELECT 1 FROM waiting WHERE waiting.lane = lane.id)
    UNION ALL SELECT 'lease ' || id FROM lane
      WHERE leased <> EXISTS (SELECT 1 FROM lease WHERE lease.lane = lane.id)
    UNION ALL SELECT 'epoch ' || id FROM lane JOIN lease ON lease.lane = lane.id
      WHERE lease.epoch <> lane.epoch
    UNION ALL SELECT 'leak ' || id FROM lane WHERE kind = 3 AND due_at IS NULL";

const SINKS: [&str; 3] = ["s", "t", "u"];

struct Story {
    place: TestStore,
    chance: fastrand::Rng,
    number: usize,
    held: Vec<Lane>,
}

impl Story {
    fn now(&self) -> i64 {
        let clock = self.place.handle().clock().now();
        clock.duration_since(at(0)).as_secs()
    }

    fn sink(&mut self) -> &'static str {
        SINKS[self.chance.usize(..SINKS.len())]
    }

    async fn act(&mut self) -> &'static str {
        let store = self.place.handle();
        let now = self.now();
        match self.chance.u8(..12) {
            0..=3 => {
                self.arrive(now).await;
                "append"
            }
            4..=5 => {
                let sink = self.sink();
                let limit = self.chance.usize(1..6);
                let leased = store.lease(sink, at(now), limit).await.unwrap();
                self.held.extend(leased.lanes);
                "lease"
            }
            6..=8 => {
                let all: Vec<_> = std::mem::take(&mut self.held);
                let settlements = all.into_iter().map(|lane| self.end(lane, now)).collect();
                store.settle(settlements).await.unwrap();
                "settle"
            }
            9 => {
                let (from, to) = (self.sink(), self.sink());
                if from != to {
                    store.divert(from, to, at(now)).await.unwrap();
                }
                "divert"
            }
            10 => {
                let to = self.chance.bool().then(|| self.sink().to_owned());
                let all = DeadSelection::All;
                store.retry_dead(all, to, at(now)).await.unwrap();
                "resend"
            }
            _ => {
                self.held.truncate(self.held.len() / 2);
                let by = Duration::from_secs(self.chance.u64(..20));
                self.place.clock.advance(by);
                store.beat().await.unwrap();
                "beat"
            }
        }
    }

    async fn arrive(&mut self, now: i64) {
        self.number += 1;
        let instance = format!("i-{}", self.chance.u8(..3));
        let status = ["InProgress", "Success", "Failed", "Odd"][self.chance.usize(..4)];
        // Out of order by up to half a minute.
        let happened = now - self.chance.i64(0..30);
        let event = event(&format!("m-{}", self.number), &instance, status, happened);
        let lane = [
            LaneKey::Command,
            LaneKey::Instance,
            LaneKey::Topic,
            LaneKey::Digest,
            LaneKey::Own,
        ][self.chance.usize(..5)];
        let release = [
            Release::AtEnd,
            Release::First,
            Release::AfterFirst,
            Release::Never,
            Release::WhenOver(Duration::from_secs(2)),
        ][self.chance.usize(..5)];
        let sink = self.sink();
        let mut owed = owed(&event, sink, lane, self.chance.u64(..20));
        owed.hold.release = release;
        stored(&*self.place.handle(), event, vec![owed], now).await;
    }

    fn end(&mut self, lane: Lane, now: i64) -> Settlement {
        let outcomes = [
            Outcome::Sent,
            Outcome::Sent,
            Outcome::Retry,
            Outcome::Parked,
            Outcome::Dead,
        ];
        let outcome = &outcomes[self.chance.usize(..outcomes.len())];
        let mut all = results(&lane, outcome, now);
        if self.chance.u8(..5) == 0 {
            let to = self.sink();
            if to != lane.sink {
                let to = to.to_owned();
                all[0].ending = Ending::Diverted { to };
            }
        }
        all.truncate(self.chance.usize(..=all.len()));
        lane.lease.settle(all, at(now), None)
    }
}

#[tokio::test]
async fn bounds_and_due_times_are_right_after_any_history() {
    for seed in 0..6 {
        let mut story = Story {
            place: TestStore::open_on(On::Postgres).await,
            chance: fastrand::Rng::with_seed(seed),
            number: 0,
            held: Vec::new(),
        };
        let mut acts = Vec::new();
        for _ in 0..150 {
            acts.push(story.act().await);
            let wrong = server().query(story.place.schema(), WRONG).await;
            assert_eq!(wrong, Vec::<String>::new(), "seed {seed} after {acts:?}");
        }
        story.held.clear();
        assert_sound(&*story.place.handle()).await;
        let raised = "SELECT count(*) FROM lane WHERE first_release > 0 AND due_at IS NOT NULL";
        let raised = server().query(story.place.schema(), raised).await;
        assert_ne!(raised, ["0"], "no bound was ever raised");
    }
}

#[tokio::test]
async fn sink_is_cleared_behind_five_hundred_lanes_that_somebody_has_locked() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    let appends = (0..501).map(|number| {
        let event = event(&format!("m-{number}"), "i-1", "Success", 1);
        let owed = vec![owed(&event, "s", LaneKey::Own, 0)];
        store.append(Append::new(event, owed, at(1)))
    });
    for appended in futures_util::future::join_all(appends).await {
        appended.unwrap();
    }
    let url = server().url(place.schema());
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    let most = "BEGIN; SELECT id FROM lane ORDER BY id LIMIT 500 FOR UPDATE";
    client.batch_execute(most).await.unwrap();
    assert_eq!(store.divert("s", "t", at(2)).await.unwrap(), 1);
    client.batch_execute("ROLLBACK").await.unwrap();
    let wrong = server().query(place.schema(), WRONG).await;
    assert_eq!(wrong, Vec::<String>::new(), "lanes were made for nothing");
    assert_eq!(store.divert("s", "t", at(3)).await.unwrap(), 500);
    assert_sound(&*store).await;
}

#[tokio::test]
async fn result_of_an_event_whose_day_is_gone_is_taken() {
    let place = TestStore::open_on(On::Postgres).await;
    let store = place.handle();
    let id = arrives(&*store, event("m-1", "i-1", "Success", 1), 1).await;
    let held = one(lease(&*store, 9).await);
    let day = id.0 / 10_000_000_000;
    let forget = format!(
        "DELETE FROM waiting; DELETE FROM lease; DELETE FROM lane;
         DROP TABLE event_{day}; DROP TABLE outcome_{day}"
    );
    server().run(place.schema(), &forget).await;
    let sent = settled(held, &Outcome::Sent, 10);
    store.settle(vec![sent]).await.unwrap();
    let lines = server()
        .query(place.schema(), "SELECT count(*) FROM outcome")
        .await;
    assert_eq!(lines, ["0"]);
}
