//! One supervisor for all: it keeps a wanted set of children running.
//!
//! The set is a latest-value slot ([`Wanted`]) and one wake-up message, so that its mailbox holds at most one of them and a
//! restarted supervisor finds what it has to run. A child that ends, normally or not, while it is wanted is started again
//! after a wait; too many restarts of one child fail the supervisor, and then its own supervisor decides. Children that are no
//! longer wanted, or wanted in another version, are stopped.

pub mod restarts;

use crate::mailbox::{Letter, Mailbox};
use crate::task::Task;
use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use metrics::counter;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use restarts::{RestartPolicy, Restarts};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// Starts a child linked to the given supervisor.
pub type Factory =
    Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

/// How to start a child. Another version of a running child replaces it.
#[derive(Clone)]
pub struct ChildSpec {
    /// Compared for equality only.
    pub version: u64,
    /// Its factory.
    pub start: Factory,
}

/// Children by name.
pub type Children = BTreeMap<Arc<str>, ChildSpec>;

/// What a supervisor shall run; set by others.
pub struct Wanted {
    /// Another one for every set, so that a supervisor of another set is another version.
    id: u64,
    children: ArcSwap<Children>,
    door: ArcSwapOption<Mailbox<Msg>>,
    woken: AtomicBool,
}

impl Default for Wanted {
    fn default() -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        Self {
            id: IDS.fetch_add(1, Relaxed),
            children: ArcSwap::default(),
            door: ArcSwapOption::empty(),
            woken: AtomicBool::new(false),
        }
    }
}

impl Wanted {
    /// Replaces the wanted set.
    pub fn set(&self, children: Children) {
        self.children.store(Arc::new(children));
        let door = self.door.load();
        if let Some(door) = &*door
            && !self.woken.swap(true, SeqCst)
        {
            door.send(Msg::Reconcile);
        }
    }

    /// A child spec for a supervisor that runs this set. `kind` labels its children's restarts.
    pub fn supervisor(self: &Arc<Self>, kind: &'static str) -> ChildSpec {
        let wanted = Arc::clone(self);
        ChildSpec {
            version: self.id,
            start: Arc::new(move |parent| {
                let supervisor = Supervisor::new(kind, Arc::clone(&wanted));
                Box::pin(async move {
                    let (child, _) = Supervisor::spawn_linked(None, supervisor, (), parent).await?;
                    Ok(child.get_cell())
                })
            }),
        }
    }
}

/// What a supervisor is told.
pub enum Msg {
    /// The wanted set changed.
    Reconcile,
    /// A child's wait is over.
    Restart(Arc<str>),
}

/// See the module's documentation.
pub struct Supervisor {
    kind: &'static str,
    wanted: Arc<Wanted>,
    policy: RestartPolicy,
}

/// Running and waiting children.
#[derive(Default)]
pub struct State {
    children: BTreeMap<Arc<str>, Child>,
}

struct Child {
    version: u64,
    life: Life,
    restarts: Restarts,
}

enum Life {
    Running(ActorCell),
    Waiting(#[allow(dead_code, reason = "held for its drop: it ends the wait")] Task),
    /// Between its end and what is decided about it.
    Ended,
}

impl Supervisor {
    /// A supervisor for `wanted` with the usual restart policy.
    pub fn new(kind: &'static str, wanted: Arc<Wanted>) -> Self {
        Self {
            kind,
            wanted,
            policy: RestartPolicy::default(),
        }
    }

    async fn reconcile(
        &self,
        myself: &ActorRef<Letter<Msg>>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let wanted = self.wanted.children.load_full();
        state.children.retain(|name, child| {
            let keep = wanted
                .get(name)
                .is_some_and(|spec| spec.version == child.version);
            if !keep && let Life::Running(cell) = &child.life {
                cell.stop(None);
            }
            keep
        });
        for (name, spec) in wanted.iter() {
            if !state.children.contains_key(name) {
                self.start(myself, state, name, spec).await?;
            }
        }
        Ok(())
    }

    async fn start(
        &self,
        myself: &ActorRef<Letter<Msg>>,
        state: &mut State,
        name: &Arc<str>,
        spec: &ChildSpec,
    ) -> Result<(), ActorProcessingErr> {
        let restarts = state
            .children
            .remove(name)
            .map(|c| c.restarts)
            .unwrap_or_default();
        let started = (spec.start)(myself.get_cell()).await;
        let failure = started.as_ref().err().map(ToString::to_string);
        let life = started.map_or(Life::Ended, Life::Running);
        let version = spec.version;
        state.children.insert(
            Arc::clone(name),
            Child {
                version,
                life,
                restarts,
            },
        );
        match failure {
            Some(why) => self.ended(myself, state, name, &why),
            None => Ok(()),
        }
    }

    /// A child that is wanted has ended: waits, or gives up.
    fn ended(
        &self,
        myself: &ActorRef<Letter<Msg>>,
        state: &mut State,
        name: &Arc<str>,
        why: &str,
    ) -> Result<(), ActorProcessingErr> {
        let Some(child) = state.children.get_mut(name) else {
            return Ok(());
        };
        counter!("quorate_actor_restarts_total", "kind" => self.kind).increment(1);
        let Some(wait) = child.restarts.next(&self.policy, quorate_routing::now_ms()) else {
            tracing::error!(kind = self.kind, child = %name, why, "actor ends again and again: its supervisor gives up");
            return Err(format!("{} {name} keeps ending: {why}", self.kind).into());
        };
        tracing::warn!(kind = self.kind, child = %name, why, ?wait, "actor ended unasked, restarting");
        let door = Mailbox::new(myself.clone(), "supervisor");
        let name = Arc::clone(name);
        child.life = Life::Waiting(Task::spawn(async move {
            tokio::time::sleep(wait).await;
            door.send(Msg::Restart(name));
        }));
        Ok(())
    }
}

impl State {
    fn name_of(&self, id: ActorId) -> Option<Arc<str>> {
        self.children
            .iter()
            .find(|(_, child)| matches!(&child.life, Life::Running(cell) if cell.get_id() == id))
            .map(|(name, _)| Arc::clone(name))
    }
}

impl Actor for Supervisor {
    type Msg = Letter<Msg>;
    type State = State;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (): (),
    ) -> Result<State, ActorProcessingErr> {
        let door = Mailbox::new(myself, "supervisor");
        self.wanted.door.store(Some(Arc::new(door.clone())));
        self.wanted.woken.store(true, SeqCst);
        door.send(Msg::Reconcile);
        Ok(State::default())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        letter: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match &letter.body {
            Msg::Reconcile => {
                // Cleared before the set is read: whoever sets it later wakes this again.
                self.wanted.woken.store(false, SeqCst);
                self.reconcile(&myself, state).await
            }
            Msg::Restart(name) => {
                let wanted = self.wanted.children.load_full();
                let waits = matches!(
                    state.children.get(name),
                    Some(Child {
                        life: Life::Waiting(_),
                        ..
                    })
                );
                match wanted.get(name) {
                    Some(spec) if waits => self.start(&myself, state, name, spec).await,
                    _ => Ok(()),
                }
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, why) = match event {
            SupervisionEvent::ActorFailed(cell, why) => (cell, why.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, why) => {
                (cell, why.unwrap_or_else(|| "it ended".to_owned()))
            }
            _ => return Ok(()),
        };
        match state.name_of(cell.get_id()) {
            Some(name) => self.ended(&myself, state, &name, &why),
            // Stopped on purpose.
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
