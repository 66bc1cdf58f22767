//! One simulated model server of a fleet.

use crate::http;
use crate::process::{Process, Start};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A server: its address and process.
#[derive(Debug)]
pub struct Sim {
    /// Its name, also as an endpoint.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    args: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

impl Sim {
    /// A server that is not started yet. `args` go to `quorate sim`.
    pub fn new(dir: &Path, name: &str, address: SocketAddr, args: &[String]) -> Self {
        let mut all = vec!["sim".to_owned(), "--listen".into(), address.to_string()];
        all.extend_from_slice(args);
        let log = dir.join(format!("{name}.log"));
        Self {
            name: name.to_owned(),
            address,
            args: all,
            log,
            process: None,
        }
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// It runs already, cannot be started, or does not answer.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        ensure!(
            !self.process.as_mut().is_some_and(Process::is_running),
            "{} runs already",
            self.name
        );
        let start = Start {
            name: self.name.clone(),
            wrapper: Vec::new(),
            args: self.args.iter().map(Into::into).collect(),
            env: Vec::new(),
            log: self.log.clone(),
        };
        let process = self.process.insert(Process::start(&start)?);
        let mut ended = None;
        crate::until(
            &format!("{} to answer", self.name),
            Duration::from_secs(15),
            async || {
                if !process.is_running() {
                    ended = Some(process.output());
                    return Ok(());
                }
                http::get(self.address, "/health").await?.ok().map(|_| ())
            },
        )
        .await?;
        match ended {
            None => Ok(()),
            Some(output) => anyhow::bail!("{} ended:\n{output}", self.name),
        }
    }

    /// Its process.
    ///
    /// # Errors
    /// It was never started.
    pub fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process
            .as_mut()
            .with_context(|| format!("{} was not started", self.name))
    }

    /// kill -9.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.process()?.kill().await
    }

    /// Sets its faults (an empty object: none).
    ///
    /// # Errors
    /// It does not take them.
    pub async fn fault(&self, faults: &Value) -> anyhow::Result<()> {
        let reply = http::post(self.address, "/sim/fault", faults).await?;
        ensure!(
            reply.status.is_success(),
            "fault {faults}: {} {}",
            reply.status,
            reply.text()
        );
        Ok(())
    }

    /// One of its counters.
    ///
    /// # Errors
    /// It does not answer, or has no such counter.
    pub async fn stat(&self, name: &str) -> anyhow::Result<u64> {
        let stats = http::get(self.address, "/sim/stats").await?.ok()?.json()?;
        stats[name]
            .as_u64()
            .with_context(|| format!("no counter {name} in {stats}"))
    }

    /// Everything it ever wrote.
    pub fn whole_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|e| format!("(no log: {e})"))
    }
}
