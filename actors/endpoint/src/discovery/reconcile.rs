//! From what a source found and what is declared to the changes to propose. Pure.

use crate::discovery::{Answer, DiscoveryOp, Found};
use quorate_proto::v1::{self, resource::Spec};
use std::collections::BTreeMap;

/// How many answers in a row have missed each endpoint.
#[derive(Debug, Default)]
pub struct Missing(BTreeMap<String, u32>);

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Changes to propose.
    pub ops: Vec<DiscoveryOp>,
    /// Found endpoints whose name belongs to somebody else.
    pub conflicts: Vec<String>,
}

/// Compares an answer with the declared endpoints. `mark` is the source's own ("file:pool", "dns:pool"): endpoints with another
/// one are left alone. An endpoint is removed when `patience` answers in a row have missed it.
///
/// What discovery does not know of an endpoint (drain, region, annotations) stays as it is declared.
pub fn reconcile(
    answer: &Answer,
    declared: &[v1::Resource],
    pool: &str,
    mark: &str,
    patience: u32,
    missing: &mut Missing,
) -> Plan {
    let present: BTreeMap<&str, (&v1::Metadata, &v1::EndpointSpec)> = declared
        .iter()
        .filter_map(|r| match (&r.metadata, &r.spec) {
            (Some(meta), Some(Spec::Endpoint(spec))) => Some((meta.name.as_str(), (meta, spec))),
            _ => None,
        })
        .collect();
    let mut plan = Plan::default();
    for (name, found) in &answer.found {
        match present.get(name.as_str()) {
            Some((_, spec)) if spec.source != mark => {
                let owner = if spec.source.is_empty() {
                    "api"
                } else {
                    &spec.source
                };
                plan.conflicts.push(format!(
                    "endpoint {name:?} was declared by {owner:?} and is left alone"
                ));
            }
            Some((meta, spec)) => {
                let new = put(name, found, pool, mark, Some((meta, spec)));
                if new.spec != Some(Spec::Endpoint((*spec).clone()))
                    || new
                        .metadata
                        .as_ref()
                        .is_some_and(|m| m.labels != meta.labels)
                {
                    plan.ops.push(DiscoveryOp::Put {
                        resource: Box::new(new),
                        expected_version: meta.resource_version,
                    });
                }
            }
            None => plan.ops.push(DiscoveryOp::Put {
                resource: Box::new(put(name, found, pool, mark, None)),
                expected_version: 0,
            }),
        }
    }
    missing
        .0
        .retain(|name, _| present.contains_key(name.as_str()) && !answer.found.contains_key(name));
    for (name, (meta, spec)) in present {
        if spec.source != mark || answer.found.contains_key(name) {
            continue;
        }
        let missed = missing.0.entry(name.to_owned()).or_insert(0);
        *missed = missed.saturating_add(1);
        if *missed >= patience {
            plan.ops.push(DiscoveryOp::Delete {
                name: name.to_owned(),
                expected_version: meta.resource_version,
            });
        }
    }
    plan
}

fn put(
    name: &str,
    found: &Found,
    pool: &str,
    mark: &str,
    present: Option<(&v1::Metadata, &v1::EndpointSpec)>,
) -> v1::Resource {
    let (mut meta, mut spec) = match present {
        Some((meta, spec)) => (meta.clone(), spec.clone()),
        None => Default::default(),
    };
    meta.name = name.to_owned();
    meta.labels = found.labels.clone();
    spec.pool = pool.to_owned();
    spec.url = found.url.clone();
    spec.engine = found.engine as i32;
    spec.data_parallel_rank = found.rank;
    spec.metrics_url = found.metrics_url.clone();
    spec.source = mark.to_owned();
    v1::Resource {
        metadata: Some(meta),
        spec: Some(Spec::Endpoint(spec)),
    }
}

