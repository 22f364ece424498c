//! Opens what a recipe names: policy, tokenizer, sandboxes, task sets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use patchwright_agent::{
    AgentConfig, ChatTemplate, GradeCache, Grader, GraderOptions, Profile, Renderer, Tokenizer,
};
use patchwright_core::{SamplingParams, SandboxProvider, Trainer};
use patchwright_remote::chat::{BYTES_PER_TOKEN, byte_tokenizer_json};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use patchwright_serve::ModelText;

use crate::agent_environment::{AgentEnvironment, CountingProvider};
use crate::environment::Environment;
use crate::error::TrainError;
use crate::events::{CancelToken, Observer, RunEvent};
use crate::foreign_environment::ForeignEnvironment;
use crate::images::TaskImages;
use crate::recipe::{Recipe, SamplerKind};
use crate::run::World;
use crate::task_sets::{TaskSets, task_sets};

mod policy;
mod servers;
mod tinker;

pub use policy::Policy;

/// Name of the shipped checkpoint in recipes.
const BASE: &str = "base";

/// Grades that are remembered.
const NUM_CACHED_GRADES: usize = 100_000;

impl World {
    /// Opens everything that a recipe needs. Task sets are made on first
    /// use. `observer` hears what is being done.
    ///
    /// # Errors
    /// [`TrainError`] naming what is missing and how to mend it; [`TrainError::Cancelled`] soon
    /// after `cancel` was set.
    pub fn open(
        recipe: &Recipe,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Self, TrainError> {
        let provider = open_provider(recipe)?;
        let sets = task_sets(&recipe.tasks, provider.as_ref(), observer, cancel)?;
        let world = Self::with_tasks(recipe, provider, sets, observer, cancel);
        // What was ended in the middle of its opening fails in its own words.
        if cancel.is_cancelled() { Err(TrainError::Cancelled) } else { world }
    }

    /// [`World::open`] with task sets from elsewhere. Requests to servers end as soon as `cancel` is
    /// set, then and later.
    ///
    /// # Errors
    /// [`TrainError`] naming what is missing and how to mend it.
    pub fn with_tasks(
        recipe: &Recipe,
        provider: Arc<CountingProvider>,
        sets: TaskSets,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Self, TrainError> {
        let Opened { environment, trainer, checkpoint } =
            open_agent(recipe, provider, observer, cancel)?;
        let sampler = Arc::clone(&environment.sampler);
        Ok(Self {
            train: sets.train,
            evaluation_sets: sets.evaluation_sets,
            environment: with_agent(recipe, environment, &checkpoint)?,
            sampler,
            trainer,
        })
    }
}

/// A policy, and what its agents work with.
pub struct Opened {
    /// Sandboxes, grader and the policy's sampler.
    pub environment: AgentEnvironment,
    /// The policy's trainer.
    pub trainer: Box<dyn Trainer>,
    /// The model's directory.
    pub checkpoint: PathBuf,
}

/// Opens a recipe's policy without any task set.
///
/// # Errors
/// [`TrainError`] naming what is missing and how to mend it.
pub fn open_agent(
    recipe: &Recipe,
    provider: Arc<CountingProvider>,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Opened, TrainError> {
    let checkpoint = find_checkpoint(&recipe.engine.checkpoint)?;
    observer.event(&RunEvent::Notice(format!("policy: {}", described(recipe, &checkpoint))));
    let renderer = renderer(recipe, policy_tokenizer(recipe, &checkpoint)?, &checkpoint)?;
    let Policy { trainer, sampler } = Policy::open(recipe, &checkpoint, observer, cancel)?;
    let images = Arc::new(TaskImages::default());
    let environment = AgentEnvironment {
        limits: recipe.sandbox.limits(),
        sampler,
        renderer,
        agent: agent_config(recipe),
        grades: grades(recipe, &provider, &images),
        images,
        provider,
    };
    Ok(Opened { environment, trainer, checkpoint })
}

/// Where the weights are: in the checkpoint, or at servers, which then only share its tokenizer.
fn described(recipe: &Recipe, checkpoint: &Path) -> String {
    if recipe.trains() || recipe.sampler == SamplerKind::Trainer {
        return checkpoint.display().to_string();
    }
    let urls = recipe.servers.urls.join(", ");
    if recipe.sampler == SamplerKind::Openai {
        return urls;
    }
    format!("{urls} (tokenizer: {})", checkpoint.display())
}

/// The environment with the agent that the recipe names: our own, or a foreign one.
fn with_agent(
    recipe: &Recipe,
    environment: AgentEnvironment,
    checkpoint: &Path,
) -> Result<Arc<dyn Environment>, TrainError> {
    let command = &recipe.agent.foreign_command;
    if command.is_empty() {
        return Ok(Arc::new(environment));
    }
    let refused = |reason: String| TrainError::setup("agent.foreign_command", reason);
    if recipe.rft.enabled && recipe.rft.one_shot_demonstration {
        let reason =
            "a foreign agent has prompts of its own: set rft.one_shot_demonstration = false";
        return Err(refused(reason.to_owned()));
    }
    let text = ModelText::from_dir(checkpoint).map_err(|error| refused(error.to_string()))?;
    let (text, workers) = (Arc::new(text), recipe.infrastructure.num_workers);
    let environment = ForeignEnvironment::new(environment, command.clone(), text, workers)
        .map_err(|error| refused(error.to_string()))?;
    Ok(Arc::new(environment))
}

/// Native sandboxes that work on this machine, with python3 in reach.
///
/// # Errors
/// [`TrainError::Setup`] without python3, [`TrainError::Sandbox`] where the kernel forbids
/// sandboxes; both say what to do.
pub fn open_provider(recipe: &Recipe) -> Result<Arc<CountingProvider>, TrainError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("python3").is_file()) {
        return Err(TrainError::setup(
            "python3",
            "not found in PATH; the tasks are Python repositories: install it \
             (Debian, Ubuntu: apt-get install python3)",
        ));
    }
    // Each worker has an agent's sandbox or a grader's; fewer than twice are alive at once.
    let max_sandboxes = 2 * recipe.infrastructure.num_workers + 16;
    let native = NativeSandboxes::new(NativeOptions { max_sandboxes, ..NativeOptions::default() })?;
    let rung = native.limits_rung().to_string();
    Ok(Arc::new(CountingProvider::new(Box::new(native)).with_limits_rung(rung)))
}

/// The directory of a checkpoint: the shipped one for `base`, else the path itself.
///
/// # Errors
/// [`TrainError::Setup`] when there is none.
pub fn find_checkpoint(name: &str) -> Result<PathBuf, TrainError> {
    let is_checkpoint = |dir: &PathBuf| {
        ["config.json", "tokenizer.json"].iter().any(|name| dir.join(name).is_file())
    };
    if name != BASE {
        let path = PathBuf::from(name);
        return if is_checkpoint(&path) {
            Ok(path)
        } else if path.is_file() {
            Err(TrainError::setup(
                name,
                "is a file; turn a GGUF file into a directory with `patchwright models import`",
            ))
        } else {
            Err(TrainError::setup(
                name,
                "no checkpoint directory: it has neither config.json nor tokenizer.json; name one \
                 with --set engine.checkpoint=DIR",
            ))
        };
    }
    let program = std::env::current_exe().unwrap_or_default();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::iter::once(Path::new("."))
        .chain(program.ancestors().skip(1))
        .chain(std::iter::once(source.as_path()))
        .map(|dir| dir.join("models").join(BASE))
        .find(is_checkpoint)
        .ok_or_else(|| {
            TrainError::setup(
                "the shipped base policy",
                "models/base was found neither here nor beside the program; run in a checkout, or \
                 make one with `patchwright pretrain` and name it with --set engine.checkpoint=DIR",
            )
        })
}

fn tokenizer(checkpoint: &Path) -> Result<Tokenizer, TrainError> {
    let path = checkpoint.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(TrainError::io(&path))?;
    Tokenizer::from_bytes(&bytes)
        .map_err(|error| TrainError::setup(path.display().to_string(), error.to_string()))
}

/// The model's tokenizer; a model that is spoken to by chat keeps its own to itself.
fn policy_tokenizer(recipe: &Recipe, checkpoint: &Path) -> Result<Tokenizer, TrainError> {
    if recipe.sampler != SamplerKind::Openai {
        return tokenizer(checkpoint);
    }
    Tokenizer::from_bytes(byte_tokenizer_json().as_bytes())
        .map_err(|error| TrainError::setup("chat", error.to_string()))
}

fn renderer(
    recipe: &Recipe,
    tokenizer: Tokenizer,
    checkpoint: &Path,
) -> Result<Renderer, TrainError> {
    let name = &recipe.agent.profile;
    let profile = Profile::resolve(name)
        .map_err(|error| TrainError::setup("agent.profile", error.to_string()))?;
    if recipe.rft.enabled && recipe.rft.one_shot_demonstration && profile.demonstration.is_empty() {
        return Err(TrainError::setup(
            "rft.one_shot_demonstration",
            format!("the profile {name} has no demonstration: choose another or set it to false"),
        ));
    }
    let template = if profile.chat_template {
        ChatTemplate::from_dir(checkpoint)
            .map_err(|error| TrainError::setup("agent.profile", error.to_string()))?
    } else {
        None
    };
    Renderer::with_template(Arc::new(tokenizer), profile, template)
        .map_err(|error| TrainError::setup("agent.profile", error.to_string()))
}

fn agent_config(recipe: &Recipe) -> AgentConfig {
    let agent = &recipe.agent;
    // By chat, tokens are bytes; the servers bound a turn by the model's own tokens.
    let is_chat = recipe.sampler == SamplerKind::Openai;
    let scale = if is_chat { 4 * BYTES_PER_TOKEN } else { 1 };
    AgentConfig {
        max_turn_tokens: agent.max_tokens_per_turn.saturating_mul(scale),
        max_consecutive_format_errors: agent.max_format_errors,
        params: SamplingParams { temperature: agent.temperature },
        command_timeout_seconds: agent.command_timeout_seconds,
        ..AgentConfig::default()
    }
}

fn grades(
    recipe: &Recipe,
    provider: &Arc<CountingProvider>,
    images: &Arc<TaskImages>,
) -> GradeCache {
    let provider: Arc<dyn SandboxProvider> = Arc::clone(provider) as Arc<dyn SandboxProvider>;
    let options = GraderOptions {
        timeout: Duration::from_secs(recipe.infrastructure.grade_timeout_seconds),
        limits: recipe.sandbox.limits(),
        ..GraderOptions::default()
    };
    let grader = Grader::new(provider, options).with_roots(images.roots());
    GradeCache::new(grader, NUM_CACHED_GRADES)
}
