//! The endpoint's actor, on the owner node only. It starts child tasks, takes their results as messages and publishes what
//! [`Vitals`] make of them; it waits for nothing itself.

use crate::endpoint::health::{Probe, Vitals};
use crate::endpoint::io::Io;
use crate::engine::{models, scrape::Scrape};
use crate::events::PlaneEvent;
use crate::exchange::Report;
use crate::mailbox::{Letter, Mailbox};
use crate::shared::{Entry, Shared};
use crate::supervise::ChildSpec;
use crate::task::Task;
use quorate_proto::v1::Engine;
use quorate_routing::{
    AdapterLoad, BreakerState, CacheShape, Health, LoadFigures, ServedModel, now_ms,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// Time between reads of the model list; adapters come and go.
const MODELS_EVERY: Duration = Duration::from_secs(5);
/// The same while the list is not known.
const MODELS_RETRY: Duration = Duration::from_secs(1);

/// What the actor is told.
pub enum Msg {
    /// A health probe ended.
    Probed(Probe),
    /// A read of the metrics page ended.
    Scraped(Result<Scrape, String>),
    /// A read of the model list ended.
    Listed(Result<Vec<ServedModel>, String>),
    /// A request of the owner's own ended.
    Proved(Result<(), String>),
    /// A node's breaker opened.
    Suspect,
    /// A child task panicked.
    Panicked,
}

/// See the module's documentation.
pub struct EndpointActor {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
}

/// What it knows, and its child tasks.
pub struct State {
    door: Mailbox<Msg>,
    io: Arc<Io>,
    vitals: Vitals,
    /// What was told of it last.
    told: Health,
    /// It was asked for its models since it answers: ready and without a known model is then what it is.
    asked: bool,
    load: LoadFigures,
    adapter_load: AdapterLoad,
    cache: Option<CacheShape>,
    read_at: u64,
    engine: Engine,
    listed: Vec<ServedModel>,
    adapters: Vec<String>,
    /// Trouble with pages, shown while the endpoint is otherwise well.
    scrape_error: String,
    models_error: String,
    probe: Wait,
    probe_again: bool,
    _scrape: Task,
    models: Wait,
    proof: Option<Task>,
}

/// A child task that waits and then works.
struct Wait {
    works: Arc<AtomicBool>,
    _task: Task,
}

/// Child spec of an endpoint's actor.
pub fn spec(shared: Arc<Shared>, entry: Arc<Entry>) -> ChildSpec {
    ChildSpec {
        version: entry.version,
        start: Arc::new(move |parent| {
            let actor = EndpointActor {
                shared: Arc::clone(&shared),
                entry: Arc::clone(&entry),
            };
            Box::pin(async move {
                let (child, _) = EndpointActor::spawn_linked(None, actor, (), parent).await?;
                Ok(child.get_cell())
            })
        }),
    }
}

impl Actor for EndpointActor {
    type Msg = Letter<Msg>;
    type State = State;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (): (),
    ) -> Result<State, ActorProcessingErr> {
        let entry = &self.entry;
        let door = Mailbox::new(myself, "endpoint");
        let io = Arc::new(Io::new(
            entry.endpoint.spec(),
            &entry.probe,
            self.shared.tls.clone(),
        ));
        let facts = entry.facts();
        let engine = match entry.probe.engine {
            Engine::Unspecified => facts.engine,
            engine => engine,
        };
        let (load, age) = entry.endpoint.load(now_ms()).unzip();
        // Spread over the interval, so that a node that takes over many endpoints does not read all pages at once.
        let first_scrape = entry.probe.health.metrics_interval.mul_f64(fastrand::f64());
        entry.suspected.store(false, SeqCst);
        entry.door.store(Some(Arc::new(door.clone())));
        Ok(State {
            vitals: Vitals::new(
                entry.probe.health.clone(),
                entry.endpoint.health(),
                facts.stalled,
                now_ms(),
            ),
            told: entry.endpoint.health(),
            asked: false,
            load: load.unwrap_or_default(),
            adapter_load: AdapterLoad::clone(&entry.endpoint.adapter_load()),
            cache: entry.endpoint.cache_shape(),
            read_at: age.map_or(0, |age| now_ms().saturating_sub(age)),
            engine,
            listed: entry.endpoint.models().to_vec(),
            adapters: Vec::new(),
            scrape_error: String::new(),
            models_error: String::new(),
            probe: probe(&door, &io, engine, Duration::ZERO),
            probe_again: false,
            _scrape: scrape(&door, &io, first_scrape),
            models: list(&door, &io, Duration::ZERO),
            proof: None,
            door,
            io,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        mut letter: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match std::mem::replace(&mut letter.body, Msg::Suspect) {
            Msg::Probed(result) => self.probed(result, state),
            Msg::Scraped(result) => self.scraped(result, state),
            Msg::Listed(result) => {
                let next = state.listed(result);
                state.asked = state.vitals.health() == Health::Ready;
                state.models = list(&state.door, &state.io, next);
            }
            Msg::Proved(result) => {
                state.proof = None;
                match result {
                    Ok(()) => state.vitals.proved(),
                    Err(why) => {
                        tracing::info!(endpoint = %self.entry.key.name, why, "still stalled")
                    }
                }
            }
            Msg::Suspect => self.suspected(state),
            Msg::Panicked => return Err("a child task panicked".into()),
        }
        self.conclude(state);
        Ok(())
    }
}

impl EndpointActor {
    fn probed(&self, result: Probe, state: &mut State) {
        let now = now_ms();
        let breaker_open = self.entry.endpoint.breaker_state(now) != BreakerState::Closed;
        state.vitals.probed(result, breaker_open, now);
        let again = std::mem::take(&mut state.probe_again);
        let wait = if again {
            Duration::ZERO
        } else {
            // Not in step with the other endpoints, and never later than the policy says.
            state
                .vitals
                .next_probe(now)
                .mul_f64(1.0 - 0.1 * fastrand::f64())
        };
        state.probe = probe(&state.door, &state.io, state.engine, wait);
    }

    fn scraped(&self, result: Result<Scrape, String>, state: &mut State) {
        state._scrape = scrape(
            &state.door,
            &state.io,
            self.entry.probe.health.metrics_interval,
        );
        match result {
            Ok(page) => {
                state.load = page.load;
                state.adapter_load = page.adapter_load;
                state.cache = page.cache.or(state.cache);
                state.read_at = now_ms();
                state.engine = page.engine;
                state.scrape_error.clear();
                if let Some(tokens) = page.tokens {
                    state.vitals.counted(tokens, now_ms());
                }
                if let Some(sleeping) = page.sleeping.filter(|_| state.io.sleep_from_metrics()) {
                    state.vitals.slept(sleeping);
                }
                let unseen = |a: &String| {
                    !state.adapters.contains(a) && !state.listed.iter().any(|m| m.id == **a)
                };
                if page.adapters.iter().any(unseen) {
                    state.list_now();
                }
                state.adapters = page.adapters;
            }
            // The figures only grow stale; the endpoint is no worse for it.
            Err(why) => state.scrape_error = why,
        }
    }

    fn suspected(&self, state: &mut State) {
        self.entry.suspected.store(false, SeqCst);
        state.vitals.suspect(now_ms());
        if state.probe.works.load(SeqCst) {
            state.probe_again = true;
        } else {
            state.probe = probe(&state.door, &state.io, state.engine, Duration::ZERO);
        }
    }

    /// Looks at what is in flight, asks for a proof if one is wanted, and tells everybody.
    fn conclude(&self, state: &mut State) {
        let flights = self.shared.flights(&self.entry);
        state.vitals.flights(&flights, now_ms());
        if !state.vitals.wants_proof() {
            state.proof = None;
        } else if state.proof.is_none() {
            let model = state
                .listed
                .iter()
                .find(|m| m.parent.is_none())
                .map(|m| m.id.clone());
            let wait = self.entry.probe.health.unhealthy_interval;
            state.proof = Some(prove(&state.door, &state.io, model, wait));
        }
        let health = state.health();
        let before = std::mem::replace(&mut state.told, health);
        let error = state.vitals.error();
        // Published before it is told, so that whoever hears of it finds it so.
        self.shared
            .report(&self.entry, state.report(health, error.clone()));
        if health != before {
            let name = &self.entry.key.name;
            match health {
                Health::Ready => tracing::info!(endpoint = %name, "endpoint is ready"),
                _ => tracing::warn!(endpoint = %name, why = error, "endpoint is not ready"),
            }
            self.shared.tell(PlaneEvent::Health {
                endpoint: Arc::clone(name),
                health,
                why: error,
            });
        }
        // It may have come back with other models.
        if state.vitals.health() != Health::Ready {
            state.asked = false;
        } else if !state.asked {
            state.list_now();
        }
    }
}

impl State {
    /// Takes a model list and says when to read the next one.
    fn listed(&mut self, result: Result<Vec<ServedModel>, String>) -> Duration {
        match result {
            Ok(models) => {
                let known = !models.is_empty();
                // Some engines stamp the list with the time of the call: that is no news.
                if !models::same(&self.listed, &models) {
                    self.listed = models;
                }
                self.models_error.clear();
                if known { MODELS_EVERY } else { MODELS_RETRY }
            }
            // What it served before stands.
            Err(why) => {
                self.models_error = why;
                if self.listed.is_empty() {
                    MODELS_RETRY
                } else {
                    MODELS_EVERY
                }
            }
        }
    }

    /// What may be told. Ready comes with its models, if the engine lists any: whoever hears of it can use it by name.
    fn health(&self) -> Health {
        match self.vitals.health() {
            Health::Ready if self.listed.is_empty() && !self.asked => self.told,
            health => health,
        }
    }

    fn list_now(&mut self) {
        if !self.models.works.load(SeqCst) {
            self.models = list(&self.door, &self.io, Duration::ZERO);
        }
    }

    fn report(&self, health: Health, error: String) -> Report {
        let trouble = [error, self.scrape_error.clone(), self.models_error.clone()];
        Report {
            health,
            load: self.load,
            adapters: self.adapter_load.clone(),
            cache: self.cache,
            read_at: self.read_at,
            // Adapters alone would hide the base model, whose name is not known.
            models: match self.listed.is_empty() {
                true => Vec::new(),
                false => models::with_adapters(self.listed.clone(), &self.adapters),
            },
            last_error: trouble
                .into_iter()
                .find(|t| !t.is_empty())
                .unwrap_or_default(),
            // Not this actor's to know.
            conditions: Vec::new(),
            engine: self.engine,
            stalled: self.vitals.is_stalled(),
        }
    }
}

/// Starts a child task: waits, works, sends what comes out.
fn after<F>(door: &Mailbox<Msg>, wait: Duration, work: F) -> Wait
where
    F: Future<Output = Msg> + Send + 'static,
{
    let works = Arc::new(AtomicBool::new(false));
    let (result, panicked) = (door.clone(), door.clone());
    let begins = Arc::clone(&works);
    let task = async move {
        tokio::time::sleep(wait).await;
        begins.store(true, SeqCst);
        result.send(work.await);
    };
    Wait {
        works,
        _task: Task::guarded(task, move || panicked.send(Msg::Panicked)),
    }
}

fn probe(door: &Mailbox<Msg>, io: &Arc<Io>, engine: Engine, wait: Duration) -> Wait {
    let io = Arc::clone(io);
    after(
        door,
        wait,
        async move { Msg::Probed(io.probe(engine).await) },
    )
}

fn list(door: &Mailbox<Msg>, io: &Arc<Io>, wait: Duration) -> Wait {
    let io = Arc::clone(io);
    after(door, wait, async move { Msg::Listed(io.models().await) })
}

fn scrape(door: &Mailbox<Msg>, io: &Arc<Io>, wait: Duration) -> Task {
    let io = Arc::clone(io);
    after(door, wait, async move { Msg::Scraped(io.scrape().await) })._task
}

fn prove(door: &Mailbox<Msg>, io: &Arc<Io>, model: Option<String>, wait: Duration) -> Task {
    let io = Arc::clone(io);
    after(
        door,
        wait,
        async move { Msg::Proved(io.prove(model).await) },
    )
    ._task
}
