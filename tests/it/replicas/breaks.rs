//! The ways in which a replica, the database or the way between them breaks, and is mended.

use std::time::Duration;

use rustix::process::Signal;

use super::Scene;
use crate::harness::proxy::Proxy;

/// Longer than others believe a replica alive that does not show signs of life.
const GIVEN_UP: Duration = Duration::from_secs(10);
/// Longer than anybody waits for a statement, and shorter than two such waits.
const STALL: Duration = Duration::from_millis(9500);
/// How long answers to COMMITs are lost, at how many statuses a second, how probably.
const LOSING: (Duration, u64, f64) = (Duration::from_secs(40), 20, 0.05);

/// One fault from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub enum Break {
    /// A replica is killed, and started again.
    Kill,
    /// A replica is paused until the others have given it up.
    Pause,
    /// One replica is paused, and another cut off from the database, until both are given up.
    PauseAndCut,
    /// The database crashes, and comes back.
    Crash,
    /// Answers to COMMITs are lost at random: done, and nobody hears of it.
    LostCommits,
    /// The database answers nobody for some seconds.
    Stall,
    /// The replica to which a digest sink is pinned is paused before it hears that a digest
    /// arrived.
    PauseAmidDigest,
    /// A replica is killed before it hears that a notice arrived, and the service fails then.
    KillAmidRelay,
}

impl Scene {
    /// Lets it break, and mends it. `round` varies the victim.
    pub(super) async fn endure(&mut self, what: Break, round: usize) {
        let count = self.replicas.len();
        let (first, second) = (round % count, (round + 1) % count);
        #[expect(clippy::print_stderr, reason = "a long run shows where it is")]
        {
            eprintln!("{what:?}, {} accepted", self.publisher.accepted());
        }
        match what {
            Break::Kill => {
                self.kill(first);
                self.restart(first).await;
            }
            Break::Pause => self.pause(first).await,
            Break::PauseAndCut => {
                let from = self.clock.now();
                self.proxies[second].cut();
                self.pause(first).await;
                self.proxies[second].mend();
                self.disturbed(second, from);
            }
            Break::Crash => self.server.crash(),
            Break::LostCommits => self.lose_commits(round).await,
            Break::Stall => {
                self.proxies.iter().for_each(Proxy::stall);
                self.pass(STALL).await;
                self.proxies.iter().for_each(Proxy::resume);
            }
            Break::PauseAmidDigest => {
                let Some(number) = self.catch("desk").await else {
                    return;
                };
                let from = self.clock.now();
                self.replicas[number].signal(Signal::STOP);
                // The answer is there when it wakes up.
                self.services.release();
                self.pass(GIVEN_UP).await;
                self.replicas[number].signal(Signal::CONT);
                self.disturbed(number, from);
            }
            Break::KillAmidRelay => {
                let Some(number) = self.catch("relay").await else {
                    return;
                };
                let before = self.services.count("spare");
                self.services.fail("relay", 503);
                self.kill(number);
                self.services.release();
                self.restart(number).await;
                // Long enough for the others to take over, and for the fallback to be asked.
                self.pass(GIVEN_UP + GIVEN_UP).await;
                if self.services.count("spare") == before {
                    self.complaints.push("spare: never asked\n".to_owned());
                }
                self.services.mend("relay");
            }
        }
    }

    /// Holds back the answer to the next call to a sink, and gives the replica that made it.
    async fn catch(&mut self, sink: &str) -> Option<usize> {
        let caught = self.services.catch(sink).await;
        if caught.is_none() {
            self.services.release();
            self.complaints.push(format!("{sink}: nothing came\n"));
        }
        let mut replicas = self.replicas.iter();
        replicas.position(|it| Some(&it.name) == caught.as_ref())
    }

    fn kill(&mut self, number: usize) {
        let from = self.clock.now();
        self.replicas[number].kill();
        self.disturbed(number, from);
    }

    /// Starts a replica that was killed, after a while.
    async fn restart(&mut self, number: usize) {
        self.publisher.more(100).await;
        self.replicas[number].start(&self.http).await;
    }

    async fn pause(&mut self, number: usize) {
        let from = self.clock.now();
        self.replicas[number].signal(Signal::STOP);
        self.pass(GIVEN_UP).await;
        self.replicas[number].signal(Signal::CONT);
        self.disturbed(number, from);
    }

    async fn lose_commits(&mut self, round: usize) {
        let (time, pace, probability) = LOSING;
        let lost_before = self.lost_commits();
        self.publisher.pace(pace);
        for (seed, proxy) in (u64::try_from(round).unwrap() * 100..).zip(&self.proxies) {
            proxy.lose_commits(probability, seed);
        }
        self.pass(time).await;
        for proxy in &self.proxies {
            proxy.lose_commits(0.0, 0);
        }
        let lost = self.lost_commits() - lost_before;
        assert!(lost > 10, "only {lost} answers to COMMITs were lost");
        self.publisher.pace(super::chaos::LOAD.pace);
    }

    fn lost_commits(&self) -> usize {
        self.proxies.iter().map(Proxy::lost_commits).sum()
    }
}
