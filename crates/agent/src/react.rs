//! The `ReAct` loop (Yao et al., arXiv 2210.03629): the model reasons and gives one command, the
//! environment answers with an observation, until the model submits or a limit ends it.

use std::time::Duration;

use patchwright_core::{
    Completion, FailureClass, FinishReason, PolicyVersion, RolloutStatus, SampleRequest, Sampler,
    SamplingParams, Sandbox, SandboxError, TaskInstance, TokenSpan, Trajectory, Turn, TurnOutcome,
    derive_seed, patch,
};
use serde::{Deserialize, Serialize};

use crate::git::base_commit_only;
use crate::parse::{FormatError, command_text, parse_message};
use crate::profile::say;
use crate::render::Renderer;
use crate::tools::{Step, Workspace};

/// Limits and settings of one rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Turns before the rollout ends with [`RolloutStatus::TurnLimit`] (`T_max`).
    pub max_turns: usize,
    /// Tokens of the whole trajectory before it ends with [`RolloutStatus::ContextLimit`]; the
    /// sampler's own limit holds too.
    pub max_context_tokens: usize,
    /// Tokens of one turn; a longer one is cut off, not acted on, and counts as a format error.
    pub max_turn_tokens: usize,
    /// This many turns in a row without a command that could be run end the rollout with
    /// [`RolloutStatus::FormatLimit`]. 0 counts as 1.
    pub max_consecutive_format_errors: usize,
    /// How tokens are drawn.
    pub params: SamplingParams,
    /// Wall-clock bound of one command, in seconds.
    pub command_timeout_seconds: u64,
    /// Where the repository is inside the sandbox.
    pub workdir: String,
    /// Whether the profile's demonstration is part of the prompt.
    pub demonstration: bool,
    /// Give the agent a git repository of the base commit alone, where the sandbox has git, in
    /// place of any other (module [`git`](crate::git)). Needed where the root brings the
    /// repository, whose history may hold the fix; it takes some 30 ms.
    pub git: bool,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            max_turns: 40,
            max_context_tokens: 65_536,
            max_turn_tokens: 4_096,
            max_consecutive_format_errors: 5,
            params: SamplingParams::default(),
            command_timeout_seconds: 60,
            workdir: "/testbed".to_owned(),
            demonstration: false,
            git: false,
        }
    }
}

/// What one rollout left. The sandbox is still alive and is the caller's to destroy.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentRun {
    /// What was said and done; up to the failure, if there was one.
    pub trajectory: Trajectory,
    /// How it ended.
    pub status: RolloutStatus,
    /// Why, unless it was submitted.
    pub failure: Option<FailureClass>,
    /// What happened, for a failure of the infrastructure, or for changes that are more than a
    /// patch may hold: then there is no patch, and the failure is the model's.
    pub failure_detail: Option<String>,
    /// The repository's changes as a unified diff; empty when there are none or it failed.
    pub patch: String,
    /// The weights that drew the first turn; `None` when nothing was drawn.
    pub policy_version: Option<PolicyVersion>,
}

/// Works on `task` in `sandbox` until the agent submits, a limit is reached, or something fails.
///
/// `session` names the trajectory to the sampler, whose cache of it is always let go at the end.
/// Turn `n` is drawn with `derive_seed(seed, ["turn", n])`. Never fails itself: a failure of the
/// engine or the sandbox is [`RolloutStatus::Failed`] with its class.
pub fn run_agent(
    task: &TaskInstance,
    sandbox: &mut dyn Sandbox,
    sampler: &dyn Sampler,
    renderer: &Renderer,
    config: &AgentConfig,
    session: u64,
    seed: u64,
) -> AgentRun {
    let _end = EndSession { sampler, session };
    let mut agent = Agent {
        sandbox,
        sampler,
        renderer,
        config,
        session,
        seed,
        workspace: Workspace::new(&config.workdir),
        trajectory: Trajectory::default(),
        policy_version: None,
    };
    let ended = agent.turns(task).and_then(|status| Ok((status, agent.patch()?)));
    let Agent { trajectory, policy_version, .. } = agent;
    let (status, failure, failure_detail, patch) = match ended {
        Ok((status, Ok(patch))) => (status, failure_of(status), None, patch),
        Ok((status, Err(reason))) => {
            (status, Some(FailureClass::Model), Some(reason), String::new())
        }
        Err(Fault { class, detail }) => {
            (RolloutStatus::Failed, Some(class), Some(detail), String::new())
        }
    };
    AgentRun { trajectory, status, failure, failure_detail, patch, policy_version }
}

