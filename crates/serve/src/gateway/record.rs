//! Calls, token by token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use patchwright_core::{
    Completion, DrawnToken, FinishReason, Message, PolicyVersion, SampleRequest, Sampler,
    SamplerError, derive_seed,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::openai::{Asked, fingerprint};

/// One completion that was asked for and given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// The prompt's messages; empty for a prompt that was no conversation.
    pub messages: Vec<Message>,
    /// Tokens that were drawn, a stop token included.
    pub sampled: Vec<u32>,
    /// Log-probability of each of them under the full distribution at temperature 1.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The weights that drew its first token.
    pub policy_version: PolicyVersion,
    /// What was run in the episode's sandbox after it and before the next call was answered.
    pub commands: Vec<String>,
}

/// All calls of an episode, in the order in which they were answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// The calls.
    pub calls: Vec<Call>,
    /// Calls that named a temperature other than the episode's, which ruled.
    pub num_overruled: usize,
    /// The engine's failure, if one ended the episode: infrastructure, never a reward.
    pub engine_failure: Option<String>,
    /// A call was refused because its prompt filled the context.
    pub out_of_context: bool,
    /// A call was refused because all turns were used up.
    pub out_of_turns: bool,
}

impl Recording {
    /// Gives calls the messages of their prompts.
    pub(super) fn give_messages(&mut self, asked: &[Asked]) {
        let known: HashMap<u128, &Asked> =
            asked.iter().map(|asked| (asked.prompt, asked)).collect();
        for call in &mut self.calls {
            if let Some(asked) = known.get(&fingerprint(&call.prompt)) {
                call.messages = asked.messages.iter().map(|m| Message::clone(m)).collect();
            }
        }
    }
}

/// Draws what an episode asks, under the episode's rules, and records it.
pub(super) struct Recorder {
    pub inner: Arc<dyn Sampler>,
    pub seed: u64,
    pub temperature: f32,
    /// The weights that must answer; `None`: any.
    pub policy_version: Option<PolicyVersion>,
    pub max_turn_tokens: usize,
    pub max_context: usize,
    state: Mutex<State>,
}

/// Bytes of an episode's commands that are written down.
const MAX_COMMAND_BYTES: usize = 16 << 20;

#[derive(Default)]
struct State {
    recording: Recording,
    /// Of the commands that are written down.
    num_command_bytes: usize,
    /// How often each prompt was asked.
    asked: HashMap<[u8; 32], u32>,
}

impl Recorder {
    pub(super) fn new(inner: Arc<dyn Sampler>, seed: u64, temperature: f32) -> Self {
        Self {
            max_context: inner.max_context(),
            inner,
            seed,
            temperature,
            policy_version: None,
            max_turn_tokens: usize::MAX,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn num_calls(&self) -> usize {
        self.lock().recording.calls.len()
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Recording)) {
        change(&mut self.lock().recording);
    }

    /// Writes down that a command is run: the last call that was answered asked for it, as far as
    /// anybody can tell.
    pub(super) fn ran(&self, command: &str) {
        let mut state = self.lock();
        let state = &mut *state;
        let num_bytes = state.num_command_bytes + command.len();
        if num_bytes <= MAX_COMMAND_BYTES
            && let Some(call) = state.recording.calls.last_mut()
        {
            call.commands.push(command.to_owned());
            state.num_command_bytes = num_bytes;
        }
    }

    pub(super) fn take(&self) -> Recording {
        std::mem::take(&mut self.lock().recording)
    }

    /// The request under the episode's rules. Its seed is named by its prompt and by how often
    /// that was asked before, so that nothing depends on the order of calls made at once.
    fn ruled(&self, request: &SampleRequest) -> SampleRequest {
        let mut digest = Sha256::new();
        for token in &request.context {
            digest.update(token.to_le_bytes());
        }
        let digest: [u8; 32] = digest.finalize().into();
        let (high, low) = digest.split_at(16);
        let name = [high, low].map(|half| {
            let bytes = half.try_into().unwrap_or_default();
            format!("{:032x}", u128::from_be_bytes(bytes))
        });
        let mut state = self.lock();
        let times = state.asked.entry(digest).or_default();
        let nth = *times;
        *times += 1;
        let overruled = request.params.temperature.to_bits() != self.temperature.to_bits();
        state.recording.num_overruled += usize::from(overruled);
        drop(state);
        let mut ruled = request.clone();
        ruled.params.temperature = self.temperature;
        ruled.max_tokens = request.max_tokens.min(self.max_turn_tokens).max(1);
        ruled.seed = derive_seed(self.seed, &["call", &name[0], &name[1], &nth.to_string()]);
        ruled
    }

    fn record(
        &self,
        request: &SampleRequest,
        drawn: Result<Completion, SamplerError>,
    ) -> Result<Completion, SamplerError> {
        let checked = drawn.and_then(|completion| match self.policy_version {
            Some(version) if version != completion.policy_version => {
                Err(SamplerError::Engine(format!(
                    "version {} answered, the episode belongs to version {version}",
                    completion.policy_version
                )))
            }
            _ => Ok(completion),
        });
        match &checked {
            Ok(completion) => self.note(|recording| {
                recording.calls.push(Call {
                    prompt: request.context.clone(),
                    messages: Vec::new(),
                    sampled: completion.tokens.clone(),
                    logprobs: completion.logprobs.clone(),
                    finish_reason: completion.finish_reason,
                    policy_version: completion.policy_version,
                    commands: Vec::new(),
                });
            }),
            Err(SamplerError::Engine(reason)) => self.note(|recording| {
                recording.engine_failure.get_or_insert_with(|| reason.clone());
            }),
            Err(_) => {}
        }
        checked
    }
}

impl Sampler for Recorder {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        self.sample_cancellable(request, &|| false)
    }

    fn sample_cancellable(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        let request = self.ruled(request);
        let drawn = self.inner.sample_cancellable(&request, is_cancelled);
        self.record(&request, drawn)
    }

    fn sample_streaming(
        &self,
        request: &SampleRequest,
        on_token: &mut dyn FnMut(&DrawnToken),
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        let request = self.ruled(request);
        let drawn = self.inner.sample_streaming(&request, on_token, is_cancelled);
        self.record(&request, drawn)
    }

    fn end_session(&self, session: u64) {
        self.inner.end_session(session);
    }

    fn max_context(&self) -> usize {
        self.max_context
    }
}
