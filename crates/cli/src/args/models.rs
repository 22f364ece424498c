//! Arguments of `patchwright models`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `patchwright models`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Show what a model is, without reading its weights
    Show(ModelsShowArgs),
    /// Turn a GGUF file into a Hugging Face directory, tokenizer and chat template included
    Import(ModelsImportArgs),
}

/// `patchwright models show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright models show models/smollm2\n  \
    patchwright models show SmolLM2-135M-Instruct.Q4_1.gguf --json\n\n\
    Checks that every tensor of the architecture is there with its shape.")]
pub struct ModelsShowArgs {
    /// A Hugging Face directory or a GGUF file
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// Prints the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `patchwright models import`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright models import SmolLM2-135M-Instruct.Q4_1.gguf --out models/smollm2\n  \
    patchwright models import model.gguf --out models/half --dtype bf16\n  \
    patchwright rollout --checkpoint models/smollm2 --tasks tasks.jsonl --set agent.profile=chat\n\n\
    Reads llama, qwen2 and qwen3 in F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and\n\
    Q6_K, with tokenizers of the kinds smollm, qwen2 and llama-bpe. The directory appears whole or\n\
    not at all; transformers loads it too.")]
pub struct ModelsImportArgs {
    /// The GGUF file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The new directory
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Format of the weights; f16 and bf16 round what the file holds
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// Splits the weights into files of at most so many megabytes
    #[arg(long, value_name = "MB", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub shard_mb: u64,
    /// Prints the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Formats of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32 bits: exactly what the file holds
    F32,
    /// 16 bits, 11 of them significant
    F16,
    /// 16 bits, 8 of them significant, with the range of f32
    Bf16,
}
