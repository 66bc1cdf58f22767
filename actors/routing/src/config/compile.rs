//! [`EndpointPickerConfig`] -> [`CompiledPolicy`]: every plugin is built, every reference resolved, and all that is wrong is said at once.

mod flow_control;
pub(super) mod policies;
mod profile;
mod tokens;

use super::problem::{Findings, Problem, suggestion};
use super::producers::Ledger;
use super::registry::{Build, Built, Make, Registry, Stability, find, type_names};
use super::{
    ConfigErrors, EndpointPickerConfig, Fields, FlowControlConfig, PluginSpec, ProfilePlugin,
    ProfileSpec,
};
use crate::cache::{CacheNeeds, PrefixLookup};
use crate::learnt::Learner;
use crate::objective::AgentIdentity;
use crate::pipeline::{Named, Pipeline};
use crate::plugin::admitter::sheddable::Sheddable;
use crate::plugin::handler::single::Single;
use crate::plugin::producer::burst_prefix::Burst;
use crate::plugin::reporter::Report;
use crate::plugin::screener::subset::Subset;
use crate::tokens::TokenSource;
use std::sync::Arc;

/// What a configuration means.
#[derive(Clone)]
pub struct CompiledPolicy {
    /// Picks endpoints.
    pub scheduler: Arc<Pipeline>,
    /// Queues requests; `None`: off.
    pub flow: Option<FlowControlConfig>,
    /// Derives fairness ids for requests that name none; `None`: off.
    pub agent_identity: Option<Arc<AgentIdentity>>,
    /// Holds requests until their window closes; `None`: off.
    pub burst: Option<Arc<Burst>>,
    /// What the proxy in front is told when a request has ended.
    pub reports: Arc<[Report]>,
    /// The plugins that learn from picks what other routers should know.
    pub learners: Arc<[Named<dyn Learner>]>,
    /// Makes tokens before the pick; `None`: nothing uses them.
    pub tokens: Option<Arc<dyn TokenSource>>,
    /// What must be known of the engines' caches; `None`: nothing.
    pub cache: Option<Arc<CacheNeeds>>,
    /// Says what of a prompt the engines have cached; `None`: nobody knows.
    pub prefixes: Option<Arc<dyn PrefixLookup>>,
    /// What has no effect.
    pub warnings: Vec<Problem>,
}

/// The built-in profile.
const DEFAULT_SCORERS: [(&str, f64); 3] = [
    ("queue-scorer", 2.0),
    ("kv-cache-utilization-scorer", 2.0),
    ("prefix-cache-scorer", 3.0),
];

/// A plugin and where it was configured.
struct Entry {
    spec: PluginSpec,
    path: String,
}

/// What was built.
pub(super) struct Plugins<'a> {
    built: &'a [(PluginSpec, Built)],
}

impl Plugins<'_> {
    fn get(&self, name: &str) -> Option<&(PluginSpec, Built)> {
        self.built.iter().find(|(spec, _)| spec.name == name)
    }

    /// A policy by the plugin's name. A type's own name stands for it with its defaults, configured or not.
    fn policy<T>(
        &self,
        name: &str,
        path: &str,
        what: &str,
        findings: &mut Findings,
        take: impl Fn(&Built) -> Option<T>,
    ) -> Option<T> {
        let found = match self.get(name) {
            Some((_, built)) => take(built),
            None => {
                let spec = PluginSpec {
                    name: name.to_owned(),
                    kind: name.to_owned(),
                    parameters: None,
                };
                let mut ledger = Ledger::default();
                let mut unused = Findings::default();
                match find(name).map(|t| t.make) {
                    Some(Make::Here(make)) if is_policy(name) => {
                        let mut fields = Fields::new("", None, &mut unused);
                        let mut build = Build {
                            spec: &spec,
                            profiles: &[],
                            built: &[],
                            ledger: &mut ledger,
                            secret: 0,
                            wants_tokens: false,
                        };
                        take(&make(&mut fields, &mut build)).filter(|_| unused.errors.is_empty())
                    }
                    _ => None,
                }
            }
        };
        if found.is_none() {
            let names = self.built.iter().map(|(spec, _)| spec.name.as_str());
            let mut known: Vec<&str> = names.collect();
            for kind in type_names().filter(|kind| is_policy(kind)) {
                known.push(kind);
            }
            let hint = suggestion(name, known);
            findings.error(path, format!("`{name}` is no {what}{hint}"));
        }
        found
    }
}

fn is_policy(kind: &str) -> bool {
    ["-policy", "-detector", "-fairness"]
        .iter()
        .any(|end| kind.ends_with(end))
}

