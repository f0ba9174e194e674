//! Mail as a server sees it, and what becomes of each answer that it gives.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;

use secrecy::ExposeSecret as _;

use super::*;
use crate::secret::SecretText;
use crate::sink::record::tests::notice;

mod desk;
mod permit;

use desk::Say::{Echo, HangUp, Nothing, This, Usual};
use desk::Server;

fn checked(
    settings: &str,
    password: Option<SecretString>,
    folder: &Path,
) -> Result<Checked, Vec<Fault>> {
    let text = format!(
        "from = 'Runbell <runbell@example.com>'\n\
         to = ['Ann <a@example.com>', 'b@example.com', 'c@example.com']\n{settings}"
    );
    let mut settings: Settings = toml::from_str(&text).unwrap();
    settings.password = password.map(|it| SecretText::from(it.expose_secret()));
    settings.check(folder)
}

fn sink(settings: Checked) -> (Email, Clock) {
    let clock = Clock::by_hand("2026-11-23T10:00:00Z".parse().unwrap());
    (Email::new(settings, "oncall", clock.clone()), clock)
}

async fn send(sink: &Email, notice: &Notice) -> Verdict {
    let verdicts = sink
        .send(std::slice::from_ref(notice), &Permit::always())
        .await;
    assert_eq!(verdicts.len(), 1);
    verdicts.into_iter().next().unwrap()
}

fn why(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Sent { remote_id } => remote_id.clone().unwrap_or_default(),
        Verdict::Retry { why, .. }
        | Verdict::Refused { why, .. }
        | Verdict::Broken { why }
        | Verdict::Unknown { why } => why.clone(),
    }
}

/// The verdict in a word, with the scope of a retry and the reason of a refusal.
fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Retry {
            scope: Scope::Sink, ..
        } => "retry sink",
        Verdict::Refused { content: true, .. } => "refused content",
        other => other.word(),
    }
}

#[tokio::test]
async fn fifty_mails_go_over_one_connection() {
    let server = Server::start(|_| Usual).await;
    let (sink, clock) = server.sink();
    for number in 0..50 {
        let verdict = send(&sink, &notice(&format!("i-{number}"))).await;
        let queued = "250 2.0.0 queued as 4F1".to_owned();
        assert_eq!(
            verdict,
            Verdict::Sent {
                remote_id: Some(queued)
            }
        );
    }
    assert_eq!((server.connections(), server.mails().len()), (1, 50));
    assert_eq!(server.said("RCPT"), 150);
    clock.advance(Duration::from_mins(2));
    send(&sink, &notice("i-50")).await;
    assert_eq!(server.connections(), 2, "an old connection is not trusted");
    sink.reopen().await;
    send(&sink, &notice("i-51")).await;
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn mails_at_once_have_connections_of_their_own_and_share_them_later() {
    let server = Server::start(|_| Usual).await;
    let (sink, _) = server.sink();
    let notices = ["i-1", "i-2", "i-3", "i-4"].map(notice);
    for _ in 0..2 {
        let verdicts = join_all(notices.iter().map(|notice| send(&sink, notice))).await;
        assert!(verdicts.iter().all(|verdict| word(verdict) == "sent"));
    }
    assert_eq!((server.connections(), server.mails().len()), (4, 8));
    assert_eq!((sink.capacity().at_once, sink.capacity().per_send), (4, 1));
}

#[tokio::test]
async fn a_connection_that_the_server_gave_up_meanwhile_costs_nothing() {
    for late in [HangUp, This("421 4.4.2 too slow")] {
        let mails = AtomicUsize::new(0);
        let late = Mutex::new(Some(late));
        let server = Server::start(move |line| {
            let is_second = line.starts_with("MAIL") && mails.fetch_add(1, Ordering::SeqCst) == 1;
            if is_second {
                late.lock().unwrap().take().unwrap()
            } else {
                Usual
            }
        })
        .await;
        let (sink, _) = server.sink();
        for instance in ["i-1", "i-2"] {
            assert_eq!(word(&send(&sink, &notice(instance)).await), "sent");
        }
        assert_eq!((server.connections(), server.mails().len()), (2, 2));
    }
}

#[tokio::test]
async fn each_recipient_is_asked_until_it_has_it_or_is_refused() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |line| match line {
        "RCPT TO:<b@example.com>" if asked.fetch_add(1, Ordering::SeqCst) == 0 => {
            This("451 4.7.1 grey")
        }
        "RCPT TO:<c@example.com>" => This("550 5.1.1 nobody of that name"),
        _ => Usual,
    })
    .await;
    let (sink, _) = server.sink();
    let mut notice = notice("i-1");
    let first = send(&sink, &notice).await;
    let Verdict::Retry {
        why,
        scope: Scope::Notice,
        progress: Some(progress),
        ..
    } = first
    else {
        panic!("{first:?}");
    };
    assert_eq!(why, "b@example.com: 451 4.7.1 grey");
    notice.progress = Some(progress);
    let second = send(&sink, &notice).await;
    let refused = "refused c@example.com: 550 5.1.1 nobody of that name";
    let said = format!("250 2.0.0 queued as 4F1; {refused}");
    assert_eq!(
        second,
        Verdict::Sent {
            remote_id: Some(said)
        }
    );
    assert_eq!((server.said("RCPT"), server.mails().len()), (4, 2));
    for mail in server.mails() {
        assert!(
            mail.contains("To: Ann <a@example.com>, b@example.com"),
            "{mail}"
        );
    }
}

