//! Every plugin type that a configuration may name.

mod table;

use super::fields::Fields;
use super::flow::{FairnessPolicy, OrderingPolicy, SaturationDetector, UsageLimitPolicy};
use super::producers::Ledger;
pub use super::producers::Produces;
use super::{PluginSpec, ProfileSpec};
use crate::cache::{CacheNeeds, PrefixLookup};
use crate::learnt::Learner;
use crate::objective::AgentIdentity;
use crate::pipeline::{
    Admitter, ColumnId, DataProducer, Decider, Filter, OnPicked, Picker, ProfileHandler, Scorer,
    Screener, TokenAccounting,
};
use crate::plugin::producer::burst_prefix::Burst;
use crate::plugin::reporter::Report;
use crate::tokens::TokenSource;
use std::collections::BTreeMap;
use std::sync::Arc;
pub(super) use table::TABLE;

/// What a plugin is; most are one of these.
#[derive(Default)]
pub struct Built {
    /// Used in profiles.
    pub filter: Option<Arc<dyn Filter>>,
    /// Used in profiles.
    pub scorer: Option<Arc<dyn Scorer>>,
    /// Used in profiles.
    pub picker: Option<Arc<dyn Picker>>,
    /// One for a configuration.
    pub handler: Option<Arc<dyn ProfileHandler>>,
    /// Used by a profile handler.
    pub decider: Option<Arc<dyn Decider>>,
    /// Runs before the profiles.
    pub producer: Option<Arc<dyn DataProducer>>,
    /// Runs before the profiles.
    pub admitter: Option<Arc<dyn Admitter>>,
    /// Runs before all else.
    pub screener: Option<Arc<dyn Screener>>,
    /// Runs after the pick.
    pub on_picked: Option<Arc<dyn OnPicked>>,
    /// Learns from picks what other routers should know.
    pub learner: Option<Arc<dyn Learner>>,
    /// What reservations count.
    pub tokens: Option<TokenAccounting>,
    /// Derives fairness ids.
    pub agent_identity: Option<AgentIdentity>,
    /// Holds requests until their window closes.
    pub burst: Option<Arc<Burst>>,
    /// Told to the proxy in front when a request has ended.
    pub reports: Vec<Report>,
    /// Makes tokens before the pick.
    pub token_source: Option<Arc<dyn TokenSource>>,
    /// What must be known of the engines' caches.
    pub cache: Option<CacheNeeds>,
    /// Says what of a prompt the engines have cached.
    pub prefixes: Option<Arc<dyn PrefixLookup>>,
    /// Used by flow control.
    pub fairness: Option<FairnessPolicy>,
    /// Used by flow control.
    pub ordering: Option<OrderingPolicy>,
    /// Used by flow control.
    pub usage_limit: Option<UsageLimitPolicy>,
    /// Used by flow control and admission.
    pub saturation: Option<SaturationDetector>,
}

impl Built {
    /// A filter.
    pub fn filter(plugin: impl Filter + 'static) -> Self {
        Self {
            filter: Some(Arc::new(plugin)),
            ..Self::default()
        }
    }

    /// A scorer.
    pub fn scorer(plugin: impl Scorer + 'static) -> Self {
        Self {
            scorer: Some(Arc::new(plugin)),
            ..Self::default()
        }
    }

    /// A picker.
    pub fn picker(plugin: impl Picker + 'static) -> Self {
        Self {
            picker: Some(Arc::new(plugin)),
            ..Self::default()
        }
    }

    /// A profile handler.
    pub fn handler(plugin: impl ProfileHandler + 'static) -> Self {
        Self {
            handler: Some(Arc::new(plugin)),
            ..Self::default()
        }
    }

    /// A decider.
    pub fn decider(plugin: impl Decider + 'static) -> Self {
        Self {
            decider: Some(Arc::new(plugin)),
            ..Self::default()
        }
    }

    /// A producer.
    pub fn producer(plugin: impl DataProducer + 'static) -> Self {
        Self {
            producer: Some(Arc::new(plugin)),
            ..Self::default()
        }
    }

    /// An admitter.
    pub fn admitter(plugin: impl Admitter + 'static) -> Self {
        Self {
            admitter: Some(Arc::new(plugin)),
            ..Self::default()
        }
    }
}

/// Makes a plugin from its parameters.
pub type Factory = dyn Fn(&mut Fields<'_>, &mut Build<'_>) -> Built + Send + Sync;

