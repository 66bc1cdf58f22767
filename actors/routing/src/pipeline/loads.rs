//! The load of all candidates, read once for a pick, a column for each figure.
//!
//! An engine's figures are as old as their last reading, and many requests are placed between two readings. So they are carried on by
//! what was counted since: each request more (or less) in flight than at the reading is one more (or less) in the queue where there
//! is one, else in the running batch, and takes as much of the KV cache as a running request of these candidates does on average. An
//! engine that never told its figures counts with what is in flight there: unknown is not full, and not idle either.

use super::Row;
use crate::endpoint::{Endpoint, LoadSnapshot};
use std::sync::Arc;

/// Use of the KV cache by one request while none runs anywhere that it could be told from.
const USAGE_PER_REQUEST: f64 = 1.0 / 256.0;

/// See the module's documentation. Rows that were not read are all zero.
#[derive(Debug, Default)]
pub struct Loads {
    queue: Vec<f64>,
    running: Vec<f64>,
    kv_usage: Vec<f64>,
    in_flight: Vec<u32>,
    tokens: Vec<u64>,
    /// Milliseconds; `u32::MAX`: no figures.
    age_ms: Vec<u32>,
    /// Requests more than at the last reading.
    moved: Vec<i32>,
}

fn at<T: Copy + Default>(column: &[T], row: Row) -> T {
    column.get(row).copied().unwrap_or_default()
}

impl Loads {
    /// Reads the endpoints of `rows`.
    pub fn read(&mut self, endpoints: &[Arc<Endpoint>], rows: &[Row], now: u64) {
        self.read_with(endpoints, rows, now, |_| {});
    }

    /// The same, and shows what was read, in the order of `rows`.
    pub fn read_with(
        &mut self,
        endpoints: &[Arc<Endpoint>],
        rows: &[Row],
        now: u64,
        mut seen: impl FnMut(&LoadSnapshot),
    ) {
        self.resize(endpoints.len());
        let (mut usage_sum, mut running_sum) = (0.0, 0.0);
        for &row in rows {
            let Some(endpoint) = endpoints.get(row) else {
                continue;
            };
            let snapshot = endpoint.load_snapshot(now);
            usage_sum += f64::from(snapshot.figures.kv_cache_usage.unwrap_or(0.0));
            running_sum += f64::from(snapshot.figures.running.unwrap_or(0));
            seen(&snapshot);
            self.set(row, &snapshot);
        }
        let per_request = if running_sum > 0.0 {
            usage_sum / running_sum
        } else {
            USAGE_PER_REQUEST
        };
        for &row in rows {
            let moved = at(&self.moved, row);
            if moved != 0
                && let Some(usage) = self.kv_usage.get_mut(row)
            {
                *usage = (*usage + f64::from(moved) * per_request).clamp(0.0, 1.0);
            }
        }
    }

    fn resize(&mut self, n: usize) {
        self.queue.resize(n, 0.0);
        self.running.resize(n, 0.0);
        self.kv_usage.resize(n, 0.0);
        self.in_flight.resize(n, 0);
        self.tokens.resize(n, 0);
        self.age_ms.resize(n, 0);
        self.moved.resize(n, 0);
    }

    fn set(&mut self, row: Row, of: &LoadSnapshot) {
        fn put<T>(column: &mut [T], row: Row, value: T) {
            if let Some(cell) = column.get_mut(row) {
                *cell = value;
            }
        }
        let known = of.figures.waiting.is_some() || of.figures.running.is_some();
        let moved = if known {
            i64::from(of.in_flight) - i64::from(of.in_flight_at_load)
        } else {
            0
        };
        let (queue, running) = if known {
            carry_on(
                f64::from(of.figures.waiting.unwrap_or(0)),
                f64::from(of.figures.running.unwrap_or(0)),
                moved as f64,
            )
        } else {
            (0.0, f64::from(of.in_flight))
        };
        put(&mut self.queue, row, queue);
        put(&mut self.running, row, running);
        let usage = f64::from(of.figures.kv_cache_usage.unwrap_or(0.0)).clamp(0.0, 1.0);
        put(&mut self.kv_usage, row, usage);
        put(&mut self.in_flight, row, of.in_flight);
        put(&mut self.tokens, row, of.tokens);
        let age = of
            .age_ms
            .map_or(u32::MAX, |age| u32::try_from(age).unwrap_or(u32::MAX - 1));
        put(&mut self.age_ms, row, age);
        let moved = i32::try_from(moved).unwrap_or(0);
        let has_usage = of.figures.kv_cache_usage.is_some();
        put(&mut self.moved, row, if has_usage { moved } else { 0 });
    }

