//! The guard against training on what is evaluated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use patchwright_core::TaskInstance;
use sha2::{Digest, Sha256};

/// An evaluation task that the training pool has too, in one way or another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contamination {
    /// The same instance in both.
    #[error("instance {0} is in the training pool and held out; remove it from one of the sets")]
    Instance(String),
    /// Another instance of the same repository at the same commit.
    #[error(
        "repository {repo} at commit {commit} is in the training pool ({train}) and held out \
         ({held_out}); remove one of the two"
    )]
    Commit {
        /// The repository.
        repo: String,
        /// The commit, as the held-out instance has it.
        commit: String,
        /// An instance of it in training.
        train: String,
        /// An instance of it that is held out.
        held_out: String,
    },
    /// A repository in both, where one side names no commit, as embedded tasks do not.
    #[error(
        "repository {repo} is in the training pool ({train}) and held out ({held_out}); split the \
         sets by repository"
    )]
    Repository {
        /// The repository.
        repo: String,
        /// An instance of it in training.
        train: String,
        /// An instance of it that is held out.
        held_out: String,
    },
    /// Two instances under different names that the same change solves, as in forks.
    #[error("{train} in the training pool and {held_out}, which is held out, have one gold patch")]
    Patch {
        /// The training instance.
        train: String,
        /// The held-out instance.
        held_out: String,
    },
    /// Two repositories under different names with the same files, for tasks that carry them.
    #[error(
        "{train} in the training pool and {held_out}, which is held out, have the same file {path}"
    )]
    File {
        /// The training instance.
        train: String,
        /// The held-out instance.
        held_out: String,
        /// Path of the file in the held-out instance.
        path: String,
    },
}

impl Contamination {
    /// What is shared, such as `the gold patch of a-1`.
    pub fn what(&self) -> String {
        match self {
            Self::Instance(id) => format!("the instance {id}"),
            Self::Commit { commit, train, .. } => format!("the commit {commit} of {train}"),
            Self::Repository { train, .. } => format!("the repository of {train}"),
            Self::Patch { train, .. } => format!("the gold patch of {train}"),
            Self::File { train, path, .. } => format!("the file {path} of {train}"),
        }
    }
}

/// Those that are named when there are many.
const NUM_NAMED: usize = 3;

/// All that a training pool shares with a set, in the order of that set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contaminations {
    first: Vec<Contamination>,
    num: usize,
}

impl Contaminations {
    /// Whether nothing is shared.
    pub fn is_empty(&self) -> bool {
        self.num == 0
    }

    /// Held-out instances that are shared.
    pub fn len(&self) -> usize {
        self.num
    }

    /// The first of them.
    pub fn first(&self) -> Option<&Contamination> {
        self.first.first()
    }
}

impl Extend<Contamination> for Contaminations {
    fn extend<T: IntoIterator<Item = Contamination>>(&mut self, items: T) {
        for item in items {
            self.num += 1;
            if self.first.len() < NUM_NAMED {
                self.first.push(item);
            }
        }
    }
}

impl fmt::Display for Contaminations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.first.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{item}")?;
        }
        match self.num - self.first.len() {
            0 => Ok(()),
            more => write!(f, "; and {more} more held-out instances"),
        }
    }
}

impl std::error::Error for Contaminations {}

/// What identifies the instances of a training pool.
#[derive(Debug, Clone, Default)]
pub struct Fingerprints {
    ids: BTreeSet<String>,
    /// By repository: commit, lower case, and an instance at it.
    commits: BTreeMap<String, Vec<(String, String)>>,
    /// By the hash of a gold patch or a source file, an instance that has it.
    patches: BTreeMap<[u8; 32], String>,
    files: BTreeMap<[u8; 32], String>,
}

