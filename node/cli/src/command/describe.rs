//! `quorate describe`: everything that is known about one resource, live state included.

use std::{collections::BTreeMap, time::SystemTime};

use quorate_proto::v1::{
    ClusterStatusRequest, Consistency, DescribePoolRequest, EndpointStatus, Kind, NodeSpec,
    PoolStatus, Resource, Role, resource::Spec,
};

use super::{
    endpoint::{self, describe_all, percent, state_table, state_word, status_tree},
    get::{Filter, get, list},
    target,
};
use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs},
    kind,
    manifest::{Tree, duration, engine_word, manifest_of, timestamp},
    output::{age, json, plain, resources::labels, yaml},
};

/// Arguments of `describe`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Show everything that is known about one resource, live state included\n\n\
        For an endpoint: whether the answering node would send requests to it and, if not, why. For a pool: how it \
        schedules, and its endpoints. \
        For a node: its part in the cluster. Ask another node with --server to see what that one knows.",
    after_help = format!("\
Examples:
  quorate describe endpoint gpu-1
  quorate describe pool/chat
  quorate describe endpoint gpu-1 -o json | jq .status.reasons

{EXIT_CODES}")
)]
pub struct DescribeArgs {
    /// KIND NAME or KIND/NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND NAME")]
    target: Vec<String>,
    /// text, or yaml or json for programs
    #[arg(short, long, value_parser = ["text", "yaml", "json"], default_value = "text", value_name = "FORMAT")]
    output: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn execute(args: DescribeArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    let names = target::parse_names(&args.target)?;
    let [(kind, name)] = names.as_slice() else {
        return Err(Failure::new(Exit::Usage, "one resource at a time"));
    };
    let about = match kind {
        Kind::Endpoint => about_endpoint(&client, name).await?,
        Kind::Pool => about_pool(&client, name).await?,
        Kind::Node => about_node(&client, name).await?,
        _ => About {
            resource: get(&client, *kind, name, Consistency::Stale).await?.0,
            status: None,
            text: Vec::new(),
        },
    };
    if args.output != "text" {
        let mut tree = manifest_of(&about.resource);
        tree.put_some("status", about.status);
        let text = if args.output == "json" {
            json(&tree)? + "\n"
        } else {
            yaml(&tree)?
        };
        io.out.write_all(text.as_bytes())?;
        return Ok(Exit::Ok);
    }
    write_head(&about.resource, io)?;
    io.out.write_all(&about.text)?;
    Ok(Exit::Ok)
}

/// A resource with its live state, for programs and for people.
struct About {
    resource: Resource,
    status: Option<Tree>,
    text: Vec<u8>,
}

/// The metadata and the spec.
fn write_head(resource: &Resource, io: &mut Io<'_>) -> Result<(), Failure> {
    let mut lines = Lines::default();
    lines.put("Name", kind::name_of(resource));
    lines.put("Kind", kind::singular(kind::of(resource)));
    if let Some(metadata) = &resource.metadata {
        lines.put("Labels", &labels(&metadata.labels));
        lines.put("Annotations", &labels(&metadata.annotations));
        let version = format!(
            "{} (generation {})",
            metadata.resource_version, metadata.generation
        );
        lines.put("Version", &version);
        for (name, time) in [
            ("Created", &metadata.created_at),
            ("Updated", &metadata.updated_at),
        ] {
            if let Some(time) = time {
                lines.put(
                    name,
                    &format!(
                        "{} ({} ago)",
                        timestamp(time),
                        age(Some(time), SystemTime::now())
                    ),
                );
            }
        }
    }
    lines.write(io.out)?;
    if let Tree::Map(fields) = manifest_of(resource)
        && let Some((_, spec)) = fields.into_iter().find(|(name, _)| name == "spec")
    {
        writeln!(io.out, "Spec:")?;
        for line in yaml(&spec)?.lines() {
            writeln!(io.out, "  {}", plain(line))?;
        }
    }
    Ok(())
}

/// Aligned `Name: value` lines.
#[derive(Default)]
struct Lines(Vec<(String, String)>);

impl Lines {
    /// Adds a line, unless there is nothing to say.
    fn put(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.0.push((format!("{name}:"), plain(value)));
        }
    }

