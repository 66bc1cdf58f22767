//! What a well-formed resource is: every rule that needs no other resource, in one place.
//!
//! The API runs these before it proposes a command and apply runs them again, so they are pure. They are part of the
//! schema: nodes that disagreed about them would apply the same log to different states.

mod identity;
mod pool;
mod scheduling;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use quorate_proto::v1::{
    EndpointSpec, Engine, Metadata, NodeSpec, RegionSpec, Resource, SettingSpec, resource::Spec,
};

use super::url::{EndpointUrl, HostPort, canonical_page_url};

const MAX_NAME: usize = 253;
const MAX_KEY: usize = 128;
const MAX_LABELS: usize = 64;
const MAX_ANNOTATION_BYTES: usize = 256 << 10;
const MAX_SETTING_BYTES: usize = 512 << 10;
const MAX_DESCRIPTION: usize = 1024;
const MAX_RANK: u32 = 65_535;

/// A field that is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Path of the field, as in `spec.pool.health.interval`.
    pub field: String,
    /// What is wrong, in words that follow the path.
    pub message: String,
}

type Checked = Result<(), FieldError>;

fn fail<T>(field: impl fmt::Display, message: impl fmt::Display) -> Result<T, FieldError> {
    Err(FieldError {
        field: field.to_string(),
        message: message.to_string(),
    })
}

fn require(good: bool, field: impl fmt::Display, message: impl fmt::Display) -> Checked {
    if good { Ok(()) } else { fail(field, message) }
}

/// Checks a resource and returns it in its one form: addresses normalised, output-only metadata empty.
///
/// # Errors
/// The first [`FieldError`].
pub fn canonical(resource: &Resource) -> Result<Resource, FieldError> {
    let Some(metadata) = &resource.metadata else {
        return fail("metadata", "must be set");
    };
    name("metadata.name", &metadata.name)?;
    labels("metadata.labels", &metadata.labels)?;
    annotations(&metadata.annotations)?;
    let spec = match &resource.spec {
        None => {
            return fail("spec", "must be set, to a kind that this node knows");
        }
        Some(Spec::Pool(spec)) => {
            pool::check(spec)?;
            Spec::Pool(spec.clone())
        }
        Some(Spec::Endpoint(spec)) => Spec::Endpoint(canonical_endpoint(spec)?),
        Some(Spec::Node(spec)) => {
            node("spec.node", &metadata.name, spec)?;
            Spec::Node(spec.clone())
        }
        Some(Spec::Region(spec)) => {
            region(spec)?;
            Spec::Region(spec.clone())
        }
        Some(Spec::Setting(spec)) => {
            setting(spec)?;
            Spec::Setting(spec.clone())
        }
        Some(Spec::SchedulingConfig(spec)) => {
            scheduling::config(&metadata.name, spec)?;
            Spec::SchedulingConfig(spec.clone())
        }
        // Written by apply itself, out of a config that was checked.
        Some(Spec::ConfigRevision(spec)) => Spec::ConfigRevision(spec.clone()),
        Some(Spec::Objective(spec)) => {
            scheduling::objective(spec)?;
            Spec::Objective(spec.clone())
        }
        Some(Spec::ModelRewrite(spec)) => {
            scheduling::model_rewrite(spec)?;
            Spec::ModelRewrite(spec.clone())
        }
        Some(Spec::Tenant(spec)) => {
            identity::tenant(spec)?;
            Spec::Tenant(spec.clone())
        }
        Some(Spec::ApiKey(spec)) => {
            identity::api_key(spec)?;
            Spec::ApiKey(spec.clone())
        }
    };
    let metadata = Metadata {
        name: metadata.name.clone(),
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..Metadata::default()
    };
    Ok(Resource {
        metadata: Some(metadata),
        spec: Some(spec),
    })
}

