//! A lease that ends while a sink waits: for its pace, for a connection, for the answer to an earlier
//! call. Servers on the loopback count what reaches them.

use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use openssl::ssl::{Ssl, SslAcceptor, SslFiletype, SslMethod};
use runbell::clock::Clock;
use runbell::deliver::{Surroundings, Worker};
use runbell::delivery::LaneKey;
use runbell::metrics::Metrics;
use runbell::render::Notice;
use runbell::retry::Verdict;
use runbell::route::Routes;
use runbell::sink::{Capacity, Permit, Sink};
use runbell::store::Append;
use runbell::wake::Wake;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

use crate::harness::app::write_certificate;
use crate::harness::store::{On, TestStore, folder};
use crate::sinks::{CASES, Case, Service, failed, open, open_at, send};
use crate::store::{at, event, owed};
use crate::threads::{THREADED, digest};

const DAY: Duration = Duration::from_hours(24);
const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// A permit that is given so many times.
fn permit(times: usize) -> Permit {
    let asked = AtomicUsize::new(0);
    Permit::new(move || asked.fetch_add(1, Ordering::Relaxed) < times)
}

async fn send_under(sink: &dyn Sink, notice: &Notice, permit: &Permit) -> Vec<Verdict> {
    sink.send(std::slice::from_ref(notice), permit).await
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    (listener, base)
}

/// Reads one request, head and body: the text of it, or what came of it before the end.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    loop {
        let shown = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = shown.split_once("\r\n\r\n")
            && length(head).is_some_and(|length| body.len() >= length)
        {
            return shown;
        }
        if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
            return shown;
        }
    }
}

/// The length that a head says its body has.
fn length(head: &str) -> Option<usize> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let (_, length) = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    length.parse().ok()
}

#[tokio::test]
async fn permit_that_is_refused_leaves_a_connection_without_a_byte() {
    let (listener, base) = listener().await;
    let sink = open(&CASES[0], &base, "");
    let (notice, permit) = (failed("i-1", "d"), permit(0));
    let heard = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        // The end comes when the sink drops the connection; a reset would be no answer to the question.
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let (verdicts, heard) = tokio::join!(send_under(&*sink, &notice, &permit), heard);
    assert_eq!(heard, b"", "{}", String::from_utf8_lossy(&heard));
    assert!(permit.is_refused() && !permit.has_begun(), "{verdicts:?}");
}

#[tokio::test]
async fn permit_that_is_refused_leaves_a_tls_connection_without_a_byte() {
    let folder = folder();
    write_certificate(folder.path(), "localhost");
    let acceptor = acceptor(folder.path());
    let (listener, base) = listener().await;
    let base = base.replace("http://127.0.0.1", "https://localhost");
    let ca = format!("ca = '{}'", folder.path().join("tls.crt").display());
    let sink = open(&CASES[0], &base, &ca);
    for times in [0, 1] {
        let (notice, permit) = (failed("i-1", "d"), permit(times));
        let heard = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut stream = SslStream::new(Ssl::new(acceptor.context()).unwrap(), tcp).unwrap();
            Pin::new(&mut stream).accept().await.unwrap();
            let heard = request(&mut stream).await;
            // Nobody may listen any more.
            let _ = stream.write_all(ANSWER).await;
            heard
        };
        let (verdicts, heard) = tokio::join!(send_under(&*sink, &notice, &permit), heard);
        assert_eq!(heard.is_empty(), times == 0, "{heard}");
        assert_eq!(permit.is_refused(), times == 0, "{verdicts:?}");
    }
}

fn acceptor(folder: &Path) -> SslAcceptor {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor
        .set_private_key_file(folder.join("tls.key"), SslFiletype::PEM)
        .unwrap();
    acceptor
        .set_certificate_chain_file(folder.join("tls.crt"))
        .unwrap();
    acceptor.build()
}

