//! From what a client shows to a [`Caller`]: the table of keys and tenants, and the door that asks it.

use super::budget::{Budget, Limits};
use super::caller::{Caller, Grant};
use super::jwt::{Claims, Jwks, JwtError, JwtRules, MAX_TOKEN, looks_like_jwt, verify};
use super::verified::Verified;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;

/// A tenant as it is declared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TenantRule {
    /// Its name.
    pub name: String,
    /// Empty: its name.
    pub fairness_id: String,
    /// Models that it may ask for; empty: all.
    pub models: Vec<String>,
    /// Objectives that it may name; empty: all.
    pub objectives: Vec<String>,
    /// For requests that name none; may be empty.
    pub default_objective: String,
    /// Its limits.
    pub limits: Limits,
    /// Nothing is accepted from it.
    pub disabled: bool,
    /// What its requests say of themselves in headers counts.
    pub trusted: bool,
}

/// A key as it is declared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyRule {
    /// Its name.
    pub name: String,
    /// The tenant that it belongs to.
    pub tenant: String,
    /// Digest of the key.
    pub sha256: [u8; 32],
    /// Narrows the tenant's.
    pub models: Vec<String>,
    /// Narrows the tenant's.
    pub objectives: Vec<String>,
    /// Besides the tenant's.
    pub limits: Limits,
    /// Not accepted from then on (Unix time in milliseconds).
    pub expires_unix_ms: Option<u64>,
    /// Not accepted.
    pub revoked: bool,
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It showed nothing.
    #[error(
        "no API key was provided: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`"
    )]
    Missing,
    /// Nobody has this key.
    #[error("the API key is not valid")]
    Unknown,
    /// The key was good once.
    #[error("the API key has expired")]
    Expired,
    /// The key was taken back.
    #[error("the API key was revoked")]
    Revoked,
    /// The token is none, or not from the right issuer, or out of date.
    #[error("the token is not valid: {0}")]
    Token(#[from] JwtError),
    /// The token is good, but its tenant is not known here.
    #[error("the token's tenant is not known here")]
    UnknownTenant,
    /// The tenant is switched off.
    #[error("the tenant is disabled")]
    Disabled,
}

impl Denied {
    /// Whether it is known who asks, so that showing something else would not help.
    pub fn is_known(self) -> bool {
        matches!(self, Self::UnknownTenant | Self::Disabled)
    }
}

/// A key's grant, and until when.
#[derive(Debug)]
struct Key {
    sha256: [u8; 32],
    grant: Arc<Grant>,
    expires_unix_ms: Option<u64>,
    revoked: bool,
    disabled: bool,
}

/// All keys and tenants. Built anew when one changes; the budgets go on.
#[derive(Debug, Default)]
pub struct IdentityTable {
    /// By digest. Who looks for a key learns nothing from the time that this takes: the place of an entry depends on the
    /// digest, of which nobody can choose a part without having tried about all keys.
    keys: HashMap<[u8; 32], Key>,
    tenants: HashMap<String, (Arc<Grant>, bool)>,
    budgets: HashMap<Arc<str>, Arc<Budget>>,
}

impl IdentityTable {
    /// Builds a table. Budgets of the `former` one go on with what was used of them. Keys of tenants that are not there are
    /// left out.
    pub fn build(
        tenants: &[TenantRule],
        keys: &[KeyRule],
        former: &IdentityTable,
        now_ms: u64,
    ) -> Self {
        let mut table = Self::default();
        let none: Arc<[String]> = Arc::from([]);
        for tenant in tenants {
            let budget = table.budget("tenant", &tenant.name, tenant.limits, former, now_ms);
            let fairness_id = if tenant.fairness_id.is_empty() {
                &tenant.name
            } else {
                &tenant.fairness_id
            };
            let grant = Grant {
                tenant: tenant.name.as_str().into(),
                key: None,
                fairness_id: fairness_id.as_str().into(),
                trusted: tenant.trusted,
                default_objective: Some(tenant.default_objective.as_str())
                    .filter(|name| !name.is_empty())
                    .map(Arc::from),
                models: [tenant.models.clone().into(), Arc::clone(&none)],
                objectives: [tenant.objectives.clone().into(), Arc::clone(&none)],
                budgets: budget.into_iter().collect(),
            };
            table
                .tenants
                .insert(tenant.name.clone(), (Arc::new(grant), tenant.disabled));
        }
        for key in keys {
            let Some((tenant, disabled)) = table.tenants.get(&key.tenant) else {
                continue;
            };
            let (tenant, disabled) = (Arc::clone(tenant), *disabled);
            let budget = table.budget("key", &key.name, key.limits, former, now_ms);
            let [tenant_models, _] = &tenant.models;
            let [tenant_objectives, _] = &tenant.objectives;
            let objectives: Arc<[String]> = key.objectives.clone().into();
            // A tenant's default that the key may not name is not given to it.
            let default_objective = tenant
                .default_objective
                .clone()
                .filter(|name| objectives.is_empty() || objectives.iter().any(|o| **o == **name));
            let grant = Grant {
                tenant: Arc::clone(&tenant.tenant),
                key: Some(key.name.as_str().into()),
                fairness_id: Arc::clone(&tenant.fairness_id),
                trusted: tenant.trusted,
                default_objective,
                models: [Arc::clone(tenant_models), key.models.clone().into()],
                objectives: [Arc::clone(tenant_objectives), objectives],
                budgets: tenant.budgets.iter().cloned().chain(budget).collect(),
            };
            table.keys.insert(
                key.sha256,
                Key {
                    sha256: key.sha256,
                    grant: Arc::new(grant),
                    expires_unix_ms: key.expires_unix_ms,
                    revoked: key.revoked,
                    disabled,
                },
            );
        }
        table
    }

