//! What a server hears of a mail whose permit ends before, within or between transactions.

use std::sync::Arc;

use super::*;

/// A permit that is given so many times.
fn permit(times: usize) -> Permit {
    let left = AtomicUsize::new(times);
    Permit::new(move || {
        let took = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
        took.is_ok()
    })
}

/// The verdict on one mail under a permit that is given so many times.
async fn send_under(sink: &Email, times: usize) -> (Verdict, Permit) {
    let permit = permit(times);
    let notice = notice("i-1");
    let mut verdicts = sink.send(std::slice::from_ref(&notice), &permit).await;
    (verdicts.remove(0), permit)
}

#[tokio::test]
async fn permit_is_asked_before_the_sender_and_before_the_mail() {
    for (times, mail_from, data) in [(0, 0, 0), (1, 1, 1), (2, 1, 1)] {
        let server = Server::start(|_| Usual).await;
        let (sink, _) = server.sink();
        let (verdict, permit) = send_under(&sink, times).await;
        assert_eq!(server.connections(), 1, "connecting needs no permit");
        let said = (server.said("MAIL"), server.said("DATA"));
        assert_eq!(said, (mail_from, data), "{times}");
        assert_eq!(permit.is_refused(), times < 2, "{times}: {verdict:?}");
        assert_eq!(permit.has_begun(), times > 0);
        let mails = server.mails().into_iter();
        let whole = mails.filter(|mail| !mail.is_empty()).count();
        assert_eq!(whole, usize::from(times == 2), "{times}");
        // The connection of a mail that was held back is not used for the next.
        assert_eq!(send(&sink, &notice("i-2")).await.word(), "sent");
    }
}

#[tokio::test]
async fn permit_is_asked_for_a_mail_on_a_connection_that_is_open() {
    let server = Server::start(|_| Usual).await;
    let (sink, _) = server.sink();
    assert_eq!(send(&sink, &notice("i-1")).await.word(), "sent");
    let (_, permit) = send_under(&sink, 0).await;
    assert!(permit.is_refused() && !permit.has_begun());
    assert_eq!(server.said("MAIL"), 1);
    assert_eq!(send(&sink, &notice("i-2")).await.word(), "sent");
    assert_eq!(server.mails().len(), 2);
}

#[tokio::test]
async fn permit_is_asked_again_for_the_plain_form_of_a_refused_mail() {
    let turns = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |command| match command {
        "." if turns.fetch_add(1, Ordering::Relaxed) == 0 => This("554 5.7.1 spam"),
        _ => Usual,
    })
    .await;
    let (sink, _) = server.sink();
    let (_, permit) = send_under(&sink, 2).await;
    assert!(permit.is_refused() && permit.has_begun());
    assert_eq!((server.said("MAIL"), server.mails().len()), (1, 1));
}
