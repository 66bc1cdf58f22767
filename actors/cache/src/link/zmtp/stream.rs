//! TCP and Unix sockets behind one type.

use crate::link::Address;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// A byte stream of either kind.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection before the handshake.
pub type Stream = Box<dyn Duplex>;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A host.
    Host(IpAddr),
    /// A process on this host.
    Local,
}

/// Connects.
pub async fn dial(address: &Address) -> io::Result<Stream> {
    match address {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        Address::Ipc(path) => Ok(Box::new(UnixStream::connect(path).await?)),
    }
}

/// A bound socket.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, unlinked when this is dropped.
    Ipc(UnixListener, PathBuf),
}

/// Binds. `*` is every address of the host. A Unix socket that nobody listens on any more is taken over.
pub async fn listen(address: &Address) -> io::Result<Listener> {
    match address {
        Address::Tcp { host, port } => {
            let host = if host == "*" { "0.0.0.0" } else { host };
            Ok(Listener::Tcp(TcpListener::bind((host, *port)).await?))
        }
        Address::Ipc(path) => {
            let listener = match UnixListener::bind(path) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if UnixStream::connect(path).await.is_ok() {
                        return Err(error);
                    }
                    std::fs::remove_file(path)?;
                    UnixListener::bind(path)?
                }
                bound => bound?,
            };
            Ok(Listener::Ipc(listener, path.clone()))
        }
    }
}

impl Listener {
    /// The next connection.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Box::new(stream), Peer::Host(peer.ip().to_canonical())))
            }
            Listener::Ipc(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Box::new(stream), Peer::Local))
            }
        }
    }

    /// Where it is bound, with the port that it got.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let bound = listener.local_addr()?;
                let host = match bound.ip() {
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED) => "*".to_owned(),
                    ip => ip.to_string(),
                };
                Address::Tcp {
                    host,
                    port: bound.port(),
                }
            }
            Listener::Ipc(_, path) => Address::Ipc(path.clone()),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Ipc(_, path) = self {
            // Gone already, or not ours to remove: nothing depends on it.
            let _ = std::fs::remove_file(path);
        }
    }
}
