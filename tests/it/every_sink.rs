//! What holds for every kind of sink, whatever it speaks: a service over HTTP, mail, a program, a file.
//! What each makes of its own answers stands in `sinks`, and beside the sinks themselves.

use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use runbell::clock::Clock;
use runbell::config::{Config, Surroundings};
use runbell::render::Notice;
use runbell::retry::Verdict;
use runbell::sink::http::Paces;
use runbell::sink::{Permit, Sink};
use tokio::task::JoinSet;

use crate::fleet::{Inbox, post_office};
use crate::harness::store::folder;
use crate::sinks::{Service, failed, send};

const SECRET: &str = "s3cr3t-of-the-sink";
const KINDS: [&str; 4] = ["http", "mail", "program", "file"];

/// A sink and the place where its notices arrive.
struct Place {
    kind: &'static str,
    sink: Arc<dyn Sink>,
    folder: tempfile::TempDir,
    service: Service,
    inbox: Arc<Inbox>,
    _tasks: JoinSet<()>,
}

impl Place {
    /// One that works, or one that leads to where nothing is.
    async fn open(kind: &'static str, works: bool) -> Self {
        let folder = folder();
        let service = Service::start().await;
        let clock = Clock::system();
        let inbox = Inbox::new(&clock, 1000, 1);
        let mut tasks = JoinSet::new();
        let port = post_office(Arc::clone(&inbox), &mut tasks).await;
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = nobody.local_addr().unwrap().port();
        drop(nobody);
        std::fs::write(folder.path().join("in-the-way"), "").unwrap();
        let settings = match (kind, works) {
            ("http", true) => "type = 'webhook'\nurl = { env = 'URL' }".to_owned(),
            ("http", false) => "type = 'webhook'\nurl = { env = 'CLOSED' }".to_owned(),
            ("mail", _) => format!(
                "type = 'email'\nsmtp = 'smtp+plain://127.0.0.1:{}'\n\
                 from = 'runbell@example.com'\nto = ['ann@example.com']",
                if works { port } else { closed }
            ),
            ("program", true) => {
                "type = 'exec'\ncommand = ['/usr/bin/tee', '-a', 'OUT']".to_owned()
            }
            ("program", false) => "type = 'exec'\ncommand = ['GONE']".to_owned(),
            (_, true) => "type = 'file'\npath = 'OUT'".to_owned(),
            (_, false) => "type = 'file'\npath = 'in-the-way/OUT'".to_owned(),
        };
        let out = folder.path().join("out");
        let settings = settings.replace("'OUT'", &format!("'{}'", out.display()));
        // A program that is there when the settings are read, and not when it is to run.
        let gone = folder.path().join("gone");
        std::fs::copy("/bin/true", &gone).unwrap();
        let settings = settings.replace("'GONE'", &format!("'{}'", gone.display()));
        let http = if kind == "http" {
            "http = { allow_private = true }"
        } else {
            ""
        };
        let text = format!(
            "[server]\nlisten = '127.0.0.1:0'\n[store]\nurl = 'sqlite:x.db'\n\
             [[topic]]\narn = 'arn:aws:sns:eu-central-1:123456789012:run-command'\n\
             [[route]]\nname = 'r'\nto = ['s']\n[sink.s]\n{settings}\n{http}\n"
        );
        let base = service.base.clone();
        let variable = |name: &str| {
            let base = if name == "URL" {
                base.clone()
            } else {
                format!("http://127.0.0.1:{closed}")
            };
            Some(format!("{base}/{SECRET}"))
        };
        let around = Surroundings {
            folder: folder.path(),
            variable: &variable,
        };
        let parsed = Config::parse(&text, Path::new("runbell.toml"), &around);
        let (config, _) = parsed.unwrap_or_else(|faults| panic!("{faults}"));
        std::fs::remove_file(&gone).unwrap();
        for _ in 0..10 {
            service.will_answer(204, "");
        }
        Self {
            kind,
            sink: config.sinks[0].open(&clock, &mut Paces::default()),
            folder,
            service,
            inbox,
            _tasks: tasks,
        }
    }

    /// What has arrived since it was asked last, one text for each notice.
    fn arrived(&self) -> Vec<String> {
        match self.kind {
            "http" => {
                let asked = self.service.asked().into_iter();
                asked.map(|asked| asked.body.to_string()).collect()
            }
            "mail" => {
                let mails = std::mem::take(&mut *self.inbox.taken.lock().unwrap());
                mails.into_iter().map(|(_, mail)| mail).collect()
            }
            _ => {
                let out = self.folder.path().join("out");
                let text = std::fs::read_to_string(&out).unwrap_or_default();
                if self.kind == "program" {
                    std::fs::write(&out, "").unwrap();
                }
                text.lines().map(str::to_owned).collect()
            }
        }
    }
}

