//! A database that is away, does not answer, or is not the one that was meant.

use std::time::Duration;

use runbell::store::postgres::{Postgres, Settings};
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::harness::app::until;
use crate::harness::postgres::Server;

/// Every process of the server gets the signal.
fn signal_all(server: &Server, signal: Signal) {
    let pid = std::fs::read_to_string(server.folder.join("data/postmaster.pid")).unwrap();
    let main: i32 = pid.lines().next().unwrap().parse().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap();
    let children = children.split_whitespace().map(|it| it.parse().unwrap());
    for pid in std::iter::once(main).chain(children) {
        // A child may have ended meanwhile.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
    }
}

fn append(number: usize) -> Append {
    let event = event(&format!("m-{number}"), "i-1", "Success", 1);
    let owed = vec![owed(&event, "s", LaneKey::Command, 0)];
    Append::new(event, owed, at(1))
}

#[tokio::test]
async fn a_database_that_hangs_or_crashes_is_noticed_and_found_again() {
    let server = Server::start(None, true);
    let schema = server.new_schema().await;
    let settings = server.settings(&schema, "r");
    let store = TestStore::open_with(&settings, schema, Clock::system()).await;
    let handle = store.handle();
    handle.append(append(0)).await.unwrap();
    let mut next = 1;
    for breaks in ["hangs", "crashes"] {
        if breaks == "hangs" {
            signal_all(&server, Signal::STOP);
        } else {
            server.crash();
        }
        // SNS would wait 15 s. What was on its way may be kept, and is known when it comes again.
        let refused = tokio::time::timeout(Duration::from_secs(12), async {
            loop {
                let answer = handle.append(append(next)).await;
                match answer {
                    Err(error) => break Some(error),
                    // It was back before we could ask.
                    Ok(_) if breaks == "crashes" => break None,
                    Ok(_) => next += 1,
                }
            }
        });
        let refused = refused.await.expect("it hung as long as the database did");
        if let Some(error) = refused {
            assert!(matches!(error, StoreError::Gone(_)), "{error:?}");
        }
        if breaks == "hangs" {
            until("the refusal to come at once", async || {
                let at_once = Duration::from_secs(1);
                let asked = tokio::time::timeout(at_once, handle.append(append(next))).await;
                matches!(asked, Ok(Err(StoreError::Gone(_)))).then_some(())
            })
            .await;
            signal_all(&server, Signal::CONT);
        }
        until("the database to be found again", async || {
            handle.beat().await.ok()?;
            handle.append(append(next)).await.ok()
        })
        .await;
        next += 1;
    }
    assert_eq!(
        handle.tally().await.unwrap()[0].owed,
        u64::try_from(next).unwrap()
    );
    let lanes = lease(&*handle, 100).await;
    let sent = lanes
        .into_iter()
        .map(|lane| settled(lane, &Outcome::Sent, 100));
    handle.settle(sent.collect()).await.unwrap();
    assert_sound(&*handle).await;
}

#[tokio::test]
async fn of_several_hosts_the_one_that_takes_writes_is_used() {
    let (follower, leader) = (Server::listening(&[]), Server::listening(&[]));
    for server in [&follower, &leader] {
        server.run("public", "CREATE SCHEMA shared").await;
    }
    let read_only = "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()";
    for statement in read_only.split("; ") {
        follower.run("public", statement).await;
    }
    until("the follower to refuse writes", async || {
        let said = follower
            .query("public", "SHOW default_transaction_read_only")
            .await;
        (said == ["on"]).then_some(())
    })
    .await;
    let nobody = crate::replicas::free_port();
    let url = format!(
        "postgres://runbell@127.0.0.1:{nobody},127.0.0.1:{},127.0.0.1:{}/postgres?options=-csearch_path%3Dshared",
        follower.port, leader.port
    );
    let settings = Settings::parse(&url, None, 4, "r".to_owned()).unwrap();
    let store = TestStore::open_with(&settings, "shared".to_owned(), Clock::system()).await;
    store.handle().append(append(1)).await.unwrap();
    let kept = leader.query("shared", "SELECT count(*) FROM event").await;
    assert_eq!(kept, ["1"]);
}

