//! Python environments for engines and clients of others.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::run_command;

/// An environment of the system's Python; made once.
pub(super) fn virtual_environment(dir: &Path) -> Result<PathBuf, String> {
    let python = dir.join("bin/python");
    if !python.is_file() {
        run_command(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
    }
    Ok(python)
}

/// `dir/environment`: a Python 3.12 with packages that uv installs, once for every `version`.
pub(super) fn environment(dir: &Path, version: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let environment = dir.join("environment");
    let python = environment.join("bin/python");
    let done = dir.join(format!("installed-{version}"));
    if done.is_file() && python.is_file() {
        return Ok(python);
    }
    std::fs::create_dir_all(dir).map_err(failed)?;
    run_command(Command::new(python312()?).args(["-m", "venv"]).arg(&environment))?;
    let pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "uv"];
    run_command(Command::new(&python).args(pip))?;
    let uv = ["-m", "uv", "pip", "install", "--quiet", "--python"];
    run_command(Command::new(&python).args(uv).arg(&python).args(packages))?;
    std::fs::write(&done, "").map_err(failed)?;
    Ok(python)
}

/// A Python 3.12: `PATCHWRIGHT_PYTHON312`, one in the path, or one of pyenv's.
fn python312() -> Result<PathBuf, String> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let pyenv = std::fs::read_dir(Path::new(&home).join(".pyenv/versions")).into_iter().flatten();
    let pyenv = pyenv
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("3.12"))
        .map(|entry| entry.path().join("bin/python"));
    std::env::var_os("PATCHWRIGHT_PYTHON312")
        .map(PathBuf::from)
        .into_iter()
        .chain([PathBuf::from("python3.12")])
        .chain(pyenv)
        .find(|python| {
            let check = "import sys, venv; sys.exit(sys.version_info[:2] != (3, 12))";
            let run = Command::new(python).args(["-c", check]).output();
            run.is_ok_and(|output| output.status.success())
        })
        .ok_or_else(|| {
            "this suite needs Python 3.12: install it (pyenv install 3.12), or name it in \
             PATCHWRIGHT_PYTHON312"
                .to_owned()
        })
}
