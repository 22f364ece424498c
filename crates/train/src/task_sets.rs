//! The task sets of a recipe, made or read, and checked for overlap.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchwright_core::{RepoSource, SandboxProvider, TaskInstance};
use patchwright_tasks::rows::read_task_set;
use patchwright_tasks::source::prepare_repo;
use patchwright_tasks::validate::{BuildOptions, EmbeddedRepo, build_task_set};
use patchwright_tasks::{generated, katas, pool};

use crate::environment::Task;
use crate::error::TrainError;
use crate::events::{Observer, RunEvent};
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
/// evaluation set shares an instance or repository with the train set, or a set is empty.
pub fn task_sets(
    recipe: &TasksRecipe,
    provider: &dyn SandboxProvider,
    observer: &dyn Observer,
) -> Result<TaskSets, TrainError> {
    let mut sets = TaskSets::default();
    for (name, set) in
        [("train", &recipe.train), ("held-out", &recipe.held_out), ("transfer", &recipe.transfer)]
    {
        if set.source == TaskSource::None {
            continue;
        }
        let tasks = task_set(recipe, name, set, provider)?;
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
        } else {
            check_disjoint(&sets.train, name, &tasks)?;
            sets.evaluation_sets.push((name.to_owned(), tasks));
        }
    }
    Ok(sets)
}

fn task_set(
    recipe: &TasksRecipe,
    name: &str,
    set: &TaskSetRecipe,
    provider: &dyn SandboxProvider,
) -> Result<Vec<Arc<Task>>, TrainError> {
    let (source, repos) = match set.source {
        TaskSource::Generated => ("generated", generated_repos(recipe, name, set)),
        TaskSource::Katas => {
            let katas = katas::all();
            ("katas", katas.map_err(|error| TrainError::setup("katas", error.to_string()))?)
        }
        TaskSource::File => return read_tasks(Path::new(&set.path), set.num_instances),
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
    let (mut instances, _) = build_task_set(repos, provider, &options)?;
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

/// Refuses an evaluation set that shares an instance, a repository or a source file with the
/// train set.
///
/// # Errors
/// [`TrainError::Setup`] naming what is shared.
pub fn check_disjoint(
    train: &[Arc<Task>],
    name: &str,
    tasks: &[Arc<Task>],
) -> Result<(), TrainError> {
    let instances = |tasks: &[Arc<Task>]| -> Vec<TaskInstance> {
        tasks.iter().map(|task| task.instance.clone()).collect()
    };
    pool::assert_disjoint(&instances(train), &instances(tasks))
        .map_err(|error| TrainError::setup(format!("task set {name}"), error.to_string()))
}

/// Reads rows of a file or directory, `num_instances` at most (0: all), and makes their
/// repositories ready.
///
/// # Errors
/// [`TrainError::Task`] naming the row, or the instance whose repository cannot be had.
pub fn read_tasks(path: &Path, num_instances: usize) -> Result<Vec<Arc<Task>>, TrainError> {
    let mut instances = read_task_set(path)?;
    if num_instances > 0 {
        instances.truncate(num_instances);
    }
    let cache = cache_dir("repos").unwrap_or_else(|| std::env::temp_dir().join("patchwright"));
    let ready = |instance: TaskInstance| {
        let repo = prepare_repo(&instance, &cache)?;
        Ok(Arc::new(Task { instance, repo }))
    };
    instances.into_iter().map(ready).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{check_disjoint, generated_repos, read_tasks};
    use crate::recipe::Recipe;
    use crate::testing::tasks;

    #[test]
    fn what_was_trained_on_is_not_measured_on() {
        let train = tasks("a", 3);
        assert!(check_disjoint(&train, "held-out", &tasks("b", 3)).is_ok());
        let error = check_disjoint(&train, "held-out", &tasks("a", 1)).unwrap_err().to_string();
        assert!(error.starts_with("task set held-out: instance a-0"), "{error}");
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
        assert_eq!(read_tasks(&path, 0).unwrap().len(), 3);
        assert_eq!(read_tasks(&path, 2).unwrap()[1].instance.instance_id, "f-1");
        assert!(read_tasks(&dir.path().join("none.jsonl"), 0).is_err());
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
