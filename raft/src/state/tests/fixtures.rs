//! Commands and resources for tests, as short as they can be said.

use quorate_proto::{
    store::v1::{
        Command, CommandBatch, DeleteResource, InitCluster, PutResource, RegisterNode, RemoveNode,
        command::Op,
    },
    v1::{
        EndpointSpec, Kind, NodeSpec, PoolSpec, RegionSpec, Resource, SettingSpec, resource::Spec,
    },
};

use crate::{
    snapshot,
    state::{ControlState, SCHEMA, tables::named},
};

pub(crate) fn resource(name: &str, spec: Spec) -> Resource {
    Resource {
        metadata: Some(named(name)),
        spec: Some(spec),
    }
}

pub(crate) fn setting(name: &str, json: &str) -> Resource {
    resource(name, Spec::Setting(SettingSpec { json: json.into() }))
}

pub(crate) fn pool(name: &str) -> Resource {
    resource(name, Spec::Pool(PoolSpec::default()))
}

pub(crate) fn region(name: &str) -> Resource {
    resource(name, Spec::Region(RegionSpec::default()))
}

pub(crate) fn endpoint(name: &str, pool: &str, region: &str) -> Resource {
    let spec = EndpointSpec {
        pool: pool.into(),
        region: region.into(),
        url: "http://127.0.0.1:8000".into(),
        source: "api".into(),
        ..EndpointSpec::default()
    };
    resource(name, Spec::Endpoint(spec))
}

pub(crate) fn command(op: Op) -> Command {
    Command {
        op: Some(op),
        ..Command::default()
    }
}

pub(crate) fn put(resource: Resource) -> Command {
    command(Op::Put(PutResource {
        resource: Some(resource),
        expected_version: None,
    }))
}

pub(crate) fn delete(kind: Kind, name: &str) -> Command {
    command(Op::Delete(DeleteResource {
        kind: kind.into(),
        name: name.into(),
        expected_version: None,
    }))
}

pub(crate) fn register_node(name: &str, instance: &str, region: &str) -> RegisterNode {
    let node = NodeSpec {
        instance: instance.into(),
        region: region.into(),
        peer_address: "127.0.0.1:7000".into(),
        ..NodeSpec::default()
    };
    RegisterNode {
        name: name.into(),
        node: Some(node),
    }
}

pub(crate) fn register(name: &str, instance: &str, region: &str) -> Command {
    command(Op::RegisterNode(register_node(name, instance, region)))
}

pub(crate) fn remove(node_id: u64) -> Command {
    command(Op::RemoveNode(RemoveNode { node_id }))
}

/// Founds a cluster with a node in region r1.
pub(crate) fn init(cluster_id: &str, name: &str) -> Command {
    command(Op::InitCluster(InitCluster {
        cluster_id: cluster_id.into(),
        timing: "lan".into(),
        founder: Some(register_node(name, &format!("instance-{name}"), "r1")),
    }))
}

/// The command that arrived at this wall clock time.
pub(crate) fn at(mut command: Command, time_unix_ms: i64) -> Command {
    command.time_unix_ms = time_unix_ms;
    command
}

/// The command that this node accepted.
pub(crate) fn from(mut command: Command, origin_node_id: u64) -> Command {
    command.origin_node_id = origin_node_id;
    command
}

pub(crate) fn keyed(key: &str, mut command: Command) -> Command {
    command.idempotency_key = key.into();
    command
}

/// The command under the condition that its resource has this version.
pub(crate) fn expecting(mut command: Command, version: u64) -> Command {
    match &mut command.op {
        Some(Op::Put(put)) => put.expected_version = Some(version),
        Some(Op::Delete(delete)) => delete.expected_version = Some(version),
        _ => {}
    }
    command
}

pub(crate) fn batch(commands: impl IntoIterator<Item = Command>) -> CommandBatch {
    CommandBatch {
        schema: SCHEMA,
        commands: commands.into_iter().collect(),
    }
}

/// The state as bytes.
pub(crate) fn bytes(state: &ControlState) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot::write_state(
        &mut bytes,
        &snapshot::header(state.cluster_id(), "control", 0, 0, &[]),
        state,
    )
    .unwrap();
    bytes
}
