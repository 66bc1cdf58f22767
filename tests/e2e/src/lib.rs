//! The harness of the end-to-end tests: real `quorate` processes on real sockets.
//!
//! * [`Fleet`]: routers and simulated model servers as child processes, each on a loopback address of its own, to be killed,
//!   stopped, paused, restarted and taken apart; shows all logs when a test does not reach its end
//! * [`Control`]: the gRPC control API; [`cli`]: the command line; [`http`]: a small HTTP and SSE client
//! * [`Envoy`]: a real Envoy in front of a fleet
//! * [`Load`]: clients pinned to routers that count what went well and what did not
//! * [`Writer`]: a stream of control writes that remembers what was acknowledged
//! * [`until`]: waits for a condition, never for a time
//!
//! The tests are in `tests/all/`, one file a theme. The binary is `$QUORATE_BIN`, else the newest of `target/release/quorate` and
//! `target/debug/quorate`.

mod builder;
pub mod cli;
mod control;
mod envoy;
mod fleet;
pub mod http;
mod load;
mod process;
mod router;
mod sim;
mod subnet;
mod tiny_disk;
mod wait;
mod writer;

pub use builder::FleetBuilder;
pub use control::{Control, endpoint, pool, raw_call, setting};
pub use envoy::{Envoy, ModelServers};
pub use fleet::Fleet;
pub use load::{Counts, Load, LoadReport, LoadSpec};
pub use process::{Process, Start, binary, command_exists};
pub use router::{Launch, Router};
pub use sim::Sim;
pub use subnet::Subnet;
pub use tiny_disk::TinyDisk;
pub use wait::until;
pub use writer::{WriteReport, Writer};
