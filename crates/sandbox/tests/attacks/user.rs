//! The same attacks as an ordinary user.

use std::process::Command;

use crate::support::{AS_USER, is_child, is_root, record, text, write_line};

#[test]
fn all_of_it_holds_as_an_ordinary_user() {
    if is_child() || std::env::var_os(AS_USER).is_some() {
        return;
    }
    if !is_root() {
        record("as root: NOT RUN: the tests were not started as root");
        return;
    }
    // A copy, because the build directory may be closed to other users.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("attacks");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [dir.path(), &program] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=4243", "--regid=4243", "--clear-groups"]).arg(&program);
    command.args(["--test-threads=4", "--nocapture"]).current_dir("/");
    let output = match command.env("HOME", "/").env(AS_USER, "1").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            record("as an ordinary user: NOT RUN: setpriv (util-linux) is not installed");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}\n{}", text(&output.stderr));
    assert!(report.contains("test result: ok."), "{report}");
    let lines: Vec<_> = report.lines().filter_map(|line| line.strip_prefix("ATTACK ")).collect();
    assert!(lines.len() >= 22, "{report}");
    for line in lines {
        write_line(&format!("{line} (as user)"));
    }
}
