//! Addresses as operators write them: URLs of model servers and `host:port` pairs, checked and brought into one form.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

const MAX_URL: usize = 2048;

/// What is wrong with an address, in words that follow the name of the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(String);

fn error<T>(message: impl Into<String>) -> Result<T, AddressError> {
    Err(AddressError(message.into()))
}

/// A host: a DNS name (ASCII, lower case) or an IP address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name to be resolved.
    Name(String),
    /// A literal address.
    Ip(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// `host:port`; IPv6 addresses stand in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse_host_port(text, None)
    }
}

/// The base URL of a model server: no path, no user, always a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointUrl {
    /// https.
    pub tls: bool,
    /// Where.
    pub address: HostPort,
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}",
            if self.tls { "https" } else { "http" },
            self.address
        )
    }
}

impl FromStr for EndpointUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match split(text)? {
            (url, "" | "/") => Ok(url),
            _ => error("must have no path: requests bring their own"),
        }
    }
}

/// Checks the URL of a page (a path and a query are allowed) and returns it in its one form.
///
/// # Errors
/// [`AddressError`] in words.
pub fn canonical_page_url(text: &str) -> Result<String, AddressError> {
    let (url, rest) = split(text)?;
    if rest.contains('#') {
        return error("must have no fragment");
    }
    let slash = if rest.starts_with('/') { "" } else { "/" };
    Ok(format!("{url}{slash}{rest}"))
}

/// Splits a URL into scheme, host and port, and the rest as it stands.
fn split(text: &str) -> Result<(EndpointUrl, &str), AddressError> {
    if text.len() > MAX_URL {
        return error(format!("must be at most {MAX_URL} characters long"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return error("must have no white space or control characters");
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return error("must begin with http:// or https://"),
    };
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if authority.contains('@') {
        return error("must have no user or password");
    }
    if rest.starts_with('\\') {
        return error("must have no backslash");
    }
    let address = parse_host_port(authority, Some(if tls { 443 } else { 80 }))?;
    Ok((EndpointUrl { tls, address }, rest))
}

fn parse_host_port(text: &str, default_port: Option<u16>) -> Result<HostPort, AddressError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((ip, port)) = rest.split_once(']') else {
            return error("has a '[' without a ']'");
        };
        let Ok(ip) = ip.parse::<Ipv6Addr>() else {
            return error(format!("has no valid IPv6 address in [{ip}]"));
        };
        let port = match port.strip_prefix(':') {
            None if !port.is_empty() => {
                return error("has something other than a port after the ']'");
            }
            port => port,
        };
        (Host::Ip(ip.into()), port)
    } else {
        let (host, port) = match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return error("must have brackets around its IPv6 address");
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        (parse_host(host)?, port)
    };
    if let Host::Ip(ip) = host
        && (ip.is_unspecified() || ip.is_multicast())
    {
        return error(format!(
            "has an address ({ip}) that nothing can be reached at"
        ));
    }
    let port = match (port, default_port) {
        (None, Some(port)) => port,
        (None, None) => return error("must have a port"),
        // `parse` would take a sign.
        (Some(digits), _) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
            Ok(0) | Err(_) => return error("must have a port from 1 to 65535"),
            Ok(port) => port,
        },
        _ => return error("must have a port from 1 to 65535"),
    };
    Ok(HostPort { host, port })
}

fn parse_host(text: &str) -> Result<Host, AddressError> {
    if text.is_empty() {
        return error("must have a host");
    }
    // A name whose last part is a number is an IPv4 address or a mistake, never a name (as the URL standard has it).
    if text
        .rsplit('.')
        .next()
        .is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
    {
        return match text.parse::<Ipv4Addr>() {
            Ok(ip) => Ok(Host::Ip(ip.into())),
            Err(_) => error(format!("has no valid IPv4 address in {text:?}")),
        };
    }
    check_host_name(text)?;
    Ok(Host::Name(text.to_ascii_lowercase()))
}

/// Checks a DNS name. Underscores are let through: service names have them, and so do container names.
///
/// # Errors
/// [`AddressError`] in words.
pub fn check_host_name(text: &str) -> Result<(), AddressError> {
    if !text.is_ascii() {
        return error("must have an ASCII host name (write others in their xn-- form)");
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label_is_good) {
        return error(format!(
            "has no valid host name in {:?}",
            text.chars().take(80).collect::<String>()
        ));
    }
    Ok(())
}
