//! The discovery actor of one pool: looks at the source again and again and proposes what differs.

use crate::catalog::Declared;
use crate::discovery::reconcile::{Missing, reconcile};
use crate::discovery::{Answer, Declare, DeclareError, Source};
use crate::events::PlaneEvent;
use crate::mailbox::{Letter, Mailbox};
use crate::shared::Shared;
use crate::supervise::ChildSpec;
use crate::task::Task;
use metrics::counter;
use quorate_proto::v1;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Longest time for the cluster to take the changes.
const APPLY_TIMEOUT: Duration = Duration::from_secs(15);

/// What the actor is told.
pub enum Msg {
    /// A look ended; the source comes back with it.
    Looked(Source, Result<Answer, String>),
    /// The proposal was answered.
    Applied(Result<(), DeclareError>),
    /// A child task panicked.
    Panicked,
}

/// See the module's documentation.
pub struct Discovery {
    shared: Arc<Shared>,
    pool: Arc<str>,
    spec: v1::PoolSpec,
    declared: watch::Receiver<Declared>,
    declare: Arc<dyn Declare>,
}

/// Between two looks.
pub struct State {
    door: Mailbox<Msg>,
    mark: String,
    interval: Duration,
    missing: Missing,
    /// What was last complained of, so that the same trouble is told once.
    trouble: Vec<String>,
    _look: Task,
    apply: Option<Task>,
}

/// Child spec of a pool's discovery.
pub fn spec(
    shared: Arc<Shared>,
    pool: Arc<str>,
    spec: v1::PoolSpec,
    declared: watch::Receiver<Declared>,
    declare: Arc<dyn Declare>,
    version: u64,
) -> ChildSpec {
    ChildSpec {
        version,
        start: Arc::new(move |parent| {
            let actor = Discovery {
                shared: Arc::clone(&shared),
                pool: Arc::clone(&pool),
                spec: spec.clone(),
                declared: declared.clone(),
                declare: Arc::clone(&declare),
            };
            Box::pin(async move {
                let (child, _) = Discovery::spawn_linked(None, actor, (), parent).await?;
                Ok(child.get_cell())
            })
        }),
    }
}

impl Actor for Discovery {
    type Msg = Letter<Msg>;
    type State = State;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (): (),
    ) -> Result<State, ActorProcessingErr> {
        let (source, interval) =
            Source::of(&self.pool, &self.spec).ok_or("the pool has no discovery")?;
        let door = Mailbox::new(myself, "discovery");
        Ok(State {
            mark: source.mark(&self.pool),
            interval,
            missing: Missing::default(),
            trouble: Vec::new(),
            _look: look(&door, source, Duration::ZERO),
            apply: None,
            door,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        mut letter: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match std::mem::replace(&mut letter.body, Msg::Panicked) {
            Msg::Looked(source, result) => {
                self.looked(&source, result, state);
                state._look = look(&state.door, source, state.interval);
            }
            Msg::Applied(result) => {
                state.apply = None;
                if let Err(e) = result {
                    self.complain(
                        state,
                        vec![format!("the cluster did not take all changes: {e}")],
                    );
                }
            }
            Msg::Panicked => return Err("a child task panicked".into()),
        }
        Ok(())
    }
}

impl Discovery {
    fn looked(&self, source: &Source, result: Result<Answer, String>, state: &mut State) {
        let answer = match result {
            Ok(answer) => answer,
            Err(why) => {
                counter!("quorate_discovery_errors_total").increment(1);
                return self.complain(state, vec![why]);
            }
        };
        // While changes are under way the declared state is about to move: the next look compares.
        if state.apply.is_some() {
            return;
        }
        let patience = source.patience(&answer);
        let plan = {
            let declared = self.declared.borrow();
            reconcile(
                &answer,
                &declared.endpoints,
                &self.pool,
                &state.mark,
                patience,
                &mut state.missing,
            )
        };
        let mut trouble = answer.problems;
        trouble.extend(plan.conflicts);
        self.complain(state, trouble);
        if !plan.ops.is_empty() {
            tracing::info!(pool = %self.pool, changes = plan.ops.len(), "discovery proposes changes");
            let (declare, door, panicked) = (
                Arc::clone(&self.declare),
                state.door.clone(),
                state.door.clone(),
            );
            let work = async move {
                let applied = tokio::time::timeout(APPLY_TIMEOUT, declare.apply(plan.ops))
                    .await
                    .unwrap_or_else(|_| Err(DeclareError("no answer from the cluster".into())));
                door.send(Msg::Applied(applied));
            };
            state.apply = Some(Task::guarded(work, move || panicked.send(Msg::Panicked)));
        }
    }

    fn complain(&self, state: &mut State, trouble: Vec<String>) {
        if trouble == state.trouble {
            return;
        }
        for why in &trouble {
            tracing::warn!(pool = %self.pool, why, "discovery has trouble");
            self.shared.tell(PlaneEvent::Discovery {
                pool: Arc::clone(&self.pool),
                why: why.clone(),
            });
        }
        state.trouble = trouble;
    }
}

fn look(door: &Mailbox<Msg>, mut source: Source, wait: Duration) -> Task {
    let (door, panicked) = (door.clone(), door.clone());
    let work = async move {
        tokio::time::sleep(wait).await;
        let result = source.look().await;
        door.send(Msg::Looked(source, result));
    };
    Task::guarded(work, move || panicked.send(Msg::Panicked))
}
