//! What learns and what generates: the keys `trainer` and `sampler`, `[engine]`, `[servers]` and
//! `[tinker]`.

use patchwright_engine::{Precision, Recompute};
use serde::{Deserialize, Serialize};

use super::check::Check;
use super::{Recipe, RecipeError};

/// What learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainerKind {
    /// The CPU engine of this program.
    #[default]
    Embedded,
    /// A server of the Tinker API, named in `[tinker]`.
    Tinker,
}

/// What generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// The trainer's own sampler.
    #[default]
    Trainer,
    /// vLLM servers, named in `[servers]`.
    Vllm,
    /// `SGLang` servers, named in `[servers]`.
    Sglang,
    /// llama.cpp servers, named in `[servers]`; for evaluation.
    LlamaCpp,
    /// Servers of the `OpenAI` API, named in `[servers]`: text in and text out; for evaluation.
    Openai,
}

impl SamplerKind {
    /// Whether new weights can be brought to it, which training needs.
    pub fn takes_weights(self) -> bool {
        matches!(self, Self::Trainer | Self::Vllm | Self::Sglang)
    }
}

/// `[engine]`: the model, and the embedded engine that serves and trains it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineRecipe {
    /// Checkpoint directory in Hugging Face layout, or `base` for the shipped one. Tokenizer and
    /// chat template are read from it whatever engine is used, weights by the embedded one.
    pub checkpoint: String,
    /// CPU threads of the engine; 0 means all cores.
    pub num_threads: usize,
    /// Tokens of a training micro-batch and of a sampling step at most.
    pub max_batch_tokens: usize,
    /// Tokens whose keys and values the sampler keeps, all trajectories together.
    pub max_cached_tokens: usize,
    /// What matrix products round their operands to, of trainer and sampler alike.
    pub precision: Precision,
    /// Whether the backward pass computes the layers again instead of keeping them.
    pub recompute: Recompute,
    /// MiB that layers may keep for the backward pass before `recompute = "auto"` computes them
    /// again.
    pub max_activation_mib: usize,
    /// Trains a low-rank adapter instead of all weights.
    pub lora: LoraRecipe,
}

impl Default for EngineRecipe {
    fn default() -> Self {
        Self {
            checkpoint: "base".into(),
            num_threads: 0,
            max_batch_tokens: 2048,
            max_cached_tokens: 131_072,
            precision: Precision::F32,
            recompute: Recompute::Auto,
            max_activation_mib: 2048,
            lora: LoraRecipe::default(),
        }
    }
}

/// `[engine.lora]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraRecipe {
    /// Rank of the update; 0 trains all weights.
    pub rank: usize,
    /// The update is multiplied by `alpha / rank`.
    pub alpha: f32,
    /// Projections of every layer that are adapted.
    pub target_modules: Vec<String>,
}

impl Default for LoraRecipe {
    fn default() -> Self {
        let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        Self { rank: 0, alpha: 32.0, target_modules: modules.map(str::to_owned).to_vec() }
    }
}

/// `[servers]`: engines that others keep, for `sampler = "vllm"`, `"sglang"`, `"llama_cpp"` and
/// `"openai"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServersRecipe {
    /// Base URLs of the replicas, such as `http://10.0.0.7:8000`. All serve the same model.
    pub urls: Vec<String>,
    /// The model's name at the servers; empty means the only one they list.
    pub model: String,
    /// Environment variable that holds the bearer token; empty means that none is sent.
    pub api_key_env: String,
    /// Wall-clock bound on one request, in seconds.
    pub request_timeout_seconds: u64,
    /// Times that a request is sent again after a failure that may pass.
    pub num_retries: usize,
    /// How long requests wait while no server answers, in seconds. Then their rollouts fail, which
    /// stops the run; `--resume` goes on.
    pub max_outage_seconds: u64,
    /// Requests in flight at one server at most.
    pub max_requests_per_server: usize,
    /// Directory that servers and trainer share, where each policy version is written to anew and
    /// the last two are kept until the end; empty means one of the machine's temporary directory,
    /// which servers on the same machine can read.
    pub checkpoint_dir: String,
}

impl Default for ServersRecipe {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            model: String::new(),
            api_key_env: String::new(),
            request_timeout_seconds: 600,
            num_retries: 5,
            max_outage_seconds: 120,
            max_requests_per_server: 256,
            checkpoint_dir: String::new(),
        }
    }
}

/// `[tinker]`: the server for `trainer = "tinker"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TinkerRecipe {
    /// Base URL of the server, such as `http://10.0.0.7:8000`.
    pub url: String,
    /// The model's name at the server.
    pub base_model: String,
    /// Environment variable that holds the API key; empty means that none is sent.
    pub api_key_env: String,
    /// Rank of the adapter that the server trains; 0 asks for training of all weights.
    pub lora_rank: usize,
    /// Wall-clock bound on one operation of the server, in seconds.
    pub request_timeout_seconds: u64,
    /// Times that a request is sent again after a failure that may pass.
    pub num_retries: usize,
}

impl Default for TinkerRecipe {
    fn default() -> Self {
        Self {
            url: String::new(),
            base_model: String::new(),
            api_key_env: "TINKER_API_KEY".into(),
            lora_rank: 32,
            request_timeout_seconds: 1800,
            num_retries: 5,
        }
    }
}

