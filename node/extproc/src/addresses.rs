//! Where endpoints are reached. Envoy takes IP addresses only, so the names among the endpoints' hosts are looked up here, ahead of
//! requests and again and again; an address never waits for a look-up.

use arc_swap::ArcSwap;
use quorate_routing::{RoutingView, SharedView, Target};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How often new names are looked for.
const LOOK: Duration = Duration::from_millis(200);
/// How often every name is looked up again.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest wait for one look-up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Names and their addresses as they were found last.
#[derive(Debug, Default)]
pub(crate) struct Addresses(ArcSwap<HashMap<String, IpAddr>>);

impl Addresses {
    /// The address of a target; `None` while its name is not known.
    pub fn of(&self, target: &Target) -> Option<SocketAddr> {
        let ip = match target.host.parse::<IpAddr>() {
            Ok(ip) => ip,
            Err(_) => *self.0.load().get(&target.host)?,
        };
        Some(SocketAddr::new(ip.to_canonical(), target.port))
    }

    /// Looks names up for as long as it is polled.
    pub async fn follow(&self, view: &SharedView) {
        let mut again_at = Instant::now();
        let mut tick = tokio::time::interval(LOOK);
        let mut seen: Option<Arc<RoutingView>> = None;
        loop {
            tick.tick().await;
            let now = view.load_full();
            let changed = !seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &now));
            if changed || Instant::now() >= again_at {
                if Instant::now() >= again_at {
                    again_at = Instant::now() + AGAIN;
                    self.refresh(&now, true).await;
                } else {
                    self.refresh(&now, false).await;
                }
                seen = Some(now);
            }
        }
    }

    /// Looks up the names of a view, those that are known only if `all`. A name that cannot be found keeps its last address.
    async fn refresh(&self, view: &RoutingView, all: bool) {
        let known = self.0.load_full();
        let mut found: HashMap<String, IpAddr> = HashMap::new();
        let endpoints = view.pools().iter().flat_map(|pool| &pool.endpoints);
        for target in endpoints.map(|endpoint| &endpoint.spec().target) {
            if target.host.parse::<IpAddr>().is_ok() || found.contains_key(&target.host) {
                continue;
            }
            let before = known.get(&target.host).copied();
            let ip = match before {
                Some(ip) if !all => Some(ip),
                _ => look_up(target, before).await.or(before),
            };
            match ip {
                Some(ip) => {
                    found.insert(target.host.clone(), ip);
                }
                None => tracing::debug!(host = target.host, "an endpoint's name is not found"),
            }
        }
        if *known != found {
            self.0.store(Arc::new(found));
        }
    }
}

/// An address of a name: the one from `before` if it is still among them, else the first.
async fn look_up(target: &Target, before: Option<IpAddr>) -> Option<IpAddr> {
    let asked = tokio::net::lookup_host((target.host.as_str(), target.port));
    let all: Vec<IpAddr> = timeout(PATIENCE, asked)
        .await
        .ok()?
        .ok()?
        .map(|address| address.ip())
        .collect();
    before
        .filter(|ip| all.contains(ip))
        .or_else(|| all.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_need_no_look_up_and_names_get_one() {
        let addresses = Addresses::default();
        let of = |host: &str| addresses.of(&Target::new(false, host, 80));
        assert_eq!(of("10.0.0.1"), "10.0.0.1:80".parse().ok());
        assert_eq!(of("fd00::1"), "[fd00::1]:80".parse().ok());
        assert_eq!(of("::ffff:10.0.0.1"), "10.0.0.1:80".parse().ok());
        assert_eq!(of("localhost"), None);
        let found = look_up(&Target::new(false, "localhost", 80), None).await;
        assert!(found.is_some_and(|ip| ip.is_loopback()), "{found:?}");
        let kept = look_up(&Target::new(false, "localhost", 80), found).await;
        assert_eq!(kept, found);
    }
}
