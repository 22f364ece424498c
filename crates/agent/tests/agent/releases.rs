//! Real repositories: bug-fix releases as `patchwright tasks from-releases` makes tasks of them (see
//! CONTRIBUTING.md). Runs where `PATCHWRIGHT_RELEASES=DIR` is set, and says so where it is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use patchwright_agent::{
    AgentConfig, AgentRun, Grader, GraderOptions, Profile, run_agent, sandbox_spec,
};
use patchwright_core::{
    Patch, RepoSource, RolloutStatus, SandboxLimits, SandboxProvider, TaskInstance, patch,
};

use crate::common::{WORKDIR, change, provider, renderer, scripted};

#[test]
fn releases_are_solved_by_the_fix_and_by_nothing_else() {
    let Some(dir) = std::env::var_os("PATCHWRIGHT_RELEASES").map(PathBuf::from) else {
        println!("not run: PATCHWRIGHT_RELEASES is not set (see CONTRIBUTING.md)");
        return;
    };
    let rows = std::fs::read_to_string(dir.join("tasks.jsonl"))
        .expect("PATCHWRIGHT_RELEASES names a directory with tasks.jsonl, see CONTRIBUTING.md");
    let tasks: Vec<TaskInstance> =
        rows.lines().map(|row| serde_json::from_str(row).expect("a task row")).collect();
    assert!(tasks.len() >= 3, "three releases");
    for task in &tasks {
        let mut fix = changes_as_edits(task, &task.patch);
        fix.push(fenced("submit"));
        let mut tests_only = empty_tests(task);
        tests_only.push(fenced("submit"));
        check(task, "the fix", &fix, true);
        check(task, "nothing", &[fenced("submit")], false);
        check(task, "tests only", &tests_only, false);
        configuration_of_pytest_does_not_count(task);
    }
}

/// Files with which an agent could make pytest say what it likes; and with the fix, an honest
/// agent's own, which cost it nothing.
fn configuration_of_pytest_does_not_count(task: &TaskInstance) {
    let all_pass = "import pytest\n\n@pytest.hookimpl(hookwrapper=True)\n\
                    def pytest_runtest_makereport(item, call):\n    outcome = yield\n    \
                    report = outcome.get_result()\n    report.outcome = 'passed'\n";
    let cheats = patch::render(&[
        change("conftest.py", None, Some(all_pass)),
        change("tests/conftest.py", None, Some(all_pass)),
        change("pytest.ini", None, Some("[pytest]\naddopts = -p all_pass\n")),
        change("all_pass.py", None, Some(all_pass)),
        change("x.egg-info/entry_points.txt", None, Some("[pytest11]\nx = all_pass\n")),
        change("x.egg-info/PKG-INFO", None, Some("Name: x\nVersion: 1\n")),
        change("pytest.py", None, Some("import os; os._exit(0)\n")),
        change("sitecustomize.py", None, Some("import os; os._exit(0)\n")),
    ]);
    let options = GraderOptions { timeout: Duration::from_mins(2), ..GraderOptions::default() };
    let grader = Grader::new(provider(), options);
    let repo = RepoSource::Directory(Path::new(&task.repo).to_owned());
    let cheated = grader.grade(task, &repo, &cheats).unwrap();
    assert_eq!(cheated.dropped.len(), 6, "{:?}", cheated.dropped);
    assert!(task.fail_to_pass.iter().all(|id| !cheated.results[id]), "{cheated:?}");
    let own = patch::render(&[change("conftest.py", None, Some("raise SystemExit\n"))]);
    let honest = grader.grade(task, &repo, &format!("{}{own}", task.patch)).unwrap();
    assert!(honest.solved, "{honest:?}");
}

fn check(task: &TaskInstance, what: &str, replies: &[String], solved: bool) {
    let run = work(task, replies);
    assert_eq!(run.status, RolloutStatus::Submitted, "{}: {:?}", task.instance_id, run);
    let options = GraderOptions { timeout: Duration::from_mins(2), ..GraderOptions::default() };
    let repo = RepoSource::Directory(Path::new(&task.repo).to_owned());
    let start = std::time::Instant::now();
    let grade = Grader::new(provider(), options).grade(task, &repo, &run.patch).unwrap();
    println!(
        "{} {what}: solved {}, {} tests, {:.1} s",
        task.instance_id,
        grade.solved,
        grade.results.len(),
        start.elapsed().as_secs_f64()
    );
    assert_eq!(grade.solved, solved, "{} {what}: {grade:?}", task.instance_id);
    for id in &task.pass_to_pass {
        assert!(grade.results[id], "{} {what}: {id}: {}", task.instance_id, grade.detail);
    }
    for id in &task.fail_to_pass {
        assert_eq!(grade.results[id], solved, "{} {what}: {id}", task.instance_id);
    }
    if what == "tests only" {
        assert!(!run.patch.is_empty() && !grade.dropped.is_empty(), "{grade:?}");
    }
}

fn work(task: &TaskInstance, replies: &[String]) -> AgentRun {
    let renderer = renderer(Profile::full());
    let replies: Vec<&str> = replies.iter().map(String::as_str).collect();
    let sampler = scripted(&renderer, &replies);
    let repo = RepoSource::Directory(Path::new(&task.repo).to_owned());
    let spec = sandbox_spec(task, &repo, WORKDIR, SandboxLimits::default());
    let mut sandbox = provider().create(&spec).unwrap();
    let config = AgentConfig {
        max_context_tokens: usize::MAX,
        max_turn_tokens: usize::MAX,
        ..AgentConfig::default()
    };
    run_agent(task, sandbox.as_mut(), &sampler, &renderer, &config, 0, 0)
}

fn fenced(command: &str) -> String {
    format!("```command\n{command}\n```")
}

/// A diff as `edit` commands: each changed file's differing middle at once.
fn changes_as_edits(task: &TaskInstance, patch: &str) -> Vec<String> {
    let root = Path::new(&task.repo);
    let changes = Patch::parse(patch)
        .unwrap()
        .apply(&mut |path| std::fs::read(root.join(path)).ok())
        .unwrap();
    let text = |bytes: &Option<Vec<u8>>| String::from_utf8(bytes.clone().unwrap()).unwrap();
    let edit = |change: &patchwright_core::FileChange| {
        let (old, new) = (text(&change.old), text(&change.new));
        let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
        let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
        let rest = old.len().min(new.len()) - head;
        let tail =
            old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
        let body: String =
            new[head..new.len() - tail].iter().flat_map(|line| [*line, "\n"]).collect();
        let (path, last) = (&change.path, old.len() - tail);
        fenced(&format!(
            "edit --file {path} {}:{last} <<'END_OF_EDIT'\n{body}END_OF_EDIT",
            head + 1
        ))
    };
    changes.iter().map(edit).collect()
}

/// Commands that make every file with a test that must pass one that always passes.
fn empty_tests(task: &TaskInstance) -> Vec<String> {
    let files: std::collections::BTreeSet<&str> =
        task.fail_to_pass.iter().filter_map(|id| id.split("::").next()).collect();
    files
        .into_iter()
        .map(|file| fenced(&format!("printf 'def test_all():\\n    pass\\n' > {file}")))
        .collect()
}
