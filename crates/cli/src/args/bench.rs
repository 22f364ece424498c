//! Arguments of `patchwright bench`.

use clap::{Args, Subcommand, ValueEnum};

/// `patchwright bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure sandboxes beside bubblewrap and Docker, where they are, in one run
    Sandbox(BenchSandboxArgs),
}

/// What sandboxes are measured beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// `bwrap`, without limits or overlay.
    Bubblewrap,
    /// `docker`, with a daemon that answers and an image that is there.
    Docker,
    /// Nothing.
    None,
}

/// `patchwright bench sandbox`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright bench sandbox\n  \
    patchwright bench sandbox --seconds 1 --peers none\n  \
    patchwright bench sandbox --json > bench.json\n\n\
    Peers are measured in turn with the sandboxes, one life each, so that other load falls on all.\n\
    Exit code 1 when sandboxes left something behind.")]
pub struct BenchSandboxArgs {
    /// Time for each kind of measurement of one contender
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub seconds: f64,
    /// Peers to measure [default: those that are there]
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    pub peers: Vec<Peer>,
    /// Sandboxes that are made and destroyed to see whether anything is left
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub lives: usize,
    /// Image of Docker's containers; it must be there already
    #[arg(long, value_name = "REF", default_value = "debian:12")]
    pub docker_image: String,
    /// Prints the figures as JSON
    #[arg(long)]
    pub json: bool,
}
