//! How near two endpoints are to each other, by their labels; the host falls back to the address, the region to the endpoint's own.

use crate::endpoint::Endpoint;

const HOST: &str = "kubernetes.io/hostname";
const RACK: &str = "topology.kubernetes.io/rack";
const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// From far to near.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Affinity {
    /// The same region.
    Region,
    /// The same zone.
    Zone,
    /// The same rack.
    Rack,
    /// The same host.
    Host,
}

fn place(endpoint: &Endpoint, level: Affinity) -> Option<&str> {
    let spec = endpoint.spec();
    let label = |key: &str| spec.labels.get(key).map(String::as_str);
    match level {
        Affinity::Host => label(HOST).or(Some(spec.target.host.as_str())),
        Affinity::Rack => label(RACK),
        Affinity::Zone => label(ZONE),
        Affinity::Region => label(REGION).or(Some(&*spec.region)),
    }
    .filter(|place| !place.is_empty())
}

/// The nearest level that both share. A place that is not known is shared with nobody.
pub fn affinity(a: &Endpoint, b: &Endpoint) -> Option<Affinity> {
    [
        Affinity::Host,
        Affinity::Rack,
        Affinity::Zone,
        Affinity::Region,
    ]
    .into_iter()
    .find(|level| place(a, *level).is_some_and(|place_a| place(b, *level) == Some(place_a)))
}
