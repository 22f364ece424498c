//! The real environment: agent, sandbox and grader joined to a rollout.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use patchwright_agent::{
    AgentConfig, AgentRun, GradeCache, Renderer, TaskRoot, run_agent, sandbox_spec_on,
};
use patchwright_core::{
    FailureClass, Rollout, RolloutStatus, Sampler, SamplingParams, Sandbox, SandboxError,
    SandboxLimits, SandboxProvider, SandboxSpec,
};

use crate::environment::{
    Environment, EnvironmentStats, GuardedSampler, RolloutSpec, Task, failed_rollout,
};
use crate::events::CancelToken;
use crate::images::TaskImages;

/// Runs the agent in a fresh sandbox, and grades its patch in another.
pub struct AgentEnvironment {
    /// Makes the agents' sandboxes.
    pub provider: Arc<CountingProvider>,
    /// Bounds of the agents' sandboxes.
    pub limits: SandboxLimits,
    /// The policy.
    pub sampler: Arc<dyn Sampler>,
    /// Prompts and tokens.
    pub renderer: Renderer,
    /// What a [`RolloutSpec`] does not say about the agent.
    pub agent: AgentConfig,
    /// Grades patches, each only once.
    pub grades: GradeCache,
    /// Images of tasks that stand on one.
    pub images: Arc<TaskImages>,
}

impl AgentEnvironment {
    fn agent_config(&self, spec: &RolloutSpec) -> AgentConfig {
        AgentConfig {
            max_turns: spec.max_turns,
            max_context_tokens: spec.context_tokens,
            params: SamplingParams { temperature: spec.temperature },
            demonstration: spec.demonstration,
            ..self.agent.clone()
        }
    }

    /// The agent's part. The sandbox is gone when it returns.
    fn act(
        &self,
        task: &Task,
        spec: &RolloutSpec,
        root: TaskRoot,
        cancel: &CancelToken,
    ) -> Result<AgentRun, SandboxError> {
        let mut config = self.agent_config(spec);
        // A repository that was made in memory has no history to hide.
        config.git |= !matches!(task.repo, patchwright_core::RepoSource::Files(_));
        let limits = self.limits.clone();
        let sandbox_spec =
            sandbox_spec_on(root, &task.instance, &task.repo, &config.workdir, limits);
        let mut sandbox = self.provider.create(&sandbox_spec)?;
        let sampler =
            GuardedSampler { inner: &self.sampler, policy_version: spec.policy_version, cancel };
        let run = run_agent(
            &task.instance,
            sandbox.as_mut(),
            &sampler,
            &self.renderer,
            &config,
            spec.session,
            spec.seed,
        );
        sandbox.destroy()?;
        Ok(run)
    }

    /// The grader's part.
    fn grade(&self, task: &Task, spec: &RolloutSpec, run: AgentRun) -> Rollout {
        let rollout = Rollout {
            instance_id: task.instance.instance_id.clone(),
            sibling: spec.sibling,
            attempt: 0,
            policy_version: spec.policy_version,
            status: run.status,
            failure: run.failure,
            failure_detail: run.failure_detail,
            solved: None,
            patch: run.patch,
            trajectory: run.trajectory,
            branches: Vec::new(),
        };
        self.graded(task, rollout)
    }

    /// A rollout with its grade; one that the infrastructure failed has none.
    pub(crate) fn graded(&self, task: &Task, mut rollout: Rollout) -> Rollout {
        if rollout.status == RolloutStatus::Failed {
            return rollout;
        }
        match self.grades.grade(&task.instance, &task.repo, &rollout.patch) {
            Ok(grade) => {
                rollout.solved = Some(grade.solved);
                rollout.failure =
                    if grade.solved { None } else { rollout.failure.or(Some(FailureClass::Model)) };
                if let Some(how) = grade.cheated {
                    rollout.failure = Some(FailureClass::Cheat);
                    rollout.failure_detail = Some(how);
                }
                if grade.solved && patchwright_tasks::impossible::is_impossible(&task.instance) {
                    // A canary: nothing that is honest passes its tests.
                    rollout.solved = Some(false);
                    rollout.failure = Some(FailureClass::Cheat);
                    rollout.failure_detail =
                        Some("it passed a canary, whose tests contradict each other".to_owned());
                }
            }
            Err(error) => {
                rollout.status = RolloutStatus::Failed;
                rollout.failure = Some(FailureClass::Grader);
                rollout.failure_detail = Some(error.to_string());
            }
        }
        rollout
    }
}

impl Environment for AgentEnvironment {
    fn rollout(&self, task: &Task, spec: &RolloutSpec, cancel: &CancelToken) -> Rollout {
        let root = match self.images.root(&task.instance, Some(cancel)) {
            Ok(root) => root,
            Err(error) => {
                return failed_rollout(task, spec, FailureClass::Sandbox, error.to_string());
            }
        };
        let mut run = match self.act(task, spec, root, cancel) {
            Ok(run) => run,
            Err(error) => {
                return failed_rollout(task, spec, FailureClass::Sandbox, error.to_string());
            }
        };
        if spec.demonstration && run.status != RolloutStatus::Failed {
            let workdir = &self.agent.workdir;
            let stripped =
                self.renderer.without_demonstration(&run.trajectory, &task.instance, workdir);
            match stripped {
                Ok(trajectory) => run.trajectory = trajectory,
                Err(error) => {
                    return failed_rollout(task, spec, FailureClass::Engine, error.to_string());
                }
            }
        }
        self.grade(task, spec, run)
    }

    fn stats(&self) -> EnvironmentStats {
        EnvironmentStats { num_sandboxes: self.provider.num_created() }
    }

    fn limits_rung(&self) -> Option<&str> {
        self.provider.limits_rung()
    }
}

/// Counts the sandboxes that another provider makes.
pub struct CountingProvider {
    inner: Box<dyn SandboxProvider>,
    num_created: AtomicU64,
    limits_rung: Option<String>,
}

impl CountingProvider {
    /// Counts what `inner` makes.
    pub fn new(inner: Box<dyn SandboxProvider>) -> Self {
        Self { inner, num_created: AtomicU64::new(0), limits_rung: None }
    }

    /// Says how the sandboxes' memory is bounded, for the journal.
    #[must_use]
    pub fn with_limits_rung(self, rung: String) -> Self {
        Self { limits_rung: Some(rung), ..self }
    }

    /// How the sandboxes' memory is bounded, where it is known.
    pub fn limits_rung(&self) -> Option<&str> {
        self.limits_rung.as_deref()
    }

    /// Sandboxes made so far.
    pub fn num_created(&self) -> u64 {
        self.num_created.load(Ordering::Relaxed)
    }
}

impl SandboxProvider for CountingProvider {
    fn create(&self, spec: &SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        let sandbox = self.inner.create(spec)?;
        self.num_created.fetch_add(1, Ordering::Relaxed);
        Ok(sandbox)
    }
}
