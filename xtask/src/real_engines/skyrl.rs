//! `SkyRL`'s Tinker server on a CPU (JAX backend): agreement of log-probabilities, losses and
//! gradients with the embedded engine, and whole recipes, with one process and with two.
//!
//! It needs Python 3.12. Its server starts its engine through the `uv run …` that started itself, so
//! a script of that name stands in for uv and starts the environment's own Python.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Context, Server, free_port, recipe, run_command};

const VERSION: &str = "0.4.0";
/// The base model is loaded before the engine answers, but after the port listens.
const STARTUP: Duration = Duration::from_mins(5);

pub(super) fn run(context: &Context) -> Result<(), String> {
    let dir = context.cache.join("skyrl");
    let python = install(&dir)?;
    context.figure("skyrl", VERSION)?;
    let model = model(context, &dir, &python)?;
    let policy = policy(context, &dir, &python)?;
    for num_processes in [1, 2] {
        context.figure("processes", &num_processes.to_string())?;
        agreement(context, &dir, &python, &model, num_processes)?;
        let place = new_place(&dir, &format!("recipe-{num_processes}"))?;
        let (_servers, url) = serve(&dir, &python, &policy, &place, num_processes)?;
        let name = format!("tinker-{num_processes}");
        recipe::train(context, &name, &settings(&url, &policy))?;
    }
    Ok(())
}

/// The tests of `crates/remote/tests/skyrl.rs`.
fn agreement(
    context: &Context,
    dir: &Path,
    python: &Path,
    model: &Path,
    num_processes: usize,
) -> Result<(), String> {
    let place = new_place(dir, &format!("run-{num_processes}"))?;
    let (_servers, url) = serve(dir, python, model, &place, num_processes)?;
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

/// The recipe with its weights at the server, which clips no gradients.
fn settings(url: &str, policy: &Path) -> Vec<String> {
    let policy = policy.display();
    let mut settings = vec![
        "trainer=tinker".to_owned(),
        format!("tinker.url={url}"),
        format!("tinker.base_model={policy}"),
        "tinker.lora_rank=8".to_owned(),
        format!("engine.checkpoint={policy}"),
    ];
    settings.extend(["rft", "rl.0", "rl.1"].map(|stage| format!("{stage}.grad_clip=0")));
    settings
}

/// A Python 3.12: `PATCHWRIGHT_PYTHON312`, one in the path, or one of pyenv's.
fn python312() -> Result<PathBuf, String> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let pyenv = std::fs::read_dir(Path::new(&home).join(".pyenv/versions")).into_iter().flatten();
    let pyenv = pyenv
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("3.12"))
        .map(|entry| entry.path().join("bin/python"));
    std::env::var_os("PATCHWRIGHT_PYTHON312")
        .map(PathBuf::from)
        .into_iter()
        .chain([PathBuf::from("python3.12")])
        .chain(pyenv)
        .find(|python| {
            let check = "import sys, venv; sys.exit(sys.version_info[:2] != (3, 12))";
            let run = Command::new(python).args(["-c", check]).output();
            run.is_ok_and(|output| output.status.success())
        })
        .ok_or_else(|| {
            "SkyRL needs Python 3.12: install it (pyenv install 3.12), or name it in \
             PATCHWRIGHT_PYTHON312"
                .to_owned()
        })
}

fn install(dir: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let environment = dir.join("environment");
    let python = environment.join("bin/python");
    let done = dir.join(format!("installed-{VERSION}"));
    if done.is_file() {
        return Ok(python);
    }
    std::fs::create_dir_all(dir).map_err(failed)?;
    run_command(Command::new(python312()?).args(["-m", "venv"]).arg(&environment))?;
    let pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "uv"];
    run_command(Command::new(&python).args(pip))?;
    let wanted = format!("skyrl[tinker,jax]=={VERSION}");
    let uv = ["-m", "uv", "pip", "install", "--quiet", "--python"];
    run_command(Command::new(&python).args(uv).arg(&python).args([&wanted, "aiohttp"]))?;
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
    std::fs::write(&done, "").map_err(failed)?;
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

/// A server of one or more processes; its URL.
fn serve(
    dir: &Path,
    python: &Path,
    model: &Path,
    place: &Path,
    num_processes: usize,
) -> Result<(Vec<Server>, String), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", dir.join("bin").display());
    let envs = [("PATH", path.as_str()), ("JAX_PLATFORMS", "cpu"), ("HF_HUB_OFFLINE", "1")];
    let coordinator = format!("127.0.0.1:{}", free_port()?);
    let mut distributed = String::new();
    let mut servers = Vec::new();
    if num_processes > 1 {
        distributed = format!(
            ", \"fully_sharded_data_parallel_size\": {num_processes}, \"num_processes\": \
             {num_processes}, \"coordinator_address\": \"{coordinator}\""
        );
    }
    for process in 1..num_processes {
        let mut worker = Command::new("nice");
        worker.args(["-n", "10"]).arg(python).args(["-m", "skyrl.backends.jax"]);
        worker.args(["--coordinator-address", &coordinator]);
        worker.args(["--num-processes", &num_processes.to_string()]);
        worker.args(["--process-id", &process.to_string()]).envs(envs);
        servers.push(Server::start(&mut worker, &place.join(format!("worker-{process}.log")))?);
    }
    let port = free_port()?;
    let backend = format!(
        "{{\"max_lora_adapters\": 32, \"max_lora_rank\": 8, \"train_micro_batch_size\": 8, \
         \"sample_max_num_sequences\": 16{distributed}}}"
    );
    let mut server = Command::new("nice");
    server
        .args(["-n", "10", "bash"])
        .arg(dir.join("bin/uv"))
        .args(["run", "--", "python", "-m", "skyrl.tinker.api", "--backend", "jax"])
        .args(["--backend-config", &backend, "--host", "127.0.0.1"])
        .args(["--port", &port.to_string(), "--base-model"])
        .arg(model)
        .arg("--checkpoints-base")
        .arg(place.join("checkpoints"))
        .args(["--database-url", &format!("sqlite:///{}", place.join("tinker.db").display())])
        .current_dir(place)
        .envs(envs);
    let mut server = Server::start(&mut server, &place.join("server.log"))?;
    server.wait_for(port, STARTUP)?;
    // The worker ends with its coordinator, which goes first.
    servers.insert(0, server);
    Ok((servers, format!("http://127.0.0.1:{port}")))
}
