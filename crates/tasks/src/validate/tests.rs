//! Against real Python processes, through a provider that runs them on the host: the driver and the
//! waves are under test here, not the sandbox.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use patchwright_core::{
    ExecOutput, ExecRequest, ExecStatus, FileChange, Patch, Sandbox, SandboxError, SandboxProvider,
    SandboxSpec, TaskError, TaskInstance,
};

use super::{
    BuildOptions, BuildWatch, EmbeddedRepo, Example, build_instances, build_task_set,
    build_task_set_watched, check_repos,
};
use crate::inject::Operator;
use crate::issue::IssueStyle;

/// Runs commands as plain processes of the host, with nothing between.
struct HostProvider;
struct HostSandbox;

impl SandboxProvider for HostProvider {
    fn create(&self, _: &SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        Ok(Box::new(HostSandbox))
    }
}

fn unused() -> SandboxError {
    SandboxError::Unsupported("not needed by validation".to_owned())
}

impl Sandbox for HostSandbox {
    fn exec(&mut self, request: &ExecRequest) -> Result<ExecOutput, SandboxError> {
        let died = |e: std::io::Error| SandboxError::Died(e.to_string());
        let mut child = Command::new(&request.argv[0])
            .args(&request.argv[1..])
            .envs(&request.env)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(died)?;
        let mut stdin = child.stdin.take().unwrap();
        let bytes = request.stdin.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let output = child.wait_with_output().map_err(died)?;
        let _ = writer.join().unwrap();
        Ok(ExecOutput {
            status: ExecStatus::Exited(output.status.code().unwrap_or(-1)),
            stdout: output.stdout,
            stderr: output.stderr,
            dropped_bytes: 0,
        })
    }
    fn read(&mut self, _: &str, _: usize) -> Result<Vec<u8>, SandboxError> {
        Err(unused())
    }
    fn write(&mut self, _: &str, _: &[u8]) -> Result<(), SandboxError> {
        Err(unused())
    }
    fn diff(&mut self) -> Result<Vec<FileChange>, SandboxError> {
        Err(unused())
    }
    fn fork(&mut self) -> Result<Box<dyn Sandbox>, SandboxError> {
        Err(unused())
    }
    fn destroy(self: Box<Self>) -> Result<(), SandboxError> {
        Ok(())
    }
}

fn repo(name: &str, files: &[(&str, &str)], calls: &[(&str, &str, &str, &str)]) -> EmbeddedRepo {
    EmbeddedRepo {
        name: name.to_owned(),
        files: files.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect(),
        examples: calls
            .iter()
            .map(|(module, function, args, expected)| Example {
                module: (*module).to_owned(),
                function: (*function).to_owned(),
                args: (*args).to_owned(),
                expected: (*expected).to_owned(),
            })
            .collect(),
    }
}

const AMBER: &str = "\
# take elm, keep over 2, each times pine
def maple(elm, pine):
    birch = [oak for oak in elm if oak > 2]
    return [oak * pine for oak in birch]


# take elm, plus pine
def cedar(elm, pine):
    while elm < pine:
        elm += 1
    return elm + pine
";

fn amber() -> EmbeddedRepo {
    repo(
        "amber",
        &[
            ("amber.py", AMBER),
            ("pkg/__init__.py", ""),
            ("pkg/user.py", "import amber\n\n\ndef twice(n):\n    return amber.cedar(n, n) * 2\n"),
        ],
        &[
            ("amber", "maple", "[3, 1, 4], 2", ""),
            ("amber", "maple", "[2, 5], 3", "[15]"),
            ("amber", "cedar", "3, 4", ""),
            ("pkg.user", "twice", "5", ""),
        ],
    )
}

fn options() -> BuildOptions {
    BuildOptions { bugs_per_repo: 5, issue_style: IssueStyle::Compact, ..BuildOptions::default() }
}

