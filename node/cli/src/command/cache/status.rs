//! `quorate cache status`.

use quorate_proto::v1::{
    CacheHolder, CacheLink, CacheRegion, CacheReplica, CacheStatusRequest, CacheStatusResponse,
};

use super::{Shape, passed, seconds, share, tiers_text, tiers_tree, usage_tree};
use crate::{
    Exit, Failure, Io,
    client::Client,
    command::explain::{silent_tree, warn_of_silent},
    manifest::Tree,
    output::{Table, plain},
};

pub(super) async fn execute(
    client: &Client,
    pool: String,
    shape: Shape,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let request = CacheStatusRequest { pool };
    let status = client
        .call(async |link| link.cache().status(request.clone()).await)
        .await?;
    warn_of_silent(&status.silent, io)?;
    if shape.write(|| tree(&status), io)? {
        return Ok(Exit::Ok);
    }
    let wide = shape == Shape::Wide;
    if status.holders.is_empty() {
        writeln!(io.out, "No endpoint whose engine's cache is followed.")?;
    } else {
        holders(&status.holders, wide).write("", io.out)?;
    }
    for holder in &status.holders {
        for problem in problems(holder) {
            writeln!(
                io.out,
                "{} rank {}: {}",
                plain(&holder.endpoint),
                holder.rank,
                plain(&problem)
            )?;
        }
    }
    writeln!(io.out, "\nThe map, as each router has it:")?;
    replicas(&status.replicas, wide).write("", io.out)?;
    if !status.regions.is_empty() {
        writeln!(io.out, "\nOther regions, as they told every 10s:")?;
        regions(&status.regions).write("", io.out)?;
    }
    Ok(Exit::Ok)
}

fn problems(holder: &CacheHolder) -> Vec<String> {
    let mut said = Vec::new();
    if !holder.problem.is_empty() {
        said.push(holder.problem.clone());
    }
    let conditions = holder.link.iter().flat_map(|link| &link.conditions);
    said.extend(conditions.map(|condition| match condition.as_str() {
        "UnknownTier" => {
            "UnknownTier: the engine names a tier that is not known; what lies there counts as not cached".to_owned()
        }
        "MapFull" => {
            "MapFull: the map had no room for all of its blocks ([cache] max_mib)".to_owned()
        }
        "DigestDiffers" => {
            "DigestDiffers: the map is not what the engine said; it is being told again".to_owned()
        }
        other => other.to_owned(),
    }));
    said
}

fn keys(link: &CacheLink) -> String {
    match link.keys.as_str() {
        "" => String::new(),
        keys => format!("{keys} {} x{}", link.scheme, link.block_tokens),
    }
}

fn holders(holders: &[CacheHolder], wide: bool) -> Table {
    let mut heading = vec![
        "POOL",
        "ENDPOINT",
        "RANK",
        "OWNER",
        "LINK",
        "HEARD",
        "BATCHES",
        "GAPS",
        "LOST",
        "KEYS",
        "BLOCKS",
        "IN MAP",
        "PROPOSED",
        "DIGEST",
        "CONDITION",
    ];
    if wide {
        heading.extend([
            "LAST",
            "REPLAYS",
            "FAILED",
            "TWICE",
            "DROPPED",
            "MALFORMED",
            "RESETS",
            "UNPLACED",
            "WAITING",
            "FULL SETS",
            "MISMATCHES",
            "MODEL",
            "REGION",
        ]);
    }
    let mut table = Table::new(&heading);
    for holder in holders {
        let link = holder.link.clone().unwrap_or_default();
        let number = |number: u64| match &holder.link {
            Some(_) => number.to_string(),
            None => String::new(),
        };
        let condition = match (&holder.link, link.conditions.as_slice()) {
            (None, _) => "Unreachable".to_owned(),
            (Some(_), []) => String::new(),
            (Some(_), conditions) => {
                // Some say more behind their names.
                let names = conditions.iter().map(|c| c.split(':').next().unwrap_or(c));
                names.collect::<Vec<_>>().join(",")
            }
        };
        let mut row = vec![
            holder.pool.clone(),
            holder.endpoint.clone(),
            holder.rank.to_string(),
            holder.owner.clone(),
            link.state.clone(),
            passed(link.heard.as_ref()),
            number(link.batches),
            number(link.gaps),
            number(link.losses),
            keys(&link),
            tiers_text(link.blocks.as_ref()),
            tiers_text(holder.map.as_ref()),
            number(link.proposed),
            link.digest.clone(),
            condition,
        ];
        if wide {
            row.extend([
                link.last_batch
                    .map_or_else(String::new, |last| last.to_string()),
                number(link.replays),
                number(link.replay_failures),
                number(link.duplicates),
                number(link.dropped),
                number(link.malformed),
                number(link.resets),
                number(link.unplaced),
                number(link.waiting_bytes),
                number(link.full_sets),
                number(link.digest_mismatches),
                link.model.clone(),
                holder.region.clone(),
            ]);
        }
        table.row(row);
    }
    table
}