    /// Requests in the engine's queue.
    pub fn queue(&self, row: Row) -> f64 {
        at(&self.queue, row)
    }

    /// Requests in the running batch.
    pub fn running(&self, row: Row) -> f64 {
        at(&self.running, row)
    }

    /// Share of the KV cache in use, 0 to 1; 0 if not known.
    pub fn kv_usage(&self, row: Row) -> f64 {
        at(&self.kv_usage, row)
    }

    /// Requests of all nodes in flight.
    pub fn in_flight(&self, row: Row) -> u32 {
        at(&self.in_flight, row)
    }

    /// Prompt tokens of all nodes' requests whose answer has not begun.
    pub fn tokens(&self, row: Row) -> u64 {
        at(&self.tokens, row)
    }

    /// Age of the engine's figures in milliseconds; `None`: it never told any.
    pub fn age_ms(&self, row: Row) -> Option<u32> {
        Some(at(&self.age_ms, row)).filter(|age| *age != u32::MAX)
    }
}

/// Queue and running batch after `moved` requests more (or less).
fn carry_on(waiting: f64, running: f64, moved: f64) -> (f64, f64) {
    if moved >= 0.0 {
        if waiting > 0.0 {
            (waiting + moved, running)
        } else {
            (waiting, running + moved)
        }
    } else {
        let from_queue = waiting.min(-moved);
        (
            waiting - from_queue,
            (running + moved + from_queue).max(0.0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::LoadFigures;
    use crate::endpoint::tests::endpoint;
    use proptest::prelude::*;

    #[test]
    fn figures_are_carried_on_by_what_was_placed_since() {
        let (a, b) = (endpoint("a"), endpoint("b"));
        let figures = |running, waiting, usage| LoadFigures {
            running: Some(running),
            waiting: Some(waiting),
            kv_cache_usage: Some(usage),
        };
        let before = a.reserve(1).unwrap();
        a.set_load(figures(4, 2, 0.5), 10);
        b.set_load(figures(0, 0, 0.25), 10);
        let held: Vec<_> = [&a, &b, &b]
            .iter()
            .map(|e| e.reserve(11).unwrap())
            .collect();
        let endpoints = [Arc::clone(&a), Arc::clone(&b)];
        let mut loads = Loads::default();
        loads.read(&endpoints, &[0, 1], 20);
        // Mean use of a running request: (0.5 + 0.25) / 4.
        assert_eq!((loads.queue(0), loads.running(0)), (3.0, 4.0));
        assert_eq!((loads.queue(1), loads.running(1)), (0.0, 2.0));
        assert_eq!((loads.kv_usage(0), loads.kv_usage(1)), (0.6875, 0.625));
        assert_eq!((loads.in_flight(0), loads.age_ms(0)), (2, Some(10)));
        a.set_load(figures(4, 2, 0.5), 10);
        loads.read(&endpoints, &[0, 1], 20);
        assert_eq!(loads.queue(0), 3.0, "the same reading told again");
        drop((before, held));
        loads.read(&endpoints, &[0, 1], 20);
        assert_eq!((loads.queue(0), loads.running(0)), (1.0, 4.0));
        assert_eq!((loads.queue(1), loads.kv_usage(1)), (0.0, 0.25));
    }

    #[test]
    fn an_engine_without_figures_counts_with_what_is_in_flight() {
        let a = endpoint("a");
        let _held = a.reserve_with(1, 40).unwrap();
        let mut loads = Loads::default();
        loads.read(&[a], &[0], 5);
        assert_eq!((loads.queue(0), loads.running(0)), (0.0, 1.0));
        assert_eq!((loads.kv_usage(0), loads.tokens(0)), (0.0, 40));
        assert_eq!(loads.age_ms(0), None);
        assert_eq!(loads.queue(7), 0.0, "a row that was not read");
    }

    proptest! {
        #[test]
        fn no_request_is_lost_or_invented(waiting in 0u32..500, running in 0u32..500, moved in -900i32..900) {
            let (q, r) = carry_on(f64::from(waiting), f64::from(running), f64::from(moved));
            let total = (f64::from(waiting) + f64::from(running) + f64::from(moved)).max(0.0);
            prop_assert!(q >= 0.0 && r >= 0.0);
            prop_assert_eq!(q + r, total);
            prop_assert!(moved != 0 || (q, r) == (f64::from(waiting), f64::from(running)));
        }
    }
}
