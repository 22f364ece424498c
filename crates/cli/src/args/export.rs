//! Arguments of `patchwright export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `patchwright export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright export runs/mine --stage eval-rl-2 --sibling 0 --format preds --out preds.json\n  \
    patchwright export runs/mine --stage rl-1 --format parquet --out rl-1.parquet\n  \
    patchwright export rollouts.jsonl --solved --format chat --out sft.jsonl\n  \
    patchwright export episodes --format parquet --out episodes.parquet\n  \
    patchwright export rollouts.jsonl --format atif --out trajectories/\n  \
    patchwright export trajectories/ --format chat --out sft.jsonl\n\n\
    A run keeps its rollouts when it was started with --set run.keep_rollouts=true;\n\
    `patchwright rollout --out FILE` writes them too. Formats that come in as well as out: jsonl,\n\
    atif, swe-agent. What exists is not overwritten.")]
pub struct ExportRolloutsArgs {
    /// A directory of train, of eval --out or of gateway, a file of rollouts (.jsonl, .jsonl.zst),
    /// an ATIF document (.json), a SWE-agent trajectory (.traj), or a directory of such files
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    pub format: RolloutFormat,
    /// The new file; for atif, swe-agent and mini-swe-agent the new directory
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Of a run, only the rollouts of this stage, such as rft, rl-1 or eval-rl-2
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,
    /// Only this sibling; in evaluations the run, from 0
    #[arg(long, value_name = "N")]
    pub sibling: Option<u32>,
    /// Only this instance; may be repeated
    #[arg(long = "instance", value_name = "ID")]
    pub instances: Vec<String>,
    /// Only rollouts that solved their task
    #[arg(long)]
    pub solved: bool,
    /// Which attempts of a run that was given away again after a failure
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Attempts::Last)]
    pub attempts: Attempts,
    /// The model's name in formats that have one
    #[arg(long, value_name = "NAME", default_value = "patchwright")]
    pub model_name: String,
    /// In atif, writes the token ids of each step's whole prompt too
    #[arg(long)]
    pub prompt_ids: bool,
    /// Prints what was written as JSON
    #[arg(long)]
    pub json: bool,
}

/// Attempts at the same run of a task, of which a gateway keeps all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attempts {
    /// The last one, which is the one that counts
    Last,
    /// Failed ones too
    All,
}

/// Formats of rollouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RolloutFormat {
    /// A rollout a line, with everything
    Jsonl,
    /// Agent Trajectory Interchange Format 1.7, a document a rollout
    Atif,
    /// SWE-agent's .traj, a document a rollout
    SweAgent,
    /// mini-swe-agent's .traj.json, a document a rollout
    MiniSweAgent,
    /// Messages for supervised fine-tuning, a conversation a line; error turns have weight 0
    Chat,
    /// Tokens, loss mask and log-probabilities, a row a rollout and a row for each of its branches
    Parquet,
    /// SWE-bench's predictions as one object (preds.json)
    Preds,
    /// SWE-bench's predictions, one a line
    PredsJsonl,
    /// A report in the schema of SWE-bench's evaluation
    Report,
}

impl RolloutFormat {
    /// Whether it has branches beside the main trajectory.
    pub fn has_branches(self) -> bool {
        !matches!(self, Self::SweAgent | Self::MiniSweAgent) && !self.is_predictions()
    }

    /// Whether it is about patches and grades alone.
    pub fn is_predictions(self) -> bool {
        matches!(self, Self::Preds | Self::PredsJsonl | Self::Report)
    }

    /// Whether it is a directory of documents.
    pub fn is_directory(self) -> bool {
        matches!(self, Self::Atif | Self::SweAgent | Self::MiniSweAgent)
    }
}
