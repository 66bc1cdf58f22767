//! What of an endpoint's fixed facts a plugin may look at, in the form that records keep. Made once for each endpoint, and only if
//! something is recorded.

use super::EndpointSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointFacts {
    /// `http://host:port`.
    pub url: String,
    /// Its region.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Data-parallel rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// Labels of the resource.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl From<&EndpointSpec> for EndpointFacts {
    fn from(spec: &EndpointSpec) -> Self {
        Self {
            url: spec.target.to_string(),
            region: spec.region.to_string(),
            rank: spec.rank,
            labels: spec.labels.clone(),
        }
    }
}
