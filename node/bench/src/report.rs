//! What a run found, for machines (serde) and for people (`Display`).

use crate::{process::ProcessReport, quantiles::Quantiles};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
};

/// The result of one benchmark. `Display` gives a table.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "bench", rename_all = "lowercase")]
pub enum Report {
    /// `bench http`
    Http(Box<HttpReport>),
    /// `bench control`
    Control(Box<ControlReport>),
}

impl Report {
    /// Operations that failed.
    pub fn errors(&self) -> u64 {
        match self {
            Report::Http(r) => r.errors,
            Report::Control(r) => r.errors,
        }
    }
}

/// What an HTTP run found. Requests, errors and quantiles are of requests that started within the measured window, however long
/// they took; rates and CPU costs are of what ended within it.
#[derive(Debug, Clone, Serialize)]
pub struct HttpReport {
    /// Requests started on a schedule.
    pub open_loop: bool,
    /// Length of the measured window.
    pub seconds: f64,
    /// Good answers.
    pub requests: u64,
    /// Failed requests.
    pub errors: u64,
    /// Failed requests by class: connect, reset, timeout, status_503, truncated, protocol, bad_sse, stream_error,
    /// unfinished_stream.
    pub error_classes: BTreeMap<String, u64>,
    /// What the first failure looked like.
    pub first_error: Option<String>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Streams that this side ended (`--disconnect-after`).
    pub disconnected: u64,
    /// Starts that waited because `--max-in-flight` requests were in flight.
    pub delayed: u64,
    /// Good answers a second.
    pub requests_per_s: f64,
    /// Generated tokens: token events of streams, else the completion tokens of the usage object.
    pub tokens: u64,
    /// Tokens a second.
    pub tokens_per_s: f64,
    /// Bytes of answers' bodies.
    pub bytes_in: u64,
    /// From the intended start (open loop) or the sending (closed loop) to the last byte.
    pub latency_us: Quantiles,
    /// From the sending to the last byte.
    pub service_us: Quantiles,
    /// From the same start as latency to the first token event.
    pub ttft_us: Quantiles,
    /// Between token events of one stream; those that came in one piece count as 0.
    pub itl_us: Quantiles,
    /// Open loop: how late the generator itself was. If this is not small beside the latencies, use more threads.
    pub generator_lag_us: Option<Quantiles>,
    /// CPU seconds of this process in the window.
    pub generator_cpu_s: f64,
    /// Connections opened in the whole run.
    pub connections_opened: u64,
    /// Most requests in flight at once (with several threads: the sum of each one's most).
    pub max_in_flight: u64,
    /// What the engines' usage objects add up to, if there were any.
    pub usage: Option<Usage>,
    /// What the engines' metrics pages say (`--engine`).
    pub engines: Option<EnginesReport>,
    /// What the watched processes spent.
    pub cpu: Option<CpuReport>,
    /// The same, for each URL.
    pub urls: Vec<UrlReport>,
}

/// Requests to one URL. The fields mean what they mean in [`HttpReport`].
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct UrlReport {
    pub url: String,
    pub requests: u64,
    pub errors: u64,
    pub error_classes: BTreeMap<String, u64>,
    pub statuses: BTreeMap<u16, u64>,
    pub disconnected: u64,
    pub tokens: u64,
    pub latency_us: Quantiles,
    pub service_us: Quantiles,
    pub ttft_us: Quantiles,
    pub itl_us: Quantiles,
}

/// Sums over the usage objects of measured answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Answers with a usage object.
    pub answers: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Of these, found in a prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
}

impl Usage {
    pub(crate) fn add(&mut self, other: &Usage) {
        self.answers += other.answers;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

/// What engines counted from before the first request (of the warm-up, too) to the end of the last request.
#[derive(Debug, Clone, Serialize)]
pub struct EnginesReport {
    /// How many were asked.
    pub engines: usize,
    /// Prompt tokens that they looked up in their prefix caches.
    pub prefix_queries: f64,
    /// Those that they found.
    pub prefix_hits: f64,
    /// Found of looked up; none if nothing was.
    pub hit_ratio: Option<f64>,
}

/// CPU time of the watched processes within the window.
#[derive(Debug, Clone, Serialize)]
pub struct CpuReport {
    /// User and system seconds of all of them.
    pub total_s: f64,
    /// Microseconds for each good answer; none if there was no answer.
    pub us_per_request: Option<f64>,
    /// Microseconds for each token; none if there was no token.
    pub us_per_token: Option<f64>,
    /// Each of them.
    pub processes: Vec<ProcessReport>,
}

/// What a control run found.
#[derive(Debug, Clone, Serialize)]
pub struct ControlReport {
    /// put, get or failover.
    pub op: String,
    /// Concurrent clients.
    pub clients: u32,
    /// Bytes of each value.
    pub bytes: usize,
    /// Length of the measured window.
    pub seconds: f64,
    /// Operations that succeeded.
    pub ops: u64,
    /// Operations that failed.
    pub errors: u64,
    /// What the first failure looked like.
    pub first_error: Option<String>,
    /// Good operations a second.
    pub per_s: f64,
    /// From the call to its answer, good ones only.
    pub latency_us: Quantiles,
    /// Failover: the longest time from one good write to the next, in ms.
    pub longest_outage_ms: Option<f64>,
    /// Failover: all such times of more than 100 ms.
    pub outages_ms: Vec<f64>,
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Report::Http(r) => r.fmt(f),
            Report::Control(r) => r.fmt(f),
        }
    }
}

