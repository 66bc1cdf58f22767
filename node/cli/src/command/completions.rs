//! `quorate completions`: scripts for shells.

use clap_complete::Shell;

use crate::{Exit, Failure, Io};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  quorate completions bash > /etc/bash_completion.d/quorate
  quorate completions zsh  > \"${fpath[1]}/_quorate\"
  quorate completions fish > ~/.config/fish/completions/quorate.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn execute(
    args: &CompletionsArgs,
    mut parser: clap::Command,
    io: &mut Io<'_>,
) -> Result<Exit, Failure> {
    let name = parser.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut parser, name, &mut script);
    io.out.write_all(&script)?;
    Ok(Exit::Ok)
}
