//! Exit codes, and failures as one readable line made from a gRPC status and its details.

use std::{fmt, io, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::manifest::field_in_manifest;

/// How a command ended. The numbers are part of the interface for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line is wrong (clap exits with this one as well).
    Usage = 2,
    /// The resource, node or file does not exist.
    NotFound = 3,
    /// Another version is there, it exists already, or the state of the cluster forbids it.
    Conflict = 4,
    /// The manifest or a value in it is wrong.
    Invalid = 5,
    /// No node answers, or the cluster has no leader or quorum.
    Unavailable = 6,
    /// The time given with --timeout or --wait-timeout is over.
    Timeout = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The table of exit codes for `--help` texts.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for another reason
  2  the command line is wrong
  3  the resource, node or file does not exist
  4  conflict: another version is there, it exists already, or the cluster's state forbids it
  5  the manifest or a value in it is wrong; nothing was changed
  6  no node answers, or the cluster has no leader or quorum
  7  timed out";

/// Why a command failed: an exit code and a line for people.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// What went wrong, without a final newline. Several lines only where several things are wrong.
    pub message: String,
    /// The field that the server names as wrong, in the manifest's notation.
    pub field: Option<String>,
    /// The status that a server answered.
    pub code: Option<Code>,
    /// Whoever read our output went away.
    pub(crate) broken_pipe: bool,
}

impl Failure {
    /// A failure with a message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            field: None,
            code: None,
            broken_pipe: false,
        }
    }

    /// Puts what was being done in front of the message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl Failure {
    /// Says what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: &str) -> Self {
        self.message = format!("{} ({hint})", self.message);
        self
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self {
            broken_pipe: error.kind() == io::ErrorKind::BrokenPipe,
            ..Self::new(exit, error.to_string())
        }
    }
}

/// The last error of a chain says what happened; those before it only say that something did.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Whether the connection broke under a call. A status that a server sent has no source.
pub(crate) fn is_broken_connection(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Some(source) = std::error::Error::source(&status) {
            let message = format!("the connection broke: {}", root_cause(source));
            return Self {
                code: Some(Code::Unavailable),
                ..Self::new(Exit::Unavailable, message)
            };
        }
        let exit = match status.code() {
            // Out of range is what a server says of a request that is too large.
            Code::InvalidArgument | Code::OutOfRange => Exit::Invalid,
            Code::NotFound => Exit::NotFound,
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => Exit::Conflict,
            Code::Unavailable => Exit::Unavailable,
            Code::DeadlineExceeded => Exit::Timeout,
            _ => Exit::Failed,
        };
        let details = status.get_error_details();
        let mut field = None;
        let mut parts: Vec<String> = Vec::new();
        for violation in details
            .bad_request()
            .iter()
            .flat_map(|b| &b.field_violations)
        {
            let name = field_in_manifest(&violation.field);
            parts.push(if name.is_empty() {
                violation.description.clone()
            } else {
                format!("{name}: {}", violation.description)
            });
            field.get_or_insert(name);
        }
        for violation in details
            .precondition_failure()
            .iter()
            .flat_map(|p| &p.violations)
        {
            parts.push(violation.description.clone());
        }
        if parts.is_empty() {
            parts.push(match (status.message(), status.code()) {
                // tonic's own text for a peer that does not know the method.
                (_, Code::Unimplemented) => {
                    "the server does not know this call: is it another version, or not a control address?".to_owned()
                }
                ("", code) => code.description().to_owned(),
                (message, _) => message.to_owned(),
            });
        }
        // One line, whatever a server sends, and no control characters for the terminal.
        let message = parts
            .join("; ")
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect::<String>();
        Self {
            field,
            code: Some(status.code()),
            ..Self::new(exit, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn statuses_become_exit_codes_and_lines() {
        let invalid = Status::with_error_details(
            Code::InvalidArgument,
            "invalid",
            ErrorDetails::with_bad_request_violation(
                "spec.pool.health.unhealthy_interval",
                "must be at least 10ms",
            ),
        );
        let failure = Failure::from(invalid);
        assert_eq!(failure.exit, Exit::Invalid);
        assert_eq!(
            failure.to_string(),
            "spec.health.unhealthyInterval: must be at least 10ms"
        );
        assert_eq!(
            failure.field.as_deref(),
            Some("spec.health.unhealthyInterval")
        );

        for (status, exit, message) in [
            (
                Status::not_found("there is no pool \"x\""),
                Exit::NotFound,
                "there is no pool \"x\"",
            ),
            (
                Status::aborted("pool \"x\" has version 4, not 3"),
                Exit::Conflict,
                "pool \"x\" has version 4, not 3",
            ),
            (
                Status::unavailable("no leader"),
                Exit::Unavailable,
                "no leader",
            ),
            (Status::deadline_exceeded("late"), Exit::Timeout, "late"),
            (Status::internal("a\nb\u{1b}[31m"), Exit::Failed, "a b [31m"),
            (Status::internal(""), Exit::Failed, "Internal error"),
        ] {
            let failure = Failure::from(status);
            assert_eq!(
                (failure.exit, failure.to_string().as_str()),
                (exit, message)
            );
        }
    }

    #[test]
    fn the_help_table_has_every_code() {
        for code in 0..=Exit::Timeout as u8 {
            assert!(EXIT_CODES.contains(&format!("\n  {code}  ")), "{code}");
        }
    }
}
