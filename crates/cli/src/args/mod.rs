//! What can be asked of the program. Values are checked here for form only; meaning is checked
//! where they are used.

#![expect(clippy::doc_markdown, reason = "docstrings of arguments are read in a terminal")]

mod bench;
mod export;
mod gateway;
mod images;
mod models;
mod sandbox;
mod serve;
mod tasks;
mod tasks_real;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use bench::{
    BenchCommand, BenchControlArgs, BenchEngineArgs, BenchSandboxArgs, BenchServeArgs, Peer,
};
pub use export::{Attempts, ExportRolloutsArgs, RolloutFormat};
pub use gateway::{GatewayApi, GatewayArgs};
pub use images::{
    ImagesCommand, ImagesGcArgs, ImagesListArgs, ImagesLoadArgs, ImagesPullArgs, ImagesRemoveArgs,
    StoreArgs,
};
pub use models::{Dtype, ModelsCommand, ModelsImportArgs, ModelsShowArgs};
pub use sandbox::{
    SandboxArgs, SandboxCommand, SandboxListArgs, SandboxReapArgs, SandboxRunArgs, SandboxShellArgs,
};
pub use serve::ServeArgs;
pub use tasks::{
    ExportArgs, FilterArgs, GenerateArgs, ImportArgs, InputFormat, OutputFormat, ShowArgs,
    TaskKind, TasksCommand,
};
pub use tasks_real::{FromReleasesArgs, InjectArgs, RealArgs, ValidateArgs};

/// Trains software-engineering agents with reinforcement learning.
///
/// Data goes to standard output, everything for people to standard error.
/// Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
#[derive(Debug, Parser)]
#[command(
    name = "patchwright",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Examples:\n  \
        patchwright doctor                 check that this machine can run everything\n  \
        patchwright train smoke            the whole loop in under a minute\n  \
        patchwright train                  the embedded recipe, from tasks to a better policy\n\n\
        Colour follows NO_COLOR and CLICOLOR_FORCE."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a policy: evaluate, fine-tune on successes, reinforce, evaluate again
    Train(TrainArgs),
    /// Make the base policy that training starts from
    Pretrain(PretrainArgs),
    /// Measure a checkpoint on a task set
    Eval(EvalArgs),
    /// Let the agent work on tasks and grade what it did
    Rollout(RolloutArgs),
    /// Write rollouts in the formats of others: ATIF, .traj, chat, Parquet, predictions
    Export(ExportRolloutsArgs),
    /// Make and show task sets
    #[command(subcommand)]
    Tasks(TasksCommand),
    /// Run commands where the agent runs them
    #[command(subcommand)]
    Sandbox(SandboxCommand),
    /// Get and keep container images, without a daemon
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Show and import models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Serve a model: OpenAI-compatible endpoints and the Tinker API
    Serve(ServeArgs),
    /// Give tasks to agents that run anywhere: record, grade and keep what they do
    Gateway(GatewayArgs),
    /// Measure this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Render a run's report.html again
    Report(ReportArgs),
    /// Check this machine: python3, the kernel's sandbox features, disk space
    Doctor(DoctorArgs),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
}

/// `patchwright train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright train\n  \
    patchwright train smoke --seed 7 --out runs/smoke-7\n  \
    patchwright train embedded --set rl.0.lr=5e-4 --set run.name=slower\n  \
    patchwright train my-recipe.toml\n  \
    patchwright train --resume runs/embedded-0\n\n\
    Ctrl-C stops after saying how to go on; a second one stops at once.")]
pub struct TrainArgs {
    /// A recipe's name (embedded, smoke, swe-rebench) or the path of a TOML file
    #[arg(value_name = "RECIPE", default_value = "embedded")]
    pub recipe: String,
    /// The new run directory [default: runs/NAME-SEED]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Seed of every random decision of training and evaluation; the same as --set run.seed=N
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Changes one value of the recipe, such as rl.0.lr=1e-3; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Goes on with an interrupted run, with the recipe and seed that it has
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "out", "seed", "overrides"])]
    pub resume: Option<PathBuf>,
    /// Prints report.json to standard output instead of the table
    #[arg(long)]
    pub json: bool,
}

/// `patchwright report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright report runs/embedded-0\n  \
    patchwright report runs/embedded-0 --json\n\n\
    Reads the run's journal; an unfinished run gives what there is. Writes report.html into DIR.")]
pub struct ReportArgs {
    /// The run directory
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Prints the evaluations as JSON instead of the table
    #[arg(long)]
    pub json: bool,
}

/// `patchwright doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright doctor\n  \
    patchwright doctor --json\n\n\
    Exit code 1 when something that is needed is missing; each such line says how to mend it.")]
pub struct DoctorArgs {
    /// Prints the checks as JSON
    #[arg(long)]
    pub json: bool,
}

