// long: tables of good and bad input, field by field.
use proptest::prelude::*;
use prost_types::Duration as ProtoDuration;
use quorate_proto::v1::{
    BreakerPolicy, Discovery, DnsDiscovery, FileDiscovery, HealthPolicy, PoolSpec,
    discovery::Source,
};

use super::*;
use crate::state::{
    ResourceExt as _,
    tests::fixtures::{
        endpoint, pool as a_pool, region as a_region, register_node, resource, setting as a_setting,
    },
};

/// The field that is refused.
fn refused(resource: &Resource) -> String {
    match canonical(resource) {
        Err(error) => error.field,
        Ok(resource) => panic!("accepted: {resource:?}"),
    }
}

fn pool_with(change: impl FnOnce(&mut PoolSpec)) -> Resource {
    let mut spec = PoolSpec::default();
    change(&mut spec);
    resource("p", Spec::Pool(spec))
}

fn endpoint_with(change: impl FnOnce(&mut EndpointSpec)) -> Resource {
    let mut resource = endpoint("e", "p", "r");
    if let Some(Spec::Endpoint(spec)) = &mut resource.spec {
        change(spec);
    }
    resource
}

fn url_of(url: &str) -> Result<String, String> {
    canonical(&endpoint_with(|e| e.url = url.into()))
        .map(|r| r.endpoint().unwrap().url.clone())
        .map_err(|e| e.message)
}

fn seconds(seconds: i64) -> Option<ProtoDuration> {
    Some(ProtoDuration { seconds, nanos: 0 })
}

fn millis(millis: i32) -> Option<ProtoDuration> {
    Some(ProtoDuration {
        seconds: 0,
        nanos: millis * 1_000_000,
    })
}

