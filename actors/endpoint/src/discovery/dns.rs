//! Endpoints from DNS: the A and AAAA records of a host name, or the SRV records of a service name.

use crate::discovery::file::url_of;
use crate::discovery::reconcile::valid_name;
use crate::discovery::{Answer, Found};
use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{RData, RecordType};
use quorate_proto::v1::DnsDiscovery;
use std::time::Duration;

/// Longest time for one look-up, all retries included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A name that is looked up again and again. The resolver keeps answers as long as their time to live says.
pub struct DnsSource {
    pool: String,
    spec: DnsDiscovery,
    ports: Vec<u32>,
    resolver: Option<TokioResolver>,
}

impl DnsSource {
    /// Uses the system's resolver configuration, read at the first look and again after a failure.
    pub fn new(pool: &str, spec: DnsDiscovery, ports: Vec<u32>) -> Self {
        Self {
            pool: pool.to_owned(),
            spec,
            ports,
            resolver: None,
        }
    }

    /// Uses another resolver.
    #[cfg(test)]
    fn with_resolver(mut self, resolver: TokioResolver) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Looks the name up. A name that does not exist is an empty answer.
    ///
    /// # Errors
    /// No server answered, or the answer was an error.
    pub async fn look(&mut self) -> Result<Answer, String> {
        let resolver = match &self.resolver {
            Some(resolver) => resolver,
            None => {
                let built = TokioResolver::builder_tokio()
                    .and_then(|b| b.build())
                    .map_err(|e| format!("the system's DNS configuration is not usable: {e}"))?;
                self.resolver.insert(built)
            }
        };
        let name = self.spec.name.as_str();
        // Service names begin with an underscore (RFC 2782).
        let looked = tokio::time::timeout(TIMEOUT, async {
            if name.starts_with('_') {
                services(resolver, name).await
            } else {
                addresses(resolver, name, self.spec.port, &self.ports).await
            }
        });
        let failure = match looked.await {
            Ok(Ok(hosts)) => return Ok(self.answer(hosts)),
            Ok(Err(e)) if e.is_nx_domain() || e.is_no_records_found() => {
                return Ok(Answer::default());
            }
            Ok(Err(e)) => format!("{name}: {e}"),
            Err(_) => format!("{name}: no answer within {TIMEOUT:?}"),
        };
        self.resolver = None;
        Err(failure)
    }

    fn answer(&self, hosts: Vec<Host>) -> Answer {
        let scheme = match self.spec.scheme.as_str() {
            "https" => "https",
            _ => "http",
        };
        let mut answer = Answer::default();
        for host in hosts {
            let name = format!(
                "{}-{}-{}",
                self.pool,
                host.host.to_ascii_lowercase(),
                host.port
            );
            if host.port == 0 {
                answer.problems.push(format!(
                    "{:?} has no port: neither port nor target_ports is set",
                    host.host
                ));
            } else if valid_name(&name) {
                let found = Found {
                    url: url_of(scheme, &host.host, &host.port.to_string()),
                    rank: host.rank,
                    ..Default::default()
                };
                answer.found.insert(name, found);
            } else {
                answer
                    .problems
                    .push(format!("{name:?} cannot be an endpoint's name"));
            }
        }
        answer
    }
}

struct Host {
    host: String,
    port: u32,
    rank: Option<u32>,
}

async fn addresses(
    resolver: &TokioResolver,
    name: &str,
    port: u32,
    ports: &[u32],
) -> Result<Vec<Host>, NetError> {
    let found = resolver.lookup_ip(name).await?;
    let single = [port];
    let ports = if ports.is_empty() { &single } else { ports };
    let host_on_ports = |ip: std::net::IpAddr| {
        (0u32..).zip(ports).map(move |(i, port)| Host {
            host: ip.to_string(),
            port: *port,
            rank: (ports.len() > 1).then_some(i),
        })
    };
    Ok(found.iter().flat_map(host_on_ports).collect())
}

async fn services(resolver: &TokioResolver, name: &str) -> Result<Vec<Host>, NetError> {
    let found = resolver.lookup(name, RecordType::SRV).await?;
    Ok(found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.target.to_utf8(), srv.port)),
            _ => None,
        })
        // A lone dot says that the service is not available there.
        .filter(|(target, _)| target != ".")
        .map(|(target, port)| Host {
            host: target.trim_end_matches('.').to_owned(),
            port: u32::from(port),
            rank: None,
        })
        .collect())
}

#[cfg(test)]
mod tests;
