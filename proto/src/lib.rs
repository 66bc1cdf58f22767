//! The wire contracts of Quorate, compiled from the `.proto` files beside this crate.
//!
//! * [`v1`]: the public control API (resources, endpoints, decisions, cluster membership).
//! * [`peer::v1`]: node-to-node traffic (consensus frames, load exchange).
//! * [`store::v1`]: what is kept on disk (commands in the log, snapshots).
//! * [`envoy`]: Envoy's external processing service, as far as an endpoint picker needs it.
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

/// Envoy's own contracts; the nesting is that of the packages, which the generated code relies on.
pub mod envoy {
    /// Headers and metadata.
    pub mod config {
        /// Package `envoy.config.core`.
        pub mod core {
            /// Package `envoy.config.core.v3`.
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    /// Configuration of filters.
    pub mod extensions {
        /// Package `envoy.extensions.filters`.
        pub mod filters {
            /// Package `envoy.extensions.filters.http`.
            pub mod http {
                /// Package `envoy.extensions.filters.http.ext_proc`.
                pub mod ext_proc {
                    /// Package `envoy.extensions.filters.http.ext_proc.v3`.
                    pub mod v3 {
                        tonic::include_proto!("envoy.extensions.filters.http.ext_proc.v3");
                    }
                }
            }
        }
    }
    /// Services.
    pub mod service {
        /// Package `envoy.service.ext_proc`.
        pub mod ext_proc {
            /// Package `envoy.service.ext_proc.v3`.
            pub mod v3 {
                tonic::include_proto!("envoy.service.ext_proc.v3");
            }
        }
    }
    /// Package `envoy.type`.
    pub mod r#type {
        /// Package `envoy.type.v3`.
        pub mod v3 {
            tonic::include_proto!("envoy.r#type.v3");
        }
    }
}

/// The encoded `FileDescriptorSet` of all packages, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