impl Recipe {
    /// Whether the recipe changes weights.
    pub fn trains(&self) -> bool {
        self.rft.enabled || !self.rl.is_empty()
    }

    pub(super) fn check_engines(&self, check: &Check) -> Result<(), RecipeError> {
        let engine = &self.engine;
        check.that(!engine.checkpoint.is_empty(), "engine.checkpoint", "must not be empty")?;
        check.positive(engine.max_batch_tokens, "engine.max_batch_tokens")?;
        check.positive(engine.max_cached_tokens, "engine.max_cached_tokens")?;
        check.positive(engine.max_activation_mib, "engine.max_activation_mib")?;
        check.that(
            engine.lora.alpha.is_finite() && engine.lora.alpha > 0.0,
            "engine.lora.alpha",
            "must be above 0",
        )?;
        let known = LoraRecipe::default().target_modules;
        let strange = engine.lora.target_modules.iter().find(|module| !known.contains(module));
        if let Some(module) = strange {
            let reason = format!("{module:?} is no projection; there are {}", known.join(", "));
            check.that(false, "engine.lora.target_modules", &reason)?;
        }
        check.that(
            !engine.lora.target_modules.is_empty(),
            "engine.lora.target_modules",
            "must name some projections",
        )?;
        self.check_servers(check)?;
        self.check_tinker(check)
    }

    fn check_servers(&self, check: &Check) -> Result<(), RecipeError> {
        let servers = &self.servers;
        if self.sampler == SamplerKind::Trainer {
            return check.that(
                *servers == ServersRecipe::default(),
                "servers",
                "is for sampler = \"vllm\", \"sglang\", \"llama_cpp\" or \"openai\"; \
                 sampler is \"trainer\"",
            );
        }
        check.that(!servers.urls.is_empty(), "servers.urls", "must name at least one server")?;
        for url in &servers.urls {
            check.url("servers.urls", url)?;
        }
        check.positive(servers.max_requests_per_server, "servers.max_requests_per_server")?;
        check.that(
            servers.max_outage_seconds > 0,
            "servers.max_outage_seconds",
            "must be above 0",
        )?;
        check.that(
            servers.request_timeout_seconds > 0,
            "servers.request_timeout_seconds",
            "must be above 0",
        )?;
        check.that(
            self.sampler.takes_weights() || !self.trains(),
            "sampler",
            "new weights cannot be brought to such a server, so it serves evaluations only: \
             train with sampler = \"trainer\", \"vllm\" or \"sglang\"",
        )?;
        check.that(
            self.trainer == TrainerKind::Embedded,
            "sampler",
            "trainer = \"tinker\" keeps its weights at its server, which samples too: \
             set sampler = \"trainer\"",
        )
    }

    fn check_tinker(&self, check: &Check) -> Result<(), RecipeError> {
        let tinker = &self.tinker;
        if self.trainer != TrainerKind::Tinker {
            return check.that(
                *tinker == TinkerRecipe::default(),
                "tinker",
                "is for trainer = \"tinker\"; trainer is \"embedded\"",
            );
        }
        check.url("tinker.url", &tinker.url)?;
        check.that(
            !tinker.base_model.is_empty(),
            "tinker.base_model",
            "must name the model as the server knows it",
        )?;
        check.that(
            tinker.request_timeout_seconds > 0,
            "tinker.request_timeout_seconds",
            "must be above 0",
        )?;
        check.that(
            self.engine.lora == LoraRecipe::default(),
            "engine.lora",
            "is the embedded trainer's; a Tinker server's adapter is set by tinker.lora_rank",
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::recipe::Recipe;

    fn refused(recipe: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Recipe::load(recipe, &overrides).expect_err("refused").to_string()
    }

    #[test]
    fn keys_of_an_engine_that_is_not_used_are_refused() {
        for (overrides, key) in [
            (&["servers.num_retries=1"][..], "servers"),
            (&["tinker.url=http://localhost:1"], "tinker"),
            (&["sampler=vllm"], "servers.urls"),
            (&["trainer=tinker"], "tinker.url"),
            (&["engine.lora.target_modules=[\"q\"]"], "engine.lora.target_modules"),
            (&["engine.max_activation_mib=0"], "engine.max_activation_mib"),
        ] {
            let error = refused("embedded", overrides);
            assert!(error.contains(key), "{overrides:?}: {error}");
        }
    }

    /// Each override is checked together with those before it, so a section can come in any order.
    #[test]
    fn engines_of_others() {
        let load = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
            Recipe::load("embedded", &overrides).map_err(|error| error.to_string())
        };
        load(&["sampler=vllm", "servers.urls=[\"http://localhost:8000\"]"]).unwrap();
        load(&["tinker.url=http://h:1", "tinker.base_model=m", "trainer=tinker"]).unwrap();
        let error = load(&["sampler=openai", "servers.urls=[\"http://h:8000\"]"]).unwrap_err();
        assert!(error.contains("evaluations only"), "{error}");
        let error = load(&["sampler=vllm", "servers.urls=[\"localhost:8000\"]"]).unwrap_err();
        assert!(error.contains("http://"), "{error}");
        let both = ["trainer=tinker", "tinker.url=http://h:1", "tinker.base_model=m"];
        let servers = ["sampler=vllm", "servers.urls=[\"http://h:8000\"]"];
        let error = load(&[&both[..], &servers[..]].concat()).unwrap_err();
        assert!(error.contains("sampler = \"trainer\""), "{error}");
    }
}
