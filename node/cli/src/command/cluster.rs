//! `quorate cluster`: see and change who votes, who learns and who leads.

use std::time::Duration;

use quorate_proto::v1::{
    ClusterStatusRequest, ClusterStatusResponse, DemoteRequest, MemberStatus, MembershipResponse,
    PromoteRequest, RemoveNodeRequest, ReplaceRequest, Role, TransferLeadershipRequest,
};

use crate::{
    EXIT_CODES, Exit, Failure, Io,
    client::{Client, ClientArgs, new_key},
    manifest::{Tree, duration},
    output::{Table, json, plain, yaml},
};

/// How long the leader may take to add the figures that only it has.
const LEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// Arguments of `cluster`.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    long_about = "See and change the membership of the cluster\n\n\
        A new node joins by itself with `quorate router --join HOST:PORT`: first as a learner, which follows the log and \
        serves requests but does not vote. `cluster add` (or `promote`) makes it a voter. Keep three or five voters; more \
        make writes slower, fewer do not survive a failure. Nodes are given by name or by id.",
    after_help = EXIT_CODES
)]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    /// Show members, leader, lag and whatever needs an operator; exits with 6 if there is no leader
    Status {
        /// table, or yaml or json for programs
        #[arg(short, long, value_parser = ["table", "yaml", "json"], default_value = "table", value_name = "FORMAT")]
        output: String,
    },
    /// Make a node that has joined a voter
    #[command(
        visible_alias = "promote",
        after_help = "\
To add a machine: install quorate on it, give it a certificate (quorate certs node), start `quorate router --join HOST:PORT`
with the address of any node, and then run this."
    )]
    Add {
        /// Name or id
        node: String,
    },
    /// Make a voter a learner: it goes on serving but does not vote
    Demote {
        /// Name or id
        node: String,
    },
    /// Take a node out for good; if it runs it stops, and its data directory can never come back
    Remove {
        /// Name or id
        node: String,
    },
    /// Put a learner in the place of a dead voter, in one step
    Replace {
        /// The dead voter: name or id
        old: String,
        /// The learner: name or id
        new: String,
    },
    /// Hand the leadership over, without a gap for writers
    Transfer {
        /// Name or id of the next leader; left out: the best candidate
        node: Option<String>,
    },
}

pub(super) async fn execute(args: ClusterArgs, io: &mut Io<'_>) -> Result<Exit, Failure> {
    let client = Client::new(&args.client)?;
    let status = client
        .call(async |link| link.cluster().status(ClusterStatusRequest {}).await)
        .await?;
    let members = &status.members;
    let key = new_key();
    let (what, membership) = match args.command {
        ClusterCommand::Status { output } => return show(&client, status, &output, io).await,
        ClusterCommand::Transfer { node } => {
            let node_id = node.map_or(Ok(0), |node| {
                Ok::<_, Failure>(find(members, &node)?.node_id)
            })?;
            let request = TransferLeadershipRequest { node_id };
            let answer = client
                .call(async |link| link.cluster().transfer_leadership(request).await)
                .await?;
            let leader = named(members, answer.leader_id);
            writeln!(io.out, "{leader} leads")?;
            return Ok(Exit::Ok);
        }
        ClusterCommand::Add { node } => {
            let node = find(members, &node)?;
            let request = PromoteRequest {
                idempotency_key: key,
                node_id: node.node_id,
            };
            let answer = client
                .call(async |link| link.cluster().promote(request.clone()).await)
                .await?;
            (format!("{} is a voter", label(node)), answer)
        }
        ClusterCommand::Demote { node } => {
            let node = find(members, &node)?;
            let request = DemoteRequest {
                idempotency_key: key,
                node_id: node.node_id,
            };
            let answer = client
                .call(async |link| link.cluster().demote(request.clone()).await)
                .await?;
            (format!("{} is a learner", label(node)), answer)
        }
        ClusterCommand::Remove { node } => {
            let node = find(members, &node)?;
            let request = RemoveNodeRequest {
                idempotency_key: key,
                node_id: node.node_id,
            };
            let answer = client
                .call(async |link| link.cluster().remove(request.clone()).await)
                .await?;
            (format!("{} is removed", label(node)), answer)
        }
        ClusterCommand::Replace { old, new } => {
            let (old, new) = (find(members, &old)?, find(members, &new)?);
            let request = ReplaceRequest {
                idempotency_key: key,
                dead_node_id: old.node_id,
                new_node_id: new.node_id,
            };
            let answer = client
                .call(async |link| link.cluster().replace(request.clone()).await)
                .await?;
            (
                format!("{} takes the place of {}", label(new), label(old)),
                answer,
            )
        }
    };
    tell(&what, members, &membership, io)
}

