//! Before anything runs: options that can be used, a listener, and an identity file and a database that belong together.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
};

use quorate_proto::v1::NodeSpec;

use crate::{
    error::{Error, StorageError},
    identity::{DataDir, Identity, MemberId},
    options::{Options, PeerListen, Start},
    state::validate,
    storage::Storage,
};

pub(super) fn check_options(options: &Options) -> Result<(), Error> {
    let bad =
        |error: validate::FieldError| Error::Options(format!("{}: {}", error.field, error.message));
    validate::name("node name", &options.node_name).map_err(bad)?;
    validate::name("region", &options.region).map_err(bad)?;
    if options.auto_voters == 0 {
        return Err(Error::Options("auto_voters must be at least 1".to_owned()));
    }
    if options.snapshot_every == 0 {
        return Err(Error::Options(
            "snapshot_every must be at least 1".to_owned(),
        ));
    }
    if let Start::Join(peers) = &options.start {
        if peers.is_empty() {
            return Err(Error::Options(
                "at least one peer to join is needed".to_owned(),
            ));
        }
        for peer in peers {
            let (host, _) = split_address(peer).ok_or_else(|| {
                Error::Options(format!("{peer:?} is not a peer address (host:port)"))
            })?;
            if let Ok(ip) = host.parse::<IpAddr>()
                && options.tls.is_none()
                && !ip.to_canonical().is_loopback()
            {
                return Err(Error::PlainText(peer.clone()));
            }
        }
    }
    Ok(())
}

/// Host (without brackets) and port.
pub(super) fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some((host, port.parse().ok()?))
}

/// Binds the peer listener; returns it with the address that peers are told.
pub(super) fn listen(options: &mut Options) -> Result<(TcpListener, String), Error> {
    let unspecified = PeerListen::Address(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = match std::mem::replace(&mut options.peer_listen, unspecified) {
        PeerListen::Bound(listener) => listener,
        PeerListen::Address(address) => {
            TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?
        }
    };
    let local = listener
        .local_addr()
        .and_then(|local| listener.set_nonblocking(true).map(|()| local))
        .map_err(|error| Error::Options(format!("the peer listener cannot be used: {error}")))?;
    if options.tls.is_none() && !local.ip().to_canonical().is_loopback() {
        return Err(Error::PlainText(local.to_string()));
    }
    let address = match &options.advertise.peer {
        Some(address) => {
            let (host, _) = split_address(address).ok_or_else(|| {
                Error::Options(format!("{address:?} is not a peer address (host:port)"))
            })?;
            if options.tls.is_none()
                && host
                    .parse::<IpAddr>()
                    .is_ok_and(|ip| !ip.to_canonical().is_loopback())
            {
                return Err(Error::PlainText(address.clone()));
            }
            address.clone()
        }
        None if local.ip().is_unspecified() => {
            return Err(Error::Options(format!(
                "{local} accepts connections on every address: say which one other nodes shall use"
            )));
        }
        None => local.to_string(),
    };
    Ok((listener, address))
}

/// Makes identity file, database and options agree, or says which two do not.
pub(super) fn reconcile(
    identity: Option<Identity>,
    storage: &Storage,
    options: &Options,
    data: Option<&DataDir>,
) -> Result<Identity, Error> {
    let file = data.map_or_else(
        || Path::new("memory").to_owned(),
        |data| data.path().join("identity"),
    );
    let mismatch = |why: String| {
        Error::Storage(StorageError::Mismatch {
            path: file.clone(),
            why,
        })
    };
    let owner = storage.owner();
    let Some(mut identity) = identity else {
        return match owner {
            Some(owner) => Err(mismatch(format!(
                "the file is missing, but the database beside it belongs to node {} of cluster {}; restore the file, or \
                 start with an empty data directory",
                owner.node_id, owner.cluster_id
            ))),
            None => Identity::new(&options.node_name, options.timing),
        };
    };
    if identity.name != options.node_name {
        return Err(mismatch(format!(
            "this data directory belongs to node {:?}, not to {:?}: start it under its own name, or with another directory",
            identity.name, options.node_name
        )));
    }
    match (&identity.member, owner) {
        (Some(member), None) => {
            return Err(Error::Storage(StorageError::corrupt(
                storage.path(),
                format!(
                    "the identity file says node {} of cluster {}, but the database is empty: its log was lost",
                    member.node_id, member.cluster_id
                ),
            )));
        }
        (Some(member), Some(owner)) => {
            if (&member.cluster_id, member.node_id, &identity.instance)
                != (&owner.cluster_id, owner.node_id, &owner.instance)
            {
                return Err(mismatch(format!(
                    "it belongs to node {} of cluster {}, but the database beside it to node {} of cluster {}",
                    member.node_id, member.cluster_id, owner.node_id, owner.cluster_id
                )));
            }
        }
        // Interrupted between writing the database's owner and the identity file.
        (None, Some(owner)) if owner.instance == identity.instance => {
            identity.member = Some(MemberId {
                cluster_id: owner.cluster_id,
                node_id: owner.node_id,
                settled: false,
            });
        }
        (None, Some(owner)) => {
            return Err(mismatch(format!(
                "the database beside it belongs to another data directory (node {} of cluster {})",
                owner.node_id, owner.cluster_id
            )));
        }
        (None, None) => identity.timing = options.timing,
    }
    if identity.timing != options.timing {
        return Err(mismatch(format!(
            "the cluster uses the timing preset {}, the options say {}; all nodes must use the same",
            identity.timing, options.timing
        )));
    }
    Ok(identity)
}

pub(super) fn node_spec(options: &Options, identity: &Identity, peer_address: &str) -> NodeSpec {
    NodeSpec {
        node_id: identity
            .member
            .as_ref()
            .map(|member| member.node_id)
            .unwrap_or_default(),
        instance: identity.instance.clone(),
        region: options.region.clone(),
        peer_address: peer_address.to_owned(),
        control_address: options.advertise.control.clone(),
        gateway_address: options.advertise.gateway.clone(),
        admin_address: options.advertise.admin.clone(),
        version: options.version.clone(),
    }
}
