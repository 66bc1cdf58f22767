//! Discovery: endpoints that nobody declared by hand, from a watched file or from DNS.
//!
//! A pool's discovery runs on one node, the owner of the pool's name. It proposes what is missing and what is no longer there;
//! endpoints of other sources are never touched, and trouble keeps what was found before.

pub mod actor;
pub mod dns;
pub mod file;
pub mod reconcile;

use crate::catalog::Declared;
use crate::policy;
use crate::shared::Shared;
use crate::supervise::Children;
use prost::Message;
use quorate_proto::v1::{self, discovery::Source as SourceSpec, resource::Spec};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

/// Time between two looks at a file.
const FILE_POLL: Duration = Duration::from_secs(1);
/// Time between two DNS look-ups: the default and the least.
const DNS_INTERVAL: Duration = Duration::from_secs(10);
const DNS_SHORTEST: Duration = Duration::from_secs(1);

/// A change of a declared endpoint that discovery proposes.
#[derive(Clone, Debug, PartialEq)]
pub enum DiscoveryOp {
    /// Create or replace.
    Put {
        /// The endpoint.
        resource: Box<v1::Resource>,
        /// Resource version that it must have; 0: it must not exist.
        expected_version: u64,
    },
    /// Delete.
    Delete {
        /// Its name.
        name: String,
        /// Resource version that it must have.
        expected_version: u64,
    },
}

/// Why the cluster did not take the changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeclareError(pub String);

/// Brings changes into the replicated state. Implemented by the node.
#[tonic::async_trait]
pub trait Declare: Send + Sync + 'static {
    /// Applies the changes in order. On an error the ones before it may have been applied; discovery looks again and proposes
    /// what is left. A version conflict of one change should not keep the others from being tried.
    async fn apply(&self, ops: Vec<DiscoveryOp>) -> Result<(), DeclareError>;
}

/// An endpoint as a source has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Address.
    pub url: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Engine, if the source says.
    pub engine: v1::Engine,
    /// Data-parallel rank.
    pub rank: Option<u32>,
    /// Metrics page, if it is elsewhere.
    pub metrics_url: String,
}

/// What a source says at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Endpoints by name.
    pub found: BTreeMap<String, Found>,
    /// Entries that cannot be used, each with what is wrong with it.
    pub problems: Vec<String>,
}

/// Where a pool's endpoints come from.
pub enum Source {
    /// A file.
    File(file::FileSource),
    /// DNS.
    Dns(Box<dns::DnsSource>),
}

impl Source {
    /// The source that a pool declares, with the time between two looks.
    pub fn of(name: &str, pool: &v1::PoolSpec) -> Option<(Self, Duration)> {
        match pool.discovery.as_ref()?.source.as_ref()? {
            SourceSpec::File(f) => {
                let source =
                    file::FileSource::new(f.path.as_str().into(), pool.target_ports.clone());
                Some((Self::File(source), FILE_POLL))
            }
            SourceSpec::Dns(d) => {
                let interval = policy::duration(d.interval.as_ref())
                    .filter(|i| !i.is_zero())
                    .unwrap_or(DNS_INTERVAL)
                    .max(DNS_SHORTEST);
                let source = dns::DnsSource::new(name, d.clone(), pool.target_ports.clone());
                Some((Self::Dns(Box::new(source)), interval))
            }
        }
    }

    /// The mark on endpoints that it declares.
    pub fn mark(&self, pool: &str) -> String {
        match self {
            Self::File(_) => format!("file:{pool}"),
            Self::Dns(_) => format!("dns:{pool}"),
        }
    }

    /// Looks once.
    ///
    /// # Errors
    /// In words, why there is no answer.
    pub async fn look(&mut self) -> Result<Answer, String> {
        match self {
            Self::File(f) => f.look().await,
            Self::Dns(d) => d.look().await,
        }
    }

    /// How many looks in a row must miss an endpoint before it is removed. A file says what it means unless it is empty;
    /// DNS servers may leave records out of an answer.
    pub fn patience(&self, answer: &Answer) -> u32 {
        match self {
            Self::File(_) if !answer.found.is_empty() => 1,
            Self::File(_) | Self::Dns(_) => 3,
        }
    }
}

/// The discovery actors that run on this node: one for each pool that has a source and that this node owns.
pub fn children(
    shared: &Arc<Shared>,
    declared: &watch::Receiver<Declared>,
    declare: &Arc<dyn Declare>,
    owned: impl Fn(&str) -> bool,
) -> Children {
    let current = declared.borrow();
    current
        .pools
        .iter()
        .filter_map(|resource| match (&resource.metadata, &resource.spec) {
            (Some(meta), Some(Spec::Pool(pool))) => Some((meta.name.as_str(), pool)),
            _ => None,
        })
        .filter(|(name, pool)| Source::of(name, pool).is_some() && owned(name))
        .map(|(name, pool)| {
            let name: Arc<str> = name.into();
            // Other settings of the pool need no new look-up.
            let pool = v1::PoolSpec {
                discovery: pool.discovery.clone(),
                target_ports: pool.target_ports.clone(),
                ..Default::default()
            };
            let version = xxh3_64(&pool.encode_to_vec());
            let spec = actor::spec(
                Arc::clone(shared),
                Arc::clone(&name),
                pool,
                declared.clone(),
                Arc::clone(declare),
                version,
            );
            (name, spec)
        })
        .collect()
}
