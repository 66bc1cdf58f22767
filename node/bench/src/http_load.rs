//! `quorate bench http`: prepares a run, runs it on threads of its own, and adds up what they counted.

mod arrival;
mod body;
mod closed;
mod exchange;
mod failure;
mod link;
mod open;
mod run;
mod sse;
mod stats;
mod text;
mod trace;
mod workload;

use crate::{
    args::{Api, HttpArgs, Target},
    engines::{self, Counters},
    process::{self, Watch},
    report::{CpuReport, EnginesReport, HttpReport, Report},
};
use anyhow::{Context, anyhow, ensure};
use arrival::Starts;
use http::{
    HeaderMap, Method, Uri,
    header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue},
};
use link::Dial;
use run::{Server, Shared, Thread, Window};
use stats::{Stats, UrlStats};
use std::{
    net::ToSocketAddrs,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};
use workload::Workload;

/// Open files that are not connections.
const OTHER_FILES: u64 = 64;

/// Time for the threads to start and to open their first connections before the schedule of an open loop begins.
const HEAD_START: Duration = Duration::from_millis(50);

/// Runs the load and blocks until it is over. Errors are what keeps it from running (bad arguments, files, names); failed
/// requests are counted in the report.
pub fn run_http(args: HttpArgs) -> anyhow::Result<Report> {
    let (shared, threads, before) = prepare(&args)?;
    for pid in &args.cpu_pid {
        process::read(*pid)?;
    }
    let (done, all_done) = channel();
    let handles = (0..threads).map(|index| {
        let shared = shared.clone();
        let starts = Starts::new(&args, index as u64, threads as u64);
        let done = done.clone();
        let body = move || {
            let stats = run_thread(shared, index, starts);
            let _ = done.send(());
            stats
        };
        thread::Builder::new()
            .name(format!("bench-{index}"))
            .spawn(body)
            .context("cannot start a thread")
    });
    let handles: Vec<_> = handles.collect::<anyhow::Result<_>>()?;
    drop(done);

    let mut waiting = Waiting {
        all_done,
        left: threads,
    };
    waiting.until(Some(shared.window.from));
    let watch = Watch::begin(&args.cpu_pid);
    let own = Watch::begin(&[std::process::id()]);
    if watch.is_err() || own.is_err() {
        shared.stop.store(true, Ordering::Relaxed);
    }
    waiting.until(shared.window.until);
    let ended = Instant::now();
    let processes = watch.map(Watch::end);
    let own = own.map(Watch::end);

    let mut total = Stats::new(shared.servers.len())?;
    for handle in handles {
        let stats = handle.join().map_err(|_| anyhow!("a load thread failed"))?;
        total.add(&stats?)?;
    }
    let engines = match args.engines.len() {
        0 => None,
        n => Some(engines::read(&args.engines)?.since(before, n)),
    };
    let until = match shared.window.until {
        Some(until) => ended.min(until),
        None => total.last_end.unwrap_or(ended),
    };
    let seconds = until
        .saturating_duration_since(shared.window.from)
        .as_secs_f64();
    report(
        &args,
        &total,
        seconds,
        processes?,
        own?.iter().map(|p| p.cpu_s()).sum(),
        engines,
    )
}

/// Checks everything that can be checked before the first connection.
fn prepare(args: &HttpArgs) -> anyhow::Result<(Arc<Shared>, usize, Counters)> {
    ensure!(!args.timeout.is_zero(), "--timeout is longer than 0");
    let open_loop = args.rate.is_some() || args.trace.is_some();
    let workload = Workload::new(args)?;
    let servers: Vec<Server> = args
        .urls
        .iter()
        .map(|target| server(args, target))
        .collect::<anyhow::Result<_>>()?;
    let streams = args.streams as usize;
    let default = if open_loop { 1 } else { 32 };
    // At least one connection for each URL, and for each thread.
    let connections = args
        .connections
        .map_or(default, |n| n as usize)
        .max(servers.len());
    let threads = (args.threads as usize).min(connections);
    let max_in_flight = args.max_in_flight as usize;
    ensure!(
        !open_loop || max_in_flight >= connections * streams,
        "--max-in-flight {max_in_flight} is less than the {} that the connections allow",
        connections * streams
    );
    allow_files(if open_loop {
        max_in_flight.div_ceil(streams)
    } else {
        connections
    })?;
    let whole = args.requests.is_some() || args.trace.is_some();
    let warmup = args.warmup.unwrap_or(if whole {
        Duration::ZERO
    } else {
        Duration::from_secs(1)
    });
    let duration = args.duration.or(if whole {
        None
    } else {
        Some(Duration::from_secs(10))
    });
    ensure!(
        duration != Some(Duration::ZERO),
        "--duration is longer than 0"
    );
    let counters = engines::read(&args.engines)?;
    let start = Instant::now()
        + if open_loop {
            HEAD_START
        } else {
            Duration::ZERO
        };
    let from = start + warmup;
    let shared = Shared {
        servers,
        method: if args.api == Api::Models {
            Method::GET
        } else {
            Method::POST
        },
        workload,
        window: Window {
            start,
            from,
            until: duration.map(|d| from + d),
        },
        threads,
        connections,
        max_in_flight,
        streams,
        dial: Dial {
            http2: args.http2,
            slow: args.slow_reader.is_some(),
        },
        timeout: args.timeout,
        slow_reader: args.slow_reader,
        disconnect_after: args.disconnect_after,
        next_number: AtomicU64::new(0),
        budget: args.requests.map(AtomicU64::new),
        stop: AtomicBool::new(false),
    };
    Ok((Arc::new(shared), threads, counters))
}

