//! What a vLLM engine's version says of its block hashes.
//!
//! Engines before 0.31 put extra keys into a hash as they are, later ones with their kinds. Engines before 0.30 draw the seed at random
//! unless `PYTHONHASHSEED` is set. Sources: vLLM's `kv_cache_utils.py` in these releases.

use crate::hash::{Algorithm, ExtraForm};
use crate::keys::Scheme;
use quorate_routing::cache::CacheNeeds;
use serde::Deserialize;
use std::fmt;

/// The oldest release that publishes events. Builds from a source tree without tags say `0.1.dev...`, which tells nothing.
const OLDEST: Version = Version(0, 9);
const FIXED_SEED: Version = Version(0, 30);
const TAGGED: Version = Version(0, 31);

/// Major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32);

#[derive(Deserialize)]
struct Answer {
    version: String,
}

impl Version {
    /// Reads the answer to `GET /version`. `None`: it names no release.
    pub fn of_answer(body: &[u8]) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(body).ok()?;
        Self::parse(&answer.version)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim_start_matches('v').split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?;
        let digits = minor.find(|c: char| !c.is_ascii_digit());
        let minor = minor.get(..digits.unwrap_or(minor.len()))?.parse().ok()?;
        Some(Self(major, minor)).filter(|version| *version >= OLDEST)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Whether the version makes a difference: of vLLM's algorithms only.
pub(super) fn matters(needs: &CacheNeeds) -> bool {
    let algorithm = needs.algorithm.as_deref().and_then(Algorithm::of_name);
    algorithm.is_some()
}

/// How an engine of this version names its blocks. One that does not say its version is taken for a new one.
pub(super) fn scheme(needs: &CacheNeeds, version: Option<Version>) -> Scheme {
    if draws_seed(needs, version).is_some() {
        return Scheme::Own;
    }
    let form = match version {
        Some(version) if version < TAGGED => ExtraForm::Untagged,
        _ => ExtraForm::Tagged,
    };
    Scheme::of(needs.algorithm.as_deref(), needs.hash_seed.as_deref(), form)
}

/// The version of an engine whose hashes could be computed if it did not draw its seed.
pub(super) fn draws_seed(needs: &CacheNeeds, version: Option<Version>) -> Option<Version> {
    version.filter(|version| *version < FIXED_SEED && needs.hash_seed.is_none() && matters(needs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Version> {
        Version::of_answer(format!(r#"{{"version":"{text}"}}"#).as_bytes())
    }

    #[test]
    fn releases_and_what_is_none() {
        assert_eq!(of("0.33.0"), Some(Version(0, 33)));
        assert_eq!(of("v0.11.1rc2+cu129"), Some(Version(0, 11)));
        assert_eq!(of("0.30rc1"), Some(Version(0, 30)));
        assert_eq!(of("1.2"), Some(Version(1, 2)));
        for text in ["", "dev", "0.1.dev1+g1234", "0", "sim-0.1.0", "0.x"] {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(Version::of_answer(b"0.33"), None);
        assert_eq!(Version::of_answer(br#"{"version":33}"#), None);
    }

    #[test]
    fn seeds_and_extra_keys_by_version() {
        let needs = |algorithm: &str, seed: Option<&str>| CacheNeeds {
            algorithm: Some(algorithm.into()),
            hash_seed: seed.map(str::to_owned),
            ..CacheNeeds::default()
        };
        let form = |needs: &CacheNeeds, version| match scheme(needs, version) {
            Scheme::Vllm { form, seed, .. } => Some((form, seed.to_string())),
            _ => None,
        };
        let fixed = crate::hash::VLLM_SEED.to_owned();
        let plain = needs("sha256_cbor", None);
        assert_eq!(form(&plain, of("0.27.1")), None);
        assert_eq!(
            form(&plain, of("0.30.0")),
            Some((ExtraForm::Untagged, fixed.clone()))
        );
        for newest in [of("0.31.0"), of("0.32.0"), of("1.0.0"), None] {
            assert_eq!(
                form(&plain, newest),
                Some((ExtraForm::Tagged, fixed.clone()))
            );
        }
        let seeded = needs("sha256", Some("0"));
        assert_eq!(
            form(&seeded, of("0.11.0")),
            Some((ExtraForm::Untagged, "0".to_owned()))
        );
        assert_eq!(scheme(&needs("sglang", None), of("0.11.0")), Scheme::Sglang);
        assert!(!matters(&needs("sglang", None)) && matters(&plain));
        assert_eq!(draws_seed(&plain, of("0.27.1")), of("0.27.0"));
    }
}
