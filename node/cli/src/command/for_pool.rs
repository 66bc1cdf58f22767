//! Which pool an EndpointPickerConfig is for: it does not say so itself.

use std::collections::BTreeSet;

use quorate_proto::v1::{Consistency, Kind, resource::Spec};

use super::{
    get::{Filter, list},
    source::Declared,
};
use crate::{Exit, Failure, client::Client, kind, manifest::POOL_ANNOTATION};

/// Gives each config that names no pool the one of the command line, else the only one there is, and its name to a config
/// without one.
pub(super) async fn for_pools(
    client: &Client,
    declared: &mut [Declared],
    flag: Option<&str>,
) -> Result<(), Failure> {
    let mut only = None;
    for i in 0..declared.len() {
        let open = declared.get(i).is_some_and(|this| {
            matches!(&this.document.resource.spec, Some(Spec::SchedulingConfig(c)) if c.pool.is_empty())
        });
        if !open {
            continue;
        }
        let pool = match (flag, &only) {
            (Some(pool), _) => pool.to_owned(),
            (None, Some(pool)) => String::clone(pool),
            (None, None) => {
                let pool =
                    only_pool(client, declared)
                        .await
                        .map_err(|failure| match declared.get(i) {
                            Some(this) => this.locate(failure),
                            None => failure,
                        })?;
                only.insert(pool).clone()
            }
        };
        if let Some(this) = declared.get_mut(i) {
            let resource = &mut this.document.resource;
            if let Some(Spec::SchedulingConfig(config)) = &mut resource.spec {
                config.pool.clone_from(&pool);
            }
            if let Some(metadata) = resource.metadata.as_mut().filter(|m| m.name.is_empty()) {
                metadata.name = pool;
            }
        }
    }
    let mut seen = BTreeSet::new();
    for this in declared.iter() {
        if this.document.kind == Kind::SchedulingConfig && !seen.insert(this.document.name()) {
            let message = format!("{} is declared twice", this.full_name());
            return Err(this.locate(Failure::new(Exit::Invalid, message)));
        }
    }
    Ok(())
}

/// The one pool that there is or is being declared.
async fn only_pool(client: &Client, declared: &[Declared]) -> Result<String, Failure> {
    let (pools, _) = list(
        client,
        Kind::Pool,
        &Filter {
            consistency: Consistency::Linearizable,
            ..Filter::default()
        },
    )
    .await?;
    let planned = declared
        .iter()
        .filter(|this| this.document.kind == Kind::Pool)
        .map(|this| this.document.name().to_owned());
    let names: BTreeSet<String> = pools
        .iter()
        .map(|pool| kind::name_of(pool).to_owned())
        .chain(planned)
        .collect();
    let mut names: Vec<String> = names.into_iter().collect();
    match (names.pop(), names.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Failure::new(
            Exit::Invalid,
            "there is no pool yet that it could be for: apply one before it or with it",
        )),
        (Some(last), false) => {
            names.push(last);
            Err(Failure::new(
                Exit::Invalid,
                format!(
                    "which pool is it for? Say --pool NAME, or put the annotation {POOL_ANNOTATION} into its metadata (pools: {})",
                    names.join(", ")
                ),
            ))
        }
    }
}