impl Fingerprints {
    /// The fingerprints of a pool.
    pub fn of<'a>(train: impl IntoIterator<Item = &'a TaskInstance>) -> Self {
        let mut all = Self::default();
        train.into_iter().for_each(|instance| all.add(instance));
        all
    }

    /// Adds an instance.
    pub fn add(&mut self, instance: &TaskInstance) {
        let id = &instance.instance_id;
        self.ids.insert(id.clone());
        let commit = (instance.base_commit.trim().to_lowercase(), id.clone());
        self.commits.entry(repo_name(&instance.repo)).or_default().push(commit);
        if let Some(hash) = patch_hash(&instance.patch) {
            self.patches.entry(hash).or_insert_with(|| id.clone());
        }
        for (_, text) in sources(instance) {
            self.files.entry(Sha256::digest(text).into()).or_insert_with(|| id.clone());
        }
    }

    /// What the pool has of a held-out instance; the first kind of [`Contamination`] that fits.
    pub fn shared_with(&self, instance: &TaskInstance) -> Option<Contamination> {
        let held_out = instance.instance_id.clone();
        if self.ids.contains(&held_out) {
            return Some(Contamination::Instance(held_out));
        }
        let repo = || instance.repo.clone();
        let commit = instance.base_commit.trim().to_lowercase();
        let commits = self.commits.get(&repo_name(&instance.repo));
        for (other, train) in commits.into_iter().flatten() {
            if commit.is_empty() || other.is_empty() {
                let (repo, train) = (repo(), train.clone());
                return Some(Contamination::Repository { repo, train, held_out });
            }
            if same_commit(&commit, other) {
                let (repo, train) = (repo(), train.clone());
                return Some(Contamination::Commit { repo, commit, train, held_out });
            }
        }
        if let Some(train) = patch_hash(&instance.patch).and_then(|hash| self.patches.get(&hash)) {
            return Some(Contamination::Patch { train: train.clone(), held_out });
        }
        for (path, text) in sources(instance) {
            if let Some(train) = self.files.get::<[u8; 32]>(&Sha256::digest(text).into()) {
                let (train, path) = (train.clone(), path.to_owned());
                return Some(Contamination::File { train, held_out, path });
            }
        }
        None
    }
}

/// Refuses sets that share an instance, a repository at the same commit (or at all, where one side
/// names no commit), a gold patch, or, for embedded ones, a source file of the same text.
///
/// # Errors
/// [`Contaminations`] with the members of `held_out` that are in `train` too.
pub fn assert_disjoint<'a>(
    train: impl IntoIterator<Item = &'a TaskInstance>,
    held_out: impl IntoIterator<Item = &'a TaskInstance>,
) -> Result<(), Contaminations> {
    let fingerprints = Fingerprints::of(train);
    let mut found = Contaminations::default();
    found.extend(held_out.into_iter().filter_map(|instance| fingerprints.shared_with(instance)));
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Commits may be abbreviated, to seven digits or more.
fn same_commit(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    a == b || (short.len() >= 7 && long.starts_with(short))
}

/// The hash of the lines that a patch adds and removes, without paths, places and what stands
/// around them; `None` for a patch of fewer than three such lines with text, which two bugs may
/// well have in common.
fn patch_hash(patch: &str) -> Option<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut num_lines = 0;
    for line in patch.lines() {
        let header = line.starts_with("+++ ") || line.starts_with("--- ");
        let text = line.strip_prefix(['+', '-']).map(str::trim).unwrap_or_default();
        if !header && !text.is_empty() {
            hash.update(&line[..1]);
            hash.update(text);
            hash.update("\n");
            num_lines += 1;
        }
    }
    (num_lines >= 3).then(|| hash.finalize().into())
}

/// Python sources with a function in them: an empty `__init__.py` is in every repository.
fn sources(instance: &TaskInstance) -> impl Iterator<Item = (&str, &str)> {
    instance
        .files
        .iter()
        .filter(|(path, text)| {
            std::path::Path::new(path).extension().is_some_and(|e| e == "py")
                && text.contains("def ")
        })
        .map(|(path, text)| (path.as_str(), text.as_str()))
}