fn failure_of(status: RolloutStatus) -> Option<FailureClass> {
    match status {
        RolloutStatus::TurnLimit => Some(FailureClass::Turns),
        RolloutStatus::ContextLimit => Some(FailureClass::Context),
        RolloutStatus::FormatLimit => Some(FailureClass::Format),
        RolloutStatus::Submitted | RolloutStatus::Failed => None,
    }
}

/// A failure of the infrastructure.
struct Fault {
    class: FailureClass,
    detail: String,
}

impl From<SandboxError> for Fault {
    fn from(error: SandboxError) -> Self {
        Self { class: FailureClass::Sandbox, detail: error.to_string() }
    }
}

fn engine(detail: impl std::fmt::Display) -> Fault {
    Fault { class: FailureClass::Engine, detail: detail.to_string() }
}

struct EndSession<'a> {
    sampler: &'a dyn Sampler,
    session: u64,
}

impl Drop for EndSession<'_> {
    fn drop(&mut self) {
        self.sampler.end_session(self.session);
    }
}

struct Agent<'a> {
    sandbox: &'a mut dyn Sandbox,
    sampler: &'a dyn Sampler,
    renderer: &'a Renderer,
    config: &'a AgentConfig,
    session: u64,
    seed: u64,
    workspace: Workspace,
    trajectory: Trajectory,
    policy_version: Option<PolicyVersion>,
}