impl Display for HttpReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = if self.open_loop {
            "open loop"
        } else {
            "closed loop"
        };
        writeln!(f, "{kind}, {:.2} s", self.seconds)?;
        writeln!(
            f,
            "requests   {} ok, {} failed, {:.1}/s",
            self.requests, self.errors, self.requests_per_s
        )?;
        if self.tokens > 0 {
            writeln!(f, "tokens     {}, {:.1}/s", self.tokens, self.tokens_per_s)?;
        }
        write!(f, "statuses  ")?;
        write_counts(f, &self.statuses)?;
        if self.errors > 0 {
            write!(f, "errors    ")?;
            write_counts(f, &self.error_classes)?;
        }
        if let Some(text) = &self.first_error {
            writeln!(f, "first      {text}")?;
        }
        if self.disconnected > 0 {
            writeln!(f, "hung up    {} streams", self.disconnected)?;
        }
        if self.delayed > 0 {
            writeln!(f, "delayed    {} starts (in-flight limit)", self.delayed)?;
        }
        writeln!(
            f,
            "in flight  {} at most, {} connections opened",
            self.max_in_flight, self.connections_opened
        )?;
        if let Some(u) = &self.usage {
            let hit = if u.prompt_tokens > 0 {
                100.0 * u.cached_tokens as f64 / u.prompt_tokens as f64
            } else {
                0.0
            };
            let Usage {
                answers,
                prompt_tokens,
                completion_tokens,
                ..
            } = u;
            writeln!(
                f,
                "usage      {answers} answers: {prompt_tokens} prompt tokens ({hit:.1} % cached), {completion_tokens} generated"
            )?;
        }
        if let Some(engines) = &self.engines {
            let EnginesReport {
                engines: n,
                prefix_queries,
                hit_ratio,
                ..
            } = engines;
            let hit = 100.0 * hit_ratio.unwrap_or(0.0);
            writeln!(
                f,
                "engines    {n}: {hit:.1} % of {prefix_queries:.0} prompt tokens from the prefix cache"
            )?;
        }
        writeln!(f)?;
        write_heading(f)?;
        let latency = if self.open_loop {
            "latency (from schedule)"
        } else {
            "latency"
        };
        write_quantiles(f, latency, &self.latency_us)?;
        if self.open_loop {
            write_quantiles(f, "service (from sending)", &self.service_us)?;
        }
        if self.ttft_us.count > 0 {
            write_quantiles(f, "time to first token", &self.ttft_us)?;
            write_quantiles(f, "between tokens", &self.itl_us)?;
        }
        if let Some(lag) = &self.generator_lag_us {
            write_quantiles(f, "generator's own lag", lag)?;
        }
        if self.urls.len() > 1 {
            for url in &self.urls {
                writeln!(
                    f,
                    "\n{}: {} ok, {} failed",
                    url.url, url.requests, url.errors
                )?;
                if url.errors > 0 {
                    write!(f, "  errors ")?;
                    write_counts(f, &url.error_classes)?;
                }
                write_quantiles(f, "  latency", &url.latency_us)?;
                if url.ttft_us.count > 0 {
                    write_quantiles(f, "  time to first token", &url.ttft_us)?;
                }
            }
        }
        if let Some(cpu) = &self.cpu {
            write!(f, "\nserver CPU {:.2} s", cpu.total_s)?;
            if let Some(us) = cpu.us_per_request {
                write!(f, ", {us:.1} us/request")?;
            }
            if let Some(us) = cpu.us_per_token {
                write!(f, ", {us:.2} us/token")?;
            }
            writeln!(f)?;
            for p in &cpu.processes {
                let mb = |bytes: u64| bytes as f64 / 1e6;
                let gone = if p.gone { " (ended)" } else { "" };
                writeln!(
                    f,
                    "  {}{gone}: user {:.2} s, system {:.2} s, resident {:.1} -> {:.1} MB",
                    p.pid,
                    p.user_s,
                    p.system_s,
                    mb(p.rss_before),
                    mb(p.rss_after)
                )?;
            }
        }
        Ok(())
    }
}

impl Display for ControlReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            op,
            clients,
            bytes,
            seconds,
            ops,
            errors,
            per_s,
            ..
        } = self;
        writeln!(f, "{op}, {clients} clients, {bytes} bytes, {seconds:.2} s")?;
        writeln!(f, "operations {ops} ok, {errors} failed, {per_s:.1}/s")?;
        if let Some(text) = &self.first_error {
            writeln!(f, "first      {text}")?;
        }
        if let Some(ms) = self.longest_outage_ms {
            writeln!(f, "longest time between good writes {ms:.0} ms")?;
        }
        writeln!(f)?;
        write_heading(f)?;
        write_quantiles(f, "latency", &self.latency_us)
    }
}

fn write_counts<K: Display>(f: &mut Formatter<'_>, counts: &BTreeMap<K, u64>) -> fmt::Result {
    for (key, n) in counts {
        write!(f, " {key} x {n}")?;
    }
    writeln!(f)
}

fn write_heading(f: &mut Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "{:<24}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"
    )
}

fn write_quantiles(f: &mut Formatter<'_>, name: &str, q: &Quantiles) -> fmt::Result {
    write!(f, "{name:<24}")?;
    if q.count == 0 {
        return writeln!(f, "{:>10}", "-");
    }
    for us in [q.mean, q.p50, q.p90, q.p95, q.p99, q.p999, q.max] {
        write!(f, "{:>10}", duration(us))?;
    }
    writeln!(f)
}

/// Microseconds in a unit that keeps three or four digits.
fn duration(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} us"),
        us if us < 1e4 => format!("{:.2} ms", us / 1e3),
        us if us < 1e5 => format!("{:.1} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_their_digits() {
        let all = [0.0, 999.0, 1234.0, 12_345.0, 123_456.0, 2_345_678.0].map(duration);
        assert_eq!(
            all,
            ["0 us", "999 us", "1.23 ms", "12.3 ms", "123 ms", "2.35 s"]
        );
    }
}
