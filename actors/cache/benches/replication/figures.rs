//! Time used by threads, memory of the process, and quantiles.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::time::Duration;

/// Seconds of CPU that the threads of this process have used, by name (`/proc/self/task`; in ticks of 10 ms).
pub fn cpu() -> BTreeMap<String, f64> {
    let mut by_name = BTreeMap::new();
    for task in read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let stat = read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let used = rest.split_whitespace().skip(11).take(2);
        let ticks: f64 = used.filter_map(|f| f.parse::<f64>().ok()).sum();
        *by_name.entry(name.to_owned()).or_default() += ticks / 100.0;
    }
    by_name
}

/// Bytes of this process in memory.
pub fn resident() -> u64 {
    let statm = read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// `p50 / p99 / longest` of some times.
pub fn quantiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |q: f64| {
        let place = (times.len().saturating_sub(1) as f64 * q) as usize;
        times.get(place).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    };
    format!(
        "p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms ({} watched)",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    )
}
