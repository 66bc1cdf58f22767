//! The exchange's actor: keeps one link to each known peer, and looks at this node's own counts, and at what it learnt, when they change.

use crate::exchange::{Peer, client};
use crate::learnt;
use crate::mailbox::{Letter, Mailbox};
use crate::shared::Shared;
use crate::supervise::ChildSpec;
use crate::task::Task;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::timeout;

/// What the exchange is told.
pub enum Msg {
    /// The known peers may have changed.
    Peers,
    /// A child task panicked.
    Panicked(&'static str),
}

/// See the module's documentation.
pub struct Exchange {
    shared: Arc<Shared>,
    peers: watch::Receiver<Vec<Peer>>,
}

/// Links by node.
pub struct State {
    links: BTreeMap<u64, Link>,
    _watcher: Task,
    _scanner: Task,
}

struct Link {
    region: Arc<str>,
    address: Arc<str>,
    _task: Task,
}

/// Child spec of the exchange.
pub fn spec(shared: Arc<Shared>, peers: watch::Receiver<Vec<Peer>>) -> ChildSpec {
    ChildSpec {
        version: 0,
        start: Arc::new(move |parent| {
            let exchange = Exchange {
                shared: Arc::clone(&shared),
                peers: peers.clone(),
            };
            Box::pin(async move {
                let (child, _) = Exchange::spawn_linked(None, exchange, (), parent).await?;
                Ok(child.get_cell())
            })
        }),
    }
}

impl Actor for Exchange {
    type Msg = Letter<Msg>;
    type State = State;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (): (),
    ) -> Result<State, ActorProcessingErr> {
        let door = Mailbox::new(myself, "exchange");
        door.send(Msg::Peers);
        let mut peers = self.peers.clone();
        let watcher = {
            let door = door.clone();
            Task::spawn(async move {
                // Ends with the node, when nobody declares peers any more.
                while peers.changed().await.is_ok() {
                    door.send(Msg::Peers);
                }
            })
        };
        let shared = Arc::clone(&self.shared);
        let scan = async move {
            let pace = shared.timing.near;
            loop {
                // Counts change within requests; the time-out catches what a flag may have missed.
                let _ = timeout(pace.keep_alive, shared.signals.woken()).await;
                shared.scan();
                learnt::exchange(&shared);
                // Heavy requests come in bursts that end before the gap does.
                let hurried = timeout(pace.gap, shared.signals.hurried()).await.is_ok();
                if hurried {
                    tokio::time::sleep(pace.hurry).await;
                }
            }
        };
        let scanner = Task::guarded(scan, move || door.send(Msg::Panicked("scanner")));
        Ok(State {
            links: BTreeMap::new(),
            _watcher: watcher,
            _scanner: scanner,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        letter: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match &letter.body {
            Msg::Panicked(which) => Err(format!("the {which} task panicked").into()),
            Msg::Peers => {
                let peers: BTreeMap<u64, Peer> = self
                    .peers
                    .borrow()
                    .iter()
                    .filter(|p| p.node_id != self.shared.node_id())
                    .map(|p| (p.node_id, p.clone()))
                    .collect();
                state.links.retain(|id, link| {
                    peers
                        .get(id)
                        .is_some_and(|p| p.address == link.address && p.region == link.region)
                });
                for (id, peer) in peers {
                    state.links.entry(id).or_insert_with(|| {
                        let door = Mailbox::new(myself.clone(), "exchange");
                        Link {
                            region: Arc::clone(&peer.region),
                            address: Arc::clone(&peer.address),
                            _task: Task::guarded(
                                client::run(Arc::clone(&self.shared), peer),
                                move || door.send(Msg::Panicked("link")),
                            ),
                        }
                    });
                }
                Ok(())
            }
        }
    }
}
