//! A TCP proxy before PostgreSQL that breaks the network while it runs: it delays each direction,
//! stalls or cuts everything, and cuts connections at the answer to a COMMIT.
//!
//! Delayed bytes stand in a queue with the time at which they are due, so that a delay costs
//! latency and no throughput, as on a real network. The answers of the server are split into
//! messages of its protocol only as far as it takes to find the answer to a COMMIT.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use runbell::clock::{Clock, later};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod protocol;

use protocol::{Answers, Requests};

/// The faults that apply to every connection, old and new.
struct Faults {
    clock: Clock,
    /// Towards the server, and back.
    delays: Mutex<(Duration, Duration)>,
    is_stalled: watch::Sender<bool>,
    is_cut: watch::Sender<bool>,
    /// How probable it is that the answer to a COMMIT is lost, and the chance that decides.
    losing: Mutex<(f64, fastrand::Rng)>,
    lost_commits: AtomicUsize,
}

impl Faults {
    /// Decides whether the answer to this COMMIT is lost, and counts it if so.
    fn loses_this_commit(&self) -> bool {
        let mut losing = self.losing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_lost = losing.1.f64() < losing.0;
        self.lost_commits
            .fetch_add(usize::from(is_lost), Ordering::Relaxed);
        is_lost
    }
}

/// A proxy on a port of the loopback; it ends when this is dropped.
pub struct Proxy {
    pub port: u16,
    faults: Arc<Faults>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts one before the server on this port, without any fault.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::new(Faults {
            clock: Clock::system(),
            delays: Mutex::default(),
            is_stalled: watch::Sender::new(false),
            is_cut: watch::Sender::new(false),
            losing: Mutex::new((0.0, fastrand::Rng::with_seed(0))),
            lost_commits: AtomicUsize::default(),
        });
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&faults);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                connections.spawn(connect(near, server, Arc::clone(&shared)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            port,
            faults,
            _tasks: tasks,
        }
    }

    /// Delays whatever comes from now on, by so much towards the server and so much back.
    pub fn delay(&self, to_server: Duration, to_client: Duration) {
        *self.faults.delays.lock().unwrap() = (to_server, to_client);
    }

    /// Holds all bytes back, in both directions, and loses none.
    pub fn stall(&self) {
        self.faults.is_stalled.send_replace(true);
    }

    /// Lets flow again what was held back.
    pub fn resume(&self) {
        self.faults.is_stalled.send_replace(false);
    }

    /// Cuts all connections, and each new one at once.
    pub fn cut(&self) {
        self.faults.is_cut.send_replace(true);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.faults.is_cut.send_replace(false);
    }

    /// Cuts a connection at the answer to a COMMIT with this probability: the server has committed,
    /// and the client never hears of it. Zero ends that.
    pub fn lose_commits(&self, probability: f64, seed: u64) {
        *self.faults.losing.lock().unwrap() = (probability, fastrand::Rng::with_seed(seed));
    }

    /// Counts the answers that were lost so far: a test shows with it that its fault was injected.
    pub fn lost_commits(&self) -> usize {
        self.faults.lost_commits.load(Ordering::Relaxed)
    }
}

/// Joins a client to the server until either ends, or a fault ends both.
async fn connect(near: TcpStream, server: u16, faults: Arc<Faults>) {
    let mut is_cut = faults.is_cut.subscribe();
    let ended = CancellationToken::new();
    let joined = async {
        let Ok(far) = TcpStream::connect(("127.0.0.1", server)).await else {
            return;
        };
        for stream in [&near, &far] {
            // Otherwise Nagle's algorithm would add delays that nobody asked for.
            let _ = stream.set_nodelay(true);
        }
        let (from_client, to_client) = near.into_split();
        let (from_server, to_server) = far.into_split();
        let bare_bytes = Arc::new(AtomicUsize::default());
        let requests = Way::new(&faults, &ended, Towards::Server);
        let answers = Way::new(&faults, &ended, Towards::Client);
        tokio::join!(
            requests.carry(
                from_client,
                to_server,
                Requests::new(Arc::clone(&bare_bytes))
            ),
            answers.carry(from_server, to_client, Answers::new(bare_bytes)),
        );
    };
    tokio::select! {
        () = joined => {}
        () = ended.cancelled() => {}
        // The sender lives as long as `faults`, which this function holds.
        _ = is_cut.wait_for(|is_cut| *is_cut) => {}
    }
}

/// Splits the bytes of one direction into pieces, of which some may be lost.
trait Split {
    /// Takes what was read and gives what can be passed on; whether a piece answers a COMMIT.
    fn push(&mut self, bytes: &[u8]) -> Vec<(Vec<u8>, bool)>;
}

impl Split for Requests {
    fn push(&mut self, bytes: &[u8]) -> Vec<(Vec<u8>, bool)> {
        self.look(bytes);
        vec![(bytes.to_owned(), false)]
    }
}

impl Split for Answers {
    fn push(&mut self, bytes: &[u8]) -> Vec<(Vec<u8>, bool)> {
        self.split(bytes)
    }
}

#[derive(Clone, Copy)]
enum Towards {
    Server,
    Client,
}

/// One direction of one connection.
struct Way<'a> {
    faults: &'a Faults,
    ended: &'a CancellationToken,
    towards: Towards,
}

impl<'a> Way<'a> {
    fn new(faults: &'a Faults, ended: &'a CancellationToken, towards: Towards) -> Self {
        Self {
            faults,
            ended,
            towards,
        }
    }

    /// Passes bytes on until the sender has closed and everything queued is written.
    async fn carry(&self, from: OwnedReadHalf, to: OwnedWriteHalf, split: impl Split) {
        let (queue, queued) = mpsc::unbounded_channel();
        tokio::join!(self.read(from, queue, split), self.write(queued, to));
    }

    /// Puts what comes into the queue. `None` stands for the place where the connection is cut, so
    /// that whatever came before it arrives.
    async fn read(
        &self,
        mut from: OwnedReadHalf,
        queue: mpsc::UnboundedSender<(Timestamp, Option<Vec<u8>>)>,
        mut split: impl Split,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let delays = *self.faults.delays.lock().unwrap();
            let delay = match self.towards {
                Towards::Server => delays.0,
                Towards::Client => delays.1,
            };
            let due = later(self.faults.clock.now(), delay);
            for (piece, is_commit) in split.push(&buffer[..count]) {
                let is_lost = is_commit && self.faults.loses_this_commit();
                // The other end is gone when the writer is; then there is nobody to tell.
                let _ = queue.send((due, (!is_lost).then_some(piece)));
                if is_lost {
                    return;
                }
            }
        }
    }

    async fn write(
        &self,
        mut queued: mpsc::UnboundedReceiver<(Timestamp, Option<Vec<u8>>)>,
        mut to: OwnedWriteHalf,
    ) {
        let mut is_stalled = self.faults.is_stalled.subscribe();
        while let Some((due, piece)) = queued.recv().await {
            self.faults.clock.sleep_until(due).await;
            let _ = is_stalled.wait_for(|is_stalled| !*is_stalled).await;
            let Some(piece) = piece else {
                self.ended.cancel();
                return;
            };
            if to.write_all(&piece).await.is_err() {
                self.ended.cancel();
                return;
            }
        }
        // Says to the other end that nothing more comes, as its peer did.
        let _ = to.shutdown().await;
    }
}

#[cfg(test)]
mod tests;