fn server(args: &HttpArgs, target: &Target) -> anyhow::Result<Server> {
    let addresses = (target.host.as_str(), target.port)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {}", target.host))?
        .collect::<Vec<_>>();
    ensure!(!addresses.is_empty(), "{} has no address", target.host);
    let path = args.path.as_deref().unwrap_or(args.api.path());
    ensure!(path.starts_with('/'), "--path begins with a slash");
    let path = format!("{}{path}", target.base);
    let mut headers = HeaderMap::new();
    // HTTP/2 carries the authority in the URI; HTTP/1.1 has the path alone on its first line and a Host header.
    let uri: Uri = if args.http2 {
        format!("http://{}{path}", target.authority)
    } else {
        path
    }
    .parse()
    .context("--path does not make a URL")?;
    if !args.http2 {
        headers.insert(HOST, HeaderValue::from_str(&target.authority)?);
    }
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    if args.api != Api::Models {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    // The first of a name replaces what is set above, the others are added to it.
    let mut named = Vec::new();
    for header in &args.headers {
        if named.contains(&&header.name) {
            headers.append(header.name.clone(), header.value.clone());
        } else {
            headers.insert(header.name.clone(), header.value.clone());
            named.push(&header.name);
        }
    }
    Ok(Server {
        addresses,
        uri,
        headers,
    })
}

/// Raises the limit of open files as far as the connections need.
fn allow_files(connections: usize) -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let need = connections as u64 + OTHER_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= need) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|maximum| maximum >= need),
        "{connections} connections need more open files than the hard limit allows (ulimit -Hn)"
    );
    limit.current = Some(need);
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

fn run_thread(shared: Arc<Shared>, index: usize, starts: Option<Starts>) -> anyhow::Result<Stats> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())?;
    let thread = Rc::new(Thread::new(shared, index)?);
    let running = thread.clone();
    runtime.block_on(async move {
        match starts {
            None => closed::run(running).await,
            Some(starts) => open::run(running, starts).await,
        }
    })?;
    let empty = Stats::new(thread.shared.servers.len())?;
    Ok(thread.stats.replace(empty))
}

/// Waits for times, or for all threads to be done if that is earlier.
struct Waiting {
    all_done: Receiver<()>,
    left: usize,
}

impl Waiting {
    fn until(&mut self, when: Option<Instant>) {
        while self.left > 0 {
            let result = match when {
                Some(when) => self
                    .all_done
                    .recv_timeout(when.saturating_duration_since(Instant::now())),
                None => self
                    .all_done
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
            };
            match result {
                Ok(()) => self.left -= 1,
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.left = 0,
            }
        }
    }
}

fn report(
    args: &HttpArgs,
    total: &Stats,
    seconds: f64,
    processes: Vec<process::ProcessReport>,
    generator_cpu_s: f64,
    engines: Option<EnginesReport>,
) -> anyhow::Result<Report> {
    let mut all = UrlStats::new()?;
    for url in &total.urls {
        all.add(url)?;
    }
    let sum = all.report(String::new());
    let per_s = |n: u64| {
        if seconds > 0.0 {
            n as f64 / seconds
        } else {
            0.0
        }
    };
    let cpu_s: f64 = processes.iter().map(|p| p.cpu_s()).sum();
    let us_per = |n: u64| (n > 0).then(|| cpu_s * 1e6 / n as f64);
    let cpu = (!processes.is_empty()).then(|| CpuReport {
        total_s: cpu_s,
        us_per_request: us_per(total.completed_in_window),
        us_per_token: us_per(total.tokens_in_window),
        processes,
    });
    let open_loop = args.rate.is_some() || args.trace.is_some();
    Ok(Report::Http(Box::new(HttpReport {
        open_loop,
        seconds,
        requests: sum.requests,
        errors: sum.errors,
        error_classes: sum.error_classes,
        first_error: total.first_error.as_ref().map(|(_, text)| text.clone()),
        statuses: sum.statuses,
        disconnected: sum.disconnected,
        delayed: total.delayed,
        requests_per_s: per_s(total.completed_in_window),
        tokens: sum.tokens,
        tokens_per_s: per_s(total.tokens_in_window),
        bytes_in: total.bytes_in,
        latency_us: sum.latency_us,
        service_us: sum.service_us,
        ttft_us: sum.ttft_us,
        itl_us: sum.itl_us,
        generator_lag_us: open_loop.then(|| total.generator_lag.quantiles()),
        generator_cpu_s,
        connections_opened: total.connections_opened,
        max_in_flight: total.max_in_flight,
        usage: (total.usage.answers > 0).then(|| total.usage.clone()),
        engines,
        cpu,
        urls: total
            .urls
            .iter()
            .zip(&args.urls)
            .map(|(stats, url)| stats.report(url.to_string()))
            .collect(),
    })))
}