#[tokio::test]
async fn a_connection_is_as_trusted_as_its_settings_ask() {
    let folder = crate::harness::store::folder();
    crate::harness::app::write_certificate(folder.path(), "localhost");
    let certificate = std::fs::read_to_string(folder.path().join("tls.crt")).unwrap();
    let private_key = std::fs::read_to_string(folder.path().join("tls.key")).unwrap();
    let server = Server::listening(&[("server.crt", &certificate), ("server.key", &private_key)]);
    for statement in [
        "CREATE SCHEMA tls",
        "ALTER SYSTEM SET ssl_ca_file = 'server.crt'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
        "ALTER USER runbell PASSWORD 'p4ssw0rd'",
    ] {
        server.run("public", statement).await;
    }
    // From here on only with TLS and a password, by name alone.
    server.allow("hostssl all all 127.0.0.1/32 scram-sha-256\nlocal all all trust\n");
    let root = folder.path().join("tls.crt").display().to_string();
    crate::harness::app::write_certificate(folder.path(), "elsewhere");
    let stranger = folder.path().join("stranger.crt").display().to_string();
    std::fs::rename(&root, &stranger).unwrap();
    std::fs::write(&root, &certificate).unwrap();
    let open = async |host: &str, tls: &str, password: Option<&str>| {
        let url = format!(
            "postgres://runbell@{host}:{}/postgres?options=-csearch_path%3Dtls&{tls}",
            server.port
        );
        let password = password.map(SecretString::from);
        let settings = Settings::parse(&url, password.as_ref(), 2, "r".to_owned()).unwrap();
        let opened = Postgres::open(&settings, Terms::default(), &Clock::system()).await;
        opened
            .map(drop)
            .map_err(|error| runbell::fault::causes(&error))
    };
    let right = Some("p4ssw0rd");
    let full = format!("sslmode=verify-full&sslrootcert={root}");
    until("the server to speak TLS", async || {
        open("localhost", &full, right).await.ok()
    })
    .await;
    // The certificate is for `localhost` alone.
    let by_address = open("127.0.0.1", &full, right).await.unwrap_err();
    assert!(
        by_address.contains("certificate verify failed"),
        "{by_address}"
    );
    let authority = format!("sslmode=verify-ca&sslrootcert={root}");
    open("127.0.0.1", &authority, right).await.unwrap();
    open("127.0.0.1", "sslmode=require", right).await.unwrap();
    let strange = format!("sslmode=verify-full&sslrootcert={stranger}");
    let strange = open("localhost", &strange, right).await.unwrap_err();
    assert!(strange.contains("certificate verify failed"), "{strange}");
    let plain = open("localhost", "sslmode=disable", right)
        .await
        .unwrap_err();
    assert!(plain.contains("no encryption"), "{plain}");
    let wrong = open("localhost", &full, Some("wrong")).await.unwrap_err();
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    let missing = open("localhost", &full, None).await.unwrap_err();
    assert!(missing.contains("password missing"), "{missing}");
    let key = folder.path().join("client.key").display().to_string();
    std::fs::write(&key, &private_key).unwrap();
    server.allow("hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\nlocal all all trust\n");
    until("strangers to be refused", async || {
        let refused = open("localhost", &full, None).await.err()?;
        refused.contains("valid client certificate").then_some(())
    })
    .await;
    let known = format!("{full}&sslcert={root}&sslkey={key}");
    open("localhost", &known, None).await.unwrap();
    let mixed = open(
        "localhost",
        &format!("{full}&sslcert={stranger}&sslkey={key}"),
        None,
    )
    .await;
    assert!(mixed.unwrap_err().contains("`sslkey`"));
    let file = open("localhost", "sslmode=verify-full&sslrootcert=/none", right).await;
    assert!(
        file.unwrap_err()
            .contains("`sslrootcert` /none cannot be used")
    );
}
