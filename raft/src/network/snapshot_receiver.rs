//! Receives a snapshot from the leader: collects the pieces, then verifies all of it before consensus hears of it.

use std::sync::Arc;

use openraft::storage::Snapshot;
use quorate_proto::peer::v1::{SnapshotBegin, SnapshotFrame, snapshot_frame::Frame};
use tonic::{Status, Streaming};

use crate::{
    snapshot::{self, Expected, SnapshotError},
    snapshots::{SnapshotData, Snapshots},
    types::{CONTROL, TypeConfig, Vote},
    wire,
};

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A verified snapshot.
pub(super) struct Received {
    pub(super) vote: Vote,
    pub(super) snapshot: SnapshotOf,
}

pub(crate) fn bad(why: &str) -> Status {
    Status::invalid_argument(format!("snapshot stream: {why}"))
}

/// The first frame.
pub(super) async fn begin(frames: &mut Streaming<SnapshotFrame>) -> Result<SnapshotBegin, Status> {
    match frames.message().await? {
        Some(SnapshotFrame {
            frame: Some(Frame::Begin(begin)),
        }) => Ok(begin),
        _ => Err(bad("it does not begin with a beginning")),
    }
}

/// Takes the frames after the first in; leaves nothing behind unless it succeeds.
pub(super) async fn receive(
    begin: SnapshotBegin,
    mut frames: Streaming<SnapshotFrame>,
    snapshots: &Arc<Snapshots>,
    cluster_id: &str,
) -> Result<Received, Status> {
    let vote = begin
        .vote
        .as_ref()
        .map(wire::to_vote)
        .ok_or_else(|| bad("no vote"))?;
    let meta = wire::to_snapshot_meta(begin.meta.unwrap_or_default())
        .map_err(|error| bad(&error.to_string()))?;
    let mut incoming = snapshots
        .incoming(fastrand::u64(..))
        .map_err(|error| io(&error))?;
    let mut length = 0_u64;
    loop {
        match frames.message().await?.and_then(|frame| frame.frame) {
            Some(Frame::Data(bytes)) => {
                length += bytes.len() as u64;
                incoming =
                    tokio::task::spawn_blocking(move || incoming.write(&bytes).map(|()| incoming))
                        .await
                        .map_err(|error| Status::internal(error.to_string()))?
                        .map_err(|error| io(&error))?;
            }
            Some(Frame::End(end)) if end.length == length => break,
            Some(Frame::End(_)) => return Err(bad("pieces are missing")),
            Some(Frame::Begin(_)) => return Err(bad("it begins twice")),
            None => return Err(bad("it was cut off")),
        }
    }
    let cluster_id = cluster_id.to_owned();
    let data = tokio::task::spawn_blocking(move || {
        let data = incoming.finish().map_err(SnapshotError::Io)?;
        let expected = Expected {
            cluster_id: Some(&cluster_id),
            group: CONTROL,
        };
        let verified = match &data {
            SnapshotData::Memory(bytes) => snapshot::read_state(&bytes[..], expected).map(drop),
            SnapshotData::File { path, .. } => snapshot::read_file(path, expected).map(drop),
        };
        if let (Err(_), SnapshotData::File { path, .. }) = (&verified, &data) {
            let _ = std::fs::remove_file(path);
        }
        verified.map(|()| data)
    })
    .await
    .map_err(|error| Status::internal(error.to_string()))?
    .map_err(|error| Status::data_loss(error.to_string()))?;
    Ok(Received {
        vote,
        snapshot: Snapshot {
            meta,
            snapshot: data,
        },
    })
}

fn io(error: &std::io::Error) -> Status {
    Status::resource_exhausted(format!("the snapshot cannot be stored: {error}"))
}
