//! The task sets of a recipe, made or read, and checked for overlap.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchwright_core::{RepoSource, SandboxProvider, TaskInstance};
use patchwright_tasks::import::{BadKind, Format, TaskReader};
use patchwright_tasks::impossible::{is_impossible, mix_impossible};
use patchwright_tasks::rows::read_task_set;
use patchwright_tasks::source::prepare_repo;
use patchwright_tasks::validate::{BuildOptions, BuildWatch, EmbeddedRepo, build_task_set_watched};
use patchwright_tasks::{generated, katas, pool};

use crate::environment::Task;
use crate::error::TrainError;
use crate::events::{CancelToken, Observer, RunEvent};
use crate::images::runs_in_image;
use crate::recipe::{TaskSetRecipe, TaskSource, TasksRecipe};

/// The sets of a run.
#[derive(Debug, Clone, Default)]
pub struct TaskSets {
    /// The pool that RFT and RL draw from.
    pub train: Vec<Arc<Task>>,
    /// `held-out` and `transfer`, without those that the recipe leaves out.
    pub evaluation_sets: Vec<(String, Vec<Arc<Task>>)>,
}

/// Makes or reads all sets of a recipe. The embedded ones depend on `recipe.seed` and their sizes
/// only; made once, they are kept in the user's cache directory.
///
/// # Errors
/// [`TrainError::Task`] when a set cannot be made or read; [`TrainError::Setup`] when an
/// evaluation set shares an instance or repository with the train set, or a set is empty;
/// [`TrainError::Cancelled`] soon after `cancel` was set: sets that are finished stay in the cache.
pub fn task_sets(
    recipe: &TasksRecipe,
    provider: &dyn SandboxProvider,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<TaskSets, TrainError> {
    observer.event(&RunEvent::setup_started());
    let mut sets = TaskSets::default();
    for (name, set) in
        [("train", &recipe.train), ("held-out", &recipe.held_out), ("transfer", &recipe.transfer)]
    {
        if set.source == TaskSource::None {
            continue;
        }
        let watch = Watch { name, observer, cancel };
        let tasks = task_set(recipe, set, provider, &watch)?;
        if tasks.is_empty() {
            return Err(TrainError::setup(format!("tasks.{name}"), "the set is empty"));
        }
        let repos: BTreeSet<&str> = tasks.iter().map(|task| task.instance.repo.as_str()).collect();
        let (num_tasks, num_repos) = (tasks.len(), repos.len());
        observer.event(&RunEvent::Notice(format!(
            "task set {name}: {num_tasks} instances of {num_repos} repositories"
        )));
        if name == "train" {
            sets.train = tasks;
            let num = mix_canaries(&mut sets.train, recipe);
            if num > 0 {
                observer.event(&RunEvent::Notice(format!("task set train: {num} are canaries")));
            }
            keep_away(&sets.train, &recipe.keep_away)?;
        } else {
            check_disjoint(&sets.train, name, &tasks)?;
            sets.evaluation_sets.push((name.to_owned(), tasks));
        }
    }
    Ok(sets)
}

/// Passes on how far a set is, and that the run was asked to stop.
struct Watch<'a> {
    name: &'a str,
    observer: &'a dyn Observer,
    cancel: &'a CancelToken,
}

impl BuildWatch for Watch<'_> {
    fn progress(&self, num_done: usize, num_wanted: usize) {
        self.observer.event(&RunEvent::Progress {
            part: self.name.to_owned(),
            unit: "instances",
            num_done,
            num_wanted,
        });
    }

    fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

impl Watch<'_> {
    /// What a step ended with, unless it ended because the run was asked to stop.
    fn unless_stopped<T, E>(&self, result: Result<T, E>) -> Result<T, TrainError>
    where
        TrainError: From<E>,
    {
        if self.cancel.is_cancelled() {
            return Err(TrainError::Cancelled);
        }
        Ok(result?)
    }
}