#[test]
fn expected_values_are_filled_in_and_wrong_repositories_rejected() {
    let sets =
        "def f(n):\n    return set('abcdefgh'[:n])\n\n\ndef g(n):\n    return len('ab' * n)\n";
    let rejected = [
        repo("wrong", &[("m.py", sets)], &[("m", "g", "2", "5")]),
        repo("broken", &[("m.py", "def f(:\n")], &[("m", "f", "2", "")]),
        repo("raises", &[("m.py", "def f(n):\n    return n / 0\n")], &[("m", "f", "2", "")]),
        repo(
            "endless",
            &[("m.py", "def f(n):\n    while True:\n        n += 1\n")],
            &[("m", "f", "2", "")],
        ),
        repo("shadow", &[("json.py", sets)], &[("json", "g", "2", "")]),
        repo(
            "hungry",
            &[("m.py", "def f(n):\n    return len(list(range(10 ** n)))\n")],
            &[("m", "f", "9", "")],
        ),
        repo(
            "random",
            &[("m.py", "import random\ndef f(n):\n    return random.random()\n")],
            &[("m", "f", "9", "")],
        ),
        repo("nothing", &[("m.py", sets)], &[]),
    ];
    let mut repos = vec![
        amber(),
        repo(
            "sets",
            &[("m.py", sets)],
            &[("m", "f", "6", ""), ("m", "f", "1", ""), ("m", "g", "2", "")],
        ),
    ];
    repos.extend(rejected.clone());
    let checked = check_repos(repos, &HostProvider, &options()).unwrap();
    let names: Vec<&str> = checked.repos.iter().map(|repo| repo.name.as_str()).collect();
    assert_eq!(names, ["amber", "sets"], "{:?}", checked.rejected);
    let values: Vec<&str> =
        checked.repos.iter().flat_map(|r| &r.examples).map(|e| e.expected.as_str()).collect();
    // The text of a set of six differs from hash seed to hash seed.
    assert_eq!(values, ["[6, 8]", "[15]", "8", "20", "{'a'}", "4"]);
    assert_eq!(checked.rejected.len(), rejected.len());
    let reason = |name: &str| checked.rejected[name].as_str();
    assert!(
        reason("wrong").contains("test_m.TestG.test_0 fails on the correct code: Returned(\"4\")"),
        "{:?}",
        checked.rejected
    );
    assert!(reason("broken").contains("SyntaxError"));
    assert!(reason("raises").contains("ZeroDivisionError"));
    assert!(reason("endless").contains("lines"));
    assert!(reason("hungry").contains("memory"));
    assert!(reason("shadow").contains("standard library"));
    assert!(reason("random").contains("varies"), "{}", reason("random"));
    assert!(reason("nothing").contains("no examples"));
}

#[test]
fn instances_fail_before_and_pass_after_the_gold_patch() {
    let (instances, report) = build_task_set(&[amber()], &HostProvider, &options()).unwrap();
    assert_eq!(instances.len(), 5, "{report:?}");
    for (number, instance) in instances.iter().enumerate() {
        assert_eq!(instance.instance_id, format!("generated__amber-{}", number + 1));
        assert_eq!(instance.repo, "generated/amber");
        assert!(!instance.fail_to_pass.is_empty() && !instance.pass_to_pass.is_empty());
        assert_eq!(instance.fail_to_pass.len() + instance.pass_to_pass.len(), 4);
        assert!((1..=2).contains(&instance.problem_statement.lines().count()));
        assert!(!instance.files.keys().any(|path| path.contains("test")));
        let issue = &instance.problem_statement;
        assert!(issue.contains(" returned ") || issue.contains(" raised "), "{issue}");

        let fixed = apply(instance, &[&instance.patch]);
        assert_eq!(fixed, amber().files, "the gold patch gives the correct sources");
        assert_eq!(failing(&apply(instance, &[&instance.test_patch])), instance.fail_to_pass);
        assert!(failing(&apply(instance, &[&instance.patch, &instance.test_patch])).is_empty());
    }
    let bugs: std::collections::BTreeSet<String> =
        instances.iter().map(|i| i.extra["bug"].to_string()).collect();
    assert_eq!(bugs.len(), 5, "no bug comes twice");
    assert_eq!(report.num_instances, 5);
    assert_eq!(report.accepted_by_operator.values().sum::<usize>(), 5);

    let again =
        build_instances(&amber(), &HostProvider, &BuildOptions { parallelism: 1, ..options() });
    assert_eq!(again.unwrap(), instances);
    let other = build_instances(&amber(), &HostProvider, &BuildOptions { seed: 1, ..options() });
    assert_ne!(other.unwrap(), instances);
}

