//! Carries the turns of a region's routers (see [`quorate_routing::turns`]) over the streams of the load exchange. That a turn is over follows,
//! on the same stream, what was placed in it.

use crate::flows::Mail;
use crate::learnt;
use crate::shared::Shared;
use parking_lot::Mutex;
use quorate_proto::peer::v1::{self as wire, turn_message::Kind};
use quorate_routing::now_ms;
use quorate_routing::turns::{Carrier, Message};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Notify;

/// What waits to be sent, by peer.
#[derive(Default)]
pub struct Post {
    mail: Mutex<HashMap<u64, Arc<Mail<wire::TurnMessage>>>>,
    placed: Notify,
}

impl Post {
    /// This node's stream to a peer of the region is a new one. Gives what will be written to it.
    pub fn link_opened(&self, peer: u64) -> Arc<Mail<wire::TurnMessage>> {
        let mail = Arc::new(Mail::default());
        self.mail.lock().insert(peer, Arc::clone(&mail));
        mail
    }
}

impl Carrier for Post {
    fn send(&self, to: u64, message: Message) {
        let mail = self.mail.lock().get(&to).cloned();
        // Without a stream there is nobody to tell, and nobody waits for long.
        if let Some(mail) = mail {
            mail.put(to_proto(message));
        }
    }

    fn placed(&self) {
        self.placed.notify_one();
    }
}

/// Ends this router's turns once what was placed in them is ready to be sent, for ever.
pub async fn run(shared: Arc<Shared>) {
    loop {
        shared.post.placed.notified().await;
        shared.scan();
        learnt::exchange(&shared);
        shared.signals.turns.finish(now_ms());
    }
}

/// What a peer of the region said of turns, after the counts that came with it.
pub fn receive(shared: &Shared, from: u64, messages: &[wire::TurnMessage]) {
    for message in messages.iter().filter_map(from_proto) {
        shared.signals.turns.hear(from, message, now_ms());
    }
}

fn to_proto(message: Message) -> wire::TurnMessage {
    let kind = match message {
        Message::Ask(turn) => Kind::Ask(turn),
        Message::Yours { turn, after } => Kind::Yours(wire::TurnGiven {
            turn,
            after: after.map(|(node_id, turn)| wire::TurnOf { node_id, turn }),
        }),
        Message::Over(turn) => Kind::Over(turn),
    };
    wire::TurnMessage { kind: Some(kind) }
}

/// `None`: of a later version.
fn from_proto(message: &wire::TurnMessage) -> Option<Message> {
    Some(match message.kind.as_ref()? {
        Kind::Ask(turn) => Message::Ask(*turn),
        Kind::Yours(given) => Message::Yours {
            turn: given.turn,
            after: given.after.as_ref().map(|of| (of.node_id, of.turn)),
        },
        Kind::Over(turn) => Message::Over(*turn),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let after = Some((3, 9));
        for message in [
            Message::Ask(1),
            Message::Yours { turn: 2, after },
            Message::Yours {
                turn: 2,
                after: None,
            },
            Message::Over(u64::MAX),
        ] {
            assert_eq!(from_proto(&to_proto(message)), Some(message));
        }
        assert_eq!(from_proto(&wire::TurnMessage::default()), None);
    }
}
