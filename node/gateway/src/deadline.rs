//! A timer whose deadline may move with every byte and which still costs almost nothing: the runtime's timer is armed once and
//! only armed again when it fires too early.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// Further away than any useful deadline, near enough that clocks do not overflow.
const FAR: Duration = Duration::from_secs(365 * 86_400);

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Deadline {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Whether `at` has passed; if not, the task is woken when it does.
    pub fn has_passed(&mut self, cx: &mut Context<'_>, at: Instant) -> bool {
        let at = tokio::time::Instant::from_std(at);
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        // Armed for later than asked: that happens when a shorter limit takes over, not per byte.
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if tokio::time::Instant::now() >= at {
                return true;
            }
            sleep.as_mut().reset(at);
        }
        false
    }

    /// Forgets the armed timer.
    pub fn disarm(&mut self) {
        self.sleep = None;
    }
}

/// `start + limit`, without overflow for silly limits.
pub(crate) fn after(start: Instant, limit: Duration) -> Instant {
    start + limit.min(FAR)
}

/// Runs `future` until `at`; `None` if the time was up first.
pub(crate) async fn until<F: Future>(at: Instant, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut deadline = Deadline::default();
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if deadline.has_passed(cx, at) {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    fn current_thread() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
    }

    #[test]
    fn a_deadline_that_moves_later_fires_once_and_not_early() {
        current_thread().block_on(async {
            let start = Instant::now();
            let first = start + Duration::from_millis(20);
            let moved = start + Duration::from_millis(60);
            let mut deadline = Deadline::default();
            assert!(!poll_fn(|cx| Poll::Ready(deadline.has_passed(cx, first))).await);
            poll_fn(|cx| {
                if deadline.has_passed(cx, moved) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            assert!(Instant::now() >= moved);
        });
    }

    #[test]
    fn a_deadline_that_moves_earlier_wakes_in_time() {
        current_thread().block_on(async {
            let start = Instant::now();
            let mut deadline = Deadline::default();
            let far = start + Duration::from_secs(600);
            assert!(!poll_fn(|cx| Poll::Ready(deadline.has_passed(cx, far))).await);
            let near = start + Duration::from_millis(10);
            poll_fn(|cx| {
                if deadline.has_passed(cx, near) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            assert!(start.elapsed() < Duration::from_secs(300));
        });
    }
}