/// A member by name or, if no name matches, by id.
fn find<'m>(members: &'m [MemberStatus], node: &str) -> Result<&'m MemberStatus, Failure> {
    let by_name = members.iter().find(|member| member.name == node);
    let by_id = || {
        node.parse()
            .ok()
            .and_then(|id: u64| members.iter().find(|member| member.node_id == id))
    };
    by_name.or_else(by_id).ok_or_else(|| {
        let hint =
            crate::manifest::suggestion(node, members.iter().map(|member| member.name.as_str()));
        let list = members.iter().map(label).collect::<Vec<_>>().join(", ");
        Failure::new(
            Exit::NotFound,
            format!("there is no node {node:?} in the cluster{hint} (nodes: {list})"),
        )
    })
}

fn label(member: &MemberStatus) -> String {
    format!("{} ({})", plain(&member.name), member.node_id)
}

fn named(members: &[MemberStatus], id: u64) -> String {
    members
        .iter()
        .find(|member| member.node_id == id)
        .map_or_else(|| format!("node {id}"), label)
}

fn tell(
    what: &str,
    members: &[MemberStatus],
    membership: &MembershipResponse,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let list = |ids: &[u64]| match ids {
        [] => "none".to_owned(),
        ids => ids
            .iter()
            .map(|id| named(members, *id))
            .collect::<Vec<_>>()
            .join(", "),
    };
    writeln!(
        io.out,
        "{what}; voters: {}; learners: {}",
        list(&membership.voters),
        list(&membership.learners)
    )?;
    Ok(Exit::Ok)
}

async fn show(
    client: &Client,
    mut status: ClusterStatusResponse,
    output: &str,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    add_leader_figures(client, &mut status).await;
    match output {
        "json" => writeln!(io.out, "{}", json(&tree(&status))?)?,
        "yaml" => io.out.write_all(yaml(&tree(&status))?.as_bytes())?,
        _ => write_table(&status, io)?,
    }
    Ok(if status.leader_id == 0 {
        Exit::Unavailable
    } else {
        Exit::Ok
    })
}

/// Lag and last contact are known on the leader only. If another node answered, ask the leader too; without it the table
/// has gaps, nothing worse.
async fn add_leader_figures(client: &Client, status: &mut ClusterStatusResponse) {
    if status.leader_id == 0 || status.leader_id == status.node_id {
        return;
    }
    let leader = status
        .members
        .iter()
        .find(|member| member.node_id == status.leader_id);
    let Some(address) = leader
        .and_then(|leader| leader.node.as_ref())
        .map(|node| node.control_address.as_str())
    else {
        return;
    };
    let Some(leader) = client.other(address, LEADER_TIMEOUT.min(client.timeout())) else {
        return;
    };
    let Ok(theirs) = leader
        .call(async |link| link.cluster().status(ClusterStatusRequest {}).await)
        .await
    else {
        return;
    };
    if theirs.cluster_id != status.cluster_id {
        return;
    }
    for member in &mut status.members {
        if let Some(known) = theirs
            .members
            .iter()
            .find(|known| known.node_id == member.node_id)
        {
            member.lag = member.lag.or(known.lag);
            member.last_contact = member.last_contact.or(known.last_contact);
        }
    }
    for warning in theirs.warnings {
        if !status.warnings.contains(&warning) {
            status.warnings.push(warning);
        }
    }
}

fn role_word(member: &MemberStatus) -> &'static str {
    match member.role() {
        Role::Voter => "voter",
        Role::Learner => "learner",
        Role::Unspecified => "unknown",
    }
}

