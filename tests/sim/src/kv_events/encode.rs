//! Batches as vLLM and SGLang write them, in MessagePack.

use super::EventFormat;
use super::outline::Told;

/// Appends MessagePack.
#[derive(Default)]
struct Pack(Vec<u8>);

impl Pack {
    fn nil(&mut self) {
        self.0.push(0xc0);
    }

    fn float(&mut self, value: f64) {
        self.0.push(0xcb);
        self.0.extend(value.to_be_bytes());
    }

    fn uint(&mut self, value: u64) {
        match value {
            0..=0x7f => self.0.push(value as u8),
            0x80..=0xff => self.0.extend([0xcc, value as u8]),
            0x100..=0xffff => {
                self.0.push(0xcd);
                self.0.extend((value as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.0.push(0xce);
                self.0.extend((value as u32).to_be_bytes());
            }
            _ => {
                self.0.push(0xcf);
                self.0.extend(value.to_be_bytes());
            }
        }
    }

    /// As SGLang writes hashes: signed.
    fn int(&mut self, value: i64) {
        match u64::try_from(value) {
            Ok(value) => self.uint(value),
            Err(_) => {
                self.0.push(0xd3);
                self.0.extend(value.to_be_bytes());
            }
        }
    }

    fn head(&mut self, short: u8, limit: usize, wide: u8, len: usize) {
        if len < limit {
            self.0.push(short | len as u8);
        } else if let Ok(len) = u16::try_from(len) {
            self.0.push(wide);
            self.0.extend(len.to_be_bytes());
        } else {
            self.0.push(wide + 1);
            self.0.extend((len as u32).to_be_bytes());
        }
    }

    fn array(&mut self, len: usize) {
        self.head(0x90, 16, 0xdc, len);
    }

    fn map(&mut self, len: usize) {
        self.head(0x80, 16, 0xde, len);
    }

    fn str(&mut self, text: &str) {
        match u8::try_from(text.len()) {
            Ok(len) if len < 32 => self.0.push(0xa0 | len),
            Ok(len) => self.0.extend([0xd9, len]),
            Err(_) => {
                self.0.push(0xdb);
                self.0.extend((text.len() as u32).to_be_bytes());
            }
        }
        self.0.extend(text.as_bytes());
    }

    fn optional(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.str(text),
            None => self.nil(),
        }
    }
}

/// One message's payload.
pub(super) fn batch(format: EventFormat, time: f64, events: &[Told<'_>], rank: u32) -> Vec<u8> {
    let mut pack = Pack::default();
    pack.array(3);
    pack.float(time);
    pack.array(events.len());
    for told in events {
        event(&mut pack, format, told);
    }
    if format == EventFormat::Sglang055 {
        pack.nil();
    } else {
        pack.uint(u64::from(rank));
    }
    pack.0
}

/// The fields of one event, in array order, by their names in maps. The order of calls is the format.
struct Fields<'p> {
    pack: &'p mut Pack,
    named: bool,
}

impl Fields<'_> {
    fn name(&mut self, name: &str) -> &mut Pack {
        if self.named {
            self.pack.str(name);
        }
        self.pack
    }
}

