//! What was learnt, on the wire.

use quorate_proto::peer::v1 as wire;
use quorate_routing::Endpoint;
use quorate_routing::learnt::{Learnt, SessionBinding};
use wire::learnt::What;

/// The message.
pub fn to_proto(pool: &str, plugin: &str, endpoint: &Endpoint, learnt: Learnt) -> wire::Learnt {
    let what = match learnt {
        Learnt::Blocks {
            block_tokens,
            hashes,
        } => What::Blocks(wire::PromptBlocks {
            block_tokens,
            hashes,
        }),
        Learnt::Expected {
            rank,
            incarnation,
            keys,
        } => What::Expected(wire::ExpectedBlocks {
            rank,
            incarnation,
            keys,
        }),
        Learnt::Sessions(all) => What::Sessions(wire::BoundSessions {
            sessions: all.iter().map(|b| b.session).collect(),
            stamps: all.iter().map(|b| b.stamp).collect(),
            idle_ms: all.iter().map(|b| b.idle_ms).collect(),
        }),
        Learnt::Cold { ago_ms } => What::ColdMsAgo(ago_ms),
    };
    wire::Learnt {
        pool: pool.to_owned(),
        plugin: plugin.to_owned(),
        endpoint: endpoint.name().to_owned(),
        incarnation: endpoint.spec().incarnation,
        what: Some(what),
    }
}

/// What a peer learnt; `None`: something that this version does not know, or lists of different lengths.
pub fn from_proto(message: &wire::Learnt) -> Option<Learnt> {
    Some(match message.what.as_ref()? {
        What::Blocks(blocks) => Learnt::Blocks {
            block_tokens: blocks.block_tokens,
            hashes: blocks.hashes.clone(),
        },
        What::Expected(expected) => Learnt::Expected {
            rank: expected.rank,
            incarnation: expected.incarnation,
            keys: expected.keys.clone(),
        },
        What::Sessions(all) => {
            let same = all.sessions.len() == all.stamps.len();
            if !same || all.sessions.len() != all.idle_ms.len() {
                return None;
            }
            let stamps = all.stamps.iter().zip(&all.idle_ms);
            let bindings = all.sessions.iter().zip(stamps);
            let binding = |(session, (stamp, idle_ms)): (&u64, (&u64, &u64))| SessionBinding {
                session: *session,
                stamp: *stamp,
                idle_ms: *idle_ms,
            };
            Learnt::Sessions(bindings.map(binding).collect())
        }
        What::ColdMsAgo(ago_ms) => Learnt::Cold { ago_ms: *ago_ms },
    })
}

/// Its size in words of eight bytes.
pub fn words(message: &wire::Learnt) -> usize {
    match &message.what {
        Some(What::Blocks(blocks)) => blocks.hashes.len(),
        Some(What::Sessions(all)) => 3 * all.sessions.len(),
        Some(What::Expected(expected)) => expected.keys.len() + 1,
        Some(What::ColdMsAgo(_)) | None => 1,
    }
}
