//! A request's place on an endpoint, and what is reported of the request through it.

use super::{Endpoint, PromptWork};
use crate::turns::Turn;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// How a request to an endpoint failed, as far as it says something about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: refused, unreachable, TLS failed, or the connect timeout passed.
    Connect,
    /// The connection broke before or within the response.
    Reset,
    /// 502, 503 or 504.
    Status(u16),
    /// No response head within the first-byte timeout.
    FirstByteTimeout,
    /// No byte of the body within the idle timeout.
    IdleTimeout,
}

/// One request's place on an endpoint: counted from the pick until this is dropped. The gateway tells it how the request goes.
///
/// Its prompt tokens count until the first byte of the answer's body: then the prompt has been computed. Places that it holds on
/// other endpoints for that time only (where the prompt is computed, or its images) go at the same moment.
#[derive(Debug)]
pub struct Reservation {
    endpoint: Arc<Endpoint>,
    trial: bool,
    /// Prompt tokens still counted on the endpoint.
    tokens: AtomicU64,
    /// When it was taken, and what the engine does until the first token; `None`: its answer says nothing of the engine's speed.
    measured: Option<(u64, PromptWork)>,
    /// The answer has begun.
    begun: AtomicBool,
    companions: Mutex<Vec<Reservation>>,
}

impl Reservation {
    /// The place that [`Endpoint::reserve_with`] has counted in.
    pub(super) fn new(endpoint: &Arc<Endpoint>, trial: bool, tokens: u64) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            trial,
            tokens: AtomicU64::new(tokens),
            measured: None,
            begun: AtomicBool::new(false),
            companions: Mutex::new(Vec::new()),
        }
    }

    /// Keeps a place on another endpoint until the answer begins or this place ends, whichever is first.
    pub fn accompany(&self, other: Reservation) {
        let mut companions = self.companions.lock();
        // The answer may have begun meanwhile: then there is nothing to wait for.
        if !self.begun.load(Relaxed) {
            companions.push(other);
        }
    }

    /// From `now` on the endpoint does this work for the prompt, and the first byte of the answer tells that it has.
    pub fn measure(&mut self, now: u64, work: PromptWork) {
        self.measured = Some((now, work));
    }

    /// Prompt tokens that it counts on the endpoint now.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Relaxed)
    }

    fn release_tokens(&self) {
        let tokens = self.tokens.swap(0, Relaxed);
        if tokens > 0 {
            self.endpoint.hot.local_tokens.fetch_sub(tokens, Relaxed);
            self.endpoint.tell_in_flight(0);
        }
    }

    #[cold]
    fn begin(&self, now: u64) {
        if let Some((from, work)) = self.measured {
            self.endpoint.rates.observe(work, now.saturating_sub(from));
        }
        let companions = {
            let mut companions = self.companions.lock();
            self.begun.store(true, Relaxed);
            std::mem::take(&mut *companions)
        };
        drop(companions);
        self.release_tokens();
    }

    /// The endpoint that was picked.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// A byte of the response came.
    pub fn progress(&self, now: u64) {
        self.endpoint.progress_at.store(now, Relaxed);
        if !self.begun.load(Relaxed) {
            self.begin(now);
        }
    }

    /// The endpoint answered as a working engine does (any status but 502, 503 and 504).
    pub fn succeeded(&self) {
        if self.endpoint.breaker.succeeded()
            && let Some(observer) = &self.endpoint.observer
        {
            observer.breaker_closed(&self.endpoint);
        }
    }

    /// The endpoint failed this request.
    pub fn failed(&self, why: Failure, now: u64) {
        if self.endpoint.breaker.failed(now, self.trial)
            && let Some(observer) = &self.endpoint.observer
        {
            observer.breaker_opened(&self.endpoint, why);
        }
    }
}

impl Endpoint {
    /// A turn to place a heavy request on this endpoint or one beside it, as [`crate::turns`] says; `None`: there is no need to wait.
    pub fn turn(&self) -> Option<Turn> {
        self.observer.as_ref()?.turn()
    }

    pub(super) fn tell_in_flight(&self, began: u64) {
        if let Some(observer) = &self.observer {
            observer.in_flight_changed(began);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release_tokens();
        self.endpoint.hot.local_in_flight.fetch_sub(1, Relaxed);
        self.endpoint.tell_in_flight(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::endpoint;
    use proptest::prelude::*;

    #[test]
    fn tokens_and_companions_go_when_the_answer_begins() {
        let (decode, prefill) = (endpoint("d"), endpoint("p"));
        let place = decode.reserve_with(1, 10).unwrap();
        place.accompany(prefill.reserve_with(1, 100).unwrap());
        assert_eq!((decode.total_tokens(), prefill.total_tokens()), (10, 100));
        assert_eq!(prefill.local_in_flight(), 1);
        place.progress(2);
        assert_eq!((decode.total_tokens(), prefill.total_tokens()), (0, 0));
        assert_eq!(
            (decode.local_in_flight(), prefill.local_in_flight()),
            (1, 0)
        );
        place.accompany(prefill.reserve_with(2, 5).unwrap());
        assert_eq!(prefill.local_in_flight(), 0, "nothing to wait for any more");
        drop(place);
        assert_eq!(decode.local_in_flight(), 0);
    }

    proptest! {
        /// Whatever happens in which order, what is counted is exactly what is alive, and in the end nothing is.
        #[test]
        fn nothing_leaks_and_nothing_goes_below_zero(
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), 0u64..5000), 1..80),
        ) {
            // An endpoint that flaps: the second one is its next incarnation under the same name.
            let endpoints = [endpoint("a"), endpoint("a"), endpoint("b")];
            let mut alive: Vec<(super::Reservation, usize, bool)> = Vec::new();
            for (what, index, tokens) in steps {
                match what {
                    0 | 1 => {
                        let at = index.index(endpoints.len());
                        alive.push((endpoints[at].reserve_with(1, tokens).unwrap(), at, false));
                    }
                    2 if !alive.is_empty() => {
                        let i = index.index(alive.len());
                        alive[i].0.progress(2);
                        alive[i].2 = true;
                    }
                    3 if !alive.is_empty() => drop(alive.swap_remove(index.index(alive.len()))),
                    _ => {}
                }
                for (at, e) in endpoints.iter().enumerate() {
                    let here = || alive.iter().filter(|(_, of, _)| *of == at);
                    prop_assert_eq!(e.local_in_flight() as usize, here().count());
                    prop_assert_eq!(e.local_tokens(), here().map(|(r, _, _)| r.tokens()).sum::<u64>());
                    prop_assert!(here().all(|(r, _, begun)| !begun || r.tokens() == 0));
                }
            }
            drop(alive);
            prop_assert!(endpoints.iter().all(|e| e.local_in_flight() == 0 && e.local_tokens() == 0));
        }
    }
}
