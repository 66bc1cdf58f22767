//! Loopback addresses that belong to one fleet.
//!
//! All of 127.0.0.0/8 is this machine, so every fleet takes a network of its own and every process in it an address of its own with
//! the usual ports. Tests can run side by side, and a port is free again for a restarted process: outgoing connections come
//! from 127.0.0.1 and never take it.

use anyhow::bail;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Held on the last address of a network while it is in use.
const LOCK: (u8, u16) = (254, 7099);

/// A network of 253 addresses.
#[derive(Debug)]
pub struct Subnet {
    network: (u8, u8),
    _lock: TcpListener,
}

impl Subnet {
    /// Takes a network that nobody uses.
    ///
    /// # Errors
    /// None found after many attempts.
    pub fn claim() -> anyhow::Result<Self> {
        for _ in 0..200 {
            let network = (fastrand::u8(16..=250), fastrand::u8(1..=250));
            let lock = SocketAddr::from(([127, network.0, network.1, LOCK.0], LOCK.1));
            if let Ok(lock) = TcpListener::bind(lock) {
                return Ok(Self {
                    network,
                    _lock: lock,
                });
            }
        }
        bail!("no free loopback network")
    }

    /// Address number `host` (1 to 253).
    pub fn host(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.network.0, self.network.1, host)
    }
}
