//! The pool's dispatcher: knows what waits on every router and gives out every free place. Pure: messages in, messages out.

use crate::config::FlowControlConfig;
use crate::flow::ceiling::{self, Rank};
use crate::flow::core::{bands, is_open, rank, template};
use crate::flow::eviction::needed;
use crate::flow::order::{self, OrderKey, Times};
use crate::flow::queue::{Held, Item, Queue, Ticket};
use crate::flow::saturation::{self, Budget, EndpointLoad, Load};
use crate::flow::share::account::Account;
use crate::flow::share::message::{Demand, Grant, Waiting};
use crate::flow::upkeep::half_life;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// A router whose stream ended keeps its places for this long (µs): it may be back at once with its requests still running.
const GRACE: u64 = 300_000;
/// A dispatcher waits this long (µs) at most for what a router that is new to it has in flight.
const REBUILD: u64 = 1_000_000;
/// Nothing has waited for this long (µs): free places are handed out to be used without asking.
const CALM: u64 = 10_000;
/// Routers hear from the dispatcher at least this often (µs).
const REMIND: u64 = 200_000;
/// Bands beyond the configured ones; requests of more priorities are treated as of priority 0.
const MOST_EXTRA_BANDS: usize = 256;

/// A request that waits on some router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remote {
    router: u64,
    id: u64,
    tokens: u64,
}

/// See the module's documentation. Times are microseconds of the caller's clock.
#[derive(Debug)]
pub struct Dispatcher {
    config: FlowControlConfig,
    queue: Queue<Remote>,
    tickets: HashMap<(u64, u64), Ticket>,
    accounts: BTreeMap<u64, Account>,
    endpoints: Vec<EndpointLoad>,
    budget: Budget,
    /// Routers that may have requests in flight that are not known here, and since when their word is awaited: those that had a part
    /// in the pool when this one took over, and those that came from a part of the network with a dispatcher of its own.
    awaited: BTreeMap<u64, u64>,
    /// When something last waited.
    busy: u64,
    arrivals: u64,
    cycles: BTreeMap<i32, u64>,
}

impl Dispatcher {
    /// A dispatcher that takes over at `now`. It grants nothing before it has heard of all `routers`, or waited long enough.
    pub fn new(
        config: FlowControlConfig,
        routers: impl IntoIterator<Item = u64>,
        now: u64,
    ) -> Self {
        Self {
            queue: Queue::new(&bands(&config)),
            tickets: HashMap::new(),
            accounts: BTreeMap::new(),
            endpoints: Vec::new(),
            budget: Budget::default(),
            awaited: routers.into_iter().map(|router| (router, now)).collect(),
            busy: now,
            arrivals: 0,
            cycles: BTreeMap::new(),
            config,
        }
    }

    /// Another configuration. What waits is put in order anew.
    pub fn reconfigure(&mut self, config: FlowControlConfig, now: u64) {
        if self.config == config {
            return;
        }
        // Orders by other times than those that were kept need the routers' word again.
        self.queue = Queue::new(&bands(&config));
        self.tickets.clear();
        self.cycles.clear();
        self.config = config;
        for account in self.accounts.values_mut() {
            account.renew();
        }
        let endpoints = std::mem::take(&mut self.endpoints);
        self.set_endpoints(endpoints, now);
    }

    /// The pool's usable endpoints.
    pub fn set_endpoints(&mut self, endpoints: Vec<EndpointLoad>, now: u64) {
        let in_flight = self
            .accounts
            .values()
            .fold(Load::default(), |sum, a| sum + a.in_flight());
        self.budget = saturation::budget(&self.config.saturation, &endpoints, in_flight);
        self.endpoints = endpoints;
        self.plan(now);
    }

    /// What routers may have in flight in all, at most, whatever is on its way.
    pub fn given_out(&self) -> Load {
        self.accounts
            .values()
            .fold(Load::default(), |sum, a| sum + a.holds())
    }

    /// What waits on all routers.
    pub fn held(&self) -> Held {
        self.queue.held()
    }

    /// A router came. It may have been on its own or have had another dispatcher, so nothing more is given out before it has said
    /// what it has in flight, or long enough has passed.
    pub fn joined(&mut self, router: u64, now: u64) {
        self.awaited.entry(router).or_insert(now);
    }

