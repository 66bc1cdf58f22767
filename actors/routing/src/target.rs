//! Where an endpoint listens: the parsed form of `http://host:port`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A model server's address: scheme, host and port. Parsed once, so that nothing is parsed per request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// TLS towards the engine.
    pub tls: bool,
    /// Host name or IP address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `host:port` with IPv6 in brackets: what goes into the `Host` header.
    pub authority: String,
}

/// Why a text is not an endpoint address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither `http://` nor `https://`.
    #[error("{0:?} does not begin with http:// or https://")]
    Scheme(String),
    /// No host, or characters that no host has.
    #[error("{0:?} has no valid host")]
    Host(String),
    /// Not a number from 1 to 65535.
    #[error("{0:?} has no valid port")]
    Port(String),
    /// Something follows the port.
    #[error("{0:?} has a path, query or user name; an endpoint is only scheme, host and port")]
    Extra(String),
}

impl Target {
    /// Parses `http://host[:port][/]` or `https://host[:port][/]`. The port defaults to 80 or 443; IPv6 stands in brackets.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let (tls, rest) = if let Some(rest) = url.strip_prefix("http://") {
            (false, rest)
        } else if let Some(rest) = url.strip_prefix("https://") {
            (true, rest)
        } else {
            return Err(TargetError::Scheme(url.into()));
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(TargetError::Extra(url.into()));
        }
        let (host, port, v6) = if let Some(after) = rest.strip_prefix('[') {
            let Some((host, port)) = after.split_once(']') else {
                return Err(TargetError::Host(url.into()));
            };
            if host.parse::<Ipv6Addr>().is_err() {
                return Err(TargetError::Host(url.into()));
            }
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port), true),
                None if port.is_empty() => (host, None, true),
                None => return Err(TargetError::Port(url.into())),
            }
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (host, Some(port), false),
                None => (rest, None, false),
            }
        };
        if !v6 && !valid_host(host) {
            return Err(TargetError::Host(url.into()));
        }
        let port = match port {
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(port) => {
                let all_digits = port.bytes().all(|b| b.is_ascii_digit());
                port.parse::<u16>()
                    .ok()
                    .filter(|port| *port != 0 && all_digits)
                    .ok_or_else(|| TargetError::Port(url.into()))?
            }
        };
        Ok(Self::new(tls, host, port))
    }

    /// A target from parts; `host` without brackets.
    pub fn new(tls: bool, host: &str, port: u16) -> Self {
        let authority = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        Self {
            tls,
            host: host.to_owned(),
            port,
            authority,
        }
    }

    /// The address if the host is one and needs no look-up.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

/// A host name (RFC 1123, underscores tolerated as in service records) or an IPv4 address.
fn valid_host(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_addresses_and_default_ports() {
        for (url, shown) in [
            (
                "http://gpu-1.example.org:8000",
                "http://gpu-1.example.org:8000",
            ),
            ("http://10.0.0.1", "http://10.0.0.1:80"),
            ("https://gpu/", "https://gpu:443"),
            ("http://[fd00::1]:8000", "http://[fd00::1]:8000"),
            ("http://[::1]", "http://[::1]:80"),
        ] {
            assert_eq!(Target::parse(url).unwrap().to_string(), shown);
        }
        assert_eq!(
            Target::parse("http://[fd00::1]:8000").unwrap().host,
            "fd00::1"
        );
    }

    #[test]
    fn refuses_what_is_no_endpoint() {
        for (url, kind) in [
            ("gpu:8000", TargetError::Scheme("gpu:8000".into())),
            ("http://", TargetError::Host("http://".into())),
            ("http://a b:1", TargetError::Host("http://a b:1".into())),
            (
                "http://fd00::1:8000",
                TargetError::Port("http://fd00::1:8000".into()),
            ),
            ("http://a:0", TargetError::Port("http://a:0".into())),
            ("http://a:+80", TargetError::Port("http://a:+80".into())),
            ("http://a:65536", TargetError::Port("http://a:65536".into())),
            (
                "http://a:80/v1",
                TargetError::Extra("http://a:80/v1".into()),
            ),
            ("http://u@a:80", TargetError::Extra("http://u@a:80".into())),
            ("http://[::1:80", TargetError::Host("http://[::1:80".into())),
        ] {
            assert_eq!(Target::parse(url), Err(kind));
        }
    }
}
