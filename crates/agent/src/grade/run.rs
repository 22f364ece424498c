//! One run of the hidden tests in a sandbox.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use patchwright_core::{
    ExecOutput, ExecRequest, ExecStatus, FileChange, RootFs, Sandbox, SandboxError,
};

use super::channel::{self, Nonce, Report};
use super::runner::{self, Call, Compiled, Mode};
use super::{GradeError, Grader, Prepared, sandbox_error};

/// Allowed for the start of the supervisor and its last words, which are not the patch's doing.
const START: Duration = Duration::from_secs(20);

/// What a run of the tests gave.
pub(super) enum Ran {
    /// The supervisor came to speak.
    Tests(Box<Outcome>),
    /// The tests could not be run, for this reason: the patch's fault.
    Unsolved(String),
}

/// The tests were run.
pub(super) struct Outcome {
    pub report: Report,
    /// The end of what the tests printed.
    pub printed: String,
    /// How the supervisor's process ended.
    pub how: String,
}

/// How one candidate came out before its tests could run.
enum Early {
    /// It is unsolved, for this reason.
    Unsolved(String),
    /// The sandbox failed.
    Failed(SandboxError),
    /// The interpreter did not start, or not as it should: how it ended, and what it printed.
    NotStarted(String, String),
}

impl From<SandboxError> for Early {
    fn from(error: SandboxError) -> Self {
        match error {
            // The host only writes what the patch and the tests say, so what does not fit is
            // the patch's doing: a file where a directory must be, too much data.
            SandboxError::Path { .. } | SandboxError::Limit(_) => Self::Unsolved(error.to_string()),
            error => Self::Failed(error),
        }
    }
}

impl Grader {
    /// Runs the tests over `changes` in a fresh sandbox.
    pub(super) fn run(
        &self,
        prepared: &Prepared<'_>,
        changes: &[FileChange],
        mode: Mode,
        seed: u64,
    ) -> Result<Ran, GradeError> {
        let task = prepared.task;
        let nonce = Nonce::new().map_err(|source| GradeError::Io {
            instance_id: task.instance_id.clone(),
            path: "random source of the host".to_owned(),
            source,
        })?;
        let num_tests = prepared.runner.ids().len();
        // In one that was only read, nothing has run yet.
        let mut sandbox = if let Some(sandbox) = prepared.pristine.take_sandbox() {
            sandbox
        } else {
            let spec = self.spec(&prepared.root, task, prepared.repo, num_tests);
            self.provider.create(&spec).map_err(|source| sandbox_error(task, source))?
        };
        let ran = self.compiled(prepared, sandbox.as_mut()).and_then(|compiled| {
            let call = Call {
                mode,
                workdir: &self.options.workdir,
                nonce: &nonce,
                seconds: self.options.timeout.as_secs_f64(),
                seed,
                compiled: &compiled,
                image: prepared.root.root != RootFs::Host,
            };
            self.run_tests(prepared, changes, sandbox.as_mut(), &call)
        });
        sandbox.destroy().map_err(|source| sandbox_error(task, source))?;
        match ran {
            Ok(output) => self.read_output(prepared, &nonce, &output),
            Err(Early::Unsolved(reason)) => Ok(Ran::Unsolved(reason)),
            Err(Early::Failed(error)) => Err(sandbox_error(task, error)),
            Err(Early::NotStarted(how, detail)) => {
                Err(GradeError::Runner { instance_id: task.instance_id.clone(), how, detail })
            }
        }
    }

    /// The programs of a run for the sandbox's interpreter; for the host's, made once. Called
    /// while nothing of the patch is in the sandbox.
    fn compiled(
        &self,
        prepared: &Prepared<'_>,
        sandbox: &mut dyn Sandbox,
    ) -> Result<Arc<Compiled>, Early> {
        if prepared.root.root != RootFs::Host {
            return self.compile(prepared, sandbox, true).map(Arc::new);
        }
        let mut held = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut held[usize::from(prepared.runner.is_pytest())];
        if let Some(compiled) = slot {
            return Ok(Arc::clone(compiled));
        }
        let compiled = Arc::new(self.compile(prepared, sandbox, false)?);
        *slot = Some(Arc::clone(&compiled));
        Ok(compiled)
    }

