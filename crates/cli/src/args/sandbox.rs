//! Arguments of `patchwright sandbox`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `patchwright sandbox`.
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Run one command in a fresh sandbox; its output and exit code are passed through
    Run(SandboxRunArgs),
}

/// `patchwright sandbox run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright sandbox run -- python3 --version\n  \
    patchwright sandbox run --repo . -- bash -c 'ls && id -u'\n\n\
    The exit code is the command's; 124 when it ran out of time, 128 + N when signal N ended it.")]
pub struct SandboxRunArgs {
    /// Directory that appears inside as the repository; it is never written to
    #[arg(long, value_name = "DIR")]
    pub repo: Option<PathBuf>,
    /// Wall-clock bound in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// Passes standard input in, to its end
    #[arg(long)]
    pub stdin: bool,
    /// Prints the changes of the repository as a unified diff afterwards
    #[arg(long)]
    pub diff: bool,
    /// Program and arguments
    #[arg(
        value_name = "COMMAND",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<String>,
}