fn apply(instance: &TaskInstance, patches: &[&str]) -> BTreeMap<String, String> {
    let mut files = instance.files.clone();
    for patch in patches {
        let read = |path: &str| files.get(path).map(|text| text.clone().into_bytes());
        for change in Patch::parse(patch).unwrap().apply(&mut { read }).unwrap() {
            files.insert(change.path, String::from_utf8(change.new.unwrap()).unwrap());
        }
    }
    files
}

/// Ids of the failing tests by plain `python3 -m unittest` in a directory.
fn failing(files: &BTreeMap<String, String>) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        std::fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(path), text).unwrap();
    }
    let modules =
        files.keys().filter_map(|p| p.strip_suffix(".py")).filter(|p| p.starts_with("test_"));
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "-v"])
        .args(modules)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // `test_0 (test_amber.TestMaple.test_0) ... FAIL`
    text.lines()
        .filter(|line| line.ends_with("FAIL") || line.ends_with("ERROR"))
        .filter_map(|line| line.split(['(', ')']).nth(1))
        .map(str::to_owned)
        .collect()
}

#[test]
fn bugs_that_never_end_or_change_nothing_are_rejected() {
    let mut options = BuildOptions { bugs_per_repo: 100, max_tries_per_repo: 100, ..options() };
    options.inject.operators =
        vec![Operator::OperatorSwapped, Operator::DroppedStatement, Operator::NegatedCondition];
    let (instances, report) = build_task_set(&[amber()], &HostProvider, &options).unwrap();
    // `elm += 1` dropped, or `-=`: the loop of `cedar` never ends.
    assert!(report.rejected["cut off by a limit"] >= 2, "{report:?}");
    assert!(
        instances.iter().all(|i| !i.extra["bug"].to_string().contains("`elm += 1` is missing"))
    );
    assert_eq!(report.num_tried, report.num_candidates, "{report:?}");
    let rejected: usize = report.rejected.values().sum();
    assert_eq!(report.num_tried, report.num_instances + rejected);
}

#[test]
fn several_bugs_and_full_issues() {
    let options =
        BuildOptions { num_bugs: 2, issue_style: IssueStyle::Full, bugs_per_repo: 2, ..options() };
    let instances = build_instances(&amber(), &HostProvider, &options).unwrap();
    assert!(!instances.is_empty());
    for instance in instances {
        assert_eq!(instance.extra["bug"].as_array().unwrap().len(), 2);
        assert!(instance.problem_statement.contains("```python\nimport "));
        assert_eq!(apply(&instance, &[&instance.patch]), amber().files);
    }
}

#[test]
fn the_cache_answers_at_once_and_only_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let options = BuildOptions { cache_dir: Some(dir.path().join("cache")), ..options() };
    let (first, report) = build_task_set(&[amber()], &HostProvider, &options).unwrap();
    assert!(!report.cached);
    let (second, cached) = build_task_set(&[amber()], &NoProvider, &options).unwrap();
    assert_eq!((&second, cached.cached), (&first, true));
    assert_eq!(cached.num_tried, report.num_tried);
    let other = BuildOptions { seed: 9, ..options.clone() };
    assert!(matches!(
        build_task_set(&[amber()], &NoProvider, &other),
        Err(TaskError::Validation(_))
    ));
    let entry =
        std::fs::read_dir(dir.path().join("cache")).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&entry).unwrap();
    std::fs::write(&entry, &text[..text.len() - 20]).unwrap();
    assert!(build_task_set(&[amber()], &NoProvider, &options).is_err(), "damage is noticed");
}