    fn budget(
        &mut self,
        of: &str,
        name: &str,
        limits: Limits,
        former: &IdentityTable,
        now_ms: u64,
    ) -> Option<Arc<Budget>> {
        if limits.is_unlimited() {
            return None;
        }
        let name: Arc<str> = format!("{of}/{name}").into();
        let budget = match former.budgets.get(&name) {
            Some(budget) => {
                budget.set_limits(limits, now_ms);
                Arc::clone(budget)
            }
            None => Arc::new(Budget::new(Arc::clone(&name), limits, now_ms)),
        };
        self.budgets.insert(name, Arc::clone(&budget));
        Some(budget)
    }

    /// The budgets with limits.
    pub fn budgets(&self) -> impl Iterator<Item = &Arc<Budget>> {
        self.budgets.values()
    }

    /// A budget by name.
    pub fn budget_of(&self, name: &str) -> Option<&Arc<Budget>> {
        self.budgets.get(name)
    }

    /// How many keys and tenants there are.
    pub fn counts(&self) -> (usize, usize) {
        (self.keys.len(), self.tenants.len())
    }

    fn by_key(&self, key: &str, now_unix_ms: u64) -> Result<Caller, Denied> {
        let digest = digest_of(key);
        let found = self
            .keys
            .get(&digest)
            .filter(|found| same(&found.sha256, &digest))
            .ok_or(Denied::Unknown)?;
        if found.revoked {
            return Err(Denied::Revoked);
        }
        if found.expires_unix_ms.is_some_and(|end| now_unix_ms >= end) {
            return Err(Denied::Expired);
        }
        if found.disabled {
            return Err(Denied::Disabled);
        }
        Ok(Caller {
            grant: Arc::clone(&found.grant),
            fairness_id: None,
        })
    }

    fn by_claims(&self, claims: &Claims) -> Result<Caller, Denied> {
        match self.tenants.get(&claims.tenant) {
            None => Err(Denied::UnknownTenant),
            Some((_, true)) => Err(Denied::Disabled),
            Some((grant, false)) => Ok(Caller {
                grant: Arc::clone(grant),
                fairness_id: claims
                    .flow
                    .as_ref()
                    .map(|flow| format!("{}/{flow}", grant.fairness_id).into()),
            }),
        }
    }
}

/// SHA-256.
pub fn digest_of(key: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    bytes
}

/// Compares in a time that does not depend on where two digests differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// What tokens are checked with.
#[derive(Debug)]
pub struct Verifier {
    /// What must be in them.
    pub rules: JwtRules,
    /// The issuer's keys.
    pub keys: Jwks,
}

/// The door: published tables that the request path reads without a lock.
#[derive(Debug, Default)]
pub struct Authenticator {
    table: ArcSwap<IdentityTable>,
    tokens: arc_swap::ArcSwapOption<Tokens>,
}

/// What tokens are checked with, and those that were good by it.
#[derive(Debug)]
struct Tokens {
    verifier: Arc<Verifier>,
    verified: Verified,
}

impl Tokens {
    /// What `use_it` makes of a good token's claims.
    fn check<R>(
        &self,
        token: &str,
        now_unix_ms: u64,
        use_it: impl Fn(&Claims) -> R,
    ) -> Result<R, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Malformed);
        }
        let digest = digest_of(token);
        if let Some(result) = self.verified.find(&digest, now_unix_ms, &use_it) {
            return Ok(result);
        }
        let claims = verify(token, &self.verifier, now_unix_ms)?;
        let result = use_it(&claims);
        self.verified.add(digest, claims, now_unix_ms);
        Ok(result)
    }
}

impl Authenticator {
    /// Publishes another table.
    pub fn set_table(&self, table: Arc<IdentityTable>) {
        self.table.store(table);
    }

    /// The table in use.
    pub fn table(&self) -> Arc<IdentityTable> {
        self.table.load_full()
    }

    /// Tokens are accepted from now on, with these keys. Those that were good by the former ones are checked again.
    pub fn set_verifier(&self, verifier: Arc<Verifier>) {
        self.tokens.store(Some(Arc::new(Tokens {
            verifier,
            verified: Verified::default(),
        })));
    }

    /// Who shows this key or token.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn identify(&self, shown: Option<&str>, now_unix_ms: u64) -> Result<Caller, Denied> {
        let shown = shown
            .filter(|shown| !shown.is_empty())
            .ok_or(Denied::Missing)?;
        let table = self.table.load();
        match &*self.tokens.load() {
            Some(tokens) if looks_like_jwt(shown) => {
                tokens.check(shown, now_unix_ms, |claims| table.by_claims(claims))?
            }
            _ => table.by_key(shown, now_unix_ms),
        }
    }
}
