//! `SkyRL`'s Tinker server on a CPU (JAX backend): agreement of log-probabilities, losses and
//! gradients with the embedded engine, and whole recipes, with one process and with two.
//!
//! It needs Python 3.12. Its server starts its engine through the `uv run …` that started itself, so
//! a script of that name stands in for uv and starts the environment's own Python.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Context, Server, free_port, python, recipe, run_command};

const VERSION: &str = "0.4.0";
/// The base model is loaded before the engine answers, but after the port listens.
const STARTUP: Duration = Duration::from_mins(5);

pub(super) fn run(context: &Context) -> Result<(), String> {
    let dir = context.cache.join("skyrl");
    let python = context.timed("install", || install(&dir))?;
    context.figure("skyrl", VERSION)?;
    let model = model(context, &dir, &python)?;
    let policy = policy(context, &dir, &python)?;
    // Two processes share the model either way: each layer's rows, or its heads.
    for (num_processes, rows, heads) in [(1, Axis::Rows, Axis::Rows), (2, Axis::Rows, Axis::Heads)]
    {
        let installed = Installed { dir: &dir, python: &python, num_processes };
        context.figure("processes", &num_processes.to_string())?;
        let what = format!("agreement, processes: {num_processes}");
        context.timed(&what, || agreement(context, &installed, &model, rows))?;
        let what = format!("recipe, processes: {num_processes}");
        context.timed(&what, || {
            let place = new_place(&dir, &format!("recipe-{num_processes}"))?;
            let (_servers, url) = installed.serve(context, &policy, &place, heads)?;
            recipe::train(context, &format!("tinker-{num_processes}"), &settings(&url, &policy))
        })?;
    }
    Ok(())
}

/// What processes share out among them.
#[derive(Debug, Clone, Copy)]
enum Axis {
    /// Weights, gathered before use; sequences.
    Rows,
    /// Heads and hidden units. Fewer exchanges a token than rows, so it samples twice as fast.
    Heads,
}

/// The tests of `crates/remote/tests/skyrl.rs`.
fn agreement(
    context: &Context,
    installed: &Installed,
    model: &Path,
    axis: Axis,
) -> Result<(), String> {
    let place = new_place(installed.dir, &format!("run-{}", installed.num_processes))?;
    let (_servers, url) = installed.serve(context, model, &place, axis)?;
    let checkpoints = place.join("checkpoints");
    let test = ["-p", "patchwright-remote", "--test", "skyrl", "--", "--nocapture"];
    context.tests(
        &test,
        &[
            ("PATCHWRIGHT_TINKER_URL", &url),
            ("PATCHWRIGHT_TINKER_MODEL", &model.display().to_string()),
            ("PATCHWRIGHT_TINKER_CHECKPOINTS", &checkpoints.display().to_string()),
        ],
    )
}

/// An empty directory for a server.
fn new_place(dir: &Path, name: &str) -> Result<PathBuf, String> {
    let place = dir.join(name);
    let failed = |error: std::io::Error| format!("{}: {error}", place.display());
    if place.exists() {
        std::fs::remove_dir_all(&place).map_err(failed)?;
    }
    std::fs::create_dir_all(&place).map_err(failed)?;
    Ok(place)
}

/// What keeps the recipe short at a server that compiles anew for every length and decodes as long as
/// a turn may be: short turns, few of them, and many rollouts at a time.
const QUICK: [&str; 13] = [
    "rft.num_tasks=8",
    "rft.max_turns=4",
    "rl.0.problems_per_iteration=4",
    "rl.0.max_turns=4",
    "rl.0.length_threshold=3",
    "rl.1.problems_per_iteration=4",
    "rl.1.max_turns=4",
    "rl.1.length_threshold=3",
    "eval.max_turns=4",
    "agent.max_tokens_per_turn=32",
    "infrastructure.num_workers=32",
    "trainer=tinker",
    "tinker.lora_rank=8",
];

/// The recipe with its weights at the server, which clips no gradients.
fn settings(url: &str, policy: &Path) -> Vec<String> {
    let policy = policy.display();
    let mut settings: Vec<String> = QUICK.map(str::to_owned).to_vec();
    settings.extend([
        format!("tinker.url={url}"),
        format!("tinker.base_model={policy}"),
        format!("engine.checkpoint={policy}"),
    ]);
    settings.extend(["rft", "rl.0", "rl.1"].map(|stage| format!("{stage}.grad_clip=0")));
    settings
}

fn install(dir: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let packages = [&format!("skyrl[tinker,jax]=={VERSION}"), "aiohttp"];
    let python = python::environment(dir, VERSION, &packages)?;
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).map_err(failed)?;
    let script = format!(
        "#!/bin/bash\nwhile [ $# -gt 0 ] && [ \"$1\" != -m ]; do shift; done\n'{}' \"$@\" &\n\
         child=$!\ntrap 'kill $child' TERM INT\nwait $child\n",
        python.display()
    );
    let uv = bin.join("uv");
    std::fs::write(&uv, script).map_err(failed)?;
    run_command(Command::new("chmod").arg("+x").arg(&uv))?;
    Ok(python)
}

