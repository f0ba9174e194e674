//! A database that is far away, or whose answers to a COMMIT are lost: what is large is slow there,
//! and nothing stands still.

use runbell::store::postgres::Settings;

use super::*;
use crate::harness::postgres::Server;
use crate::harness::proxy::Proxy;

struct Far {
    _server: Server,
    proxy: Proxy,
    place: TestStore,
}

impl Far {
    async fn open() -> Self {
        let server = Server::listening(&[]);
        let schema = server.new_schema().await;
        let proxy = Proxy::to(server.port).await;
        let url = server.url(&schema);
        let url = url.replace(&server.port.to_string(), &proxy.port.to_string());
        let settings = Settings::parse(&url, None, 4, "r".to_owned()).unwrap();
        let clock = Clock::by_hand(at(0));
        let place = TestStore::open_with(&settings, schema, clock).await;
        Self {
            _server: server,
            proxy,
            place,
        }
    }

    /// So far away that no transaction could take a round trip for each row.
    fn move_away(&self) {
        let way = Duration::from_millis(20);
        self.proxy.delay(way, way);
    }
}

async fn fill(store: &dyn Store, count: usize, lane: LaneKey) {
    let appends = (0..count).map(|number| {
        let event = event(&format!("m-{number}"), &format!("i-{number}"), "Failed", 1);
        let owed = vec![owed(&event, "s", lane, 0)];
        store.append(Append::new(event, owed, at(1)))
    });
    for appended in futures_util::future::join_all(appends).await {
        appended.unwrap();
    }
}

async fn waiting(store: &dyn Store, sink: &str) -> u64 {
    let tallies = store.tally().await.unwrap();
    tallies
        .iter()
        .find(|it| it.sink == sink)
        .map_or(0, |it| it.waiting)
}

#[tokio::test]
async fn twelve_hundred_deliveries_are_handed_over_buried_and_resent_far_away() {
    for lane in [LaneKey::Topic, LaneKey::Own] {
        let far = Far::open().await;
        let store = far.place.handle();
        fill(&*store, 1200, lane).await;
        far.move_away();
        assert_eq!(store.divert("s", "t", at(2)).await.unwrap(), 1200);
        assert_eq!(
            (waiting(&*store, "s").await, waiting(&*store, "t").await),
            (0, 1200)
        );
        assert_eq!(store.bury("t", at(3)).await.unwrap(), 1200);
        let back = store
            .retry_dead(DeadSelection::All, Some("s".to_owned()), at(4))
            .await;
        assert_eq!(back.unwrap(), 1200);
        assert_eq!(waiting(&*store, "s").await, 1200);
        assert_eq!(store.bury("s", at(5)).await.unwrap(), 1200);
        assert_eq!(
            store.drop_dead(DeadSelection::All, at(6)).await.unwrap(),
            1200
        );
        assert_sound(&*store).await;
    }
}

#[tokio::test]
async fn digest_of_three_thousand_ends_far_away_whatever_becomes_of_it() {
    let far = Far::open().await;
    let store = far.place.handle();
    fill(&*store, 3000, LaneKey::Digest).await;
    far.move_away();
    let lane = one(store.lease("s", at(9), 1).await.unwrap().lanes);
    assert_eq!(lane.digest.as_ref().unwrap().failed, 3000);
    let mut all = results(&lane, &Outcome::Dead, 9);
    all[0].ending = Ending::Diverted { to: "t".to_owned() };
    store
        .settle(vec![lane.lease.settle(all, at(9), None)])
        .await
        .unwrap();
    assert_eq!(
        (waiting(&*store, "s").await, waiting(&*store, "t").await),
        (0, 3000)
    );
    let lane = one(store.lease("t", at(9), 1).await.unwrap().lanes);
    store
        .settle(vec![settled(lane, &Outcome::Dead, 10)])
        .await
        .unwrap();
    let backlog = store.backlog().await.unwrap();
    assert_eq!(backlog.iter().find(|it| it.sink == "t").unwrap().dead, 3000);
    assert!(
        store
            .dead(DeadSelection::All, 3)
            .await
            .unwrap()
            .iter()
            .all(|it| it.tries == 2)
    );
    assert_sound(&*store).await;
}

#[tokio::test]
async fn commit_whose_answer_is_lost_costs_a_beat_and_no_delivery() {
    let far = Far::open().await;
    let store = far.place.handle();
    fill(&*store, 3, LaneKey::Instance).await;
    far.proxy.lose_commits(1.0, 7);
    assert!(store.lease("s", at(5), 100).await.is_err());
    far.proxy.lose_commits(0.0, 7);
    assert!(
        lease(&*store, 5).await.is_empty(),
        "the server has leased them"
    );
    store.beat().await.unwrap();
    let lanes = lease(&*store, 5).await;
    assert_eq!(lanes.len(), 3);
    assert!(lanes.iter().all(|lane| !lane.waiting[0].possible_repeat));
    let all: Vec<_> = lanes
        .into_iter()
        .map(|lane| settled(lane, &Outcome::Sent, 6))
        .collect();
    far.proxy.lose_commits(1.0, 8);
    assert!(store.settle(all.clone()).await.is_err());
    far.proxy.lose_commits(0.0, 8);
    store.settle(all).await.unwrap();
    assert!(far.proxy.lost_commits() >= 2);
    let tally = store.tally().await.unwrap();
    assert_eq!((tally[0].sent, tally[0].waiting), (3, 0));
    let (_, deliveries) = store
        .event(first_event(&*store).await)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        deliveries[0].outcomes.len(),
        1,
        "recorded again, it changed nothing"
    );
    assert_sound(&*store).await;
}

async fn first_event(store: &dyn Store) -> EventId {
    let query = EventQuery {
        limit: 1,
        ..EventQuery::default()
    };
    store.events(query).await.unwrap()[0].id
}
