//! The seam between the programs and what a rollout is made of.
//!
//! An [`Environment`] runs one rollout from prompt to grade. The real one joins agent, sandbox
//! and grader ([`crate::agent_environment`]); tests script theirs.

use std::sync::Arc;

use patchwright_core::{
    Completion, FailureClass, PolicyVersion, RepoSource, Rollout, RolloutStatus, SampleRequest,
    Sampler, SamplerError, TaskInstance, Trajectory,
};

use crate::events::CancelToken;

/// A task instance whose repository is at hand.
#[derive(Debug, Clone)]
pub struct Task {
    /// The instance.
    pub instance: TaskInstance,
    /// Its repository.
    pub repo: RepoSource,
}

/// How one rollout is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RolloutSpec {
    /// Which sibling of its instance; in evaluations the run.
    pub sibling: u32,
    /// Unique among the live rollouts of the process; has no influence on the result.
    pub session: u64,
    /// Seed of all that is drawn in it.
    pub seed: u64,
    /// The weights that must serve it.
    pub policy_version: PolicyVersion,
    /// Turns at most.
    pub max_turns: usize,
    /// Tokens of the trajectory at most.
    pub context_tokens: usize,
    /// Sampling temperature.
    pub temperature: f32,
    /// Whether the prompt shows a solved example, which is removed from the trajectory.
    pub demonstration: bool,
}

/// Counts since the environment was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EnvironmentStats {
    /// Sandboxes made, for agents and for grading.
    pub num_sandboxes: u64,
}

/// Runs rollouts. Called from many threads at once.
pub trait Environment: Send + Sync {
    /// Runs one rollout and grades it. Never fails: what went wrong is in the rollout's status and
    /// failure class. Ends soon after `cancel` is set, with whatever result.
    fn rollout(&self, task: &Task, spec: &RolloutSpec, cancel: &CancelToken) -> Rollout;

    /// How the sandboxes' memory is bounded; `None` where there are none.
    fn limits_rung(&self) -> Option<&str> {
        None
    }

    /// Counts so far.
    fn stats(&self) -> EnvironmentStats {
        EnvironmentStats::default()
    }
}

/// A rollout that the infrastructure failed: no grade, so never a reward.
pub fn failed_rollout(
    task: &Task,
    spec: &RolloutSpec,
    class: FailureClass,
    detail: String,
) -> Rollout {
    debug_assert!(class.is_infrastructure(), "a failure of the policy is graded");
    Rollout {
        instance_id: task.instance.instance_id.clone(),
        sibling: spec.sibling,
        attempt: 0,
        policy_version: spec.policy_version,
        status: RolloutStatus::Failed,
        failure: Some(class),
        failure_detail: Some(detail),
        solved: None,
        patch: String::new(),
        trajectory: Trajectory::default(),
        branches: Vec::new(),
    }
}

/// A sampler for one rollout: refuses tokens of other weights than the rollout began with, and
/// stops when the run is cancelled.
pub struct GuardedSampler<'a> {
    /// The engine's sampler.
    pub inner: &'a Arc<dyn Sampler>,
    /// The weights that must serve.
    pub policy_version: PolicyVersion,
    /// Set when the run is to stop.
    pub cancel: &'a CancelToken,
}

impl Sampler for GuardedSampler<'_> {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        if self.cancel.is_cancelled() {
            return Err(SamplerError::Engine("the run is being stopped".to_owned()));
        }
        let completion = self.inner.sample_cancellable(request, &|| self.cancel.is_cancelled())?;
        if completion.policy_version != self.policy_version {
            return Err(SamplerError::Engine(format!(
                "version {} answered, the rollout belongs to version {}",
                completion.policy_version, self.policy_version
            )));
        }
        Ok(completion)
    }

    fn end_session(&self, session: u64) {
        self.inner.end_session(session);
    }

    fn max_context(&self) -> usize {
        self.inner.max_context()
    }
}
