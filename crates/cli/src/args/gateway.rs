//! `patchwright gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::RecipeArgs;

/// `patchwright gateway`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright gateway --out episodes\n  \
    patchwright gateway --tasks my-tasks.jsonl --runs 4 --out episodes --json\n  \
    patchwright gateway --model http://localhost:8000 --api vllm --checkpoint models/qwen \\\n      \
    --tasks my-tasks.jsonl --out episodes --bind 0.0.0.0:8001 --token-file token.txt\n  \
    patchwright gateway --resume episodes\n  \
    patchwright export episodes --format parquet --out episodes.parquet\n\n\
    An agent asks for an episode and gets a key, the issue and its limits; works with the key as\n\
    its OpenAI API key; and submits a unified diff, which is graded:\n  \
    curl -X POST -H \"Authorization: Bearer $PATCHWRIGHT_TOKEN\" http://127.0.0.1:8001/episodes\n  \
    curl -H \"Authorization: Bearer $KEY\" http://127.0.0.1:8001/episodes/1/repository | tar xz\n  \
    OPENAI_BASE_URL=http://127.0.0.1:8001/v1 OPENAI_API_KEY=$KEY my-agent\n  \
    curl -H \"Authorization: Bearer $KEY\" http://127.0.0.1:8001/episodes/1/submit \\\n      \
    -d '{\"patch\": \"diff --git ...\"}'\n\
    Asked for with {\"sandbox\": true}, its commands run here instead, by POST /episode/exec, and\n\
    what stands in the sandbox is graded. 429 means try again soon, 410 that nothing is left.\n\n\
    The operator's token, for POST /episodes, comes from --token-file or PATCHWRIGHT_TOKEN. The\n\
    command ends when every run has a grade. Ctrl-C gives no more away and lets agents finish.")]
pub struct GatewayArgs {
    /// Checkpoint directory, or base for the shipped one
    #[arg(long, value_name = "DIR", default_value = "base")]
    pub checkpoint: String,
    /// A model at a server, in place of the checkpoint's weights; its tokenizer stays the
    /// checkpoint's
    #[arg(long, value_name = "URL[#NAME]")]
    pub model: Option<String>,
    /// How the model's server is spoken to
    #[arg(long, value_name = "API", value_enum, default_value_t = GatewayApi::Vllm)]
    pub api: GatewayApi,
    /// Environment variable with the server's bearer token
    #[arg(long, value_name = "VARIABLE", requires = "model")]
    pub api_key_env: Option<String>,
    /// held-out, transfer, or a file or directory of SWE-bench-style JSONL rows
    #[arg(long, value_name = "SET", default_value = "held-out")]
    pub tasks: String,
    /// Independent runs over the set
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub runs: usize,
    /// Episodes at most, retries aside [default: every run of every task]
    #[arg(long, value_name = "N")]
    pub max_episodes: Option<usize>,
    /// Episodes open at once
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_open: usize,
    /// Seconds from an episode's beginning to its submission
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub timeout: u64,
    /// Seconds that open episodes may go on after Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub drain: u64,
    /// Address and port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8001")]
    pub bind: SocketAddr,
    /// File with the operator's bearer token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A new directory for rollouts.jsonl.zst and report.json
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    pub out: Option<PathBuf>,
    /// Goes on with the episodes of a directory, with the tasks and the policy that it has
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = [
            "out", "checkpoint", "model", "api", "tasks", "runs", "max_episodes", "recipe", "seed",
            "overrides",
        ]
    )]
    pub resume: Option<PathBuf>,
    /// Prints the result as JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// The recipe behind it.
    #[command(flatten)]
    pub recipe: RecipeArgs,
}

/// How servers are spoken to: by token ids, which is what makes a recording one to train on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum GatewayApi {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp.
    LlamaCpp,
}
