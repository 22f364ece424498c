//! What an agent did: turns, trajectories, rollouts, groups.

use serde::{Deserialize, Serialize};

use crate::sampler::FinishReason;
use crate::trainer::{PolicyVersion, TrainingSample};

/// What became of a turn's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnOutcome {
    /// Exactly one command was found and it ran (whatever its exit code).
    Executed,
    /// No command, several commands, or one that cannot be parsed: the observation says so.
    FormatError,
    /// The agent submitted.
    Submitted,
    /// The turn was cut off by the context or token limit and was not acted on.
    Truncated,
}

/// A half-open range of positions in [`Trajectory::tokens`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSpan {
    /// First position.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Whoever sets the rules.
    System,
    /// The issue, and in most templates the observations.
    User,
    /// The model.
    Assistant,
    /// A tool's answer, in templates that have such messages.
    Tool,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said, without the template's framing.
    pub content: String,
}

/// One assistant message and the observation that answered it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The sampled text, decoded (reasoning and command).
    pub text: String,
    /// The command that was found in it and ran; empty where none did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// The observation as shown to the model; empty after a submission.
    pub observation: String,
    /// What became of it.
    pub outcome: TurnOutcome,
    /// The sampled tokens' place in the trajectory.
    pub sampled: TokenSpan,
    /// Why sampling stopped.
    pub finish_reason: FinishReason,
}

/// An ordered conversation as one append-only token sequence. Tokens are never re-tokenized.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Trajectory {
    /// All tokens: prompt, sampled turns, observations and template tokens between them, `[t]`.
    pub tokens: Vec<u32>,
    /// Log-probability of each sampled token, 0 elsewhere, `[t]`.
    pub sampler_logprobs: Vec<f32>,
    /// Number of prompt tokens (before the first sampled one).
    pub num_prompt_tokens: usize,
    /// The prompt as text.
    pub prompt: String,
    /// The prompt as messages; empty where they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// The turns, in order.
    pub turns: Vec<Turn>,
}

impl Trajectory {
    /// Number of sampled tokens.
    pub fn num_sampled_tokens(&self) -> usize {
        self.turns.iter().map(|t| t.sampled.end - t.sampled.start).sum()
    }

    /// Turns that the environment answered with a formatting error.
    pub fn num_format_errors(&self) -> usize {
        self.turns.iter().filter(|t| t.outcome == TurnOutcome::FormatError).count()
    }

    /// A sample whose mask is 1 on sampled tokens and 0 elsewhere, with `advantage` on each.
    /// `keep_turn` may leave turns out (RFT masks those with formatting errors).
    pub fn to_sample(&self, advantage: f32, keep_turn: impl Fn(&Turn) -> bool) -> TrainingSample {
        let n = self.tokens.len();
        let mut loss_mask = vec![0.0; n];
        for turn in self.turns.iter().filter(|t| keep_turn(t)) {
            loss_mask[turn.sampled.start..turn.sampled.end].fill(1.0);
        }
        let advantages = loss_mask.iter().map(|m| m * advantage).collect();
        TrainingSample {
            tokens: self.tokens.clone(),
            loss_mask,
            advantages,
            sampler_logprobs: self.sampler_logprobs.clone(),
        }
    }
}

/// The boundary at which a rollout failed (invariant 1: every failure has a class).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The model submitted a patch that does not solve the task.
    Model,
    /// The patch forges the results of tests: unsolved, and an alarm.
    Cheat,
    /// The model ended on too many formatting errors in a row.
    Format,
    /// The turn limit was reached before a submission.
    Turns,
    /// The context was used up before a submission.
    Context,
    /// The sandbox failed: infrastructure, not rewarded.
    Sandbox,
    /// The grader failed: infrastructure, not rewarded.
    Grader,
    /// The engine failed: infrastructure, not rewarded.
    Engine,
    /// A foreign agent's program failed, or left its episode: infrastructure, not rewarded.
    Agent,
}

impl FailureClass {
    /// Whether the failure says nothing about the policy and must never become a reward.
    pub fn is_infrastructure(self) -> bool {
        matches!(self, Self::Sandbox | Self::Grader | Self::Engine | Self::Agent)
    }
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutStatus {
    /// The agent submitted.
    Submitted,
    /// `max_turns` were used up; what stands in the sandbox is graded.
    TurnLimit,
    /// The context was used up; what stands in the sandbox is graded.
    ContextLimit,
    /// Too many formatting errors in a row; what stands in the sandbox is graded.
    FormatLimit,
    /// Infrastructure failed; there is no grade.
    Failed,
}

/// A trajectory with its end, patch and reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The task.
    pub instance_id: String,
    /// Which of the `group_size` siblings, from 0.
    pub sibling: u32,
    /// Which attempt at it, from 0, of those that are kept: the gateway keeps what infrastructure
    /// or agent failed beside what came of giving it away again. The last one counts.
    #[serde(default, skip_serializing_if = "is_first")]
    pub attempt: u32,
    /// The weights that started it.
    pub policy_version: PolicyVersion,
    /// How it ended.
    pub status: RolloutStatus,
    /// Why it is not a success; `None` for a solved one.
    pub failure: Option<FailureClass>,
    /// What happened, for a failure of the infrastructure or a cheat.
    pub failure_detail: Option<String>,
    /// Whether the hidden tests pass; `None` when there is no grade.
    pub solved: Option<bool>,
    /// The agent's changes as a unified diff; empty when there are none.
    pub patch: String,
    /// What was said and done.
    pub trajectory: Trajectory,
    /// What else was said in the same episode, by an agent that rewrites its history, asks several
    /// times or has helpers: each a sequence of its own, in the order of their beginnings. A token
    /// is sampled in one of all these trajectories only; where another goes on after it, it stands
    /// there as prompt. Our own agent has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<Trajectory>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_first(attempt: &u32) -> bool {
    *attempt == 0
}

impl Rollout {
    /// All trajectories: the main one, then the branches.
    pub fn trajectories(&self) -> impl Iterator<Item = &Trajectory> {
        std::iter::once(&self.trajectory).chain(&self.branches)
    }

    /// Steps of all trajectories, the |tau| of the length penalty: what a limit on turns counts.
    pub fn num_turns(&self) -> usize {
        self.trajectories().map(|trajectory| trajectory.turns.len()).sum()
    }

    /// Sampled tokens of all trajectories.
    pub fn num_sampled_tokens(&self) -> usize {
        self.trajectories().map(Trajectory::num_sampled_tokens).sum()
    }

    /// A sample of each trajectory that has something to train on, with `advantage` on every
    /// sampled token, see [`Trajectory::to_sample`]. Each sampled token is in the loss once.
    pub fn to_samples(
        &self,
        advantage: f32,
        keep_turn: impl Fn(&Turn) -> bool,
    ) -> Vec<TrainingSample> {
        self.trajectories()
            .map(|trajectory| trajectory.to_sample(advantage, &keep_turn))
            .filter(|sample| sample.num_loss_tokens() > 0)
            .collect()
    }

    /// Solved, and known to be.
    pub fn is_solved(&self) -> bool {
        self.solved == Some(true)
    }
}

/// The siblings of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutGroup {
    /// The task they share.
    pub instance_id: String,
    /// In order of `sibling`.
    pub rollouts: Vec<Rollout>,
}
