//! Which holders of the index are endpoints of a route, and how their blocks are named. Worked out anew only when the route or the holders
//! have changed: a pick compares a list of addresses and looks nothing up for endpoints that have nothing.

use super::keys::hash_of;
use crate::index::{CacheIndex, HolderKey, Holders};
use crate::keys::KeySpace;
use quorate_routing::Endpoint;
use quorate_routing::pipeline::Row;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Weak};

/// Routes that a thread remembers. There is one for each model.
const MOST: usize = 64;

/// How some holders of a route name their blocks.
#[derive(Clone)]
pub(super) struct Space {
    pub space: KeySpace,
    /// For the cache of keys.
    pub hash: u64,
}

/// Nobody outside chooses the number of an endpoint: one multiplication spreads them.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct RouteRows {
    /// Weak: an address stays taken, and so tells endpoints apart, as long as it is here.
    endpoints: Vec<Weak<Endpoint>>,
    holders: Holders,
    by_incarnation: HashMap<u64, Row, BuildHasherDefault<NumberHasher>>,
    /// Different ones among the holders.
    pub spaces: Vec<Space>,
    /// The first holder of each row that has any, with the place of its space; sorted.
    first: Vec<(Row, HolderKey, usize)>,
}

impl RouteRows {
    fn is_of(&self, endpoints: &[Arc<Endpoint>]) -> bool {
        self.endpoints.len() == endpoints.len()
            && self
                .endpoints
                .iter()
                .zip(endpoints)
                .all(|(known, endpoint)| known.as_ptr() == Arc::as_ptr(endpoint))
    }

    fn update(&mut self, endpoints: &[Arc<Endpoint>], index: &CacheIndex) {
        let same = self.is_of(endpoints);
        if same && self.holders.are_those_of(index) {
            return;
        }
        if !same {
            self.endpoints = endpoints.iter().map(Arc::downgrade).collect();
            let rows = endpoints.iter().enumerate();
            self.by_incarnation = rows.map(|(row, e)| (e.spec().incarnation, row)).collect();
        }
        self.holders = index.holders_now();
        self.spaces.clear();
        self.first.clear();
        for (key, space) in self.holders.iter() {
            if let (Some(row), Some(space)) = (self.by_incarnation.get(&key.endpoint), space) {
                let found = self.spaces.iter().position(|known| known.space == *space);
                let place = found.unwrap_or_else(|| {
                    self.spaces.push(Space {
                        space: space.clone(),
                        hash: hash_of(space),
                    });
                    self.spaces.len() - 1
                });
                self.first.push((*row, key, place));
            }
        }
        self.first
            .sort_unstable_by_key(|(row, key, _)| (*row, key.rank));
        self.first.dedup_by_key(|(row, ..)| *row);
    }

    /// The row of an endpoint.
    pub fn row(&self, key: HolderKey) -> Option<Row> {
        self.by_incarnation.get(&key.endpoint).copied()
    }

    /// A row's first holder, and the place of its space.
    pub fn first(&self, row: Row) -> Option<(HolderKey, usize)> {
        let at = self
            .first
            .binary_search_by_key(&row, |(row, ..)| *row)
            .ok()?;
        self.first.get(at).map(|(_, key, space)| (*key, *space))
    }
}

/// The routes that a thread has seen last.
#[derive(Default)]
pub(super) struct Routes {
    known: Vec<(usize, RouteRows)>,
    turn: usize,
}

impl Routes {
    /// The rows of a route as of now.
    pub fn of(&mut self, endpoints: &[Arc<Endpoint>], index: &CacheIndex) -> &RouteRows {
        let address = endpoints.as_ptr() as usize;
        let found = self.known.iter().position(|(at, _)| *at == address);
        let place = match found {
            Some(place) => place,
            None if self.known.len() < MOST => {
                self.known.push((address, RouteRows::default()));
                self.known.len() - 1
            }
            None => {
                self.turn = (self.turn + 1) % MOST;
                self.turn
            }
        };
        // `place` is one of the list's.
        let (at, rows) = &mut self.known[place];
        *at = address;
        rows.update(endpoints, index);
        rows
    }
}
