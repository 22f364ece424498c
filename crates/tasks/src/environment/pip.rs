//! The pip client, as a child process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use std::os::unix::process::CommandExt;

use super::{EnvironmentError, Watch, io, normalized};

/// Longest that one pip command may take.
const TIMEOUT: Duration = Duration::from_mins(15);
/// Variables that pip and what it builds may see, besides `PIP_*`.
const VARIABLES: [&str; 19] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// A `python3` with pip.
pub struct Pip {
    /// The interpreter's version, such as `3.11`: packages built for it run under it.
    pub python_version: String,
    scratch: PathBuf,
}

impl Pip {
    /// Finds the `python3` of `PATH` and its pip. `scratch` is a directory for files of its own.
    ///
    /// # Errors
    /// [`EnvironmentError::Python`] when there is none, saying how to mend it.
    pub fn find(scratch: &Path) -> Result<Self, EnvironmentError> {
        std::fs::create_dir_all(scratch).map_err(|e| io("making", scratch, e))?;
        let script = "import sys, pip; print('%d.%d' % sys.version_info[:2])";
        let output = Command::new("python3").args(["-c", script]).output().map_err(|_| {
            EnvironmentError::Python(
                "there is no python3 on PATH; install it (Debian, Ubuntu: apt-get install python3 \
                 python3-pip)"
                    .to_owned(),
            )
        })?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || version.is_empty() {
            return Err(EnvironmentError::Python(
                "python3 has no pip; install it (Debian, Ubuntu: apt-get install python3-pip; \
                 else python3 -m ensurepip)"
                    .to_owned(),
            ));
        }
        Ok(Self { python_version: version, scratch: scratch.to_owned() })
    }

    /// Runs `python3 -m pip ARGS`. Stopped, with all that it started, when `watch` says so.
    ///
    /// # Errors
    /// [`EnvironmentError::Pip`] with the end of pip's message, [`EnvironmentError::Stopped`].
    pub fn run(&self, args: &[&str], watch: &dyn Watch) -> Result<(), EnvironmentError> {
        let dir = tempfile::tempdir_in(&self.scratch)
            .map_err(|e| io("making a directory in", &self.scratch, e))?;
        let log = dir.path().join("log");
        let file = std::fs::File::create(&log).map_err(|e| io("making", &log, e))?;
        let again = file.try_clone().map_err(|e| io("opening", &log, e))?;
        let allowed = |name: &str| VARIABLES.contains(&name) || name.starts_with("PIP_");
        let variables = std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(allowed));
        let mut command = Command::new("python3");
        command
            .args(["-m", "pip", "--disable-pip-version-check", "--no-input"])
            .args(args)
            .env_clear()
            .envs(variables)
            // What setup code writes to its home stays here.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(again)
            .process_group(0);
        let mut child =
            command.spawn().map_err(|e| io("running", Path::new("python3 -m pip"), e))?;
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            let status = child.try_wait().map_err(|e| io("waiting for", Path::new("pip"), e))?;
            if let Some(status) = status {
                break Some(status);
            }
            if watch.is_stopped() || Instant::now() > deadline {
                end_group(&mut child);
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if watch.is_stopped() {
            return Err(EnvironmentError::Stopped);
        }
        if status.is_some_and(|status| status.success()) {
            return Ok(());
        }
        let command = args.first().copied().unwrap_or_default().to_owned();
        let says = match status {
            None => format!("it took more than {} s and was ended", TIMEOUT.as_secs()),
            Some(_) => message(&std::fs::read(&log).unwrap_or_default()),
        };
        Err(EnvironmentError::Pip { command, says })
    }

    /// The source distribution of a release, from `dir` or else downloaded there.
    ///
    /// # Errors
    /// As [`Pip::run`]; [`EnvironmentError::Sdist`] when pip gave no file.
    pub fn sdist(
        &self,
        package: &str,
        version: Option<&str>,
        dir: &Path,
        watch: &dyn Watch,
    ) -> Result<PathBuf, EnvironmentError> {
        let release = version.map_or_else(|| package.to_owned(), |v| format!("{package}=={v}"));
        let place = dir.join(release.replace("==", "-").to_lowercase());
        if version.is_some()
            && let Some(file) = only_file(&place)
        {
            return Ok(file);
        }
        std::fs::create_dir_all(dir).map_err(|e| io("making", dir, e))?;
        let part = tempfile::tempdir_in(dir).map_err(|e| io("making a directory in", dir, e))?;
        let dest = part.path().to_string_lossy().into_owned();
        // Of this package alone: what builds it may come as wheels.
        let args = ["download", "--no-deps", "--no-binary", package, "--dest", &dest, &release];
        self.run(&args, watch)?;
        let Some(file) = only_file(part.path()) else {
            return Err(EnvironmentError::Sdist(format!("pip gave no file for {release}")));
        };
        if version.is_none() {
            std::fs::remove_dir_all(&place)
                .or_else(ignore_missing)
                .map_err(|e| io("removing", &place, e))?;
        }
        let kept = part.keep();
        if std::fs::rename(&kept, &place).is_err() {
            // Another worker was first.
            let _ = std::fs::remove_dir_all(&kept);
        }
        let name = file.file_name().unwrap_or_default();
        Ok(place.join(name))
    }
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn only_file(dir: &Path) -> Option<PathBuf> {
    let mut files = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|path| path.is_file())
}

/// Ends pip and what it started.
fn end_group(child: &mut std::process::Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// pip's own words: its `ERROR:` lines, else the last line.
fn message(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let errors: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("ERROR:") || line.starts_with("error:"))
        .take(3)
        .collect();
    if errors.is_empty() {
        let last = text.lines().rfind(|line| !line.trim().is_empty());
        last.unwrap_or("it failed without a message").trim().to_owned()
    } else {
        errors.join(" ")
    }
}

/// Whether two names are the same package.
pub(super) fn same_package(a: &str, b: &str) -> bool {
    normalized(a) == normalized(b)
}

#[cfg(test)]
mod tests {
    use super::{message, same_package};

    #[test]
    fn messages_are_pips_errors() {
        let log = b"Collecting x\nERROR: No matching distribution found for x\nnotice\n";
        assert_eq!(message(log), "ERROR: No matching distribution found for x");
        assert_eq!(message(b"one\ntwo\n\n"), "two");
        assert_eq!(message(b""), "it failed without a message");
    }

    #[test]
    fn names_are_compared_as_indexes_do() {
        assert!(same_package("More_Itertools", "more-itertools"));
        assert!(!same_package("more", "more-itertools"));
    }
}
