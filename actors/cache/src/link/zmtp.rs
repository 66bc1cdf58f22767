//! ZeroMQ's wire protocol, ZMTP 3.0 with the NULL mechanism, as far as event streams need it.
//!
//! One [`Reader`] and one [`Writer`] are the two halves of a connection to one peer; what a ZeroMQ socket would do with
//! several peers is the caller's affair. Peers that speak 3.1 (libzmq since 4.3) answer in 3.0. Every length that a peer
//! claims is checked against [`Limits`] before memory is taken. Specification: <https://rfc.zeromq.org/spec/23/>.

mod frame;
mod handshake;
mod stream;

#[cfg(test)]
mod tests;

pub use frame::{Limits, Reader, Received, Writer};
pub use handshake::{SocketType, open};
pub use stream::{Listener, Peer, Stream, dial, listen};

/// The connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ZmtpError {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer does not speak ZMTP 3.
    #[error("the peer does not speak ZMTP 3: {0}")]
    Protocol(&'static str),
    /// The peer wants another security mechanism.
    #[error("the peer wants the security mechanism {0:?}")]
    Mechanism(String),
    /// The peer is a socket of a kind that does not fit.
    #[error("the peer is a {0:?} socket, which does not fit")]
    WrongSocket(String),
    /// The peer refused the connection.
    #[error("the peer refused the connection: {0:?}")]
    Refused(String),
    /// A frame or message is longer than the limits allow.
    #[error("the peer sent a message longer than {0} bytes")]
    TooLong(usize),
}
