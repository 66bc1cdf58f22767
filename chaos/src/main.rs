//! Faults against real nodes. One binary, one subcommand for each part that a script plays.
//!
//! `powercut.sh` uses `write` and `verify`: a node that acknowledges writes until the power goes, and the judgement over what
//! its disk holds afterwards.

mod powercut;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use quorate_raft::Durability;

const USAGE: &str = "usage:
  quorate-chaos write DATA-DIR [--unsynced]   run one node and print the number of each acknowledged write
  quorate-chaos verify DATA-DIR ACKNOWLEDGED  open the directory and look for every number in the file ACKNOWLEDGED

verify exits with 0 if nothing is missing, 1 if acknowledged writes are gone, 2 if the directory does not open";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("quorate-chaos: {error:#}");
            ExitCode::from(64)
        }
    }
}

fn run(args: Vec<String>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("runtime")?;
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["write", dir] => runtime.block_on(powercut::write(PathBuf::from(dir), Durability::Synced)),
        ["write", dir, "--unsynced"] => {
            runtime.block_on(powercut::write(PathBuf::from(dir), Durability::Unsynced))
        }
        ["verify", dir, acknowledged] => runtime.block_on(powercut::verify(
            PathBuf::from(dir),
            PathBuf::from(acknowledged),
        )),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("{USAGE}"),
    }
}
