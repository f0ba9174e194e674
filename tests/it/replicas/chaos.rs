//! Minutes of faults, with every kind of sink and a database some milliseconds away: `make chaos`.

use std::time::Duration;

use super::breaks::Break;
use super::publisher::Load;
use super::{Scene, settings};

/// As much as all sinks can keep up with on a small machine: three replicas share the message a
/// second that Slack allows, so a command has to be long.
pub(super) const LOAD: Load = Load {
    pace: 40,
    instances: 300,
};
/// On the way to the database, and back: about as far as another zone.
const DELAYS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(2));

/// Three replicas endure these faults, and nothing is wrong in the end.
async fn chaos(breaks: &[Break]) {
    let mut scene = Scene::start(3, settings::FULL, LOAD).await;
    for proxy in &scene.proxies {
        proxy.delay(DELAYS.0, DELAYS.1);
    }
    scene.publish_amid(breaks).await;
    scene.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes; `make chaos`"]
async fn kills_pauses_and_crashes_lose_nothing() {
    let once = [Break::Kill, Break::PauseAndCut, Break::Crash, Break::Pause];
    chaos(&[once, once, once].concat()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes; `make chaos`"]
async fn lost_answers_to_commits_stop_nothing() {
    chaos(&[Break::LostCommits]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes; `make chaos`"]
async fn stalled_database_stops_nothing_and_repeats_nothing() {
    chaos(&[Break::Stall]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes; `make chaos`"]
async fn replica_paused_amid_a_digest_stops_nothing() {
    let thrice = [Break::PauseAmidDigest; 3];
    chaos(&thrice).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes; `make chaos`"]
async fn fallback_marks_what_may_have_been_told() {
    let thrice = [Break::KillAmidRelay; 3];
    chaos(&thrice).await;
}

/// Everything after everything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes; `make chaos`"]
async fn everything_that_breaks_loses_nothing() {
    // The last ones leave no process behind that was given up: that would free whatever it held,
    // and hide that it was forgotten.
    let all = [
        Break::Kill,
        Break::Crash,
        Break::PauseAndCut,
        Break::Stall,
        Break::Pause,
        Break::KillAmidRelay,
        Break::PauseAmidDigest,
        Break::LostCommits,
    ];
    chaos(&all).await;
}
