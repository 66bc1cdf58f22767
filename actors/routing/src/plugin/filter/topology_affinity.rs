//! `topology-affinity-filter`: endpoints near enough to the one that an earlier stage picked; all if none is, or nothing was picked.

use super::keep;
use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Filter, Row, Tools};
use crate::plugin::topology::{Affinity, affinity};

/// See the module's documentation.
#[derive(Debug)]
pub struct TopologyFilter {
    /// At least this near.
    pub min: Affinity,
}

impl Filter for TopologyFilter {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, _: &mut Tools) {
        let Some(peer) = context.peer.and_then(|row| context.endpoint(row)) else {
            return;
        };
        keep(rows, true, |row| {
            context
                .endpoint(row)
                .and_then(|e| affinity(peer, e))
                .is_some_and(|near| near >= self.min)
        });
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    fields.text("topologyProducerName");
    if fields.raw("peerTopologyHeader").is_some() {
        fields.warn(
            "peerTopologyHeader",
            "has no meaning here: stages run in one router",
        );
    }
    Built::filter(TopologyFilter {
        min: fields.one_of(
            "minAffinity",
            &[
                ("host", Affinity::Host),
                ("rack", Affinity::Rack),
                ("zone", Affinity::Zone),
                ("region", Affinity::Region),
            ],
            Affinity::Host,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn near_enough_or_all() {
        let zone = |z| ("topology.kubernetes.io/zone", z);
        let mut f = Fixture::labelled(&[&[zone("z1")], &[zone("z1")], &[zone("z2")]]);
        let filter = |min| TopologyFilter { min };
        assert_eq!(f.filter(&filter(Affinity::Zone)), [0, 1, 2]);
        f.peer = Some(0);
        assert_eq!(f.filter(&filter(Affinity::Zone)), [0, 1]);
        assert_eq!(f.filter(&filter(Affinity::Region)), [0, 1, 2]);
        assert_eq!(f.filter(&filter(Affinity::Host)), [0]);
        f.peer = Some(2);
        assert_eq!(f.filter(&filter(Affinity::Rack)), [2]);
    }
}
