//! The embedded engine behind the Tinker server.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use patchwright_core::{
    AdamParams, ForwardBackward, Objective, OptimStats, PolicyVersion, Sampler, Trainer,
    TrainerError, TrainingSample,
};
use patchwright_engine::{Engine, EngineOptions, ExportOptions, LoraConfig};
use patchwright_serve::ModelText;
use patchwright_serve::tinker::{Backend, BaseModel, Learner, LoraSpec};

/// Scale of adapters, as hosted Tinker has it: updates are multiplied by `32 / rank`.
const LORA_ALPHA: f32 = 32.0;

/// Files of a checkpoint that training does not change and samplers' directories need.
const TEXT_FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// Said once: a client's adapter was to reach further than ours do.
const NO_UNEMBED: &str = "A client asks for an adapter of the unembedding (train_unembed, the SDK's \
     default): here adapters are of attention and MLP alone, and weights_info says so.";

static UNEMBED: Once = Once::new();

/// One checkpoint, to train and to sample from.
pub struct EmbeddedBackend {
    /// The checkpoint.
    pub dir: PathBuf,
    /// Its name to clients.
    pub name: String,
    /// Its text.
    pub text: Arc<ModelText>,
    /// Bounds of each engine.
    pub options: EngineOptions,
    /// Serves the checkpoint itself.
    pub sampler: Arc<dyn Sampler>,
    /// Tells something to whoever runs the server.
    pub tell: fn(&str),
}

/// Loads an engine whose sampler finds stop strings.
///
/// # Errors
/// [`TrainerError`] naming the file.
pub fn load(dir: &Path, options: &EngineOptions, text: &ModelText) -> Result<Engine, TrainerError> {
    let engine = Engine::load(dir, options.clone())?;
    if let Some(bytes) = text.token_bytes() {
        let known = engine.sampler().set_token_bytes(bytes.to_vec());
        known.map_err(|error| TrainerError::BadInput(format!("tokenizer.json: {error}")))?;
    }
    Ok(engine)
}

impl EmbeddedBackend {
    fn start(&self, lora: Option<LoraSpec>) -> Result<EmbeddedLearner, TrainerError> {
        let mut engine = load(&self.dir, &self.options, &self.text)?;
        for name in TEXT_FILES {
            if let Ok(bytes) = std::fs::read(self.dir.join(name)) {
                engine.trainer.attach_file(name, bytes)?;
            }
        }
        if lora.is_some_and(|spec| spec.train_unembed) {
            UNEMBED.call_once(|| (self.tell)(NO_UNEMBED));
        }
        let config = lora.map(|spec| (adapter(spec), spec.seed));
        if let Some((config, seed)) = &config {
            engine.trainer.add_adapter(config.clone(), *seed)?;
        }
        let (dir, options) = (self.dir.clone(), self.options.clone());
        let text = Arc::clone(&self.text);
        Ok(EmbeddedLearner { engine, is_adapter: config.is_some(), dir, options, text })
    }
}

fn adapter(spec: LoraSpec) -> LoraConfig {
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| (name, spec.train_attn));
    let mlp = ["gate_proj", "up_proj", "down_proj"].map(|name| (name, spec.train_mlp));
    let modules = attention.into_iter().chain(mlp).filter(|(_, is_trained)| *is_trained);
    LoraConfig {
        rank: spec.rank,
        lora_alpha: LORA_ALPHA,
        target_modules: modules.map(|(name, _)| name.to_owned()).collect(),
    }
}

impl Backend for EmbeddedBackend {
    fn base_models(&self) -> Vec<BaseModel> {
        let tokenizer = std::path::absolute(&self.dir).unwrap_or_else(|_| self.dir.clone());
        vec![BaseModel {
            name: self.name.clone(),
            max_context: self.sampler.max_context(),
            tokenizer_id: Some(tokenizer.display().to_string()),
        }]
    }

    fn learner(
        &self,
        _base: &str,
        lora: Option<LoraSpec>,
    ) -> Result<Box<dyn Learner>, TrainerError> {
        Ok(Box::new(self.start(lora)?))
    }

    fn sampler(
        &self,
        _base: &str,
        weights: Option<&Path>,
    ) -> Result<Arc<dyn Sampler>, TrainerError> {
        match weights {
            None => Ok(Arc::clone(&self.sampler)),
            Some(dir) => Ok(load(dir, &self.options, &self.text)?.sampler()),
        }
    }

    fn text(&self, _base: &str) -> Option<Arc<ModelText>> {
        Some(Arc::clone(&self.text))
    }
}

/// A model in training: all weights, or an adapter.
struct EmbeddedLearner {
    engine: Engine,
    is_adapter: bool,
    dir: PathBuf,
    options: EngineOptions,
    text: Arc<ModelText>,
}

impl Learner for EmbeddedLearner {
    fn export(&mut self, dir: &Path) -> Result<(), TrainerError> {
        self.engine.trainer.export(dir, &ExportOptions::default())
    }

    fn save_state(&mut self, dir: &Path) -> Result<(), TrainerError> {
        if self.is_adapter {
            self.engine.trainer.save_adapter(dir)
        } else {
            self.engine.trainer.save(dir)
        }
    }

    fn load_state(&mut self, dir: &Path, optimizer: bool) -> Result<(), TrainerError> {
        if dir.join("adapter_config.json").is_file() != self.is_adapter {
            let path = dir.display().to_string();
            let reason = "an adapter and whole weights do not fit each other; load weights saved \
                 for training"
                .to_owned();
            return Err(TrainerError::Checkpoint { path, reason });
        }
        if !self.is_adapter {
            self.engine.trainer.load(dir)?;
            if !optimizer {
                self.engine.trainer.reset_optimizer();
            }
            return Ok(());
        }
        let mut engine = load(&self.dir, &self.options, &self.text)?;
        engine.trainer.load_adapter(dir)?;
        if !optimizer {
            engine.trainer.reset_optimizer();
        }
        self.engine = engine;
        Ok(())
    }
}

impl Trainer for EmbeddedLearner {
    fn forward_backward(
        &mut self,
        samples: &[TrainingSample],
        objective: &dyn Objective,
    ) -> Result<ForwardBackward, TrainerError> {
        self.engine.trainer.forward_backward(samples, objective)
    }

    fn forward(&mut self, samples: &[TrainingSample]) -> Result<Vec<Vec<f32>>, TrainerError> {
        self.engine.trainer.forward(samples)
    }

    fn optim_step(&mut self, params: &AdamParams) -> Result<OptimStats, TrainerError> {
        self.engine.trainer.optim_step(params)
    }

    fn save(&mut self, dir: &Path) -> Result<(), TrainerError> {
        self.engine.trainer.save(dir)
    }

    fn load(&mut self, dir: &Path) -> Result<(), TrainerError> {
        self.engine.trainer.load(dir)
    }

    fn publish(&mut self) -> Result<PolicyVersion, TrainerError> {
        self.engine.trainer.publish()
    }

    fn reset_optimizer(&mut self) {
        self.engine.trainer.reset_optimizer();
    }

    fn policy_version(&self) -> PolicyVersion {
        self.engine.trainer.policy_version()
    }
}
