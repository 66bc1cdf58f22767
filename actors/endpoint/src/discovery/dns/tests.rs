//! A small name server on loopback, spoken to over real sockets.

use super::*;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::{Name, Record, rdata};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use tokio::net::UdpSocket;

type Zone = Arc<Mutex<HashMap<(String, RecordType), Vec<RData>>>>;

/// Answers from the zone; a name without any record does not exist, "broken." always fails.
async fn serve(zone: Zone) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0u8; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let Ok(question) = Message::from_vec(&buffer[..n]) else {
                continue;
            };
            let query = question.queries[0].clone();
            let name = query.name().to_utf8();
            let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
            answer.add_query(query.clone());
            let zone = zone.lock().unwrap().clone();
            let code = if name == "broken." {
                ResponseCode::ServFail
            } else if zone.keys().any(|(n, _)| *n == name) {
                ResponseCode::NoError
            } else {
                ResponseCode::NXDomain
            };
            answer.metadata.response_code = code;
            answer.metadata.message_type = MessageType::Response;
            for data in zone.get(&(name, query.query_type())).into_iter().flatten() {
                answer.add_answer(Record::from_rdata(query.name().clone(), 0, data.clone()));
            }
            socket
                .send_to(&answer.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    at
}

fn resolver(at: SocketAddr) -> TokioResolver {
    let mut udp = ConnectionConfig::udp();
    udp.port = at.port();
    let server = NameServerConfig::new(at.ip(), true, vec![udp]);
    let config = ResolverConfig::from_parts(None, vec![], vec![server]);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .build()
        .unwrap()
}

fn source(name: &str, port: u32, ports: &[u32], at: SocketAddr) -> DnsSource {
    let spec = DnsDiscovery {
        name: name.into(),
        port,
        ..Default::default()
    };
    DnsSource::new("p", spec, ports.to_vec()).with_resolver(resolver(at))
}

fn urls(answer: &Answer) -> Vec<(&str, &str, Option<u32>)> {
    answer
        .found
        .iter()
        .map(|(n, f)| (n.as_str(), f.url.as_str(), f.rank))
        .collect()
}

fn a(last: u8) -> RData {
    RData::A(rdata::A(Ipv4Addr::new(10, 0, 0, last)))
}

#[tokio::test]
async fn addresses_services_ranks_and_failures() {
    let zone: Zone = Arc::default();
    {
        let mut zone = zone.lock().unwrap();
        zone.insert(("gpu.test.".into(), RecordType::A), vec![a(2), a(1)]);
        let v6 = RData::AAAA(rdata::AAAA("fd00::1".parse().unwrap()));
        zone.insert(("gpu.test.".into(), RecordType::AAAA), vec![v6]);
        zone.insert(("one.test.".into(), RecordType::A), vec![a(9)]);
        let srv = |port, target: &str| {
            RData::SRV(rdata::SRV::new(0, 0, port, Name::from_str(target).unwrap()))
        };
        zone.insert(
            ("_vllm._tcp.test.".into(), RecordType::SRV),
            vec![srv(8001, "B.test."), srv(8000, "a.test."), srv(1, ".")],
        );
    }
    let at = serve(zone).await;
    let look =
        async |name: &str, port: u32, ports: &[u32]| source(name, port, ports, at).look().await;

    assert_eq!(
        urls(&look("gpu.test.", 8000, &[]).await.unwrap()),
        [
            ("p-10.0.0.1-8000", "http://10.0.0.1:8000", None),
            ("p-10.0.0.2-8000", "http://10.0.0.2:8000", None),
            ("p-fd00::1-8000", "http://[fd00::1]:8000", None),
        ]
    );
    assert_eq!(
        urls(&look("one.test.", 0, &[8000, 8001]).await.unwrap()),
        [
            ("p-10.0.0.9-8000", "http://10.0.0.9:8000", Some(0)),
            ("p-10.0.0.9-8001", "http://10.0.0.9:8001", Some(1)),
        ]
    );
    assert_eq!(
        urls(&look("_vllm._tcp.test.", 0, &[]).await.unwrap()),
        [
            ("p-a.test-8000", "http://a.test:8000", None),
            ("p-b.test-8001", "http://b.test:8001", None),
        ]
    );
    let no_port = look("one.test.", 0, &[]).await.unwrap();
    assert!(no_port.found.is_empty() && no_port.problems[0].contains("no port"));
    assert_eq!(
        look("nobody.test.", 1, &[]).await.unwrap(),
        Answer::default()
    );
    assert!(
        look("broken.", 1, &[])
            .await
            .unwrap_err()
            .contains("broken.")
    );
    // An address needs no server.
    let literal = look("127.0.0.1", 8000, &[]).await.unwrap();
    assert_eq!(
        urls(&literal),
        [("p-127.0.0.1-8000", "http://127.0.0.1:8000", None)]
    );
}
