//! A small file system that can be filled up: a tmpfs in a mount namespace of its own, so nothing is left behind and no root is
//! needed where user namespaces are allowed.

use anyhow::Context;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Lives as long as this value; processes see it when they are started through [`TinyDisk::wrapper`].
#[derive(Debug)]
pub struct TinyDisk {
    holder: Child,
    mount: PathBuf,
    as_user: bool,
}

impl TinyDisk {
    /// Mounts `mebibytes` at `mount` (an existing directory).
    ///
    /// # Errors
    /// The system does not let this user mount anything, with its own message.
    pub async fn mount(mount: &Path, mebibytes: u32) -> anyhow::Result<Self> {
        let as_user = !rustix::process::geteuid().is_root();
        let mut command = Command::new("unshare");
        if as_user {
            command.arg("--map-root-user");
        }
        let script = r#"mount -t tmpfs -o "size=$1m" tmpfs "$2" && echo mounted && exec cat"#;
        let mut holder = command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
                &mebibytes.to_string(),
            ])
            .arg(mount)
            // It ends with its standard input, that is with this process.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run unshare")?;
        let mut line = String::new();
        let stdout = holder.stdout.as_mut().context("no output")?;
        BufReader::new(stdout).read_line(&mut line).await?;
        if line.trim() != "mounted" {
            let output = holder.wait_with_output().await?;
            anyhow::bail!(
                "cannot mount a tmpfs: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(Self {
            holder,
            mount: mount.to_owned(),
            as_user,
        })
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.holder
            .id()
            .context("the holder of the mount has ended")
    }

    /// Command line that runs another one where the disk is mounted.
    ///
    /// # Errors
    /// The mount is gone.
    pub fn wrapper(&self) -> anyhow::Result<Vec<OsString>> {
        let mut words = vec![
            "nsenter".to_owned(),
            "--target".into(),
            self.pid()?.to_string(),
            "--mount".into(),
        ];
        if self.as_user {
            words.extend(["--user".into(), "--preserve-credentials".into()]);
        }
        words.push("--".into());
        Ok(words.into_iter().map(OsString::from).collect())
    }

    fn filler(&self) -> anyhow::Result<PathBuf> {
        let inside = self
            .mount
            .strip_prefix("/")
            .context("the mount point must be absolute")?;
        Ok(PathBuf::from(format!("/proc/{}/root", self.pid()?))
            .join(inside)
            .join("filler"))
    }

    /// Writes until nothing more fits.
    ///
    /// # Errors
    /// Something other than a full disk stopped it.
    pub fn fill(&self) -> anyhow::Result<()> {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.filler()?)?;
        let mut size = 1 << 20;
        while size > 0 {
            match file.write(&vec![7; size]) {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// It was not filled.
    pub fn free(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.filler()?)?)
    }
}
