//! `topology-affinity-scorer`: how near to the endpoint that an earlier stage picked: same host 1, rack 0.2, zone 0.05, region 0.02.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Row, Scorer, Tools};
use crate::plugin::topology::{Affinity, affinity};

/// See the module's documentation. No earlier pick: 0 for all.
#[derive(Debug)]
pub struct TopologyAffinity;

impl Scorer for TopologyAffinity {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let Some(peer) = context.peer.and_then(|row| context.endpoint(row)) else {
            return;
        };
        for (row, score) in rows.iter().zip(scores) {
            *score = match context.endpoint(*row).and_then(|e| affinity(peer, e)) {
                Some(Affinity::Host) => 1.0,
                Some(Affinity::Rack) => 0.2,
                Some(Affinity::Zone) => 0.05,
                Some(Affinity::Region) => 0.02,
                None => 0.0,
            };
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    fields.text("topologyProducerName");
    Built::scorer(TopologyAffinity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn nearer_is_better_and_without_a_peer_all_are_0() {
        let zone = |z| ("topology.kubernetes.io/zone", z);
        let rack = |r| ("topology.kubernetes.io/rack", r);
        let host = |h| ("kubernetes.io/hostname", h);
        let mut f = Fixture::labelled(&[
            &[host("h1"), rack("r1"), zone("z1")],
            &[host("h1"), rack("r1"), zone("z1")],
            &[host("h2"), rack("r1"), zone("z1")],
            &[host("h3"), rack("r2"), zone("z1")],
            &[host("h4"), rack("r3"), zone("z2")],
        ]);
        assert_near(&f.score(&TopologyAffinity), &[0.0; 5]);
        f.peer = Some(0);
        assert_near(&f.score(&TopologyAffinity), &[1.0, 1.0, 0.2, 0.05, 0.02]);
    }
}
