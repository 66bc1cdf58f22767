//! The server on real sockets, with a gRPC client in Envoy's place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod envoy;

use arc_swap::ArcSwap;
use envoy::{head, request_body, response_body, response_head};
use quorate_extproc::{ExtProc, ExtProcConfig, ExtProcHandle, TlsConfig};
use quorate_gateway::{GatewayShared, HumanDuration};
use quorate_proto::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use quorate_proto::envoy::service::ext_proc::v3::processing_request::Request as Kinds;
use quorate_proto::envoy::service::ext_proc::v3::processing_response::Response as Said;
use quorate_proto::envoy::service::ext_proc::v3::{
    ProcessingRequest, ProcessingResponse, body_mutation::Mutation,
};
use quorate_routing::{Endpoint, PoolSpec, RoutingView};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedSender;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const SOON: Duration = Duration::from_secs(20);
const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"m","stream":true,"messages":[]}"#;

struct World {
    endpoint: Arc<Endpoint>,
    shared: Arc<GatewayShared>,
    server: ExtProcHandle,
}

fn start(change: impl FnOnce(&mut ExtProcConfig)) -> World {
    // A name: the server looks it up.
    let endpoint = envoy::endpoint("e", "localhost");
    let pool = PoolSpec {
        name: "p".into(),
        ..Default::default()
    };
    let view = RoutingView::build([(pool, vec![Arc::clone(&endpoint)])]);
    let shared = GatewayShared::new(Arc::new(ArcSwap::from_pointee(view)), "node");
    shared.set_ready(true);
    let mut config = ExtProcConfig {
        listen: Some(([127, 0, 0, 1], 0).into()),
        workers: 2,
        seed: Some(1),
        drain_window: HumanDuration(Duration::from_millis(300)),
        ..Default::default()
    };
    change(&mut config);
    let server = ExtProc::start(config, Arc::clone(&shared)).unwrap();
    World {
        endpoint,
        shared,
        server,
    }
}

impl World {
    /// Connects, and waits until the endpoint's name is looked up: before that there is nowhere to go.
    async fn connect(&self) -> Channel {
        let channel = Channel::from_shared(format!("http://{}", self.server.local_addr()))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let end = Instant::now() + SOON;
        loop {
            let mut talk = Talk::open(&channel).await;
            talk.send(head("GET", "/version", false, &[]));
            talk.send(request_body("", true));
            match talk.next().await {
                Some(Said::RequestHeaders(_)) => break,
                other => assert!(Instant::now() < end, "{other:?}"),
            }
        }
        self.in_flight(0).await;
        channel
    }

