//! Episodes of foreign agents, from the gateway to a graded rollout: what programs that we start
//! and agents that come to the desk have in common.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use patchwright_agent::sandbox_spec_on;
use patchwright_core::{
    FailureClass, Rollout, RolloutStatus, Sandbox, SandboxError, SandboxProvider, patch,
};
use patchwright_serve::ModelText;
use patchwright_serve::gateway::{Episode, EpisodeSpec, Finished, Gateway, Recording};

use crate::agent_environment::AgentEnvironment;
use crate::environment::{RolloutSpec, Task};
use crate::events::CancelToken;

/// Opens episodes at a gateway and makes rollouts of them.
pub(crate) struct Episodes {
    /// Policy, sandboxes and grader.
    pub inner: AgentEnvironment,
    /// The policy's text.
    pub text: Arc<ModelText>,
    /// Where the episodes are.
    pub gateway: Gateway,
}

/// How an agent ended.
pub(crate) enum End {
    /// It is done: with this patch, or with what stands in its sandbox.
    Submitted(Option<String>),
    /// It failed, or was stopped.
    Failed(String),
}

impl Episodes {
    /// Opens an episode, with a fresh sandbox if the agent is to have one.
    pub fn begin(
        &self,
        task: &Task,
        spec: &RolloutSpec,
        with_sandbox: bool,
        cancel: &CancelToken,
    ) -> Result<Episode, SandboxError> {
        let inner = &self.inner;
        let sandbox = with_sandbox.then(|| self.sandbox(task, cancel)).transpose()?;
        let episode = EpisodeSpec {
            sampler: Arc::clone(&inner.sampler),
            text: Arc::clone(&self.text),
            session: spec.session,
            seed: spec.seed,
            temperature: spec.temperature,
            policy_version: Some(spec.policy_version),
            max_turns: spec.max_turns,
            max_turn_tokens: inner.agent.max_turn_tokens,
            context_tokens: spec.context_tokens,
            sandbox,
            workdir: inner.agent.workdir.clone(),
            command_timeout: Duration::from_secs(inner.agent.command_timeout_seconds),
            task: told(task),
        };
        let unsupported = |error: patchwright_serve::ServeError| error.to_string();
        self.gateway.begin(episode).map_err(|error| SandboxError::Unsupported(unsupported(error)))
    }

    fn sandbox(&self, task: &Task, cancel: &CancelToken) -> Result<Box<dyn Sandbox>, SandboxError> {
        let inner = &self.inner;
        let root = inner
            .images
            .root(&task.instance, Some(cancel))
            .map_err(|error| SandboxError::Unsupported(error.to_string()))?;
        let workdir = &inner.agent.workdir;
        let limits = inner.limits.clone();
        let spec = sandbox_spec_on(root, &task.instance, &task.repo, workdir, limits);
        let mut sandbox = inner.provider.create(&spec)?;
        if inner.agent.git || !matches!(task.repo, patchwright_core::RepoSource::Files(_)) {
            patchwright_agent::git::base_commit_only(sandbox.as_mut(), workdir)?;
        }
        Ok(sandbox)
    }

    /// The graded rollout of what an episode left. Its tokens are kept whatever became of it.
    pub fn conclude(
        &self,
        task: &Task,
        spec: &RolloutSpec,
        finished: Finished,
        end: End,
    ) -> Rollout {
        let rollout = self.ungraded(task, spec, finished, end);
        self.inner.graded(task, rollout)
    }

    fn ungraded(&self, task: &Task, spec: &RolloutSpec, finished: Finished, end: End) -> Rollout {
        let Finished { recording, sandbox, sandbox_failure } = finished;
        let changes = sandbox.map(take_changes);
        let limit = limit(&recording);
        let mut stitched = recording.stitch(&self.text);
        if limit.is_none() && matches!(end, End::Submitted(_)) {
            stitched.submitted();
        }
        let stitched = stitched.into_main();
        let asked_nothing = stitched.is_none();
        let (trajectory, branches) = stitched.unwrap_or_default();
        let mut rollout = Rollout {
            instance_id: task.instance.instance_id.clone(),
            sibling: spec.sibling,
            attempt: 0,
            policy_version: spec.policy_version,
            status: limit.map_or(RolloutStatus::Submitted, |(status, _)| status),
            failure: limit.map(|(_, class)| class),
            failure_detail: None,
            solved: None,
            patch: String::new(),
            trajectory,
            branches,
        };
        if let Some(reason) = recording.engine_failure {
            return failed(rollout, FailureClass::Engine, reason);
        }
        if let Some(reason) = sandbox_failure {
            return failed(rollout, FailureClass::Sandbox, reason);
        }
        let submitted = match end {
            End::Submitted(patch) => patch,
            // An agent that gives up because it may not go on has not failed.
            End::Failed(_) if limit.is_some() => None,
            End::Failed(reason) => return failed(rollout, FailureClass::Agent, reason),
        };
        if asked_nothing {
            let reason = "the agent's program asked nothing".to_owned();
            return failed(rollout, FailureClass::Agent, reason);
        }
        match submitted.map(Ok).or(changes) {
            None => {}
            Some(Ok(patch)) => rollout.patch = patch,
            Some(Err(error @ SandboxError::Limit(_))) => {
                rollout.failure = Some(FailureClass::Model);
                rollout.failure_detail = Some(error.to_string());
            }
            Some(Err(error)) => return failed(rollout, FailureClass::Sandbox, error.to_string()),
        }
        rollout
    }
}

/// The limit that ended an episode.
fn limit(recording: &Recording) -> Option<(RolloutStatus, FailureClass)> {
    if recording.out_of_turns {
        Some((RolloutStatus::TurnLimit, FailureClass::Turns))
    } else if recording.out_of_context {
        Some((RolloutStatus::ContextLimit, FailureClass::Context))
    } else {
        None
    }
}

fn failed(rollout: Rollout, class: FailureClass, detail: String) -> Rollout {
    let (failure, failure_detail) = (Some(class), Some(detail));
    Rollout { status: RolloutStatus::Failed, failure, failure_detail, ..rollout }
}

/// What an agent may know of its task.
pub(crate) fn told(task: &Task) -> BTreeMap<String, String> {
    let instance = &task.instance;
    let told = [
        ("instance_id", &instance.instance_id),
        ("repo", &instance.repo),
        ("base_commit", &instance.base_commit),
        ("problem_statement", &instance.problem_statement),
        ("hints_text", &instance.hints_text),
    ];
    told.map(|(name, value)| (name.to_owned(), value.clone())).into()
}

/// The sandbox's changes as a patch. The sandbox is gone afterwards.
fn take_changes(mut sandbox: Box<dyn Sandbox>) -> Result<String, SandboxError> {
    let changes = sandbox.diff();
    sandbox.destroy()?;
    Ok(patch::render(&changes?))
}
