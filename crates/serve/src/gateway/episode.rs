//! One foreign agent at work on one task.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use patchwright_core::{ExecRequest, ExecStatus, PolicyVersion, Sampler, Sandbox};
use serde::Deserialize;
use serde_json::{Value, json};

use super::record::{Recorder, Recording};
use super::{Gateway, KeyDigest, MODEL};
use crate::error::ApiError;
use crate::openai::{History, Served};
use crate::text::ModelText;

/// Longest command line of an exec request, in bytes.
const MAX_COMMAND_BYTES: usize = 1 << 20;

/// What an episode may do, and with what.
pub struct EpisodeSpec {
    /// The policy.
    pub sampler: Arc<dyn Sampler>,
    /// Its tokenizer and chat template.
    pub text: Arc<ModelText>,
    /// Names the episode to the engine, whose cache of it ends with it.
    pub session: u64,
    /// Seed of all that is drawn in it.
    pub seed: u64,
    /// The temperature; a call's own does not count.
    pub temperature: f32,
    /// The weights that must answer; `None`: any.
    pub policy_version: Option<PolicyVersion>,
    /// Calls at most.
    pub max_turns: usize,
    /// Tokens of one completion at most.
    pub max_turn_tokens: usize,
    /// Tokens of a prompt with its completion at most; the engine's own limit holds too.
    pub context_tokens: usize,
    /// Where the agent's commands run, if it is to have any.
    pub sandbox: Option<Box<dyn Sandbox>>,
    /// The repository inside the sandbox: where commands begin.
    pub workdir: String,
    /// Wall-clock bound of one command.
    pub command_timeout: Duration,
    /// What is to be done, for `GET /episode`: such as `instance_id`, `problem_statement`.
    pub task: BTreeMap<String, String>,
}

/// An episode as requests see it.
pub(super) struct Live {
    recorder: Arc<Recorder>,
    text: Arc<ModelText>,
    history: Arc<History>,
    session: u64,
    max_turns: usize,
    sandbox: Mutex<Option<Box<dyn Sandbox>>>,
    /// The sandbox's failure, if it failed.
    sandbox_failure: Mutex<Option<String>>,
    workdir: String,
    command_timeout: Duration,
    task: BTreeMap<String, String>,
}

/// A command of the agent's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exec {
    /// Run by `bash -c`.
    command: String,
    /// Where; relative to the repository.
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Seconds; the episode's bound holds too.
    #[serde(default)]
    timeout: Option<f64>,
}

impl Live {
    pub(super) fn new(spec: EpisodeSpec) -> Self {
        let mut recorder = Recorder::new(spec.sampler, spec.seed, spec.temperature);
        recorder.policy_version = spec.policy_version;
        recorder.max_turn_tokens = spec.max_turn_tokens;
        recorder.max_context = recorder.max_context.min(spec.context_tokens);
        Self {
            recorder: Arc::new(recorder),
            text: spec.text,
            history: Arc::default(),
            session: spec.session,
            max_turns: spec.max_turns,
            sandbox: Mutex::new(spec.sandbox),
            sandbox_failure: Mutex::default(),
            workdir: spec.workdir,
            command_timeout: spec.command_timeout,
            task: spec.task,
        }
    }

    pub(super) fn served(&self) -> Served {
        let recorder: Arc<dyn Sampler> = self.recorder.clone();
        let mut served = Served::new(recorder, Arc::clone(&self.text));
        served.session = Some(self.session);
        served.history = Some(Arc::clone(&self.history));
        served
    }

    /// Refuses a call when all turns are used up. Clients do not try again after a 403.
    pub(super) fn check_turns(&self) -> Result<(), ApiError> {
        if self.recorder.num_calls() < self.max_turns {
            return Ok(());
        }
        self.recorder.note(|recording| recording.out_of_turns = true);
        let message = format!("all {} turns of the episode are used up", self.max_turns);
        Err(ApiError::new(StatusCode::FORBIDDEN, "out_of_turns", message))
    }