impl Agent<'_> {
    /// What the agent changed; the inner error is a reason why that is more than a patch may hold,
    /// which is the agent's doing and not the sandbox's.
    fn patch(&mut self) -> Result<Result<String, String>, Fault> {
        match self.sandbox.diff() {
            Ok(changes) => Ok(Ok(patch::render(&changes))),
            Err(error @ SandboxError::Limit(_)) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// The loop.
    fn turns(&mut self, task: &TaskInstance) -> Result<RolloutStatus, Fault> {
        let config = self.config;
        if config.git {
            base_commit_only(self.sandbox, &config.workdir)?;
        }
        let prompt =
            self.renderer.prompt(task, &config.workdir, config.demonstration).map_err(engine)?;
        self.trajectory.num_prompt_tokens = prompt.tokens.len();
        self.trajectory.prompt = prompt.text;
        self.trajectory.messages = prompt.messages;
        self.append(&prompt.tokens);

        let mut num_errors = 0;
        for n in 0..config.max_turns {
            let room = self.room();
            if room == 0 {
                return Ok(RolloutStatus::ContextLimit);
            }
            let completion = self.sample(n, room)?;
            let text = self.renderer.turn_text(&completion.tokens);
            let sampled = self.append_sampled(&completion);
            let stopped = completion.finish_reason == FinishReason::Stop;
            let (outcome, body) =
                if stopped { self.act(&text)? } else { (TurnOutcome::Truncated, self.too_long()) };
            let out_of_context = !stopped
                && (completion.tokens.len() < config.max_turn_tokens
                    || room <= config.max_turn_tokens);
            let ended = outcome == TurnOutcome::Submitted || out_of_context;
            let observation = if ended {
                String::new()
            } else {
                let workspace = &self.workspace;
                self.renderer.observation(&body, workspace.directory(), workspace.open_file())
            };
            let delta = (!ended).then(|| self.renderer.delta(stopped, &text, &observation));
            let finish_reason = completion.finish_reason;
            let command = match outcome {
                TurnOutcome::Executed | TurnOutcome::Submitted => {
                    command_text(self.renderer.profile().command_style, &text).unwrap_or_default()
                }
                TurnOutcome::FormatError | TurnOutcome::Truncated => String::new(),
            };
            self.trajectory.turns.push(Turn {
                text,
                command,
                observation,
                outcome,
                sampled,
                finish_reason,
            });

            if outcome == TurnOutcome::Submitted {
                return Ok(RolloutStatus::Submitted);
            }
            if out_of_context {
                return Ok(RolloutStatus::ContextLimit);
            }
            num_errors = if outcome == TurnOutcome::Executed { 0 } else { num_errors + 1 };
            if num_errors >= config.max_consecutive_format_errors.max(1) {
                return Ok(RolloutStatus::FormatLimit);
            }
            if n + 1 < config.max_turns {
                let delta = delta.transpose().map_err(engine)?.unwrap_or_default();
                if delta.len() >= self.room() {
                    return Ok(RolloutStatus::ContextLimit);
                }
                self.append(&delta);
            }
        }
        Ok(RolloutStatus::TurnLimit)
    }

    /// Number of tokens that still fit.
    fn room(&self) -> usize {
        let bound = self.config.max_context_tokens.min(self.sampler.max_context());
        bound.saturating_sub(self.trajectory.tokens.len())
    }

    fn append(&mut self, tokens: &[u32]) {
        self.trajectory.tokens.extend_from_slice(tokens);
        self.trajectory.sampler_logprobs.resize(self.trajectory.tokens.len(), 0.0);
    }

    fn append_sampled(&mut self, completion: &Completion) -> TokenSpan {
        let start = self.trajectory.tokens.len();
        self.trajectory.tokens.extend_from_slice(&completion.tokens);
        self.trajectory.sampler_logprobs.extend_from_slice(&completion.logprobs);
        TokenSpan { start, end: self.trajectory.tokens.len() }
    }

    /// Draws turn `n` and checks that the engine kept its contract.
    fn sample(&mut self, n: usize, room: usize) -> Result<Completion, Fault> {
        let max_tokens = room.min(self.config.max_turn_tokens.max(1));
        let stop_token = self.renderer.stop_token();
        let request = SampleRequest {
            session: self.session,
            context: self.trajectory.tokens.clone(),
            max_tokens,
            stop_tokens: vec![stop_token],
            params: self.config.params,
            seed: derive_seed(self.seed, &["turn", &n.to_string()]),
            ..SampleRequest::default()
        };
        let completion = self.sampler.sample(&request).map_err(engine)?;
        let num_tokens = completion.tokens.len();
        if num_tokens != completion.logprobs.len() {
            let num_logprobs = completion.logprobs.len();
            return Err(engine(format!("{num_tokens} tokens with {num_logprobs} logprobs")));
        }
        if num_tokens == 0 || num_tokens > max_tokens {
            return Err(engine(format!("{num_tokens} tokens where 1 to {max_tokens} were asked")));
        }
        let stopped = completion.finish_reason == FinishReason::Stop;
        if stopped != (completion.tokens.last() == Some(&stop_token)) {
            return Err(engine("the finish reason and the last token do not agree"));
        }
        self.policy_version.get_or_insert(completion.policy_version);
        Ok(completion)
    }

    /// Runs the command of a whole message, or says why there is none.
    fn act(&mut self, text: &str) -> Result<(TurnOutcome, String), Fault> {
        let profile = self.renderer.profile();
        let command = match parse_message(profile.command_style, text) {
            Ok(command) => command,
            Err(error) => {
                let texts = &profile.texts;
                let body = match error {
                    FormatError::NoCommand => texts.no_command.clone(),
                    FormatError::SeveralCommands => texts.several_commands.clone(),
                    FormatError::Malformed(reason) => {
                        say(&texts.malformed, &[("reason", reason.into())])
                    }
                };
                return Ok((TurnOutcome::FormatError, body));
            }
        };
        let timeout = Duration::from_secs(self.config.command_timeout_seconds);
        Ok(match self.workspace.execute(self.sandbox, profile, timeout, &command)? {
            Step::Observation(body) => (TurnOutcome::Executed, body),
            Step::Submitted => (TurnOutcome::Submitted, String::new()),
        })
    }

    fn too_long(&self) -> String {
        let num_tokens = self.config.max_turn_tokens;
        say(&self.renderer.profile().texts.turn_too_long, &[("num_tokens_max", num_tokens.into())])
    }
}

#[cfg(test)]
mod tests {
    use super::AgentConfig;

    #[test]
    fn a_config_is_data_and_unknown_keys_are_refused() {
        let config: AgentConfig =
            toml::from_str("max_turns = 3\nparams = {temperature = 0.5}").unwrap();
        assert_eq!((config.max_turns, config.workdir.as_str()), (3, "/testbed"));
        assert_eq!(
            toml::from_str::<AgentConfig>(&toml::to_string(&config).unwrap()).unwrap(),
            config
        );
        for wrong in ["max_turn = 3", "params = {top_k = 5}"] {
            assert!(
                toml::from_str::<AgentConfig>(wrong).unwrap_err().to_string().contains("unknown")
            );
        }
    }
}
