//! Bubblewrap and Docker, used as agents' harnesses use them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::native::files;
use super::{Contender, EPISODE, Quantiles, quantiles};
use crate::error::CliError;

/// Runs a program that must succeed, and gives its standard output.
fn call(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", args.join(" "), said.lines().next().unwrap_or("failed")))
}

fn write_files(dir: &Path) -> std::io::Result<()> {
    for (name, text) in files() {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

/// A new `bwrap` for each command over a directory on tmpfs: namespaces, no limits, no overlay.
pub struct Bubblewrap;

impl Bubblewrap {
    /// Where there is `bwrap`, and it works.
    pub fn find() -> Result<Self, String> {
        call("bwrap", &["--version"])
            .map_err(|_| "bubblewrap: no `bwrap` in PATH (Debian: apt-get install bubblewrap)")?;
        let dir = directory().map_err(|error| error.to_string())?;
        run(dir.path(), &["true"]).map_err(|error| format!("bubblewrap does not run: {error}"))?;
        Ok(Self)
    }
}

/// A directory in memory where there is one, as the sandboxes' own files are.
fn directory() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

fn run(dir: &Path, argv: &[&str]) -> Result<String, String> {
    let dir = dir.to_string_lossy();
    let mut args = vec!["--unshare-all", "--die-with-parent", "--new-session"];
    for system in ["/usr", "/etc"] {
        args.extend(["--ro-bind", system, system]);
    }
    // Merged into /usr on most machines.
    for system in ["/bin", "/sbin", "/lib", "/lib64"] {
        args.extend(["--ro-bind-try", system, system]);
    }
    args.extend(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
    args.extend(["--bind", &dir, "/testbed", "--chdir", "/testbed", "--"]);
    args.extend(argv);
    call("bwrap", &args)
}

impl Contender for Bubblewrap {
    fn life(&self) -> Result<(), CliError> {
        let dir = directory().map_err(CliError::failed)?;
        write_files(dir.path()).map_err(CliError::failed)?;
        run(dir.path(), &["true"]).map(drop).map_err(CliError::failed)
    }

    fn episode(&self) -> Result<(), CliError> {
        let dir = directory().map_err(CliError::failed)?;
        write_files(dir.path()).map_err(CliError::failed)?;
        for script in EPISODE {
            run(dir.path(), &["bash", "-c", script]).map_err(CliError::failed)?;
        }
        // The changes, taken as cheaply as can be.
        let mut num_changed = 0;
        for (name, text) in files() {
            let now = fs::read_to_string(dir.path().join(name)).map_err(CliError::failed)?;
            num_changed += usize::from(now != text);
        }
        if num_changed == 1 {
            Ok(())
        } else {
            Err(CliError::failed(format!("bubblewrap: {num_changed} changes instead of one")))
        }
    }
}

/// Containers of a daemon, one for each life.
pub struct Docker {
    image: String,
}

impl Docker {
    /// Where a daemon answers and has the image.
    pub fn find(image: &str) -> Result<Self, String> {
        call("docker", &["version", "--format", "{{.Server.Version}}"])
            .map_err(|_| "Docker: no daemon answers".to_owned())?;
        call("docker", &["image", "inspect", "--format", "{{.Id}}", image])
            .map_err(|_| format!("Docker: no image {image} (docker pull {image})"))?;
        Ok(Self { image: image.to_owned() })
    }

    fn create(&self) -> Result<String, String> {
        let image = self.image.as_str();
        let limits = ["--memory=512m", "--pids-limit=128", "--network=none"];
        let mut args = vec!["run", "--detach", "--init"];
        args.extend(limits);
        args.extend([image, "sleep", "3600"]);
        call("docker", &args)
    }

    fn with<T>(&self, body: impl FnOnce(&str) -> Result<T, String>) -> Result<T, CliError> {
        let id = self.create().map_err(CliError::failed)?;
        let done = body(&id);
        let removed = call("docker", &["rm", "--force", &id]);
        done.and_then(|done| removed.map(|_| done)).map_err(CliError::failed)
    }

    /// Commands in a living container.
    pub fn exec(&self, seconds: f64) -> Result<Quantiles, CliError> {
        self.with(|id| {
            let mut times: Vec<Duration> = Vec::new();
            let begin = Instant::now();
            while times.is_empty() || begin.elapsed().as_secs_f64() < seconds {
                let start = Instant::now();
                call("docker", &["exec", id, "true"])?;
                times.push(start.elapsed());
            }
            Ok(quantiles(times))
        })
    }
}

impl Contender for Docker {
    fn life(&self) -> Result<(), CliError> {
        self.with(|id| call("docker", &["exec", id, "true"]).map(drop))
    }

    fn episode(&self) -> Result<(), CliError> {
        let dir = directory().map_err(CliError::failed)?;
        write_files(dir.path()).map_err(CliError::failed)?;
        let from = format!("{}/.", dir.path().display());
        self.with(|id| {
            call("docker", &["cp", &from, &format!("{id}:/testbed")])?;
            for script in EPISODE {
                call("docker", &["exec", "--workdir", "/testbed", id, "sh", "-c", script])?;
            }
            call("docker", &["diff", id]).map(drop)
        })
    }
}
