//! `patchwright gateway`: tasks for agents that run anywhere.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use patchwright_agent::ChatTemplate;
use patchwright_serve::gateway::{Gateway, desk_router};
use patchwright_serve::{BearerToken, Guard, Metrics, ModelText, Server, ServerLimits, Work};
use patchwright_train::events::{CancelToken, Observer, RunEvent, StageKind, StagePlan};
use patchwright_train::gateway::{DeskPlan, GatewayCounts, STAGE, TaskDesk};
use patchwright_train::metrics::EvaluationResult;
use patchwright_train::recipe::Recipe;
use patchwright_train::world::{Opened, find_checkpoint, open_agent, open_provider};
use serde::{Deserialize, Serialize};

use super::{eval, policy, serve};
use crate::args::{GatewayApi, GatewayArgs};
use crate::error::CliError;
use crate::progress::Progress;
use crate::{output, signals};

/// A directory's files.
pub(super) const PLAN: &str = "gateway.json";
pub(super) const ROLLOUTS: &str = "rollouts.jsonl.zst";
const REPORT: &str = "report.json";

/// How often the desk is looked after.
const LOOK: Duration = Duration::from_millis(50);

/// How long the last episode's end can be heard of.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes of a request at most: a conversation, or a patch.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Submissions that are graded, and sandboxes that are made, at once at most.
const MAX_WORKERS: usize = 64;

/// What a directory was begun with.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    recipe: Recipe,
    tasks: String,
    /// The policy's name.
    policy: String,
    runs: usize,
    max_episodes: Option<usize>,
}

/// `report.json`, and what `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    evaluations: [&'a EvaluationResult; 1],
    gateway: GatewayCounts,
}