fn write_table(status: &ClusterStatusResponse, io: &mut Io<'_>) -> Result<(), Failure> {
    let leader = if status.leader_id == 0 {
        "none".to_owned()
    } else {
        named(&status.members, status.leader_id)
    };
    writeln!(
        io.out,
        "Cluster   {} ({} timing)",
        plain(&status.cluster_id),
        plain(&status.timing)
    )?;
    writeln!(io.out, "Leader    {leader}, term {}", status.term)?;
    let (last, applied) = (status.last_log_index, status.applied_index);
    writeln!(
        io.out,
        "Answered  by {}, log {last}, applied {applied}",
        named(&status.members, status.node_id)
    )?;
    for warning in &status.warnings {
        writeln!(io.out, "Warning   {}", plain(warning))?;
    }
    writeln!(io.out)?;
    let heading = [
        "NAME",
        "ID",
        "ROLE",
        "REGION",
        "REACHABLE",
        "LAG",
        "CONTACT",
        "CONTROL",
        "GATEWAY",
        "VERSION",
    ];
    let mut table = Table::new(&heading);
    for member in &status.members {
        let node = member.node.clone().unwrap_or_default();
        let role = role_word(member);
        table.row([
            member.name.clone(),
            member.node_id.to_string(),
            if member.node_id == status.leader_id {
                format!("{role} *")
            } else {
                role.to_owned()
            },
            node.region,
            if member.reachable || member.node_id == status.node_id {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
            member.lag.map(|lag| lag.to_string()).unwrap_or_default(),
            member
                .last_contact
                .as_ref()
                .map(duration::short)
                .unwrap_or_default(),
            node.control_address,
            node.gateway_address,
            node.version,
        ]);
    }
    table.write("", io.out)?;
    Ok(())
}

fn tree(status: &ClusterStatusResponse) -> Tree {
    let mut tree = Tree::map();
    tree.put("clusterId", status.cluster_id.as_str());
    tree.put("timing", status.timing.as_str());
    tree.put("nodeId", status.node_id);
    tree.put(
        "leaderId",
        (status.leader_id > 0).then_some(status.leader_id),
    );
    tree.put("term", status.term);
    tree.put("lastLogIndex", status.last_log_index);
    tree.put("appliedIndex", status.applied_index);
    let members = status.members.iter().map(|member| {
        let mut item = Tree::map();
        item.put("name", member.name.as_str());
        item.put("nodeId", member.node_id);
        item.put("role", role_word(member));
        item.put("leader", member.node_id == status.leader_id);
        item.put(
            "reachable",
            member.reachable || member.node_id == status.node_id,
        );
        item.put_some("lag", member.lag);
        item.put_some(
            "lastContact",
            member.last_contact.as_ref().map(duration::text_of),
        );
        if let Some(node) = &member.node {
            item.put_some("region", node.region.as_str());
            item.put_some("peerAddress", node.peer_address.as_str());
            item.put_some("controlAddress", node.control_address.as_str());
            item.put_some("gatewayAddress", node.gateway_address.as_str());
            item.put_some("adminAddress", node.admin_address.as_str());
            item.put_some("version", node.version.as_str());
        }
        item
    });
    tree.put("members", Tree::Seq(members.collect()));
    tree.put(
        "warnings",
        status.warnings.iter().map(String::as_str).collect::<Tree>(),
    );
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, node_id: u64) -> MemberStatus {
        MemberStatus {
            name: name.to_owned(),
            node_id,
            ..MemberStatus::default()
        }
    }

    #[test]
    fn nodes_are_found_by_name_before_id() {
        let members = [member("3", 1), member("b", 3), member("node-c", 7)];
        for (text, id) in [("3", 1), ("b", 3), ("7", 7), ("node-c", 7)] {
            assert_eq!(
                find(&members, text)
                    .map(|m| m.node_id)
                    .map_err(|f| f.message),
                Ok(id),
                "{text}"
            );
        }
        let failure = find(&members, "node_d").expect_err("no such node");
        assert_eq!(failure.exit, Exit::NotFound);
        assert!(
            failure.message.contains("did you mean \"node-c\"?"),
            "{failure}"
        );
    }
}