    pub(super) fn describe(&self) -> Value {
        json!({
            "model": MODEL,
            "workdir": self.workdir,
            "task": self.task,
            "max_turns": self.max_turns,
            "num_turns": self.recorder.num_calls(),
            "max_context": self.recorder.max_context(),
            "command_timeout_seconds": self.command_timeout.as_secs_f64(),
        })
    }

    /// Runs a command in the sandbox. Blocks.
    pub(super) fn exec(&self, exec: &Exec) -> Result<Value, ApiError> {
        if exec.command.len() > MAX_COMMAND_BYTES {
            let message = format!("has {} bytes, at most {MAX_COMMAND_BYTES}", exec.command.len());
            return Err(ApiError::param("command", message));
        }
        let timeout = match exec.timeout {
            None => self.command_timeout,
            Some(seconds) => Duration::try_from_secs_f64(seconds)
                .map_err(|_| ApiError::param("timeout", format!("{seconds} is no time")))?
                .min(self.command_timeout),
        };
        let cwd = match exec.cwd.as_deref().unwrap_or_default() {
            "" => self.workdir.clone(),
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => format!("{}/{relative}", self.workdir),
        };
        // As a terminal would show them, output and errors are one.
        let script = format!("exec 2>&1\n{}", exec.command);
        let mut request = ExecRequest::shell(&script, &cwd, timeout);
        request.env.clone_from(&exec.env);
        let mut place = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        let sandbox = place
            .as_mut()
            .ok_or_else(|| ApiError::not_found("the episode has no sandbox, or it has ended"))?;
        self.recorder.ran(&exec.command);
        let output = sandbox.exec(&request).map_err(|error| {
            let mut failure = self.sandbox_failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.to_string());
            ApiError::internal(format!("sandbox: {error}"))
        })?;
        let (returncode, timed_out) = match output.status {
            ExecStatus::Exited(code) => (code, false),
            ExecStatus::Signaled(signal) => (-signal, false),
            ExecStatus::TimedOut => (-1, true),
        };
        Ok(json!({
            "output": String::from_utf8_lossy(&output.stdout),
            "returncode": returncode,
            "timed_out": timed_out,
            "dropped_bytes": output.dropped_bytes,
        }))
    }
}

/// An open episode. Dropped, it is closed, and its sandbox destroyed.
pub struct Episode {
    gateway: Gateway,
    key: String,
    digest: KeyDigest,
    live: Arc<Live>,
}

/// What an episode left.
pub struct Finished {
    /// Its calls.
    pub recording: Recording,
    /// Its sandbox, to take the changes from and to destroy.
    pub sandbox: Option<Box<dyn Sandbox>>,
    /// The sandbox failed in this way: infrastructure, never a reward.
    pub sandbox_failure: Option<String>,
}

impl Episode {
    pub(super) fn new(gateway: Gateway, key: String, digest: KeyDigest, live: Arc<Live>) -> Self {
        Self { gateway, key, digest, live }
    }

    /// The key that its requests bear. A secret.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Closes the episode: no more calls. A command that is running ends first.
    pub fn finish(self) -> Finished {
        self.gateway.close(&self.digest);
        let sandbox = self.live.sandbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let failure = &self.live.sandbox_failure;
        let sandbox_failure = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut recording = self.live.recorder.take();
        recording.out_of_context = self.live.history.has_overflowed();
        recording.give_messages(&self.live.history.take_asked());
        Finished { recording, sandbox, sandbox_failure }
    }
}

impl Drop for Episode {
    fn drop(&mut self) {
        self.gateway.close(&self.digest);
        self.live.recorder.inner.end_session(self.live.session);
        let sandbox = self.live.sandbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sandbox) = sandbox {
            // Nobody is left to hear of a sandbox that does not go.
            let _ = sandbox.destroy();
        }
    }
}
