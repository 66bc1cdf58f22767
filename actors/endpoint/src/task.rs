//! A child task of an actor: it does the waiting, so that the actor's handlers never do, and ends with its handle.

use std::future::Future;
use tokio::task::AbortHandle;

/// Aborts the task when dropped. Held in an actor's state, it also ends when the actor is killed or panics.
#[derive(Debug)]
pub struct Task(AbortHandle);

impl Task {
    /// Starts `work`.
    pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }

    /// Starts `work` and calls `panicked` if it panics, so that its actor does not wait for it for ever.
    pub fn guarded<R: 'static>(
        work: impl Future<Output = ()> + Send + 'static,
        panicked: impl FnOnce() -> R + Send + 'static,
    ) -> Self {
        let guard = Guard(Some(panicked));
        Self::spawn(async move {
            let _guard = guard;
            work.await;
        })
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Guard<F: FnOnce() -> R, R>(Option<F>);

impl<F: FnOnce() -> R, R> Drop for Guard<F, R> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(panicked) = self.0.take()
        {
            panicked();
        }
    }
}
