//! Text -> [`EndpointPickerConfig`].

use super::fields::{Fields, is_a};
use super::flow_section::{FlowControlSection, PluginRef};
use super::problem::{ConfigErrors, Findings, Problem, suggestion};
use super::{
    API_VERSION, EndpointPickerConfig, KIND, Parsed, PluginSpec, ProfilePlugin, ProfileSpec,
};
use serde_json::Value;

/// Longer texts are refused unread.
const MAX_BYTES: usize = 1 << 20;
const OLD_API_VERSION: &str = "inference.networking.x-k8s.io/v1alpha1";
/// Gates that exist.
const GATES: [&str; 2] = ["flowControl", "haPopulateNonLeaderDatastore"];

pub(super) fn parse(text: &str) -> Result<Parsed, ConfigErrors> {
    let one = |message: String| {
        ConfigErrors(vec![Problem {
            path: String::new(),
            message,
        }])
    };
    if text.len() > MAX_BYTES {
        return Err(one(format!("is larger than {} MiB", MAX_BYTES >> 20)));
    }
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let root: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let text = error.without_snippet().to_string();
        let first = text.lines().next().unwrap_or_default().trim().to_owned();
        one(if line > 0 {
            format!("line {line}: {first}")
        } else {
            first
        })
    })?;
    if !root.is_object() {
        return Err(one(format!("must be an object, not {}", is_a(&root))));
    }
    let mut findings = Findings::default();
    let mut fields = Fields::new("", Some(&root), &mut findings);
    let config = read(&mut fields);
    fields.finish();
    if findings.errors.is_empty() {
        Ok(Parsed {
            config,
            warnings: findings.warnings,
        })
    } else {
        Err(ConfigErrors(findings.errors))
    }
}

fn read(fields: &mut Fields<'_>) -> EndpointPickerConfig {
    let api_version = fields.required_text("apiVersion");
    if api_version == OLD_API_VERSION {
        fields.warn(
            "apiVersion",
            format!("`{OLD_API_VERSION}` is deprecated: use `{API_VERSION}`"),
        );
    } else if !api_version.is_empty() && api_version != API_VERSION {
        fields.error(
            "apiVersion",
            format!("must be `{API_VERSION}`, not `{api_version}`"),
        );
    }
    let kind = fields.required_text("kind");
    if !kind.is_empty() && kind != KIND {
        fields.error("kind", format!("must be `{KIND}`, not `{kind}`"));
    }
    let mut config = EndpointPickerConfig {
        metadata: object(fields, "metadata"),
        feature_gates: gates(fields),
        plugins: plugins(fields),
        scheduling_profiles: profiles(fields),
        data_layer: data_layer(fields),
        request_handler: request_handler(fields),
        ..EndpointPickerConfig::default()
    };
    config.flow_control = fields.object_if("flowControl", FlowControlSection::read);
    deprecated_detector(fields, &mut config);
    config
}

/// `saturationDetector` at the top level moved into `flowControl`.
fn deprecated_detector(fields: &mut Fields<'_>, config: &mut EndpointPickerConfig) {
    let Some(reference) = fields.object_if("saturationDetector", PluginRef::read) else {
        return;
    };
    fields.warn(
        "saturationDetector",
        "is deprecated: use `flowControl.saturationDetector`",
    );
    let section = config.flow_control.get_or_insert_default();
    if section.saturation_detector.is_some() {
        fields.error("saturationDetector", "is also set in `flowControl`");
    } else {
        section.saturation_detector = Some(reference);
    }
}

fn object(fields: &mut Fields<'_>, key: &'static str) -> Option<Value> {
    match fields.raw(key) {
        Some(value @ Value::Object(_)) => Some(value.clone()),
        Some(other) => {
            fields.error(key, format!("must be an object, not {}", is_a(other)));
            None
        }
        None => None,
    }
}

fn gates(fields: &mut Fields<'_>) -> Vec<String> {
    let gates = fields.texts("featureGates");
    for (i, gate) in gates.iter().enumerate() {
        let path = format!("featureGates[{i}]");
        let (name, value) = match gate.split_once('=') {
            Some((name, value)) => (name, value),
            None => (gate.as_str(), "true"),
        };
        if !matches!(value, "true" | "false") {
            let message = format!("`{value}` is neither true nor false");
            fields.findings().error(path.clone(), message);
        }
        match name {
            "flowControl" => {}
            "haPopulateNonLeaderDatastore" => fields
                .findings()
                .warn(path, "has no meaning here: every router is active"),
            // Went with the parts that they guarded.
            "dataLayer" | "prepareDataPlugins" => fields
                .findings()
                .warn(path, "has no meaning any more: it is always on"),
            _ => {
                let hint = suggestion(name, GATES);
                fields
                    .findings()
                    .error(path, format!("`{name}` is not known{hint}"));
            }
        }
    }
    gates
}

