//! Whose a stream is that an engine opened by dialling in: by its topic, or by the host it came from.
//!
//! The topic `kv@ID@MODEL` names the engine by ID, any other topic by the whole of it: an endpoint's name, its `host:port`, or its host. A stream
//! without a topic is known by the address that it came from. What several endpoints could mean is nobody's: a wrong guess would put
//! blocks where they are not.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// An endpoint whose engine dials in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dialler {
    /// Its number.
    pub endpoint: u64,
    /// Its name.
    pub name: Arc<str>,
    /// Host and port where it listens for requests.
    pub authority: String,
    /// Its host.
    pub host: String,
    /// Addresses of its host.
    pub addresses: Vec<IpAddr>,
}

/// Why a stream is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nobody {
    /// No endpoint is meant.
    Unknown,
    /// Several are.
    Ambiguous,
}

/// The one endpoint of `among` that the stream `name` (a topic, or an address) is of.
pub(super) fn whose(name: &str, among: &[&Dialler]) -> Result<u64, Nobody> {
    let mut parts = name.split('@');
    let id = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(id), Some(_), None) => id,
        _ => name,
    };
    let exact = |d: &Dialler| d.name.as_ref() == id || d.authority == id;
    if let Some(found) = only(among, exact)? {
        return Ok(found);
    }
    let socket = id.parse::<SocketAddr>().ok();
    let address = id
        .parse()
        .ok()
        .or(socket.map(|s| s.ip()))
        .map(|ip: IpAddr| ip.to_canonical());
    let host = match id.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => id,
    };
    let near = |d: &Dialler| d.host == host || address.is_some_and(|ip| d.addresses.contains(&ip));
    only(among, near)?.ok_or(Nobody::Unknown)
}

fn only(among: &[&Dialler], is: impl Fn(&Dialler) -> bool) -> Result<Option<u64>, Nobody> {
    let mut found = among.iter().filter(|d| is(d)).map(|d| d.endpoint);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(Nobody::Ambiguous),
        (found, None) => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialler(endpoint: u64, name: &str, host: &str, port: u16, address: &str) -> Dialler {
        Dialler {
            endpoint,
            name: name.into(),
            authority: format!("{host}:{port}"),
            host: host.into(),
            addresses: vec![address.parse().unwrap()],
        }
    }

    #[test]
    fn by_topic_and_by_host() {
        let all = [
            dialler(1, "a", "gpu-1", 8000, "10.0.0.1"),
            dialler(2, "b", "gpu-2", 8000, "10.0.0.2"),
            dialler(3, "c", "gpu-2", 8001, "10.0.0.2"),
        ];
        let all: Vec<&Dialler> = all.iter().collect();
        for (name, is) in [
            ("kv@a@m", Ok(1)),
            ("kv@gpu-2:8001@m", Ok(3)),
            ("kv@10.0.0.1:8000@m", Ok(1)),
            ("kv@10.0.0.1@m", Ok(1)),
            ("kv@gpu-1:5557@org/model", Ok(1)),
            ("c", Ok(3)),
            ("10.0.0.1", Ok(1)),
            ("::ffff:10.0.0.1", Ok(1)),
            ("gpu-1", Ok(1)),
            ("10.0.0.2", Err(Nobody::Ambiguous)),
            ("kv@10.0.0.2:8001@m", Err(Nobody::Ambiguous)),
            ("10.0.0.9", Err(Nobody::Unknown)),
            ("kv", Err(Nobody::Unknown)),
            ("kv@d@m", Err(Nobody::Unknown)),
            ("", Err(Nobody::Unknown)),
        ] {
            assert_eq!(whose(name, &all), is, "{name}");
        }
        assert_eq!(whose("a", &[]), Err(Nobody::Unknown));
    }
}
