//! Arguments of the task commands that work on real packages and on finished tasks.

use std::path::PathBuf;

use clap::Args;

/// `patchwright tasks from-releases`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright tasks from-releases xmltodict 0.14.1 0.14.2 --out tasks.jsonl\n  \
    patchwright tasks from-releases --pairs pairs.jsonl --out tasks.jsonl --json\n\n\
    A line of --pairs is a JSON object with package, buggy and fixed; tests (their files and\n\
    directories) and requirements (such as [\"pytest<8\"]) may be given. Source distributions come\n\
    from the ordinary pip client, which follows your pip configuration and runs the packages' setup\n\
    code outside of the sandbox; tests run inside. Finished pairs are kept in --cache. Exit code 1\n\
    when no pair makes a task.")]
pub struct FromReleasesArgs {
    /// The package's name on the index
    #[arg(value_name = "PACKAGE", required_unless_present = "pairs", requires = "fixed")]
    pub package: Option<String>,
    /// The release with the bug
    #[arg(value_name = "BUGGY", requires = "package")]
    pub buggy: Option<String>,
    /// The release without it
    #[arg(value_name = "FIXED", requires = "buggy")]
    pub fixed: Option<String>,
    /// JSON lines with many pairs
    #[arg(long, value_name = "FILE", conflicts_with = "package")]
    pub pairs: Option<PathBuf>,
    /// The new JSONL file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Runs of the tests on each side; only what agrees in all of them counts
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..))]
    pub repeats: u32,
    /// What all real-task commands take.
    #[command(flatten)]
    pub real: RealArgs,
}

/// `patchwright tasks inject`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright tasks inject parse xmltodict --out bugs.jsonl --num 50\n  \
    patchwright tasks inject sqlparse==0.5.1 --out hard.jsonl --num 20 --bugs 3\n  \
    patchwright tasks inject boltons --out mixed.jsonl --num 100 --impossible 0.05\n\n\
    Bugs are put where the package's own tests reach them. --impossible replaces a share of the\n\
    tasks by canaries, whose hidden tests contradict the issue: a pass on one is a cheat.")]
pub struct InjectArgs {
    /// Packages on the index, each NAME (its newest release) or NAME==VERSION
    #[arg(value_name = "PACKAGE", required = true)]
    pub packages: Vec<String>,
    /// The new JSONL file
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Tasks in all, about the same number of each package
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub num: usize,
    /// Bugs in one task, each in another function
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub bugs: usize,
    /// Seed of which bugs are chosen
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,
    /// Share of the tasks that are replaced by canaries, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub impossible: f64,
    /// What all real-task commands take.
    #[command(flatten)]
    pub real: RealArgs,
}

/// `patchwright tasks validate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright tasks validate tasks.jsonl --repeats 50 --report report.jsonl\n  \
    patchwright tasks validate tasks.jsonl --out valid.jsonl\n\n\
    With the gold patch every hidden test must pass, without it FAIL_TO_PASS must fail and\n\
    PASS_TO_PASS pass, and every repeat must agree. Runs are kept in --cache one by one: an\n\
    interrupted call goes on where it stopped. Exit code 1 when a task is not valid.")]
pub struct ValidateArgs {
    /// File or directory of SWE-bench-style JSONL rows
    #[arg(value_name = "TASKS")]
    pub tasks: PathBuf,
    /// Runs of the gold patch; a tenth as many of the empty one [the reference: 50]
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Writes the valid tasks to a new JSONL file
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Writes a verdict for each task, as JSON lines: what the flaky rule of `tasks filter` reads
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// What all real-task commands take.
    #[command(flatten)]
    pub real: RealArgs,
}

/// What all commands on real tasks take.
#[derive(Debug, Args)]
pub struct RealArgs {
    /// Packages, or runs, at the same time
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub jobs: usize,
    /// Wall-clock bound of one run of a task's tests, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Where sources, environments and finished work are kept [default: patchwright/real in the
    /// user's cache directory]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Prints the reports as JSON instead of the table
    #[arg(long)]
    pub json: bool,
}
