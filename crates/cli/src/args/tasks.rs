//! Arguments of `patchwright tasks`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `patchwright tasks`.
#[derive(Debug, Subcommand)]
pub enum TasksCommand {
    /// Make validated task instances from a seed
    Generate(GenerateArgs),
    /// List a task set, or show one of its instances
    Show(ShowArgs),
}

/// Which embedded repositories tasks are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaskKind {
    /// The compositional generator
    Generated,
    /// The hand-written repositories
    Katas,
}

/// `patchwright tasks generate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright tasks generate --out tasks.jsonl --num 100 --seed 3\n  \
    patchwright tasks generate --kind katas --out katas.jsonl --num 40")]
pub struct GenerateArgs {
    /// The new JSONL file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Number of instances
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub num: usize,
    /// Seed of the repositories and their bugs
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// What the repositories are
    #[arg(long, value_enum, default_value_t = TaskKind::Generated)]
    pub kind: TaskKind,
    /// Instances made of one repository at most
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub per_repo: usize,
}

/// `patchwright tasks show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright tasks show tasks.jsonl\n  \
    patchwright tasks show tasks.jsonl org__repo-1 --patch\n  \
    patchwright tasks show tasks.jsonl org__repo-1 --json")]
pub struct ShowArgs {
    /// File or directory of SWE-bench-style JSONL rows
    #[arg(value_name = "FILE")]
    pub tasks: PathBuf,
    /// The instance to show; all are listed without it
    #[arg(value_name = "ID")]
    pub instance: Option<String>,
    /// Shows the gold patch as well
    #[arg(long, requires = "instance")]
    pub patch: bool,
    /// Prints rows as JSON lines
    #[arg(long)]
    pub json: bool,
}
