//! Scheduling configuration: llm-d's `EndpointPickerConfig`, read strictly, and compiled into a pipeline.
//!
//! Reading and compiling are two steps. [`EndpointPickerConfig::parse`] reads the text, fills in names, moves deprecated keys to
//! where they belong now and says so in warnings; [`EndpointPickerConfig::compile`] builds every plugin, checks all parameters and
//! references at once, and returns the whole policy or every error there is. Nothing is ever half applied.

mod compile;
mod fields;
pub mod flow;
mod flow_section;
pub mod presets;
mod problem;
mod producers;
mod quantity;
mod read;
pub mod registry;
#[cfg(test)]
mod tests;

pub use compile::CompiledPolicy;
pub use fields::Fields;
pub use flow::{
    BandConfig, ConcurrencyMode, FairnessPolicy, FlowControlConfig, HoldbackDomain, OrderingPolicy,
    ProgramAware, SaturationDetector, UsageLimitPolicy,
};
pub use flow_section::{BandSection, FlowControlSection};
pub use problem::{ConfigErrors, Findings, Problem};
pub use quantity::{format_duration, parse_duration, parse_quantity};
pub use registry::Registry;

use serde::Serialize;
use serde_json::Value;

/// `apiVersion` of the configuration.
pub const API_VERSION: &str = "llm-d.ai/v1alpha1";
/// `kind` of the configuration.
pub const KIND: &str = "EndpointPickerConfig";

/// A configuration as it was written, with deprecated keys moved and names filled in. Serialising it and parsing the result gives
/// the same again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPickerConfig {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// Kept for whoever stores the configuration (its name, its pool); means nothing to routing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    /// `name` or `name=false`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub feature_gates: Vec<String>,
    /// Plugin instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<PluginSpec>,
    /// Profiles in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scheduling_profiles: Vec<ProfileSpec>,
    /// Where metrics come from. Endpoints and their probes are resources of their own here; kept as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_layer: Option<Value>,
    /// Queueing in front of the scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_control: Option<FlowControlSection>,
    /// Which parsers read requests; kept as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_handler: Option<Value>,
}

impl Default for EndpointPickerConfig {
    /// Nothing configured: compiles to the built-in defaults.
    fn default() -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata: None,
            feature_gates: Vec::new(),
            plugins: Vec::new(),
            scheduling_profiles: Vec::new(),
            data_layer: None,
            flow_control: None,
            request_handler: None,
        }
    }
}

/// A plugin instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PluginSpec {
    /// What others refer to it by; its type if none was given.
    pub name: String,
    /// Which plugin.
    #[serde(rename = "type")]
    pub kind: String,
    /// As the plugin has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
}

/// A profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProfileSpec {
    /// What a profile handler refers to it by.
    pub name: String,
    /// Filters in order, scorers, a picker.
    pub plugins: Vec<ProfilePlugin>,
}

/// A plugin's place in a profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfilePlugin {
    /// Name of the plugin.
    pub plugin_ref: String,
    /// For scorers; 1 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

/// A configuration and what has no effect in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The configuration.
    pub config: EndpointPickerConfig,
    /// Deprecated keys and things without meaning here.
    pub warnings: Vec<Problem>,
}

impl EndpointPickerConfig {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Parsed, ConfigErrors> {
        read::parse(text)
    }

    /// The configuration as YAML.
    ///
    /// # Errors
    /// [`ConfigErrors`] if the serialiser refuses, which it has no reason to.
    pub fn to_yaml(&self) -> Result<String, ConfigErrors> {
        serde_saphyr::to_string(self).map_err(|error| {
            ConfigErrors(vec![Problem {
                path: String::new(),
                message: format!("cannot be written as YAML: {error}"),
            }])
        })
    }

    /// Builds the policy with the plugins of this crate.
    ///
    /// # Errors
    /// Every unknown type, bad parameter, dangling reference and cycle.
    pub fn compile(&self) -> Result<CompiledPolicy, ConfigErrors> {
        self.compile_with(&Registry::default())
    }

    /// The same with further producers.
    ///
    /// # Errors
    /// As [`EndpointPickerConfig::compile`].
    pub fn compile_with(&self, registry: &Registry) -> Result<CompiledPolicy, ConfigErrors> {
        compile::compile(self, registry)
    }

    /// Whether a feature gate is on.
    pub fn gate(&self, name: &str) -> bool {
        self.feature_gates
            .iter()
            .rev()
            .find_map(|gate| match gate.split_once('=') {
                Some((of, value)) if of == name => Some(value != "false"),
                None if gate == name => Some(true),
                _ => None,
            })
            .unwrap_or(false)
    }
}
