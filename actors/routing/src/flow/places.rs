//! Ids of queued requests: a slab, so that a timer or another router can name a request without a map.

use crate::flow::queue::Ticket;

/// Bits of an id that are the index; the rest counts uses.
const INDEX_BITS: u32 = 24;

/// Where each queued request waits, by id. An id is never used twice.
#[derive(Debug, Default)]
pub struct Places {
    slots: Vec<Option<(u64, Ticket)>>,
    free: Vec<usize>,
    used: u64,
}

impl Places {
    /// An id for a request that is about to be queued; [`Self::set`] fills it. `None`: too many are queued.
    pub fn reserve(&mut self) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() >> INDEX_BITS == 0 => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return None,
        };
        self.used += 1;
        Some(self.used << INDEX_BITS | index as u64)
    }

    fn index(id: u64) -> usize {
        (id & ((1 << INDEX_BITS) - 1)) as usize
    }

    /// Says where the request of this id waits.
    pub fn set(&mut self, id: u64, ticket: Ticket) {
        if let Some(slot) = self.slots.get_mut(Self::index(id)) {
            *slot = Some((id, ticket));
        }
    }

    /// Where the request waits; `None`: it is gone.
    pub fn get(&self, id: u64) -> Option<&Ticket> {
        match self.slots.get(Self::index(id))? {
            Some((owner, ticket)) if *owner == id => Some(ticket),
            _ => None,
        }
    }

    /// The request no longer waits.
    pub fn release(&mut self, id: u64) {
        let index = Self::index(id);
        if let Some(slot) = self.slots.get_mut(index)
            && slot.as_ref().is_some_and(|(owner, _)| *owner == id)
        {
            *slot = None;
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::order::OrderKey;

    #[test]
    fn an_id_names_one_request_only() {
        let ticket = Ticket {
            priority: 0,
            flow: "f".into(),
            order: OrderKey { at: 0, seq: 0 },
        };
        let mut places = Places::default();
        let first = places.reserve().unwrap();
        assert_eq!(places.get(first), None);
        places.set(first, ticket.clone());
        assert_eq!(places.get(first), Some(&ticket));
        places.release(first);
        let second = places.reserve().unwrap();
        places.set(second, ticket.clone());
        assert_ne!(first, second);
        assert_eq!(places.slots.len(), 1);
        places.release(first);
        assert_eq!(
            (places.get(first), places.get(second)),
            (None, Some(&ticket))
        );
    }
}
