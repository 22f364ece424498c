//! The host's python3, which sandboxes share.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where the interpreter on the host's `PATH` lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Python {
    /// Directories to show: prefix and base prefix, without those that the system's hold.
    pub prefixes: Vec<PathBuf>,
    /// Directory of the executable, to put first in `PATH`.
    pub bin: Option<PathBuf>,
}

const QUESTION: &str = "import os, sys\nprint(sys.prefix, sys.base_prefix, os.path.dirname(sys.executable), sep='\\n')";

/// Asks once a process. A machine without python3 gives an empty answer: whether that matters is
/// for those to say who run Python.
pub fn find() -> &'static Python {
    static FOUND: OnceLock<Python> = OnceLock::new();
    FOUND.get_or_init(|| {
        let output =
            Command::new("python3").args(["-I", "-c", QUESTION]).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => {
                from_answer(&String::from_utf8_lossy(&output.stdout))
            }
            _ => Python::default(),
        }
    })
}

fn from_answer(answer: &str) -> Python {
    let mut lines = answer.lines().map(PathBuf::from);
    let (Some(prefix), Some(base), Some(bin)) = (lines.next(), lines.next(), lines.next()) else {
        return Python::default();
    };
    let mut prefixes: Vec<PathBuf> = Vec::new();
    for path in [base, prefix] {
        if needs_mount(&path) && !prefixes.iter().any(|held| path.starts_with(held)) {
            prefixes.push(path);
        }
    }
    Python { prefixes, bin: Some(bin).filter(|bin| bin.is_absolute()) }
}

/// Whether a prefix is outside what every sandbox shows anyway.
fn needs_mount(path: &Path) -> bool {
    let system = ["/usr", "/bin", "/lib", "/lib64", "/nix"];
    path.is_absolute()
        && path.parent().is_some()
        && !system.iter().any(|system| path.starts_with(system))
}

#[cfg(test)]
mod tests {
    use super::from_answer;
    use std::path::PathBuf;

    #[test]
    fn prefixes_outside_the_system_are_shown_once() {
        let system = from_answer("/usr\n/usr\n/usr/bin\n");
        assert!(system.prefixes.is_empty());
        assert_eq!(system.bin, Some(PathBuf::from("/usr/bin")));
        let own = from_answer("/root/py\n/root/py\n/root/py/bin\n");
        assert_eq!(own.prefixes, [PathBuf::from("/root/py")]);
        let venv = from_answer("/home/u/venv\n/opt/py\n/home/u/venv/bin\n");
        assert_eq!(venv.prefixes, [PathBuf::from("/opt/py"), PathBuf::from("/home/u/venv")]);
        assert_eq!(from_answer("garbage"), super::Python::default());
    }
}
