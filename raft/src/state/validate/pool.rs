//! The rules of pools: discovery, health and breaker policies.

use std::time::Duration;

use quorate_proto::v1::{BreakerPolicy, DnsDiscovery, HealthPolicy, PoolSpec, discovery::Source};

use super::{Checked, duration, engine, fail, labels, require, to_std};
use crate::state::url::check_host_name;

const MAX_MODELS: usize = 1024;
const MAX_MODEL_NAME: usize = 256;
const MAX_PORTS: usize = 8;
const MAX_PATH: usize = 4096;
const MAX_THRESHOLD: u32 = 1000;

const TICK: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What `BreakerPolicy` documents for unset fields.
const DEFAULT_OPEN: Duration = Duration::from_millis(500);
const DEFAULT_MAX_OPEN: Duration = Duration::from_secs(10);

pub(super) fn check(spec: &PoolSpec) -> Checked {
    models(&spec.models)?;
    labels("spec.pool.selector", &spec.selector)?;
    target_ports(&spec.target_ports)?;
    match spec.discovery.as_ref().map(|discovery| &discovery.source) {
        None => {}
        Some(None) => return fail("spec.pool.discovery", "must name a source: file or dns"),
        Some(Some(Source::File(file))) => {
            let field = "spec.pool.discovery.file.path";
            require(
                file.path.starts_with('/'),
                field,
                "must be an absolute path",
            )?;
            require(
                file.path.len() <= MAX_PATH,
                field,
                format_args!("must be at most {MAX_PATH} bytes long"),
            )?;
            require(
                !file.path.chars().any(char::is_control),
                field,
                "must have no control characters",
            )?;
        }
        Some(Some(Source::Dns(dns))) => dns_discovery(dns)?,
    }
    if let Some(policy) = &spec.health {
        health(policy)?;
    }
    if let Some(policy) = &spec.breaker {
        breaker(policy)?;
    }
    require(
        matches!(
            spec.app_protocol.as_str(),
            "" | "http" | "kubernetes.io/h2c"
        ),
        "spec.pool.app_protocol",
        "must be \"http\" or \"kubernetes.io/h2c\"",
    )?;
    engine("spec.pool.engine", spec.engine)
}

fn models(models: &[String]) -> Checked {
    require(
        models.len() <= MAX_MODELS,
        "spec.pool.models",
        format_args!("must be at most {MAX_MODELS}"),
    )?;
    for (i, model) in models.iter().enumerate() {
        require(
            (1..=MAX_MODEL_NAME).contains(&model.len())
                && !model.chars().any(|c| c.is_control() || c.is_whitespace()),
            format_args!("spec.pool.models[{i}]"),
            format_args!(
                "must be 1 to {MAX_MODEL_NAME} bytes without white space or control characters"
            ),
        )?;
    }
    let mut sorted: Vec<_> = models.iter().collect();
    sorted.sort_unstable();
    match sorted.windows(2).find_map(|pair| {
        if let [a, b] = pair {
            (a == b).then_some(a)
        } else {
            None
        }
    }) {
        Some(twice) => fail("spec.pool.models", format_args!("names {twice:?} twice")),
        None => Ok(()),
    }
}

fn target_ports(ports: &[u32]) -> Checked {
    let field = "spec.pool.target_ports";
    require(
        ports.len() <= MAX_PORTS,
        field,
        format_args!("must be at most {MAX_PORTS}"),
    )?;
    for (i, port) in ports.iter().enumerate() {
        require(
            (1..=65_535).contains(port),
            format_args!("{field}[{i}]"),
            "must be a port from 1 to 65535",
        )?;
        require(
            !ports.iter().take(i).any(|p| p == port),
            format_args!("{field}[{i}]"),
            "is named twice",
        )?;
    }
    Ok(())
}

fn dns_discovery(dns: &DnsDiscovery) -> Checked {
    let field = "spec.pool.discovery.dns";
    require(
        !dns.name.is_empty(),
        format_args!("{field}.name"),
        "must be set",
    )?;
    if let Err(error) = check_host_name(&dns.name) {
        return fail(format_args!("{field}.name"), error);
    }
    // Service names begin with an underscore, and their records carry the port.
    let service = dns.name.starts_with('_');
    require(
        dns.port <= 65_535 && (dns.port != 0 || service),
        format_args!("{field}.port"),
        "must be a port from 1 to 65535 (only service names, as _http._tcp.example.org, do without)",
    )?;
    duration(
        "spec.pool.discovery.dns.interval",
        dns.interval.as_ref(),
        false,
        (SECOND, DAY),
    )?;
    require(
        matches!(dns.scheme.as_str(), "" | "http" | "https"),
        format_args!("{field}.scheme"),
        "must be \"http\" or \"https\"",
    )
}

fn health(policy: &HealthPolicy) -> Checked {
    let path = policy.path.as_str();
    require(
        path.is_empty()
            || (path.starts_with('/')
                && path.len() <= MAX_PATH
                && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#')),
        "spec.pool.health.path",
        "must begin with '/' and have only printable ASCII without '#'",
    )?;
    let durations = [
        ("spec.pool.health.interval", &policy.interval, false, HOUR),
        (
            "spec.pool.health.unhealthy_interval",
            &policy.unhealthy_interval,
            false,
            HOUR,
        ),
        (
            "spec.pool.health.timeout",
            &policy.timeout,
            false,
            5 * MINUTE,
        ),
        (
            "spec.pool.health.slow_start",
            &policy.slow_start,
            true,
            HOUR,
        ),
        (
            "spec.pool.health.stall_timeout",
            &policy.stall_timeout,
            false,
            DAY,
        ),
        (
            "spec.pool.health.metrics_interval",
            &policy.metrics_interval,
            false,
            HOUR,
        ),
    ];
    for (field, value, zero, max) in durations {
        duration(field, value.as_ref(), zero, (TICK, max))?;
    }
    threshold(
        "spec.pool.health.unhealthy_threshold",
        policy.unhealthy_threshold,
    )?;
    threshold(
        "spec.pool.health.healthy_threshold",
        policy.healthy_threshold,
    )
}

fn breaker(policy: &BreakerPolicy) -> Checked {
    threshold(
        "spec.pool.breaker.consecutive_failures",
        policy.consecutive_failures,
    )?;
    duration(
        "spec.pool.breaker.open",
        policy.open.as_ref(),
        false,
        (TICK, HOUR),
    )?;
    duration(
        "spec.pool.breaker.max_open",
        policy.max_open.as_ref(),
        false,
        (TICK, HOUR),
    )?;
    let open = policy.open.as_ref().map_or(DEFAULT_OPEN, to_std);
    let max_open = policy.max_open.as_ref().map_or(DEFAULT_MAX_OPEN, to_std);
    require(
        open <= max_open,
        "spec.pool.breaker.max_open",
        format_args!(
            "must be at least spec.pool.breaker.open: it is {max_open:?}, that is {open:?}"
        ),
    )
}

fn threshold(field: &str, value: u32) -> Checked {
    require(
        value <= MAX_THRESHOLD,
        field,
        format_args!("must be at most {MAX_THRESHOLD}"),
    )
}