    fn write(&self, out: &mut (dyn std::io::Write + Send)) -> std::io::Result<()> {
        let width = self
            .0
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        for (name, value) in &self.0 {
            writeln!(out, "{name:width$}  {value}")?;
        }
        Ok(())
    }
}

async fn about_endpoint(client: &Client, name: &str) -> Result<About, Failure> {
    let response = endpoint::describe(client, name).await?;
    let resource = response
        .resource
        .ok_or_else(|| Failure::new(Exit::Failed, "the server sent an empty answer"))?;
    let status = response.status.unwrap_or_default();
    // Only to show names beside ids: without them the ids have to do.
    let nodes = list(
        client,
        Kind::Node,
        &Filter {
            consistency: Consistency::Stale,
            ..Filter::default()
        },
    )
    .await;
    let text = endpoint_text(
        &status,
        &node_names(&nodes.map(|(nodes, _)| nodes).unwrap_or_default()),
    )?;
    Ok(About {
        resource,
        status: Some(status_tree(&status)),
        text,
    })
}

fn node_names(nodes: &[Resource]) -> BTreeMap<u64, String> {
    let name = |node: &Resource| match &node.spec {
        Some(Spec::Node(NodeSpec { node_id, .. })) => {
            Some((*node_id, kind::name_of(node).to_owned()))
        }
        _ => None,
    };
    nodes.iter().filter_map(name).collect()
}

