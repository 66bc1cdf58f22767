//! The open loop: requests start when the schedule says so, whatever the server does.

use super::{
    arrival::{Pacer, Starts},
    run::{Client, Start, Thread},
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Instant,
};
use tokio::{
    sync::Notify,
    task::{JoinHandle, spawn_local},
};

/// Starts that may be handed out in a row before the clients get a turn.
const BURST: u32 = 32;

/// A start that is due.
#[derive(Debug, Clone, Copy)]
struct Due {
    start: Start,
    number: u64,
}

/// The clients of one thread.
struct Crew {
    thread: Rc<Thread>,
    /// Clients that wait for work; the one that has waited longest comes next, so that all URLs get their share.
    idle: RefCell<VecDeque<Rc<Seat>>>,
    /// Starts that wait for a client, because no more may be in flight.
    waiting: RefCell<VecDeque<Due>>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
    over: Cell<bool>,
}

/// Where a client gets its work.
#[derive(Default)]
struct Seat {
    due: Cell<Option<Due>>,
    wake: Notify,
}

/// Runs this thread's share of the schedule and waits for the last answers.
pub(crate) async fn run(thread: Rc<Thread>, mut starts: Starts) -> anyhow::Result<()> {
    let shared = thread.shared.clone();
    let crew = Rc::new(Crew {
        thread: thread.clone(),
        idle: RefCell::default(),
        waiting: RefCell::default(),
        tasks: RefCell::default(),
        over: Cell::new(false),
    });
    for _ in 0..thread.share_of(shared.connections) * shared.streams {
        crew.hire(None);
    }
    let pacer = Pacer::new()?;
    let mut burst = 0;
    while let Some((offset, number)) = starts.next(&shared.workload) {
        let Some(intended) = shared.window.start.checked_add(offset) else {
            break;
        };
        if shared.stopped() {
            break;
        }
        if shared.window.is_over(intended) {
            // The window is as long as it was asked to be, even if its last start comes early.
            if let Some(until) = shared.window.until {
                pacer.until(until).await?;
            }
            break;
        }
        let measured = shared.window.contains(intended);
        if measured && !shared.take_one() {
            break;
        }
        if intended > Instant::now() {
            burst = 0;
            pacer.until(intended).await?;
        } else {
            burst += 1;
            if burst % BURST == 0 {
                tokio::task::yield_now().await;
            }
        }
        if measured {
            thread
                .stats
                .borrow_mut()
                .generator_lag
                .record(Instant::now().saturating_duration_since(intended));
        }
        crew.hand_out(Due {
            start: Start { intended, measured },
            number,
        });
    }
    crew.over.set(true);
    for seat in crew.idle.take() {
        seat.wake.notify_one();
    }
    // The schedule is over: no client is added from here on.
    for task in crew.tasks.take() {
        task.await?;
    }
    Ok(())
}

impl Crew {
    fn hand_out(self: &Rc<Self>, due: Due) {
        if let Some(seat) = self.idle.borrow_mut().pop_front() {
            seat.due.set(Some(due));
            seat.wake.notify_one();
        } else if self.tasks.borrow().len()
            < self
                .thread
                .share_of(self.thread.shared.max_in_flight)
                .max(1)
        {
            self.hire(Some(due));
        } else {
            if due.start.measured {
                self.thread.stats.borrow_mut().delayed += 1;
            }
            self.waiting.borrow_mut().push_back(due);
        }
    }

    fn hire(self: &Rc<Self>, first: Option<Due>) {
        let seat = Rc::new(Seat {
            due: Cell::new(first),
            wake: Notify::new(),
        });
        let index = self.tasks.borrow().len();
        let task = spawn_local(self.clone().work(seat, index));
        self.tasks.borrow_mut().push(task);
    }

    async fn work(self: Rc<Self>, seat: Rc<Seat>, index: usize) {
        let shared = self.thread.shared.clone();
        let mut client = Client::new(self.thread.clone(), index);
        if seat.due.take().map(|due| seat.due.set(Some(due))).is_none() {
            // Opened ahead of its first request. If that fails, the request will say so.
            let _ = client.connect().await;
        }
        loop {
            let next = seat
                .due
                .take()
                .or_else(|| self.waiting.borrow_mut().pop_front());
            let Some(Due { start, number }) = next else {
                if self.over.get() || shared.stopped() {
                    return;
                }
                self.idle.borrow_mut().push_back(seat.clone());
                seat.wake.notified().await;
                continue;
            };
            match client.connect().await {
                Ok(()) => {
                    client.request(shared.workload.prepare(number), start).await;
                }
                Err(failure) if start.measured => client.count_failure(&failure),
                Err(_) => {}
            }
        }
    }
}
