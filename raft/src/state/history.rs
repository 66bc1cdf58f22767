//! The kept versions of scheduling configs: resources of their own, written and pruned in the same step as the config.

use std::sync::Arc;

use quorate_proto::v1::{ConfigRevisionSpec, Kind, Resource, resource::Spec};

use super::{
    ChangeEvent,
    resource::ResourceExt as _,
    tables::{Origin, Tables, named},
};

/// Versions kept of each config, the present one included.
pub const CONFIG_HISTORY: usize = 20;

impl Tables {
    /// Keeps a config that was just written, if its spec is new, and forgets the oldest version beyond [`CONFIG_HISTORY`].
    pub(super) fn keep_revision(
        &mut self,
        config: &Resource,
        origin: Origin,
        events: &mut Vec<ChangeEvent>,
    ) {
        let (Some(spec), Some(metadata)) = (config.scheduling_config(), &config.metadata) else {
            return;
        };
        let name = format!("{}:{}", metadata.name, metadata.generation);
        // Labels alone make no new generation.
        if self.get(Kind::ConfigRevision, &name).is_some() {
            return;
        }
        let revision = ConfigRevisionSpec {
            scheduling_config: metadata.name.clone(),
            generation: metadata.generation,
            pool: spec.pool.clone(),
            config: spec.config.clone(),
        };
        let revision = Resource {
            metadata: Some(named(&name)),
            spec: Some(Spec::ConfigRevision(revision)),
        };
        self.write(revision, None, origin, events);
        let mut kept = self.revisions_of(&metadata.name);
        kept.sort_unstable_by_key(|(generation, _)| *generation);
        let surplus = kept.len().saturating_sub(CONFIG_HISTORY);
        for (_, name) in kept.into_iter().take(surplus) {
            self.erase(Kind::ConfigRevision, &name, events);
        }
    }

    /// Forgets all versions of a config.
    pub(super) fn forget_revisions(&mut self, config: &str, events: &mut Vec<ChangeEvent>) {
        for (_, name) in self.revisions_of(config) {
            self.erase(Kind::ConfigRevision, &name, events);
        }
    }

    /// Generation and name of each kept version, in name order.
    fn revisions_of(&self, config: &str) -> Vec<(u64, Arc<str>)> {
        self.list(Kind::ConfigRevision)
            .filter_map(|r| Some((r, r.config_revision()?)))
            .filter(|(_, spec)| spec.scheduling_config == config)
            .map(|(r, spec)| (spec.generation, Arc::from(r.name())))
            .collect()
    }
}
