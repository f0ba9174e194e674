//! The proxy itself, before a real PostgreSQL: each fault shows, and goes away again.

use std::sync::LazyLock;

use tokio_postgres::{Client, NoTls};

use super::*;
use crate::harness::app::until;
use crate::harness::postgres::Server;

static SERVER: LazyLock<Server> = LazyLock::new(|| Server::listening(&[]));

/// Connects through a proxy; the tasks carry the connection.
async fn client(proxy: &Proxy, tasks: &mut JoinSet<()>) -> Client {
    let direct = SERVER.url("public");
    let through = direct.replace(&format!(":{}/", SERVER.port), &format!(":{}/", proxy.port));
    let (client, connection) = tokio_postgres::connect(&through, NoTls).await.unwrap();
    tasks.spawn(async {
        // It ends with an error when the proxy cuts it, which is what the tests look for.
        let _ = connection.await;
    });
    client
}

async fn commit_into(table: &str, client: &mut Client) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let insert = format!("INSERT INTO {table} VALUES (1)");
    transaction.batch_execute(&insert).await?;
    transaction.commit().await
}

#[tokio::test]
async fn lost_commit_is_done_and_not_heard_of() {
    let (proxy, mut tasks) = (Proxy::to(SERVER.port).await, JoinSet::new());
    SERVER.run("public", "CREATE TABLE lost (n int)").await;
    let mut first = client(&proxy, &mut tasks).await;
    proxy.lose_commits(1.0, 1);
    commit_into("lost", &mut first).await.unwrap_err();
    assert_eq!(proxy.lost_commits(), 1);
    let mut second = client(&proxy, &mut tasks).await;
    proxy.lose_commits(0.0, 1);
    commit_into("lost", &mut second).await.unwrap();
    let kept = SERVER.query("public", "SELECT count(*) FROM lost").await;
    assert_eq!(kept, ["2"]);
}

#[tokio::test]
async fn lost_commits_are_about_as_many_as_asked_for() {
    let (proxy, mut tasks) = (Proxy::to(SERVER.port).await, JoinSet::new());
    SERVER.run("public", "CREATE TABLE few (n int)").await;
    proxy.lose_commits(0.2, 7);
    let mut heard = 0;
    for _ in 0..100 {
        let mut client = client(&proxy, &mut tasks).await;
        heard += usize::from(commit_into("few", &mut client).await.is_ok());
    }
    assert_eq!(heard + proxy.lost_commits(), 100);
    assert!((8..=35).contains(&proxy.lost_commits()), "{heard}");
    let kept = SERVER.query("public", "SELECT count(*) FROM few").await;
    assert_eq!(kept, ["100"]);
}

#[tokio::test]
async fn delay_adds_to_each_round_trip_and_not_to_each_byte() {
    let (proxy, mut tasks) = (Proxy::to(SERVER.port).await, JoinSet::new());
    let client = client(&proxy, &mut tasks).await;
    let clock = Clock::system();
    proxy.delay(Duration::from_millis(20), Duration::from_millis(30));
    let before = clock.now();
    for _ in 0..5 {
        client.simple_query("SELECT 1").await.unwrap();
    }
    let one_by_one = clock.now().duration_since(before).unsigned_abs();
    assert!(one_by_one >= Duration::from_millis(250), "{one_by_one:?}");
    let before = clock.now();
    let all = (0..50).map(|_| client.simple_query("SELECT 1"));
    futures_util::future::try_join_all(all).await.unwrap();
    let at_once = clock.now().duration_since(before).unsigned_abs();
    assert!(at_once >= Duration::from_millis(50), "{at_once:?}");
    assert!(at_once < Duration::from_millis(1250), "{at_once:?}");
}

#[tokio::test]
async fn stall_holds_everything_back_and_loses_nothing() {
    let (proxy, mut tasks) = (Proxy::to(SERVER.port).await, JoinSet::new());
    let client = client(&proxy, &mut tasks).await;
    proxy.stall();
    let asked = client.simple_query("SELECT 1");
    tokio::pin!(asked);
    let patience = Duration::from_millis(300);
    let answer = tokio::time::timeout(patience, &mut asked).await;
    assert!(answer.is_err(), "an answer came through");
    proxy.resume();
    asked.await.unwrap();
}

#[tokio::test]
async fn cut_ends_old_connections_and_refuses_new_ones() {
    let (proxy, mut tasks) = (Proxy::to(SERVER.port).await, JoinSet::new());
    let first = client(&proxy, &mut tasks).await;
    proxy.cut();
    until("the old connection to end", async || {
        first.is_closed().then_some(())
    })
    .await;
    let refused = TcpStream::connect(("127.0.0.1", proxy.port)).await;
    let read = refused.unwrap().read(&mut [0; 1]).await;
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    proxy.mend();
    let second = client(&proxy, &mut tasks).await;
    second.simple_query("SELECT 1").await.unwrap();
}
