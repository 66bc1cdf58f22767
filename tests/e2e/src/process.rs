//! One child process with its output in a file.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

/// The binary under test.
///
/// # Errors
/// None is built.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("QUORATE_BIN") {
        let path = PathBuf::from(path);
        anyhow::ensure!(
            path.is_file(),
            "QUORATE_BIN is {}, which is no file",
            path.display()
        );
        return Ok(path);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let built = |profile: &str| {
        let path = target.join(profile).join("quorate");
        let made = path
            .metadata()
            .and_then(|m| m.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        path.is_file().then_some((made, path))
    };
    let newest = ["release", "debug"].into_iter().filter_map(built).max();
    let (_, path) = newest
        .context("no quorate binary: `cargo build --release -p quorate`, or set QUORATE_BIN")?;
    Ok(path.canonicalize()?)
}

/// Whether a system command can be used.
pub fn command_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// How to start a process.
#[derive(Clone, Debug)]
pub struct Start {
    /// For messages.
    pub name: String,
    /// The binary under test if empty; else what runs it: this command line gets the binary's path and arguments appended.
    pub wrapper: Vec<OsString>,
    /// Arguments of the binary.
    pub args: Vec<OsString>,
    /// Environment on top of this process's own.
    pub env: Vec<(String, String)>,
    /// Output goes to the end of this file.
    pub log: PathBuf,
}

/// A child process. It ends when it is dropped, and when this process ends (its standard input closes).
#[derive(Debug)]
pub struct Process {
    name: String,
    child: tokio::process::Child,
    /// Held here, because waiting for a child closes what it holds itself, and the process would take that for its end.
    _stdin: Option<tokio::process::ChildStdin>,
    log: PathBuf,
    log_from: u64,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// The log cannot be written, or the command cannot be run.
    pub fn start(start: &Start) -> anyhow::Result<Self> {
        let binary = binary()?;
        let mut command = match start.wrapper.split_first() {
            None => tokio::process::Command::new(binary),
            Some((program, rest)) => {
                let mut command = tokio::process::Command::new(program);
                command.args(rest).arg(binary);
                command
            }
        };
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&start.log)
            .with_context(|| format!("cannot write {}", start.log.display()))?;
        let log_from = log.metadata()?.len();
        let mut child = command
            .args(&start.args)
            .envs(start.env.iter().map(|(key, value)| (key, value)))
            .env("QUORATE_STOP_WITH_STDIN", "1")
            // What the caller's shell points the CLI at is of no concern here.
            .env_remove("QUORATE_SERVER")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", start.name))?;
        Ok(Self {
            name: start.name.clone(),
            _stdin: child.stdin.take(),
            child,
            log: start.log.clone(),
            log_from,
        })
    }

    /// Its process id, unless it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self
            .child
            .id()
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(
            pid.with_context(|| format!("{} has ended", self.name))?,
            signal,
        )?;
        Ok(())
    }

    /// kill -9, and waits until it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.is_running(),
            "{} had ended before it was killed:\n{}",
            self.name,
            self.output()
        );
        self.child.kill().await?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `within`.
    pub async fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!(
                "{} still runs after {} s:\n{}",
                self.name,
                within.as_secs_f32(),
                self.output()
            ),
        }
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// It had ended before, still runs after `within`, or did not end with exit status 0.
    pub async fn terminate(&mut self, within: Duration) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait(within).await?;
        if !status.success() {
            let how = status
                .signal()
                .map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
            bail!(
                "{} ended with {how} on SIGTERM:\n{}",
                self.name,
                self.output()
            );
        }
        Ok(())
    }

    /// What it wrote since it was started.
    pub fn output(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = std::fs::File::open(&self.log)?;
            file.seek(SeekFrom::Start(self.log_from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|e| format!("(no log: {e})"))
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let pid = self
            .pid()
            .with_context(|| format!("{} has ended", self.name))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }
}