/// `Org/Name`, `https://host/org/name.git` and `org/name/` are one repository.
pub(crate) fn repo_name(repo: &str) -> String {
    let repo = repo.trim_end_matches('/').trim_end_matches(".git");
    let path = match repo.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, path)| path),
        None => repo,
    };
    path.to_lowercase()
}

#[cfg(test)]
mod tests {
    use patchwright_core::TaskInstance;

    use super::{Contamination, assert_disjoint};

    fn task(id: &str, repo: &str, files: &[(&str, &str)]) -> TaskInstance {
        TaskInstance {
            instance_id: id.to_owned(),
            repo: repo.to_owned(),
            files: files.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect(),
            ..TaskInstance::default()
        }
    }

    fn row(id: &str, repo: &str, commit: &str, patch: &str) -> TaskInstance {
        TaskInstance {
            base_commit: commit.to_owned(),
            patch: patch.to_owned(),
            ..task(id, repo, &[])
        }
    }

    fn check(train: &TaskInstance, held_out: TaskInstance) -> Option<Contamination> {
        assert_disjoint([train], &[held_out]).err().and_then(|found| found.first().cloned())
    }

    #[test]
    fn embedded_tasks_share_instances_repositories_and_files() {
        let source = "def f():\n    return 1\n";
        let train = task("a-1", "org/a", &[("a.py", source), ("__init__.py", "")]);
        assert_eq!(check(&train, task("b-1", "org/b", &[("__init__.py", "")])), None);
        let same = check(&train, task("a-1", "org/b", &[]));
        assert_eq!(same, Some(Contamination::Instance("a-1".to_owned())));
        for repo in ["org/a", "Org/A", "https://host/org/a.git", "org/a/"] {
            let found = check(&train, task("b-1", repo, &[]));
            assert!(matches!(found, Some(Contamination::Repository { .. })), "{repo}");
        }
        let copied = check(&train, task("b-1", "org/b", &[("x/b.py", source)])).unwrap();
        assert!(copied.to_string().contains("the same file x/b.py"), "{copied}");
    }

    #[test]
    fn rows_share_commits_and_patches() {
        let patch = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n-a = 1\n+a = 2\n+b = 3\n c\n";
        let train = row("org__r-1", "org/r", "0123456789ABCDEF", patch);
        let found = |id: &str, repo: &str, commit: &str, patch: &str| {
            check(&train, row(id, repo, commit, patch))
        };
        // Another bug of the same repository is what a split by date measures on.
        assert_eq!(found("org__r-2", "org/r", "fedcba9876543210", ""), None);
        for commit in ["0123456789abcdef", "0123456789ab"] {
            let commit = found("org__r-2", "Org/R", commit, "").unwrap();
            assert!(matches!(commit, Contamination::Commit { .. }), "{commit}");
        }
        assert_eq!(found("org__r-2", "org/r", "0123", ""), None);
        assert_eq!(found("fork__r-2", "fork/r", "0123456789abcdef", ""), None);
        let moved = patch.replace("x.py", "src/y.py").replace("-1,2", "-9,2").replace(" c", " d");
        let fork = found("fork__r-9", "fork/r", "ffff", &moved).unwrap();
        assert!(matches!(fork, Contamination::Patch { .. }), "{fork}");
        assert_eq!(found("fork__r-9", "fork/r", "ffff", &patch.replace("b = 3", "b = 4")), None);
        assert!(matches!(found("x-1", "org/r", "", ""), Some(Contamination::Repository { .. })));
    }

    #[test]
    fn all_are_counted_and_the_first_are_named() {
        let set: Vec<_> = (0..5).map(|i| task(&format!("a-{i}"), "org/a", &[])).collect();
        let error = assert_disjoint(&set, &set).unwrap_err();
        assert_eq!(error.len(), 5);
        let text = error.to_string();
        assert!(text.starts_with("instance a-0 is in the training pool"), "{text}");
        assert!(text.ends_with("; and 2 more held-out instances"), "{text}");
    }
}
