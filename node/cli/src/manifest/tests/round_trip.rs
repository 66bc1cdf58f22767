//! What is written can be read: from a resource to YAML and JSON and back.

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_proto::v1::{
    ApiKeySpec, BreakerPolicy, Discovery, DnsDiscovery, EndpointSpec, FileDiscovery, HealthPolicy,
    Limits, Metadata, ModelMatch, ModelRewriteRule, ModelRewriteSpec, ModelRewriteTarget,
    ObjectiveSpec, PoolSpec, RegionSpec, Resource, SchedulingConfigSpec, SettingSpec, TenantSpec,
    discovery::Source, resource::Spec,
};

use super::super::{Tree, kind, parse};

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9/.:-]{1,12}",
        // What YAML could take for something else, or has to quote.
        prop::sample::select(vec![
            "true",
            "no",
            "null",
            "~",
            "1",
            "1.0",
            "0x1F",
            "1e3",
            "-",
            "- a",
            "a: b",
            "#",
            "a #b",
            "'",
            "\"",
            "\\",
            "{}",
            "[",
            "*a",
            "&a",
            "!a",
            "%",
            "@",
            "`",
            "2026-01-02",
            "12:30:45",
            "<<",
            "=",
            " ",
            " a",
            "a ",
            "\n",
            "a\nb\n",
            "a\n\n",
            "\ta",
            "\u{85}",
            "\u{2028}",
            "\u{feff}",
            "é",
            "😀",
            "\u{1}",
            "---",
            "...",
            "? a",
            "|",
            ">",
            ".inf",
        ])
        .prop_map(str::to_owned),
        "\\PC{1,30}",
        any::<String>().prop_filter("not empty", |s| !s.is_empty()),
        // Long lines, which a writer may want to fold.
        "[a-z ]{80,200}",
    ]
}

fn strings() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(text(), prop_oneof![Just(String::new()), text()], 0..3)
}

fn duration() -> impl Strategy<Value = Option<prost_types::Duration>> {
    prop::option::of(
        (0_i64..100_000, 0_i32..1_000_000_000)
            .prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }),
    )
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(Tree::Null),
        any::<bool>().prop_map(Tree::Bool),
        any::<i64>().prop_map(|n| Tree::Int(n.into())),
        any::<u64>().prop_map(|n| Tree::Int(n.into())),
        prop::num::f64::NORMAL.prop_map(Tree::Float),
        any::<String>().prop_map(Tree::Text),
    ];
    let tree = leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Tree::Seq),
            prop::collection::btree_map(text(), inner, 0..3)
                .prop_map(|map| Tree::Map(map.into_iter().collect())),
        ]
    });
    // Compact JSON, as `apply` sends it, and any other spelling that a client may have sent.
    (tree, any::<bool>()).prop_map(|(tree, pretty)| {
        if pretty {
            serde_json::to_string_pretty(&tree).unwrap()
        } else {
            tree.to_json()
        }
    })
}

fn spec() -> impl Strategy<Value = Spec> {
    let engine = prop::sample::select(vec![0, 1, 2, 3, 4]);
    let discovery = prop::option::of(prop_oneof![
        Just(Discovery { source: None }),
        text().prop_map(|path| Discovery {
            source: Some(Source::File(FileDiscovery { path }))
        }),
        (
            text(),
            0_u32..65536,
            duration(),
            prop::sample::select(vec!["", "http", "https"])
        )
            .prop_map(|(name, port, interval, scheme)| Discovery {
                source: Some(Source::Dns(DnsDiscovery {
                    name,
                    port,
                    interval,
                    scheme: scheme.to_owned()
                }))
            }),
    ]);
    let health = prop::option::of(
        (
            (
                prop_oneof![Just(String::new()), text()],
                any::<u32>(),
                any::<u32>(),
            ),
            prop::collection::vec(duration(), 6),
        )
            .prop_map(
                |((path, unhealthy_threshold, healthy_threshold), d)| HealthPolicy {
                    path,
                    interval: d[0],
                    unhealthy_interval: d[1],
                    timeout: d[2],
                    unhealthy_threshold,
                    healthy_threshold,
                    slow_start: d[3],
                    stall_timeout: d[4],
                    metrics_interval: d[5],
                },
            ),
    );
    let breaker = prop::option::of((any::<u32>(), duration(), duration()).prop_map(
        |(consecutive_failures, open, max_open)| BreakerPolicy {
            consecutive_failures,
            open,
            max_open,
        },
    ));
    let protocol = prop::sample::select(vec!["", "http", "kubernetes.io/h2c"]);
    let pool = (
        (
            prop::collection::vec(text(), 0..3),
            strings(),
            prop::collection::vec(1_u32..65536, 0..3),
        ),
        (discovery, health, breaker),
        (any::<bool>(), protocol, engine.clone()),
    )
        .prop_map(
            |(
                (models, selector, target_ports),
                (discovery, health, breaker),
                (fallback, protocol, engine),
            )| PoolSpec {
                models,
                selector,
                target_ports,
                discovery,
                health,
                breaker,
                fallback,
                app_protocol: protocol.to_owned(),
                engine,
            },
        );
    let maybe = || prop_oneof![Just(String::new()), text()];
    let endpoint = (
        (maybe(), text(), maybe(), maybe(), maybe()),
        engine,
        prop::option::of(any::<u32>()),
        any::<bool>(),
    )
        .prop_map(
            |((pool, url, region, metrics_url, source), engine, data_parallel_rank, draining)| {
                EndpointSpec {
                    pool,
                    url,
                    engine,
                    region,
                    data_parallel_rank,
                    metrics_url,
                    draining,
                    source,
                }
            },
        );
    prop_oneof![
        scheduling(),
        tenancy(),
        pool.prop_map(Spec::Pool),
        endpoint.prop_map(Spec::Endpoint),
        maybe().prop_map(|description| Spec::Region(RegionSpec { description })),
        json().prop_map(|json| Spec::Setting(SettingSpec { json })),
    ]
}

