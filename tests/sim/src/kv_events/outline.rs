//! Which events an engine makes of changes in its caches: several of one change, or none.

use super::settings::KvEventsConfig;
use crate::engine::naming::Identity;
use crate::engine::record::BlockChange;
use crate::engine::tiers::Medium;
use std::collections::HashSet;

/// One event, before it is written.
pub(super) enum Told<'c> {
    /// Blocks can now be found.
    Stored {
        names: &'c [u64],
        parent: Option<u64>,
        tokens: &'c [u32],
        /// Zero for placeholders, which have no tokens.
        block_size: u32,
        identity: Option<&'c Identity>,
        medium: Medium,
        group: Group<'c>,
    },
    /// A block cannot be found any more.
    Removed {
        name: u64,
        medium: Medium,
        group: Group<'c>,
    },
    /// Nothing can be found any more.
    Cleared,
}

/// A cache group: its number, and what it is.
#[derive(Clone, Copy)]
pub(super) struct Group<'c> {
    pub index: u32,
    pub kind: &'c str,
    pub window: Option<u32>,
}

const FULL: Group<'static> = Group {
    index: 0,
    kind: "full_attention",
    window: None,
};

/// What readers were told of the second group.
#[derive(Default)]
pub(super) struct Outline {
    second: HashSet<u64>,
}

impl Outline {
    /// The events of some changes.
    pub fn tell<'c>(
        &mut self,
        config: &'c KvEventsConfig,
        changes: &'c [BlockChange],
        block_size: u32,
    ) -> Vec<Told<'c>> {
        let format = config.format;
        let second = config.second_group.as_ref().filter(|_| format.has_groups());
        let second = second.map(|group| Group {
            index: 1,
            kind: &group.kind,
            window: Some(group.window),
        });
        let mut told = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                BlockChange::Cleared(_) => {
                    self.second.clear();
                    told.push(Told::Cleared);
                }
                BlockChange::Removed { medium, .. } | BlockChange::Stored { medium, .. }
                    if *medium != Medium::Gpu && !format.has_medium() => {}
                BlockChange::Removed { name, medium } => {
                    let (name, medium) = (*name, *medium);
                    let group = FULL;
                    told.push(Told::Removed {
                        name,
                        medium,
                        group,
                    });
                    if let Some(group) = second
                        && medium == Medium::Gpu
                        && self.second.remove(&name)
                    {
                        told.push(Told::Removed {
                            name,
                            medium,
                            group,
                        });
                    }
                }
                BlockChange::Stored {
                    names,
                    parent,
                    tokens,
                    identity,
                    medium,
                } => {
                    let below = *medium != Medium::Gpu;
                    // SGLang tells of every place in full.
                    let placeholder = below && !format.is_sglang() && !config.self_describing;
                    told.push(Told::Stored {
                        names,
                        parent: parent.filter(|_| !placeholder),
                        tokens: if placeholder { &[] } else { tokens },
                        block_size: if placeholder { 0 } else { block_size },
                        identity: Some(&**identity).filter(|_| !placeholder),
                        medium: *medium,
                        group: FULL,
                    });
                    if let (Some(group), false) = (second, below) {
                        // Blocks that are out of the window at once are left out; nothing says which ones.
                        let kept = group.window.unwrap_or(0).div_ceil(block_size.max(1)) as usize;
                        let kept = names.get(names.len().saturating_sub(kept)..);
                        let names = kept.unwrap_or_default();
                        self.second.extend(names);
                        told.push(Told::Stored {
                            names,
                            parent: *parent,
                            tokens,
                            block_size,
                            identity: Some(&**identity),
                            medium: *medium,
                            group,
                        });
                    }
                }
            }
        }
        told
    }
}
