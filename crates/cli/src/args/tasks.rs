//! Arguments of `patchwright tasks`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::tasks_real::{FromReleasesArgs, InjectArgs, ValidateArgs};

/// `patchwright tasks`.
#[derive(Debug, Subcommand)]
pub enum TasksCommand {
    /// Make validated task instances from a seed
    Generate(GenerateArgs),
    /// List a task set, or show one of its instances
    Show(ShowArgs),
    /// Read SWE-bench and SWE-rebench rows (JSONL, JSON, Parquet) and Harbor tasks
    Import(ImportArgs),
    /// Write tasks as Harbor task directories
    Export(ExportArgs),
    /// Keep the tasks that are worth training on, or a fixed subset
    Filter(FilterArgs),
    /// Make tasks of real bug-fix releases: the fixed one's tests over the buggy one's sources
    FromReleases(FromReleasesArgs),
    /// Make tasks by putting bugs into real packages
    Inject(InjectArgs),
    /// Run the hidden tests with and without the gold patch, many times
    Validate(ValidateArgs),
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

/// What the inputs of `tasks import` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// By the files' names and first bytes
    Auto,
    /// One JSON row a line, also .gz and .zst
    Jsonl,
    /// A JSON array of rows, or one row after the other
    Json,
    /// Parquet
    Parquet,
    /// Harbor task directories
    Harbor,
}

/// `patchwright tasks import`.
#[derive(Debug, Args)]
#[command(after_help = "A row that cannot be used is named with its file, number and field, and \
    the rest goes on; the\nexit code is then 1. Nothing of a row is lost: fields that are not \
    known are kept.\n\nExamples:\n  \
    patchwright tasks import SWE-rebench/data --out rebench.jsonl\n  \
    patchwright tasks import verified.parquet --out verified.jsonl --strict\n  \
    patchwright tasks import terminal-tasks/ --format harbor --out tasks.jsonl")]
pub struct ImportArgs {
    /// Files, or directories of files
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// The new JSONL file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What the inputs are
    #[arg(long, value_enum, default_value_t = InputFormat::Auto)]
    pub format: InputFormat,
    /// Stops at the first row that cannot be used, and writes nothing then
    #[arg(long)]
    pub strict: bool,
    /// Prints the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `tasks export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Harbor task directories
    Harbor,
}

/// `patchwright tasks export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright tasks export tasks.jsonl --format harbor --out harbor/\n  \
    patchwright tasks import harbor/ --out same.jsonl")]
pub struct ExportArgs {
    /// Files, or directories of files, as `tasks import` reads them
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// The directory; each task becomes a new directory in it
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = OutputFormat::Harbor)]
    pub format: OutputFormat,
}

/// `patchwright tasks filter`.
#[derive(Debug, Args)]
#[command(
    after_help = "The rules and their thresholds are the recipe's section [filter]. They are \
    applied in order; the\nfunnel says what each dropped, what it would drop alone, and what no \
    other rule drops.\nA sample depends on the ids and the seed only: the same set and seed give \
    the same subset.\n\nExamples:\n  \
    patchwright tasks filter rebench.jsonl --out pool.jsonl --validation report.jsonl\n  \
    patchwright tasks filter rebench.jsonl --out small.jsonl --set filter.max_modified_files=2\n  \
    patchwright tasks filter rebench.jsonl --away-from verified.jsonl --out pool.jsonl\n  \
    patchwright tasks filter rebench.jsonl --explain org__repo-1\n  \
    patchwright tasks filter verified.jsonl --no-rules --sample 50 --out verified-50.jsonl \\\n      \
      --write-ids verified-50.txt\n  \
    patchwright tasks filter verified.jsonl --no-rules --ids verified-50.txt --out v50.jsonl\n  \
    patchwright tasks filter rebench.jsonl --no-rules --month 2025-05 --out may.jsonl"
)]
pub struct FilterArgs {
    /// Files, or directories of files, as `tasks import` reads them
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// The new JSONL file; without it the rules are only counted
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Shipped recipe or recipe file whose filter section holds the thresholds
    #[arg(long, value_name = "RECIPE", default_value = "swe-rebench")]
    pub recipe: String,
    /// Sets one value of the recipe, such as filter.max_modified_files=5
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Selects only: none of the recipe's rules is applied
    #[arg(long, conflicts_with = "overrides")]
    pub no_rules: bool,
    /// Report of `tasks validate`, for the rules on flaky and wrong tasks
    #[arg(long, value_name = "FILE")]
    pub validation: Option<PathBuf>,
    /// Drops what shares an instance, a commit or a gold patch with this set, as training is
    /// refused for; can be repeated
    #[arg(long = "away-from", value_name = "SET")]
    pub away_from: Vec<PathBuf>,
    /// Only these instances: ids one a line, a JSON list, or rows
    #[arg(long, value_name = "FILE")]
    pub ids: Option<PathBuf>,
    /// Only this repository, such as org/name; can be repeated
    #[arg(long = "repo", value_name = "REPO")]
    pub repos: Vec<String>,
    /// Only this language; can be repeated. A row without the field is Python
    #[arg(long = "language", value_name = "NAME")]
    pub languages: Vec<String>,
    /// Only what was created on this day or later
    #[arg(long, value_name = "DATE")]
    pub created_from: Option<String>,
    /// Only what was created before this day
    #[arg(long, value_name = "DATE")]
    pub created_before: Option<String>,
    /// Only what was created in this month, such as 2025-05; can be repeated
    #[arg(long = "month", value_name = "MONTH")]
    pub months: Vec<String>,
    /// A fixed pseudo-random subset of what is kept
    #[arg(long, value_name = "N")]
    pub sample: Option<usize>,
    /// Seed of the subset
    #[arg(long, value_name = "S", default_value_t = 0, requires = "sample")]
    pub seed: u64,
    /// Writes the ids that are kept, one a line
    #[arg(long, value_name = "FILE")]
    pub write_ids: Option<PathBuf>,
    /// Says what every rule finds in one instance, and writes nothing
    #[arg(long, value_name = "ID", conflicts_with_all = ["out", "write_ids", "sample"])]
    pub explain: Option<String>,
    /// Prints the funnel, or the explanation, as JSON
    #[arg(long)]
    pub json: bool,
}