    /// Waits until so many requests count on the endpoint.
    async fn in_flight(&self, n: u32) {
        let end = Instant::now() + SOON;
        while self.endpoint.local_in_flight() != n {
            assert!(
                Instant::now() < end,
                "{} in flight, not {n}",
                self.endpoint.local_in_flight()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Talk {
    sender: UnboundedSender<ProcessingRequest>,
    said: Streaming<ProcessingResponse>,
}

impl Talk {
    async fn open(channel: &Channel) -> Self {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let said = ExternalProcessorClient::new(channel.clone())
            .process(UnboundedReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self { sender, said }
    }

    fn send(&self, kind: Kinds) {
        let message = ProcessingRequest {
            request: Some(kind),
            ..Default::default()
        };
        self.sender.send(message).unwrap();
    }

    async fn next(&mut self) -> Option<Said> {
        let next = tokio::time::timeout(SOON, self.said.message()).await;
        next.expect("nothing is said").unwrap()?.response
    }

    /// Sends a request and takes both answers; gives the destination.
    async fn request(&mut self) -> String {
        self.send(head("POST", CHAT, false, &[]));
        self.send(request_body(BODY, true));
        let Some(Said::RequestHeaders(answer)) = self.next().await else {
            panic!("no answer to the head");
        };
        let mutation = answer.response.unwrap().header_mutation.unwrap();
        let destination = mutation
            .set_headers
            .into_iter()
            .filter_map(|option| option.header)
            .find(|header| header.key == "x-gateway-destination-endpoint")
            .unwrap();
        assert!(matches!(self.next().await, Some(Said::RequestBody(_))));
        String::from_utf8(destination.raw_value.to_vec()).unwrap()
    }

    /// Sends the response and takes what comes of it, to the end of the stream.
    async fn response(&mut self) {
        self.send(response_head("200", "text/event-stream", false));
        assert!(matches!(self.next().await, Some(Said::ResponseHeaders(_))));
        self.send(response_body("data: [DONE]\n\n", true));
        let Some(Said::ResponseBody(answer)) = self.next().await else {
            panic!("no answer to the body");
        };
        match answer.response.unwrap().body_mutation.unwrap().mutation {
            Some(Mutation::StreamedResponse(piece)) => {
                assert_eq!(
                    (&piece.body[..], piece.end_of_stream),
                    (&b"data: [DONE]\n\n"[..], true)
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(self.next().await.is_none());
    }
}

async fn health(channel: &Channel, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    match HealthClient::new(channel.clone()).check(request).await {
        Ok(response) => Ok(response.into_inner().status()),
        Err(status) => Err(status.code()),
    }
}

#[tokio::test]
async fn conversations_side_by_side_on_one_connection() {
    let world = start(|_| {});
    let channel = world.connect().await;
    let mut talks = Vec::new();
    for i in 1..=50 {
        let mut talk = Talk::open(&channel).await;
        let destination = talk.request().await;
        assert!(
            destination.ends_with(":8000") && destination.parse::<std::net::SocketAddr>().is_ok(),
            "{destination}"
        );
        assert_eq!(world.endpoint.local_in_flight(), i);
        talks.push(talk);
    }
    for mut talk in talks {
        talk.response().await;
    }
    world.in_flight(0).await;
}

/// Many clients that go away at the same moment are no attack on the connection they share.
#[tokio::test]
async fn a_burst_of_aborts_leaves_the_connection_alone() {
    let world = start(|_| {});
    let channel = world.connect().await;
    for _ in 0..3 {
        let mut talks = Vec::new();
        for _ in 0..300 {
            let talk = Talk::open(&channel).await;
            talk.send(head("POST", CHAT, false, &[]));
            talk.send(request_body(BODY, true));
            talks.push(talk);
        }
        drop(talks);
    }
    world.in_flight(0).await;
    let mut talk = Talk::open(&channel).await;
    talk.request().await;
    talk.response().await;
    world.in_flight(0).await;
    assert_eq!(world.server.connections(), 1);
}

#[tokio::test]
async fn bad_bytes_hurt_nobody() {
    let world = start(|config| config.max_body_bytes = 1000);
    let channel = world.connect().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x00\x01\x02",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff",
    ] {
        let mut socket = tokio::net::TcpStream::connect(world.server.local_addr())
            .await
            .unwrap();
        socket.write_all(garbage).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(SOON, socket.read_to_end(&mut rest))
            .await
            .unwrap();
    }
    // Longer than any message may be: this stream ends, the connection stays.
    let mut talk = Talk::open(&channel).await;
    talk.send(head("POST", CHAT, false, &[]));
    talk.send(request_body("x".repeat(1 << 20), true));
    let error = tokio::time::timeout(SOON, talk.said.message())
        .await
        .unwrap();
    assert_eq!(error.unwrap_err().code(), Code::OutOfRange);
    let mut talk = Talk::open(&channel).await;
    talk.send(Kinds::RequestHeaders(Default::default()));
    let error = tokio::time::timeout(SOON, talk.said.message())
        .await
        .unwrap();
    assert_eq!(error.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(
        health(&channel, "readiness").await,
        Ok(ServingStatus::Serving)
    );
    assert_eq!(world.endpoint.local_in_flight(), 0);
}

#[tokio::test]
async fn a_drain_tells_first_and_lets_streams_end() {
    let world = start(|_| {});
    let channel = world.connect().await;
    for service in [
        "",
        "readiness",
        "liveness",
        "envoy.service.ext_proc.v3.ExternalProcessor",
    ] {
        assert_eq!(
            health(&channel, service).await,
            Ok(ServingStatus::Serving),
            "{service}"
        );
    }
    assert_eq!(health(&channel, "other").await, Err(Code::NotFound));
    world.shared.set_ready(false);
    assert_eq!(health(&channel, "").await, Ok(ServingStatus::NotServing));
    assert_eq!(
        health(&channel, "liveness").await,
        Ok(ServingStatus::Serving)
    );
    world.shared.set_ready(true);
    let watched = HealthCheckRequest {
        service: "readiness".to_owned(),
    };
    let mut watch = HealthClient::new(channel.clone())
        .watch(watched)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );

    let mut before = Talk::open(&channel).await;
    before.request().await;
    let (cut, ()) = tokio::join!(world.server.drain(SOON), async {
        assert_eq!(
            watch.message().await.unwrap().unwrap().status(),
            ServingStatus::NotServing
        );
        // Within the window, new streams are still served.
        let mut within = Talk::open(&channel).await;
        within.request().await;
        within.response().await;
        // After it, nobody is let in, and what runs goes on.
        let end = Instant::now() + SOON;
        while tokio::net::TcpStream::connect(world.server.local_addr())
            .await
            .is_ok()
        {
            assert!(Instant::now() < end, "still listening");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(world.endpoint.local_in_flight(), 1);
        before.response().await;
        drop((before, watch));
    });
    assert_eq!((cut, world.endpoint.local_in_flight()), (0, 0));
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let world = start(|config| config.drain_window = HumanDuration(Duration::ZERO));
    let channel = world.connect().await;
    let mut talk = Talk::open(&channel).await;
    talk.request().await;
    assert_eq!(world.server.drain(Duration::from_millis(200)).await, 1);
    world.in_flight(0).await;
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["picker".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let (cert_file, key_file) = (dir.path().join("cert"), dir.path().join("key"));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let files = TlsConfig {
        cert: cert_file.clone(),
        key: key_file,
        client_ca: Some(cert_file),
    };
    let world = start(|config| config.tls = Some(files.clone()));
    let to = || Channel::from_shared(format!("https://{}", world.server.local_addr())).unwrap();
    let trusting = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(cert.pem()))
        .domain_name("picker");
    let known = trusting
        .clone()
        .identity(Identity::from_pem(cert.pem(), key.serialize_pem()));
    let channel = to().tls_config(known).unwrap().connect().await.unwrap();
    assert_eq!(health(&channel, "").await, Ok(ServingStatus::Serving));
    let stranger = to().tls_config(trusting).unwrap().connect_lazy();
    health(&stranger, "").await.unwrap_err();

    let missing = TlsConfig {
        cert: dir.path().join("none"),
        ..files
    };
    let config = ExtProcConfig {
        listen: Some(([127, 0, 0, 1], 0).into()),
        tls: Some(missing),
        ..Default::default()
    };
    let error = ExtProc::start(config, Arc::clone(&world.shared))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("none") && error.contains("ext_proc.tls"),
        "{error}"
    );
}
