//! `patchwright doctor`: what this machine has of what the program needs.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use patchwright_core::{
    ExecRequest, ExecStatus, RepoSource, SandboxLimits, SandboxProvider, SandboxSpec,
};
use patchwright_sandbox::{FeatureStatus, NativeOptions, NativeSandboxes, Registry};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::error::CliError;
use crate::{numbers, output, table};

/// Free disk space under which a run is likely to fail, and under which it may.
const DISK_NEEDED: u64 = 512 << 20;
const DISK_WANTED: u64 = 2 << 30;
/// Free inodes under which an environment of a real package may not fit any more.
const INODES_WANTED: u64 = 100_000;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Something stands in, or only some commands need it.
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    status: Status,
    /// What was found, or how to mend it.
    detail: String,
}

#[derive(Debug, Serialize)]
struct Findings {
    schema_version: u32,
    /// Whether everything that is needed is there.
    ok: bool,
    checks: Vec<Check>,
}

impl Check {
    fn new(name: &str, status: Status, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status, detail: detail.into() }
    }
}

/// Runs all checks. The exit code is 1 when something that is needed is missing.
pub fn run(args: &DoctorArgs) -> Result<ExitCode, CliError> {
    let mut checks = vec![python()];
    checks.extend(sandboxes());
    checks.push(sandbox_python());
    checks.push(leases());
    checks.push(git());
    checks.push(pip());
    checks.push(disk(Path::new("."), "disk space here"));
    checks.push(disk(&std::env::temp_dir(), "disk space for temporary files"));
    let cache = existing(&cache_dir());
    checks.push(disk(&cache, "disk space of the cache"));
    checks.push(inodes(&cache, "files of the cache"));
    let ok = checks.iter().all(|check| check.status != Status::Fail);
    if args.json {
        output::json(&Findings { schema_version: 1, ok, checks })?;
    } else {
        let rows = checks.iter().map(|check| {
            let status = match check.status {
                Status::Ok => "ok",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            vec![status.to_owned(), check.name.clone(), check.detail.clone()]
        });
        let table = table::table(&["Status", "Check", "Found"], &[], rows);
        output::data(&(table + "\n"))?;
        output::note(if ok {
            "Everything that is needed is there."
        } else {
            "Something that is needed is missing; each FAIL says how to mend it."
        });
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// First line of what a program prints, if it runs.
fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

fn python() -> Check {
    match version("python3") {
        Some(version) => Check::new("python3", Status::Ok, version),
        None => Check::new(
            "python3",
            Status::Fail,
            "not found in PATH; the tasks are Python repositories: install it \
             (Debian, Ubuntu: apt-get install python3)",
        ),
    }
}

fn git() -> Check {
    match version("git") {
        Some(version) => Check::new("git", Status::Ok, version),
        None => Check::new(
            "git",
            Status::Warn,
            "not found in PATH; only task rows whose repository is a git URL need it",
        ),
    }
}

fn pip() -> Check {
    let found = Command::new("python3").args(["-m", "pip", "--version"]).output();
    match found {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            // "pip 24.0 from DIRECTORY (python 3.12)"
            let version: Vec<_> = text.split_whitespace().take(2).collect();
            Check::new("pip", Status::Ok, version.join(" "))
        }
        _ => Check::new(
            "pip",
            Status::Warn,
            "python3 has no pip; only tasks of real packages need it (Debian, Ubuntu: apt-get \
             install python3-pip)",
        ),
    }
}

/// Whether sandboxes can be recorded, and what killed programs have left.
fn leases() -> Check {
    let name = "lease registry";
    let registry = match Registry::open() {
        Ok(registry) => registry,
        Err(error) => return Check::new(name, Status::Fail, error.to_string()),
    };
    let place = registry.path().display();
    match registry.reap(true) {
        Ok(found) if !found.problems.is_empty() => {
            Check::new(name, Status::Warn, found.problems[0].to_string())
        }
        Ok(found) if !found.dead.is_empty() => Check::new(
            name,
            Status::Warn,
            format!("{place}: killed programs have left something: `patchwright sandbox reap`"),
        ),
        Ok(found) => Check::new(name, Status::Ok, format!("{place}, {} alive", found.num_living)),
        Err(error) => Check::new(name, Status::Fail, error.to_string()),
    }
}

fn sandboxes() -> Vec<Check> {
    NativeSandboxes::probe()
        .into_iter()
        .map(|feature| match feature.status {
            FeatureStatus::Ok(found) => Check::new(feature.name, Status::Ok, found),
            FeatureStatus::Degraded(how) => Check::new(feature.name, Status::Warn, how),
            FeatureStatus::Missing(how) => Check::new(feature.name, Status::Fail, how),
        })
        .collect()
}

/// Whether the host's python3 works inside: it may be installed where a sandbox does not look.
fn sandbox_python() -> Check {
    let name = "python3 in a sandbox";
    let spec = SandboxSpec {
        root: patchwright_core::RootFs::Host,
        repo: RepoSource::Files(std::sync::Arc::default()),
        workdir: "/testbed".into(),
        read_only_mounts: Vec::new(),
        env: std::collections::BTreeMap::default(),
        limits: SandboxLimits::default(),
    };
    let script = ["python3", "-c", "import unittest, sys; print(sys.version.split()[0])"];
    let request = ExecRequest::argv(&script, "/testbed", Duration::from_secs(30));
    let run = || {
        let mut sandbox = NativeSandboxes::new(NativeOptions::default())?.create(&spec)?;
        let output = sandbox.exec(&request)?;
        sandbox.destroy()?;
        Ok::<_, patchwright_core::SandboxError>(output)
    };
    match run() {
        Ok(output) if output.status == ExecStatus::Exited(0) => {
            Check::new(name, Status::Ok, String::from_utf8_lossy(&output.stdout).trim())
        }
        Ok(output) => Check::new(
            name,
            Status::Fail,
            format!(
                "does not run: {}",
                String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("no message")
            ),
        ),
        Err(error) => Check::new(name, Status::Fail, error.to_string()),
    }
}

fn disk(path: &Path, name: &str) -> Check {
    let free = match rustix::fs::statvfs(path) {
        Ok(found) => found.f_bavail * found.f_frsize,
        Err(error) => {
            return Check::new(name, Status::Warn, format!("{}: {error}", path.display()));
        }
    };
    let found = format!("{} MiB free", numbers::count((free >> 20) as f64));
    if free < DISK_NEEDED {
        let needed = numbers::count((DISK_NEEDED >> 20) as f64);
        Check::new(name, Status::Fail, format!("{found}; a run needs about {needed} MiB"))
    } else if free < DISK_WANTED {
        Check::new(name, Status::Warn, format!("{found}; several runs may fill it"))
    } else {
        Check::new(name, Status::Ok, found)
    }
}

/// Where repositories, environments and images are kept.
fn cache_dir() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| Some(set("HOME")?.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("patchwright")
}

/// The path, or the nearest directory above it that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(path).to_owned()
}

fn inodes(path: &Path, name: &str) -> Check {
    let found = match rustix::fs::statvfs(path) {
        Ok(found) => found,
        Err(error) => {
            return Check::new(name, Status::Warn, format!("{}: {error}", path.display()));
        }
    };
    // Some file systems make inodes as they are needed, and say that there are none.
    if found.f_files == 0 {
        return Check::new(name, Status::Ok, "as many as there is space for");
    }
    let free = numbers::count(found.f_favail as f64);
    if found.f_favail < INODES_WANTED {
        let text = format!(
            "{}: {free} more files; images and environments of real packages have tens of \
             thousands: set XDG_CACHE_HOME to a larger file system",
            path.display()
        );
        Check::new(name, Status::Warn, text)
    } else {
        Check::new(name, Status::Ok, format!("{free} more files in {}", path.display()))
    }
}
