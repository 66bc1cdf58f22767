//! TensorRT-LLM's view of the tiers: a block has one level at a time, and `updated` events move it.

use crate::engine::record::BlockChange;
use crate::engine::tiers::Medium;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Where each block lies: a bit for each level.
#[derive(Default)]
pub(super) struct Levels {
    held: HashMap<u64, u8>,
}

/// Level 0 is the GPU and level 1 the host. It has no disk.
fn level(medium: Medium) -> Option<u32> {
    match medium {
        Medium::Gpu => Some(0),
        Medium::Cpu => Some(1),
        Medium::Disk | Medium::Peer => None,
    }
}

impl Levels {
    /// The `data` of the events of one change.
    pub fn tell(&mut self, change: &BlockChange, block_size: u32) -> Vec<Value> {
        match change {
            // It has no event for it.
            BlockChange::Cleared(names) => {
                let mut out = Vec::new();
                for name in names {
                    self.leave(*name, 0, &mut out);
                }
                out
            }
            BlockChange::Removed { name, medium } => {
                let mut out = Vec::new();
                if let Some(level) = level(*medium) {
                    self.leave(*name, level, &mut out);
                }
                out
            }
            BlockChange::Stored {
                names,
                parent,
                tokens,
                medium,
                ..
            } => {
                let Some(level) = level(*medium) else {
                    return Vec::new();
                };
                let mut out = Vec::new();
                let mut new = Vec::new();
                let mut before = *parent;
                let mut parent = *parent;
                for (name, tokens) in names.iter().zip(tokens.chunks(block_size.max(1) as usize)) {
                    let held = self.held.entry(*name).or_default();
                    let old = lowest(*held);
                    *held |= 1 << level;
                    match old {
                        None => {
                            if new.is_empty() {
                                parent = before;
                            }
                            new.push(block(*name, tokens, level));
                        }
                        Some(old) => {
                            stored(parent, &mut new, &mut out);
                            if level < old {
                                out.push(moved(*name, old, level));
                            }
                        }
                    }
                    before = Some(*name);
                }
                stored(parent, &mut new, &mut out);
                out
            }
        }
    }

    fn leave(&mut self, name: u64, level: u32, out: &mut Vec<Value>) {
        let Some(held) = self.held.get_mut(&name) else {
            return;
        };
        let old = lowest(*held);
        *held &= !(1 << level);
        match (old, lowest(*held)) {
            (_, None) => {
                self.held.remove(&name);
                out.push(json!({"type": "removed", "block_hashes": [name]}));
            }
            (Some(old), Some(new)) if old != new => out.push(moved(name, old, new)),
            _ => {}
        }
    }
}

fn lowest(held: u8) -> Option<u32> {
    (held != 0).then(|| held.trailing_zeros())
}

fn moved(name: u64, old: u32, new: u32) -> Value {
    let diff = json!({"type": "event_diff", "new_value": new, "old_value": old});
    json!({"type": "updated", "block_hash": name, "cache_level": diff, "priority": null})
}

fn block(name: u64, tokens: &[u32], level: u32) -> Value {
    let token = |id: &u32| json!({"type": "unique_token", "token_id": id, "token_extra_id": 0});
    let tokens: Vec<Value> = tokens.iter().map(token).collect();
    json!({"type": "stored_block", "block_hash": name, "tokens": tokens,
        "cache_level": level, "priority": 35, "mm_keys": []})
}

fn stored(parent: Option<u64>, new: &mut Vec<Value>, out: &mut Vec<Value>) {
    if !new.is_empty() {
        let blocks = std::mem::take(new);
        out.push(json!({"type": "stored", "parent_hash": parent, "blocks": blocks}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::naming::Identity;
    use std::sync::Arc;

    fn put(names: &[u64], medium: Medium) -> BlockChange {
        BlockChange::Stored {
            names: names.to_vec(),
            parent: None,
            tokens: vec![7; names.len() * 2],
            identity: Arc::new(Identity::default()),
            medium,
        }
    }

    #[test]
    fn a_block_has_one_level_and_moves() {
        let mut levels = Levels::default();
        let mut types = |change: &BlockChange| -> Vec<String> {
            let told = levels.tell(change, 2);
            told.iter()
                .map(|event| {
                    let diff = &event["cache_level"];
                    let kind = event["type"].as_str().unwrap();
                    format!("{kind} {} {}", diff["old_value"], diff["new_value"])
                })
                .collect()
        };
        let gone = |name, medium| BlockChange::Removed { name, medium };
        assert_eq!(types(&put(&[1, 2], Medium::Gpu)), ["stored null null"]);
        assert!(types(&put(&[1, 2], Medium::Cpu)).is_empty());
        assert!(types(&put(&[1, 2], Medium::Disk)).is_empty());
        assert_eq!(types(&gone(1, Medium::Gpu)), ["updated 0 1"]);
        assert_eq!(types(&put(&[1], Medium::Gpu)), ["updated 1 0"]);
        assert!(types(&gone(1, Medium::Cpu)).is_empty());
        assert_eq!(types(&gone(1, Medium::Gpu)), ["removed null null"]);
        assert_eq!(types(&BlockChange::Cleared(vec![2])), ["updated 0 1"]);
        assert_eq!(types(&gone(2, Medium::Cpu)), ["removed null null"]);
    }

    #[test]
    fn a_run_is_cut_where_a_block_was_known() {
        let mut levels = Levels::default();
        levels.tell(&put(&[2], Medium::Cpu), 2);
        let told = levels.tell(&put(&[1, 2, 3], Medium::Gpu), 2);
        assert_eq!(told.len(), 3);
        assert_eq!(told[1]["block_hash"], 2);
        assert_eq!(told[2]["parent_hash"], 2);
        assert_eq!(told[2]["blocks"][0]["block_hash"], 3);
    }
}
