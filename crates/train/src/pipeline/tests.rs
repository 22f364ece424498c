use std::fs;
use std::path::Path;

use patchwright_core::PolicyVersion;

use super::{resume, stage_names, start};
use crate::TrainError;
use crate::events::{CancelToken, RunEvent, Silent};
use crate::journal::{Record, read_journal};
use crate::metrics::IterationMetrics;
use crate::recipe::Recipe;
use crate::report::Report;
use crate::run_dir::RunDir;
use crate::testing::{Fake, Faults, Recorder, fake, fake_with, small_recipe};

/// Starts a run of a fake world in `dir`.
fn begin(dir: &Path, recipe: &Recipe, fake: Fake) -> Result<Report, TrainError> {
    let run_dir = RunDir::create(dir, recipe)?;
    start(recipe, run_dir, fake.world, 0.5, &Silent, &CancelToken::new())
}

/// Goes on with it, as a new process does: with a fresh world.
fn go_on(dir: &Path, fake: Fake) -> Result<Report, TrainError> {
    let (run_dir, recipe) = RunDir::open(dir)?;
    super::check_unfinished(&run_dir)?;
    resume(recipe, run_dir, fake.world, &Silent, &CancelToken::new())
}

/// The last checkpoint's bits.
fn weights(dir: &Path) -> String {
    fs::read_to_string(dir.join("checkpoints/8/fake.json")).unwrap()
}

/// What must not depend on how the run came about: everything but wall clocks and sandboxes.
fn essence(report: &Report) -> (Vec<IterationMetrics>, Vec<String>) {
    let iterations = report.iterations.iter().cloned().map(|mut metrics| {
        metrics.rollout_seconds = 0.0;
        metrics.train_seconds = 0.0;
        metrics
    });
    let evaluations = report.evaluations.iter().cloned().map(|mut evaluation| {
        evaluation.wall_seconds = 0.0;
        serde_json::to_string(&evaluation).unwrap()
    });
    (iterations.collect(), evaluations.collect())
}

#[test]
fn a_run_goes_through_all_stages_and_learns() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = small_recipe(&[]);
    let Fake { world, sampler, num_steps, .. } = fake(Faults::default());
    let recorder = Recorder::default();
    let run_dir = RunDir::create(dir.path(), &recipe).unwrap();
    let report = start(&recipe, run_dir, world, 0.5, &recorder, &CancelToken::new()).unwrap();

    let measured: Vec<(&str, &str, u64)> = report
        .evaluations
        .iter()
        .map(|e| (e.policy.as_str(), e.task_set.as_str(), e.policy_version.0))
        .collect();
    let expected = [("base", 0), ("rft", 1), ("rl-1", 5), ("rl-2", 8)]
        .iter()
        .flat_map(|(policy, version)| {
            [(*policy, "held-out", *version), (*policy, "transfer", *version)]
        })
        .collect::<Vec<_>>();
    assert_eq!(measured, expected);
    let of = |policy: &str| {
        let found = report.evaluations.iter().find(|e| e.policy == policy).unwrap();
        (found.num_tasks, found.num_runs, found.pass_at_1.mean)
    };
    assert_eq!((of("base").0, of("base").1), (6, 4));
    assert!(of("rl-2").2 > of("base").2 + 0.1, "{} {}", of("base").2, of("rl-2").2);

    for metrics in &report.iterations {
        let funnel = &metrics.funnel;
        let parts =
            funnel.num_failed_infrastructure + funnel.num_dropped_rollouts + funnel.num_trained;
        assert_eq!(parts, funnel.num_rollouts, "{}", metrics.stage);
        assert!(metrics.logprob_difference_max < 1e-6);
    }
    assert_eq!(report.iterations.len(), 8);
    assert_eq!(
        report.throughput.num_optimizer_steps as u64,
        num_steps.load(std::sync::atomic::Ordering::SeqCst)
    );
    assert!(report.finished && report.wall_seconds["setup"] > 0.4);

    let mut kept: Vec<String> = fs::read_dir(dir.path().join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["0", "1", "5", "8"]);
    assert_eq!(fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap().lines().count(), 8);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join("report.json")).unwrap()).unwrap();
    assert_eq!(json["schema_version"], 1);
    assert!(json["wall_seconds"]["total"].is_f64());
    assert!(json["evaluations"][0]["pass_at_1"]["sem"].is_f64());

    let events = recorder.0.into_inner().unwrap();
    let finished = |event: &&RunEvent| matches!(event, RunEvent::RolloutFinished(_));
    let rollouts: usize = report.iterations.iter().map(|m| m.funnel.num_rollouts).sum();
    assert_eq!(events.iter().filter(finished).count(), rollouts + 4 * (6 + 2) * 4);
    assert!(matches!(events.last(), Some(RunEvent::RunFinished { .. })));
    assert_eq!(std::sync::Arc::strong_count(&sampler), 1, "nothing holds on to the engine");
}

