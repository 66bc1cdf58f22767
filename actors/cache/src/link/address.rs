//! ZeroMQ endpoints: `tcp://HOST:PORT` and `ipc://PATH`.

use std::fmt;
use std::path::PathBuf;

/// A place to dial or to bind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A host (name or address, `*` when bound on all) and a port.
    Tcp {
        /// Host without brackets.
        host: String,
        /// Port; 0 takes a free one when bound.
        port: u16,
    },
    /// A Unix socket.
    Ipc(PathBuf),
}

/// The text is no endpoint that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of tcp://HOST:PORT and ipc://PATH")]
pub struct AddressError(String);

impl Address {
    /// Parses an endpoint.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let wrong = || AddressError(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("ipc://") {
            if path.is_empty() || path.contains('\0') {
                return Err(wrong());
            }
            return Ok(Address::Ipc(path.into()));
        }
        let rest = text.strip_prefix("tcp://").ok_or_else(wrong)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        if host.is_empty() || host.contains(['/', ' ']) {
            return Err(wrong());
        }
        Ok(Address::Tcp {
            host: host.to_owned(),
            port,
        })
    }

    /// Whether it means every address of its host, so that it cannot be dialled.
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Address::Tcp { host, .. } if matches!(host.as_str(), "*" | "0.0.0.0" | "::"))
    }

    /// The same with another host, if it is a wildcard.
    pub fn at_host(self, name: &str) -> Address {
        match self {
            Address::Tcp { port, .. } if self.is_wildcard() => Address::Tcp {
                host: name.trim_matches(['[', ']']).to_owned(),
                port,
            },
            other => other,
        }
    }

    /// The same, so many ports higher. `None` past the last port.
    pub fn offset(self, by: u32) -> Option<Address> {
        match self {
            Address::Tcp { host, port } => Some(Address::Tcp {
                host,
                port: u16::try_from(u32::from(port).checked_add(by)?).ok()?,
            }),
            other => Some(other),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Address::Ipc(path) => write!(f, "ipc://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_shown_and_moved() {
        for text in [
            "tcp://10.0.0.1:5557",
            "tcp://*:0",
            "tcp://[fd00::1]:1",
            "ipc:///run/x",
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "tcp://",
            "tcp://h",
            "tcp://:1",
            "tcp://h:x",
            "tcp://a:b:1",
            "udp://h:1",
            "ipc://",
            "tcp://[::1:5",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        let any = Address::parse("tcp://*:5557").unwrap();
        let moved = any.at_host("10.0.0.9").offset(2).unwrap();
        assert_eq!(moved.to_string(), "tcp://10.0.0.9:5559");
        assert_eq!(moved.clone().at_host("other"), moved);
        assert!(moved.offset(65_000).is_none());
    }
}
