//! Another's agent instead of our own: a program that is started for each rollout, asks the policy
//! through the gateway, and runs its commands in our sandbox. Grading is the same.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use patchwright_core::{FailureClass, Rollout};
use patchwright_serve::gateway::{Episode, Gateway, MODEL};
use patchwright_serve::{Guard, Metrics, ModelText, ServeError, Server, ServerLimits, Work};

use crate::agent_environment::AgentEnvironment;
use crate::environment::{Environment, EnvironmentStats, RolloutSpec, Task, failed_rollout};
use crate::episodes::{End, Episodes};
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
    episodes: Episodes,
    command: Vec<String>,
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
        Ok(Self { episodes: Episodes { inner, text, gateway }, command, server })
    }

    /// Where the gateway listens, as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
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
            .env("PATCHWRIGHT_WORKDIR", &self.episodes.inner.agent.workdir)
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
        let agent = &self.episodes.inner.agent;
        let timeout = Duration::from_secs(agent.command_timeout_seconds) + TURN_SLACK;
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
}

impl Environment for ForeignEnvironment {
    fn rollout(&self, task: &Task, spec: &RolloutSpec, cancel: &CancelToken) -> Rollout {
        let episode = match self.episodes.begin(task, spec, true, cancel) {
            Ok(episode) => episode,
            Err(error) => {
                return failed_rollout(task, spec, FailureClass::Sandbox, error.to_string());
            }
        };
        let end = match self.act(task, spec, &episode, cancel) {
            Ok(()) => End::Submitted(None),
            Err(reason) => End::Failed(reason),
        };
        self.episodes.conclude(task, spec, episode.finish(), end)
    }

    fn stats(&self) -> EnvironmentStats {
        self.episodes.inner.stats()
    }

    fn limits_rung(&self) -> Option<&str> {
        self.episodes.inner.limits_rung()
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
