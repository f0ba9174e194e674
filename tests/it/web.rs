//! The doors: what is answered, to whom, and for how long anybody may keep a connection.

use std::time::Duration;

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};
use runbell::clock::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::app::{Runbell, Setup, until, write_certificate};
use crate::harness::sns::Sns;

fn server(keys: &str) -> Setup {
    Setup {
        server: keys.to_owned(),
        ..Setup::default()
    }
}

/// Sends bytes as they are and reads until the other side closes.
async fn raw(runbell: &Runbell, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(runbell.hook).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn every_answer_is_one_of_few_and_says_nothing() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let good = sns.status("m-1", "i-1", "Success", Clock::system().now());
    let large = vec![b' '; 2 * 1024 * 1024 + 1];
    let request = |method: &str, path: &str| {
        runbell
            .http
            .request(method.parse().unwrap(), runbell.url(path))
    };
    for (name, request, status) in [
        ("good", request("POST", "/sns").body(good), 200),
        ("no envelope", request("POST", "/sns").body("{}"), 400),
        ("another path", request("POST", "/"), 404),
        ("below the path", request("POST", "/sns/x"), 404),
        ("another method", request("GET", "/sns"), 405),
        ("too large", request("POST", "/sns").body(large), 413),
        (
            "compressed",
            request("POST", "/sns")
                .header("content-encoding", "gzip")
                .body("x"),
            400,
        ),
    ] {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{name}");
        assert_eq!(answer.text().await.unwrap(), "", "{name}");
    }
}

