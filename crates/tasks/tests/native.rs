//! The embedded sets through the sandbox that really runs them.

use patchwright_core::SandboxError;
use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use patchwright_tasks::issue::IssueStyle;
use patchwright_tasks::pool::assert_disjoint;
use patchwright_tasks::validate::{BuildOptions, EmbeddedRepo, build_task_set};
use patchwright_tasks::{generated, katas};

fn provider() -> Option<NativeSandboxes> {
    match NativeSandboxes::new(NativeOptions::default()) {
        Ok(provider) => Some(provider),
        Err(SandboxError::Unsupported(reason)) => {
            eprintln!("NOT CHECKED: {reason}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn generated_repositories_become_instances() {
    let Some(provider) = provider() else { return };
    let repos = |seed| -> Vec<EmbeddedRepo> {
        (0..12).map(|index| generated::repository(seed, index)).collect()
    };
    let options = BuildOptions {
        issue_style: IssueStyle::Compact,
        bugs_per_repo: 2,
        ..BuildOptions::default()
    };
    let started = std::time::Instant::now();
    let (train, report) = build_task_set(&repos(1), &provider, &options).unwrap();
    eprintln!("{:?} {report:#?}", started.elapsed());
    assert!(report.rejected_repos.is_empty(), "{report:?}");
    assert!(train.len() >= 12, "{report:?}");
    let held_out = BuildOptions { set: "held-out".to_owned(), ..options };
    let (held_out, _) = build_task_set(&repos(2), &provider, &held_out).unwrap();
    assert_disjoint(&train, &held_out).unwrap();
}

#[test]
fn katas_become_instances() {
    let Some(provider) = provider() else { return };
    let options =
        BuildOptions { set: "katas".to_owned(), bugs_per_repo: 1, ..BuildOptions::default() };
    let repos: Vec<EmbeddedRepo> = katas::all().unwrap();
    let num_repos = repos.len();
    let started = std::time::Instant::now();
    let (instances, report) = build_task_set(&repos, &provider, &options).unwrap();
    eprintln!("{:?} {report:#?}", started.elapsed());
    assert!(report.rejected_repos.is_empty(), "{report:?}");
    assert_eq!(instances.len(), num_repos, "{report:?}");
}
