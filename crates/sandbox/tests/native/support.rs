//! What the tests share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use patchwright_core::{
    ExecOutput, ExecRequest, ExecStatus, RepoSource, Sandbox, SandboxLimits, SandboxProvider,
    SandboxSpec,
};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};

pub const WORKDIR: &str = "/testbed";
pub const LONG: Duration = Duration::from_secs(30);

/// One provider for all tests, as a program has one.
pub fn provider() -> &'static NativeSandboxes {
    static PROVIDER: OnceLock<NativeSandboxes> = OnceLock::new();
    PROVIDER.get_or_init(|| NativeSandboxes::new(NativeOptions::default()).unwrap())
}

pub fn files(list: &[(&str, &str)]) -> RepoSource {
    let map: BTreeMap<_, _> =
        list.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    RepoSource::Files(Arc::new(map))
}

pub fn spec(repo: RepoSource) -> SandboxSpec {
    SandboxSpec {
        root: patchwright_core::RootFs::Host,
        repo,
        workdir: WORKDIR.to_owned(),
        read_only_mounts: Vec::new(),
        env: BTreeMap::new(),
        limits: SandboxLimits::default(),
    }
}

/// A sandbox with one file, `a.txt`.
pub fn simple() -> Box<dyn Sandbox> {
    provider().create(&spec(files(&[("a.txt", "one\n")]))).unwrap()
}

pub fn with_limits(change: impl FnOnce(&mut SandboxLimits)) -> Box<dyn Sandbox> {
    let mut spec = spec(files(&[("a.txt", "one\n")]));
    change(&mut spec.limits);
    provider().create(&spec).unwrap()
}

pub fn directory(path: &Path) -> Box<dyn Sandbox> {
    provider().create(&spec(RepoSource::Directory(path.to_owned()))).unwrap()
}

pub fn shell_for(sandbox: &mut dyn Sandbox, script: &str, timeout: Duration) -> ExecOutput {
    sandbox.exec(&ExecRequest::shell(script, WORKDIR, timeout)).unwrap()
}

pub fn shell(sandbox: &mut dyn Sandbox, script: &str) -> ExecOutput {
    shell_for(sandbox, script, LONG)
}

/// Standard output of a script that must succeed.
pub fn stdout(sandbox: &mut dyn Sandbox, script: &str) -> String {
    let output = shell(sandbox, script);
    assert_eq!(output.status, ExecStatus::Exited(0), "{script}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs a Python script that must succeed.
pub fn python(sandbox: &mut dyn Sandbox, script: &str) -> String {
    let request = ExecRequest::argv(&["python3", "-I", "-S", "-c", script], WORKDIR, LONG);
    let output = sandbox.exec(&request).unwrap();
    assert_eq!(output.status, ExecStatus::Exited(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}