/// Entries that a copy lacks: as its leader knows, else as it knows itself.
fn lag(replica: &CacheReplica, all: &[CacheReplica]) -> u64 {
    let leader = all
        .iter()
        .find(|of| of.role == "leader" && of.epoch == replica.epoch && of.region == replica.region);
    let member = leader.and_then(|leader| {
        let mut members = leader.members.iter();
        members.find(|member| member.node == replica.node)
    });
    let own = replica.commit_index.saturating_sub(replica.applied_index);
    member
        .and_then(|member| member.lag)
        .map_or(own, |lag| lag.max(own))
}

fn replicas(replicas: &[CacheReplica], wide: bool) -> Table {
    let mut heading = vec![
        "REGION",
        "NODE",
        "ROLE",
        "EPOCH",
        "APPLIED",
        "LAG",
        "BLOCKS",
        "ENGINES",
        "BYTES",
        "DIGEST",
        "MISMATCHES",
        "BEGUN ANEW",
    ];
    if wide {
        heading.extend([
            "OF AT MOST",
            "SHARDS",
            "EXPECTED",
            "COMMITTED",
            "REFUSED",
            "LEADER",
            "MEMBERS",
        ]);
    }
    let mut table = Table::new(&heading);
    for replica in replicas {
        let role = match replica.role.as_str() {
            "" => "no member".to_owned(),
            role if !replica.warm => format!("{role}, cold"),
            role if !replica.quorate => format!("{role}, no leader"),
            role => role.to_owned(),
        };
        let mut row = vec![
            replica.region.clone(),
            replica.node.clone(),
            role,
            replica.epoch.to_string(),
            replica.applied_index.to_string(),
            lag(replica, replicas).to_string(),
            replica.blocks.to_string(),
            replica.holders.to_string(),
            replica.bytes.to_string(),
            replica.digest.chars().take(8).collect(),
            (replica.mismatches + replica.section_mismatches).to_string(),
            replica.begun_anew.to_string(),
        ];
        if wide {
            row.extend([
                replica.max_blocks.to_string(),
                replica.shards.to_string(),
                replica.expected_blocks.to_string(),
                replica.commit_index.to_string(),
                replica.sections_refused.to_string(),
                replica.leader.clone(),
                replica
                    .members
                    .iter()
                    .map(|member| member.node.as_str())
                    .collect::<Vec<_>>()
                    .join(","),
            ]);
        }
        table.row(row);
    }
    table
}

fn regions(regions: &[CacheRegion]) -> Table {
    let mut table = Table::new(&[
        "REGION",
        "POOL",
        "ENGINES",
        "BLOCKS",
        "PREDICTED",
        "FOUND",
        "TOLD BY",
        "AGE",
    ]);
    for region in regions {
        if region.pools.is_empty() {
            let (nothing, age) = (String::new, passed(region.age.as_ref()));
            table.row([
                region.region.clone(),
                nothing(),
                nothing(),
                nothing(),
                nothing(),
                nothing(),
                region.node.clone(),
                age,
            ]);
        }
        for pool in &region.pools {
            let usage = pool.usage.unwrap_or_default();
            table.row([
                region.region.clone(),
                pool.pool.clone(),
                pool.holders.to_string(),
                tiers_text(pool.blocks.as_ref()),
                share(usage.predicted_tokens, usage.prompt_tokens),
                share(usage.found_tokens, usage.answered_tokens),
                region.node.clone(),
                passed(region.age.as_ref()),
            ]);
        }
    }
    table
}

fn tree(status: &CacheStatusResponse) -> Tree {
    let mut tree = Tree::map();
    tree.put("node", status.node.as_str());
    tree.put("region", status.region.as_str());
    tree.put(
        "holders",
        status.holders.iter().map(holder_tree).collect::<Tree>(),
    );
    let replica = |of: &CacheReplica| replica_tree(of, &status.replicas);
    tree.put(
        "replicas",
        status.replicas.iter().map(replica).collect::<Tree>(),
    );
    tree.put(
        "otherRegions",
        status.regions.iter().map(region_tree).collect::<Tree>(),
    );
    tree.put_some("silent", silent_tree(&status.silent));
    tree
}

