//! A thread with a runtime of its own: what is accepted for it never wakes another thread.

use std::io;
use std::thread::JoinHandle;

/// Runs `main` on a new thread until it ends; what else was spawned there ends with it.
///
/// # Errors
/// The system gives no thread or no event queue.
pub fn spawn_worker(
    name: String,
    main: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new().name(name).spawn(move || {
        runtime.block_on(main);
        // Connections that are cut off end here; name look-ups may still block, and nobody waits for them.
        runtime.shutdown_background();
    })
}
