//! Samplers over servers, as `[servers]` of a recipe names them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use patchwright_core::{
    AdamParams, ForwardBackward, Objective, OptimStats, PolicyVersion, Sampler, Trainer,
    TrainerError, TrainingSample, derive_seed,
};
use patchwright_engine::{EmbeddedTrainer, ExportOptions};
use patchwright_remote::chat::ChatAsTokens;
use patchwright_remote::http::{BearerToken, HttpFailure, Interrupt, Listener, RetryPolicy};
use patchwright_remote::sampler::{Dialect, RemoteSampler, SamplerOptions};
use patchwright_remote::sync::{LoadAs, SyncOptions, SyncReport, SyncedTrainer, Writer};

use super::policy::Policy;
use crate::agreement::AuditedSampler;
use crate::error::TrainError;
use crate::events::{Observer, RunEvent};
use crate::recipe::{Recipe, SamplerKind, ServersRecipe};

/// Tokens of the known prompt that every version is compared on.
const NUM_PROBE_TOKENS: u64 = 32;

/// The embedded trainer, whose weights go to servers that sample.
pub(super) fn trained(
    recipe: &Recipe,
    trainer: EmbeddedTrainer,
    observer: &dyn Observer,
    interrupt: Interrupt,
) -> Result<Policy, TrainError> {
    let sampler = Arc::new(connect(recipe, observer, interrupt)?);
    let seed = derive_seed(recipe.run.seed, &["known-prompt"]);
    let probe = known_prompt(trainer.config().vocab_size, seed);
    // Others are given the merged weights.
    let is_adapter = recipe.engine.lora.rank > 0 && recipe.sampler == SamplerKind::Vllm;
    let dir = match recipe.servers.checkpoint_dir.as_str() {
        "" => std::env::temp_dir().join(format!("patchwright-weights-{}", std::process::id())),
        dir => PathBuf::from(dir),
    };
    let options = SyncOptions {
        dir,
        load_as: if is_adapter { LoadAs::Adapter } else { LoadAs::Weights },
        drain: Duration::from_secs(recipe.servers.request_timeout_seconds),
        load_timeout: Duration::from_secs(recipe.servers.request_timeout_seconds),
        probe: probe.clone(),
        max_difference: recipe.infrastructure.max_logprob_difference,
    };
    let say = observer.speaker();
    let fenced = move |report: &SyncReport| {
        for (url, outcome) in &report.replicas {
            if let Err(reason) = outcome {
                say(&format!("note: {url} is fenced: {reason}"));
            }
        }
    };
    // Without the optimizer's state: vLLM loads every safetensors file that it finds.
    let export: Writer<EmbeddedTrainer> =
        |trainer, dir| trainer.export(dir, &ExportOptions::default());
    let adapter: Writer<EmbeddedTrainer> = |trainer, dir| trainer.save_adapter(dir);
    let writer = if is_adapter { adapter } else { export };
    let trainer =
        SyncedTrainer::new(trainer, writer, Arc::clone(&sampler), options, Box::new(fenced))?;
    let audited = AuditedSampler::new(sampler);
    audited.probe(&probe, seed).map_err(|error| TrainError::setup("servers", error.to_string()))?;
    Ok(Policy { trainer: Box::new(trainer), sampler: Arc::new(audited) })
}

/// Servers whose weights are what they are: for evaluations.
pub(super) fn evaluated(
    recipe: &Recipe,
    checkpoint: &Path,
    observer: &dyn Observer,
    interrupt: Interrupt,
) -> Result<Policy, TrainError> {
    let trainer: Box<dyn Trainer> = Box::new(NoTrainer);
    if recipe.sampler == SamplerKind::Openai {
        let sampler = chat(recipe, observer, interrupt)?;
        return Ok(Policy { trainer, sampler });
    }
    let sampler = connect(recipe, observer, interrupt)?;
    if !checkpoint.join("tokenizer.json").is_file() {
        let reason = "the servers take token ids, so the model's tokenizer.json is needed here";
        return Err(TrainError::setup(checkpoint.display().to_string(), reason));
    }
    Ok(Policy { trainer, sampler: Arc::new(AuditedSampler::new(Arc::new(sampler))) })
}

