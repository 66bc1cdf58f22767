//! One router node of a fleet.

use crate::control::Control;
use crate::process::{Process, Start};
use anyhow::{Context, ensure};
use rustix::process::Signal;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a node gets into a cluster.
#[derive(Clone, Debug)]
pub enum Launch {
    /// It makes one.
    Bootstrap,
    /// It joins through this peer address.
    Join(SocketAddr),
    /// It goes on with what its data directory says.
    Resume,
}

/// A node: its addresses, files and process. It stands on an address of its own with the usual ports.
#[derive(Debug)]
pub struct Router {
    /// Its name in the cluster.
    pub name: String,
    /// Its address.
    pub host: Ipv4Addr,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// How it is started.
    pub launch: Launch,
    /// What runs the binary; see [`Start::wrapper`].
    pub wrapper: Vec<OsString>,
    log: PathBuf,
    process: Option<Process>,
}

impl Router {
    /// A node that is not started yet. `gateway` goes into the configuration's `[gateway]` section, `extra` to the file's end.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn new(
        dir: &Path,
        name: &str,
        host: Ipv4Addr,
        launch: Launch,
        gateway: &str,
        extra: &str,
    ) -> anyhow::Result<Self> {
        let router = Self {
            name: name.to_owned(),
            host,
            config: dir.join(format!("{name}.toml")),
            data_dir: dir.join(name),
            launch,
            wrapper: Vec::new(),
            log: dir.join(format!("{name}.log")),
            process: None,
        };
        let text = format!(
            "[node]\nname = \"{name}\"\nregion = \"here\"\ndata_dir = \"{}\"\n\
             [peer]\nlisten = \"{}\"\n[control]\nlisten = \"{}\"\n[admin]\nlisten = \"{}\"\n\
             [gateway]\nlisten = \"{}\"\n{gateway}\n{extra}\n",
            router.data_dir.display(),
            router.peer(),
            router.control(),
            router.admin(),
            router.gateway(),
        );
        std::fs::write(&router.config, text)?;
        Ok(router)
    }

    /// Where clients connect.
    pub fn gateway(&self) -> SocketAddr {
        (self.host, 8080).into()
    }

    /// Where the control API listens.
    pub fn control(&self) -> SocketAddr {
        (self.host, 7070).into()
    }

    /// Where other nodes connect.
    pub fn peer(&self) -> SocketAddr {
        (self.host, 7071).into()
    }

    /// Where metrics and readiness are.
    pub fn admin(&self) -> SocketAddr {
        (self.host, 7072).into()
    }

    /// A control client.
    ///
    /// # Errors
    /// Never for these addresses.
    pub fn client(&self) -> anyhow::Result<Control> {
        Control::new(self.control())
    }

    /// Starts the process.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        ensure!(!self.is_running(), "{} runs already", self.name);
        let mut args: Vec<OsString> = vec![
            "router".into(),
            "--config".into(),
            self.config.clone().into(),
        ];
        match &self.launch {
            Launch::Bootstrap => args.push("--bootstrap".into()),
            Launch::Join(peer) => args.extend(["--join".into(), peer.to_string().into()]),
            Launch::Resume => {}
        }
        self.process = Some(Process::start(&Start {
            name: self.name.clone(),
            wrapper: self.wrapper.clone(),
            args,
            env: Vec::new(),
            log: self.log.clone(),
        })?);
        Ok(())
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
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

    /// SIGTERM, and waits for its end with exit status 0.
    ///
    /// # Errors
    /// It does not run, or does not end in order.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.process()?.terminate(Duration::from_secs(20)).await
    }

    /// Stops its threads where they are.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.process()?.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn unpause(&mut self) -> anyhow::Result<()> {
        self.process()?.signal(Signal::CONT)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// It ended, or does not get ready.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let admin = self.admin();
        let (what, within) = (
            format!("{} to be ready", self.name),
            Duration::from_secs(30),
        );
        let process = self.process()?;
        let mut ended = None;
        crate::until(&what, within, async || {
            if !process.is_running() {
                ended = Some(process.output());
                return Ok(());
            }
            crate::http::get(admin, "/ready").await?.ok().map(|_| ())
        })
        .await?;
        match ended {
            None => Ok(()),
            Some(output) => {
                anyhow::bail!("{} ended instead of getting ready:\n{output}", self.name)
            }
        }
    }

    /// Starts it where it must refuse: waits for its end and gives its exit code and output.
    ///
    /// # Errors
    /// It runs on.
    pub async fn refuses(&mut self) -> anyhow::Result<(i32, String)> {
        self.start()?;
        let process = self.process()?;
        let status = process.wait(Duration::from_secs(30)).await?;
        let output = process.output();
        let code = status
            .code()
            .with_context(|| format!("killed by a signal:\n{output}"))?;
        ensure!(
            !output.contains("panicked"),
            "it panicked instead of refusing:\n{output}"
        );
        Ok((code, output))
    }

    /// Everything it ever wrote.
    pub fn whole_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_else(|e| format!("(no log: {e})"))
    }
}