fn event(pack: &mut Pack, format: EventFormat, told: &Told<'_>) {
    use EventFormat::*;
    let sglang = format.is_sglang();
    let named = matches!(format, Vllm025 | Vllm027 | Vllm033 | Sglang0523);
    let hash = |pack: &mut Pack, name: u64| {
        if sglang {
            pack.int(name.cast_signed());
        } else {
            pack.uint(name);
        }
    };
    let has_medium = format.has_medium();
    let has_group = format.has_groups();
    let mut begin = |tag: &str, fields: usize| {
        if named {
            pack.map(fields + 1);
            pack.str("type");
        } else {
            pack.array(fields + 1);
        }
        pack.str(tag);
    };
    match told {
        Told::Cleared => begin("AllBlocksCleared", 0),
        Told::Removed {
            name,
            medium,
            group,
        } => {
            begin(
                "BlockRemoved",
                1 + usize::from(has_medium) + usize::from(has_group),
            );
            let mut fields = Fields { pack, named };
            fields.name("block_hashes").array(1);
            hash(fields.pack, *name);
            if has_medium {
                fields.name("medium").str(format.medium(*medium));
            }
            if has_group {
                fields.name("group_idx").uint(u64::from(group.index));
            }
        }
        Told::Stored {
            names,
            parent,
            tokens,
            block_size,
            identity,
            medium,
            group,
        } => {
            let salt = identity.and_then(|identity| identity.salt.as_deref());
            let lora = identity.and_then(|identity| identity.lora.as_ref());
            let lora_name = lora.map(|(_, name, _)| name.as_str());
            let has_lora_name = !sglang && format >= Vllm015;
            let has_salt_map = format == Sglang0518;
            let has_extras = !sglang && format >= Vllm017;
            let has_kind = !sglang && format >= Vllm022;
            let salt_named = format == Sglang0523 && salt.is_some();
            let lora_named = format == Sglang0523 && lora.is_some();
            let session = identity.and_then(|identity| identity.session.as_deref());
            let session = session.filter(|_| matches!(format, Vllm033 | Sglang0523));
            let window = group.window.filter(|_| has_kind);
            let optional = [
                has_medium,
                has_lora_name || has_salt_map,
                has_extras,
                has_group,
                has_kind,
                // The window, which only some kinds have, is written in arrays and otherwise left out of maps.
                has_kind && (!named || window.is_some()),
                session.is_some(),
                salt_named,
                lora_named,
            ];
            begin(
                "BlockStored",
                5 + optional.iter().filter(|present| **present).count(),
            );
            let mut fields = Fields { pack, named };
            fields.name("block_hashes").array(names.len());
            for name in *names {
                hash(fields.pack, *name);
            }
            match parent {
                Some(parent) => hash(fields.name("parent_block_hash"), *parent),
                None => fields.name("parent_block_hash").nil(),
            }
            fields.name("token_ids").array(tokens.len());
            for token in *tokens {
                fields.pack.uint(u64::from(*token));
            }
            fields.name("block_size").uint(u64::from(*block_size));
            match lora {
                Some((index, ..)) => fields.name("lora_id").uint(u64::from(*index) + 1),
                None => fields.name("lora_id").nil(),
            }
            if has_medium {
                fields.name("medium").str(format.medium(*medium));
            }
            if has_lora_name {
                fields.name("lora_name").optional(lora_name);
            }
            if has_salt_map {
                let pack = fields.pack;
                pack.map(1);
                pack.str("cache_salt");
                pack.optional(salt);
                return;
            }
            if has_extras {
                let pack = fields.name("extra_keys");
                if lora.is_none() && salt.is_none() {
                    pack.nil();
                } else {
                    pack.array(names.len());
                    for block in 0..names.len() {
                        // The salt enters the first block of a prompt only.
                        let salt = salt.filter(|_| block == 0 && parent.is_none());
                        let keys = [lora_name, salt];
                        let present = keys.iter().flatten().count();
                        if present == 0 {
                            pack.nil();
                            continue;
                        }
                        pack.array(present);
                        keys.iter().flatten().for_each(|key| pack.str(key));
                    }
                }
            }
            if has_group {
                fields.name("group_idx").uint(u64::from(group.index));
            }
            if has_kind {
                fields.name("kv_cache_spec_kind").str(group.kind);
                match window {
                    Some(window) => {
                        let pack = fields.name("kv_cache_spec_sliding_window");
                        pack.uint(u64::from(window));
                    }
                    None if !named => fields.pack.nil(),
                    None => {}
                }
            }
            if let Some(session) = session {
                fields.name("session_id").str(session);
            }
            if salt_named {
                fields.name("cache_salt").optional(salt);
            }
            if lora_named {
                fields.name("lora_name").optional(lora_name);
            }
        }
    }
}