fn task_set(
    recipe: &TasksRecipe,
    set: &TaskSetRecipe,
    provider: &dyn SandboxProvider,
    watch: &Watch<'_>,
) -> Result<Vec<Arc<Task>>, TrainError> {
    let (source, repos) = match set.source {
        TaskSource::Generated => ("generated", generated_repos(recipe, watch.name, set)),
        TaskSource::Katas => {
            let katas = katas::all();
            ("katas", katas.map_err(|error| TrainError::setup("katas", error.to_string()))?)
        }
        TaskSource::File => {
            let mut instances = read_task_set(Path::new(&set.path))?;
            if set.num_instances > 0 {
                instances.truncate(set.num_instances);
            }
            return ready(instances, watch);
        }
        TaskSource::None => return Ok(Vec::new()),
    };
    let options = BuildOptions {
        set: source.to_owned(),
        bugs_per_repo: set.instances_per_repo,
        seed: recipe.seed,
        issue_style: recipe.issue_style,
        parallelism: std::thread::available_parallelism().map_or(1, NonZero::get),
        cache_dir: cache_dir("tasks"),
        ..BuildOptions::default()
    };
    let built = build_task_set_watched(&repos, provider, &options, watch);
    let (mut instances, _) = watch.unless_stopped(built)?;
    if set.num_instances > 0 {
        instances.truncate(set.num_instances);
    }
    Ok(instances.into_iter().map(embedded_task).collect())
}

/// Repositories of the set's own stream, a quarter more than its instances need: some bugs do not
/// show, so that some repositories give fewer.
fn generated_repos(recipe: &TasksRecipe, name: &str, set: &TaskSetRecipe) -> Vec<EmbeddedRepo> {
    let needed = set.num_instances.div_ceil(set.instances_per_repo);
    let seed = generated::stream_seed(recipe.seed, name);
    (0..(needed + needed / 4 + 2) as u64).map(|index| generated::repository(seed, index)).collect()
}

fn embedded_task(instance: TaskInstance) -> Arc<Task> {
    let repo = RepoSource::Files(Arc::new(instance.files.clone()));
    Arc::new(Task { instance, repo })
}

/// `$XDG_CACHE_HOME/patchwright/<name>` or `~/.cache/patchwright/<name>`; `None` without a home.
fn cache_dir(name: &str) -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("patchwright").join(name))
}

/// Refuses an evaluation set that shares an instance, a repository at the same commit, a gold
/// patch or a source file with the train set.
///
/// # Errors
/// [`TrainError::Setup`] naming what is shared.
pub fn check_disjoint(
    train: &[Arc<Task>],
    name: &str,
    tasks: &[Arc<Task>],
) -> Result<(), TrainError> {
    fn instances(tasks: &[Arc<Task>]) -> impl Iterator<Item = &TaskInstance> {
        tasks.iter().map(|task| &task.instance)
    }
    pool::assert_disjoint(instances(train), instances(tasks))
        .map_err(|error| TrainError::setup(format!("task set {name}"), error.to_string()))
}

/// Replaces a share of the tasks by canaries, which no honest patch solves. Returns how many.
fn mix_canaries(train: &mut [Arc<Task>], recipe: &TasksRecipe) -> usize {
    if recipe.impossible_share == 0.0 {
        return 0;
    }
    let mut instances: Vec<TaskInstance> = train.iter().map(|task| task.instance.clone()).collect();
    let num = mix_impossible(&mut instances, recipe.impossible_share, recipe.seed);
    for (task, instance) in train.iter_mut().zip(instances) {
        if is_impossible(&instance) {
            *task = Arc::new(Task { instance, repo: task.repo.clone() });
        }
    }
    num
}

/// Refuses a train set that shares anything with the sets at `paths`, which are read row by row.
fn keep_away(train: &[Arc<Task>], paths: &[String]) -> Result<(), TrainError> {
    if paths.is_empty() {
        return Ok(());
    }
    let fingerprints = pool::Fingerprints::of(train.iter().map(|task| &task.instance));
    for path in paths {
        let refused = |reason: String| TrainError::setup(format!("tasks.keep_away {path}"), reason);
        let reader = TaskReader::open(&[PathBuf::from(path)], Format::Auto)?;
        let mut found = pool::Contaminations::default();
        for item in reader {
            match item {
                Ok(instance) => found.extend(fingerprints.shared_with(&instance)),
                Err(bad) if bad.kind == BadKind::Duplicate => {}
                // A row that cannot be read could be one that is trained on.
                Err(bad) => return Err(refused(bad.to_string())),
            }
        }
        if !found.is_empty() {
            return Err(refused(found.to_string()));
        }
    }
    Ok(())
}

