//! One actor for each endpoint, on its owner node: health, load, models, stalls, and the exchange of all that between nodes.
//!
//! * reads: the declared pools and endpoints (a watch), the known peers (a watch), the engines' pages, the peers' reports,
//!   discovery files and DNS, and what the gateway observes on [`quorate_routing::Endpoint`]s
//! * writes: the [`quorate_routing::RoutingView`], the atomics of its endpoints, reports to peers, proposals of discovery
//! * messages: each actor's `Msg` type; nobody outside sends any
//!
//! [`EndpointPlane::start`] starts a supervisor tree: directory (who owns what, the view), exchange (streams to and from
//! peers), one supervisor for each pool with an actor for each endpoint that this node owns, and discovery. Rules are pure and in
//! files of their own (`ownership`, `catalog`, `endpoint::health`, `endpoint::stall`, `engine::scrape`, `exchange::table`).
mod catalog;
mod describe;
mod directory;
mod discovery;
mod endpoint;
mod engine;
mod events;
mod exchange;
mod flows;
mod gauges;
mod http;
mod learnt;
mod mailbox;
mod ownership;
mod plane;
mod policy;
mod scheduling;
mod shared;
mod signals;
mod supervise;
mod task;
mod turns;

pub use catalog::{Declared, PageUrl};
pub use discovery::{Declare, DeclareError, DiscoveryOp};
pub use events::PlaneEvent;
pub use exchange::server::LoadService;
pub use exchange::{Pace, Peer, Timing};
pub use gauges::{BUCKETS, describe as describe_metrics};
pub use http::{Client as PageClient, FetchError, Limits as PageLimits, Page};
pub use ownership::LiveNodes;
pub use plane::MESSAGE_LIMIT;
pub use plane::{CheckCaller, EndpointPlane, PlaneHandle, PlaneOptions, StartError};
