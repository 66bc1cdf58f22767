//! What goes to another endpoint and what does not.

use crate::support::*;
use http::HeaderName;
use quorate_gateway::{GatewayConfig, RetryConfig};
use quorate_routing::{
    Decision, NotPicked, Picked, PoolPolicy, Route, Scheduler, SchedulingRequest, Tried,
    Unavailable,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What an engine does with every request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nothing listens.
    Refused,
    /// Closes the connection after it has read the request.
    Reset,
    /// Closes it in the middle of the head.
    HalfHead,
    /// Sends a head, then closes before the first byte of the body.
    HeadOnly,
    /// Does not speak HTTP.
    Garbage,
    /// Answers with this status.
    Status(u16),
}

async fn faulty(fault: Fault) -> Engine {
    let engine = Engine::raw(move |mut stream| async move {
        let mut buffer = vec![0; 4096];
        if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
            return;
        }
        let answer = match fault {
            Fault::Refused | Fault::Reset => String::new(),
            Fault::HalfHead => "HTTP/1.1 200 OK\r\ncontent-le".into(),
            Fault::HeadOnly => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".into(),
            Fault::Garbage => "220 mail.example.org ESMTP\r\n".into(),
            Fault::Status(code) => format!("HTTP/1.1 {code} X\r\ncontent-length: 3\r\n\r\nbad"),
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    if fault == Fault::Refused {
        // The address is free again once the listener is gone.
        let addr = engine.addr;
        drop(engine);
        wait_refused(addr).await;
        let other = Engine::raw(|_| async {}).await;
        return other.elsewhere(addr);
    }
    engine
}

async fn wait_refused(addr: SocketAddr) {
    let end = std::time::Instant::now() + SOON;
    while tokio::net::TcpStream::connect(addr).await.is_ok() {
        assert!(std::time::Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn good() -> Engine {
    Engine::start(|_| async { json(r#"{"ok":1}"#) }).await
}

#[tokio::test]
async fn a_fault_before_the_first_byte_goes_to_another_endpoint() {
    for fault in [
        Fault::Refused,
        Fault::Reset,
        Fault::HalfHead,
        Fault::HeadOnly,
        Fault::Garbage,
        Fault::Status(502),
        Fault::Status(503),
        Fault::Status(504),
    ] {
        let (bad, good) = (faulty(fault).await, good().await);
        let front = Front::before(config(), &[&bad, &good]);
        for i in 0..12 {
            let body = if i % 2 == 0 { CHAT } else { CHAT_STREAM };
            let reply = front.post(CHAT_PATH, body).await;
            assert_eq!(
                (reply.status, reply.text().as_str()),
                (200, r#"{"ok":1}"#),
                "{fault:?}"
            );
        }
        assert_eq!(good.requests(), 12);
        if fault != Fault::Refused {
            assert!(bad.connections() > 0, "{fault:?} was never met");
        }
        assert_eq!(front.reserved(), 0);
    }
}

#[tokio::test]
async fn other_answers_are_the_clients() {
    for status in [400, 404, 422, 429, 500, 501] {
        let (bad, good) = (faulty(Fault::Status(status)).await, good().await);
        let front = Front::before(config(), &[&bad, &good]);
        let mut met = 0;
        for _ in 0..20 {
            let reply = front.post(CHAT_PATH, CHAT).await;
            if reply.status == status {
                assert_eq!(reply.text(), "bad");
                met += 1;
            }
        }
        assert_eq!(good.requests() + met, 20);
        assert!(met > 0, "{status}");
    }
}

#[tokio::test]
async fn when_all_fail_the_client_gets_the_last_thing_that_happened() {
    for (fault, status) in [
        (Fault::Status(503), 503),
        (Fault::Status(502), 502),
        (Fault::Reset, 502),
        (Fault::Refused, 502),
    ] {
        let engines = [
            faulty(fault).await,
            faulty(fault).await,
            faulty(fault).await,
            faulty(fault).await,
        ];
        let front = Front::before(config(), &engines.iter().collect::<Vec<_>>());
        let reply = front.post(CHAT_PATH, CHAT).await;
        assert_eq!(reply.status, status, "{fault:?}");
        if matches!(fault, Fault::Status(_)) {
            assert_eq!(reply.text(), "bad");
        } else {
            assert_eq!(reply.json()["error"]["type"], "server_error");
        }
        if fault != Fault::Refused {
            let asked: usize = engines.iter().map(Engine::connections).sum();
            assert_eq!(asked, 3, "three attempts, each at another endpoint");
            assert!(engines.iter().all(|e| e.connections() <= 1));
        }
        assert_eq!(front.reserved(), 0);
    }
}

#[tokio::test]
async fn the_budget_bounds_retries() {
    let (bad, good) = (faulty(Fault::Reset).await, good().await);
    let retry = RetryConfig {
        max_attempts: 3,
        budget_percent: 0,
        budget_min_per_second: 1,
        budget_burst: 5,
    };
    let front = Front::before(GatewayConfig { retry, ..config() }, &[&bad, &good]);
    let began = std::time::Instant::now();
    let mut failed = 0;
    while bad.connections() < 40 {
        failed += usize::from(front.post(CHAT_PATH, CHAT).await.status == 502);
    }
    // Five saved up, one for each second of the test, and one that may have been under way.
    let allowed = 5 + usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    assert!(
        bad.connections() - failed <= allowed,
        "{} retries",
        bad.connections() - failed
    );
    assert!(failed >= 40 - allowed);
}

#[tokio::test]
async fn a_single_attempt_is_a_single_attempt() {
    let (bad, good) = (faulty(Fault::Status(503)).await, good().await);
    let retry = RetryConfig {
        max_attempts: 1,
        ..RetryConfig::default()
    };
    let front = Front::before(GatewayConfig { retry, ..config() }, &[&bad, &good]);
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(front.post(CHAT_PATH, CHAT).await.status);
    }
    assert!(statuses.contains(&503) && statuses.contains(&200));
}

#[tokio::test]
async fn the_only_endpoint_is_tried_again_if_it_could_not_be_connected_to() {
    let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = probe.local_addr().unwrap();
    drop(probe);
    let front = Front::of(
        config(),
        vec![endpoint("e0", &format!("http://{addr}"), false)],
    );
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 502);
    // It comes up while a request waits between two attempts: the first attempt has failed when it binds.
    let request = front.post(CHAT_PATH, CHAT);
    let late = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let listener = TcpListener::bind(addr).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 4096];
        let _ = stream.read(&mut buffer).await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await
            .unwrap();
    };
    let (reply, ()) = tokio::join!(request, late);
    assert_eq!(reply.status, 200);
    // A broken connection, by contrast, is not sent again to the same engine.
    let bad = faulty(Fault::Reset).await;
    let front = Front::before(config(), &[&bad]);
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 502);
    assert_eq!(bad.connections(), 1);
}

#[tokio::test]
async fn nothing_is_retried_once_a_byte_went_out() {
    let bad = Engine::raw(|mut stream| async move {
        let mut buffer = vec![0; 4096];
        let _ = stream.read(&mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of i")
            .await;
    })
    .await;
    let good = good().await;
    let front = Front::before(config(), &[&bad, &good]);
    let mut halves = 0;
    for _ in 0..20 {
        let reply = front.post(CHAT_PATH, CHAT).await;
        if !reply.whole {
            halves += 1;
            assert_eq!(reply.text(), "half of i");
        }
    }
    assert!(halves > 0);
    assert_eq!(good.requests() + halves, 20);
    assert_eq!(bad.connections(), halves);
    assert_eq!(front.reserved(), 0);
}

/// Always picks the first endpoint, names the others backwards as fallbacks, and asks for headers.
struct FirstThenLast;

impl Scheduler for FirstThenLast {
    fn schedule(
        &self,
        request: &SchedulingRequest<'_>,
        route: &Route,
        _tried: &Tried,
        now: u64,
        _random: u64,
        _record: Option<&mut Decision>,
    ) -> Result<Picked, NotPicked> {
        let mut endpoints = route.endpoints.iter();
        let first = endpoints.next().ok_or(Unavailable::Empty)?;
        let reservation = first.reserve(now).ok_or(Unavailable::NoneAvailable)?;
        let mut picked = Picked::new(reservation);
        picked.fallbacks = endpoints.rev().cloned().collect();
        let header = |name, value: &str| (HeaderName::from_static(name), value.parse().unwrap());
        picked.request_headers = vec![header("x-prefiller-host-port", "10.0.0.1:8000")];
        let session = request.session.unwrap_or("none");
        picked.response_headers = vec![header("x-session-token", session)];
        Ok(picked)
    }
}

#[tokio::test]
async fn fallbacks_of_the_decision_go_first_and_its_headers_are_set() {
    let down = Engine::start(|_| async { answer(503, "application/json", "{}") }).await;
    let never = Engine::start(|_| async { json("{}") }).await;
    let third = Engine::start(|seen| async move {
        assert_eq!(seen.headers["x-prefiller-host-port"], "10.0.0.1:8000");
        json(r#"{"from":"third"}"#)
    })
    .await;
    let policy = PoolPolicy {
        scheduler: Arc::new(FirstThenLast),
        ..PoolPolicy::default()
    };
    let front = Front::with(config(), policy, endpoints(&[&down, &never, &third]));
    let reply = front
        .post_with(CHAT_PATH, "x-session-id: s-1\r\n", CHAT)
        .await;
    assert_eq!(
        (reply.status, &reply.json()["from"]),
        (200, &"third".into())
    );
    assert_eq!(reply.header("x-session-token"), Some("s-1"));
    assert_eq!(
        (down.requests(), never.requests(), third.requests()),
        (1, 0, 1)
    );
    eventually("every place is given back", || front.reserved() == 0).await;
}