fn chat(
    recipe: &Recipe,
    observer: &dyn Observer,
    interrupt: Interrupt,
) -> Result<Arc<dyn Sampler>, TrainError> {
    let max_tokens = recipe.agent.max_tokens_per_turn;
    ChatAsTokens::connect(options(&recipe.servers, observer, interrupt)?, max_tokens)
        .map(|chat| Arc::new(chat) as Arc<dyn Sampler>)
        .map_err(|failure| unreachable_server(&failure))
}

fn connect(
    recipe: &Recipe,
    observer: &dyn Observer,
    interrupt: Interrupt,
) -> Result<RemoteSampler, TrainError> {
    let dialect = match recipe.sampler {
        SamplerKind::Sglang => Dialect::Sglang,
        SamplerKind::LlamaCpp => Dialect::LlamaCpp,
        _ => Dialect::VllmGenerate,
    };
    let sampler = RemoteSampler::connect(dialect, options(&recipe.servers, observer, interrupt)?)
        .map_err(|failure| unreachable_server(&failure))?;
    let (engine, num) = (sampler.engine(), recipe.servers.urls.len());
    let model = &sampler.replicas().served().model;
    let text = format!("sampler: {engine}, {num} servers, model {model}");
    observer.event(&RunEvent::Notice(text));
    Ok(sampler)
}

fn unreachable_server(failure: &HttpFailure) -> TrainError {
    TrainError::setup("servers", failure.to_string())
}

/// Tells people what a server's client has to say.
pub(super) fn listener(observer: &dyn Observer) -> Listener {
    let say = observer.speaker();
    Listener::new(move |line| say(line))
}

fn options(
    servers: &ServersRecipe,
    observer: &dyn Observer,
    interrupt: Interrupt,
) -> Result<SamplerOptions, TrainError> {
    let timeout = Duration::from_secs(servers.request_timeout_seconds);
    let token = match servers.api_key_env.as_str() {
        "" => None,
        name => Some(std::env::var(name).map_err(|_| {
            let reason = format!("names the environment variable {name}, which is not set");
            TrainError::setup("servers.api_key_env", reason)
        })?),
    };
    Ok(SamplerOptions {
        model: servers.model.clone(),
        token: token.as_deref().map(BearerToken::new),
        timeout,
        retry: RetryPolicy {
            max_retries: u32::try_from(servers.num_retries).unwrap_or(u32::MAX),
            total: timeout * 2,
            ..RetryPolicy::default()
        },
        max_in_flight: servers.max_requests_per_server,
        max_outage: Duration::from_secs(servers.max_outage_seconds),
        listener: listener(observer),
        interrupt,
        ..SamplerOptions::new(servers.urls.clone())
    })
}

/// Tokens that no text has: flat distributions follow them, which show a cut soonest.
fn known_prompt(vocab_size: usize, seed: u64) -> Vec<u32> {
    let token = |n: u64| derive_seed(seed, &["token", &n.to_string()]) % vocab_size.max(1) as u64;
    (0..NUM_PROBE_TOKENS).map(|n| token(n) as u32).collect()
}

/// Stands where nothing is trained.
struct NoTrainer;

fn nothing<T>() -> Result<T, TrainerError> {
    Err(TrainerError::BadInput("these servers are only evaluated, not trained".to_owned()))
}

impl Trainer for NoTrainer {
    fn forward_backward(
        &mut self,
        _: &[TrainingSample],
        _: &dyn Objective,
    ) -> Result<ForwardBackward, TrainerError> {
        nothing()
    }

    fn forward(&mut self, _: &[TrainingSample]) -> Result<Vec<Vec<f32>>, TrainerError> {
        nothing()
    }

    fn optim_step(&mut self, _: &AdamParams) -> Result<OptimStats, TrainerError> {
        nothing()
    }

    fn save(&mut self, _: &Path) -> Result<(), TrainerError> {
        nothing()
    }

    fn load(&mut self, _: &Path) -> Result<(), TrainerError> {
        nothing()
    }

    fn publish(&mut self) -> Result<PolicyVersion, TrainerError> {
        nothing()
    }

    fn reset_optimizer(&mut self) {}

    fn policy_version(&self) -> PolicyVersion {
        PolicyVersion(0)
    }
}