fn endpoint_text(
    status: &EndpointStatus,
    nodes: &BTreeMap<u64, String>,
) -> Result<Vec<u8>, Failure> {
    let node = |id: u64| match (id, nodes.get(&id)) {
        (0, _) => "none".to_owned(),
        (id, Some(name)) => format!("{name} ({id})"),
        (id, None) => id.to_string(),
    };
    let mut out = Vec::new();
    writeln_bytes(
        &mut out,
        &format!("Live state, seen by node {}:", node(status.node_id)),
    );
    let mut lines = Lines::default();
    lines.put("  State", state_word(status));
    for (i, reason) in status.reasons.iter().enumerate() {
        lines.put(if i == 0 { "  Because" } else { "  And" }, reason);
    }
    lines.put("  Probed by", &node(status.owner_node_id));
    let in_flight = format!(
        "{} from this node, {} from the region",
        status.local_in_flight, status.total_in_flight
    );
    lines.put("  In flight", &in_flight);
    let figures: Vec<String> = [
        status.running.map(|n| format!("{n} running")),
        status.waiting.map(|n| format!("{n} waiting")),
        status
            .kv_cache_usage
            .map(|share| format!("KV cache {} used", percent(share))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let read = status
        .load_age
        .as_ref()
        .map(|age| format!(" (read {} ago)", duration::short(age)));
    let load = if figures.is_empty() {
        "never read".to_owned()
    } else {
        figures.join(", ") + &read.unwrap_or_default()
    };
    lines.put("  Engine load", &load);
    lines.put("  Engine", &engine_word(status.engine));
    lines.put("  Models", &status.models.join(", "));
    lines.put("  Adapters", &status.adapters.join(", "));
    lines.put("  Breaker", &status.breaker);
    lines.put("  Last error", &status.last_error);
    for condition in &status.conditions {
        lines.put("  Condition", condition);
    }
    lines.write(&mut out)?;
    Ok(out)
}

fn writeln_bytes(out: &mut Vec<u8>, line: &str) {
    out.extend_from_slice(line.as_bytes());
    out.push(b'\n');
}

async fn about_pool(client: &Client, name: &str) -> Result<About, Failure> {
    let request = DescribePoolRequest {
        name: name.to_owned(),
    };
    let response = client
        .call(async |link| link.pools().describe(request.clone()).await)
        .await?;
    let resource = response
        .resource
        .ok_or_else(|| Failure::new(Exit::Failed, "the server sent an empty answer"))?;
    let scheduling = response.status.unwrap_or_default();
    let filter = Filter {
        pool: name.to_owned(),
        consistency: Consistency::Stale,
        ..Filter::default()
    };
    let (endpoints, _) = list(client, Kind::Endpoint, &filter).await?;
    let names: Vec<String> = endpoints
        .iter()
        .map(|endpoint| kind::name_of(endpoint).to_owned())
        .collect();
    let states = describe_all(client, &names).await;

    let mut items = Vec::new();
    for (name, status) in &states {
        let mut item = Tree::map();
        item.put("name", name.as_str());
        match status {
            Ok(status) => item.put("status", status_tree(status)),
            Err(failure) => item.put("error", failure.to_string()),
        }
        items.push(item);
    }
    let mut status = Tree::map();
    status.put("scheduling", scheduling_tree(&scheduling));
    status.put("endpoints", Tree::Seq(items));

    let ready = states
        .iter()
        .filter(|(_, s)| matches!(s, Ok(s) if state_word(s) == "ready"))
        .count();
    let mut text = scheduling_text(&scheduling)?;
    writeln_bytes(
        &mut text,
        &format!("Endpoints: {} of {} ready", ready, states.len()),
    );
    if !states.is_empty() {
        state_table(&states).write("  ", &mut text)?;
    }
    Ok(About {
        resource,
        status: Some(status),
        text,
    })
}

/// What the answering node schedules a pool by.
fn scheduling_text(status: &PoolStatus) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    writeln_bytes(
        &mut out,
        &format!("Scheduling, on node {}:", status.node_id),
    );
    let mut lines = Lines::default();
    let config = if status.scheduling_config.is_empty() {
        "built in".to_owned()
    } else {
        format!("{} version {}", status.scheduling_config, status.generation)
    };
    lines.put("  Config", &config);
    lines.put("  Problem", &status.problem);
    for warning in &status.warnings {
        lines.put("  Warning", warning);
    }
    lines.put("  Objectives", &status.objectives.to_string());
    lines.put("  Rewrite rules", &status.rewrite_rules.to_string());
    lines.write(&mut out)?;
    Ok(out)
}

fn scheduling_tree(status: &PoolStatus) -> Tree {
    let mut tree = Tree::map();
    tree.put("nodeId", status.node_id);
    tree.put_some("config", status.scheduling_config.as_str());
    tree.put_some(
        "version",
        (status.generation > 0).then_some(status.generation),
    );
    tree.put_some("problem", status.problem.as_str());
    tree.put_some(
        "warnings",
        status.warnings.iter().map(String::as_str).collect::<Tree>(),
    );
    tree.put("objectives", status.objectives);
    tree.put("rewriteRules", status.rewrite_rules);
    tree
}

async fn about_node(client: &Client, name: &str) -> Result<About, Failure> {
    let (resource, _) = get(client, Kind::Node, name, Consistency::Stale).await?;
    let status = client
        .call(async |link| link.cluster().status(ClusterStatusRequest {}).await)
        .await?;
    let mut lines = Lines::default();
    let mut tree = Tree::map();
    let member = status.members.iter().find(|member| member.name == name);
    match member {
        None => lines.put(
            "  Member",
            "no: it is registered, but not part of the consensus group",
        ),
        Some(member) => {
            let role = match member.role() {
                Role::Voter => "voter",
                Role::Learner => "learner",
                Role::Unspecified => "unknown",
            };
            let leads = member.node_id == status.leader_id;
            lines.put(
                "  Role",
                &if leads {
                    format!("{role}, leader")
                } else {
                    role.to_owned()
                },
            );
            let me = member.node_id == status.node_id;
            let reachable = match (me, member.reachable) {
                (true, _) => "it is the node that answers",
                (false, true) => "yes",
                (false, false) => "no",
            };
            lines.put("  Reachable", reachable);
            lines.put(
                "  Lag",
                &member
                    .lag
                    .map(|lag| format!("{lag} log entries"))
                    .unwrap_or_default(),
            );
            let contact = member
                .last_contact
                .as_ref()
                .map(|t| format!("{} ago", duration::short(t)));
            lines.put("  Last contact", &contact.unwrap_or_default());
            tree.put("role", role);
            tree.put("leader", leads);
            tree.put("reachable", me || member.reachable);
            tree.put_some("lag", member.lag);
            tree.put_some(
                "lastContact",
                member.last_contact.as_ref().map(duration::text_of),
            );
        }
    }
    let mut text = Vec::new();
    writeln_bytes(
        &mut text,
        &format!("In the cluster, seen by node {}:", status.node_id),
    );
    lines.write(&mut text)?;
    Ok(About {
        resource,
        status: Some(tree),
        text,
    })
}