/// Whether a text may be a resource's name: 1 to 253 lower-case letters, digits, `-`, `.`, `_` and `:`, with a letter or digit
/// at both ends.
pub fn valid_name(name: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= 253
        && bytes.iter().all(|b| alnum(*b) || b"-._:".contains(b))
        && bytes.first().is_some_and(|b| alnum(*b))
        && bytes.last().is_some_and(|b| alnum(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MARK: &str = "file:p";

    fn found(url: &str) -> Found {
        Found {
            url: url.into(),
            ..Default::default()
        }
    }

    fn answer(of: &[(&str, &str)]) -> Answer {
        Answer {
            found: of.iter().map(|(n, u)| ((*n).into(), found(u))).collect(),
            problems: vec![],
        }
    }

    fn declared(name: &str, url: &str, source: &str, version: u64) -> v1::Resource {
        let mut r = put(name, &found(url), "p", source, None);
        r.metadata.as_mut().unwrap().resource_version = version;
        r
    }

    fn plan(a: &Answer, d: &[v1::Resource], patience: u32, m: &mut Missing) -> Plan {
        reconcile(a, d, "p", MARK, patience, m)
    }

    #[test]
    fn adds_changes_and_removes_its_own_and_nothing_else() {
        let present = [
            declared("same", "http://a:1", MARK, 1),
            declared("moved", "http://a:2", MARK, 2),
            declared("gone", "http://a:3", MARK, 3),
            declared("hand", "http://a:4", "api", 4),
            declared("other", "http://a:5", "file:q", 5),
        ];
        let a = answer(&[
            ("same", "http://a:1"),
            ("moved", "http://b:2"),
            ("new", "http://a:9"),
            ("hand", "http://a:4"),
        ]);
        let p = plan(&a, &present, 1, &mut Missing::default());
        assert_eq!(p.conflicts.len(), 1);
        assert!(p.conflicts[0].contains("\"hand\"") && p.conflicts[0].contains("\"api\""));
        let summary: Vec<(bool, String, u64)> = p
            .ops
            .into_iter()
            .map(|op| match op {
                DiscoveryOp::Put {
                    resource,
                    expected_version,
                } => (true, resource.metadata.unwrap().name, expected_version),
                DiscoveryOp::Delete {
                    name,
                    expected_version,
                } => (false, name, expected_version),
            })
            .collect();
        assert_eq!(
            summary,
            [
                (true, "moved".into(), 2),
                (true, "new".into(), 0),
                (false, "gone".into(), 3)
            ]
        );
    }

    #[test]
    fn what_operators_set_stays() {
        let mut present = declared("e", "http://a:1", MARK, 7);
        let Some(Spec::Endpoint(spec)) = &mut present.spec else {
            panic!()
        };
        spec.draining = true;
        spec.region = "eu".into();
        let same = plan(
            &answer(&[("e", "http://a:1")]),
            &[present.clone()],
            1,
            &mut Missing::default(),
        );
        assert!(same.ops.is_empty());
        let p = plan(
            &answer(&[("e", "http://a:2")]),
            &[present],
            1,
            &mut Missing::default(),
        );
        let [DiscoveryOp::Put { resource, .. }] = p.ops.as_slice() else {
            panic!("{p:?}")
        };
        let Some(Spec::Endpoint(spec)) = &resource.spec else {
            panic!()
        };
        assert!(spec.draining && spec.region == "eu" && spec.url == "http://a:2");
    }

    #[test]
    fn removal_waits_for_answers_in_a_row() {
        let present = [declared("e", "http://a:1", MARK, 7)];
        let mut m = Missing::default();
        let (none, full) = (answer(&[]), answer(&[("e", "http://a:1")]));
        assert!(plan(&none, &present, 3, &mut m).ops.is_empty());
        assert!(plan(&none, &present, 3, &mut m).ops.is_empty());
        assert!(plan(&full, &present, 3, &mut m).ops.is_empty());
        assert!(plan(&none, &present, 3, &mut m).ops.is_empty());
        assert!(plan(&none, &present, 3, &mut m).ops.is_empty());
        assert_eq!(plan(&none, &present, 3, &mut m).ops.len(), 1);
        plan(&none, &[], 3, &mut m);
        assert!(m.0.is_empty(), "nothing is remembered of what is gone");
    }

    #[test]
    fn names() {
        for good in ["a", "p-10.0.0.1-8000", "p-fd00::1-8000", "0_a"] {
            assert!(valid_name(good), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a/b", "a b", "ä", &"a".repeat(254)] {
            assert!(!valid_name(bad), "{bad}");
        }
    }

    fn apply(state: &mut BTreeMap<String, v1::Resource>, ops: Vec<DiscoveryOp>, version: &mut u64) {
        for op in ops {
            *version += 1;
            match op {
                DiscoveryOp::Put {
                    mut resource,
                    expected_version,
                } => {
                    let meta = resource.metadata.as_mut().unwrap();
                    let has = state
                        .get(&meta.name)
                        .map_or(0, |r| r.metadata.as_ref().unwrap().resource_version);
                    assert_eq!(has, expected_version);
                    meta.resource_version = *version;
                    state.insert(meta.name.clone(), *resource);
                }
                DiscoveryOp::Delete {
                    name,
                    expected_version,
                } => {
                    let old = state.remove(&name).unwrap();
                    assert_eq!(old.metadata.unwrap().resource_version, expected_version);
                }
            }
        }
    }

    proptest! {
        /// After `patience` equal answers the source's endpoints are exactly those found, others are as before, and a further
        /// answer changes nothing.
        #[test]
        fn converges_and_leaves_others_alone(
            start in prop::collection::btree_map(0u8..8, (0u16..3, any::<bool>()), 0..8),
            answers in prop::collection::vec(prop::collection::btree_map(0u8..8, 0u16..3, 0..8), 1..5),
            patience in 1u32..4,
        ) {
            let mut version = 100;
            let mut state: BTreeMap<String, v1::Resource> = start
                .iter()
                .map(|(n, (url, own))| {
                    let name = format!("e{n}");
                    let source = if *own { MARK } else { "api" };
                    (name.clone(), declared(&name, &format!("http://h:{}", url + 1), source, 1))
                })
                .collect();
            let by_hand: Vec<v1::Resource> = start
                .iter()
                .filter(|(_, (_, own))| !own)
                .map(|(n, _)| state[&format!("e{n}")].clone())
                .collect();
            let mut missing = Missing::default();
            let mut last = Answer::default();
            for a in answers {
                last.found =
                    a.iter().map(|(n, url)| (format!("e{n}"), found(&format!("http://h:{}", url + 1)))).collect();
                for _ in 0..patience {
                    let list: Vec<_> = state.values().cloned().collect();
                    apply(&mut state, plan(&last, &list, patience, &mut missing).ops, &mut version);
                }
            }
            let list: Vec<_> = state.values().cloned().collect();
            prop_assert!(plan(&last, &list, patience, &mut missing).ops.is_empty());
            for r in &by_hand {
                prop_assert_eq!(&state[&r.metadata.as_ref().unwrap().name], r);
            }
            for (name, r) in &state {
                let Some(Spec::Endpoint(spec)) = &r.spec else { panic!() };
                if spec.source == MARK {
                    prop_assert_eq!(&last.found[name].url, &spec.url);
                }
            }
            for name in last.found.keys() {
                prop_assert!(state.contains_key(name));
            }
        }
    }
}