/// Every sandbox fails.
struct NoProvider;

impl SandboxProvider for NoProvider {
    fn create(&self, _: &SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        Err(SandboxError::Unsupported("user namespaces are off".to_owned()))
    }
}

#[test]
fn names_are_checked() {
    let twice = build_task_set(&[amber(), amber()], &HostProvider, &options());
    assert!(twice.unwrap_err().to_string().contains("amber: two repositories"));
    let odd = EmbeddedRepo { name: "a/b".to_owned(), ..amber() };
    assert!(build_task_set(&[odd], &HostProvider, &options()).is_err());
}

#[test]
fn hidden_tests_are_one_method_a_call() {
    let repo = repo(
        "r",
        &[("test_m.py", "")],
        &[
            ("m", "a_b", "1", "2"),
            ("m", "aB", "1", "2"),
            ("m", "a_b", "2", "3"),
            ("p.q", "f", "", "0"),
        ],
    );
    let tests = super::hidden_tests::write(&repo);
    assert_eq!(
        tests.ids,
        [
            "test_m_hidden.TestAB.test_0",
            "test_m_hidden.TestABX.test_0",
            "test_m_hidden.TestAB.test_1",
            "test_p_q.TestF.test_0"
        ]
    );
    assert_eq!(
        tests.files["test_m_hidden.py"],
        "import unittest\n\nimport m\n\n\nclass TestAB(unittest.TestCase):\n    def test_0(self):\n        \
         self.assertEqual(m.a_b(1), 2)\n\n    def test_1(self):\n        self.assertEqual(m.a_b(2), 3)\n\n\n\
         class TestABX(unittest.TestCase):\n    def test_0(self):\n        self.assertEqual(m.aB(1), 2)\n"
    );
}

/// Counts what it hears, and stops the build once some instances are there.
#[derive(Default)]
struct Watch {
    heard: std::sync::Mutex<Vec<(usize, usize)>>,
    stop_at: Option<usize>,
}

impl BuildWatch for Watch {
    fn progress(&self, num_instances: usize, num_wanted: usize) {
        self.heard.lock().unwrap().push((num_instances, num_wanted));
    }

    fn is_stopped(&self) -> bool {
        let heard = self.heard.lock().unwrap();
        self.stop_at.is_some_and(|at| heard.iter().any(|(num, _)| *num >= at))
    }
}

/// The set does not depend on how it is cut into slices; progress ends at what came out; a stopped
/// build leaves nothing in the cache.
#[test]
fn a_build_is_watched_and_stopped() {
    let repos: Vec<EmbeddedRepo> =
        (0..10).map(|index| crate::generated::repository(7, index)).collect();
    let dir = tempfile::tempdir().unwrap();
    let options = BuildOptions {
        bugs_per_repo: 1,
        parallelism: 1,
        cache_dir: Some(dir.path().to_owned()),
        ..options()
    };
    let stopping = Watch { stop_at: Some(1), ..Watch::default() };
    let stopped = build_task_set_watched(&repos, &HostProvider, &options, &stopping);
    assert!(stopped.unwrap_err().to_string().contains("asked to stop"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    let watch = Watch::default();
    let (instances, report) =
        build_task_set_watched(&repos, &HostProvider, &options, &watch).unwrap();
    let heard = watch.heard.lock().unwrap();
    assert_eq!(heard.first(), Some(&(0, 10)));
    assert_eq!(heard.last(), Some(&(instances.len(), 10)));
    assert!(heard.len() > 2, "more than one slice");
    assert_eq!((report.num_repos, report.num_instances), (10, instances.len()));
    let options = BuildOptions { cache_dir: None, ..options };
    let alone = build_instances(&repos[9], &HostProvider, &options).unwrap();
    assert_eq!(instances.last(), alone.last());
}
