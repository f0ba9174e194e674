//! What was begun and not ended: a send that is given up, a service that is stopped in mid-send.

use std::sync::Arc;

use runbell::clock::Clock;
use serde_json::Value;

use crate::harness::app::{Runbell, Setup, until};
use crate::harness::sns::Sns;
use crate::harness::store::folder;
use crate::sinks::{CASES, Service, failed, open, send};

#[tokio::test]
async fn a_send_that_is_given_up_leaves_a_sink_that_works() {
    for case in &CASES {
        let service = Service::start().await;
        let sink = open(case, &service.base, "");
        let notice = failed("i-1", "d");
        {
            let sending = send(&*sink, &notice);
            tokio::pin!(sending);
            let asked = until("the call", async || {
                (!service.asked().is_empty()).then_some(())
            });
            tokio::select! {
                verdict = &mut sending => panic!("{}: {verdict:?}", case.kind),
                () = asked => {}
            }
        }
        service.will_answer(case.sent.0, case.sent.1);
        assert_eq!(send(&*sink, &notice).await.word(), "sent", "{}", case.kind);
    }
}

#[tokio::test]
async fn a_stop_in_mid_send_loses_nothing_and_what_goes_again_says_so() {
    let service = Service::start().await;
    let sns = Sns::start().await;
    let folder = Arc::new(folder());
    std::fs::write(folder.path().join("url"), format!("{}/hook", service.base)).unwrap();
    let setup = Setup {
        routes: "[sink.hook]\ntype = 'webhook'\nurl = { file = 'url' }\n\
                 http = { allow_private = true, timeout = '60s' }\n\
                 [[route]]\nname = 'all'\nto = ['hook']\norder = 'topic'\nhold = '0s'\n"
            .to_owned(),
        server: "drain = '1s'\ngap_hold = '0s'".to_owned(),
        ..Setup::default()
    };
    let runbell = Runbell::start_in(folder, &sns, setup.clone()).await;
    let now = Clock::system().now();
    for id in ["m-1", "m-2"] {
        assert_eq!(runbell.post(sns.status(id, id, "Failed", now)).await, 200);
    }
    // The first hangs; the second waits for its turn, leased with it or not: if it was, nobody can
    // tell afterwards that it was never sent.
    let begun = until("the call", async || service.asked().pop()).await;
    let folder = runbell.stop().await;
    for _ in 0..2 {
        service.will_answer(204, "");
    }
    let again = Runbell::start_in(folder, &sns, setup).await;
    let mut asked = Vec::new();
    until("both", async || {
        asked.extend(service.asked());
        (asked.len() >= 2).then_some(())
    })
    .await;
    let told: Vec<_> = asked
        .iter()
        .map(|it| (&it.body["message_id"], &it.body["marks"]))
        .collect();
    let is_repeat = |marks: &Value| {
        marks
            .as_array()
            .unwrap()
            .contains(&"possible-repeat".into())
    };
    assert_eq!((told[0].0, told[1].0), (&"m-1".into(), &"m-2".into()));
    assert!(is_repeat(told[0].1), "it may have arrived: {told:?}");
    assert_eq!(begun.body["id"], asked[0].body["id"], "its id is the same");
    until("the settlement", async || {
        let (_, tally) = again.admin("/api/v1/tally").await;
        let tally: Value = serde_json::from_str(&tally).unwrap();
        (tally["sinks"][0]["sent"] == 2).then_some(())
    })
    .await;
}