#[test]
fn names() {
    for good in ["a", "0", "gpu-1.rack_2:8000", &"x".repeat(253)] {
        assert_eq!(name("f", good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "A",
        "-a",
        "a-",
        "a b",
        ".",
        "a/b",
        "é",
        "a\n",
        &"x".repeat(254),
    ] {
        assert!(name("f", bad).is_err(), "{bad:?}");
    }
    assert_eq!(refused(&a_pool("Nope")), "metadata.name");
    assert_eq!(
        refused(&Resource {
            metadata: None,
            ..a_pool("p")
        }),
        "metadata"
    );
    assert_eq!(
        refused(&Resource {
            spec: None,
            ..a_pool("p")
        }),
        "spec"
    );
}

#[test]
fn endpoint_urls_are_brought_into_one_form() {
    for (url, expected) in [
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000"),
        (
            "HTTP://GPU-1.Example.org:8000/",
            "http://gpu-1.example.org:8000",
        ),
        ("http://gpu_1", "http://gpu_1:80"),
        ("https://gpu-1", "https://gpu-1:443"),
        ("https://[2001:DB8:0::1]:8443", "https://[2001:db8::1]:8443"),
        ("http://[::1]", "http://[::1]:80"),
        ("http://host.:65535", "http://host.:65535"),
        ("http://localhost:08000", "http://localhost:8000"),
    ] {
        assert_eq!(url_of(url).as_deref(), Ok(expected), "{url}");
    }
}

#[test]
fn bad_endpoint_urls_are_refused_with_a_reason() {
    for (url, reason) in [
        ("", "must begin with http:// or https://"),
        ("10.0.0.1:8000", "must begin with http:// or https://"),
        ("ftp://host", "must begin with http:// or https://"),
        ("http://", "must have a host"),
        ("http://:80", "must have a host"),
        ("http://host:8000/v1", "must have no path"),
        ("http://host?x=1", "must have no path"),
        ("http://host\\evil", "backslash"),
        ("http://user:secret@host", "must have no user"),
        ("http://ho st", "white space"),
        ("http://host\r\nX: y", "white space"),
        ("http://host:0", "port from 1"),
        ("http://host:65536", "port from 1"),
        ("http://host:+80", "port from 1"),
        ("http://host:", "port from 1"),
        ("http://[::1]:", "port from 1"),
        ("http://::1:8000", "brackets"),
        ("http://[::1", "without a ']'"),
        ("http://[::1]8000", "after the ']'"),
        ("http://[fe80::1%eth0]", "IPv6"),
        ("http://[host]", "IPv6"),
        ("http://1.2.3", "IPv4"),
        ("http://256.1.1.1", "IPv4"),
        ("http://01.1.1.1", "IPv4"),
        ("http://0.0.0.0:80", "nothing can be reached"),
        ("http://[::]:80", "nothing can be reached"),
        ("http://224.0.0.1", "nothing can be reached"),
        ("http://-host", "host name"),
        ("http://a..b", "host name"),
        ("http://höst", "ASCII"),
    ] {
        let error = url_of(url).expect_err(url);
        assert!(error.contains(reason), "{url}: {error}");
    }
    let long = format!("http://{}", "a.".repeat(2000));
    assert!(url_of(&long).unwrap_err().contains("at most"));
}

#[test]
fn endpoints() {
    let field = |change: fn(&mut EndpointSpec)| refused(&endpoint_with(change));
    assert_eq!(field(|e| e.url = "x".into()), "spec.endpoint.url");
    assert_eq!(field(|e| e.pool = "P".into()), "spec.endpoint.pool");
    assert_eq!(field(|e| e.region = "R".into()), "spec.endpoint.region");
    assert_eq!(field(|e| e.engine = 99), "spec.endpoint.engine");
    assert_eq!(
        field(|e| e.data_parallel_rank = Some(1 << 20)),
        "spec.endpoint.data_parallel_rank"
    );
    assert_eq!(
        field(|e| e.metrics_url = "http://h/#x".into()),
        "spec.endpoint.metrics_url"
    );
    for source in ["me", "file:", "dns:P", "api:p"] {
        assert_eq!(
            refused(&endpoint_with(|e| e.source = source.into())),
            "spec.endpoint.source"
        );
    }
    let good = canonical(&endpoint_with(|e| {
        e.metrics_url = "HTTP://h:9/metrics?x=1".into();
        e.source = String::new();
    }))
    .unwrap();
    let good = good.endpoint().unwrap();
    assert_eq!(
        (good.metrics_url.as_str(), good.source.as_str()),
        ("http://h:9/metrics?x=1", "api")
    );
}

#[test]
fn labels_are_what_kubernetes_takes() {
    let labelled = |key: &str, value: &str| {
        let mut pool = a_pool("p");
        pool.metadata
            .as_mut()
            .unwrap()
            .labels
            .insert(key.into(), value.into());
        canonical(&pool).map(|_| ()).map_err(|e| e.field)
    };
    for (key, value) in [
        ("a", ""),
        ("A_b.c-9", "V_1.x"),
        ("example.org/a", "b"),
        (&"k".repeat(63), &"v".repeat(63)),
    ] {
        assert_eq!(labelled(key, value), Ok(()), "{key}={value}");
    }
    for key in [
        "",
        "/a",
        "a/",
        "a/b/c",
        "Ex.org/a",
        "-a",
        "a b",
        "..",
        "a-/b",
        &"k".repeat(64),
    ] {
        assert_eq!(labelled(key, ""), Err("metadata.labels".into()), "{key}");
    }
    for value in ["-", "a b", "v/w", &"v".repeat(64)] {
        assert_eq!(
            labelled("a", value),
            Err("metadata.labels[\"a\"]".into()),
            "{value}"
        );
    }
    let many =
        pool_with(|p| p.selector = (0..65).map(|i| (i.to_string(), String::new())).collect());
    assert_eq!(refused(&many), "spec.pool.selector");
    let mut annotated = a_pool("p");
    annotated
        .metadata
        .as_mut()
        .unwrap()
        .annotations
        .insert("a".into(), "x".repeat(MAX_ANNOTATION_BYTES));
    assert_eq!(refused(&annotated), "metadata.annotations");
}

#[test]
fn pools() {
    let field = |change: fn(&mut PoolSpec)| refused(&pool_with(change));
    assert_eq!(
        field(|p| p.models = vec![String::new()]),
        "spec.pool.models[0]"
    );
    assert_eq!(
        field(|p| p.models = vec!["a".into(), "b c".into()]),
        "spec.pool.models[1]"
    );
    assert_eq!(
        field(|p| p.models = vec!["a".into(), "b".into(), "a".into()]),
        "spec.pool.models"
    );
    assert_eq!(
        field(|p| p.models = (0..2000).map(|i| i.to_string()).collect()),
        "spec.pool.models"
    );
    assert_eq!(
        field(|p| p.target_ports = vec![0]),
        "spec.pool.target_ports[0]"
    );
    assert_eq!(
        field(|p| p.target_ports = vec![80, 65_536]),
        "spec.pool.target_ports[1]"
    );
    assert_eq!(
        field(|p| p.target_ports = vec![80, 80]),
        "spec.pool.target_ports[1]"
    );
    assert_eq!(
        field(|p| p.target_ports = (1..10).collect()),
        "spec.pool.target_ports"
    );
    assert_eq!(
        field(|p| p.app_protocol = "grpc".into()),
        "spec.pool.app_protocol"
    );
    assert_eq!(field(|p| p.engine = -1), "spec.pool.engine");
    assert_eq!(
        field(|p| p.discovery = Some(Discovery::default())),
        "spec.pool.discovery"
    );
    let good = pool_with(|p| {
        p.models = vec!["meta-llama/Llama-3.1-8B".into(), "lora:β".into()];
        p.target_ports = (1..9).collect();
        p.app_protocol = "kubernetes.io/h2c".into();
    });
    assert_eq!(canonical(&good).as_ref(), Ok(&good));
}

#[test]
fn discovery() {
    let file = |path: &str| {
        let source = Source::File(FileDiscovery { path: path.into() });
        canonical(&pool_with(|p| {
            p.discovery = Some(Discovery {
                source: Some(source),
            })
        }))
        .map(|_| ())
        .map_err(|e| e.field)
    };
    assert_eq!(file("/etc/endpoints.yaml"), Ok(()));
    for bad in ["", "endpoints.yaml", "/a\0b"] {
        assert_eq!(
            file(bad),
            Err("spec.pool.discovery.file.path".into()),
            "{bad:?}"
        );
    }
    let dns = |change: fn(&mut DnsDiscovery)| {
        let mut dns = DnsDiscovery {
            name: "gpu.example.org".into(),
            port: 8000,
            ..DnsDiscovery::default()
        };
        change(&mut dns);
        let source = Some(Source::Dns(dns));
        canonical(&pool_with(|p| p.discovery = Some(Discovery { source })))
            .map(|_| ())
            .map_err(|e| e.field)
    };
    let field = |field: &str| Err(format!("spec.pool.discovery.dns.{field}"));
    assert_eq!(dns(|_| {}), Ok(()));
    assert_eq!(
        dns(|d| (d.name, d.port) = ("_vllm._tcp.gpu.example.org".into(), 0)),
        Ok(())
    );
    assert_eq!(dns(|d| d.port = 0), field("port"));
    assert_eq!(dns(|d| d.port = 70_000), field("port"));
    assert_eq!(dns(|d| d.name = String::new()), field("name"));
    assert_eq!(dns(|d| d.name = "a b".into()), field("name"));
    assert_eq!(dns(|d| d.interval = millis(500)), field("interval"));
    assert_eq!(dns(|d| d.interval = seconds(1)), Ok(()));
    assert_eq!(dns(|d| d.scheme = "h2".into()), field("scheme"));
}

#[test]
fn policies() {
    let health = |change: fn(&mut HealthPolicy)| {
        let mut policy = HealthPolicy::default();
        change(&mut policy);
        canonical(&pool_with(|p| p.health = Some(policy)))
            .map(|_| ())
            .map_err(|e| e.field)
    };
    let field = |field: &str| Err(format!("spec.pool.health.{field}"));
    assert_eq!(health(|_| {}), Ok(()));
    assert_eq!(health(|h| h.path = "health".into()), field("path"));
    assert_eq!(health(|h| h.path = "/a b".into()), field("path"));
    assert_eq!(health(|h| h.interval = seconds(-1)), field("interval"));
    assert_eq!(health(|h| h.interval = seconds(0)), field("interval"));
    assert_eq!(
        health(|h| h.interval = seconds(i64::MAX)),
        field("interval")
    );
    assert_eq!(
        health(|h| h.interval = Some(ProtoDuration {
            seconds: 1,
            nanos: -1
        })),
        field("interval")
    );
    assert_eq!(
        health(|h| h.interval = Some(ProtoDuration {
            seconds: 0,
            nanos: i32::MAX
        })),
        field("interval")
    );
    assert_eq!(
        health(|h| h.unhealthy_interval = millis(9)),
        field("unhealthy_interval")
    );
    assert_eq!(health(|h| h.timeout = seconds(301)), field("timeout"));
    assert_eq!(health(|h| h.slow_start = seconds(0)), Ok(()));
    assert_eq!(
        health(|h| h.slow_start = seconds(3601)),
        field("slow_start")
    );
    assert_eq!(
        health(|h| h.stall_timeout = seconds(0)),
        field("stall_timeout")
    );
    assert_eq!(
        health(|h| h.metrics_interval = millis(1)),
        field("metrics_interval")
    );
    assert_eq!(
        health(|h| h.unhealthy_threshold = 1001),
        field("unhealthy_threshold")
    );
    assert_eq!(
        health(|h| h.healthy_threshold = 1001),
        field("healthy_threshold")
    );

    let breaker = |consecutive_failures, open, max_open| {
        let policy = BreakerPolicy {
            consecutive_failures,
            open,
            max_open,
        };
        canonical(&pool_with(|p| p.breaker = Some(policy)))
            .map(|_| ())
            .map_err(|e| e.field)
    };
    assert_eq!(breaker(5, seconds(1), seconds(1)), Ok(()));
    assert_eq!(
        breaker(2000, None, None),
        Err("spec.pool.breaker.consecutive_failures".into())
    );
    assert_eq!(
        breaker(0, seconds(2), seconds(1)),
        Err("spec.pool.breaker.max_open".into())
    );
    assert_eq!(
        breaker(0, seconds(11), None),
        Err("spec.pool.breaker.max_open".into()),
        "10 s is the default"
    );
    assert_eq!(
        breaker(0, None, millis(100)),
        Err("spec.pool.breaker.max_open".into()),
        "500 ms is the default"
    );
}

#[test]
fn settings_and_regions() {
    for json in [
        "null",
        " {\"a\": [1, 2.5e3, \"x\"]} ",
        "\"\\u00e9\"",
        &format!("\"{}\"", "x".repeat((512 << 10) - 2)),
    ] {
        assert!(canonical(&a_setting("s", json)).is_ok(), "{}", json.len());
    }
    for json in [
        "",
        "{",
        "nul",
        "1 2",
        "{a: 1}",
        "\"\n\"",
        &format!("\"{}\"", "x".repeat(512 << 10)),
    ] {
        assert_eq!(refused(&a_setting("s", json)), "spec.setting.json");
    }
    let deep = "[".repeat(200_000);
    assert_eq!(
        refused(&a_setting("s", &deep)),
        "spec.setting.json",
        "without running out of stack"
    );
    let mut region = a_region("r");
    region.spec = Some(Spec::Region(RegionSpec {
        description: "bell \u{7}".into(),
    }));
    assert_eq!(refused(&region), "spec.region.description");
}

#[test]
fn nodes() {
    let check = |change: fn(&mut NodeSpec)| {
        let mut register = register_node("n", "i", "r");
        change(register.node.as_mut().unwrap());
        node("node", "n", &register.node.unwrap()).map_err(|e| e.field)
    };
    assert_eq!(check(|_| {}), Ok(()));
    assert_eq!(check(|n| n.peer_address = "[::1]:7000".into()), Ok(()));
    assert_eq!(
        check(|n| n.peer_address = String::new()),
        Err("node.peer_address".into())
    );
    assert_eq!(
        check(|n| n.peer_address = "host".into()),
        Err("node.peer_address".into())
    );
    assert_eq!(
        check(|n| n.gateway_address = "0.0.0.0:80".into()),
        Err("node.gateway_address".into())
    );
    assert_eq!(
        check(|n| n.instance = "a b".into()),
        Err("node.instance".into())
    );
    assert_eq!(
        check(|n| n.region = String::new()),
        Err("node.region".into())
    );
    assert_eq!(
        check(|n| n.version = "1\u{0}".into()),
        Err("node.version".into())
    );
    assert!(node("node", "N", &NodeSpec::default()).is_err());
}

#[test]
fn output_only_fields_are_dropped() {
    let mut sent = a_setting("s", "1");
    let metadata = sent.metadata.as_mut().unwrap();
    (
        metadata.resource_version,
        metadata.incarnation,
        metadata.generation,
    ) = (9, 9, 9);
    metadata.created_at = Some(prost_types::Timestamp {
        seconds: 1,
        nanos: 0,
    });
    assert_eq!(canonical(&sent), Ok(a_setting("s", "1")));
}

proptest! {
    /// The one form is its own one form, whatever was sent; and no text makes the parser panic.
    #[test]
    fn canonical_urls_are_stable(url in "(http|https|HTTP)?(://)?[a-zA-Z0-9.:\\[\\]_/@%?#é -]{0,30}") {
        if let Ok(once) = url_of(&url) {
            prop_assert_eq!(url_of(&once), Ok(once.clone()));
        }
        if let Ok(once) = crate::state::url::canonical_page_url(&url) {
            prop_assert_eq!(crate::state::url::canonical_page_url(&once), Ok(once.clone()));
        }
    }

    #[test]
    fn durations_are_within_their_bounds(seconds: i64, nanos: i32) {
        let bounds = (Duration::from_millis(10), Duration::from_secs(3600));
        let value = ProtoDuration { seconds, nanos };
        if duration("f", Some(&value), false, bounds).is_ok() {
            let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
            prop_assert!((10_000_000..=3_600_000_000_000).contains(&total));
        }
    }
}
