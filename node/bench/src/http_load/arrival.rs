//! When the requests of an open loop start, and a clock fine enough to start them then.

use super::{text, workload::Workload};
use crate::args::{Arrival, HttpArgs};
use fastrand::Rng;
use rustix::{
    event::Timespec,
    fd::OwnedFd,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
        timerfd_settime,
    },
};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Stream of the random generator for gaps.
const GAPS: u64 = 4;

/// The starts that one thread is responsible for, in order: offset from the run's start and number of the request.
pub(crate) enum Starts {
    Constant {
        per_s: f64,
        number: u64,
        threads: u64,
    },
    Poisson {
        rng: Rng,
        mean_gap: f64,
        at: f64,
        number: u64,
        threads: u64,
    },
    Trace {
        number: u64,
        threads: u64,
        speed: f64,
    },
}

impl Starts {
    /// The share of thread number `thread`; `None` for a closed loop.
    pub(crate) fn new(args: &HttpArgs, thread: u64, threads: u64) -> Option<Self> {
        if args.trace.is_some() {
            return Some(Starts::Trace {
                number: thread,
                threads,
                speed: args.trace_speed,
            });
        }
        let per_s = args.rate?;
        Some(match args.arrival {
            Arrival::Constant => Starts::Constant {
                per_s,
                number: thread,
                threads,
            },
            Arrival::Poisson => {
                // Independent Poisson processes add up to one of the summed rate.
                let mean_gap = threads as f64 / per_s;
                Starts::Poisson {
                    rng: text::rng(args.seed, GAPS, thread),
                    mean_gap,
                    at: 0.0,
                    number: thread,
                    threads,
                }
            }
        })
    }

    /// The next start; `None` at the end of a trace.
    pub(crate) fn next(&mut self, workload: &Workload) -> Option<(Duration, u64)> {
        match self {
            Starts::Constant {
                per_s,
                number,
                threads,
            } => {
                let this = *number;
                *number += *threads;
                Some((
                    Duration::try_from_secs_f64(this as f64 / *per_s).ok()?,
                    this,
                ))
            }
            Starts::Poisson {
                rng,
                mean_gap,
                at,
                number,
                threads,
            } => {
                let this = *number;
                *number += *threads;
                // 1 - f64() is in (0, 1]: its logarithm is finite.
                *at -= (1.0 - rng.f64()).ln() * *mean_gap;
                Some((Duration::try_from_secs_f64(*at).ok()?, this))
            }
            Starts::Trace {
                number,
                threads,
                speed,
            } => {
                let this = *number;
                *number += *threads;
                let row = workload.trace()?.get(usize::try_from(this).ok()?)?;
                Some((row.at().div_f64(*speed), this))
            }
        }
    }
}

/// Waits with the kernel's high-resolution timer: the runtime's own rounds up to a whole millisecond.
pub(crate) struct Pacer(AsyncFd<OwnedFd>);

impl Pacer {
    pub(crate) fn new() -> std::io::Result<Self> {
        let fd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        // Deprecated because a type may report a descriptor that it does not own; an `OwnedFd` owns what it reports, so that
        // the replacement, an unsafe function, is not needed.
        #[allow(deprecated)]
        Ok(Pacer(AsyncFd::new(fd)?))
    }

    /// Returns at `when` or a few tens of microseconds later; at once if that has passed.
    pub(crate) async fn until(&self, when: Instant) -> std::io::Result<()> {
        loop {
            let left = when.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let value = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let once = Itimerspec {
                it_interval: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: value,
            };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
            let mut ready = self.0.readable().await?;
            // The count of expirations does not matter; reading it makes the descriptor wait again.
            let _ = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut [0u8; 8])?));
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: HttpArgs,
    }

    fn starts(more: &[&str], thread: u64, threads: u64, count: usize) -> Vec<(f64, u64)> {
        let args = Cli::parse_from(["bench", "--url", "http://h"].iter().chain(more)).args;
        let workload = Workload::new(&args).unwrap();
        let mut starts = Starts::new(&args, thread, threads).unwrap();
        (0..count)
            .map_while(|_| starts.next(&workload))
            .map(|(at, n)| (at.as_secs_f64(), n))
            .collect()
    }

    #[test]
    fn constant_starts_of_all_threads_are_evenly_spaced() {
        let mut all = [
            starts(&["--rate", "100"], 0, 2, 50),
            starts(&["--rate", "100"], 1, 2, 50),
        ]
        .concat();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (i, (at, number)) in all.iter().enumerate() {
            assert!((at - i as f64 * 0.01).abs() < 1e-9);
            assert_eq!(*number, i as u64);
        }
    }

    #[test]
    fn poisson_gaps_have_the_right_mean_and_spread_and_a_seed() {
        let args = ["--rate", "1000", "--arrival", "poisson"];
        let all = starts(&args, 0, 1, 20_000);
        let gaps: Vec<f64> = all.windows(2).map(|w| w[1].0 - w[0].0).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let var = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.001).abs() < 5e-5, "{mean}");
        // Exponential: the standard deviation is the mean.
        assert!(
            (var.sqrt() / mean - 1.0).abs() < 0.05,
            "{}",
            var.sqrt() / mean
        );
        assert_eq!(starts(&args, 0, 1, 100), all[..100]);
        assert_ne!(
            starts(
                &["--rate", "1000", "--arrival", "poisson", "--seed", "1"],
                0,
                1,
                100
            ),
            all[..100]
        );
    }

    #[test]
    fn a_trace_keeps_its_own_times() {
        use std::io::Write;
        let mut f = tempfile::NamedTempFile::new().unwrap();
        for at in [100, 300, 900] {
            writeln!(
                f,
                "{{\"timestamp\":{at},\"input_length\":1,\"output_length\":1,\"hash_ids\":[1]}}"
            )
            .unwrap();
        }
        let path = f.path().to_str().unwrap();
        let all = starts(&["--trace", path, "--trace-speed", "2"], 0, 1, 10);
        assert_eq!(all, [(0.0, 0), (0.1, 1), (0.4, 2)]);
        assert_eq!(starts(&["--trace", path], 1, 2, 10), [(0.2, 1)]);
    }

    #[test]
    fn the_pacer_never_returns_early() {
        let rt = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        rt.block_on(async {
            let pacer = Pacer::new().unwrap();
            for us in [0u64, 1, 300, 2500] {
                let when = Instant::now() + Duration::from_micros(us);
                pacer.until(when).await.unwrap();
                assert!(Instant::now() >= when);
            }
        });
    }
}
