//! The closed loop: each client sends its next request when the last one has ended.

use super::run::{Client, Start, Thread};
use std::{
    rc::Rc,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::task::spawn_local;

/// Pause after a failure, for each failure in a row: a server that is down is not hammered.
const BACKOFF: Duration = Duration::from_millis(2);

/// Most failures in a row that lengthen the pause.
const BACKOFF_STEPS: u32 = 25;

/// Runs this thread's clients to the end of the window and until their last answers are in.
pub(crate) async fn run(thread: Rc<Thread>) -> anyhow::Result<()> {
    let clients = thread.share_of(thread.shared.connections) * thread.shared.streams;
    let tasks: Vec<_> = (0..clients)
        .map(|i| spawn_local(client(thread.clone(), i)))
        .collect();
    for task in tasks {
        task.await?;
    }
    Ok(())
}

async fn client(thread: Rc<Thread>, index: usize) {
    let shared = thread.shared.clone();
    let window = shared.window;
    let mut client = Client::new(thread.clone(), index);
    let mut failures = 0;
    while !window.is_over(Instant::now()) && !shared.is_spent() && !shared.stopped() {
        let prepared = shared
            .workload
            .prepare(shared.next_number.fetch_add(1, Ordering::Relaxed));
        let connected = client.connect().await;
        let intended = Instant::now();
        if window.is_over(intended) {
            return;
        }
        let measured = window.contains(intended);
        if measured && !shared.take_one() {
            return;
        }
        let good = match connected {
            Ok(()) => client.request(prepared, Start { intended, measured }).await,
            Err(failure) => {
                if measured {
                    client.count_failure(&failure);
                }
                false
            }
        };
        failures = if good {
            0
        } else {
            (failures + 1).min(BACKOFF_STEPS)
        };
        if failures > 0 {
            tokio::time::sleep(BACKOFF * failures).await;
        }
    }
}