pub(super) fn compile(
    config: &EndpointPickerConfig,
    registry: &Registry,
) -> Result<CompiledPolicy, ConfigErrors> {
    let mut findings = Findings::default();
    let mut entries: Vec<Entry> = config
        .plugins
        .iter()
        .enumerate()
        .map(|(i, spec)| Entry {
            spec: spec.clone(),
            path: format!("plugins[{i}].parameters"),
        })
        .collect();
    let profiles = default_profiles(config, &mut entries);

    let wants_tokens = tokens::add_default(&mut entries, registry);
    let mut ledger = Ledger::default();
    for entry in &entries {
        for what in super::registry::produces(&entry.spec.kind) {
            ledger.claim(&entry.spec.name, *what);
        }
    }
    let mut built: Vec<(PluginSpec, Built)> = Vec::new();
    let is_late = |entry: &Entry| find(&entry.spec.kind).is_some_and(|t| t.late);
    let (late, early): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_late);
    // Producers after all others: by then it is known which default ones are needed.
    let produces = |entry: &Entry| !super::registry::produces(&entry.spec.kind).is_empty();
    let (producers, handlers): (Vec<Entry>, Vec<Entry>) = late.into_iter().partition(produces);
    for entry in early.into_iter().chain(handlers).chain(producers) {
        build_one(
            entry,
            &profiles,
            &mut ledger,
            &mut built,
            (registry, wants_tokens),
            &mut findings,
        );
    }
    while !ledger.created.is_empty() {
        for spec in std::mem::take(&mut ledger.created) {
            let path = format!("(default) {}", spec.kind);
            let entry = Entry { spec, path };
            build_one(
                entry,
                &profiles,
                &mut ledger,
                &mut built,
                (registry, wants_tokens),
                &mut findings,
            );
        }
    }

    let plugins = Plugins { built: &built };
    let gated = config.gate("flowControl");
    let section = config.flow_control.as_ref();
    if section.is_some() && !gated {
        findings.warn(
            "flowControl",
            "has no effect without the feature gate `flowControl`, but for its saturation detector",
        );
    }
    let detector = flow_control::detector(section, &plugins, &mut findings);
    let flow = gated.then(|| {
        let section = section.cloned().unwrap_or_default();
        flow_control::resolve(&section, &plugins, &mut findings)
    });
    let mut pipeline = pipeline(config, &profiles, &plugins, &ledger, &mut findings);
    if flow.is_none() {
        pipeline
            .admitters
            .insert(0, Named::new("sheddable", Arc::new(Sheddable(detector))));
    }
    let agent_identity = plugins
        .built
        .iter()
        .find_map(|(_, built)| built.agent_identity.clone())
        .map(Arc::new);
    let mut bursts = plugins
        .built
        .iter()
        .filter_map(|(_, built)| built.burst.clone());
    let burst = bursts.next();
    if bursts.next().is_some() {
        findings.error(
            "plugins",
            "there can be only one `burst-prefix-cache-producer`",
        );
    }
    let reports = plugins
        .built
        .iter()
        .flat_map(|(_, built)| built.reports.iter().cloned())
        .collect();
    let learners = plugins.built.iter().filter_map(|(spec, built)| {
        let learner = built.learner.as_ref()?;
        Some(Named::new(spec.name.as_str(), Arc::clone(learner)))
    });
    let learners = learners.collect();
    let tokens = tokens::only(plugins.built, "token-producer", &mut findings, |built| {
        built.token_source.clone()
    });
    let cache = tokens::only(
        plugins.built,
        "precise-prefix-cache-producer",
        &mut findings,
        |built| built.cache.clone(),
    );
    let mut prefixes = plugins.built.iter();
    let prefixes = prefixes.find_map(|(_, built)| built.prefixes.clone());
    if findings.errors.is_empty() {
        Ok(CompiledPolicy {
            scheduler: Arc::new(pipeline),
            flow,
            agent_identity,
            burst,
            reports,
            learners,
            tokens,
            cache: cache.map(Arc::new),
            prefixes,
            warnings: findings.warnings,
        })
    } else {
        Err(ConfigErrors(findings.errors))
    }
}

/// The profiles; without any, one of all the plugins that can be in one; without those, the built-in one.
fn default_profiles(config: &EndpointPickerConfig, entries: &mut Vec<Entry>) -> Vec<ProfileSpec> {
    if !config.scheduling_profiles.is_empty() {
        return config.scheduling_profiles.clone();
    }
    let in_profile = |kind: &str| {
        ["-scorer", "-filter", "-picker", "-aware"]
            .iter()
            .any(|end| kind.ends_with(end))
            || kind.starts_with("by-label")
    };
    let mut plugins: Vec<ProfilePlugin> = entries
        .iter()
        .filter(|entry| in_profile(&entry.spec.kind))
        .map(|entry| ProfilePlugin {
            plugin_ref: entry.spec.name.clone(),
            weight: None,
        })
        .collect();
    if plugins.is_empty() {
        for (kind, weight) in DEFAULT_SCORERS {
            entries.push(Entry {
                spec: PluginSpec {
                    name: kind.to_owned(),
                    kind: kind.to_owned(),
                    parameters: None,
                },
                path: format!("(default) {kind}"),
            });
            plugins.push(ProfilePlugin {
                plugin_ref: kind.to_owned(),
                weight: Some(weight),
            });
        }
    }
    vec![ProfileSpec {
        name: "default".to_owned(),
        plugins,
    }]
}

