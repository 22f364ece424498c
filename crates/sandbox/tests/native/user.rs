//! The same tests as an ordinary user.

use std::process::Command;

use crate::support::is_root;

#[test]
fn all_of_it_works_as_an_ordinary_user() {
    if !is_root() {
        return;
    }
    // A copy, because the build directory may be closed to other users.
    let dir = tempfile::tempdir().unwrap();
    crate::isolation::open_to_all(dir.path());
    let program = dir.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    crate::isolation::open_to_all(&program);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=4242", "--regid=4242", "--clear-groups"]).arg(&program);
    command.args(["--test-threads=4", "--skip", "all_of_it_works_as_an_ordinary_user"]);
    let output = match command.current_dir("/").env("HOME", "/").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("not tested as an ordinary user: setpriv (util-linux) is not installed");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(report.contains("test result: ok."), "{report}");
}
