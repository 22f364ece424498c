//! Arguments of `patchwright sandbox`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `patchwright sandbox`.
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Run one command in a fresh sandbox; its output and exit code are passed through
    Run(SandboxRunArgs),
    /// Look around in a sandbox, line by line
    Shell(SandboxShellArgs),
    /// List the sandboxes that live, with their owners
    List(SandboxListArgs),
    /// Remove what killed programs have left: processes, cgroups, mounts, directories
    Reap(SandboxReapArgs),
}

/// What a sandbox is made of, and its bounds.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Container image to run in; got from its registry where it is not here yet
    #[arg(long, value_name = "REF", conflicts_with = "rootfs", help_heading = "Files")]
    pub image: Option<String>,
    /// Directory that is the root inside; it is never written to
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub rootfs: Option<PathBuf>,
    /// Directory that appears at /testbed; it is never written to. Without it, the repository is
    /// the root's own: the image's working directory, or --rootfs's /testbed
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub repo: Option<PathBuf>,
    /// Host directory that appears read-only inside; may be repeated
    #[arg(long = "mount", value_name = "HOST:INSIDE", value_parser = mount, help_heading = "Files")]
    pub mounts: Vec<(PathBuf, String)>,
    /// Working directory inside [default: the repository's, or the image's own]
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub cwd: Option<String>,
    /// Environment variable; the host's are never passed in; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Memory of all processes together, such as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size, help_heading = "Limits")]
    pub memory: u64,
    /// Bytes that may be written; they are held in memory, so at least 32M less than --memory
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size, help_heading = "Limits")]
    pub disk: u64,
    /// Processes and threads alive at once
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Limits")]
    pub processes: u64,
    /// CPU time of a command in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Limits")]
    pub cpu: u64,
    /// Wall-clock time of a command in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Limits")]
    pub timeout: u64,
    /// Bytes kept of each of standard output and standard error, at most 16M
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = size, help_heading = "Limits")]
    pub output: u64,
}

/// `patchwright sandbox run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright sandbox run -- python3 --version\n  \
    patchwright sandbox run --repo . -- bash -c 'ls && id -u'\n  \
    patchwright sandbox run --image debian:12 --memory 1G -- cat /etc/os-release\n  \
    patchwright sandbox run --rootfs ./root --mount ./data:/data --env MODE=test -- ls /data\n\n\
    There is no network but the sandbox's own localhost. Output is passed on as it comes. Ctrl-C ends\n\
    the command and leaves nothing behind.\n\
    The exit code is the command's; 124 when it ran out of time, 128 + N when signal N ended it.")]
pub struct SandboxRunArgs {
    /// The sandbox.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
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

/// `patchwright sandbox shell`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright sandbox shell --repo .\n  \
    patchwright sandbox shell --image debian:12\n  \
    echo 'cd /usr; ls' | patchwright sandbox shell\n\n\
    Each line is a command of its own, as an agent's are: files, the working directory and\n\
    exported variables stay from line to line; processes, functions and other variables do not.\n\
    There is no terminal inside (no editors, no job control), and standard input is empty.\n\
    A line that ends with \\ goes on in the next one. `:diff` shows the repository's changes;\n\
    `exit` or Ctrl-D ends the shell with the last exit code, Ctrl-C at once.")]
pub struct SandboxShellArgs {
    /// The sandbox.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// `patchwright sandbox list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright sandbox list\n  \
    patchwright sandbox list --json\n\n\
    Only this user's are seen. Exit code 1 when a lease is damaged.")]
pub struct SandboxListArgs {
    /// Prints the sandboxes as JSON
    #[arg(long)]
    pub json: bool,
}

/// `patchwright sandbox reap`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright sandbox reap --dry-run\n  \
    patchwright sandbox reap\n\n\
    Every command that makes sandboxes does this first. What belongs to a living program is left\n\
    alone. Exit code 1 when something could not be removed, or a lease is damaged.")]
pub struct SandboxReapArgs {
    /// Only tells what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Prints what was found as JSON
    #[arg(long)]
    pub json: bool,
}

/// `512M`, `2G`, `65536`: bytes, in powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[number.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        unit => return Err(format!("`{unit}` is no unit; use K, M or G")),
    };
    let number: u64 =
        number.trim().parse().map_err(|_| "is no size; write 512M, 2G or bytes".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "is too large".to_owned())
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE; the host's own value is never passed in".to_owned()),
    }
}

fn mount(text: &str) -> Result<(PathBuf, String), String> {
    match text.rsplit_once(':') {
        Some((host, inside)) if !host.is_empty() && inside.starts_with('/') => {
            Ok((PathBuf::from(host), inside.to_owned()))
        }
        _ => Err("write HOST:INSIDE with an absolute path inside".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{mount, size, variable};

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("1 k"), Ok(1024));
        assert_eq!(size("65536"), Ok(65536));
        for bad in ["", "M", "-1", "1T", "1.5G", "99999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_are_taken_apart() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(variable("A").is_err() && variable("=b").is_err());
        assert_eq!(mount("a:b:/c"), Ok(("a:b".into(), "/c".to_owned())));
        assert!(mount("/a").is_err() && mount("/a:b").is_err() && mount(":/b").is_err());
    }
}