#[tokio::test]
async fn nobody_is_left_when_all_are_refused() {
    let server = Server::start(|line| match line {
        line if line.starts_with("RCPT") => This("550 5.7.1 not here"),
        _ => Usual,
    })
    .await;
    let (sink, _) = server.sink();
    for _ in 0..2 {
        let verdict = send(&sink, &notice("i-1")).await;
        assert_eq!(word(&verdict), "refused", "{verdict:?}");
        assert!(
            why(&verdict).starts_with("a@example.com: 550"),
            "{verdict:?}"
        );
    }
    assert_eq!((server.connections(), server.said("DATA")), (1, 0));
}

#[tokio::test]
async fn each_answer_has_its_verdict() {
    for (at, answer, expected, says) in [
        ("", "421 4.3.2 closed", "retry sink", "421 4.3.2"),
        ("", "554 5.3.2 go away", "retry sink", "554 5.3.2"),
        ("EHLO", "421 later", "retry sink", "421 later"),
        ("MAIL", "421 later", "retry sink", "421 later"),
        ("MAIL", "451 4.7.0 slowly", "retry sink", "451 4.7.0"),
        ("MAIL", "530 5.7.0 who are you", "broken", "sign in"),
        ("MAIL", "550 5.7.1 not you", "broken", "mend `from`"),
        ("RCPT", "421 later", "retry sink", "421 later"),
        ("RCPT", "452 too many", "retry", "452 too many"),
        ("RCPT", "nonsense", "retry sink", "127.0.0.1"),
        ("DATA", "452 full", "retry", "452 full"),
        ("DATA", "554 no", "refused content", "554 no"),
        ("DATA", "250 what", "retry sink", "DATA was answered"),
        (".", "421 later", "retry sink", "421 later"),
        (".", "451 4.3.0 filter", "retry", "451 4.3.0"),
        (".", "550 5.7.1 spam", "refused content", "550 5.7.1"),
        (".", "552 5.3.4 too large", "refused content", "552 5.3.4"),
        (".", "nonsense", "unknown", "no answer"),
    ] {
        let server = Server::start(move |line| {
            let is_it = line.split(' ').next() == Some(at);
            if is_it { This(answer) } else { Usual }
        })
        .await;
        let (sink, _) = server.sink();
        let verdict = send(&sink, &notice("i-1")).await;
        assert_eq!(word(&verdict), expected, "{at:?} {answer}: {verdict:?}");
        assert!(why(&verdict).contains(says), "{at:?} {answer}: {verdict:?}");
    }
}

