//! A caller that showed who it is, and what it may use.

use super::budget::{Budget, Exhausted, Ongoing};
use std::sync::Arc;

/// What belongs to a tenant or a key, worked out once when the table is built.
#[derive(Debug)]
pub struct Grant {
    /// The tenant.
    pub tenant: Arc<str>,
    /// The key's name; `None` with a JWT.
    pub key: Option<Arc<str>>,
    /// The flow that its requests queue in.
    pub fairness_id: Arc<str>,
    /// What its requests say of themselves in headers counts.
    pub trusted: bool,
    /// For requests that name no objective.
    pub default_objective: Option<Arc<str>>,
    /// Lists of names, each of which must have the model; an empty list has all.
    pub(super) models: [Arc<[String]>; 2],
    /// Likewise for objectives.
    pub(super) objectives: [Arc<[String]>; 2],
    /// The tenant's and the key's, where they have limits.
    pub(super) budgets: Vec<Arc<Budget>>,
}

/// Something that the caller may not use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A model.
    #[error("this caller may not use the model `{0}`")]
    Model(String),
    /// An objective.
    #[error("this caller may not use the objective `{0}`")]
    Objective(String),
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Caller {
    pub(super) grant: Arc<Grant>,
    /// A flow of its own inside the tenant, from a JWT's claim.
    pub(super) fairness_id: Option<Arc<str>>,
}

impl Caller {
    /// What it was granted.
    pub fn grant(&self) -> &Arc<Grant> {
        &self.grant
    }

    /// The flow that its requests queue in.
    pub fn fairness_id(&self) -> &Arc<str> {
        self.fairness_id.as_ref().unwrap_or(&self.grant.fairness_id)
    }

    /// Whether it may ask for this model (the name that the client says).
    ///
    /// # Errors
    /// [`Refused::Model`].
    pub fn allows(&self, model: &str) -> Result<(), Refused> {
        let allowed = self
            .grant
            .models
            .iter()
            .all(|list| list.is_empty() || list.iter().any(|pattern| matches(pattern, model)));
        if allowed {
            Ok(())
        } else {
            Err(Refused::Model(model.to_owned()))
        }
    }

    /// The objective of a request that names this one, or none.
    ///
    /// # Errors
    /// [`Refused::Objective`] if it may not name it.
    pub fn objective<'a>(&'a self, named: Option<&'a str>) -> Result<Option<&'a str>, Refused> {
        let Some(named) = named else {
            return Ok(self.grant.default_objective.as_deref());
        };
        let allowed = self
            .grant
            .objectives
            .iter()
            .all(|list| list.is_empty() || list.iter().any(|one| one == named));
        if allowed {
            Ok(Some(named))
        } else {
            Err(Refused::Objective(named.to_owned()))
        }
    }

    /// Takes a request out of its limits. What comes back must live as long as the request.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn begin(&self, now_ms: u64) -> Result<Ongoing, Exhausted> {
        Budget::begin(&self.grant.budgets, now_ms)
    }
}

/// Whether a name is meant by another one that may end with '*'.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(stem) => name.starts_with(stem),
        None => pattern == name,
    }
}
