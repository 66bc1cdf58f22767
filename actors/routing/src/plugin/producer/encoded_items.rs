//! `mm-embeddings-cache-producer`: which of a request's images, videos and sounds an endpoint has probably encoded already.
//!
//! Optimistic: what was sent to an endpoint counts as encoded there, and the items that were used last stay, as many as fit in the given
//! size of its encoder's cache at 2 MiB each. An endpoint's share is the size of the items that it has by the size of all. Nothing confirms
//! it, and each router knows its own requests only.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{
    Attributes, ColumnId, Context, DataProducer, Extras, OnPicked, ProducerInput, Row,
    SchedulingRequest, Stages,
};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What an encoded item is reckoned at, in MiB.
const ITEM_MIB: u64 = 2;
/// How often endpoints that are gone are looked for, in milliseconds.
const SWEEP_MS: u64 = 120_000;

/// The items of one endpoint by their last use.
#[derive(Debug, Default)]
struct Items {
    used: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
    clock: u64,
    used_at: u64,
}

impl Items {
    fn put(&mut self, item: u64, capacity: usize) {
        self.clock += 1;
        if let Some(before) = self.used.insert(item, self.clock) {
            self.order.remove(&before);
        }
        self.order.insert(self.clock, item);
        while self.used.len() > capacity
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.used.remove(&oldest);
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    /// By the uid of the endpoint's slot.
    endpoints: HashMap<u64, Items>,
    swept_at: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct EncodedItems {
    column: ColumnId,
    prefill: Option<usize>,
    encode: Option<usize>,
    capacity: usize,
    secret: u64,
    known: Mutex<Known>,
}

thread_local! {
    /// The items of the request that is being placed, with their sizes.
    static ITEMS: RefCell<Vec<(u64, u64)>> = const { RefCell::new(Vec::new()) };
}

impl EncodedItems {
    fn new(column: ColumnId, capacity: usize, secret: u64) -> Self {
        Self {
            column,
            prefill: None,
            encode: None,
            capacity,
            secret,
            known: Mutex::default(),
        }
    }

    /// Fills `items` with the hash and the size of each item of the request.
    fn items(&self, request: &SchedulingRequest<'_>, items: &mut Vec<(u64, u64)>) {
        items.clear();
        let Some(prompt) = request.prompt.filter(|_| !request.multimodal.is_empty()) else {
            return;
        };
        prompt.media(&mut |item| {
            items.push((xxh3_64_with_seed(item, self.secret), item.len() as u64));
        });
    }
}

impl DataProducer for EncodedItems {
    fn produce(&self, input: &ProducerInput<'_>, attributes: &mut Attributes) {
        ITEMS.with_borrow_mut(|items| {
            self.items(input.request, items);
            let all: u64 = items.iter().map(|(_, size)| *size).sum();
            if all == 0 {
                return;
            }
            let known = self.known.lock();
            for row in input.rows {
                let endpoint = input.endpoints.get(*row);
                let of = endpoint.and_then(|e| known.endpoints.get(&e.slot().uid()));
                let Some(of) = of else { continue };
                let has = items.iter().filter(|(item, _)| of.used.contains_key(item));
                let has: u64 = has.map(|(_, size)| *size).sum();
                attributes.set_number(self.column, *row, has as f64 / all as f64);
            }
        });
    }
}

impl OnPicked for EncodedItems {
    fn on_picked(&self, context: &Context<'_>, stages: &Stages, primary: Row, _: &mut Extras) {
        if context.request.multimodal.is_empty() {
            return;
        }
        // Who encodes is one of these: the encode stage where there is one, else who computes the prompt.
        let stage = |profile: Option<usize>| profile.and_then(|p| stages.best_of(p));
        let encodes = stage(self.encode)
            .or_else(|| stage(self.prefill))
            .unwrap_or(primary);
        let Some(endpoint) = context.endpoint(encodes) else {
            return;
        };
        ITEMS.with_borrow_mut(|items| {
            self.items(context.request, items);
            let mut known = self.known.lock();
            if context.now.saturating_sub(known.swept_at) >= SWEEP_MS {
                known.swept_at = context.now;
                let now = context.now;
                known
                    .endpoints
                    .retain(|_, of| now.saturating_sub(of.used_at) < SWEEP_MS);
            }
            let of = known.endpoints.entry(endpoint.slot().uid()).or_default();
            of.used_at = context.now;
            for (item, _) in items.iter() {
                of.put(*item, self.capacity);
            }
        });
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let mib = fields.whole("cacheSizeInMBPerServer", 4096, ITEM_MIB..=1 << 30);
    let capacity = usize::try_from(mib / ITEM_MIB).unwrap_or(usize::MAX);
    let plugin = Arc::new(EncodedItems {
        prefill: build.profile("prefill"),
        encode: build.profile("encode"),
        ..EncodedItems::new(build.own(Produces::Multimodal), capacity, build.secret())
    });
    Built {
        producer: Some(plugin.clone()),
        on_picked: Some(plugin),
        ..Built::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Prompt;
    use crate::pipeline::testing::Fixture;

    struct Media<'a>(&'a [&'a str]);

    impl Prompt for Media<'_> {
        fn pieces(&self, _: &mut dyn FnMut(&[u8])) {}

        fn media(&self, take: &mut dyn FnMut(&[u8])) {
            self.0.iter().for_each(|item| take(item.as_bytes()));
        }
    }

    fn with<T>(items: &[&str], run: impl FnOnce(&SchedulingRequest<'_>) -> T) -> T {
        let sizes: Vec<u64> = items.iter().map(|item| item.len() as u64).collect();
        run(&SchedulingRequest {
            prompt: Some(&Media(items)),
            multimodal: &sizes,
            ..Default::default()
        })
    }

    fn shares(f: &mut Fixture, plugin: &EncodedItems, items: &[&str]) -> Vec<f64> {
        f.attributes.reset(crate::pipeline::testing::SHAPE, 2);
        with(items, |request| f.produce(plugin, request));
        (0..2).map(|row| f.attributes.number(0, row)).collect()
    }

    fn send(f: &mut Fixture, plugin: &EncodedItems, items: &[&str], row: Row) {
        with(items, |request| {
            f.with(request, |context, _| {
                plugin.on_picked(context, &Stages::default(), row, &mut Extras::default());
            });
        });
    }

    #[test]
    fn shares_by_size_of_what_was_sent() {
        let (mut f, plugin) = (Fixture::new(2), EncodedItems::new(0, 3, 9));
        assert_eq!(shares(&mut f, &plugin, &["aaa", "b"]), [0.0, 0.0]);
        send(&mut f, &plugin, &["aaa"], 0);
        send(&mut f, &plugin, &["b"], 1);
        assert_eq!(shares(&mut f, &plugin, &["aaa", "b"]), [0.75, 0.25]);
        assert_eq!(shares(&mut f, &plugin, &[]), [0.0, 0.0]);
    }

    #[test]
    fn the_items_used_last_stay() {
        let (mut f, plugin) = (Fixture::new(2), EncodedItems::new(0, 3, 9));
        send(&mut f, &plugin, &["a", "b", "c"], 0);
        send(&mut f, &plugin, &["a"], 0);
        send(&mut f, &plugin, &["d"], 0);
        for (item, share) in [("a", 1.0), ("b", 0.0), ("c", 1.0), ("d", 1.0)] {
            assert_eq!(shares(&mut f, &plugin, &[item]), [share, 0.0], "{item}");
        }
    }

    #[test]
    fn who_is_not_used_any_more_is_forgotten() {
        let (mut f, plugin) = (Fixture::new(2), EncodedItems::new(0, 3, 9));
        f.now = SWEEP_MS;
        send(&mut f, &plugin, &["a"], 0);
        f.now += SWEEP_MS;
        send(&mut f, &plugin, &["a"], 1);
        assert_eq!(shares(&mut f, &plugin, &["a"]), [0.0, 1.0]);
    }
}
