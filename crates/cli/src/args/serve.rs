//! `patchwright serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// `patchwright serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    patchwright serve --checkpoint base\n  \
    patchwright serve --checkpoint runs/embedded-0/checkpoints/51 --name policy\n  \
    patchwright serve --bind 0.0.0.0:8000 --token-file token.txt\n\n\
    OpenAI clients: OPENAI_BASE_URL=http://127.0.0.1:8000/v1\n\
    Tinker clients: TINKER_BASE_URL=http://127.0.0.1:8000 (their keys begin with tml-)\n\n\
    The bearer token comes from --token-file or from the variable PATCHWRIGHT_TOKEN, never from an\n\
    argument; other machines are served only with one. Ctrl-C lets requests in work finish.")]
pub struct ServeArgs {
    /// Checkpoint directory, or base for the shipped one
    #[arg(long, value_name = "DIR", default_value = "base")]
    pub checkpoint: String,
    /// The model's name to clients [default: the directory's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Address and port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    pub bind: SocketAddr,
    /// File with the bearer token that requests must bear
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Chat template in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Where clients' checkpoints are kept [default: a directory that goes with the server]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Room for clients' checkpoints, in GiB; once they hold so much, no more are saved
    #[arg(long, value_name = "GIB", default_value_t = 64)]
    pub max_store: u64,
    /// Models in training at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub max_models: usize,
    /// Completions drawn at once; more wait
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_samples: usize,
    /// Largest body of a request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub max_body: usize,
    /// Threads of the engine [default: as many as the machine has cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}
