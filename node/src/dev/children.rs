//! The child processes of `quorate dev`: start, watch, restart when they die, stop.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Holds the process id of a running `quorate dev`, inside its data directory.
pub const PID_FILE: &str = "dev.pid";
/// A child gets this long to end by itself before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Wait before a child that died is started again.
const RESTART_AFTER: Duration = Duration::from_secs(3);

/// What to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// For messages.
    pub name: String,
    /// Arguments of this same binary.
    pub command: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A started child. It ends by itself when this process does, whatever the reason: its standard input closes.
#[derive(Debug)]
pub struct Child {
    spec: Spec,
    process: tokio::process::Child,
}

impl Child {
    /// Starts it.
    ///
    /// # Errors
    /// The log cannot be written or the binary cannot be run.
    pub fn start(spec: Spec) -> anyhow::Result<Self> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log)
            .with_context(|| format!("cannot write {}", spec.log.display()))?;
        let process = tokio::process::Command::new(std::env::current_exe()?)
            .args(&spec.command)
            .env("QUORATE_STOP_WITH_STDIN", "1")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A terminal's Ctrl-C reaches only this process, which then stops the children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", spec.name))?;
        Ok(Self { spec, process })
    }

    fn end_of_log(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = std::fs::File::open(&self.spec.log)?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(1500)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }
}

/// Fails with the end of a child's log if one has ended.
///
/// # Errors
/// As said.
pub fn none_has_ended(running: &mut [Child]) -> anyhow::Result<()> {
    for child in running {
        if let Some(status) = child.process.try_wait()? {
            bail!(
                "{} ended ({status}); its log ends with:\n{}",
                child.spec.name,
                child.end_of_log()
            );
        }
    }
    Ok(())
}

/// Watches the children for ever and starts again those that die, as a service manager would.
///
/// # Errors
/// A child cannot be started any more.
pub async fn keep_running(running: &mut [Child]) -> anyhow::Result<()> {
    let mut dead: Vec<Option<Instant>> = vec![None; running.len()];
    loop {
        for (child, died) in running.iter_mut().zip(&mut dead) {
            match died {
                Some(at) if at.elapsed() >= RESTART_AFTER => {
                    *child = Child::start(child.spec.clone())?;
                    println!("{} is started again", child.spec.name);
                    *died = None;
                }
                Some(_) => {}
                None => {
                    if let Some(status) = child.process.try_wait()? {
                        println!(
                            "{} ended ({}), the others go on",
                            child.spec.name,
                            how(status)
                        );
                        *died = Some(Instant::now());
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, code) => format!("exit status {}", code.unwrap_or_default()),
    }
}

/// Asks all to stop, last started first, waits, and kills what does not.
pub async fn stop_all(running: Vec<Child>) {
    for child in running.iter().rev() {
        if let Some(pid) = child
            .process
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
        {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    for mut child in running {
        if tokio::time::timeout(STOP_WITHIN, child.process.wait())
            .await
            .is_err()
        {
            println!(
                "{} did not stop within {} s and is killed",
                child.spec.name,
                STOP_WITHIN.as_secs()
            );
            let _ = child.process.kill().await;
        }
    }
}

/// Returns when the user (Ctrl-C) or the system (SIGTERM, a closed terminal) wants the end.
///
/// # Errors
/// Signal handlers cannot be installed.
pub async fn stop_requested() -> anyhow::Result<()> {
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    let [interrupt, terminate, hangup] = &mut signals;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// Starts this command again in the background and waits until it is ready.
///
/// # Errors
/// It ended, or was not ready in time; its output is shown.
pub fn detach(data_dir: &Path, within: Duration) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    if let Some(pid) = running_pid(data_dir) {
        bail!("it runs already (process {pid}); `quorate dev --stop` ends it");
    }
    let _ = std::fs::remove_file(data_dir.join(PID_FILE));
    let log_path = data_dir.join("logs").join("dev.log");
    let log = std::fs::File::create(&log_path)?;
    let args = std::env::args_os()
        .skip(1)
        .filter(|arg| arg != "--detach" && arg != "--fresh");
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    let deadline = Instant::now() + within;
    loop {
        let output = || std::fs::read_to_string(&log_path).unwrap_or_default();
        if running_pid(data_dir).is_some() {
            // The pid file is written just before the ready line.
            std::thread::sleep(Duration::from_millis(50));
            print!("{}", output());
            println!(
                "process {} runs in the background; `quorate dev --stop` ends it",
                child.id()
            );
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended ({status}):\n{}", output());
        }
        if Instant::now() > deadline {
            bail!(
                "not ready after {} s; see {}",
                within.as_secs(),
                log_path.display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Stops what [`detach`] started.
///
/// # Errors
/// Nothing runs there, or it does not stop.
pub fn stop_detached(data_dir: &Path) -> anyhow::Result<()> {
    let Some(pid) = running_pid(data_dir) else {
        bail!(
            "no `quorate dev` runs with the data directory {}",
            data_dir.display()
        );
    };
    let pid = Pid::from_raw(pid).context("bad process id")?;
    kill_process(pid, Signal::TERM)?;
    let deadline = Instant::now() + STOP_WITHIN + Duration::from_secs(5);
    while test_kill_process(pid).is_ok() {
        if Instant::now() > deadline {
            bail!("process {} does not stop", pid.as_raw_nonzero());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("stopped");
    Ok(())
}

/// The process in the pid file if it lives and is a `quorate`.
fn running_pid(data_dir: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data_dir.join(PID_FILE)).ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    name.starts_with("quorate").then_some(pid)
}
