//! What waits to be told one peer: the news, of which the oldest go when it reads too slowly, and the copy it gets as a newcomer.

use parking_lot::Mutex;
use quorate_proto::peer::v1::Learnt;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;

/// Words of news that wait for a peer.
const MOST_WORDS: usize = 65_536;

#[derive(Default)]
struct Inside {
    news: VecDeque<(Arc<[Learnt]>, usize)>,
    words: usize,
    copy: VecDeque<Learnt>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Satchel {
    inside: Mutex<Inside>,
    wake: Notify,
}

impl Satchel {
    /// Completes when there is something; without a satchel never.
    pub async fn filled(satchel: Option<&Self>) {
        match satchel {
            Some(satchel) => satchel.wake.notified().await,
            None => std::future::pending().await,
        }
    }

    /// One message's worth: news first.
    pub fn take(&self) -> Vec<Learnt> {
        let mut inside = self.inside.lock();
        let taken = match inside.news.pop_front() {
            Some((news, words)) => {
                inside.words = inside.words.saturating_sub(words);
                news.to_vec()
            }
            None => inside.copy.pop_front().into_iter().collect(),
        };
        if !inside.news.is_empty() || !inside.copy.is_empty() {
            self.wake.notify_one();
        }
        taken
    }

    /// Adds news of so many words. Gives the words that had to go for it.
    pub fn put(&self, news: Arc<[Learnt]>, words: usize) -> usize {
        let mut inside = self.inside.lock();
        inside.news.push_back((news, words));
        inside.words += words;
        let mut lost = 0;
        while inside.words > MOST_WORDS
            && inside.news.len() > 1
            && let Some((_, words)) = inside.news.pop_front()
        {
            inside.words = inside.words.saturating_sub(words);
            lost += words;
        }
        drop(inside);
        self.wake.notify_one();
        lost
    }

    /// Adds a part of the copy.
    pub fn put_copy(&self, part: Learnt) {
        self.inside.lock().copy.push_back(part);
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(plugin: usize) -> Learnt {
        Learnt {
            plugin: plugin.to_string(),
            ..Learnt::default()
        }
    }

    #[test]
    fn news_before_copies_and_the_oldest_lost_first() {
        let satchel = Satchel::default();
        satchel.put_copy(some(100));
        let news = |n| satchel.put([some(n)].into(), MOST_WORDS / 2);
        assert_eq!((news(1), news(2), news(3)), (0, 0, MOST_WORDS / 2));
        let taken: Vec<Learnt> = (0..4).flat_map(|_| satchel.take()).collect();
        assert_eq!(taken, [some(2), some(3), some(100)]);
        // One that is larger than all that fits goes all the same.
        assert_eq!(satchel.put([some(4)].into(), 2 * MOST_WORDS), 0);
        assert_eq!(satchel.take(), [some(4)]);
    }
}
