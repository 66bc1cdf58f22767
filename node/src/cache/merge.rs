//! What several nodes say, put together. Pure.

use quorate_proto::peer::v1::CacheReport;
use quorate_proto::v1::{CacheHolder, CacheTopPool, CacheUsage, HotPrefix, SilentNode};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// Prompts that began with a prefix go on like this in so many cases of ten, and the longer one says all that there is to say.
const NEARLY_ALL: u64 = 9;

/// An endpoint, as the node that answers knows it.
pub struct Known {
    /// Its fixed facts with what this node's map has of each rank: at least one, and if nothing is there one without blocks.
    pub ranks: Vec<CacheHolder>,
    /// Who owns it, as far as this node can tell.
    pub owner: Option<u64>,
    /// It is of this node's region, so that this node's map is right for it.
    pub near: bool,
}

/// One row for each rank of each endpoint: from its owner, or with the reason why there is nothing.
pub fn holders(
    known: Vec<Known>,
    reports: &[CacheReport],
    silent: &[SilentNode],
    name_of: impl Fn(u64) -> String,
) -> Vec<CacheHolder> {
    let mut told: HashMap<u64, Vec<(u64, &CacheHolder)>> = HashMap::new();
    let mut answered = HashSet::new();
    for report in reports {
        let node = report.replica.as_ref().map_or(0, |replica| replica.node_id);
        answered.insert(node);
        for holder in &report.holders {
            told.entry(holder.incarnation)
                .or_default()
                .push((node, holder));
        }
    }
    let mut rows = Vec::new();
    for endpoint in known {
        let incarnation = endpoint.ranks.first().map_or(0, |rank| rank.incarnation);
        let all = told
            .get(&incarnation)
            .map(Vec::as_slice)
            .unwrap_or_default();
        // While it changes hands, two may say that they follow it, or another than the one expected.
        let by = endpoint
            .owner
            .filter(|owner| all.iter().any(|(node, _)| node == owner))
            .or(all.first().map(|(node, _)| *node));
        let Some(by) = by else {
            let owner = endpoint.owner.unwrap_or(0);
            let problem = match silent.iter().find(|node| node.node_id == owner) {
                Some(node) => format!("its owner could not be asked: {}", node.why),
                None if owner == 0 => "it has no owner".to_owned(),
                None if answered.contains(&owner) => "its owner does not follow it yet".to_owned(),
                None => "its owner was not asked".to_owned(),
            };
            rows.extend(endpoint.ranks.into_iter().map(|rank| CacheHolder {
                owner_node_id: owner,
                owner: name_of(owner),
                problem: problem.clone(),
                ..rank
            }));
            continue;
        };
        for (_, holder) in all.iter().filter(|(node, _)| *node == by) {
            let here = endpoint.ranks.iter().find(|rank| rank.rank == holder.rank);
            let mut row = CacheHolder::clone(holder);
            if endpoint.near {
                row.map = here.and_then(|here| here.map);
                row.trimmed = here.is_some_and(|here| here.trimmed);
            }
            (row.owner_node_id, row.owner) = (by, name_of(by));
            rows.push(row);
        }
    }
    rows.sort_by(|a, b| (&a.pool, &a.endpoint, a.rank).cmp(&(&b.pool, &b.endpoint, b.rank)));
    rows
}

fn add_usage(sum: &mut CacheUsage, more: &CacheUsage) {
    sum.picks += more.picks;
    sum.prompt_tokens += more.prompt_tokens;
    sum.predicted_tokens += more.predicted_tokens;
    sum.answers += more.answers;
    sum.answered_tokens += more.answered_tokens;
    sum.found_tokens += more.found_tokens;
    sum.window = longest(sum.window, more.window);
}

fn longest(
    a: Option<prost_types::Duration>,
    b: Option<prost_types::Duration>,
) -> Option<prost_types::Duration> {
    let length = |of: &prost_types::Duration| Duration::try_from(*of).unwrap_or_default();
    [a, b].into_iter().flatten().max_by_key(length)
}

