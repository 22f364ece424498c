//! Arguments of `patchwright bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `patchwright bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure sandboxes beside bubblewrap and Docker, where they are, in one run
    Sandbox(BenchSandboxArgs),
    /// Measure training and sampling of the embedded engine
    Engine(BenchEngineArgs),
    /// Measure what rollouts cost beside an engine and sandboxes that only wait
    Control(BenchControlArgs),
    /// Measure what the gateway and the Tinker server cost beside their engines
    Serve(BenchServeArgs),
}

/// `patchwright bench serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright bench serve\n  \
    patchwright bench serve --rows gateway --requests 1000\n  \
    patchwright bench serve --rows train-5.8m-8x512-f32,sample-embedded-64 --steps 5 --json\n\n\
    All over loopback, in one run, both ways in turn. gateway: chat completions of an engine that\n\
    only waits, asked directly and through the gateway, which asks the same server for tokens.\n\
    Other rows are those of `patchwright bench engine`: the engine itself, and our client against\n\
    our Tinker server over the same engine.")]
pub struct BenchServeArgs {
    /// Rows to measure [default: gateway, train-5.8m-8x512-f32, sample-embedded-64]
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    pub rows: Vec<String>,
    /// Requests each way of the gateway's row
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = requests)]
    pub requests: usize,
    /// What the engine of the gateway's row waits, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pub wait_ms: u64,
    /// Steps or rounds each way of other rows, after one that warms up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub steps: usize,
    /// Threads of an engine [default: the machine's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Prints the figures as JSON
    #[arg(long)]
    pub json: bool,
}

fn requests(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=1_000_000).contains(&n) => Ok(n),
        _ => Err("expected a number from 1 to 1000000".to_owned()),
    }
}

/// `patchwright bench control`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright bench control\n  \
    patchwright bench control --episodes 512 --turns 4 --json\n  \
    taskset -c 0 patchwright bench control")]
pub struct BenchControlArgs {
    /// Episodes, all in flight at once
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = episodes)]
    pub episodes: usize,
    /// Turns of each
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    pub turns: usize,
    /// Shortest wait for the engine in a turn, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub min_ms: u64,
    /// Longest wait for the engine in a turn, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 7000)]
    pub max_ms: u64,
    /// Prints the figures as JSON
    #[arg(long)]
    pub json: bool,
}

fn episodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=16_384).contains(&n) => Ok(n),
        _ => Err("expected a number from 1 to 16384".to_owned()),
    }
}

/// `patchwright bench engine`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright bench engine\n  \
    patchwright bench engine --rows train-5.8m-8x512-f32,sample-embedded-64 --steps 3\n  \
    patchwright bench engine --json > bench.json\n\n\
    Rows are named train-SHAPE-COUNTxLENGTH-PRECISION (shapes 1m, 5.8m, smollm2; f32 or bf16),\n\
    sample-embedded-COUNT and sample-smollm2-COUNT-PRECISION. bench/engine_train_peers.py and\n\
    bench/engine_sample_peers.py measure other engines beside.")]
pub struct BenchEngineArgs {
    /// Rows to measure [default: those of the published table]
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    pub rows: Vec<String>,
    /// Steps or rounds of each row, after one that warms up; the best counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub steps: usize,
    /// Threads [default: the machine's]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Checkpoint that sample-embedded draws from [default: random weights of its shape]
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Prints the figures as JSON
    #[arg(long)]
    pub json: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=1024).contains(&n) => Ok(n),
        _ => Err("expected a number from 1 to 1024".to_owned()),
    }
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