/// Producers that other crates bring (of real tokens, of precise prefix matches, of predictions), and the cluster's secret.
#[derive(Clone)]
pub struct Registry {
    producers: BTreeMap<String, Arc<Factory>>,
    secret: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            producers: BTreeMap::new(),
            secret: crate::random::process_seed(),
        }
    }
}

impl Registry {
    /// Adds the maker of a producer type. Which columns it fills is fixed by the type.
    #[must_use]
    pub fn with(
        mut self,
        kind: &str,
        factory: impl Fn(&mut Fields<'_>, &mut Build<'_>) -> Built + Send + Sync + 'static,
    ) -> Self {
        self.producers.insert(kind.to_owned(), Arc::new(factory));
        self
    }

    /// What hashes of prompts begin with, so that nobody outside can choose prompts that collide. Routers that tell each other
    /// what they learnt must have the same; without it every process has its own.
    #[must_use]
    pub fn with_secret(mut self, secret: u64) -> Self {
        self.secret = secret;
        self
    }

    pub(super) fn secret(&self) -> u64 {
        self.secret
    }

    pub(super) fn get(&self, kind: &str) -> Option<&Arc<Factory>> {
        self.producers.get(kind)
    }
}

/// What a factory may ask of the configuration around its plugin.
pub struct Build<'a> {
    pub(super) spec: &'a PluginSpec,
    pub(super) profiles: &'a [ProfileSpec],
    pub(super) built: &'a [(PluginSpec, Built)],
    pub(super) ledger: &'a mut Ledger,
    pub(super) secret: u64,
    pub(super) wants_tokens: bool,
}

impl Build<'_> {
    /// The plugin's own name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What hashes of prompts begin with.
    pub fn secret(&self) -> u64 {
        self.secret
    }

    /// Something in the configuration needs the very tokens that engines will see.
    pub fn wants_tokens(&self) -> bool {
        self.wants_tokens
    }

    /// The column that this plugin fills.
    pub fn own(&self, what: Produces) -> ColumnId {
        self.ledger.own(&self.spec.name, what)
    }

    /// The column that the plugin named by the parameter `key` fills, or the default one.
    pub fn column(
        &mut self,
        fields: &mut Fields<'_>,
        key: &'static str,
        what: Produces,
    ) -> ColumnId {
        let named = fields.text(key).filter(|name| !name.is_empty());
        let path = fields.at(key);
        self.ledger.column(
            &self.spec.name,
            what,
            named.as_deref(),
            &path,
            fields.findings(),
        )
    }

    /// The first column of a kind, if anything fills one.
    pub fn existing(&mut self, what: Produces) -> Option<ColumnId> {
        self.ledger.existing(&self.spec.name, what)
    }

    /// Number of a profile.
    pub fn profile(&self, name: &str) -> Option<usize> {
        self.profiles.iter().position(|p| p.name == name)
    }

    /// Names of all profiles.
    pub fn profile_names(&self) -> impl Iterator<Item = &str> {
        self.profiles.iter().map(|p| p.name.as_str())
    }

    /// A decider by name.
    pub fn decider(&self, name: &str) -> Option<Arc<dyn Decider>> {
        self.built
            .iter()
            .find(|(spec, _)| spec.name == name)
            .and_then(|(_, built)| built.decider.clone())
    }
}

/// How far a type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stability {
    Stable,
    Experimental,
    /// And what to use instead.
    Deprecated(&'static str),
}

/// How a type is made.
#[derive(Clone, Copy)]
pub(super) enum Make {
    /// By this crate.
    Here(fn(&mut Fields<'_>, &mut Build<'_>) -> Built),
    /// By another crate, if it has registered it; else its column stays empty.
    There,
    /// The same; else by this one.
    ThereOr(fn(&mut Fields<'_>, &mut Build<'_>) -> Built),
    /// Something else does its work here; its parameters are not looked at.
    Without(&'static str),
    /// Not at all.
    Not,
}

/// One row of the table.
pub(super) struct PluginType {
    pub name: &'static str,
    pub stability: Stability,
    pub produces: &'static [Produces],
    /// Made after the others, because it asks for them.
    pub late: bool,
    pub make: Make,
}

pub(super) fn find(kind: &str) -> Option<&'static PluginType> {
    TABLE.iter().find(|t| t.name == kind)
}

/// The columns that a type fills.
pub(super) fn produces(kind: &str) -> &'static [Produces] {
    find(kind).map_or(&[], |t| t.produces)
}

/// All type names.
pub fn type_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|t| t.name)
}
