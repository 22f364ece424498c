//! What the integration tests share: one provider of native sandboxes and a small repository.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use patchwright_agent::fixture::tokenizer_json;
use patchwright_agent::{Profile, Renderer, ScriptedSampler, Tokenizer, sandbox_spec};
use patchwright_core::{
    FileChange, InstallConfig, RepoSource, Sandbox, SandboxLimits, SandboxProvider, TaskInstance,
    patch,
};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};

pub const WORKDIR: &str = "/testbed";

/// One helper for all tests of a file.
pub fn provider() -> Arc<NativeSandboxes> {
    static PROVIDER: OnceLock<Arc<NativeSandboxes>> = OnceLock::new();
    let made = || NativeSandboxes::new(NativeOptions::default()).expect("sandboxes can be made");
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(made())))
}

pub fn files(files: &[(&str, &str)]) -> RepoSource {
    let files: BTreeMap<String, String> =
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    RepoSource::Files(Arc::new(files))
}

pub fn sandbox(repo: &RepoSource) -> Box<dyn Sandbox> {
    let spec = sandbox_spec(&TaskInstance::default(), repo, WORKDIR, SandboxLimits::default());
    provider().create(&spec).expect("a sandbox")
}

pub fn renderer(profile: Profile) -> Renderer {
    let words = ["open", "edit", "submit", "create", "return", "command"];
    let tokenizer = Tokenizer::from_bytes(tokenizer_json(&words).as_bytes()).unwrap();
    Renderer::new(Arc::new(tokenizer), profile).unwrap()
}

pub fn scripted(renderer: &Renderer, replies: &[&str]) -> ScriptedSampler {
    let replies = replies.iter().map(ToString::to_string).collect();
    ScriptedSampler::new(Arc::new(renderer.tokenizer().clone()), renderer.stop_token(), replies)
}

/// A change of one text file.
pub fn change(path: &str, old: Option<&str>, new: Option<&str>) -> FileChange {
    let bytes = |text: Option<&str>| text.map(|text| text.as_bytes().to_vec());
    FileChange { path: path.to_owned(), old: bytes(old), new: bytes(new), executable: false }
}

pub const BUGGY: &str = "def total(values):\n    result = 1\n    for value in values:\n        \
                         result += value\n    return result\n\n\ndef largest(values):\n    \
                         return max(values)\n";

pub const TESTS: &str = "import unittest\n\nimport sums\n\n\nclass TestTotal(unittest.TestCase):\n    \
    def test_empty(self):\n        self.assertEqual(sums.total([]), 0)\n\n    \
    def test_some(self):\n        self.assertEqual(sums.total([1, 2]), 3)\n\n\n\
    class TestLargest(unittest.TestCase):\n    def test_largest(self):\n        \
    self.assertEqual(sums.largest([1, 3, 2]), 3)\n";

/// `total` starts at 1 instead of 0.
pub fn task() -> (TaskInstance, RepoSource) {
    let repo = files(&[("sums.py", BUGGY), ("README.md", "Sums.\n")]);
    let task = TaskInstance {
        instance_id: "sums-1".to_owned(),
        repo: "sums".to_owned(),
        problem_statement: "sums.total([1, 2]) returned 4, expected 3".to_owned(),
        test_patch: patch::render(&[change("test_sums.py", None, Some(TESTS))]),
        fail_to_pass: vec![
            "test_sums.TestTotal.test_empty".to_owned(),
            "test_sums.TestTotal.test_some".to_owned(),
        ],
        pass_to_pass: vec!["test_sums.TestLargest.test_largest".to_owned()],
        install_config: InstallConfig {
            test_cmd: "python3 -m unittest".to_owned(),
            log_parser: "unittest".to_owned(),
            ..InstallConfig::default()
        },
        ..TaskInstance::default()
    };
    (task, repo)
}
