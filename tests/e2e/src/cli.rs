//! The command line.

use crate::process::binary;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a command that must have worked.
    ///
    /// # Errors
    /// It did not.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(
            self.code == 0,
            "exit code {}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// Standard output as JSON of a command that must have worked.
    ///
    /// # Errors
    /// It did not, or printed something else.
    pub fn json(self) -> anyhow::Result<Value> {
        let text = self.ok()?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Fails unless the exit code is `code` and the error output says all of `words`.
    ///
    /// # Errors
    /// As said.
    pub fn fails(&self, code: i32, words: &[&str]) -> anyhow::Result<()> {
        ensure!(
            self.code == code,
            "exit code {}, not {code}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        for word in words {
            ensure!(
                self.stderr.contains(word),
                "the error does not say {word:?}: {}",
                self.stderr
            );
        }
        ensure!(
            !self.stderr.contains("panicked"),
            "it panicked: {}",
            self.stderr
        );
        Ok(())
    }
}

/// Runs `quorate ARGS` with `input` as standard input.
///
/// # Errors
/// It cannot be run, or does not end within a minute.
pub async fn run_with(args: &[&str], env: &[(&str, &str)], input: &str) -> anyhow::Result<Output> {
    let mut child = tokio::process::Command::new(binary()?)
        .args(args)
        .env_remove("QUORATE_SERVER")
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let feed = async {
        // A command that does not read its input may close it.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let ended = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(Duration::from_secs(60), ended)
        .await
        .with_context(|| format!("quorate {} does not end", args.join(" ")))??;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs `quorate ARGS`.
///
/// # Errors
/// As [`run_with`].
pub async fn run(args: &[&str]) -> anyhow::Result<Output> {
    run_with(args, &[], "").await
}
