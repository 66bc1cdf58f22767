//! CPU time and memory of processes, from /proc: what a server spent on the load.

use anyhow::{Context, bail};
use serde::Serialize;
use std::fs;

/// What one process used while it was measured.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessReport {
    /// Its process id.
    pub pid: u32,
    /// CPU seconds in user mode, all threads.
    pub user_s: f64,
    /// CPU seconds in the kernel, all threads.
    pub system_s: f64,
    /// Resident memory when the window began, bytes.
    pub rss_before: u64,
    /// Resident memory when the window ended, bytes.
    pub rss_after: u64,
    /// The process ended within the window: its figures stop before that.
    pub gone: bool,
}

impl ProcessReport {
    /// CPU seconds, user and system.
    pub fn cpu_s(&self) -> f64 {
        self.user_s + self.system_s
    }
}

/// One reading of a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reading {
    user_ticks: u64,
    system_ticks: u64,
    rss: u64,
}

/// Reads a process's figures; an error if there is none with this id.
pub(crate) fn read(pid: u32) -> anyhow::Result<Reading> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("no process {pid}"))?;
    parse_stat(&stat, rustix::param::page_size() as u64)
        .with_context(|| format!("/proc/{pid}/stat"))
}

/// Fields 14 (utime), 15 (stime) and 24 (rss, pages) of proc_pid_stat(5).
fn parse_stat(stat: &str, page: u64) -> anyhow::Result<Reading> {
    // The command name (field 2) is in brackets and may hold spaces and brackets itself.
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        bail!("no command name")
    };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| -> anyhow::Result<u64> {
        let text = fields
            .get(field - 3)
            .with_context(|| format!("no field {field}"))?;
        text.parse().with_context(|| format!("field {field}"))
    };
    Ok(Reading {
        user_ticks: number(14)?,
        system_ticks: number(15)?,
        rss: number(24)? * page,
    })
}

/// Readings of some processes at the beginning of the window.
pub(crate) struct Watch(Vec<(u32, Reading)>);

impl Watch {
    pub(crate) fn begin(pids: &[u32]) -> anyhow::Result<Self> {
        Ok(Watch(
            pids.iter()
                .map(|&pid| Ok((pid, read(pid)?)))
                .collect::<anyhow::Result<_>>()?,
        ))
    }

    pub(crate) fn end(self) -> Vec<ProcessReport> {
        let tick = rustix::param::clock_ticks_per_second().max(1) as f64;
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / tick;
        let report = |(pid, before): (u32, Reading)| {
            let (after, gone) = match read(pid) {
                Ok(after) => (after, false),
                Err(_) => (before, true),
            };
            ProcessReport {
                pid,
                user_s: seconds(before.user_ticks, after.user_ticks),
                system_s: seconds(before.system_ticks, after.system_ticks),
                rss_before: before.rss,
                rss_after: after.rss,
                gone,
            }
        };
        self.0.into_iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_with_an_awkward_name() {
        let line =
            "7 (a) b (c) S 1 7 7 0 -1 4194560 9 0 0 0 123 45 0 0 20 0 4 0 100 1000000 250 184467";
        let r = parse_stat(line, 4096).unwrap();
        assert_eq!((r.user_ticks, r.system_ticks, r.rss), (123, 45, 250 * 4096));
        assert!(parse_stat("7 (x) S 1", 4096).is_err());
        assert!(parse_stat("", 4096).is_err());
    }

    #[test]
    fn own_cpu_time_is_seen() {
        let watch = Watch::begin(&[std::process::id()]).unwrap();
        let before = read(std::process::id()).unwrap();
        // Spin until the kernel has charged five ticks, however busy the machine.
        let mut x = 1u64;
        loop {
            for _ in 0..1_000_000 {
                x = std::hint::black_box(x.wrapping_mul(6364136223846793005).wrapping_add(1));
            }
            let now = read(std::process::id()).unwrap();
            if now.user_ticks + now.system_ticks >= before.user_ticks + before.system_ticks + 5 {
                break;
            }
        }
        let reports = watch.end();
        assert!(reports[0].cpu_s() >= 0.04, "{:?}", reports);
        assert!(reports[0].rss_after > 100_000 && !reports[0].gone);
    }

    #[test]
    fn unknown_process_is_an_error() {
        assert!(Watch::begin(&[u32::MAX]).is_err());
    }
}