#[test]
fn the_seed_decides_and_nothing_else() {
    let run = |overrides: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let report = begin(dir.path(), &small_recipe(overrides), fake(Faults::default())).unwrap();
        (weights(dir.path()), essence(&report))
    };
    let one = run(&[]);
    assert_eq!(one, run(&["infrastructure.num_workers=1"]), "the number of threads has no say");
    assert_ne!(one.0, run(&["run.seed=6"]).0);
}

/// Stopped anywhere, twice, and resumed twice: the same weights and numbers, no work skipped.
#[test]
fn resuming_changes_nothing() {
    for overrides in [&[][..], &["rl.0.max_staleness=1"], &["infrastructure.checkpoint_every=3"]] {
        let recipe = small_recipe(overrides);
        let whole = tempfile::tempdir().unwrap();
        let expected = begin(whole.path(), &recipe, fake(Faults::default())).unwrap();
        for cancel_at in [3, 40, 70, 110, 150, 175, 215, 300, 350] {
            let dir = tempfile::tempdir().unwrap();
            let stopping = |at| fake(Faults { cancel_at: Some(at), ..Faults::default() });
            let first = stopping(cancel_at);
            let sampler = first.sampler.clone();
            let stopped = begin(dir.path(), &recipe, first);
            assert!(matches!(stopped, Err(TrainError::Interrupted { .. })), "{cancel_at}");
            assert_eq!(std::sync::Arc::strong_count(&sampler), 1, "all threads have ended");
            assert_eq!(sampler.num_live_sessions(), 0);
            let stopped = go_on(dir.path(), stopping(75));
            let report = match stopped {
                Err(TrainError::Interrupted { .. }) => {
                    go_on(dir.path(), fake(Faults::default())).unwrap()
                }
                other => other.unwrap(),
            };
            assert_eq!(weights(dir.path()), weights(whole.path()), "{cancel_at} {overrides:?}");
            assert_eq!(essence(&report), essence(&expected), "{cancel_at} {overrides:?}");
            let metrics = fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
            assert_eq!(metrics.lines().count(), 8);
        }
    }
}

/// A journal cut anywhere (as a crash leaves it) leads to the same end, also where checkpoints of
/// the last valid iteration are gone.
#[test]
fn a_torn_journal_leads_to_the_same_end() {
    let recipe = small_recipe(&[]);
    let whole = tempfile::tempdir().unwrap();
    let expected = begin(whole.path(), &recipe, fake(Faults::default())).unwrap();
    let journal = fs::read(whole.path().join("journal.jsonl")).unwrap();
    for part in 1..=16 {
        let dir = tempfile::tempdir().unwrap();
        let cut = journal.len() * part / 16 - 1;
        fs::write(dir.path().join("journal.jsonl"), &journal[..cut]).unwrap();
        fs::copy(whole.path().join("recipe.json"), dir.path().join("recipe.json")).unwrap();
        for version in ["0", "1", "5", "8"] {
            let target = dir.path().join("checkpoints").join(version);
            fs::create_dir_all(&target).unwrap();
            let source = whole.path().join("checkpoints").join(version).join("fake.json");
            fs::copy(source, target.join("fake.json")).unwrap();
        }
        let report = go_on(dir.path(), fake(Faults::default())).unwrap();
        assert_eq!(weights(dir.path()), weights(whole.path()), "{part}");
        assert_eq!(essence(&report), essence(&expected), "{part}");
    }
}

