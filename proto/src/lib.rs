//! The wire contracts of Quorate, compiled from the `.proto` files beside this crate.
//!
//! * [`v1`]: the public control API (resources, endpoints, cluster membership).
//! * [`peer::v1`]: node-to-node traffic (consensus frames, load exchange).
//! * [`store::v1`]: what is kept on disk (commands in the log, snapshots).
//!
//! The files themselves carry the documentation of each field; they only ever grow.
#![allow(missing_docs)]
#![allow(clippy::doc_markdown, clippy::large_enum_variant)]

/// The public control API, package `quorate.v1`.
pub mod v1 {
    tonic::include_proto!("quorate.v1");
}

/// Node-to-node traffic.
pub mod peer {
    /// Package `quorate.peer.v1`.
    pub mod v1 {
        tonic::include_proto!("quorate.peer.v1");
    }
}

/// Stored records.
pub mod store {
    /// Package `quorate.store.v1`.
    pub mod v1 {
        tonic::include_proto!("quorate.store.v1");
    }
}

/// The encoded `FileDescriptorSet` of all packages, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
