//! A directory with the changes that a row's `setup` names: the bug that is put in, and the tests
//! that are taken out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use patchwright_core::{Patch, TaskError, TaskInstance};
use serde::Deserialize;

use super::{hash, io, unique};

/// The field `setup` of a row.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Setup {
    /// A unified diff over the directory.
    #[serde(default)]
    patch: String,
    /// Files that are left out.
    #[serde(default)]
    remove: BTreeSet<String>,
}

/// The directory itself when the row has no `setup`, else a copy with it, made once. Files that are
/// the same are shared (hard links): nobody writes to either.
pub(super) fn apply(
    instance: &TaskInstance,
    dir: &Path,
    cache_dir: &Path,
) -> Result<PathBuf, TaskError> {
    let Some(value) = instance.extra.get("setup").filter(|value| !value.is_null()) else {
        return Ok(dir.to_owned());
    };
    let error = |reason: String| TaskError::Instance {
        instance_id: instance.instance_id.clone(),
        reason: format!("setup: {reason}"),
    };
    let setup = Setup::deserialize(value).map_err(|e| error(e.to_string()))?;
    let name = format!("{}-{}", hash(&dir.display().to_string()), hash(&value.to_string()));
    let tree = cache_dir.join("trees").join(name);
    if tree.is_dir() {
        return Ok(tree);
    }
    let patch = Patch::parse(&setup.patch).map_err(|e| error(e.to_string()))?;
    let mut read = |path: &str| {
        // Never through a link, which may lead anywhere.
        let place = dir.join(path);
        place.symlink_metadata().is_ok_and(|m| m.is_file()).then(|| std::fs::read(place).ok())?
    };
    let changes = patch.apply(&mut read).map_err(|e| error(e.to_string()))?;
    let mut left_out: BTreeSet<&str> = setup.remove.iter().map(String::as_str).collect();
    left_out.extend(changes.iter().map(|change| change.path.as_str()));
    let partial = tree.with_extension(unique("partial"));
    let make = || -> Result<(), TaskError> {
        copy(dir, &partial, "", &left_out)?;
        for change in &changes {
            let Some(bytes) = &change.new else { continue };
            let place = partial.join(&change.path);
            if let Some(parent) = place.parent() {
                std::fs::create_dir_all(parent).map_err(|e| io("making", parent, e))?;
            }
            std::fs::write(&place, bytes).map_err(|e| io("writing", &place, e))?;
        }
        std::fs::rename(&partial, &tree).or_else(|e| {
            // Another process may have been first.
            if tree.is_dir() { Ok(()) } else { Err(io("moving", &tree, e)) }
        })
    };
    let made = make();
    if partial.exists() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    made.map(|()| tree)
}

/// Copies directories and shares regular files; links and everything else are left out, and so is
/// git's history, which may hold the correct sources.
fn copy(from: &Path, to: &Path, below: &str, left_out: &BTreeSet<&str>) -> Result<(), TaskError> {
    std::fs::create_dir_all(to).map_err(|e| io("making", to, e))?;
    for entry in std::fs::read_dir(from).map_err(|e| io("reading", from, e))? {
        let path = entry.map_err(|e| io("reading", from, e))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let inside = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let metadata = path.symlink_metadata().map_err(|e| io("reading", &path, e))?;
        let place = to.join(name);
        if metadata.is_dir() && !matches!(name, ".git" | "__pycache__") {
            copy(&path, &place, &inside, left_out)?;
        } else if metadata.is_file() && !left_out.contains(inside.as_str()) {
            // Across file systems there are no hard links.
            if std::fs::hard_link(&path, &place).is_err() {
                std::fs::copy(&path, &place).map_err(|e| io("copying", &path, e))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use patchwright_core::{RepoSource, TaskInstance};
    use serde_json::json;

    use crate::source::prepare_repo;

    #[test]
    fn a_setup_is_made_once_and_leaves_the_original() {
        let dirs = tempfile::tempdir().unwrap();
        let (repo, cache) = (dirs.path().join("repo"), dirs.path().join("cache"));
        std::fs::create_dir_all(repo.join("t/.git")).unwrap();
        std::fs::write(repo.join("a.py"), "x = 1\n").unwrap();
        std::fs::write(repo.join("b.py"), "y = 1\n").unwrap();
        std::fs::write(repo.join("t/test_a.py"), "1\n").unwrap();
        std::fs::write(repo.join("t/.git/config"), "1\n").unwrap();
        let patch = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n";
        let mut task = TaskInstance {
            instance_id: "id".to_owned(),
            repo: repo.display().to_string(),
            extra: [("setup".to_owned(), json!({"patch": patch, "remove": ["t/test_a.py"]}))]
                .into(),
            ..TaskInstance::default()
        };
        let Ok(RepoSource::Directory(tree)) = prepare_repo(&task, &cache) else { panic!() };
        let text = |path: &str| std::fs::read_to_string(tree.join(path)).ok();
        assert_eq!(text("a.py").as_deref(), Some("x = 2\n"));
        assert_eq!(text("b.py").as_deref(), Some("y = 1\n"));
        assert_eq!((text("t/test_a.py"), text("t/.git/config")), (None, None));
        assert_eq!(std::fs::read_to_string(repo.join("a.py")).unwrap(), "x = 1\n");
        assert_eq!(prepare_repo(&task, &cache).unwrap(), RepoSource::Directory(tree));
        assert_eq!(std::fs::read_dir(cache.join("trees")).unwrap().count(), 1);
        task.extra.insert("setup".to_owned(), json!({"patch": patch.replace("x = 1", "z")}));
        let error = prepare_repo(&task, &cache).unwrap_err().to_string();
        assert!(error.starts_with("id: setup: a.py"), "{error}");
        task.extra.insert("setup".to_owned(), json!({"run": "rm -rf /"}));
        assert!(prepare_repo(&task, &cache).unwrap_err().to_string().contains("unknown field"));
    }
}