#[tokio::test]
async fn credentials_are_asked_for_before_the_body() {
    let sns = Sns::start().await;
    let two = "behind_proxy = true\nauth = [{ user = 'old', password = { env = 'PASSWORD' } }, \
               { user = 'new', password = { env = 'PASSWORD' } }]";
    let runbell = Runbell::start(&sns, server(two)).await;
    let post = |user: Option<(&'static str, &'static str)>| {
        let request = runbell.http.post(runbell.url("/sns")).body("{}");
        match user {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    };
    let answer = post(None).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);
    let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
    assert!(challenge.starts_with("Basic realm="), "{challenge}");
    for (user, status) in [
        (("old", "secret"), 400),
        (("new", "secret"), 400),
        (("new", "wrong"), 401),
        (("other", "secret"), 401),
    ] {
        assert_eq!(
            post(Some(user)).send().await.unwrap().status().as_u16(),
            status,
            "{user:?}"
        );
    }
    // The answer comes although the body never does.
    let head =
        b"POST /sns HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n";
    assert!(raw(&runbell, head).await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn only_tls_1_2_and_up_and_only_http_1_1_are_spoken() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(
        &sns,
        Setup {
            tls: true,
            ..Setup::default()
        },
    )
    .await;
    let body = sns.status("m-1", "i-1", "Success", Clock::system().now());
    assert_eq!(runbell.post(body).await, 200);
    let hook = runbell.hook;
    let shake = move |newest: SslVersion, protocols: &'static [u8]| {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.set_verify(SslVerifyMode::NONE);
        connector.set_min_proto_version(None).unwrap();
        connector.set_max_proto_version(Some(newest)).unwrap();
        connector.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
        connector.set_alpn_protos(protocols).unwrap();
        let stream = std::net::TcpStream::connect(hook).unwrap();
        connector
            .build()
            .connect("localhost", stream)
            .map(|stream| {
                let protocol = stream.ssl().selected_alpn_protocol().map(<[u8]>::to_vec);
                (stream.ssl().version_str(), protocol)
            })
    };
    tokio::task::spawn_blocking(move || {
        assert!(shake(SslVersion::TLS1_1, b"\x08http/1.1").is_err());
        let (version, protocol) = shake(SslVersion::TLS1_2, b"\x08http/1.1").unwrap();
        assert_eq!(
            (version, protocol.as_deref()),
            ("TLSv1.2", Some(&b"http/1.1"[..]))
        );
        let (version, protocol) = shake(SslVersion::TLS1_3, b"\x02h2\x08http/1.1").unwrap();
        assert_eq!(
            (version, protocol.as_deref()),
            ("TLSv1.3", Some(&b"http/1.1"[..]))
        );
        assert!(shake(SslVersion::TLS1_3, b"\x02h2").is_err());
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_a_broken_one_is_not() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(
        &sns,
        Setup {
            tls: true,
            ..Setup::default()
        },
    )
    .await;
    let hook = runbell.hook;
    let served = async || {
        tokio::task::spawn_blocking(move || {
            let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
            connector.set_verify(SslVerifyMode::NONE);
            let stream = std::net::TcpStream::connect(hook).unwrap();
            let stream = connector.build().connect("localhost", stream).unwrap();
            stream.ssl().peer_certificate().unwrap().to_pem().unwrap()
        })
        .await
        .unwrap()
    };
    let first = std::fs::read(runbell.path("tls.crt")).unwrap();
    assert_eq!(served().await, first);
    write_certificate(runbell.path("").as_path(), "localhost");
    let second = std::fs::read(runbell.path("tls.crt")).unwrap();
    assert_ne!(first, second);
    let (status, said) = runbell.reload().await;
    assert_eq!(status, 200);
    assert!(said.contains("a new certificate is served"), "{said}");
    assert_eq!(served().await, second);
    std::fs::write(runbell.path("tls.key"), "no key").unwrap();
    runbell.reload().await;
    assert_eq!(served().await, second, "the old one stays");
}

#[tokio::test]
async fn a_reload_puts_routes_in_force_or_changes_nothing() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    let post = async |id: &str, status: &str| {
        let body = sns.status(id, "i-1", status, Clock::system().now());
        assert_eq!(runbell.post(body).await, 200);
    };
    runbell.settings_become(|text| text.replace("name = 'all'", "nam = 'all'"));
    let (status, said) = runbell.reload().await;
    assert_eq!(status, 500);
    assert!(said.contains("did you mean `name`?"), "{said}");
    assert!(
        runbell
            .metric("runbell_config_last_reload_successful")
            .await
            < 1.0
    );
    post("m-1", "InProgress").await;
    assert_eq!(runbell.lines("audit.jsonl", 1).await.len(), 1);
    nothing_waits(&runbell).await;
    runbell.settings_become(|text| {
        text.replace(
            "nam = 'all'",
            "name = 'failures'\nwhen = { status = 'Failed' }",
        )
    });
    assert_eq!(runbell.reload().await.0, 200);
    post("m-2", "Success").await;
    post("m-3", "Failed").await;
    let lines = runbell.lines("audit.jsonl", 2).await;
    assert_eq!(lines[1]["route"], "failures");
    assert_eq!(lines[1]["status"], "Failed");
    nothing_waits(&runbell).await;
    runbell.settings_become(|text| {
        text.replace("to = ['audit']", "to = ['more']") + "[sink.more]\ntype = 'stdout'\n"
    });
    let (status, said) = runbell.reload().await;
    assert_eq!(status, 500);
    assert!(said.contains("restart to add it"), "{said}");
}

/// All that was brought is settled, too.
async fn nothing_waits(runbell: &Runbell) {
    until("everything to be settled", async || {
        let waiting = runbell.metric("runbell_waiting{sink=\"audit\"}").await;
        (waiting < 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn reload_that_would_break_the_order_of_what_waits_is_refused() {
    let sns = Sns::start().await;
    let setup = Setup {
        routes: "[sink.audit]\ntype = 'file'\npath = 'audit.jsonl'\n\
                 [[route]]\nname = 'all'\nto = ['audit']\norder = 'topic'\nhold = '1h'\n"
            .to_owned(),
        clock: Clock::by_hand(Clock::system().now()),
        ..Setup::default()
    };
    let runbell = Runbell::start(&sns, setup).await;
    let now = runbell.clock.now();
    let body = sns.status("m-1", "i-1", "Success", now);
    assert_eq!(runbell.post(body).await, 200);
    for (from, to, says) in [
        (
            "order = 'topic'",
            "order = 'command'",
            "gets another order, and 1 deliveries",
        ),
        (
            "name = 'all'",
            "name = 'other'",
            "is gone or has another name",
        ),
    ] {
        runbell.settings_become(|text| text.replace(from, to));
        let (status, said) = runbell.reload().await;
        assert_eq!(status, 500);
        assert!(said.contains(says), "{said}");
        runbell.settings_become(|text| text.replace(to, from));
    }
    // Its start comes within the hold, and leaves before it.
    let earlier = runbell::clock::earlier(now, Duration::from_secs(30));
    let body = sns.status("m-0", "i-1", "InProgress", earlier);
    assert_eq!(runbell.post(body).await, 200);
    runbell.clock.advance(Duration::from_hours(2));
    let lines = runbell.lines("audit.jsonl", 2).await;
    assert_eq!(
        [&lines[0]["status"], &lines[1]["status"]],
        ["InProgress", "Success"]
    );
}

#[tokio::test]
async fn who_says_nothing_is_sent_away_and_who_says_something_stays() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(
        &sns,
        server("header_timeout = '300ms'\nbody_timeout = '300ms'"),
    )
    .await;
    assert_eq!(raw(&runbell, b"").await, "", "never a byte");
    assert!(
        !raw(&runbell, b"POST /sns HTTP/1.1\r\nHost: x\r\n")
            .await
            .contains("200")
    );
    let head = b"POST /sns HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{";
    assert!(
        raw(&runbell, head).await.starts_with("HTTP/1.1 503"),
        "half a body"
    );
    assert!(
        runbell
            .metric("runbell_connections_cut_total{listener=\"hook\",reason=\"header\"}")
            .await
            >= 1.0
    );
    // One connection, answered, silent for longer than a header may take, and used again.
    let mut stream = TcpStream::connect(runbell.hook).await.unwrap();
    for _ in 0..2 {
        let request = b"POST /sns HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(request).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 400");
        let mut rest = Vec::new();
        while !rest.ends_with(b"\r\n\r\n") {
            rest.push(stream.read_u8().await.unwrap());
        }
        assert_eq!(raw(&runbell, b"").await, "", "the time of a header passes");
    }
}

#[tokio::test]
async fn idle_strangers_do_not_keep_sns_out() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, server("max_connections = 4")).await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(TcpStream::connect(runbell.hook).await.unwrap());
    }
    let body = sns.status("m-1", "i-1", "Success", Clock::system().now());
    assert_eq!(runbell.post(body).await, 200);
    drop(strangers);
}