    /// A router's word.
    pub fn demand(&mut self, router: u64, demand: Demand, now: u64) {
        self.awaited.remove(&router);
        if demand.first {
            self.forget_waiting(router);
            self.accounts.insert(router, Account::open(&demand));
        }
        match self.accounts.get_mut(&router) {
            Some(account) if account.is(&demand) => account.hear(&demand),
            _ => {
                self.forget_waiting(router);
                self.accounts.insert(router, Account::adopt(&demand));
                return;
            }
        }
        for id in &demand.gone {
            self.left(router, *id);
        }
        for waiting in &demand.waiting {
            self.wait(router, waiting, now);
        }
        let half_life = half_life(&self.config);
        for (flow, tokens) in &demand.served {
            self.queue
                .service
                .add_weighted(flow, *tokens, half_life, now);
        }
        self.plan(now);
    }

    fn wait(&mut self, router: u64, waiting: &Waiting, now: u64) {
        let index = match self.queue.band(waiting.priority) {
            Some(index) => index,
            None if self.queue.bands().len() >= self.config.bands.len() + MOST_EXTRA_BANDS => {
                match self.queue.band(0) {
                    Some(index) => index,
                    None => return,
                }
            }
            None => self
                .queue
                .add_band(template(&self.config, waiting.priority)),
        };
        let at = |until: i64| now.saturating_add_signed(until);
        let times = Times {
            arrived: now.saturating_sub(waiting.age),
            deadline: waiting.deadline_in.map(at),
            first_token_due: waiting.first_token_in.map(at),
        };
        let Some(policy) = self.queue.bands().get(index).map(|b| b.config().ordering) else {
            return;
        };
        self.arrivals += 1;
        let order: OrderKey = order::key(policy, times, self.arrivals);
        let item = Item {
            arrived: times.arrived,
            bytes: waiting.bytes,
            value: Remote {
                router,
                id: waiting.id,
                tokens: waiting.tokens,
            },
        };
        // The same id twice would lose the first one's ticket.
        self.left(router, waiting.id);
        if let Some(ticket) = self.queue.push(index, &waiting.flow, order, item) {
            if let Some(account) = self.accounts.get_mut(&router) {
                account.waits(ticket.priority, waiting.bytes);
            }
            self.tickets.insert((router, waiting.id), ticket);
        }
    }

    fn left(&mut self, router: u64, id: u64) {
        let Some(ticket) = self.tickets.remove(&(router, id)) else {
            return;
        };
        if let Some(item) = self.queue.remove(&ticket)
            && let Some(account) = self.accounts.get_mut(&router)
        {
            account.left(ticket.priority, item.bytes);
        }
    }

    fn forget_waiting(&mut self, router: u64) {
        let queue = &mut self.queue;
        self.tickets.retain(|(of, _), ticket| {
            if *of == router {
                queue.remove(ticket);
            }
            *of != router
        });
    }

    /// A router's stream ended: what waited there is lost, and what it had in flight soon is.
    pub fn lost(&mut self, router: u64, now: u64) {
        self.forget_waiting(router);
        self.awaited.remove(&router);
        if let Some(account) = self.accounts.get_mut(&router) {
            account.lost(now);
        }
        self.plan(now);
    }

