//! Compares an engine's hashes with what its settings make of the tokens, and finds out what it does instead.

use crate::events::{ExtraKey, Stored};
use crate::hash::{Algorithm, Extra, ExtraForm, Hasher, VLLM_SEED};
use crate::keys::Scheme;

/// Blocks of a chain that are compared.
const BLOCKS: usize = 4;
const ALGORITHMS: [(&str, Algorithm); 4] = [
    ("sha256", Algorithm::Sha256),
    ("sha256_cbor", Algorithm::Sha256Cbor),
    ("xxhash", Algorithm::Xxhash),
    ("xxhash_cbor", Algorithm::XxhashCbor),
];
/// Seeds that people set.
const SEEDS: [&str; 3] = [VLLM_SEED, "0", "42"];

/// The cache salt: SGLang names it, vLLM puts it into the extra keys of a prompt's first block, after the adapter.
pub(super) fn salt_of<'a>(stored: &Stored<'a>) -> &'a str {
    if !stored.cache_salt.is_empty() || stored.parent.is_some() {
        return stored.cache_salt;
    }
    let texts = stored.extra_keys().filter_map(|(block, key)| match key {
        ExtraKey::Text(text) if block == 0 && text != stored.lora => Some(text),
        _ => None,
    });
    texts.last().unwrap_or_default()
}

/// Whether the first blocks of a chain have the hashes that they should have. `None`: that cannot be told.
pub(super) fn agrees(
    hasher: &Hasher,
    scheme: &Scheme,
    stored: &Stored<'_>,
    salt: &str,
) -> Option<bool> {
    let form = match scheme {
        Scheme::Vllm { form, .. } => Some(*form),
        _ => None,
    };
    let adapter = !stored.lora.is_empty() || stored.lora_id.is_some();
    // Where an adapter was loaded from is hashed in the tagged form, its number by old engines, nothing of it by SGLang.
    if adapter && (form != Some(ExtraForm::Untagged) || stored.lora.is_empty()) {
        return None;
    }
    let mut parent = hasher.root(Some(salt).filter(|salt| !salt.is_empty()));
    let mut scratch = Vec::new();
    let blocks = stored
        .tokens
        .chunks_exact(stored.block_size.max(1) as usize);
    for (at, (hash, tokens)) in stored.hashes.iter().zip(blocks).take(BLOCKS).enumerate() {
        let mut extras = Vec::new();
        if adapter {
            extras.push(Extra::Lora {
                name: stored.lora,
                path: "",
            });
        }
        for (_, extra) in stored
            .extra_keys()
            .filter(|(block, _)| *block as usize == at)
        {
            match extra {
                ExtraKey::Item { identifier, offset } => {
                    extras.push(Extra::Item { identifier, offset });
                }
                ExtraKey::Text(text) if text == stored.lora || (at == 0 && text == salt) => {}
                ExtraKey::Text(_) => return None,
                ExtraKey::Digest(digest) => extras.push(Extra::Embeds(digest)),
            }
        }
        if at == 0 && !salt.is_empty() {
            let embeds = extras.iter().position(|e| matches!(e, Extra::Embeds(_)));
            extras.insert(embeds.unwrap_or(extras.len()), Extra::Salt(salt));
        }
        let digest = hasher
            .block(parent.as_ref(), tokens, &extras, &mut scratch)
            .ok()?;
        if hasher.key(&digest) != *hash {
            return Some(false);
        }
        parent = Some(digest);
    }
    Some(true)
}

/// A scheme, for people.
pub(super) fn name_of(scheme: &Scheme) -> String {
    match scheme {
        Scheme::Own => "a hash of our own".to_owned(),
        Scheme::Sglang => "sglang".to_owned(),
        Scheme::Vllm {
            algorithm,
            form,
            seed,
        } => {
            let name = ALGORITHMS.iter().find(|(_, a)| a == algorithm);
            let name = name.map_or("", |(name, _)| *name);
            let seed = match seed.as_ref() {
                VLLM_SEED => "vLLM's own seed".to_owned(),
                seed => format!("the seed {seed:?}"),
            };
            let form = match form {
                ExtraForm::Tagged => "as from vLLM 0.31 on",
                ExtraForm::Untagged => "as up to vLLM 0.30",
            };
            format!("{name} with {seed}, extra keys {form}")
        }
    }
}

/// What an engine does whose hashes are not those of its settings, in a sentence.
pub(super) fn explain(settings: &Scheme, stored: &Stored<'_>, salt: &str) -> String {
    let set = name_of(settings);
    let said = match settings {
        Scheme::Vllm { seed, .. } => Some(seed.as_ref()),
        _ => None,
    };
    let seeds = said.into_iter().chain(SEEDS);
    let forms = [ExtraForm::Tagged, ExtraForm::Untagged];
    let vllm = seeds.flat_map(|seed| {
        ALGORITHMS.iter().flat_map(move |(_, algorithm)| {
            forms.map(move |form| Scheme::Vllm {
                algorithm: *algorithm,
                form,
                seed: seed.into(),
            })
        })
    });
    let found = vllm.chain([Scheme::Sglang]).find(|scheme| {
        let hasher = match scheme {
            Scheme::Vllm {
                algorithm,
                form,
                seed,
            } => Hasher::vllm(*algorithm, *form, Some(seed)).ok(),
            _ => Some(Hasher::Sglang),
        };
        hasher.is_some_and(|hasher| agrees(&hasher, scheme, stored, salt) == Some(true))
    });
    match found {
        Some(found) => format!(
            "its blocks are hashed by {}, its pool says {set}",
            name_of(&found)
        ),
        None => format!(
            "its blocks are not hashed by {set}, nor by another algorithm with that seed or a usual one: its PYTHONHASHSEED is \
             another than the pool's hashSeed, or it draws one at random"
        ),
    }
}
