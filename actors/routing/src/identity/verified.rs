//! Tokens that were verified, so that a signature is checked once for each token and router and not for each request.
//!
//! A fixed table of ways and sets, read without a lock. A token's entry is found by the token's SHA-256 digest, so that the
//! tokens themselves are not kept. An entry counts as long as the token's own times allow; tokens that were refused are not
//! remembered. The table lives and dies with the key set and the rules that it was filled under: another set begins with an
//! empty one.

use super::jwt::Claims;
use arc_swap::ArcSwapOption;

/// Sets of entries; a power of two.
const SETS: usize = 4096;
/// Entries of a set.
const WAYS: usize = 4;

/// SHA-256 of a token.
type Digest = [u8; 32];

#[derive(Debug)]
struct Entry {
    digest: Digest,
    claims: Claims,
}

/// See the module's documentation.
pub(super) struct Verified(Box<[ArcSwapOption<Entry>]>);

impl Default for Verified {
    fn default() -> Self {
        Self((0..SETS * WAYS).map(|_| ArcSwapOption::empty()).collect())
    }
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified").finish_non_exhaustive()
    }
}

impl Verified {
    /// What `use_it` makes of the claims of a token that was verified before and whose time has come and not passed.
    pub fn find<R>(
        &self,
        digest: &Digest,
        now_unix_ms: u64,
        use_it: impl FnOnce(&Claims) -> R,
    ) -> Option<R> {
        let held = self.set(digest).iter().find_map(|way| {
            let held = way.load();
            let same = held.as_ref().is_some_and(|entry| entry.digest == *digest);
            same.then_some(held)
        })?;
        let claims = &held.as_ref()?.claims;
        claims.check_time(now_unix_ms).ok()?;
        Some(use_it(claims))
    }

    /// Remembers a token: in a free way, in that of one whose time has passed, or in that of any other one.
    pub fn add(&self, digest: Digest, claims: Claims, now_unix_ms: u64) {
        let set = self.set(&digest);
        let free = |way: &&ArcSwapOption<Entry>| {
            way.load().as_ref().is_none_or(|entry| {
                entry.digest == digest || entry.claims.check_time(now_unix_ms).is_err()
            })
        };
        let any = usize::from(digest[2]) % WAYS;
        if let Some(way) = set.iter().find(free).or_else(|| set.get(any)) {
            way.store(Some(Entry { digest, claims }.into()));
        }
    }

    fn set(&self, digest: &Digest) -> &[ArcSwapOption<Entry>] {
        // Part of a digest is as good as a hash of it.
        let set = usize::from(u16::from_le_bytes([digest[0], digest[1]])) % SETS;
        self.0.get(set * WAYS..(set + 1) * WAYS).unwrap_or_default()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.iter().filter(|way| way.load().is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(table: &Verified, digest: Digest, now: u64) -> Option<String> {
        table.find(&digest, now, |claims| claims.tenant.clone())
    }

    /// A digest in set 5.
    fn digest(byte: u8) -> Digest {
        let mut digest = [byte; 32];
        (digest[0], digest[1]) = (5, 0);
        digest
    }

    #[test]
    fn entries_are_found_while_they_are_valid() {
        let table = Verified::default();
        assert_eq!(find(&table, digest(1), 10_000), None);
        table.add(digest(1), Claims::of_tenant("a", 5, 20), 10_000);
        for (now, expected) in [
            (4_999, None),
            (5_000, Some("a")),
            (19_999, Some("a")),
            (20_000, None),
        ] {
            assert_eq!(find(&table, digest(1), now).as_deref(), expected, "{now}");
        }
        // The same set, another digest.
        assert_eq!(find(&table, digest(2), 10_000), None);
    }

    #[test]
    fn a_set_holds_so_many_and_drops_what_is_past_first() {
        let table = Verified::default();
        for i in 0..WAYS as u8 {
            let until = if i == 2 { 20 } else { 100 };
            table.add(
                digest(i),
                Claims::of_tenant(&i.to_string(), 0, until),
                1_000,
            );
        }
        table.add(digest(50), Claims::of_tenant("new", 0, 100), 30_000);
        assert_eq!(find(&table, digest(2), 30_000), None);
        for i in [0, 1, 3, 50] {
            assert!(find(&table, digest(i), 30_000).is_some(), "{i}");
        }
        for i in 60..=255 {
            table.add(digest(i), Claims::of_tenant("flood", 0, 100), 30_000);
            assert!(find(&table, digest(i), 30_000).is_some(), "{i}");
        }
        assert_eq!(table.len(), WAYS);
    }
}