/// What nodes counted, pool by pool. Prefixes are summed and in no order.
pub fn counted(nodes: impl Iterator<Item = Vec<CacheTopPool>>) -> Vec<CacheTopPool> {
    let mut pools: BTreeMap<String, (CacheTopPool, HashMap<String, HotPrefix>)> = BTreeMap::new();
    for pool in nodes.flatten() {
        let (sum, prefixes) = pools.entry(pool.pool.clone()).or_default();
        sum.picks += pool.picks;
        sum.counted += pool.counted;
        sum.window = longest(sum.window, pool.window);
        if let Some(usage) = &pool.usage {
            add_usage(sum.usage.get_or_insert_default(), usage);
        }
        for prefix in pool.prefixes {
            let of = prefixes
                .entry(prefix.key.clone())
                .or_insert_with(|| HotPrefix {
                    requests: 0,
                    hits: 0,
                    missed: 0,
                    ..prefix.clone()
                });
            of.requests += prefix.requests;
            of.hits += prefix.hits;
            of.missed += prefix.missed;
        }
    }
    let pools = pools
        .into_iter()
        .map(|(pool, (sum, prefixes))| CacheTopPool {
            pool,
            prefixes: prefixes.into_values().collect(),
            ..sum
        });
    pools.collect()
}

/// The prefixes by how many prompt tokens they made up. One that nearly always goes on in the same way is left out for the longer one,
/// and one that came once is not hot.
pub fn hottest(prefixes: Vec<HotPrefix>, most: usize) -> Vec<HotPrefix> {
    let mut onward: HashMap<&str, u64> = HashMap::new();
    for prefix in &prefixes {
        let most = onward.entry(prefix.parent.as_str()).or_default();
        *most = (*most).max(prefix.requests);
    }
    let goes_on = |of: &HotPrefix| {
        let onward = onward.get(of.key.as_str()).copied().unwrap_or(0);
        onward.saturating_mul(10) >= of.requests.saturating_mul(NEARLY_ALL)
    };
    let stays: Vec<bool> = prefixes
        .iter()
        .map(|of| of.requests > 1 && !goes_on(of))
        .collect();
    let mut hottest: Vec<HotPrefix> = prefixes
        .into_iter()
        .zip(stays)
        .filter_map(|(of, stays)| stays.then_some(of))
        .collect();
    let tokens = |of: &HotPrefix| of.requests.saturating_mul(u64::from(of.tokens));
    hottest.sort_by(|a, b| (tokens(b), &a.key).cmp(&(tokens(a), &b.key)));
    hottest.truncate(most);
    hottest
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_proto::v1::{CacheLink, CacheReplica, CacheTiers};

    fn holder(endpoint: &str, incarnation: u64, rank: u32, gpu: u64) -> CacheHolder {
        CacheHolder {
            pool: "chat".to_owned(),
            endpoint: endpoint.to_owned(),
            incarnation,
            rank,
            map: Some(CacheTiers {
                gpu,
                ..CacheTiers::default()
            }),
            ..CacheHolder::default()
        }
    }

    fn report(node_id: u64, holders: &[CacheHolder]) -> CacheReport {
        let replica = CacheReplica {
            node_id,
            ..CacheReplica::default()
        };
        let link = |holder: &CacheHolder| CacheHolder {
            link: Some(CacheLink {
                state: "live".to_owned(),
                ..CacheLink::default()
            }),
            ..holder.clone()
        };
        CacheReport {
            replica: Some(replica),
            holders: holders.iter().map(link).collect(),
            pools: Vec::new(),
        }
    }

    #[test]
    fn a_row_comes_from_the_owner_or_says_why_not() {
        let known = |endpoint: &str, incarnation, ranks: &[u32], owner, near| Known {
            ranks: ranks
                .iter()
                .map(|rank| holder(endpoint, incarnation, *rank, 7))
                .collect(),
            owner,
            near,
        };
        let endpoints = vec![
            known("e", 5, &[0], None, true),
            known("d", 4, &[0], Some(9), true),
            known("c", 3, &[0, 1], Some(3), true),
            known("b", 2, &[0], Some(2), false),
            known("a", 1, &[0], Some(2), true),
            known("f", 6, &[0], Some(1), true),
        ];
        let reports = [
            // The old owner has not noticed yet.
            report(1, &[holder("a", 1, 0, 100), holder("f", 6, 0, 100)]),
            report(
                2,
                &[
                    holder("a", 1, 0, 200),
                    holder("b", 2, 1, 300),
                    holder("b", 2, 0, 200),
                ],
            ),
            report(9, &[]),
        ];
        let silent = [SilentNode {
            node_id: 3,
            name: "r3".to_owned(),
            why: "refused".to_owned(),
        }];
        let rows = holders(endpoints, &reports, &silent, |id| format!("r{id}"));
        let shown: Vec<_> = rows
            .iter()
            .map(|row| {
                let gpu = row.map.as_ref().map_or(0, |map| map.gpu);
                (
                    format!("{}{}", row.endpoint, row.rank),
                    row.owner.as_str(),
                    row.link.is_some(),
                    gpu,
                    row.problem.as_str(),
                )
            })
            .collect();
        let refused = "its owner could not be asked: refused";
        assert_eq!(
            shown,
            [
                ("a0".to_owned(), "r2", true, 7, ""),
                ("b0".to_owned(), "r2", true, 200, ""),
                ("b1".to_owned(), "r2", true, 300, ""),
                ("c0".to_owned(), "r3", false, 7, refused),
                ("c1".to_owned(), "r3", false, 7, refused),
                (
                    "d0".to_owned(),
                    "r9",
                    false,
                    7,
                    "its owner does not follow it yet"
                ),
                ("e0".to_owned(), "r0", false, 7, "it has no owner"),
                ("f0".to_owned(), "r1", true, 7, ""),
            ]
        );
    }

    fn prefix(key: &str, parent: &str, tokens: u32, requests: u64, hits: u64) -> HotPrefix {
        HotPrefix {
            key: key.to_owned(),
            parent: parent.to_owned(),
            tokens,
            requests,
            hits,
            ..HotPrefix::default()
        }
    }

    #[test]
    fn nodes_add_up_and_the_longest_that_says_all_is_shown() {
        let node = |picks, prefixes: Vec<HotPrefix>| {
            let usage = CacheUsage {
                picks,
                prompt_tokens: 100 * picks,
                predicted_tokens: 40 * picks,
                window: Some(prost_types::Duration {
                    seconds: picks.cast_signed(),
                    nanos: 0,
                }),
                ..CacheUsage::default()
            };
            vec![CacheTopPool {
                pool: "chat".to_owned(),
                usage: Some(usage),
                picks,
                counted: picks,
                prefixes,
                ..CacheTopPool::default()
            }]
        };
        let one = vec![
            prefix("a", "", 16, 10, 9),
            prefix("b", "a", 32, 10, 8),
            prefix("c", "b", 64, 4, 4),
            prefix("x", "", 16, 1, 0),
        ];
        let two = vec![prefix("a", "", 16, 10, 1), prefix("b", "a", 32, 9, 1)];
        let sum = counted([node(20, one), node(30, two)].into_iter());
        let [pool] = sum.as_slice() else {
            panic!("{sum:?}")
        };
        let usage = pool.usage.as_ref().unwrap();
        assert_eq!(
            (pool.picks, usage.prompt_tokens, usage.predicted_tokens),
            (50, 5000, 2000)
        );
        assert_eq!(usage.window.as_ref().map(|w| w.seconds), Some(30));
        let hot = hottest(pool.prefixes.clone(), 10);
        let shown: Vec<_> = hot
            .iter()
            .map(|p| (p.key.as_str(), p.requests, p.hits))
            .collect();
        // 19 of 20 that began with `a` went on with `b`; `x` came once.
        assert_eq!(shown, [("b", 19, 9), ("c", 4, 4)]);
        assert_eq!(hottest(pool.prefixes.clone(), 1).len(), 1);
    }
}
