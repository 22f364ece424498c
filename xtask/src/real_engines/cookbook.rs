//! Recipes of `tinker-cookbook`, unchanged, against `patchwright serve` with `SmolLM2` behind it:
//! supervised, whose loss must fall, and RL on its arithmetic, which must learn to end its answers;
//! and the SDK's custom losses, which need torch as the cookbook does.
//!
//! It needs Python 3.12. This version is the newest whose requirements are all in the registry.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Context, Server, free_port, python, recipe, run_command};

const VERSION: &str = "0.5.8";
const STARTUP: Duration = Duration::from_mins(1);
/// Trainer and sampler are the same engine; their log-probabilities may differ by so much.
const BOUND: f64 = 1e-4;

pub(super) fn run(context: &Context) -> Result<(), String> {
    let dir = context.cache.join("cookbook");
    let packages = format!("tinker-cookbook[math-rl]=={VERSION}");
    let python = context.timed("install", || python::environment(&dir, VERSION, &[&packages]))?;
    context.figure("tinker-cookbook", VERSION)?;
    context.timed("custom losses", || custom_losses(context, &dir))?;
    let models = context.root.join("target/models");
    run_command(Command::new(context.root.join("scripts/real_models.sh")).arg(&models))?;
    let model = models.join("smollm2");
    let port = free_port()?;
    let mut command = Command::new(recipe::program(context)?);
    command.arg("serve").arg("--checkpoint").arg(&model).arg("--name").arg(&model);
    command.args(["--bind", &format!("127.0.0.1:{port}")]);
    let mut server = Server::start(&mut command, &dir.join("server.log"))?;
    server.wait_for(port, STARTUP)?;
    let recipes = Recipes { python, dir, model, url: format!("http://127.0.0.1:{port}") };
    context.timed("supervised recipe", || recipes.supervised(context))?;
    context.timed("RL recipe", || recipes.arithmetic(context))
}

/// The test of the SDK in an environment that has torch, where it asks for custom losses.
fn custom_losses(context: &Context, dir: &Path) -> Result<(), String> {
    let environment = dir.join("environment").display().to_string();
    let test = ["--workspace", "--test", "tinker", "sdk", "--", "--nocapture"];
    let env = [("PATCHWRIGHT_TINKER_VENVS", environment.as_str()), ("PATCHWRIGHT_TORCH", "1")];
    context.tests(&test, &env)
}

struct Recipes {
    python: PathBuf,
    dir: PathBuf,
    model: PathBuf,
    url: String,
}

impl Recipes {
    /// `chat_sl` on the conversations that the cookbook carries.
    fn supervised(&self, context: &Context) -> Result<(), String> {
        let script = "import pathlib, tinker_cookbook as c\n\
            print(pathlib.Path(c.__file__).parent / 'example_data/conversations.jsonl', end='')\n";
        let output = Command::new(&self.python).args(["-c", script]).output();
        let output = output.map_err(|error| format!("{}: {error}", self.python.display()))?;
        let dataset = format!("dataset={}", String::from_utf8_lossy(&output.stdout));
        let steps = self.run(
            "chat_sl",
            &["renderer_name=role_colon", &dataset, "batch_size=16", "max_length=256"],
            6,
        )?;
        let nll = [&steps[0], &steps[5]].map(|step| number(step, "train_mean_nll"));
        context
            .figure("chat_sl: mean NLL, steps 1 and 6", &format!("{:.2}, {:.2}", nll[0], nll[1]))?;
        if nll[1] < 0.8 * nll[0] {
            Ok(())
        } else {
            Err(format!("chat_sl: NLL did not fall: {nll:?}"))
        }
    }

    /// `math_rl`, importance sampling on sums.
    fn arithmetic(&self, context: &Context) -> Result<(), String> {
        let sizes = ["group_size=8", "groups_per_batch=8", "max_tokens=5"];
        let steps = self.run(
            "math_rl",
            &[&["renderer_name=qwen3_instruct", "env=arithmetic"], &sizes[..]].concat(),
            3,
        )?;
        let of = |name: &str| steps.iter().map(|step| number(step, name)).collect::<Vec<f64>>();
        let (ended, norms) = (of("env/all/format"), of("grad_norm"));
        let kls = of("optim/kl_sample_train_v2");
        context.figure("math_rl: share of answers that end, by step", &format!("{ended:.2?}"))?;
        context.figure("math_rl: gradient norm by step", &format!("{norms:.1?}"))?;
        context.figure("math_rl: KL of sampler and trainer by step", &format!("{kls:?}"))?;
        let agree = kls.iter().all(|kl| kl.abs() < BOUND);
        if ended[2] > ended[0] && norms.iter().all(|norm| *norm > 0.0) && agree {
            return Ok(());
        }
        Err(format!("math_rl: ended {ended:?}, gradient norms {norms:?}, KL {kls:?}"))
    }

    /// Runs a recipe as its README says, and reads the metrics of its `num_steps` steps.
    fn run(&self, name: &str, args: &[&str], num_steps: usize) -> Result<Vec<Value>, String> {
        let log = self.dir.join(name);
        let mut command = Command::new(&self.python);
        command
            .args(["-m", &format!("tinker_cookbook.recipes.{name}.train")])
            .arg(format!("model_name={}", self.model.display()))
            .arg(format!("log_path={}", log.display()))
            .args(["behavior_if_log_dir_exists=delete", "eval_every=0", "save_every=0"])
            .args(["lora_rank=8", "learning_rate=3e-4", &format!("max_steps={num_steps}")])
            .args(args)
            .envs([("TINKER_BASE_URL", self.url.as_str()), ("TINKER_API_KEY", "tml-none")])
            .envs([("HF_HUB_OFFLINE", "1"), ("CUDA_VISIBLE_DEVICES", "")]);
        run_command(&mut command)?;
        let path = log.join("metrics.jsonl");
        let wrong = |reason: String| format!("{}: {reason}", path.display());
        let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let steps: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        let steps = steps.map_err(|error| wrong(error.to_string()))?;
        if steps.len() == num_steps {
            return Ok(steps);
        }
        Err(wrong(format!("{} steps, not {num_steps}", steps.len())))
    }
}

/// A metric; what is not there is not a number, which passes no check.
fn number(step: &Value, name: &str) -> f64 {
    step[name].as_f64().unwrap_or(f64::NAN)
}
