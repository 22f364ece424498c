//! The sandbox of a task, for its agent and for its grader.

use std::collections::BTreeMap;

use patchwright_core::{RepoSource, RootFs, SandboxLimits, SandboxSpec, TaskInstance};

/// Where [`InstallConfig::site_packages`](patchwright_core::InstallConfig::site_packages) appears
/// inside.
pub const SITE_PACKAGES: &str = "/opt/site-packages";

/// A pristine sandbox of the task: its repository at `workdir`, its installed packages read-only,
/// and an environment in which python finds both and behaves the same on every run.
pub fn sandbox_spec(
    task: &TaskInstance,
    repo: &RepoSource,
    workdir: &str,
    limits: SandboxLimits,
) -> SandboxSpec {
    let mut env = BTreeMap::from([
        ("PYTHONHASHSEED".to_owned(), "0".to_owned()),
        ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
    ]);
    let mut read_only_mounts = Vec::new();
    if let Some(site_packages) = &task.install_config.site_packages {
        read_only_mounts.push((site_packages.clone(), SITE_PACKAGES.to_owned()));
        // As if the repository were installed in place.
        let path = format!("{workdir}:{workdir}/src:{SITE_PACKAGES}");
        env.insert("PYTHONPATH".to_owned(), path);
    }
    SandboxSpec {
        root: RootFs::Host,
        repo: repo.clone(),
        workdir: workdir.to_owned(),
        read_only_mounts,
        env,
        limits,
    }
}