/// Checks an idempotency key. The empty key is fine: it means none.
///
/// # Errors
/// A [`FieldError`] for `idempotency_key`.
pub fn idempotency_key(key: &str) -> Checked {
    let field = "idempotency_key";
    require(
        key.len() <= MAX_KEY || key.chars().count() <= MAX_KEY,
        field,
        format_args!("must be at most {MAX_KEY} characters long"),
    )?;
    require(
        !key.chars().any(char::is_control),
        field,
        "must have no control characters",
    )
}

/// Checks a resource's name.
///
/// # Errors
/// A [`FieldError`] for `field`.
pub fn name(field: &str, name: &str) -> Checked {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:".contains(&b);
    require(!name.is_empty(), field, "must be set")?;
    require(
        name.len() <= MAX_NAME
            && name.bytes().all(inner)
            && edge(name.bytes().next())
            && edge(name.bytes().next_back()),
        field,
        format_args!(
            "must be 1 to {MAX_NAME} lower-case letters, digits, '-', '.', '_' or ':', beginning and ending with a letter or \
             digit"
        ),
    )
}

/// Checks what a cluster is founded with.
///
/// # Errors
/// A [`FieldError`].
pub(super) fn cluster_facts(cluster_id: &str, timing: &str) -> Checked {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    require(
        (1..=64).contains(&cluster_id.len()) && cluster_id.bytes().all(good),
        "cluster_id",
        "must be 1 to 64 lower-case letters, digits or '-'",
    )?;
    require(
        matches!(timing, "lan" | "wan"),
        "timing",
        "must be \"lan\" or \"wan\"",
    )
}

/// Checks a node as it registers. Only the peer address is required: it is what the others reach it by.
pub(super) fn node(field: &str, node_name: &str, spec: &NodeSpec) -> Checked {
    name("name", node_name)?;
    let instance = spec.instance.as_bytes();
    require(
        (1..=MAX_KEY).contains(&instance.len())
            && instance
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-'),
        format_args!("{field}.instance"),
        format_args!("must be 1 to {MAX_KEY} letters, digits or '-'"),
    )?;
    name(&format!("{field}.region"), &spec.region)?;
    let addresses = [
        ("peer_address", &spec.peer_address, true),
        ("control_address", &spec.control_address, false),
        ("gateway_address", &spec.gateway_address, false),
        ("admin_address", &spec.admin_address, false),
    ];
    for (address, value, required) in addresses {
        if (required || !value.is_empty())
            && let Err(error) = value.parse::<HostPort>()
        {
            return fail(format_args!("{field}.{address}"), error);
        }
    }
    text(&format!("{field}.version"), &spec.version, 64)
}

fn canonical_endpoint(spec: &EndpointSpec) -> Result<EndpointSpec, FieldError> {
    let mut spec = spec.clone();
    if !spec.pool.is_empty() {
        name("spec.endpoint.pool", &spec.pool)?;
    }
    if !spec.region.is_empty() {
        name("spec.endpoint.region", &spec.region)?;
    }
    match spec.url.parse::<EndpointUrl>() {
        Ok(url) => spec.url = url.to_string(),
        Err(error) => return fail("spec.endpoint.url", error),
    }
    engine("spec.endpoint.engine", spec.engine)?;
    require(
        spec.data_parallel_rank.is_none_or(|rank| rank <= MAX_RANK),
        "spec.endpoint.data_parallel_rank",
        format_args!("must be at most {MAX_RANK}"),
    )?;
    if !spec.metrics_url.is_empty() {
        match canonical_page_url(&spec.metrics_url) {
            Ok(url) => spec.metrics_url = url,
            Err(error) => return fail("spec.endpoint.metrics_url", error),
        }
    }
    match spec.source.split_once(':') {
        None if spec.source.is_empty() => spec.source = "api".into(),
        None if spec.source == "api" => {}
        Some(("file" | "dns", pool)) => name("spec.endpoint.source", pool)?,
        _ => {
            return fail(
                "spec.endpoint.source",
                "must be \"api\", \"file:<pool>\" or \"dns:<pool>\"",
            );
        }
    }
    Ok(spec)
}

fn region(spec: &RegionSpec) -> Checked {
    text(
        "spec.region.description",
        &spec.description,
        MAX_DESCRIPTION,
    )
}

