//! The sandbox of a task, for its agent and for its grader.

use std::collections::BTreeMap;

use patchwright_core::{RepoSource, RootFs, SandboxLimits, SandboxSpec, TaskInstance};

/// Where [`InstallConfig::site_packages`](patchwright_core::InstallConfig::site_packages) appears
/// inside.
pub const SITE_PACKAGES: &str = "/opt/site-packages";

/// What stands below a task's repository.
#[derive(Debug, Clone, Default)]
pub struct TaskRoot {
    /// The root file system: the host's, or an image's layers.
    pub root: RootFs,
    /// Environment that belongs to it, such as an image's `PATH`.
    pub env: BTreeMap<String, String>,
}

/// Finds the root of a task, such as its image; the error says what is missing and how to get it.
pub type TaskRoots = dyn Fn(&TaskInstance) -> Result<TaskRoot, String> + Send + Sync;

/// A pristine sandbox of the task over the host's system: as [`sandbox_spec_on`] with the default
/// root.
pub fn sandbox_spec(
    task: &TaskInstance,
    repo: &RepoSource,
    workdir: &str,
    limits: SandboxLimits,
) -> SandboxSpec {
    sandbox_spec_on(TaskRoot::default(), task, repo, workdir, limits)
}

/// A pristine sandbox of the task over `root`: its repository at `workdir`, its installed packages
/// read-only, and an environment in which python finds both and behaves the same on every run.
pub fn sandbox_spec_on(
    root: TaskRoot,
    task: &TaskInstance,
    repo: &RepoSource,
    workdir: &str,
    limits: SandboxLimits,
) -> SandboxSpec {
    let TaskRoot { root, mut env } = root;
    env.insert("PYTHONHASHSEED".to_owned(), "0".to_owned());
    env.insert("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned());
    let mut read_only_mounts = Vec::new();
    if let Some(site_packages) = &task.install_config.site_packages {
        read_only_mounts.push((site_packages.clone(), SITE_PACKAGES.to_owned()));
        // As if the repository were installed in place.
        let path = format!("{workdir}:{workdir}/src:{SITE_PACKAGES}");
        env.insert("PYTHONPATH".to_owned(), path);
    }
    SandboxSpec {
        root,
        repo: repo.clone(),
        workdir: workdir.to_owned(),
        read_only_mounts,
        env,
        limits,
    }
}
