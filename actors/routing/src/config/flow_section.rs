//! The `flowControl` section as it is written.

use super::fields::Fields;
use super::flow::{BandConfig, FlowControlConfig, REQUEST_TTL};
use super::quantity::format_duration;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::time::Duration;

/// `flowControl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowControlSection {
    /// Bytes queued in all bands; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Requests queued in all bands; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// 0: no limit.
    #[serde(
        rename = "defaultRequestTTL",
        skip_serializing_if = "Option::is_none",
        serialize_with = "duration"
    )]
    pub default_request_ttl: Option<Duration>,
    /// 0: no limit.
    #[serde(
        rename = "noEndpointRequestTTL",
        skip_serializing_if = "Option::is_none",
        serialize_with = "duration"
    )]
    pub no_endpoint_request_ttl: Option<Duration>,
    /// For priorities of 0 and more that are not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_priority_band: Option<BandSection>,
    /// For priorities below 0 that are not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_negative_priority_band: Option<BandSection>,
    /// Listed priorities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub priority_bands: Vec<BandSection>,
    /// A usage-limit policy's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_limit_policy_plugin_ref: Option<String>,
    /// A saturation detector's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturation_detector: Option<PluginRef>,
    /// Revokes running sheddable requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_eviction: Option<bool>,
}

/// A reference in an object of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginRef {
    /// The plugin's name.
    pub plugin_ref: String,
}

/// One band.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BandSection {
    /// Its priority; without meaning in a default band.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Bytes queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Requests queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// A fairness policy's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fairness_policy_ref: Option<String>,
    /// An ordering policy's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordering_policy_ref: Option<String>,
    /// `Queue` (default) or `Shed`: what happens to a request that cannot be dispatched at once. Not in llm-d.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_saturation: Option<&'static str>,
}

// The signature is serde's.
#[allow(clippy::ref_option)]
fn duration<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(duration) => serializer.serialize_str(&format_duration(*duration)),
        None => serializer.serialize_none(),
    }
}

impl FlowControlSection {
    /// Reads the section.
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let section = Self {
            max_bytes: fields.quantity("maxBytes"),
            max_requests: fields.quantity("maxRequests"),
            default_request_ttl: fields.duration("defaultRequestTTL"),
            no_endpoint_request_ttl: fields.duration("noEndpointRequestTTL"),
            default_priority_band: default_band(fields, "defaultPriorityBand"),
            default_negative_priority_band: default_band(fields, "defaultNegativePriorityBand"),
            priority_bands: bands(fields),
            usage_limit_policy_plugin_ref: fields.text("usageLimitPolicyPluginRef"),
            saturation_detector: fields.object_if("saturationDetector", PluginRef::read),
            enable_eviction: fields.flag_if("enableEviction"),
        };
        for (i, band) in section.priority_bands.iter().enumerate() {
            let earlier = section.priority_bands.iter().take(i);
            if band.priority.is_some() && earlier.clone().any(|b| b.priority == band.priority) {
                let priority = band.priority.unwrap_or_default();
                fields.error(
                    "priorityBands",
                    format!("has priority {priority} more than once"),
                );
            }
        }
        section
    }

    /// The parts that need no plugin.
    pub(super) fn limits(&self) -> FlowControlConfig {
        let unless_zero = |limit: Option<u64>| limit.filter(|n| *n > 0);
        let default_ttl = self.default_request_ttl.unwrap_or(REQUEST_TTL);
        let ttl = |ttl: Duration| (!ttl.is_zero()).then_some(ttl);
        FlowControlConfig {
            max_requests: unless_zero(self.max_requests),
            max_bytes: unless_zero(self.max_bytes),
            default_request_ttl: ttl(default_ttl),
            no_endpoint_request_ttl: ttl(self.no_endpoint_request_ttl.unwrap_or(default_ttl)),
            eviction: self.enable_eviction.unwrap_or(false),
            ..FlowControlConfig::default()
        }
    }
}

impl PluginRef {
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        Self {
            plugin_ref: fields.required_text("pluginRef"),
        }
    }
}

impl BandSection {
    fn read(fields: &mut Fields<'_>) -> Self {
        Self {
            priority: fields.integer("priority"),
            max_bytes: fields.quantity("maxBytes"),
            max_requests: fields.quantity("maxRequests"),
            fairness_policy_ref: fields.text("fairnessPolicyRef"),
            ordering_policy_ref: fields.text("orderingPolicyRef"),
            on_saturation: fields.one_of(
                "onSaturation",
                &[("Queue", Some("Queue")), ("Shed", Some("Shed"))],
                None,
            ),
        }
    }

    /// The band without its policies. 0 stands for the default, as in llm-d.
    pub(super) fn limits(&self) -> BandConfig {
        let default = BandConfig::default();
        let or = |limit: Option<u64>, default| limit.filter(|n| *n > 0).unwrap_or(default);
        BandConfig {
            priority: self.priority.unwrap_or(0),
            max_requests: or(self.max_requests, default.max_requests),
            max_bytes: or(self.max_bytes, default.max_bytes),
            shed: self.on_saturation == Some("Shed"),
            ..default
        }
    }
}

fn default_band(fields: &mut Fields<'_>, key: &'static str) -> Option<BandSection> {
    fields.object_if(key, |band| {
        let section = BandSection::read(band);
        if section.priority.is_some() {
            band.warn("priority", "has no meaning in a default band");
        }
        BandSection {
            priority: None,
            ..section
        }
    })
}

fn bands(fields: &mut Fields<'_>) -> Vec<BandSection> {
    let items: Vec<(String, &Value)> = fields.items("priorityBands");
    items
        .into_iter()
        .map(|(path, item)| {
            let mut band = Fields::new(&path, Some(item), fields.findings());
            let section = BandSection::read(&mut band);
            if section.priority.is_none() && !band.has("priority") {
                band.error("priority", "is required");
            }
            band.finish();
            section
        })
        .collect()
}
