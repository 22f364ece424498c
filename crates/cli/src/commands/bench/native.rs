//! The program's own sandboxes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchwright_core::{
    ExecRequest, ExecStatus, RepoSource, RootFs, Sandbox, SandboxLimits, SandboxProvider,
    SandboxSpec,
};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};

use super::leftovers::{Counts, Leftovers};
use super::{Contender, EPISODE, Fork, Quantiles, quantiles, round};
use crate::error::CliError;

/// Files that the forked sandbox has written.
const NUM_FILES: usize = 10_000;
/// Forks that are measured.
const NUM_FORKS: usize = 40;
const WORKDIR: &str = "/testbed";
const LONG: Duration = Duration::from_mins(1);

/// The small repository that every contender works on.
pub fn files() -> BTreeMap<String, String> {
    (0..6)
        .map(|n| (format!("pkg/m{n}.py"), format!("def f{n}(x):\n    return x + {n}\n").repeat(20)))
        .collect()
}

/// Sandboxes over the host's system, as training makes them.
pub struct Native {
    provider: NativeSandboxes,
    spec: SandboxSpec,
}

impl Native {
    /// Starts the provider.
    pub fn start() -> Result<Self, CliError> {
        let spec = SandboxSpec {
            root: RootFs::Host,
            repo: RepoSource::Files(Arc::new(files())),
            workdir: WORKDIR.to_owned(),
            read_only_mounts: Vec::new(),
            env: BTreeMap::new(),
            limits: SandboxLimits::default(),
        };
        Ok(Self { provider: NativeSandboxes::new(NativeOptions::default())?, spec })
    }

    /// Commands in a living sandbox.
    pub fn exec(&self, seconds: f64) -> Result<Quantiles, CliError> {
        let mut sandbox = self.provider.create(&self.spec)?;
        command(&mut *sandbox, &["true"])?;
        let mut times = Vec::new();
        let begin = Instant::now();
        while begin.elapsed().as_secs_f64() < seconds {
            let start = Instant::now();
            command(&mut *sandbox, &["true"])?;
            times.push(start.elapsed());
        }
        sandbox.destroy()?;
        Ok(quantiles(times))
    }

    /// Forks of a sandbox that has written many files.
    pub fn fork(&self) -> Result<Fork, CliError> {
        let mut sandbox = self.provider.create(&self.spec)?;
        let script = format!(
            "mkdir many && cd many && for ((i = 0; i < {NUM_FILES}; i++)); do echo $i > f$i; done"
        );
        command(&mut *sandbox, &["bash", "-c", &script])?;
        let mut times = Vec::new();
        for _ in 0..NUM_FORKS {
            let start = Instant::now();
            let copy = sandbox.fork()?;
            times.push(start.elapsed());
            copy.destroy()?;
        }
        sandbox.destroy()?;
        Ok(Fork { p50: round(quantiles(times).p50), num_files: NUM_FILES })
    }

    /// What many lives leave behind, in a provider of their own, which ends too.
    pub fn leftovers(&self, num_lives: usize) -> Result<Leftovers, CliError> {
        let before = Counts::now();
        let other = Self {
            provider: NativeSandboxes::new(NativeOptions::default())?,
            spec: self.spec.clone(),
        };
        for _ in 0..num_lives {
            other.life()?;
        }
        drop(other);
        Ok(Leftovers::since(before, num_lives))
    }
}

impl Contender for Native {
    fn life(&self) -> Result<(), CliError> {
        let mut sandbox = self.provider.create(&self.spec)?;
        command(&mut *sandbox, &["true"])?;
        Ok(sandbox.destroy()?)
    }

    fn episode(&self) -> Result<(), CliError> {
        let mut sandbox = self.provider.create(&self.spec)?;
        for script in EPISODE {
            command(&mut *sandbox, &["bash", "-c", script])?;
        }
        let changes = sandbox.diff()?;
        if changes.len() != 1 {
            return Err(CliError::failed(format!("{} changes instead of one", changes.len())));
        }
        Ok(sandbox.destroy()?)
    }
}

fn command(sandbox: &mut dyn Sandbox, argv: &[&str]) -> Result<(), CliError> {
    let output = sandbox.exec(&ExecRequest::argv(argv, WORKDIR, LONG))?;
    if output.status == ExecStatus::Exited(0) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(CliError::failed(format!("{argv:?} in a sandbox: {:?}: {said}", output.status)))
}
