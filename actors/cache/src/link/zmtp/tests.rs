//! Two ends of the protocol against each other, and against peers that break it.

use super::*;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn pair() -> (Stream, Stream) {
    // Room for a greeting, as every socket has, and so little that long messages come in many pieces.
    let (a, b) = tokio::io::duplex(128);
    (Box::new(a), Box::new(b))
}

async fn opened(a: SocketType, b: SocketType) -> ((Reader, Writer), (Reader, Writer)) {
    let (left, right) = pair();
    let (left, right) = tokio::join!(
        open(left, a, Limits::default()),
        open(right, b, Limits::default())
    );
    (left.unwrap(), right.unwrap())
}

#[tokio::test]
async fn messages_of_any_size_arrive_whole() {
    let ((_, mut publisher), (mut reader, _)) = opened(SocketType::Pub, SocketType::Sub).await;
    let sizes = [0usize, 1, 254, 255, 256, 70_000];
    let sent = sizes.map(|size| vec![7u8; size]);
    let sending = async {
        for body in &sent {
            publisher
                .send(&[b"topic", &5u64.to_be_bytes(), body])
                .await
                .unwrap();
        }
    };
    let receiving = async {
        for body in &sent {
            // Dropped half-way again and again: nothing is lost.
            let message = loop {
                tokio::select! {
                    biased;
                    message = reader.receive() => break message.unwrap(),
                    () = tokio::task::yield_now() => {}
                }
            };
            let Received::Message(parts) = message else {
                panic!("{message:?}");
            };
            assert_eq!(parts.len(), 3);
            assert_eq!(parts[2], body);
        }
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn subscriptions_pings_and_commands() {
    let ((mut publisher, mut to_sub), (mut reader, mut subscriber)) =
        opened(SocketType::Pub, SocketType::Sub).await;
    subscriber.subscribe(b"kv@").await.unwrap();
    assert_eq!(
        publisher.receive().await.unwrap(),
        Received::Subscribe(Bytes::from_static(b"kv@"))
    );
    subscriber.command("SUBSCRIBE", b"a").await.unwrap();
    assert_eq!(
        publisher.receive().await.unwrap(),
        Received::Subscribe(Bytes::from_static(b"a"))
    );
    subscriber.command("CANCEL", b"a").await.unwrap();
    assert_eq!(
        publisher.receive().await.unwrap(),
        Received::Cancel(Bytes::from_static(b"a"))
    );
    to_sub.command("PING", b"\x00\x01ctx").await.unwrap();
    let Received::Ping(context) = reader.receive().await.unwrap() else {
        panic!("no ping");
    };
    assert_eq!(context, "ctx");
    subscriber.pong(&context).await.unwrap();
    assert_eq!(publisher.receive().await.unwrap(), Received::Pong);
    to_sub.command("DANCE", b"").await.unwrap();
    assert_eq!(reader.receive().await.unwrap(), Received::Command);
    drop((publisher, to_sub));
    assert!(matches!(reader.receive().await, Err(ZmtpError::Closed)));
}

#[tokio::test]
async fn sockets_that_do_not_fit_are_refused() {
    let (left, right) = pair();
    let (left, _) = tokio::join!(
        open(left, SocketType::Sub, Limits::default()),
        open(right, SocketType::Router, Limits::default())
    );
    assert!(matches!(left, Err(ZmtpError::WrongSocket(kind)) if kind == "ROUTER"));
}

/// Greets as a well-behaved publisher, then sends `bytes`.
async fn after_greeting(bytes: &[u8], limits: Limits) -> Result<Received, ZmtpError> {
    let (left, mut right): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 20);
    let mut greeting = [0u8; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10..12].copy_from_slice(&[3, 1]);
    greeting[12..16].copy_from_slice(b"NULL");
    right.write_all(&greeting).await.unwrap();
    let mut ready = vec![4, 25];
    ready.extend(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB");
    ready[1] = (ready.len() - 2) as u8;
    right.write_all(&ready).await.unwrap();
    right.write_all(bytes).await.unwrap();
    let (mut reader, _writer) = open(Box::new(left), SocketType::Sub, limits).await?;
    let received = reader.receive().await;
    let mut sent = Vec::new();
    drop((reader, _writer));
    right.read_to_end(&mut sent).await.unwrap();
    assert_eq!(&sent[..1], [0xff]);
    received
}

#[tokio::test]
async fn claims_beyond_the_limits_end_the_connection() {
    let limits = Limits {
        message: 1000,
        frames: 3,
    };
    let mut huge = vec![2];
    huge.extend(u64::MAX.to_be_bytes());
    let too_long = after_greeting(&huge, limits).await;
    assert!(matches!(too_long, Err(ZmtpError::TooLong(1000))));
    let two: Vec<u8> = [vec![3, 0, 0, 0, 0, 0, 0, 2, 0x58], vec![0; 600]].concat();
    let too_long = after_greeting(&[two.clone(), two].concat(), limits).await;
    assert!(matches!(too_long, Err(ZmtpError::TooLong(1000))));
    let many = after_greeting(&[1, 0, 1, 0, 1, 0, 0, 0], limits).await;
    assert!(matches!(many, Err(ZmtpError::Protocol(_))));
    let flags = after_greeting(&[0x80, 0], limits).await;
    assert!(matches!(flags, Err(ZmtpError::Protocol(_))));
    let fine = after_greeting(&[1, 1, b'a', 0, 1, b'b'], limits).await;
    let parts = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
    assert_eq!(fine.unwrap(), Received::Message(parts));
}

#[tokio::test]
async fn strangers_are_told_apart() {
    for (bytes, wanted) in [
        (
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            "not a ZMTP greeting",
        ),
        (
            b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x00",
            "an older version of ZMTP",
        ),
    ] {
        let (left, mut right) = tokio::io::duplex(1024);
        right.write_all(bytes).await.unwrap();
        let Err(ZmtpError::Protocol(why)) =
            open(Box::new(left), SocketType::Sub, Limits::default()).await
        else {
            panic!("taken");
        };
        assert_eq!(why, wanted);
    }
}
