//! Real packages, from the package index. Runs where `PATCHWRIGHT_REAL=DIR` names a directory to
//! keep downloads in, and says so where it is not.

use std::path::PathBuf;

use patchwright_core::{Patch, RepoSource};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use patchwright_tasks::inject::InjectOptions;
use patchwright_tasks::inject::packages::{PackageOptions, inject_packages};
use patchwright_tasks::releases::{ReleaseOptions, ReleasePair, build_pairs};
use patchwright_tasks::source::prepare_repo;
use patchwright_tasks::validate::suite::{Suite, SuiteLimits, run_suite};

fn dir() -> Option<PathBuf> {
    let dir = std::env::var_os("PATCHWRIGHT_REAL").map(PathBuf::from);
    if dir.is_none() {
        println!("not run: PATCHWRIGHT_REAL is not set; it names a directory for downloads");
    }
    dir
}

fn provider() -> NativeSandboxes {
    NativeSandboxes::new(NativeOptions::default()).unwrap()
}

#[test]
fn a_release_pair_is_a_task_and_finished_pairs_are_kept() {
    let Some(cache_dir) = dir() else { return };
    let pair = |package: &str, buggy: &str, fixed: &str| ReleasePair {
        package: package.to_owned(),
        buggy: buggy.to_owned(),
        fixed: fixed.to_owned(),
        ..ReleasePair::default()
    };
    let pairs = [pair("parse", "1.20.0", "1.20.1"), pair("parse", "1.20.1", "1.20.1")];
    let limits = SuiteLimits::default();
    let options = ReleaseOptions { cache_dir, repeats: 2, jobs: 2, limits };
    let results = build_pairs(&pairs, &provider(), &options, &()).unwrap();
    let task = results[0].task.as_ref().expect("a task");
    assert_eq!((task.fail_to_pass.len(), task.pass_to_pass.len()), (2, 92));
    assert_eq!(task.instance_id, "parse-1.20.1");
    assert!(task.created_at.starts_with("20"), "{}", task.created_at);
    assert!(task.extra["requirements"].as_str().unwrap().contains("pytest=="));
    assert!(Patch::parse(&task.patch).unwrap().paths().contains(&"parse.py"));
    for id in &task.fail_to_pass {
        let name = id.rsplit("::").next().unwrap();
        assert!(!task.problem_statement.contains(name), "{}", task.problem_statement);
    }
    assert!(results[1].task.is_none() && results[1].report.reason.contains("no source file"));
    let again = build_pairs(&pairs, &provider(), &options, &()).unwrap();
    assert!(again.iter().all(|result| result.report.cached));
    assert_eq!(again[0].task, results[0].task);
}

#[test]
fn bugs_of_a_package_fail_as_their_rows_say() {
    let Some(cache_dir) = dir() else { return };
    let options = |num: usize, num_bugs: usize, jobs: usize| PackageOptions {
        cache_dir: cache_dir.clone(),
        num,
        num_bugs,
        seed: 5,
        inject: InjectOptions::default(),
        jobs,
        limits: SuiteLimits::default(),
    };
    // The second one measures its own coverage, which takes the interpreter's trace.
    for (spec, num_bugs) in [("parse==1.20.1", 1), ("semver==3.1.1", 2)] {
        let spec = [spec.parse().unwrap()];
        let options = options(3, num_bugs, 1);
        let (tasks, reports) = inject_packages(&spec, &provider(), &options, &()).unwrap();
        assert_eq!(tasks.len(), 3, "{reports:?}");
        for task in &tasks {
            assert_eq!(task.extra["bug"].as_array().unwrap().len(), num_bugs);
            let repo = prepare_repo(task, &cache_dir.join("repos")).unwrap();
            let RepoSource::Directory(root) = &repo else { panic!("no directory") };
            let read = |path: &str| std::fs::read(root.join(path)).ok();
            let apply = |text: &str| Patch::parse(text).unwrap().apply(&mut |p| read(p)).unwrap();
            let (gold, tests) = (apply(&task.patch), apply(&task.test_patch));
            for id in &task.fail_to_pass {
                let file = id.split("::").next().unwrap();
                assert!(!root.join(file).exists(), "{file} is hidden");
            }
            let both: Vec<_> = gold.iter().chain(&tests).cloned().collect();
            for (changes, solved) in [(&tests, false), (&both, true)] {
                let suite = Suite {
                    repo: &repo,
                    site_packages: task.install_config.site_packages.as_deref().unwrap(),
                    changes,
                    options: &[],
                    targets: &["tests".to_owned()],
                    hash_seed: 0,
                };
                let run = run_suite(&suite, &provider(), &SuiteLimits::default()).unwrap();
                assert!(task.fail_to_pass.iter().all(|id| run.tests[id].passed == solved));
                assert!(task.pass_to_pass.iter().all(|id| run.tests[id].passed));
            }
        }
    }
}
