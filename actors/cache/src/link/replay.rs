//! One replay: asks an engine's replay socket for batches and reads the replies until the end marker.

use super::address::Address;
use super::zmtp::{self, Limits, Received, SocketType, ZmtpError};
use bytes::Bytes;

/// Sequence number of the end marker.
const END: u64 = u64::MAX;

/// Sequence number and payload of a reply. vLLM up to 0.25 sends `["", seq, payload]`, later versions and SGLang
/// `["", topic, seq, payload]`: the last two frames count.
pub(super) fn parse(parts: &[Bytes]) -> Option<(u64, Bytes)> {
    let [.., seq, payload] = parts else {
        return None;
    };
    let seq = u64::from_be_bytes(seq.as_ref().try_into().ok()?);
    Some((seq, payload.clone()))
}

/// Passes every batch from `from` on to `take`. Ends well at the end marker, with an error otherwise; `take` returns false
/// when nobody listens any more.
pub(super) async fn replay<F>(
    address: &Address,
    from: u64,
    limits: Limits,
    mut take: impl FnMut(u64, Bytes) -> F,
) -> Result<(), ZmtpError>
where
    F: Future<Output = bool>,
{
    let stream = zmtp::dial(address).await?;
    let (mut reader, mut writer) = zmtp::open(stream, SocketType::Dealer, limits).await?;
    // The empty frame stands where a REQ socket would put it.
    writer.send(&[b"", &from.to_be_bytes()]).await?;
    loop {
        match reader.receive().await? {
            Received::Message(parts) => match parse(&parts) {
                Some((END, _)) => return Ok(()),
                Some((seq, payload)) => {
                    if !take(seq, payload).await {
                        return Ok(());
                    }
                }
                None => return Err(ZmtpError::Protocol("a reply that is no batch")),
            },
            Received::Ping(context) => writer.pong(&context).await?,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_and_their_ends() {
        let part = Bytes::from_static;
        let five = part(&[0, 0, 0, 0, 0, 0, 0, 5]);
        let end = part(&[0xff; 8]);
        let empty = Bytes::new();
        let old = [empty.clone(), five.clone(), part(b"p")];
        let new = [empty.clone(), part(b"topic"), five, part(b"p")];
        assert_eq!(parse(&old), Some((5, part(b"p"))));
        assert_eq!(parse(&new), Some((5, part(b"p"))));
        for marker in [
            vec![empty.clone(), end.clone(), empty.clone()],
            vec![empty.clone(), empty.clone(), end, empty.clone()],
        ] {
            assert_eq!(parse(&marker), Some((END, empty.clone())));
        }
        assert_eq!(parse(&[part(b"short"), empty]), None);
        assert_eq!(parse(&[]), None);
    }
}