    fn compile(
        &self,
        prepared: &Prepared<'_>,
        sandbox: &mut dyn Sandbox,
        image: bool,
    ) -> Result<Compiled, Early> {
        let (argv, stdin) = prepared.runner.compiler(image);
        let request = ExecRequest {
            argv,
            cwd: "/".to_owned(),
            env: runner::environment(),
            stdin,
            timeout: self.options.timeout,
        };
        let output = sandbox.exec(&request).map_err(Early::Failed)?;
        let compiled = match output.status {
            ExecStatus::Exited(0) => Compiled::read(&output.stdout),
            _ => None,
        };
        compiled.ok_or_else(|| {
            let printed = tail(&String::from_utf8_lossy(&output.stderr), self.options.detail_chars);
            Early::NotStarted(self.how(output.status), printed)
        })
    }

    fn how(&self, status: ExecStatus) -> String {
        match status {
            ExecStatus::Exited(code) => format!("exit code {code}"),
            ExecStatus::Signaled(signal) => format!("signal {signal}"),
            ExecStatus::TimedOut => {
                format!("stopped after {} s", self.options.timeout.as_secs())
            }
        }
    }

    fn run_tests(
        &self,
        prepared: &Prepared<'_>,
        changes: &[FileChange],
        sandbox: &mut dyn Sandbox,
        call: &Call<'_>,
    ) -> Result<ExecOutput, Early> {
        if self.defences.filter {
            self.put(sandbox, changes)?;
            self.put(sandbox, &prepared.tests)?;
        } else {
            self.put(sandbox, &prepared.tests)?;
            self.put(sandbox, changes)?;
        }
        let (argv, stdin) = prepared.runner.command(call);
        let request = ExecRequest {
            argv,
            cwd: self.options.workdir.clone(),
            env: runner::environment(),
            stdin,
            // The supervisor ends the tests in time, and then speaks.
            timeout: self.options.timeout + START,
        };
        // By now a failure is not a misplaced file's.
        sandbox.exec(&request).map_err(Early::Failed)
    }

    /// Writes changed files into the tree of the sandbox.
    fn put(&self, sandbox: &mut dyn Sandbox, changes: &[FileChange]) -> Result<(), Early> {
        let inside = |change: &FileChange| format!("{}/{}", self.options.workdir, change.path);
        let gone = changes.iter().filter(|change| change.new.is_none());
        self.host_command(sandbox, &["rm", "-f", "--"], gone.map(inside).collect())?;
        for change in changes {
            if let Some(bytes) = &change.new {
                sandbox.write(&inside(change), bytes)?;
            }
        }
        let executable = changes.iter().filter(|change| change.executable);
        self.host_command(sandbox, &["chmod", "+x", "--"], executable.map(inside).collect())
    }

    /// Runs one of the grader's own commands over paths, if there are any.
    fn host_command(
        &self,
        sandbox: &mut dyn Sandbox,
        program: &[&str],
        paths: Vec<String>,
    ) -> Result<(), Early> {
        if paths.is_empty() {
            return Ok(());
        }
        let mut request = ExecRequest::argv(program, &self.options.workdir, self.options.timeout);
        request.argv.extend(paths);
        let output = sandbox.exec(&request)?;
        if output.status == ExecStatus::Exited(0) {
            return Ok(());
        }
        let printed = String::from_utf8_lossy(&output.stderr);
        Err(Early::Unsolved(format!("{} failed: {}", program.join(" "), printed.trim_end())))
    }

    fn read_output(
        &self,
        prepared: &Prepared<'_>,
        nonce: &Nonce,
        output: &ExecOutput,
    ) -> Result<Ran, GradeError> {
        let instance_id = prepared.task.instance_id.clone();
        let report = channel::read(nonce, &output.stdout, prepared.runner.ids().len());
        let printed = tail(&String::from_utf8_lossy(&output.stderr), self.options.detail_chars);
        let how = self.how(output.status);
        if let Some(reason) = report.refused {
            return Err(GradeError::Task { instance_id, reason });
        }
        if !report.ready {
            return Err(GradeError::Runner { instance_id, how, detail: printed });
        }
        Ok(Ran::Tests(Box::new(Outcome { report, printed, how })))
    }
}

/// The last `num_chars` characters.
fn tail(text: &str, num_chars: usize) -> String {
    let text = text.trim_end();
    let skip = text.chars().count().saturating_sub(num_chars);
    text.chars().skip(skip).collect()
}