/// `patchwright completions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright completions bash > ~/.local/share/bash-completion/completions/patchwright\n  \
    patchwright completions fish > ~/.config/fish/completions/patchwright.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// `patchwright pretrain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright pretrain --out checkpoints/mine\n  \
    patchwright pretrain --out checkpoints/small --seed 1 --set num_sessions=2000\n  \
    patchwright pretrain --out checkpoints/again --recipe models/base/pretrain.json\n\n\
    The checkpoint holds the recipe that made it as pretrain.json.")]
pub struct PretrainArgs {
    /// The new checkpoint directory
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// A file with the values that are not the default, TOML or a checkpoint's pretrain.json
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Seed of the weights and of the corpus; the same as --set seed=N
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Changes one value, such as num_sessions=2000; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `patchwright eval`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright eval --checkpoint runs/embedded-0/checkpoints/51\n  \
    patchwright eval --tasks transfer --runs 3 --json\n  \
    patchwright eval --model http://localhost:8000 --tasks my-tasks.jsonl --runs 10 --out evals/a\n  \
    patchwright eval --model http://localhost:8000#qwen --model https://host/v1#other \\\n      \
    --api-key-env API_KEY --tasks my-tasks.jsonl --compare runs/embedded-0/report.json\n  \
    patchwright eval --model http://localhost:8000 --api vllm --checkpoint models/qwen\n  \
    patchwright eval --resume evals/a\n\n\
    A model is named by its server's URL, and by its name there behind a # where the server has\n\
    several. --api openai speaks messages and text to any OpenAI-compatible server; the others\n\
    speak token ids, with the tokenizer of --checkpoint. Ctrl-C keeps what is finished in --out.")]
pub struct EvalArgs {
    /// Checkpoint directory, or base for the shipped one
    #[arg(long, value_name = "DIR", default_value = "base")]
    pub checkpoint: String,
    /// A model at a server, in place of the checkpoint's weights; may be repeated
    #[arg(long = "model", value_name = "URL[#NAME]")]
    pub models: Vec<String>,
    /// How the models' servers are spoken to
    #[arg(long, value_name = "API", value_enum, default_value_t = EvalApi::Openai)]
    pub api: EvalApi,
    /// Environment variable with the servers' bearer token
    #[arg(long, value_name = "VARIABLE")]
    pub api_key_env: Option<String>,
    /// held-out, transfer, or a file or directory of SWE-bench-style JSONL rows
    #[arg(long, value_name = "SET", default_value = "held-out")]
    pub tasks: String,
    /// Independent runs over the set [default: the recipe's]
    #[arg(long, value_name = "N")]
    pub runs: Option<usize>,
    /// A new directory for every rollout and the report, so that the evaluation can go on
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Goes on with the evaluation of a directory, with the arguments it was begun with
    #[arg(long, value_name = "DIR", exclusive = true)]
    pub resume: Option<PathBuf>,
    /// A report.json whose evaluations stand in the table as well; may be repeated
    #[arg(long, value_name = "FILE")]
    pub compare: Vec<PathBuf>,
    /// Prints the result as JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// The recipe behind it.
    #[command(flatten)]
    pub recipe: RecipeArgs,
}

/// How servers are spoken to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum EvalApi {
    /// `POST /v1/chat/completions`: messages and text.
    Openai,
    /// vLLM, by token ids.
    Vllm,
    /// SGLang, by token ids.
    Sglang,
    /// llama.cpp, by token ids.
    LlamaCpp,
}

/// The recipe behind a command that is no training.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    /// The recipe whose limits hold: a name or the path of a TOML file [default: embedded; with
    /// --script swe-rebench]
    #[arg(long, value_name = "RECIPE")]
    pub recipe: Option<String>,
    /// Seed of the samples
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Changes one value of the recipe, such as eval.max_turns=20; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `patchwright rollout`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright rollout --tasks tasks.jsonl\n  \
    patchwright rollout --tasks tasks.jsonl --instance org__repo-1 --json\n  \
    patchwright rollout --tasks tasks.jsonl --script script.json\n  \
    patchwright rollout --tasks tasks.jsonl --out rollouts.jsonl\n\n\
    A script drives the agent without a model: a JSON object from instance ids to the texts of\n\
    its turns, in the form of the recipe's prompt profile, such as\n  \
    {\"org__repo-1\": [\"```command\\nls\\n```\", \"```command\\nsubmit\\n```\"]}\n\
    Limits on tokens do not hold for a script.")]
pub struct RolloutArgs {
    /// File or directory of SWE-bench-style JSONL rows; the repository of a row is a local
    /// directory, a git URL, or the row's own files
    #[arg(long, value_name = "FILE")]
    pub tasks: PathBuf,
    /// Turn texts for each instance instead of a model
    #[arg(long, value_name = "FILE", conflicts_with = "checkpoint")]
    pub script: Option<PathBuf>,
    /// Checkpoint directory, or base for the shipped one [default: base]
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<String>,
    /// Only this instance; may be repeated
    #[arg(long = "instance", value_name = "ID")]
    pub instances: Vec<String>,
    /// Writes whole rollouts, with tokens and log-probabilities, to a new file, for `export`
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Prints each rollout as a line of JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// The recipe behind it.
    #[command(flatten)]
    pub recipe: RecipeArgs,
}