#[test]
fn a_finished_run_is_not_resumed_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = small_recipe(&["rl.0.iterations=1", "rl.1.iterations=1"]);
    begin(dir.path(), &recipe, fake(Faults::default())).unwrap();
    let error = go_on(dir.path(), fake(Faults::default())).unwrap_err();
    assert!(error.to_string().contains("the run is finished"), "{error}");
    let error = begin(dir.path(), &recipe, fake(Faults::default())).unwrap_err();
    assert!(error.to_string().contains("--resume"), "{error}");
    let error = go_on(Path::new("/nonexistent"), fake(Faults::default())).unwrap_err();
    assert!(error.to_string().contains("not a run directory"), "{error}");
}

#[test]
fn one_process_works_on_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let _held = RunDir::create(dir.path(), &small_recipe(&[])).unwrap();
    let error = RunDir::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("stopped before it began"), "{error}");
    fs::write(dir.path().join("journal.jsonl"), "").unwrap();
    let error = RunDir::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
}

/// Faults are journaled with their class and never have a reward, an advantage, or a part in a
/// solve rate.
#[test]
fn faults_are_never_rewarded() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = small_recipe(&["infrastructure.max_failed_fraction=0.7"]);
    let faults = Faults { fail_every: Some(6), ..Faults::default() };
    let report = begin(dir.path(), &recipe, fake(faults)).unwrap();
    let mut num_faults = 0;
    for record in read_journal(&dir.path().join("journal.jsonl")).unwrap().records {
        if let Record::Rollout(rollout) = record
            && rollout.failure.is_some_and(patchwright_core::FailureClass::is_infrastructure)
        {
            num_faults += 1;
            assert_eq!(rollout.solved, None);
            assert_eq!(rollout.reward, None);
            assert_eq!(rollout.advantage, None);
            assert_eq!(rollout.failure_detail.as_deref(), Some("the disk is full"));
        }
    }
    let counted: usize = report
        .iterations
        .iter()
        .map(|m| m.funnel.num_failed_infrastructure)
        .chain(report.evaluations.iter().map(|e| e.num_failed_infrastructure))
        .sum();
    assert!(num_faults > 20, "{num_faults}");
    assert_eq!(counted, num_faults);
}

/// A fault that a retry mends leaves no trace in the weights.
#[test]
fn a_retry_draws_the_same() {
    let (clean, faulty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let recipe = small_recipe(&[]);
    begin(clean.path(), &recipe, fake(Faults::default())).unwrap();
    let faults = Faults { fail_first_try: true, ..Faults::default() };
    begin(faulty.path(), &recipe, fake(faults)).unwrap();
    assert_eq!(weights(clean.path()), weights(faulty.path()));
}

/// When everything fails the run stops early, says why, has trained nothing, and can go on.
#[test]
fn the_breaker_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = small_recipe(&[]);
    let broken = fake(Faults { fail_every: Some(1), ..Faults::default() });
    let (environment, steps) = (broken.environment.clone(), broken.num_steps.clone());
    let error = begin(dir.path(), &recipe, broken).unwrap_err();
    assert!(matches!(error, TrainError::Infrastructure { num_rollouts: 24, .. }), "{error}");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert_eq!(steps.load(std::sync::atomic::Ordering::SeqCst), 0);
    // 24 rollouts, stopped past 20 %, with a retry each and at most num_workers more on the way.
    let tried: usize = environment.versions.lock().unwrap().values().sum();
    assert!(tried <= 2 * (5 + recipe.infrastructure.num_workers), "{tried}");
    let whole = tempfile::tempdir().unwrap();
    begin(whole.path(), &recipe, fake(Faults::default())).unwrap();
    go_on(dir.path(), fake(Faults::default())).unwrap();
    assert_eq!(weights(dir.path()), weights(whole.path()));
}

