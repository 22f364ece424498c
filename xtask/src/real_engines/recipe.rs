//! Whole recipes against real engines, with the command line that a user types.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Context, run_command};

/// What makes the smoke recipe sure to step: enough rollouts for RFT to find successes, larger groups,
/// and rewards that may also differ where no sibling solves its task. Less of the rest.
const SURE_TO_STEP: [&str; 12] = [
    "rft.num_tasks=12",
    "rft.rollouts_per_task=8",
    "rl.0.iterations=1",
    "rl.0.problems_per_iteration=6",
    "rl.0.group_size=8",
    "rl.0.drop_on=final",
    "rl.1.problems_per_iteration=6",
    "rl.1.group_size=8",
    "rl.1.drop_on=final",
    "eval.num_runs=1",
    "eval.num_runs_transfer=1",
    "eval.pass_k=1",
];

/// The policies that the smoke recipe measures, in their order.
const POLICIES: [&str; 4] = ["base", "rft", "rl-1", "rl-2"];

/// What came of a recipe, for figures.
#[derive(Debug, Default)]
pub(super) struct Trained {
    num_steps: u64,
    num_rl_steps: u64,
    largest_rl_grad_norm: f64,
    num_tokens: u64,
    /// Largest over the batches of the mean, and of the largest difference of a token's
    /// log-probability.
    mean_difference: f64,
    largest_difference: f64,
}

/// Runs `patchwright train smoke --set …` into a new directory of `name`, stops it after RFT as
/// Ctrl-C does, goes on with `--resume`, and checks that RFT and RL ran to their end and that RL
/// stepped along a gradient.
pub(super) fn train(context: &Context, name: &str, settings: &[String]) -> Result<(), String> {
    let out = context.cache.join("runs").join(name);
    if out.exists() {
        std::fs::remove_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    }
    let program = program(context)?;
    let mut command = Command::new(&program);
    command.current_dir(&context.root).args(["train", "smoke"]);
    for setting in SURE_TO_STEP.iter().copied().chain(settings.iter().map(String::as_str)) {
        command.args(["--set", setting]);
    }
    interrupt_after_rft(command.arg("--out").arg(&out), &out)?;
    let mut command = Command::new(&program);
    run_command(command.current_dir(&context.root).args(["train", "--resume"]).arg(&out))?;
    let trained = check(&out)?;
    let figure = |what: &str, value: String| context.figure(&format!("{name}: {what}"), &value);
    figure("optimizer steps, RFT and RL", trained.num_steps.to_string())?;
    figure("optimizer steps of RL", trained.num_rl_steps.to_string())?;
    figure("largest gradient norm of RL", format!("{:.3}", trained.largest_rl_grad_norm))?;
    figure("tokens compared, sampler and trainer", trained.num_tokens.to_string())?;
    figure("largest mean |difference| of a batch", format!("{:.1e}", trained.mean_difference))?;
    figure("largest |difference|", format!("{:.1e}", trained.largest_difference))
}

/// The program, built as this one was.
pub(super) fn program(context: &Context) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(&context.root).args(["build", "--quiet", "--package", "patchwright-cli"]);
    run_command(&mut command)?;
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(own.with_file_name("patchwright"))
}

/// Runs a training until RFT is finished, then sends SIGINT and waits for its end.
fn interrupt_after_rft(command: &mut Command, out: &Path) -> Result<(), String> {
    let text = format!("{command:?}");
    eprintln!("+ {text}");
    let failed = |error: std::io::Error| format!("{text}: {error}");
    let mut child = command.spawn().map_err(failed)?;
    // RFT's line is the first.
    while !std::fs::metadata(out.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0) {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Err(format!("{text}: {status}, before RFT was finished"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    run_command(Command::new("kill").args(["-INT", &child.id().to_string()]))?;
    let status = child.wait().map_err(failed)?;
    if status.success() { Err(format!("{text}: SIGINT did not stop it")) } else { Ok(()) }
}

/// Reads `report.json` and `metrics.jsonl` of a finished run.
fn check(out: &Path) -> Result<Trained, String> {
    let wrong = |reason: String| format!("{}: {reason}", out.display());
    let report: Value = read(&out.join("report.json"))?;
    let evaluations = report["evaluations"].as_array().cloned().unwrap_or_default();
    let of_held_out = evaluations.iter().filter(|e| e["task_set"] == "held-out");
    let policies: Vec<&str> = of_held_out.filter_map(|e| e["policy"].as_str()).collect();
    if policies != POLICIES {
        return Err(wrong(format!("measured {policies:?}, not {POLICIES:?}")));
    }
    let mut trained = Trained::default();
    let path = out.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    for line in text.lines() {
        let metrics: Value =
            serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        let num_steps = metrics["num_optimizer_steps"].as_u64().unwrap_or_default();
        trained.num_steps += num_steps;
        if metrics["stage"].as_str().is_some_and(|stage| stage.starts_with("rl")) {
            trained.num_rl_steps += num_steps;
            let norm = number(&metrics["grad_norm"]);
            trained.largest_rl_grad_norm = trained.largest_rl_grad_norm.max(norm);
        }
        let agreement = &metrics["agreement"];
        trained.num_tokens += agreement["num_tokens"].as_u64().unwrap_or_default();
        trained.mean_difference =
            trained.mean_difference.max(number(&agreement["difference_abs_mean"]));
        let largest = number(&metrics["logprob_difference_max"]);
        trained.largest_difference = trained.largest_difference.max(largest);
    }
    let stepped = trained.num_rl_steps > 0 && trained.largest_rl_grad_norm > 0.0;
    if !stepped || trained.num_rl_steps == trained.num_steps || trained.num_tokens == 0 {
        return Err(wrong(format!("RFT or RL did not step along a gradient: {trained:?}")));
    }
    Ok(trained)
}

fn read(path: &Path) -> Result<Value, String> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}