fn scheduling() -> impl Strategy<Value = Spec> {
    let maybe = || prop_oneof![Just(String::new()), text()];
    let rule = (
        prop::collection::vec(text(), 0..3),
        prop::collection::vec((text(), prop::option::of(any::<u32>())), 0..3),
    )
        .prop_map(|(matches, targets)| ModelRewriteRule {
            matches: matches
                .into_iter()
                .map(|model| ModelMatch { model })
                .collect(),
            targets: targets
                .into_iter()
                .map(|(model, weight)| ModelRewriteTarget { model, weight })
                .collect(),
        });
    prop_oneof![
        (text(), text()).prop_map(
            |(pool, config)| Spec::SchedulingConfig(SchedulingConfigSpec { pool, config })
        ),
        (maybe(), any::<i32>())
            .prop_map(|(pool, priority)| Spec::Objective(ObjectiveSpec { pool, priority })),
        (maybe(), prop::collection::vec(rule, 0..3), any::<bool>()).prop_map(
            |(pool, rules, sticky)| Spec::ModelRewrite(ModelRewriteSpec {
                pool,
                rules,
                sticky
            })
        ),
    ]
}

fn tenancy() -> impl Strategy<Value = Spec> {
    let maybe = || prop_oneof![Just(String::new()), text()];
    let names = || prop::collection::vec(text(), 0..3);
    let limits = || {
        prop::option::of(
            (
                prop::option::of(prop::num::f64::POSITIVE | prop::num::f64::NORMAL),
                prop::option::of(1_u64..),
                prop::option::of(any::<u32>()),
            )
                .prop_map(|(requests_per_second, tokens_per_minute, concurrent)| {
                    Limits {
                        requests_per_second,
                        tokens_per_minute,
                        concurrent,
                    }
                }),
        )
    };
    let tenant = (
        (maybe(), maybe(), maybe()),
        (names(), names()),
        limits(),
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(
                (description, fairness_id, default_objective),
                (models, objectives),
                limits,
                (disabled, trusted),
            )| {
                Spec::Tenant(TenantSpec {
                    description,
                    fairness_id,
                    models,
                    objectives,
                    default_objective,
                    limits,
                    disabled,
                    trusted,
                })
            },
        );
    let key = (
        (text(), prop::collection::vec(any::<u8>(), 32), maybe()),
        (names(), names()),
        limits(),
        (prop::option::of(0_i64..4_000_000_000), any::<bool>()),
    )
        .prop_map(
            |((tenant, sha256, hint), (models, objectives), limits, (seconds, revoked))| {
                Spec::ApiKey(ApiKeySpec {
                    tenant,
                    sha256,
                    hint,
                    models,
                    objectives,
                    limits,
                    expires_at: seconds.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
                    revoked,
                })
            },
        );
    prop_oneof![tenant, key]
}

fn resource() -> impl Strategy<Value = Resource> {
    let metadata = (
        "[a-z0-9]([a-z0-9._:-]{0,20}[a-z0-9])?",
        strings(),
        strings(),
        1_u64..,
        0_i64..4_000_000_000,
    );
    (metadata, spec()).prop_map(
        |((name, labels, annotations, resource_version, seconds), spec)| {
            let time = Some(prost_types::Timestamp { seconds, nanos: 0 });
            let metadata = Metadata {
                name,
                resource_version,
                incarnation: 3,
                generation: 1,
                labels,
                annotations,
                created_at: time,
                updated_at: time,
            };
            Resource {
                metadata: Some(metadata),
                spec: Some(spec),
            }
        },
    )
}

/// The resource as `apply` would send it.
fn without_output_only(mut resource: Resource) -> Resource {
    if let Some(Metadata {
        name,
        labels,
        annotations,
        ..
    }) = resource.metadata.take()
    {
        resource.metadata = Some(Metadata {
            name,
            labels,
            annotations,
            ..Metadata::default()
        });
    }
    resource
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// What `get -o yaml` and `get -o json` write is what `apply -f` reads, to the letter.
    #[test]
    fn written_resources_can_be_applied_again(resources in prop::collection::vec(resource(), 1..3)) {
        let mut resources = resources;
        resources.dedup_by(|a, b| kind::name_of(a) == kind::name_of(b));
        for format in [crate::output::Format::Yaml, crate::output::Format::Json] {
            let mut out = Vec::new();
            crate::output::write_documents(&resources, format, false, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            let manifest = parse(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            prop_assert_eq!(&manifest.warnings, &vec![]);
            prop_assert_eq!(manifest.documents.len(), resources.len(), "{}", text);
            for (document, resource) in manifest.documents.iter().zip(&resources) {
                prop_assert_eq!(&document.resource, &without_output_only(resource.clone()), "{}", text);
                let version = resource.metadata.as_ref().map(|m| m.resource_version);
                prop_assert_eq!(document.resource_version, version);
            }
        }
    }
}