#[test]
fn staleness_one_trains_on_the_version_before() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = small_recipe(&["rl.0.max_staleness=1"]);
    let world = fake(Faults::default());
    let environment = world.environment.clone();
    let report = begin(dir.path(), &recipe, world).unwrap();
    let of_stage = |stage: &str| -> Vec<u64> {
        let metrics = report.iterations.iter().filter(|m| m.stage == stage);
        metrics.map(|m| m.staleness).collect()
    };
    assert_eq!(of_stage("rl-1"), [0, 1, 1, 1]);
    assert_eq!(of_stage("rl-2"), [0, 0, 0]);
    // Version 1 (after RFT) serves its evaluation (32) and the first two batches (30 each).
    assert_eq!(environment.versions.lock().unwrap()[&1], 32 + 60);
    assert!(report.iterations.iter().all(|m| m.logprob_difference_max < 1e-6));
}

/// An engine that goes on serving old weights is found by their version, one that lies about
/// log-probabilities by the trainer's own; neither is trained on.
#[test]
fn stale_and_lying_engines_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let error = begin(dir.path(), &small_recipe(&[]), fake_with(Faults::default(), true));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("version 0 answered, the rollout belongs to version 1"), "{error}");

    for overrides in [&[][..], &["rl.0.max_staleness=1"]] {
        let dir = tempfile::tempdir().unwrap();
        let lying = fake(Faults::default());
        *lying.sampler.lie.lock().unwrap() = 0.01;
        let mut recipe = small_recipe(overrides);
        recipe.rft.enabled = false;
        let error = begin(dir.path(), &recipe, lying).unwrap_err();
        assert!(matches!(error, TrainError::LogprobMismatch { .. }), "{error}");
    }
}

/// Where no sample is of the trainer's version, the probe finds the lie.
#[test]
fn the_probe_finds_a_lie_at_staleness_one() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = small_recipe(&["rl.0.max_staleness=1"]);
    let first = fake(Faults { cancel_at: Some(200), ..Faults::default() });
    begin(dir.path(), &recipe, first).unwrap_err();
    let journal = read_journal(&dir.path().join("journal.jsonl")).unwrap();
    let done = journal.records.iter().filter(|r| matches!(r, Record::Iteration { .. })).count();
    assert!((2..=4).contains(&done), "in rl-1, behind its first iteration: {done}");
    let lying = fake(Faults::default());
    *lying.sampler.lie.lock().unwrap() = 0.01;
    let error = go_on(dir.path(), lying).unwrap_err();
    assert!(matches!(error, TrainError::LogprobMismatch { .. }), "{error}");
}

/// A checkpoint whose updates do not match the journal is refused.
#[test]
fn lost_updates_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = small_recipe(&[]);
    let first = fake(Faults { cancel_at: Some(150), ..Faults::default() });
    begin(dir.path(), &recipe, first).unwrap_err();
    let older = fs::read(dir.path().join("checkpoints/0/fake.json")).unwrap();
    let checkpoints = fs::read_dir(dir.path().join("checkpoints")).unwrap();
    for checkpoint in checkpoints {
        fs::write(checkpoint.unwrap().path().join("fake.json"), &older).unwrap();
    }
    let error = go_on(dir.path(), fake(Faults::default())).unwrap_err();
    let expected = PolicyVersion(0);
    assert!(matches!(error, TrainError::LostUpdates { found, .. } if found == expected), "{error}");
}

#[test]
fn the_plan_names_all_stages() {
    let names = stage_names(&small_recipe(&[]));
    let expected = ["eval-base", "rft", "eval-rft", "rl-1", "eval-rl-1", "rl-2", "eval-rl-2"];
    assert_eq!(names, expected);
}

#[test]
fn resampling_replaces_dropped_groups() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = small_recipe(&["rl.0.num_resample_rounds=3", "rl.0.group_size=2"]);
    let report = begin(dir.path(), &recipe, fake(Faults::default())).unwrap();
    let first = report.iterations.iter().find(|m| m.stage == "rl-1").unwrap();
    let dropped = first.funnel.num_groups_all_failed + first.funnel.num_groups_all_solved;
    assert!(dropped > 0 && first.funnel.num_groups > 5, "{:?}", first.funnel);
    assert!(first.funnel.num_groups - dropped <= 5);
}