fn plugins(fields: &mut Fields<'_>) -> Vec<PluginSpec> {
    let mut plugins: Vec<PluginSpec> = Vec::new();
    for (path, item) in fields.items("plugins") {
        let mut entry = Fields::new(&path, Some(item), fields.findings());
        let kind = entry.required_text("type");
        let name = entry.text("name").filter(|name| !name.is_empty());
        let parameters = object(&mut entry, "parameters");
        let name = name.unwrap_or_else(|| kind.clone());
        if !name.is_empty() && plugins.iter().any(|plugin| plugin.name == name) {
            entry.error("name", format!("`{name}` is the name of another plugin"));
        }
        entry.finish();
        plugins.push(PluginSpec {
            name,
            kind,
            parameters: parameters.filter(|p| p.as_object().is_none_or(|map| !map.is_empty())),
        });
    }
    plugins
}

fn profiles(fields: &mut Fields<'_>) -> Vec<ProfileSpec> {
    let mut profiles: Vec<ProfileSpec> = Vec::new();
    for (path, item) in fields.items("schedulingProfiles") {
        let mut entry = Fields::new(&path, Some(item), fields.findings());
        let name = entry.required_text("name");
        if profiles.iter().any(|profile| profile.name == name) {
            entry.error("name", format!("`{name}` is the name of another profile"));
        }
        let mut plugins = Vec::new();
        for (path, item) in entry.items("plugins") {
            let mut reference = Fields::new(&path, Some(item), entry.findings());
            let plugin_ref = reference.required_text("pluginRef");
            let weight = reference.number_if("weight", -1e6..=1e6);
            reference.finish();
            plugins.push(ProfilePlugin { plugin_ref, weight });
        }
        entry.finish();
        profiles.push(ProfileSpec { name, plugins });
    }
    profiles
}

fn data_layer(fields: &mut Fields<'_>) -> Option<Value> {
    let value = object(fields, "dataLayer")?;
    fields.object("dataLayer", |layer| {
        layer.flag("injectDefaults", true);
        for (path, source) in layer.items("sources") {
            let mut source = Fields::new(&path, Some(source), layer.findings());
            source.required_text("pluginRef");
            for (path, extractor) in source.items("extractors") {
                let mut extractor = Fields::new(&path, Some(extractor), source.findings());
                extractor.required_text("pluginRef");
                extractor.finish();
            }
            source.finish();
            layer.findings().warn(
                path,
                "has no meaning here: endpoints are probed as their pool says",
            );
        }
        for key in ["discovery", "peerDiscovery"] {
            if layer.object_if(key, PluginRef::read).is_some() {
                layer.warn(
                    key,
                    "has no meaning here: see `quorate apply` for discovery",
                );
            }
        }
        for key in ["crossReplicaSyncerPluginRef", "crossReplicaSyncInterval"] {
            if layer.raw(key).is_some() {
                layer.warn(
                    key,
                    "has no meaning here: routers always share their counts",
                );
            }
        }
    });
    Some(value)
}

/// `requestHandler`, into which a `parser` at the top level has moved.
fn request_handler(fields: &mut Fields<'_>) -> Option<Value> {
    let handler = object(fields, "requestHandler");
    if handler.is_some() {
        fields.object("requestHandler", |handler| {
            for (path, parser) in handler.items("parsers") {
                let mut parser = Fields::new(&path, Some(parser), handler.findings());
                parser.required_text("pluginRef");
                parser.finish();
            }
            handler.warn(
                "parsers",
                "has no meaning here: every API is understood by its path",
            );
        });
    }
    let Some(reference) = fields.object_if("parser", PluginRef::read) else {
        return handler;
    };
    fields.warn("parser", "is deprecated: use `requestHandler.parsers`");
    handler
        .or_else(|| Some(serde_json::json!({ "parsers": [{ "pluginRef": reference.plugin_ref }] })))
}
