//! A rolling restart behind a real load balancer: `make interop ARGS=replicas`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use runbell::clock::Clock;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::process::Replica;
use super::publisher::Status;
use super::{Scene, free_port, settings};
use crate::harness::app::until;
use crate::harness::store::folder;

/// A load balancer before the replicas, that asks each whether it is ready.
struct Balancer {
    port: u16,
    process: Child,
}

impl Balancer {
    fn start(folder: &Path, replicas: &[Replica]) -> Self {
        let port = free_port();
        let servers = replicas.iter().enumerate().map(|(number, it)| {
            format!(
                "  server r{number} 127.0.0.1:{} check port {} inter 200ms fall 2 rise 2\n",
                it.hook, it.admin
            )
        });
        let text = format!(
            "defaults\n  mode http\n  timeout connect 2s\n  timeout client 75s\n  timeout server 15s\n\
             frontend sns\n  bind 127.0.0.1:{port}\n  default_backend replicas\n\
             backend replicas\n  balance roundrobin\n  option httpchk GET /-/ready\n{}",
            servers.collect::<String>()
        );
        let settings = folder.join("haproxy.cfg");
        std::fs::write(&settings, text).unwrap();
        let mut command = Command::new("/usr/sbin/haproxy");
        command
            .arg("-f")
            .arg(settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn().expect("HAProxy is not installed");
        Self { port, process }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// 500 a second through a real load balancer, each posted once, while one replica after the other
/// is stopped in order and started again.
#[tokio::test]
#[ignore = "it needs HAProxy; `make interop ARGS=replicas`"]
async fn rolling_restart_answers_everything_with_200() {
    const PACE: Duration = Duration::from_millis(2);
    const ROUNDS: usize = 3;
    const SIGNED: usize = 30_000;
    let mut scene = Scene::start(2, settings::PLAIN, super::LOAD).await;
    let folder = folder();
    let balancer = Balancer::start(folder.path(), &scene.replicas);
    let clock = Clock::system();
    let publisher = std::sync::Arc::clone(&scene.publisher);
    let mut signed = Vec::with_capacity(SIGNED);
    for number in 0..SIGNED {
        let status = Status::new(number, super::LOAD.instances, clock.now());
        let body = status.sign(&publisher.sns);
        signed.push((status, body));
        // The way to the database runs in this thread as well.
        tokio::task::yield_now().await;
    }
    let url = format!("http://127.0.0.1:{}/sns", balancer.port);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    until("the balancer to find somebody", async || {
        let answer = http.post(&url).body("{}").send().await.ok()?;
        (answer.status() != 503).then_some(())
    })
    .await;
    let stop = CancellationToken::new();
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let publish = async {
        let mut pace = tokio::time::interval(PACE);
        let mut posts = JoinSet::new();
        for (mut status, body) in signed {
            pace.tick().await;
            if stop.is_cancelled() {
                break;
            }
            status.offered_at = clock.now();
            let place = publisher.note(status);
            let (post, publisher) = (http.post(&url).body(body), publisher.clone());
            posts.spawn(async move {
                match post.send().await {
                    Ok(answer) => {
                        if answer.status() == 200 {
                            publisher.accept(place);
                        }
                        answer.status().to_string()
                    }
                    Err(error) => error.to_string(),
                }
            });
        }
        for answer in posts.join_all().await {
            *answers.entry(answer).or_default() += 1;
        }
    };
    let restart = async {
        for round in 0..ROUNDS * 2 {
            let replica = &mut scene.replicas[round % 2];
            replica.signal(Signal::TERM);
            let mut process = replica.process.take().unwrap();
            let ended = tokio::task::spawn_blocking(move || process.wait().unwrap()).await;
            assert!(ended.unwrap().success(), "it did not stop in order");
            replica.start(&scene.http).await;
            // As operators wait for the balancer to have it back.
            scene.pass(Duration::from_secs(1)).await;
        }
        stop.cancel();
    };
    tokio::join!(publish, restart);
    #[expect(
        clippy::print_stderr,
        reason = "a figure for who asks with --nocapture"
    )]
    {
        eprintln!("{} restarts, answers: {answers:?}", ROUNDS * 2);
    }
    let answers: Vec<_> = answers.into_iter().collect();
    assert_eq!(answers, [("200 OK".to_owned(), publisher.accepted())]);
    assert!(publisher.accepted() > 1000, "{answers:?}");
    // No process was killed or paused, so nothing may come twice.
    scene.assert_sound().await;
}