fn build_one(
    entry: Entry,
    profiles: &[ProfileSpec],
    ledger: &mut Ledger,
    built: &mut Vec<(PluginSpec, Built)>,
    (registry, wants_tokens): (&Registry, bool),
    findings: &mut Findings,
) {
    let Entry { spec, path } = entry;
    let at = path.strip_suffix(".parameters").unwrap_or(&path).to_owned();
    let Some(kind) = find(&spec.kind) else {
        if !spec.kind.is_empty() {
            let hint = suggestion(&spec.kind, type_names());
            let message = format!("`{}` is no plugin type{hint}", spec.kind);
            findings.error(format!("{at}.type"), message);
        }
        return;
    };
    if let Stability::Deprecated(instead) = kind.stability {
        let message = format!("`{}` is deprecated: use {instead}", kind.name);
        findings.warn(format!("{at}.type"), message);
    }
    let result = {
        let mut build = Build {
            spec: &spec,
            profiles,
            built,
            ledger,
            secret: registry.secret(),
            wants_tokens,
        };
        let mut fields = Fields::new(&path, spec.parameters.as_ref(), findings);
        match kind.make {
            Make::Here(make) => {
                let result = make(&mut fields, &mut build);
                fields.finish();
                result
            }
            Make::ThereOr(make) if registry.get(&spec.kind).is_none() => {
                let result = make(&mut fields, &mut build);
                fields.finish();
                result
            }
            Make::There | Make::ThereOr(_) => match registry.get(&spec.kind) {
                Some(make) => {
                    let result = make(&mut fields, &mut build);
                    fields.finish();
                    result
                }
                None => {
                    let message = format!(
                        "`{}` is not available: what it would say is missing",
                        kind.name
                    );
                    findings.warn(at, message);
                    Built::default()
                }
            },
            Make::Without(why) => {
                findings.warn(at, format!("`{}` has no meaning here: {why}", kind.name));
                Built::default()
            }
            Make::Not => {
                let message = format!("`{}` is not supported", kind.name);
                findings.error(format!("{at}.type"), message);
                Built::default()
            }
        }
    };
    built.push((spec, result));
}

fn pipeline(
    config: &EndpointPickerConfig,
    profiles: &[ProfileSpec],
    plugins: &Plugins<'_>,
    ledger: &Ledger,
    findings: &mut Findings,
) -> Pipeline {
    let configured = !config.scheduling_profiles.is_empty();
    let profiles: Vec<_> = profiles
        .iter()
        .enumerate()
        .map(|(i, spec)| {
            let path = if configured {
                format!("schedulingProfiles[{i}]")
            } else {
                "plugins".to_owned()
            };
            profile::build(spec, &path, plugins, findings)
        })
        .collect();

    let mut handlers = plugins
        .built
        .iter()
        .filter_map(|(spec, built)| Some((spec, built.handler.as_ref()?)));
    let handler = handlers.next();
    if let Some((second, _)) = handlers.next() {
        let message = format!("`{}` is a second profile handler", second.name);
        findings.error("plugins", message);
    }
    let named_handler = plugins.built.iter().any(|(spec, _)| {
        find(&spec.kind).is_some_and(|t| t.late && t.name.ends_with("-profile-handler"))
    });
    let handler = match handler {
        Some((spec, handler)) => Named::new(spec.name.as_str(), Arc::clone(handler)),
        None => {
            if profiles.len() != 1 && !named_handler {
                let message = format!("{} profiles need a profile handler", profiles.len());
                findings.error("schedulingProfiles", message);
            }
            Named::new("single-profile-handler", Arc::new(Single) as Arc<_>)
        }
    };

    let names: Vec<String> = plugins
        .built
        .iter()
        .filter(|(_, built)| built.producer.is_some())
        .map(|(spec, _)| spec.name.clone())
        .collect();
    let order = ledger.order(&names).unwrap_or_else(|cycle| {
        let message = format!(
            "these read from each other in a circle: {}",
            cycle.join(", ")
        );
        findings.error("plugins", message);
        Vec::new()
    });
    let producers = order
        .iter()
        .filter_map(|name| {
            let (spec, built) = plugins.get(name)?;
            Some(Named::new(
                spec.name.as_str(),
                Arc::clone(built.producer.as_ref()?),
            ))
        })
        .collect();

    macro_rules! all {
        ($part:ident) => {
            plugins
                .built
                .iter()
                .filter_map(|(spec, built)| {
                    Some(Named::new(
                        spec.name.as_str(),
                        Arc::clone(built.$part.as_ref()?),
                    ))
                })
                .collect::<Vec<_>>()
        };
    }
    let mut screeners = all!(screener);
    screeners.insert(0, Named::new("subset", Arc::new(Subset) as Arc<_>));
    let name = config
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.get("name")?.as_str())
        .unwrap_or("pipeline");
    Pipeline {
        name: name.into(),
        shape: ledger.shape,
        filled: ledger.filled(),
        screeners,
        producers,
        admitters: all!(admitter),
        profiles,
        handler,
        on_picked: all!(on_picked),
        tokens: plugins.built.iter().find_map(|(_, built)| built.tokens),
    }
}