#[tokio::test]
async fn what_is_sent_arrives_and_says_what_and_where() {
    for kind in KINDS {
        let place = Place::open(kind, true).await;
        let notice = failed("i-0abc", "AWS-RunShellScript");
        let verdict = send(&*place.sink, &notice).await;
        assert_eq!(verdict.word(), "sent", "{kind}: {verdict:?}");
        let arrived = place.arrived();
        assert_eq!(arrived.len(), 1, "{kind}");
        for part in ["Failed", "i-0abc", "AWS-RunShellScript", &notice.id] {
            assert!(
                arrived[0].contains(part),
                "{kind}: {part} in {}",
                arrived[0]
            );
        }
        let preview = place.sink.preview(&notice);
        assert!(
            preview.contains("i-0abc") && !preview.contains(SECRET),
            "{preview}"
        );
    }
}

#[tokio::test]
async fn a_sink_that_leads_nowhere_says_so_and_says_no_secret() {
    for kind in KINDS {
        let place = Place::open(kind, false).await;
        for _ in 0..2 {
            let verdict = send(&*place.sink, &failed("i-1", "d")).await;
            let shown = format!("{verdict:?}");
            assert!(verdict.is_of_the_sink(), "{kind}: {shown}");
            assert!(!shown.contains(SECRET), "{kind}: {shown}");
        }
        assert_eq!(place.arrived(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn whatever_stands_in_a_message_it_stays_one_notice() {
    let long = "x".repeat(60_000);
    let evil = "日本 🔥 é\r\nBcc: x@example.com\r\n.\r\n{\"a\": 1}\n\u{2028}\u{0}\u{1b}[31m";
    for kind in KINDS {
        for document in [&*long, evil] {
            let place = Place::open(kind, true).await;
            let verdict = send(&*place.sink, &failed("i-0abc", document)).await;
            assert_eq!(verdict.word(), "sent", "{kind}: {verdict:?}");
            let arrived = place.arrived();
            assert_eq!(arrived.len(), 1, "{kind}: {arrived:?}");
            assert!(!arrived[0].contains("\nBcc:"), "{kind}: {}", arrived[0]);
            assert!(!arrived[0].contains('\u{1b}'), "{kind}: {}", arrived[0]);
            assert!(arrived[0].contains("i-0abc"), "{kind}");
        }
    }
}

#[tokio::test]
async fn a_notice_has_one_id_however_often_it_is_sent() {
    for kind in ["http", "mail", "program"] {
        let place = Place::open(kind, true).await;
        let notice = failed("i-1", "d");
        for _ in 0..2 {
            assert_eq!(send(&*place.sink, &notice).await.word(), "sent", "{kind}");
        }
        let arrived = place.arrived();
        assert_eq!(arrived.len(), 2, "{kind}");
        assert!(
            arrived.iter().all(|text| text.contains(&notice.id)),
            "{kind}"
        );
    }
    // A file looks back, and writes what may be there already no second time.
    let place = Place::open("file", true).await;
    for _ in 0..2 {
        let verdict = send(&*place.sink, &failed("i-1", "d")).await;
        assert_eq!(verdict.word(), "sent");
    }
    assert_eq!(place.arrived().len(), 1);
}

#[tokio::test]
async fn a_send_that_is_given_up_leaves_every_sink_working() {
    for kind in KINDS {
        let place = Place::open(kind, true).await;
        let first = failed("i-1", "d");
        let always = Permit::always();
        // Begun, and dropped at the first wait.
        let begun = place
            .sink
            .send(std::slice::from_ref(&first), &always)
            .now_or_never();
        drop(begun);
        let second = Notice {
            id: "another".to_owned(),
            ..failed("i-2", "d")
        };
        let verdict = send(&*place.sink, &second).await;
        assert_eq!(verdict.word(), "sent", "{kind}: {verdict:?}");
        let arrived = place.arrived();
        assert!(
            arrived.iter().any(|text| text.contains("i-2")),
            "{kind}: {arrived:?}"
        );
    }
}

#[tokio::test]
async fn permit_that_is_refused_keeps_every_kind_from_sending() {
    for kind in KINDS {
        let place = Place::open(kind, true).await;
        let notice = failed("i-1", "d");
        let permit = Permit::new(|| false);
        let verdicts = place.sink.send(std::slice::from_ref(&notice), &permit);
        let verdicts = verdicts.await;
        assert!(permit.is_refused() && !permit.has_begun(), "{kind}");
        let is_sent = |it: &Verdict| it.may_have_arrived();
        assert!(!verdicts.iter().any(is_sent), "{kind}: {verdicts:?}");
        assert_eq!(place.arrived(), Vec::<String>::new(), "{kind}");
        // The next lease is served as if nothing had been.
        let verdict = send(&*place.sink, &notice).await;
        assert_eq!(verdict.word(), "sent", "{kind}: {verdict:?}");
        assert_eq!(place.arrived().len(), 1, "{kind}");
    }
}