    /// Grants to a router may have been lost on the way: it shall tell everything again.
    pub fn renew(&mut self, router: u64) {
        if let Some(account) = self.accounts.get_mut(&router) {
            account.renew();
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now: u64) {
        let gone: Vec<u64> = self
            .accounts
            .iter()
            .filter(|(_, a)| {
                a.lost_since()
                    .is_some_and(|at| now.saturating_sub(at) >= GRACE)
            })
            .map(|(router, _)| *router)
            .collect();
        for router in gone {
            self.accounts.remove(&router);
        }
        self.awaited
            .retain(|_, since| now.saturating_sub(*since) < REBUILD);
        self.plan(now);
    }

    /// Gives out what is free, by the rules that a router alone follows.
    fn plan(&mut self, now: u64) {
        if self.queue.held().requests > 0 {
            self.busy = now;
        }
        if !self.awaited.is_empty() {
            return;
        }
        let mut given = self.given_out();
        while let Some(index) = self.queue.first_band() {
            let rank = rank(&self.queue, index);
            let saturation = self.budget.saturation(given);
            if !is_open(&self.config.usage_limit, rank, saturation, &mut self.cycles) {
                self.make_room(rank);
                break;
            }
            let Some((ticket, item)) = self.queue.pop(index, now) else {
                break;
            };
            let remote = item.value;
            self.tickets.remove(&(remote.router, remote.id));
            if let Some(account) = self.accounts.get_mut(&remote.router) {
                account.left(ticket.priority, item.bytes);
                account.dispatch(remote.id, remote.tokens);
                given = given
                    + Load {
                        requests: 1,
                        tokens: remote.tokens,
                    };
            }
        }
        let limit = self.budget.limit(1.0);
        let over = given.requests > limit.requests || given.tokens > limit.tokens;
        if over || self.queue.held().requests > 0 {
            self.take_back();
        } else if now.saturating_sub(self.busy) >= CALM {
            self.hand_out(given);
        }
    }

    /// A band with work is blocked: running requests of lower bands give way, on whichever router they are, the lowest first.
    fn make_room(&mut self, rank: Rank) {
        if !self.config.eviction || self.budget.endpoints == 0 {
            return;
        }
        let all = self.accounts.values();
        let (busy, revoking) = all.fold((Load::default(), 0u64), |(busy, revoking), a| {
            (busy + a.busy(), revoking.saturating_add(a.revoking()))
        });
        let ceiling = ceiling::hard(&self.config.usage_limit, rank);
        let saturation = self.budget.saturation(busy);
        for _ in 0..needed(saturation, ceiling, busy.requests, revoking) {
            let victim = self
                .accounts
                .values_mut()
                .filter(|a| a.lost_since().is_none())
                .filter_map(|a| Some((a.lowest_revocable()?, a)))
                .min_by_key(|((priority, count), _)| (*priority, Reverse(*count)));
            match victim {
                Some(((priority, _), account)) if priority < rank.priority => {
                    account.revoke(priority);
                }
                _ => break,
            }
        }
    }

    /// Somebody waits, or there are fewer places than before: those that are not used come back.
    fn take_back(&mut self) {
        for account in self.accounts.values_mut() {
            account.stand(None);
        }
    }

    /// Nobody waits: free places go to the routers, more to those that have more in flight. Routers that have some keep them.
    fn hand_out(&mut self, given: Load) {
        let limit = self.budget.limit(1.0);
        let free = limit.left_after(given);
        let weight = |a: &Account| a.in_flight().requests + 1;
        let wants = |a: &Account| a.lost_since().is_none() && a.standing().is_none();
        let routers = self.accounts.len() as u64;
        let all = self.accounts.values();
        let weights: u64 = all.filter(|a| wants(a)).map(weight).sum();
        if weights == 0 {
            return;
        }
        if free.requests < 2 * routers || free.tokens == 0 {
            // Places that some router does not use are better off divided anew.
            let unused = |a: &Account| {
                let standing = a.standing().unwrap_or_default();
                standing.requests.saturating_sub(a.in_flight().requests)
            };
            let spare = self
                .accounts
                .values()
                .fold(free.requests, |sum, a| sum.saturating_add(unused(a)));
            if spare >= 4 * routers && free.tokens > 0 {
                self.take_back();
            }
            return;
        }
        for account in self.accounts.values_mut().filter(|a| wants(a)) {
            let share = |free: u64| match free {
                u64::MAX => u64::MAX,
                free => {
                    let part = u128::from(free) * u128::from(weight(account)) / u128::from(weights);
                    u64::try_from(part).unwrap_or(u64::MAX)
                }
            };
            let part = Load {
                requests: share(free.requests),
                tokens: share(free.tokens),
            };
            let standing = account.holds() + part;
            account.stand(Some(standing));
        }
    }

    /// What is to be sent: to each router that has something new, or has heard nothing for a while.
    pub fn grants(&mut self, now: u64) -> Vec<(u64, Grant)> {
        let given = self.given_out();
        let all: BTreeMap<i32, Held> = self
            .queue
            .bands()
            .iter()
            .map(|b| (b.priority(), b.held()))
            .collect();
        let mut grants = Vec::new();
        for (router, account) in &mut self.accounts {
            let holds = account.holds();
            let elsewhere = Load {
                requests: given.requests.saturating_sub(holds.requests),
                tokens: given.tokens.saturating_sub(holds.tokens),
            };
            let queued = account.queued_elsewhere(&all);
            if let Some(grant) = account.grant(elsewhere, queued, REMIND, now) {
                grants.push((*router, grant));
            }
        }
        grants
    }
}