/// Serves until every run has its grade, or it is told to stop. Exit code 1 when runs are left
/// without a grade though nobody stopped it.
pub fn run(args: &GatewayArgs) -> Result<ExitCode, CliError> {
    let token = serve::token(args.token_file.as_deref())?;
    if token.is_none() && !args.bind.ip().is_loopback() {
        return Err(CliError::usage(format!(
            "--bind {}: other machines are served only with a token: give --token-file or \
             PATCHWRIGHT_TOKEN",
            args.bind
        )));
    }
    let (plan, dir) = match &args.resume {
        Some(dir) => (eval::read_json::<Plan>(&dir.join(PLAN), "--resume")?, dir.clone()),
        None => begin(args)?,
    };
    let progress = Arc::new(Progress::to_stderr());
    let result = work(args, &plan, &dir, token.as_ref(), &progress);
    progress.finish();
    if result.is_err() {
        if args.resume.is_some() || dir.join(ROLLOUTS).exists() {
            output::note(format!("Go on with: patchwright gateway --resume {}", dir.display()));
        } else {
            // It came to nothing, and the same command may be given again.
            let _ = std::fs::remove_file(dir.join(PLAN));
        }
    }
    let Served { result, counts, is_stopped, num_left } = result?;
    let report = Report { schema_version: 1, evaluations: [&result], gateway: counts };
    if args.json {
        output::json(&report)?;
    } else {
        output::evaluations(std::slice::from_ref(&result), false)?;
    }
    output::note(summary(&counts));
    let shown = dir.display();
    if num_left > 0 {
        output::note(format!("{num_left} to go: patchwright gateway --resume {shown}"));
    }
    // What was shown stands, and so do the rollouts, if this cannot be written.
    if let Err(error) = eval::write_json(&dir.join(REPORT), &report) {
        output::note(format!("Written again by: patchwright gateway --resume {shown}"));
        return Err(error);
    }
    if is_stopped && num_left > 0 {
        return Err(CliError::Interrupted);
    }
    if num_left > 0 {
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What was done, in a line.
fn summary(counts: &GatewayCounts) -> String {
    let GatewayCounts { num_episodes, num_solved, num_failed, num_agent_failed, .. } = counts;
    let GatewayCounts { num_calls, num_merged, num_branches, .. } = counts;
    format!(
        "{num_episodes} episodes: {num_solved} solved, {num_failed} without a grade \
         ({num_agent_failed} by their agents). {num_calls} calls: {num_merged} merged, \
         {num_branches} branches."
    )
}

/// Makes a new directory.
fn begin(args: &GatewayArgs) -> Result<(Plan, PathBuf), CliError> {
    let dir = args.out.clone().ok_or_else(|| CliError::usage("--out is missing"))?;
    if args.runs == 0 || args.max_open == 0 || args.max_episodes == Some(0) {
        return Err(CliError::usage("--runs, --max-open and --max-episodes are 1 or more"));
    }
    let plan = plan(args)?;
    if dir.join(PLAN).exists() || dir.join(ROLLOUTS).exists() {
        let dir = dir.display();
        return Err(CliError::usage(format!(
            "--out {dir}: there are episodes already; go on with --resume {dir}, or name another \
             directory"
        )));
    }
    std::fs::create_dir_all(&dir)
        .map_err(|error| CliError::usage(format!("--out {}: {error}", dir.display())))?;
    eval::write_json(&dir.join(PLAN), &plan)?;
    Ok((plan, dir))
}

fn plan(args: &GatewayArgs) -> Result<Plan, CliError> {
    eval::check_named(&args.tasks, args.model.as_slice())?;
    let mut recipe = recipe(args)?;
    recipe.engine.checkpoint.clone_from(&args.checkpoint);
    if !recipe.agent.foreign_command.is_empty() {
        return Err(CliError::usage(
            "agent.foreign_command is for train, eval and rollout; agents come to the gateway",
        ));
    }
    let (recipe, policy) = match &args.model {
        None => (recipe, args.checkpoint.clone()),
        Some(model) => eval::at_server(&recipe, model),
    };
    recipe.check()?;
    let checkpoint = find_checkpoint(&recipe.engine.checkpoint)?;
    let mut recipe = recipe;
    // Prompts are the agents' own: the profile has only to fit the tokenizer.
    if matches!(ChatTemplate::from_dir(&checkpoint), Ok(Some(_))) {
        "chat".clone_into(&mut recipe.agent.profile);
    }
    let (runs, max_episodes) = (args.runs, args.max_episodes);
    Ok(Plan { recipe, tasks: args.tasks.clone(), policy, runs, max_episodes })
}

fn recipe(args: &GatewayArgs) -> Result<Recipe, CliError> {
    let Some(model) = &args.model else {
        let mut recipe = policy::recipe(&args.recipe, "embedded")?;
        // Nothing is learned here.
        recipe.rft.enabled = false;
        recipe.rl.clear();
        return Ok(recipe);
    };
    let sampler = match args.api {
        GatewayApi::Vllm => "vllm",
        GatewayApi::Sglang => "sglang",
        GatewayApi::LlamaCpp => "llama_cpp",
    };
    policy::recipe_at_server(&args.recipe, model, sampler, args.api_key_env.as_deref())
}

impl Plan {
    fn desk(&self, args: &GatewayArgs, opened: &Opened) -> DeskPlan {
        let eval = &self.recipe.eval;
        DeskPlan {
            num_runs: self.runs,
            max_episodes: self.max_episodes,
            max_open: args.max_open,
            episode_timeout: Duration::from_secs(args.timeout),
            num_retries: self.recipe.infrastructure.num_retries,
            seed: self.recipe.run.seed,
            policy_version: opened.trainer.policy_version(),
            max_turns: eval.max_turns,
            context_tokens: eval.context_tokens,
            temperature: eval.temperature,
        }
    }
}

/// How it ended.
struct Served {
    result: EvaluationResult,
    counts: GatewayCounts,
    /// By a signal.
    is_stopped: bool,
    /// Runs without a grade.
    num_left: usize,
}

fn work(
    args: &GatewayArgs,
    plan: &Plan,
    dir: &Path,
    token: Option<&BearerToken>,
    progress: &Arc<Progress>,
) -> Result<Served, CliError> {
    let started = Instant::now();
    let found = Arc::new(OnceLock::<Arc<TaskDesk>>::new());
    let cancel = {
        let (progress, found, drain) = (Arc::clone(progress), Arc::clone(&found), args.drain);
        signals::cancel_token(move || {
            progress.say(&stopping(found.get().map_or(0, |desk| desk.num_open()), drain));
        })?
    };
    let recipe = &plan.recipe;
    let observer: Arc<dyn Observer> = Arc::clone(progress) as Arc<dyn Observer>;
    let provider = open_provider(recipe)?;
    let sets = eval::sets(&plan.tasks, recipe, provider.as_ref(), progress.as_ref(), cancel)?;
    let tasks: Vec<_> = sets.evaluation_sets.into_iter().flat_map(|(_, tasks)| tasks).collect();
    let opened = open_agent(recipe, provider, progress.as_ref(), cancel)?;
    let text = Arc::new(ModelText::from_dir(&opened.checkpoint).map_err(CliError::usage)?);
    if !text.has_template() {
        return Err(CliError::usage(format!(
            "{}: the model has no chat template, which agents need",
            opened.checkpoint.display()
        )));
    }
    let num_workers = recipe.infrastructure.num_workers.clamp(1, MAX_WORKERS);
    let mut limits = ServerLimits { max_body_bytes: MAX_BODY_BYTES, ..ServerLimits::default() };
    let metrics = Arc::new(Metrics::default());
    let gateway = Gateway::new(Work::new(limits.max_samples), Arc::clone(&metrics));
    let desk_work = Work::new(num_workers);
    limits.max_samples += num_workers;
    let desk_plan = plan.desk(args, &opened);
    let routes = gateway.router();
    let kept = dir.join(ROLLOUTS);
    let Opened { environment, trainer: _trainer, checkpoint: _ } = opened;
    let desk = TaskDesk::open(environment, text, gateway, tasks, desk_plan, &kept, observer)?;
    let desk = Arc::new(desk);
    let _ = found.set(Arc::clone(&desk));
    let routes = routes.merge(desk_router(desk.clone(), token.cloned(), desk_work));
    let knows = {
        let desk = Arc::clone(&desk);
        move |key: &str| desk.knows(key)
    };
    let router = Guard::with_keys(token.cloned(), limits, metrics, knows).protect(routes);
    announce(progress, desk.num_left());
    let server = Server::start(args.bind, token, limits, router)
        .map_err(|error| CliError::failed(error.to_string()))?;
    let address = server.address();
    progress.say(&format!("Episodes at http://{address}/episodes; {} to go.", desk.num_left()));
    let drain = Duration::from_secs(args.drain);
    let ended = look_after(&desk, &server, cancel, drain);
    desk.close();
    server.stop();
    desk.abandon();
    ended?;
    let seconds = started.elapsed().as_secs_f64();
    let pass_k = recipe.eval.pass_k.min(plan.runs);
    let (result, counts) = desk.result(&plan.policy, &plan.tasks, pass_k, seconds);
    let num_left = desk.num_ungraded();
    Ok(Served { result, counts, is_stopped: cancel.is_cancelled(), num_left })
}

/// What the first signal is answered with.
fn stopping(num_open: usize, drain_seconds: u64) -> String {
    if num_open == 0 || drain_seconds == 0 {
        return "Stopping; Ctrl-C again stops at once.".to_owned();
    }
    let episodes = if num_open == 1 { "episode" } else { "episodes" };
    format!(
        "Stopping: up to {drain_seconds} s for {num_open} open {episodes} to be submitted. Ctrl-C \
         again stops at once; --resume gives them away again."
    )
}

fn announce(progress: &Progress, num_rollouts: usize) {
    let kind = StageKind::Evaluation;
    let plan = StagePlan { name: STAGE.to_owned(), kind, num_rollouts, num_iterations: 1 };
    progress.event(&RunEvent::StageStarted { plan, first_iteration: 0 });
    let stage = STAGE.to_owned();
    progress.event(&RunEvent::RolloutsStarted { stage, iteration: 0, num_rollouts });
}

/// Waits until all is done, or until it is told to stop and the open episodes have ended.
fn look_after(
    desk: &TaskDesk,
    server: &Server,
    cancel: &CancelToken,
    drain: Duration,
) -> Result<(), CliError> {
    let mut last_call = None;
    loop {
        desk.expire();
        if let Some(reason) = desk.broken() {
            return Err(CliError::failed(reason));
        }
        if !server.is_running() {
            return Err(CliError::failed("the server ended by itself"));
        }
        let is_done = desk.num_left() == 0;
        if cancel.is_cancelled() {
            desk.close();
        }
        if is_done || cancel.is_cancelled() {
            let wait = if is_done { LINGER } else { drain };
            let (since, was_done) = *last_call.get_or_insert((Instant::now(), is_done));
            if is_done && !was_done || !is_done && desk.num_open() == 0 || since.elapsed() >= wait {
                return Ok(());
            }
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::stopping;

    #[test]
    fn the_first_signal_says_what_is_waited_for() {
        assert!(stopping(3, 60).starts_with("Stopping: up to 60 s for 3 open episodes to be"));
        assert!(stopping(1, 5).contains("for 1 open episode to be"));
        assert_eq!(stopping(3, 0), stopping(0, 60));
    }
}
