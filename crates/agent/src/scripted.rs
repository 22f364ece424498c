//! A sampler that says what it was told to say: for tests and `rollout --script`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use patchwright_core::{
    Completion, FinishReason, PolicyVersion, SampleRequest, Sampler, SamplerError,
};

use crate::tokenizer::Tokenizer;

/// Gives the texts of a script, turn by turn, with log-probability 0.
///
/// A session works on the instance that it was begun with; one that was not begun, or whose
/// instance has no script, follows the default script. Deterministic: the seed plays no part.
pub struct ScriptedSampler {
    tokenizer: Arc<Tokenizer>,
    stop_token: u32,
    scripts: BTreeMap<String, Vec<String>>,
    default: Vec<String>,
    sessions: Mutex<HashMap<u64, Progress>>,
}

#[derive(Default)]
struct Progress {
    instance_id: String,
    num_turns: usize,
}

impl ScriptedSampler {
    /// One script, the same for every session. `stop_token` ends each turn
    /// ([`Renderer::stop_token`](crate::render::Renderer::stop_token)).
    pub fn new(tokenizer: Arc<Tokenizer>, stop_token: u32, default: Vec<String>) -> Self {
        let sessions = Mutex::default();
        Self { tokenizer, stop_token, scripts: BTreeMap::new(), default, sessions }
    }

    /// Adds scripts of their own for some instances, by `instance_id`.
    #[must_use]
    pub fn with_scripts(mut self, scripts: BTreeMap<String, Vec<String>>) -> Self {
        self.scripts = scripts;
        self
    }

    /// Says which instance a session works on, and starts its script over.
    pub fn begin(&self, session: u64, instance_id: &str) {
        let progress = Progress { instance_id: instance_id.to_owned(), num_turns: 0 };
        self.lock().insert(session, progress);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Progress>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sampler for ScriptedSampler {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        let (instance_id, turn) = {
            let mut sessions = self.lock();
            let progress = sessions.entry(request.session).or_default();
            progress.num_turns += 1;
            (progress.instance_id.clone(), progress.num_turns - 1)
        };
        let script = self.scripts.get(&instance_id).unwrap_or(&self.default);
        let Some(text) = script.get(turn) else {
            return Err(SamplerError::Engine(format!(
                "the script of {instance_id:?} is over after {} turns; let it end with `submit`",
                script.len()
            )));
        };
        let mut tokens = self.tokenizer.encode_text(text);
        tokens.push(self.stop_token);
        let finish_reason = if tokens.len() > request.max_tokens {
            tokens.truncate(request.max_tokens);
            FinishReason::Length
        } else {
            FinishReason::Stop
        };
        Ok(Completion {
            logprobs: vec![0.0; tokens.len()],
            tokens,
            finish_reason,
            policy_version: PolicyVersion(0),
            ..Completion::default()
        })
    }

    fn end_session(&self, session: u64) {
        self.lock().remove(&session);
    }

    fn max_context(&self) -> usize {
        usize::MAX
    }
}
