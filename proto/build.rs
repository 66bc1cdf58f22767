//! Compiles the .proto files with a pure-Rust compiler, so that a build needs no protoc.

use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "quorate/v1/resource.proto",
        "quorate/v1/control.proto",
        "quorate/v1/cluster.proto",
        "quorate/v1/decisions.proto",
        "quorate/v1/cache.proto",
        "quorate/peer/v1/raft.proto",
        "quorate/peer/v1/load.proto",
        "quorate/peer/v1/usage.proto",
        "quorate/peer/v1/decisions.proto",
        "quorate/peer/v1/cache.proto",
        "quorate/store/v1/store.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost_bytes(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".quorate.peer.v1")
        .btree_map(".quorate.v1")
        .compile_fds(descriptors)?;
    // Another project's contract: not among the descriptors that our own services are described with.
    let envoy = protox::compile(
        ["envoy/service/ext_proc/v3/external_processor.proto"],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        .bytes(".envoy")
        .compile_fds(envoy)?;
    Ok(())
}

fn prost_bytes(set: &impl prost::Message) -> Vec<u8> {
    set.encode_to_vec()
}
