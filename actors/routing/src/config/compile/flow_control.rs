//! The `flowControl` section with its plugins resolved.

use super::Plugins;
use crate::config::flow_section::{BandSection, FlowControlSection};
use crate::config::{BandConfig, Findings, FlowControlConfig, SaturationDetector};

/// The saturation detector that a configuration names, else the default one.
pub(super) fn detector(
    section: Option<&FlowControlSection>,
    plugins: &Plugins<'_>,
    findings: &mut Findings,
) -> SaturationDetector {
    section
        .and_then(|section| section.saturation_detector.as_ref())
        .and_then(|reference| {
            let path = "flowControl.saturationDetector.pluginRef";
            let name = &reference.plugin_ref;
            plugins.policy(name, path, "saturation detector", findings, |built| {
                built.saturation
            })
        })
        .unwrap_or_default()
}

/// All of flow control.
pub(super) fn resolve(
    section: &FlowControlSection,
    plugins: &Plugins<'_>,
    findings: &mut Findings,
) -> FlowControlConfig {
    let mut config = section.limits();
    config.saturation = detector(Some(section), plugins, findings);
    if let Some(name) = &section.usage_limit_policy_plugin_ref {
        let path = "flowControl.usageLimitPolicyPluginRef";
        let policy = plugins.policy(name, path, "usage limit policy", findings, |built| {
            built.usage_limit
        });
        config.usage_limit = policy.unwrap_or(config.usage_limit);
    }
    let mut band = |section: &BandSection, path: &str| band(section, path, plugins, findings);
    if let Some(default) = &section.default_priority_band {
        config.default_band = band(default, "flowControl.defaultPriorityBand");
    }
    if let Some(default) = &section.default_negative_priority_band {
        config.default_negative_band = BandConfig {
            priority: -1,
            ..band(default, "flowControl.defaultNegativePriorityBand")
        };
    }
    config.bands = section
        .priority_bands
        .iter()
        .enumerate()
        .map(|(i, section)| band(section, &format!("flowControl.priorityBands[{i}]")))
        .collect();
    config
        .bands
        .sort_by_key(|band| std::cmp::Reverse(band.priority));
    config
}

fn band(
    section: &BandSection,
    path: &str,
    plugins: &Plugins<'_>,
    findings: &mut Findings,
) -> BandConfig {
    let mut band = section.limits();
    if let Some(name) = &section.fairness_policy_ref {
        let path = format!("{path}.fairnessPolicyRef");
        let policy = plugins.policy(name, &path, "fairness policy", findings, |b| b.fairness);
        band.fairness = policy.unwrap_or(band.fairness);
    }
    if let Some(name) = &section.ordering_policy_ref {
        let path = format!("{path}.orderingPolicyRef");
        let policy = plugins.policy(name, &path, "ordering policy", findings, |b| b.ordering);
        band.ordering = policy.unwrap_or(band.ordering);
    }
    band
}
