//! Another's agent instead of our own: a program that is started for each rollout, asks the policy
//! through the gateway, and runs its commands in our sandbox. Grading is the same.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use patchwright_agent::sandbox_spec_on;
use patchwright_core::{
    FailureClass, Rollout, RolloutStatus, Sandbox, SandboxError, SandboxProvider, patch,
};
use patchwright_serve::gateway::{Episode, EpisodeSpec, Finished, Gateway, MODEL};
use patchwright_serve::{Guard, Metrics, ModelText, ServeError, Server, ServerLimits, Work};

use crate::agent_environment::AgentEnvironment;
use crate::environment::{Environment, EnvironmentStats, RolloutSpec, Task, failed_rollout};
use crate::events::CancelToken;

/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Time of a turn beside its command: for the policy, and for the program's own thinking.
const TURN_SLACK: Duration = Duration::from_mins(1);

/// Bytes kept of the end of what a program says on standard error.
const TAIL_BYTES: usize = 4096;

/// Rollouts by a foreign agent.
///
/// Its program finds in its environment: `OPENAI_BASE_URL` and `OPENAI_API_BASE`, the endpoint;
/// `OPENAI_API_KEY`, the episode's key; `PATCHWRIGHT_GATEWAY`, where `/episode` and
/// `/episode/exec` are; `PATCHWRIGHT_MODEL`, the policy's name; `PATCHWRIGHT_INSTANCE`,
/// `PATCHWRIGHT_TASK` (the text) and `PATCHWRIGHT_WORKDIR`. It ends with code 0 when it
/// has submitted: what stands in the sandbox then is graded.
pub struct ForeignEnvironment {
    inner: AgentEnvironment,
    command: Vec<String>,
    text: Arc<ModelText>,
    gateway: Gateway,
    server: Server,
}

impl ForeignEnvironment {
    /// An environment like `inner` whose agent is `command`, a program with its arguments. The
    /// gateway listens on a loopback address of its own. `max_at_once` rollouts run at once.
    ///
    /// # Errors
    /// [`ServeError`] when the gateway cannot be started.
    pub fn new(
        inner: AgentEnvironment,
        command: Vec<String>,
        text: Arc<ModelText>,
        max_at_once: usize,
    ) -> Result<Self, ServeError> {
        let limits = ServerLimits { max_samples: 2 * max_at_once + 8, ..ServerLimits::default() };
        let metrics = Arc::new(Metrics::default());
        let gateway = Gateway::new(Work::new(limits.max_samples), Arc::clone(&metrics));
        // Each request bears its episode's key.
        let router = Guard::new(None, limits, metrics).protect(gateway.router());
        let server = Server::start(([127, 0, 0, 1], 0).into(), None, limits, router)?;
        Ok(Self { inner, command, text, gateway, server })
    }