#[tokio::test]
async fn permit_that_is_given_lets_the_whole_call_pass_with_its_length() {
    for document in ["d".to_owned(), "x".repeat(60_000)] {
        let (listener, base) = listener().await;
        let sink = open(&CASES[0], &base, "");
        let (notice, permit) = (failed("i-1", &document), permit(1));
        let heard = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let heard = request(&mut stream).await;
            stream.write_all(ANSWER).await.unwrap();
            heard
        };
        let (verdicts, heard) = tokio::join!(send_under(&*sink, &notice, &permit), heard);
        assert_eq!(verdicts[0].word(), "sent", "{verdicts:?}");
        assert!(permit.has_begun() && !permit.is_refused());
        let (head, body) = heard.split_once("\r\n\r\n").unwrap();
        assert_eq!(length(head), Some(body.len()), "{head}");
        let head = head.to_ascii_lowercase();
        assert!(!head.contains("transfer-encoding"), "{head}");
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}

#[tokio::test]
async fn permit_is_asked_for_each_call_on_a_connection_that_is_open() {
    let (listener, base) = listener().await;
    let sink = open(&CASES[0], &base, "");
    let (notice, first, second) = (failed("i-1", "d"), permit(1), permit(0));
    let heard = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(!request(&mut stream).await.is_empty());
        stream.write_all(ANSWER).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest
    };
    let sending = async {
        let verdicts = send_under(&*sink, &notice, &first).await;
        assert_eq!(verdicts[0].word(), "sent", "{verdicts:?}");
        send_under(&*sink, &notice, &second).await
    };
    let (verdicts, rest) = tokio::join!(sending, heard);
    assert_eq!(rest, b"", "{verdicts:?}");
    assert!(second.is_refused() && !second.has_begun());
}

/// Answers one call on each of so many connections, and closes it without a word.
async fn hang_up_after_each(listener: TcpListener, many: usize) -> usize {
    let mut whole = 0;
    for _ in 0..many {
        let (mut stream, _) = listener.accept().await.unwrap();
        whole += usize::from(request(&mut stream).await.ends_with('}'));
        stream.write_all(ANSWER).await.unwrap();
        stream.shutdown().await.unwrap();
        wait_for_end(&mut stream).await;
    }
    whole
}

async fn wait_for_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(
        rest, b"",
        "nothing is sent on a connection that was given up"
    );
}

#[tokio::test]
async fn a_connection_that_the_service_closed_costs_no_notice() {
    let (listener, base) = listener().await;
    let sink = open(&CASES[0], &base, "");
    let notice = failed("i-1", "d");
    let sending = async {
        for number in 0..20 {
            let verdict = send(&*sink, &notice).await;
            assert_eq!(verdict.word(), "sent", "{number}: {verdict:?}");
            // The end of the connection is there before the next call begins, as it is on any day.
            tokio::task::yield_now().await;
        }
    };
    let ((), whole) = tokio::join!(sending, hang_up_after_each(listener, 20));
    assert_eq!(whole, 20);
}

#[tokio::test]
async fn a_lease_that_ends_in_the_wait_for_the_pace_sends_nothing() {
    let paced = |case: &&Case| ["teams", "discord", "telegram"].contains(&case.kind);
    for case in CASES.iter().filter(paced) {
        let clock = Clock::by_hand("2026-11-23T10:00:00Z".parse().unwrap());
        let service = Service::start().await;
        let sink = open_at(&clock, case, &service.base, "");
        let held = Arc::new(AtomicBool::new(true));
        let notice = failed("i-1", "d");
        let mut sent = 0;
        loop {
            service.will_answer(case.sent.0, case.sent.1);
            let asked = Arc::clone(&held);
            let permit = Permit::new(move || asked.load(Ordering::Relaxed));
            let sending = send_under(&*sink, &notice, &permit);
            tokio::pin!(sending);
            let waits = async {
                while !clock.is_awaited() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                verdicts = &mut sending => {
                    assert_eq!(verdicts[0].word(), "sent", "{}: {verdicts:?}", case.kind);
                    sent += 1;
                    assert!(sent < 100, "{} has no pace", case.kind);
                    continue;
                }
                () = waits => {}
            }
            assert!(!permit.has_begun() && !permit.is_refused(), "it only waits");
            held.store(false, Ordering::Relaxed);
            clock.advance(Duration::from_mins(1));
            sending.await;
            assert!(permit.is_refused() && !permit.has_begun(), "{}", case.kind);
            break;
        }
        assert_eq!(service.asked().len(), sent, "{}", case.kind);
    }
}