/// A tiny random Qwen 3 with the base policy's tokenizer.
fn model(context: &Context, dir: &Path, python: &Path) -> Result<PathBuf, String> {
    let to = dir.join("model");
    if to.join("model.safetensors").is_file() {
        return Ok(to);
    }
    let script = "import sys, torch\n\
        from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM\n\
        out, tokenizer = sys.argv[1:]\n\
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer)\n\
        torch.manual_seed(0)\n\
        model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), hidden_size=64,\n\
        \x20   intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,\n\
        \x20   num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,\n\
        \x20   tie_word_embeddings=True, dtype='float32')).float()\n\
        with torch.no_grad():\n\
        \x20   for parameter in model.parameters():\n\
        \x20       if parameter.ndim == 2:\n\
        \x20           parameter.normal_(0, 0.1)\n\
        model.save_pretrained(out)\n\
        tokenizer.save_pretrained(out)\n";
    let tokenizer = context.root.join("models/base/tokenizer.json");
    run_command(Command::new(python).args(["-c", script]).arg(&to).arg(tokenizer))?;
    Ok(to)
}

/// The base policy in Llama's layout, which the server knows: the same weights without the biases of
/// its attention, which it does nearly as well without.
fn policy(context: &Context, dir: &Path, python: &Path) -> Result<PathBuf, String> {
    let to = dir.join("policy");
    let script = "import json, pathlib, shutil, sys\n\
        from safetensors.torch import load_file, save_file\n\
        source, to = map(pathlib.Path, sys.argv[1:])\n\
        to.mkdir(exist_ok=True)\n\
        shutil.copy(source / 'tokenizer.json', to)\n\
        config = json.loads((source / 'config.json').read_text())\n\
        config |= {'model_type': 'llama', 'architectures': ['LlamaForCausalLM'],\n\
        \x20   'attention_bias': False, 'mlp_bias': False}\n\
        (to / 'config.json').write_text(json.dumps(config))\n\
        weights = load_file(source / 'model.safetensors')\n\
        weights = {name: w for name, w in weights.items() if not name.endswith('.bias')}\n\
        save_file(weights, to / 'model.safetensors', metadata={'format': 'pt'})\n";
    let base = context.root.join("models/base");
    run_command(Command::new(python).args(["-c", script]).arg(base).arg(&to))?;
    Ok(to)
}

/// What a server is started with.
struct Installed<'a> {
    dir: &'a Path,
    python: &'a Path,
    num_processes: usize,
}

/// Adapters that fit, the base model's included. A pass costs as much as all of them; the recipe makes
/// eight (for its probes, for itself, and for each load), and on two processes none may be unloaded.
const MAX_ADAPTERS: usize = 10;
/// Sequences that are sampled together; smaller batches are filled up.
const MAX_SEQUENCES: usize = 8;

impl Installed<'_> {
    /// Starts a server; its processes, and its URL.
    fn serve(
        &self,
        context: &Context,
        model: &Path,
        place: &Path,
        axis: Axis,
    ) -> Result<(Vec<Server>, String), String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", self.dir.join("bin").display());
        let compiled = self.dir.join("compiled").display().to_string();
        let envs = [
            ("PATH", path.as_str()),
            ("JAX_PLATFORMS", "cpu"),
            ("HF_HUB_OFFLINE", "1"),
            // The next run finds what this one compiled.
            ("JAX_COMPILATION_CACHE_DIR", &compiled),
            ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0"),
            ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1"),
        ];
        let num_processes = self.num_processes;
        let coordinator = format!("127.0.0.1:{}", free_port()?);
        let mut servers = Vec::new();
        for process in 1..num_processes {
            let mut worker = Command::new("nice");
            worker.args(["-n", "5"]).arg(self.python).args(["-m", "skyrl.backends.jax"]);
            worker.args(["--coordinator-address", &coordinator]);
            worker.args(["--num-processes", &num_processes.to_string()]);
            worker.args(["--process-id", &process.to_string()]).envs(envs);
            servers.push(Server::start(&mut worker, &place.join(format!("worker-{process}.log")))?);
        }
        let port = free_port()?;
        let mut server = Command::new("nice");
        server
            .args(["-n", "5", "bash"])
            .arg(self.dir.join("bin/uv"))
            .args(["run", "--", "python", "-m", "skyrl.tinker.api", "--backend", "jax"])
            .args(["--backend-config", &backend_config(num_processes, axis, &coordinator)])
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--base-model"])
            .arg(model)
            .arg("--checkpoints-base")
            .arg(place.join("checkpoints"))
            .args(["--database-url", &format!("sqlite:///{}", place.join("tinker.db").display())])
            // A session that a run left is not unloaded under the next one (see MAX_ADAPTERS).
            .args(["--session-timeout-sec", "86400"])
            .current_dir(place)
            .envs(envs);
        let mut server = Server::start(&mut server, &place.join("server.log"))?;
        server.wait_for(port, STARTUP)?;
        context.stage("the server listens");
        // The worker ends with its coordinator, which goes first.
        servers.insert(0, server);
        Ok((servers, format!("http://127.0.0.1:{port}")))
    }
}

/// The server's settings. A micro-batch has one sequence a process, so that every length is compiled
/// for one number of sequences only.
fn backend_config(num_processes: usize, axis: Axis, coordinator: &str) -> String {
    let axis = match axis {
        Axis::Rows => "fully_sharded_data_parallel_size",
        Axis::Heads => "tensor_parallel_size",
    };
    let distributed = if num_processes > 1 {
        format!(
            ", \"{axis}\": {num_processes}, \"num_processes\": {num_processes}, \
             \"coordinator_address\": \"{coordinator}\""
        )
    } else {
        String::new()
    };
    format!(
        "{{\"max_lora_adapters\": {MAX_ADAPTERS}, \"max_lora_rank\": 8, \
         \"train_micro_batch_size\": {num_processes}, \
         \"sample_max_num_sequences\": {MAX_SEQUENCES}{distributed}}}"
    )
}