#[tokio::test]
async fn what_a_filter_refuses_goes_again_as_little_else_than_its_title() {
    let is_first = AtomicBool::new(true);
    let server = Server::start(move |line| match line {
        "." if is_first.swap(false, Ordering::Relaxed) => This("554 5.7.1 looks like spam"),
        _ => Usual,
    })
    .await;
    let (sink, _) = server.sink();
    let verdict = send(&sink, &notice("i-1")).await;
    assert_eq!(word(&verdict), "sent", "{verdict:?}");
    let mails = server.mails();
    let [refused, taken] = mails.as_slice() else {
        panic!("{mails:?}");
    };
    assert!(refused.contains("text/html") && !taken.contains("text/html"));
    assert!(
        taken.contains("TimedOut: AWS-RunShellScript on i-1"),
        "{taken}"
    );
    assert!(taken.contains("https://eu-central-1.console") && taken.contains("(shortened)"));
    let id = |mail: &str| {
        let mut lines = mail.lines();
        lines
            .find(|line| line.starts_with("Message-ID"))
            .unwrap()
            .to_owned()
    };
    assert_eq!(id(refused), id(taken));
}

#[tokio::test]
async fn what_is_lost_after_the_dot_may_have_arrived() {
    for (at, is_slow, expected) in [
        ("", false, "retry sink"),
        ("RCPT", false, "retry sink"),
        ("DATA", false, "retry sink"),
        (".", false, "unknown"),
        ("RCPT", true, "retry sink"),
        (".", true, "unknown"),
    ] {
        let server = Server::start(move |line| match line.split(' ').next() == Some(at) {
            true if is_slow => Nothing,
            true => HangUp,
            false => Usual,
        })
        .await;
        let port = server.port;
        let text = format!("smtp = 'smtp+plain://127.0.0.1:{port}'\ntimeout = '1s'");
        let (sink, _) = sink(checked(&text, None, Path::new("/")).unwrap());
        let mut notice = notice("i-1");
        notice.progress = Some(r#"{"sent":["a@example.com"]}"#.to_owned());
        let verdict = send(&sink, &notice).await;
        assert_eq!(word(&verdict), expected, "{at:?} {is_slow}: {verdict:?}");
        if let Verdict::Retry { progress, .. } = verdict {
            assert!(progress.unwrap().contains("a@example.com"), "{at:?}");
        }
    }
}

#[tokio::test]
async fn nobody_there_is_the_sinks_trouble() {
    let settings = checked("smtp = 'smtp+plain://127.0.0.1:1'", None, Path::new("/"));
    let verdict = send(&sink(settings.unwrap()).0, &notice("i-1")).await;
    assert_eq!(word(&verdict), "retry sink", "{verdict:?}");
}

#[tokio::test]
async fn tls_is_used_both_ways_and_signed_in_within() {
    for (scheme, is_implicit) in [("smtp+starttls://ann@", false), ("smtps://ann@", true)] {
        let server = Server::with(Box::new(|_| Usual), is_implicit).await;
        let sink = server.sink_with(scheme);
        for _ in 0..2 {
            let verdict = send(&sink, &notice("i-1")).await;
            assert_eq!(word(&verdict), "sent", "{scheme}: {verdict:?}");
        }
        assert_eq!((server.connections(), server.said("AUTH")), (1, 1));
        let said = server.said.lock().unwrap().clone();
        let place = |verb: &str| said.iter().position(|line| line.starts_with(verb));
        assert_eq!(place("STARTTLS").is_some(), !is_implicit);
        assert!(place("STARTTLS") < place("AUTH"), "{said:?}");
    }
}

#[tokio::test]
async fn a_server_that_knows_only_login_is_told_in_two_words() {
    let server = Server::start(|line| match line {
        line if line.starts_with("EHLO") => This("250-test\r\n250-STARTTLS\r\n250 AUTH LOGIN"),
        "AUTH LOGIN" => This("334 VXNlcm5hbWU6"),
        "YW5u" => This("334 UGFzc3dvcmQ6"),
        "aHVudGVyMg==" => This("235 2.7.0 welcome"),
        _ => Usual,
    })
    .await;
    let verdict = send(&server.sink_with("smtp+starttls://ann@"), &notice("i-1")).await;
    assert_eq!(word(&verdict), "sent", "{verdict:?}");
}

#[tokio::test]
async fn tls_is_not_given_up() {
    for (script, expected, says) in [
        (("EHLO", "250 test"), "broken", "does not offer STARTTLS"),
        (("EHLO", "502 what"), "broken", "does not offer STARTTLS"),
        (("EHLO", "421 later"), "retry sink", "421 later"),
        (("STARTTLS", "454 not now"), "retry sink", "454 not now"),
        (("STARTTLS", "502 no"), "broken", "refuses STARTTLS"),
        (
            ("STARTTLS", "220 go\r\n250 AUTH PLAIN"),
            "retry sink",
            "somebody spoke",
        ),
        (("", "421 later"), "retry sink", "421 later"),
        (("", "nonsense"), "retry sink", "no SMTP server"),
    ] {
        let server = Server::start(move |line| {
            let is_it = line.split(' ').next() == Some(script.0);
            if is_it { This(script.1) } else { Usual }
        })
        .await;
        let verdict = send(&server.sink_with("smtp+starttls://ann@"), &notice("i-1")).await;
        assert_eq!(word(&verdict), expected, "{script:?}: {verdict:?}");
        assert!(why(&verdict).contains(says), "{script:?}: {verdict:?}");
        assert_eq!((server.said("AUTH"), server.said("MAIL")), (0, 0));
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_not_trusted() {
    let server = Server::start(|_| Usual).await;
    for host in ["localhost", "127.0.0.1"] {
        let text = format!("smtp = 'smtp+starttls://{host}:{}'", server.port);
        let (sink, _) = sink(checked(&text, None, Path::new("/")).unwrap());
        let verdict = send(&sink, &notice("i-1")).await;
        assert_eq!(word(&verdict), "retry sink", "{verdict:?}");
        assert!(why(&verdict).contains("not trusted"), "{verdict:?}");
    }
    assert_eq!(server.said("MAIL"), 0);
}

#[tokio::test]
async fn who_may_not_sign_in_is_told_without_the_password() {
    for (at, answer, expected, says) in [
        (
            "AUTH",
            This("535 5.7.8 no"),
            "broken",
            "does not let ann in: 535 5.7.8 no",
        ),
        ("AUTH", This("454 4.7.0 later"), "retry sink", "454 4.7.0"),
        ("AUTH", Echo, "broken", "repeats the password"),
        (
            "EHLO",
            This("250-test\r\n250 STARTTLS"),
            "broken",
            "nobody sign in",
        ),
    ] {
        let answer = Mutex::new(answer);
        let server = Server::start(move |line| {
            if line.split(' ').next() != Some(at) {
                return Usual;
            }
            match &*answer.lock().unwrap() {
                This(text) => This(text),
                _ => Echo,
            }
        })
        .await;
        let verdict = send(&server.sink_with("smtp+starttls://ann@"), &notice("i-1")).await;
        assert_eq!(word(&verdict), expected, "{verdict:?}");
        let why = why(&verdict);
        assert!(why.contains(says) && !why.contains("hunter2"), "{why}");
        assert!(
            !why.contains("aHVudGVyM") && !why.contains("AGFubgBodW50ZXIy"),
            "{why}"
        );
    }
}

#[test]
fn wrong_settings_are_named_all_at_once() {
    let text = "smtp = 'smtp://h'\nfrom = 'nobody'\nto = ['b@example.com', 'B@example.com', 'ä@b.c']\n\
                ca = '/no/such/file'\nconnections = 0\ntimeout = '1ms'";
    let settings: Settings = toml::from_str(text).unwrap();
    let faults = settings.check(Path::new("/")).unwrap_err();
    let places: Vec<_> = faults.iter().map(|fault| fault.path.join(".")).collect();
    let expected = ["smtp", "from", "to", "to", "ca", "connections", "timeout"];
    assert_eq!(places, expected, "{faults:?}");
    for (smtp, password, says) in [
        ("smtps://ann@h", None, "there is no password"),
        ("smtps://h", Some("hunter2"), "nobody signs in"),
        ("smtp+plain://ann@h", Some("hunter2"), "to everybody"),
        ("smtps://ann:hunter2@h", None, "no password belongs"),
    ] {
        let faults = checked(
            &format!("smtp = '{smtp}'"),
            password.map(Into::into),
            Path::new("/"),
        );
        let said = format!("{:?}", faults.unwrap_err());
        assert!(said.contains(says) && !said.contains("hunter2"), "{said}");
    }
    let plain = checked(
        "smtp = 'smtp+plain://ann@[::1]'",
        Some("hunter2".into()),
        Path::new("/"),
    );
    assert!(!format!("{plain:?}").contains("hunter2"));
    plain.unwrap();
}
