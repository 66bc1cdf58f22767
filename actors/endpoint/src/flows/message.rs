//! Flow control's messages on the wire.

use quorate_proto::peer::v1 as wire;
use quorate_routing::flow::queue::Held;
use quorate_routing::flow::saturation::Load;
use quorate_routing::flow::share::message::{Demand, Grant, Message, Revoke, Waiting};

fn load(load: Load) -> wire::FlowLoad {
    wire::FlowLoad {
        requests: load.requests,
        tokens: load.tokens,
    }
}

fn from_load(load: &wire::FlowLoad) -> Load {
    Load {
        requests: load.requests,
        tokens: load.tokens,
    }
}

fn or_none(load: Option<&wire::FlowLoad>) -> Load {
    load.map(from_load).unwrap_or_default()
}

/// The message for a pool.
pub fn to_proto(pool: &str, message: Message) -> wire::FlowMessage {
    let kind = match message {
        Message::Demand(d) => wire::flow_message::Kind::Demand(wire::FlowDemand {
            session: d.session,
            first: d.first,
            acked: d.acked,
            in_flight: Some(load(d.in_flight)),
            held: Some(load(d.held)),
            waiting: d
                .waiting
                .into_iter()
                .map(|w| wire::FlowWaiting {
                    id: w.id,
                    priority: w.priority,
                    fairness_id: w.flow.to_string(),
                    age_us: w.age,
                    deadline_in_us: w.deadline_in,
                    first_token_in_us: w.first_token_in,
                    bytes: w.bytes,
                    tokens: w.tokens,
                })
                .collect(),
            gone: d.gone,
            served: d
                .served
                .into_iter()
                .map(|(flow, weighted_tokens)| wire::FlowServed {
                    fairness_id: flow.to_string(),
                    weighted_tokens,
                })
                .collect(),
            revocable: d
                .revocable
                .into_iter()
                .map(|(priority, requests)| wire::FlowRevocable { priority, requests })
                .collect(),
            revoking: d.revoking,
        }),
        Message::Grant(g) => wire::flow_message::Kind::Grant(wire::FlowGrant {
            session: g.session,
            seq: g.seq,
            dispatch: g.dispatch,
            standing: g.standing.map(load),
            elsewhere: Some(load(g.elsewhere)),
            queued_elsewhere: g
                .queued_elsewhere
                .into_iter()
                .map(|(priority, held)| wire::FlowQueued {
                    priority,
                    requests: held.requests,
                    bytes: held.bytes,
                })
                .collect(),
            renew: g.renew,
            revoke: g
                .revoke
                .into_iter()
                .map(|r| wire::FlowRevoke {
                    requests: r.requests,
                    below: r.below,
                })
                .collect(),
        }),
    };
    wire::FlowMessage {
        pool: pool.to_owned(),
        kind: Some(kind),
    }
}

/// What a peer said; `None`: something that this version does not know.
pub fn from_proto(message: wire::FlowMessage) -> Option<Message> {
    Some(match message.kind? {
        wire::flow_message::Kind::Demand(d) => Message::Demand(Demand {
            session: d.session,
            first: d.first,
            acked: d.acked,
            in_flight: or_none(d.in_flight.as_ref()),
            held: or_none(d.held.as_ref()),
            waiting: d
                .waiting
                .into_iter()
                .map(|w| Waiting {
                    id: w.id,
                    priority: w.priority,
                    flow: w.fairness_id.into(),
                    age: w.age_us,
                    deadline_in: w.deadline_in_us,
                    first_token_in: w.first_token_in_us,
                    bytes: w.bytes,
                    tokens: w.tokens,
                })
                .collect(),
            gone: d.gone,
            served: d
                .served
                .into_iter()
                .map(|s| (s.fairness_id.into(), s.weighted_tokens))
                .collect(),
            revocable: d
                .revocable
                .into_iter()
                .map(|r| (r.priority, r.requests))
                .collect(),
            revoking: d.revoking,
        }),
        wire::flow_message::Kind::Grant(g) => Message::Grant(Grant {
            session: g.session,
            seq: g.seq,
            dispatch: g.dispatch,
            standing: g.standing.as_ref().map(from_load),
            elsewhere: or_none(g.elsewhere.as_ref()),
            queued_elsewhere: g
                .queued_elsewhere
                .into_iter()
                .map(|q| {
                    let held = Held {
                        requests: q.requests,
                        bytes: q.bytes,
                    };
                    (q.priority, held)
                })
                .collect(),
            renew: g.renew,
            revoke: g
                .revoke
                .into_iter()
                .map(|r| Revoke {
                    requests: r.requests,
                    below: r.below,
                })
                .collect(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let some = Load {
            requests: 3,
            tokens: u64::MAX,
        };
        let demand = Message::Demand(Demand {
            session: 7,
            first: true,
            acked: 2,
            in_flight: some,
            held: Load::UNLIMITED,
            waiting: vec![Waiting {
                id: 9,
                priority: -3,
                flow: "t".into(),
                age: 5,
                deadline_in: Some(-4),
                first_token_in: None,
                bytes: 6,
                tokens: 8,
            }],
            gone: vec![1, 2],
            served: vec![("t".into(), 1.5)],
            revocable: vec![(-4, 2), (-1, 3)],
            revoking: 1,
        });
        let grant = Message::Grant(Grant {
            session: 7,
            seq: 3,
            dispatch: vec![9],
            standing: None,
            elsewhere: some,
            queued_elsewhere: vec![(
                -3,
                Held {
                    requests: 1,
                    bytes: 6,
                },
            )],
            renew: true,
            revoke: vec![Revoke {
                requests: 2,
                below: -3,
            }],
        });
        for message in [demand, grant] {
            let wire = to_proto("p", message.clone());
            assert_eq!(wire.pool, "p");
            assert_eq!(from_proto(wire), Some(message));
        }
        assert_eq!(from_proto(wire::FlowMessage::default()), None);
    }
}