fn holder_tree(holder: &CacheHolder) -> Tree {
    let mut tree = Tree::map();
    tree.put("pool", holder.pool.as_str());
    tree.put("endpoint", holder.endpoint.as_str());
    tree.put("rank", holder.rank);
    tree.put_some("region", holder.region.as_str());
    tree.put_some("owner", holder.owner.as_str());
    tree.put_some("problem", holder.problem.as_str());
    tree.put_some("map", tiers_tree(holder.map.as_ref()));
    if holder.trimmed {
        tree.put("trimmed", true);
    }
    let Some(link) = &holder.link else {
        return tree;
    };
    let mut told = Tree::map();
    told.put("state", link.state.as_str());
    told.put_some("lastBatch", link.last_batch);
    told.put_some("heardSeconds", seconds(link.heard.as_ref()));
    for (name, number) in [
        ("batches", link.batches),
        ("gaps", link.gaps),
        ("losses", link.losses),
        ("replays", link.replays),
        ("replayFailures", link.replay_failures),
        ("duplicates", link.duplicates),
        ("dropped", link.dropped),
        ("malformed", link.malformed),
        ("resets", link.resets),
        ("unplaced", link.unplaced),
        ("proposed", link.proposed),
        ("fullSets", link.full_sets),
        ("waitingBytes", link.waiting_bytes),
        ("digestMismatches", link.digest_mismatches),
    ] {
        told.put(name, number);
    }
    told.put_some("keys", link.keys.as_str());
    told.put_some("scheme", link.scheme.as_str());
    told.put_some("model", link.model.as_str());
    told.put("blockTokens", link.block_tokens);
    told.put("digest", link.digest.as_str());
    told.put_some(
        "conditions",
        link.conditions.iter().map(String::as_str).collect::<Tree>(),
    );
    told.put_some("blocks", tiers_tree(link.blocks.as_ref()));
    tree.put("link", told);
    tree
}

fn replica_tree(replica: &CacheReplica, all: &[CacheReplica]) -> Tree {
    let mut tree = Tree::map();
    tree.put("region", replica.region.as_str());
    tree.put("node", replica.node.as_str());
    tree.put("nodeId", replica.node_id);
    tree.put_some("role", replica.role.as_str());
    tree.put_some("leader", replica.leader.as_str());
    tree.put("quorate", replica.quorate);
    tree.put("warm", replica.warm);
    tree.put("shards", replica.shards);
    tree.put("engines", replica.holders);
    for (name, number) in [
        ("epoch", replica.epoch),
        ("appliedIndex", replica.applied_index),
        ("commitIndex", replica.commit_index),
        ("lag", lag(replica, all)),
        ("blocks", replica.blocks),
        ("maxBlocks", replica.max_blocks),
        ("expectedBlocks", replica.expected_blocks),
        ("bytes", replica.bytes),
        ("mismatches", replica.mismatches),
        ("begunAnew", replica.begun_anew),
        ("sectionsRefused", replica.sections_refused),
        ("sectionMismatches", replica.section_mismatches),
    ] {
        tree.put(name, number);
    }
    tree.put("digest", replica.digest.as_str());
    let members = replica.members.iter().map(|member| {
        let mut tree = Tree::map();
        tree.put("node", member.node.as_str());
        tree.put("voter", member.voter);
        tree.put_some("lag", member.lag);
        tree
    });
    tree.put("members", members.collect::<Tree>());
    tree
}

fn region_tree(region: &CacheRegion) -> Tree {
    let mut tree = Tree::map();
    tree.put("region", region.region.as_str());
    tree.put("node", region.node.as_str());
    tree.put_some("ageSeconds", seconds(region.age.as_ref()));
    let pools = region.pools.iter().map(|pool| {
        let mut tree = Tree::map();
        tree.put("pool", pool.pool.as_str());
        tree.put("engines", pool.holders);
        tree.put_some("blocks", tiers_tree(pool.blocks.as_ref()));
        tree.put_some("usage", pool.usage.as_ref().map(usage_tree));
        tree
    });
    tree.put("pools", pools.collect::<Tree>());
    tree
}
