//! The operator's command line: everything of `quorate` that talks to a running cluster, and its certificates.
//!
//! [`Command`] is flattened into the binary's own parser; [`run`] executes one. The commands speak the public control API
//! (`quorate.v1`) to any router node and keep no state between calls. [`manifest`] reads what `apply -f` takes: Quorate's
//! own YAML or JSON and llm-d's InferencePool, checked strictly and as a whole, with the line of whatever is wrong.
//! [`client`] finds a node that answers and repeats what is safe to repeat. Results go to stdout, everything said to people
//! (errors, warnings, progress) to stderr; the exit codes are in [`Exit`].

pub mod client;
mod command;
pub mod exit;
mod kind;
pub mod manifest;
pub mod output;

use std::{io::Write, process::ExitCode};

pub use command::Command;
pub use exit::{EXIT_CODES, Exit, Failure};

/// Where a command reads and writes.
pub struct Io<'a> {
    /// Results.
    pub out: &'a mut (dyn Write + Send),
    /// Errors, warnings, progress.
    pub err: &'a mut (dyn Write + Send),
    /// What `-f -` reads.
    pub input: &'a mut (dyn std::io::Read + Send),
}

/// Runs a command on the process's own streams, on a runtime of its own. `parser` makes the whole binary's parser, for shell
/// completions.
pub fn run(command: Command, parser: fn() -> clap::Command) -> ExitCode {
    let (mut out, mut err, mut input) = (std::io::stdout(), std::io::stderr(), std::io::stdin());
    let mut io = Io {
        out: &mut out,
        err: &mut err,
        input: &mut input,
    };
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(run_with(command, parser, &mut io)).into(),
        Err(error) => {
            eprintln!("error: the runtime cannot be started: {error}");
            Exit::Failed.into()
        }
    }
}

/// Runs a command on the given streams and reports a failure on `io.err`.
pub async fn run_with(command: Command, parser: fn() -> clap::Command, io: &mut Io<'_>) -> Exit {
    match command.execute(parser, io).await {
        Ok(exit) => exit,
        // The reader of our output has seen enough, as in `quorate get pools | head -1`.
        Err(failure) if failure.broken_pipe => Exit::Ok,
        Err(failure) => {
            // There is nobody left to tell if stderr is gone.
            let _ = writeln!(io.err, "error: {failure}");
            failure.exit
        }
    }
}