#[tokio::test]
async fn the_admin_door_tells_health_readiness_and_metrics() {
    let sns = Sns::start().await;
    let runbell = Runbell::start(&sns, Setup::default()).await;
    for path in ["/-/healthy", "/livez", "/-/ready", "/readyz"] {
        assert_eq!(runbell.admin(path).await.0, 200, "{path}");
    }
    assert_eq!(
        runbell.admin("/-/ready?verbose").await.1,
        "{\"ready\":true,\"reasons\":[]}"
    );
    assert_eq!(runbell.admin("/nothing").await.0, 404);
    let body = sns.status("m-1", "i-1", "Success", Clock::system().now());
    assert_eq!(runbell.post(body).await, 200);
    runbell.lines("audit.jsonl", 1).await;
    until("the delivery to be counted", async || {
        let sent = runbell
            .metric("runbell_deliveries_total{sink=\"audit\",result=\"sent\"}")
            .await;
        (sent > 0.0).then_some(())
    })
    .await;
    let (_, page) = runbell.admin("/metrics").await;
    for name in [
        "runbell_received_total{",
        "runbell_verify_seconds_count 1",
        "runbell_append_seconds_count 1",
        "runbell_attempts_total{sink=\"audit\",verdict=\"sent\"} 1",
        "runbell_delivery_delay_seconds_count{sink=\"audit\"} 1",
        "runbell_waiting{sink=\"audit\"} 0",
        "runbell_oldest_waiting_seconds{",
        "runbell_lanes_rescued_total 0",
        "runbell_sink_backoff{sink=\"audit\"} 0",
        "runbell_lateness_seconds_count 0",
    ] {
        assert!(page.contains(name), "{name} in\n{page}");
    }
    let (_, tally) = runbell.admin("/api/v1/tally").await;
    assert!(tally.contains("\"owed\":1,\"sent\":1"), "{tally}");
}

#[tokio::test]
async fn a_page_from_elsewhere_needs_the_token() {
    let sns = Sns::start().await;
    let setup = Setup {
        admin: "token = { env = 'PASSWORD' }".to_owned(),
        ..Setup::default()
    };
    let runbell = Runbell::start(&sns, setup).await;
    let get = |host: &'static str| {
        let url = format!("http://{}/api/v1/events", runbell.admin);
        runbell.http.get(url).header("host", host)
    };
    assert_eq!(
        get("localhost").send().await.unwrap().status().as_u16(),
        200
    );
    assert_eq!(
        get("evil.example").send().await.unwrap().status().as_u16(),
        401
    );
    let with = get("evil.example").bearer_auth("secret");
    assert_eq!(with.send().await.unwrap().status().as_u16(), 200);
    let wrong = get("localhost").bearer_auth("wrong");
    assert_eq!(wrong.send().await.unwrap().status().as_u16(), 401);
}

#[tokio::test]
async fn a_stop_finishes_what_is_under_way() {
    let sns = Sns::start().await;
    let setup = Setup {
        routes: Setup::default()
            .routes
            .replace("hold = '0s'", "hold = '1s'"),
        ..server("drain = '5s'")
    };
    let runbell = Runbell::start(&sns, setup.clone()).await;
    let body = sns.status("m-1", "i-1", "Success", Clock::system().now());
    assert_eq!(runbell.post(body).await, 200);
    // Held, and so not due: the stop does not wait for it, the next start brings it.
    let folder = runbell.stop().await;
    let runbell = Runbell::start_in(folder, &sns, setup).await;
    assert_eq!(runbell.lines("audit.jsonl", 1).await.len(), 1);
    let hook = runbell.hook;
    runbell.stop().await;
    let refused = tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(hook)).await;
    assert!(refused.unwrap().is_err());
}