fn setting(spec: &SettingSpec) -> Checked {
    let field = "spec.setting.json";
    require(
        spec.json.len() <= MAX_SETTING_BYTES,
        field,
        format_args!("must be at most {} KiB long", MAX_SETTING_BYTES >> 10),
    )?;
    match serde_json::from_str::<&serde_json::value::RawValue>(&spec.json) {
        Ok(_) => Ok(()),
        Err(error) => fail(field, format_args!("must be a JSON value: {error}")),
    }
}

fn engine(field: &str, value: i32) -> Checked {
    require(
        Engine::try_from(value).is_ok(),
        field,
        "must be a known engine",
    )
}

/// Checks labels, or a selector of them: keys and values as Kubernetes writes them.
fn labels(field: &str, labels: &BTreeMap<String, String>) -> Checked {
    require(
        labels.len() <= MAX_LABELS,
        field,
        format_args!("must be at most {MAX_LABELS}"),
    )?;
    for (key, value) in labels {
        label_key(field, key)?;
        require(
            value.is_empty() || is_label_word(value),
            format_args!("{field}[{key:?}]"),
            "must be empty, or at most 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit",
        )?;
    }
    Ok(())
}

fn annotations(annotations: &BTreeMap<String, String>) -> Checked {
    let field = "metadata.annotations";
    let bytes: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    require(
        bytes <= MAX_ANNOTATION_BYTES,
        field,
        format_args!(
            "must be at most {} KiB together",
            MAX_ANNOTATION_BYTES >> 10
        ),
    )?;
    annotations.keys().try_for_each(|key| label_key(field, key))
}

fn label_key(field: &str, key: &str) -> Checked {
    let (prefix, word) = key
        .split_once('/')
        .map_or((None, key), |(prefix, word)| (Some(prefix), word));
    let prefix_is_good = |prefix: &str| {
        prefix.len() <= MAX_NAME
            && prefix.split('.').all(|label| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            })
    };
    require(
        is_label_word(word) && prefix.is_none_or(prefix_is_good),
        field,
        format_args!(
            "has the bad key {:?}: a key is a word of at most 63 letters, digits, '-', '_' or '.', beginning and ending with a \
             letter or digit, after an optional DNS name and '/'",
            key.chars().take(80).collect::<String>()
        ),
    )
}

/// A non-empty word as Kubernetes allows it in label keys and values.
fn is_label_word(word: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    word.len() <= 63
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && edge(word.bytes().next())
        && edge(word.bytes().next_back())
}

/// Free text for people.
fn text(field: &str, value: &str, max: usize) -> Checked {
    require(
        value.len() <= max,
        field,
        format_args!("must be at most {max} bytes long"),
    )?;
    require(
        !value
            .chars()
            .any(|c| c.is_control() && c != '\n' && c != '\t'),
        field,
        "must have no control characters",
    )
}

/// A duration from `min` to `max`, and zero if `zero` says so. Unset is fine.
fn duration(
    field: &str,
    value: Option<&prost_types::Duration>,
    zero: bool,
    (min, max): (Duration, Duration),
) -> Checked {
    let Some(value) = value else { return Ok(()) };
    require(
        value.seconds >= 0 && value.nanos >= 0,
        field,
        "must not be negative",
    )?;
    require(
        value.nanos < 1_000_000_000,
        field,
        "must have less than a second in its nanoseconds",
    )?;
    let length = to_std(value);
    require(
        (min..=max).contains(&length) || (zero && length.is_zero()),
        field,
        format_args!(
            "must be {}from {min:?} to {max:?}, not {length:?}",
            if zero { "0s or " } else { "" }
        ),
    )
}

/// A non-negative protobuf duration; a negative one counts as zero.
fn to_std(value: &prost_types::Duration) -> Duration {
    Duration::new(
        u64::try_from(value.seconds).unwrap_or(0),
        u32::try_from(value.nanos).unwrap_or(0),
    )
}