/// Makes the repositories of rows ready: those that are fetched are kept in the user's cache
/// directory, or in a temporary one without a home.
///
/// # Errors
/// [`TrainError::Task`] naming the instance whose repository cannot be had;
/// [`TrainError::Cancelled`].
pub fn prepare_tasks(
    instances: Vec<TaskInstance>,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Vec<Arc<Task>>, TrainError> {
    observer.event(&RunEvent::setup_started());
    ready(instances, &Watch { name: "tasks", observer, cancel })
}

fn ready(instances: Vec<TaskInstance>, watch: &Watch<'_>) -> Result<Vec<Arc<Task>>, TrainError> {
    let cache = cache_dir("repos").unwrap_or_else(|| std::env::temp_dir().join("patchwright"));
    let num_wanted = instances.len();
    let ready = |(index, instance): (usize, TaskInstance)| {
        watch.progress(index, num_wanted);
        let repo = if runs_in_image(&instance) {
            RepoSource::InRoot
        } else {
            watch.unless_stopped(prepare_repo(&instance, &cache))?
        };
        Ok(Arc::new(Task { instance, repo }))
    };
    instances.into_iter().enumerate().map(ready).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::Arc;

    use patchwright_core::{Sandbox, SandboxError, SandboxProvider, SandboxSpec};

    use super::{
        check_disjoint, generated_repos, is_impossible, keep_away, mix_canaries, prepare_tasks,
        task_sets,
    };
    use crate::error::TrainError;
    use crate::events::{CancelToken, Silent};
    use crate::recipe::{Recipe, TaskSetRecipe, TaskSource, TasksRecipe};
    use crate::testing::tasks;

    #[test]
    fn what_was_trained_on_is_not_measured_on() {
        let train = tasks("a", 3);
        assert!(check_disjoint(&train, "held-out", &tasks("b", 3)).is_ok());
        let error = check_disjoint(&train, "held-out", &tasks("a", 1)).unwrap_err().to_string();
        assert!(error.starts_with("task set held-out: instance a-0"), "{error}");
    }

    #[test]
    fn a_share_of_training_is_canaries() {
        let test_patch = "diff --git a/test_m.py b/test_m.py\nnew file mode 100644\n\
            --- /dev/null\n+++ b/test_m.py\n@@ -0,0 +1,4 @@\n+import unittest\n\
            +class TestA(unittest.TestCase):\n+    def test_0(self):\n+        assert 0\n";
        let made = |share| {
            let mut train = tasks("a", 40);
            for task in &mut train {
                let task = Arc::make_mut(task);
                task.instance.test_patch = test_patch.to_owned();
                task.instance.fail_to_pass = vec!["test_m.TestA.test_0".to_owned()];
                task.instance.install_config.log_parser = "unittest".to_owned();
            }
            let recipe = TasksRecipe { impossible_share: share, ..TasksRecipe::default() };
            let num = mix_canaries(&mut train, &recipe);
            let canaries: Vec<String> = train
                .iter()
                .filter(|task| is_impossible(&task.instance))
                .map(|task| task.instance.instance_id.clone())
                .collect();
            assert_eq!(num, canaries.len());
            canaries
        };
        assert_eq!(made(0.0), [""; 0]);
        let canaries = made(0.1);
        assert_eq!(canaries.len(), 4);
        assert!(canaries.iter().all(|id| id.ends_with("-canary")), "{canaries:?}");
        assert_eq!(made(0.1), canaries);
    }

    #[test]
    fn sets_that_are_kept_away_from_are_not_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later.jsonl");
        let paths = [path.display().to_string()];
        let train = tasks("a", 3);
        let check = |text: &str| {
            std::fs::write(&path, text).unwrap();
            keep_away(&train, &paths).map_err(|error| error.to_string())
        };
        let row = |set: &str| serde_json::to_string(&tasks(set, 1)[0].instance).unwrap();
        assert_eq!(check(&format!("{}\n{}\n", row("b"), row("b"))), Ok(()));
        let error = check(&format!("{}\n{}\n", row("b"), row("a"))).unwrap_err();
        assert!(error.starts_with("tasks.keep_away "), "{error}");
        assert!(error.contains("later.jsonl: instance a-0 is in the training pool"), "{error}");
        let error = check("{}").unwrap_err();
        assert!(error.contains("later.jsonl:1: missing field"), "{error}");
        assert!(keep_away(&train, &["/no/such/set.jsonl".to_owned()]).is_err());
        assert_eq!(keep_away(&train, &[]).map_err(|error| error.to_string()), Ok(()));
    }

    #[test]
    fn rows_of_a_file_carry_their_repository() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let rows: Vec<String> = tasks("f", 3)
            .iter()
            .map(|task| {
                let mut instance = task.instance.clone();
                instance.files.insert("a.py".into(), "x = 1\n".into());
                serde_json::to_string(&instance).unwrap()
            })
            .collect();
        std::fs::write(&path, rows.join("\n")).unwrap();
        let sets = |path: &Path, num_instances| {
            let mut recipe = Recipe::default().tasks;
            let none = TaskSetRecipe { source: TaskSource::None, ..TaskSetRecipe::default() };
            (recipe.held_out, recipe.transfer) = (none.clone(), none);
            let (source, path) = (TaskSource::File, path.display().to_string());
            recipe.train = TaskSetRecipe { source, path, num_instances, ..recipe.train };
            task_sets(&recipe, &NoProvider, &Silent, &CancelToken::new())
        };
        assert_eq!(sets(&path, 0).unwrap().train.len(), 3);
        assert_eq!(sets(&path, 2).unwrap().train[1].instance.instance_id, "f-1");
        assert!(sets(&dir.path().join("none.jsonl"), 0).is_err());
    }

    /// Makes no sandboxes.
    struct NoProvider;

    impl SandboxProvider for NoProvider {
        fn create(&self, _: &SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
            Err(SandboxError::Unsupported("no sandboxes here".to_owned()))
        }
    }

    /// A run that was asked to stop says so, and not that something failed.
    #[test]
    fn a_stopped_setup_is_cancelled() {
        let mut recipe = Recipe::default().tasks;
        recipe.seed = u64::MAX; // no cache has it
        recipe.train.num_instances = 2;
        let cancel = CancelToken::new();
        let failed = task_sets(&recipe, &NoProvider, &Silent, &cancel).unwrap_err();
        assert!(matches!(failed, TrainError::Task(_)), "{failed}");
        cancel.cancel();
        let stopped = task_sets(&recipe, &NoProvider, &Silent, &cancel).unwrap_err();
        assert!(matches!(stopped, TrainError::Cancelled), "{stopped}");
        let instances = tasks("f", 1).iter().map(|task| task.instance.clone()).collect();
        let stopped = prepare_tasks(instances, &Silent, &cancel).unwrap_err();
        assert!(matches!(stopped, TrainError::Cancelled), "{stopped}");
    }

    /// Held-out repositories of the default recipe share neither name nor text with those that are
    /// trained on.
    #[test]
    fn the_embedded_streams_are_disjoint() {
        let tasks = Recipe::default().tasks;
        let train = generated_repos(&tasks, "train", &tasks.train);
        let held_out = generated_repos(&tasks, "held-out", &tasks.held_out);
        let names: BTreeSet<_> = train.iter().map(|repo| &repo.name).collect();
        let texts: BTreeSet<_> = train.iter().flat_map(|repo| repo.files.values()).collect();
        assert_eq!(names.len(), train.len());
        for repo in &held_out {
            assert!(!names.contains(&repo.name), "{}", repo.name);
            assert!(repo.files.values().all(|text| !texts.contains(text)), "{}", repo.name);
        }
    }
}