#[tokio::test]
async fn a_lease_that_ends_between_the_edit_and_the_post_leaves_the_post() {
    for it in &THREADED {
        let service = Service::start().await;
        let sink = open(it.case, &service.base, "");
        service.will_answer(it.case.sent.0, it.case.sent.1);
        let permit = permit(1);
        let verdicts = send_under(&*sink, &digest(true, Some(it.message)), &permit).await;
        let kind = it.case.kind;
        assert!(permit.is_refused() && permit.has_begun(), "{kind}");
        assert!(!verdicts.iter().any(Verdict::may_have_arrived), "{kind}");
        let asked = service.asked();
        assert_eq!(asked.len(), 1, "{kind}");
        assert!((it.is_edit)(&asked[0]), "{kind}");
    }
}

#[tokio::test]
async fn a_lease_that_ends_before_the_second_try_as_plain_text_leaves_it() {
    let service = Service::start().await;
    let discord = CASES.iter().find(|case| case.kind == "discord").unwrap();
    let sink = open(discord, &service.base, "");
    for times in [1, 2] {
        service.will_answer(400, "{}");
        service.will_answer(discord.sent.0, discord.sent.1);
        let permit = permit(times);
        send_under(&*sink, &failed("i-1", "d"), &permit).await;
        assert_eq!(service.asked().len(), times);
        assert_eq!(permit.is_refused(), times == 1);
        if times == 1 {
            // The answer that nobody asked for.
            assert_eq!(send(&*sink, &failed("i-1", "d")).await.word(), "sent");
            service.asked();
        }
    }
}

/// A sink that waits for a day before each notice but the first of a send.
struct Slow {
    clock: Clock,
    told: Mutex<Vec<String>>,
}

#[async_trait]
impl Sink for Slow {
    fn capacity(&self) -> Capacity {
        Capacity {
            per_send: 10,
            at_once: 1,
        }
    }

    async fn send(&self, notices: &[Notice], permit: &Permit) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for notice in notices {
            if !verdicts.is_empty() {
                self.clock.advance(DAY);
            }
            if !permit.begin() {
                break;
            }
            self.told.lock().unwrap().push(notice.id.clone());
            verdicts.push(Verdict::Sent { remote_id: None });
        }
        verdicts
    }
}

async fn lease_that_ends_within_a_load_settles_what_was_sent(on: On) {
    let clock = Clock::by_hand(at(10));
    let test = TestStore::open_on_at(on, clock.clone()).await;
    let store = test.handle();
    store.beat().await.unwrap();
    let sink = Arc::new(Slow {
        clock: clock.clone(),
        told: Mutex::default(),
    });
    let around = Surroundings {
        lanes: store.clone(),
        routes: Arc::new(ArcSwap::from_pointee(Routes::new(Vec::new()))),
        clock: clock.clone(),
        metrics: Arc::new(Metrics::new()),
    };
    let worker = Worker::new("s", sink.clone(), Wake::default(), around);
    for second in 0..3 {
        let event = event(&format!("m-{second}"), "i-1", "InProgress", second);
        let owed = vec![owed(&event, "s", LaneKey::Topic, 0)];
        let append = Append::new(event, owed, at(second));
        store.append(append).await.unwrap();
    }
    worker.step().await.unwrap();
    assert_eq!(sink.told.lock().unwrap().len(), 1);
    let tally = &store.tally().await.unwrap()[0];
    assert_eq!((tally.owed, tally.sent, tally.dead), (3, 1, 0), "{tally:?}");
    // The next holder finds the rest, as nobody had tried it.
    let leased = store.lease("s", store.clock().now(), 10).await.unwrap();
    let waiting = leased.lanes.iter().flat_map(|lane| &lane.waiting);
    let tries: Vec<_> = waiting.map(|it| (it.tries, it.possible_repeat)).collect();
    assert_eq!(tries, [(0, false), (0, false)]);
}

crate::on_both! {
    lease_that_ends_within_a_load_settles_what_was_sent,
}