    /// Where the gateway listens, as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Opens an episode with a fresh sandbox.
    fn begin(
        &self,
        task: &Task,
        spec: &RolloutSpec,
        cancel: &CancelToken,
    ) -> Result<Episode, SandboxError> {
        let inner = &self.inner;
        let unsupported = SandboxError::Unsupported;
        let root = inner
            .images
            .root(&task.instance, Some(cancel))
            .map_err(|error| unsupported(error.to_string()))?;
        let workdir = &inner.agent.workdir;
        let limits = inner.limits.clone();
        let sandbox_spec = sandbox_spec_on(root, &task.instance, &task.repo, workdir, limits);
        let mut sandbox = inner.provider.create(&sandbox_spec)?;
        if inner.agent.git || !matches!(task.repo, patchwright_core::RepoSource::Files(_)) {
            patchwright_agent::git::base_commit_only(sandbox.as_mut(), workdir)?;
        }
        let told = [
            ("instance_id", &task.instance.instance_id),
            ("repo", &task.instance.repo),
            ("problem_statement", &task.instance.problem_statement),
            ("hints_text", &task.instance.hints_text),
        ];
        let told = told.map(|(name, value)| (name.to_owned(), value.clone()));
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
            sandbox: Some(sandbox),
            workdir: workdir.clone(),
            command_timeout: Duration::from_secs(inner.agent.command_timeout_seconds),
            task: BTreeMap::from(told),
        };
        self.gateway.begin(episode).map_err(|error| unsupported(error.to_string()))
    }

    /// Starts the program, in a process group of its own.
    fn start(&self, task: &Task, episode: &Episode) -> Result<Program, String> {
        let (program, arguments) =
            self.command.split_first().ok_or("agent.foreign_command is empty")?;
        let endpoint = format!("{}/v1", self.url());
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_remove("PATCHWRIGHT_TOKEN")
            .env("OPENAI_BASE_URL", &endpoint)
            .env("OPENAI_API_BASE", &endpoint)
            .env("OPENAI_API_KEY", episode.key())
            .env("PATCHWRIGHT_GATEWAY", self.url())
            .env("PATCHWRIGHT_MODEL", MODEL)
            .env("PATCHWRIGHT_INSTANCE", &task.instance.instance_id)
            .env("PATCHWRIGHT_TASK", &task.instance.problem_statement)
            .env("PATCHWRIGHT_WORKDIR", &self.inner.agent.workdir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        Ok(Program::new(child))
    }

    /// Runs the program to its end, or to the bounds of the rollout.
    fn act(
        &self,
        task: &Task,
        spec: &RolloutSpec,
        episode: &Episode,
        cancel: &CancelToken,
    ) -> Result<(), String> {
        let mut program = self.start(task, episode)?;
        let timeout = Duration::from_secs(self.inner.agent.command_timeout_seconds) + TURN_SLACK;
        let turns = u32::try_from(spec.max_turns).unwrap_or(u32::MAX).saturating_add(1);
        let deadline = Instant::now().checked_add(timeout.saturating_mul(turns));
        loop {
            if let Some(status) = program.try_wait()? {
                let said = program.end();
                return if status.success() {
                    Ok(())
                } else {
                    Err(format!("the agent's program ended with {status}: {said}"))
                };
            }
            if cancel.is_cancelled() || deadline.is_some_and(|at| Instant::now() >= at) {
                let said = program.end();
                let why = if cancel.is_cancelled() { "was stopped" } else { "took too long" };
                return Err(format!("the agent's program {why}: {said}"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Makes a rollout of what an episode left, ungraded.
    fn conclude(
        &self,
        task: &Task,
        spec: &RolloutSpec,
        finished: Finished,
        acted: Result<(), String>,
    ) -> Rollout {
        let Finished { recording, sandbox, sandbox_failure } = finished;
        let fail = |class, detail: String| failed_rollout(task, spec, class, detail);
        let changes = sandbox.map(take_changes);
        if let Some(reason) = recording.engine_failure {
            return fail(FailureClass::Engine, reason);
        }
        if let Some(reason) = sandbox_failure {
            return fail(FailureClass::Sandbox, reason);
        }
        let limit = if recording.out_of_turns {
            Some((RolloutStatus::TurnLimit, FailureClass::Turns))
        } else if recording.out_of_context {
            Some((RolloutStatus::ContextLimit, FailureClass::Context))
        } else {
            None
        };
        // A program that gives up because it may not go on has not failed.
        if let (Err(reason), None) = (acted, limit) {
            return fail(FailureClass::Engine, reason);
        }
        let stitched = recording.stitch(&self.text);
        let Some(main) = stitched.main() else {
            return fail(FailureClass::Engine, "the agent's program asked nothing".to_owned());
        };
        let (patch, too_much) = match changes {
            None => (String::new(), None),
            Some(Ok(patch)) => (patch, None),
            Some(Err(error @ SandboxError::Limit(_))) => (String::new(), Some(error.to_string())),
            Some(Err(error)) => return fail(FailureClass::Sandbox, error.to_string()),
        };
        let mut trajectory = main.trajectory.clone();
        if limit.is_none()
            && let Some(last) = trajectory.turns.last_mut()
        {
            last.outcome = patchwright_core::TurnOutcome::Submitted;
        }
        let failure = too_much.as_ref().map(|_| FailureClass::Model);
        Rollout {
            instance_id: task.instance.instance_id.clone(),
            sibling: spec.sibling,
            policy_version: spec.policy_version,
            status: limit.map_or(RolloutStatus::Submitted, |(status, _)| status),
            failure: failure.or(limit.map(|(_, class)| class)),
            failure_detail: too_much,
            solved: None,
            patch,
            trajectory,
        }
    }
}

/// The sandbox's changes as a patch. The sandbox is gone afterwards.
fn take_changes(mut sandbox: Box<dyn Sandbox>) -> Result<String, SandboxError> {
    let changes = sandbox.diff();
    sandbox.destroy()?;
    Ok(patch::render(&changes?))
}

impl Environment for ForeignEnvironment {
    fn rollout(&self, task: &Task, spec: &RolloutSpec, cancel: &CancelToken) -> Rollout {
        let episode = match self.begin(task, spec, cancel) {
            Ok(episode) => episode,
            Err(error) => {
                return failed_rollout(task, spec, FailureClass::Sandbox, error.to_string());
            }
        };
        let acted = self.act(task, spec, &episode, cancel);
        let rollout = self.conclude(task, spec, episode.finish(), acted);
        self.inner.graded(task, rollout)
    }

    fn stats(&self) -> EnvironmentStats {
        self.inner.stats()
    }

    fn limits_rung(&self) -> Option<&str> {
        self.inner.limits_rung()
    }
}

/// A running program with what it says on standard error. Its whole process group ends with it.
struct Program {
    child: Child,
    said: Option<JoinHandle<Vec<u8>>>,
    has_ended: bool,
}

impl Program {
    fn new(mut child: Child) -> Self {
        let said = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut tail = Vec::new();
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                    tail.extend_from_slice(&buffer[..count]);
                    let surplus = tail.len().saturating_sub(TAIL_BYTES);
                    tail.drain(..surplus);
                }
                tail
            })
        });
        Self { child, said, has_ended: false }
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>, String> {
        self.child.try_wait().map_err(|error| error.to_string())
    }

    /// Ends whatever is left of it; the end of what it said.
    fn end(&mut self) -> String {
        self.kill();
        let said = self.said.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    fn kill(&mut self) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // Its children too. A group that has ended needs no killing.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}
