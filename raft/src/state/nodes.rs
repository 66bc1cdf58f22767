//! Who is a node of the cluster: founding it, joining it, and leaving it for good.

use std::sync::Arc;

use quorate_proto::{
    store::v1::{InitCluster, RegisterNode, Rejection, RemoveNode, RemovedNode},
    v1::{ApplyOutcome, Kind, NodeSpec, RegionSpec, Resource, resource::Spec},
};

use super::{
    ChangeEvent, FOUNDER_ID,
    reply::{Done, invalid, not_found, precondition},
    resource::ResourceExt as _,
    tables::{Origin, Tables, named},
    validate,
};

impl Tables {
    pub(super) fn init_cluster(
        &mut self,
        init: &InitCluster,
        origin: Origin,
        events: &mut Vec<ChangeEvent>,
    ) -> Done {
        validate::cluster_facts(&init.cluster_id, &init.timing)?;
        let Some(RegisterNode {
            name,
            node: Some(node),
        }) = &init.founder
        else {
            return Err(invalid("founder", "must be set"));
        };
        validate::node("founder", name, node)?;
        if !self.cluster_id.is_empty() {
            let founder = self.node_by_id(FOUNDER_ID).filter(|r| {
                *self.cluster_id == *init.cluster_id
                    && *self.timing == *init.timing
                    && r.name() == name
                    && r.node().is_some_and(|n| n.instance == node.instance)
            });
            return match founder {
                Some(founder) => Ok((Arc::clone(founder), ApplyOutcome::Unchanged)),
                None => Err(precondition(format!(
                    "cluster {} is initialised already",
                    self.cluster_id
                ))),
            };
        }
        self.cluster_id = Arc::from(init.cluster_id.as_str());
        self.timing = Arc::from(init.timing.as_str());
        self.ensure_region(&node.region, origin, events);
        Ok(self.write_node(name, node, FOUNDER_ID, origin, events))
    }

    pub(super) fn register_node(
        &mut self,
        register: &RegisterNode,
        origin: Origin,
        events: &mut Vec<ChangeEvent>,
    ) -> Done {
        let name = register.name.as_str();
        let Some(node) = &register.node else {
            return Err(invalid("node", "must be set"));
        };
        validate::node("node", name, node)?;
        let known_id = self.known_id(name, node)?;
        self.ensure_region(&node.region, origin, events);
        // A new id is the revision that the registration is about to take. Revisions only go up and each is taken by one
        // change, so no other node has had or will get this id; the founder's id, 1, was the revision of its region.
        let id = known_id.unwrap_or(self.revision + 1);
        Ok(self.write_node(name, node, id, origin, events))
    }

    /// The id that this data directory has already, or the reason why it cannot be this node.
    fn known_id(&self, name: &str, node: &NodeSpec) -> Result<Option<u64>, Rejection> {
        if let Some(removed) = self.removed.get(node.instance.as_str()) {
            return Err(precondition(format!(
                "this data directory was node {} ({:?}), which was removed from the cluster for good: start with an empty one",
                removed.node_id, removed.name
            )));
        }
        let by_instance = self.list(Kind::Node).find_map(|r| {
            let n = r.node().filter(|n| n.instance == node.instance)?;
            Some((r.name(), n.node_id))
        });
        let id = match by_instance {
            Some((known_name, id)) if known_name == name => Some(id),
            Some((known_name, id)) => {
                return Err(precondition(format!(
                    "this data directory is node {id}, named {known_name:?}: start it under that name, not as {name:?}"
                )));
            }
            None => {
                if let Some(n) = self.get(Kind::Node, name).and_then(|r| r.node()) {
                    return Err(precondition(format!(
                        "the name {name:?} belongs to node {} with another data directory: choose another name, or, if that \
                         directory is lost, remove node {} from the cluster and join again",
                        n.node_id, n.node_id
                    )));
                }
                None
            }
        };
        if node.node_id != 0 && id != Some(node.node_id) {
            return Err(precondition(format!(
                "this data directory says that it is node {}, but the cluster does not know it as that node: start with an \
                 empty one",
                node.node_id
            )));
        }
        Ok(id)
    }

    pub(super) fn remove_node(
        &mut self,
        remove: &RemoveNode,
        events: &mut Vec<ChangeEvent>,
    ) -> Done {
        let Some(resource) = self.node_by_id(remove.node_id).cloned() else {
            return Err(not_found(Kind::Node, &remove.node_id.to_string()));
        };
        if self.list(Kind::Node).count() == 1 {
            return Err(precondition("the last node of a cluster cannot be removed"));
        }
        self.erase(Kind::Node, resource.name(), events);
        self.withdraw(remove.node_id, |_| true);
        let instance = resource
            .node()
            .map(|n| n.instance.clone())
            .unwrap_or_default();
        self.removed.insert(
            Arc::from(instance.as_str()),
            Arc::new(RemovedNode {
                node_id: remove.node_id,
                instance,
                name: resource.name().to_owned(),
                revision: self.revision,
            }),
        );
        Ok((resource, ApplyOutcome::Unspecified))
    }

    fn ensure_region(&mut self, region: &str, origin: Origin, events: &mut Vec<ChangeEvent>) {
        if self.get(Kind::Region, region).is_none() {
            let resource = Resource {
                metadata: Some(named(region)),
                spec: Some(Spec::Region(RegionSpec::default())),
            };
            self.write(resource, None, origin, events);
        }
    }

    fn write_node(
        &mut self,
        name: &str,
        node: &NodeSpec,
        node_id: u64,
        origin: Origin,
        events: &mut Vec<ChangeEvent>,
    ) -> (Arc<Resource>, ApplyOutcome) {
        let spec = Spec::Node(NodeSpec {
            node_id,
            ..node.clone()
        });
        let resource = Resource {
            metadata: Some(named(name)),
            spec: Some(spec),
        };
        let existing = self.get(Kind::Node, name).cloned();
        self.write(resource, existing, origin, events)
    }
}
