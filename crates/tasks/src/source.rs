//! Where an instance's repository comes from: its own files, a directory, or git.

mod setup;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use patchwright_core::{RepoSource, TaskError, TaskInstance};
use sha2::{Digest, Sha256};

/// Longest that one git command may take: a clone of a large repository.
const GIT_TIMEOUT: Duration = Duration::from_mins(30);
/// Bytes of git's messages that are read.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Makes an instance's repository ready for a sandbox.
///
/// - `files`: they are the repository.
/// - `repo` is a local directory: without `base_commit` the directory itself (read, never
///   written; a sandbox does not show its `.git`), with it a checkout of that commit.
/// - `repo` is a git URL (https, http, ssh, git, file), or `org/name` on GitHub: a checkout of
///   `base_commit`.
///
/// A directory whose row has the field `setup` (tasks of injected bugs) is copied with those
/// changes made.
///
/// Checkouts are made once in `cache_dir`, by the `git` program, and hold no `.git`: neither the
/// fix nor any other history can be found in them.
///
/// # Errors
/// [`TaskError::Instance`] when there is no git, the repository or commit cannot be had, or the
/// row names neither; [`TaskError::Io`] when the cache cannot be written.
pub fn prepare_repo(instance: &TaskInstance, cache_dir: &Path) -> Result<RepoSource, TaskError> {
    if !instance.files.is_empty() {
        let files: BTreeMap<String, String> = instance.files.clone();
        return Ok(RepoSource::Files(Arc::new(files)));
    }
    let git = Git { instance, cache_dir };
    let local = Path::new(&instance.repo);
    if local.is_dir() {
        let path = std::path::absolute(local).map_err(|e| io("finding", local, e))?;
        if instance.base_commit.is_empty() {
            return setup::apply(instance, &path, cache_dir).map(RepoSource::Directory);
        }
        let Some(path) = path.to_str() else {
            return Err(git.error("the directory's path is not UTF-8".to_owned()));
        };
        return git.checkout(path, true).map(RepoSource::Directory);
    }
    let url = git.url()?;
    if instance.base_commit.is_empty() {
        return Err(git.error("base_commit is empty: a git URL needs the commit".to_owned()));
    }
    git.checkout(&url, false).map(RepoSource::Directory)
}

struct Git<'a> {
    instance: &'a TaskInstance,
    cache_dir: &'a Path,
}

impl Git<'_> {
    fn error(&self, reason: String) -> TaskError {
        TaskError::Instance { instance_id: self.instance.instance_id.clone(), reason }
    }

    fn url(&self) -> Result<String, TaskError> {
        let repo = &self.instance.repo;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let schemes = ["https://", "http://", "ssh://", "git://", "file://"];
        // `user@host:path`; other remote helpers (`ext::`) would run commands of the row's choice.
        let scp = repo.split_once(':').is_some_and(|(host, path)| {
            host.contains('@') && !host.starts_with('-') && !path.starts_with([':', '-'])
        });
        if schemes.iter().any(|scheme| repo.starts_with(scheme)) || (scp && !repo.contains("::")) {
            Ok(repo.clone())
        } else if repo.split('/').count() == 2
            && repo.chars().all(plain)
            && !repo.starts_with(['.', '/', '-'])
        {
            Ok(format!("https://github.com/{repo}.git"))
        } else {
            Err(self.error(format!(
                "repo {repo:?} is not a directory here, a git URL, or org/name; name one, or give \
                 the row `files`"
            )))
        }
    }

    /// The tree of `base_commit`, without git metadata.
    fn checkout(&self, url: &str, local: bool) -> Result<PathBuf, TaskError> {
        let commit = &self.instance.base_commit;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if !commit.chars().all(plain) || commit.starts_with('-') {
            return Err(self.error(format!("base_commit {commit:?} is not a commit or tag")));
        }
        let is_full = commit.len() >= 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
        let tree_of = |sha: &str| {
            self.cache_dir.join("trees").join(format!(
                "{}-{}",
                hash(url),
                &sha[..16.min(sha.len())]
            ))
        };
        if is_full && tree_of(commit).is_dir() {
            return Ok(tree_of(commit));
        }
        let git_dir = self.cache_dir.join("git").join(format!("{}.git", hash(url)));
        let sha = self.fetch(url, local, &git_dir)?;
        let tree = tree_of(&sha);
        if !tree.is_dir() {
            self.export(&git_dir, &sha, &tree)?;
        }
        Ok(tree)
    }

    /// Brings the commit into the bare repository `git_dir` and gives its full id.
    fn fetch(&self, url: &str, local: bool, git_dir: &Path) -> Result<String, TaskError> {
        let commit = &self.instance.base_commit;
        let resolve = || {
            let revision = format!("{commit}^{{commit}}");
            self.run(git_dir, &["rev-parse", "--verify", "--quiet", "--end-of-options", &revision])
        };
        let known = git_dir.is_dir();
        if !known {
            self.clone_empty(git_dir)?;
        } else if let Ok(sha) = resolve() {
            return Ok(sha.trim().to_owned());
        }
        // One commit is enough, where the server gives single commits; else everything.
        let shallow = ["fetch", "--quiet", "--depth", "1", "--no-tags", "--", url, commit];
        if !local && self.run(git_dir, &shallow).is_ok() {
            let sha = self.run(git_dir, &["rev-parse", "--verify", "FETCH_HEAD^{commit}"])?;
            let sha = sha.trim().to_owned();
            // A name keeps what it fetched alive and lets the next look-up find it.
            self.run(git_dir, &["update-ref", &format!("refs/kept/{sha}"), &sha])?;
            return Ok(sha);
        }
        let all = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let mut args = vec!["fetch", "--quiet", "--"];
        args.push(url);
        args.extend(all);
        self.run(git_dir, &args)?;
        match resolve() {
            Ok(sha) => Ok(sha.trim().to_owned()),
            Err(_) => Err(self.error(format!("{url} has no commit {commit}"))),
        }
    }

    fn clone_empty(&self, git_dir: &Path) -> Result<(), TaskError> {
        std::fs::create_dir_all(git_dir).map_err(|e| io("making", git_dir, e))?;
        self.run(git_dir, &["init", "--quiet", "--bare"]).map(|_| ())
    }

    /// Writes the commit's files to `tree`, whole or not at all.
    fn export(&self, git_dir: &Path, sha: &str, tree: &Path) -> Result<(), TaskError> {
        let partial = tree.with_extension(unique("partial"));
        let index = git_dir.join(unique("index"));
        std::fs::create_dir_all(&partial).map_err(|e| io("making", &partial, e))?;
        let work_tree = format!("--work-tree={}", partial.display());
        let checked_out = self.run_with(
            git_dir,
            &[&work_tree, "checkout", "--quiet", "--force", sha, "--", "."],
            Some(&index),
        );
        let _ = std::fs::remove_file(&index);
        let moved = checked_out.and_then(|_| {
            std::fs::rename(&partial, tree).or_else(|e| {
                // Another process may have been first.
                if tree.is_dir() { Ok(()) } else { Err(io("moving", tree, e)) }
            })
        });
        if partial.exists() {
            let _ = std::fs::remove_dir_all(&partial);
        }
        moved
    }

    fn run(&self, git_dir: &Path, args: &[&str]) -> Result<String, TaskError> {
        self.run_with(git_dir, args, None)
    }

    /// Runs git in a bare repository; its standard output.
    fn run_with(
        &self,
        git_dir: &Path,
        args: &[&str],
        index: Option<&Path>,
    ) -> Result<String, TaskError> {
        // Files, not pipes: nothing that git leaves behind can keep them open and us waiting.
        let (out, err) = (git_dir.join(unique("out")), git_dir.join(unique("err")));
        let result = self.run_to_files(git_dir, args, index, &out, &err);
        let (stdout, stderr) = (read_start(&out), read_start(&err));
        let _ = std::fs::remove_file(&out);
        let _ = std::fs::remove_file(&err);
        if result? {
            return Ok(stdout);
        }
        let says = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
        let name = args.iter().find(|arg| !arg.starts_with('-')).copied().unwrap_or_default();
        Err(self.error(format!("git {name} of {} failed: {says}", self.instance.repo)))
    }

    /// Whether git succeeded.
    fn run_to_files(
        &self,
        git_dir: &Path,
        args: &[&str],
        index: Option<&Path>,
        out: &Path,
        err: &Path,
    ) -> Result<bool, TaskError> {
        let create = |path: &Path| File::create(path).map_err(|e| io("making", path, e));
        let mut command = Command::new("git");
        command
            .arg("--git-dir")
            .arg(git_dir)
            // No program of the repository's choice runs: no hooks, no file-system monitor.
            .args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"])
            .args(["-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"])
            .args(["-c", "gc.auto=0", "-c", "core.autocrlf=false", "-c", "safe.directory=*"])
            .args(args)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", "https:http:ssh:git:file")
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .env_remove("GIT_DIR")
            .env_remove("GIT_WORK_TREE")
            .env_remove("GIT_INDEX_FILE")
            .stdin(Stdio::null())
            .stdout(create(out)?)
            .stderr(create(err)?);
        if let Some(index) = index {
            command.env("GIT_INDEX_FILE", index);
        }
        let mut child = command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => self.error(
                "the repository needs the program git, which is not on PATH; install git, or give \
                 the row `files` or a plain directory"
                    .to_owned(),
            ),
            _ => io("running", Path::new("git"), e),
        })?;
        let deadline = Instant::now() + GIT_TIMEOUT;
        loop {
            match child.try_wait().map_err(|e| io("waiting for", Path::new("git"), e))? {
                Some(status) => return Ok(status.success()),
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                None => {
                    let _ = child.kill();
                    let _ = child.wait();
                    let seconds = GIT_TIMEOUT.as_secs();
                    return Err(self.error(format!("git took more than {seconds} s and was ended")));
                }
            }
        }
    }
}

fn read_start(path: &Path) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_MESSAGE_BYTES as u64).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A file extension that no other call uses.
fn unique(purpose: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{purpose}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn hash(text: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(text).iter().take(8).fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

fn io(doing: &str, path: &Path, source: std::io::Error) -> TaskError {
    TaskError::Io { context: format!("{doing} {}", path.display()), source }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use patchwright_core::{RepoSource, TaskInstance};

    use super::prepare_repo;

    fn instance(repo: &str, base_commit: &str) -> TaskInstance {
        TaskInstance {
            instance_id: "id".to_owned(),
            repo: repo.to_owned(),
            base_commit: base_commit.to_owned(),
            ..TaskInstance::default()
        }
    }

    fn prepare(repo: &str, commit: &str, cache: &Path) -> Result<PathBuf, String> {
        match prepare_repo(&instance(repo, commit), cache) {
            Ok(RepoSource::Directory(path)) => Ok(path),
            Ok(_) => Err("no directory".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn files_and_directories_need_no_git() {
        let cache = tempfile::tempdir().unwrap();
        let files = [("a.py".to_owned(), "x = 1\n".to_owned())].into();
        let inline = TaskInstance { files, ..instance("generated/a", "") };
        let RepoSource::Files(files) = prepare_repo(&inline, cache.path()).unwrap() else {
            panic!("not the files");
        };
        assert_eq!(files["a.py"], "x = 1\n");
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().to_str().unwrap();
        assert_eq!(prepare(text, "", cache.path()).unwrap(), dir.path());
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_is_refused_before_git_runs() {
        let cache = tempfile::tempdir().unwrap();
        let check = |repo: &str, commit: &str, expected: &str| {
            let error = prepare(repo, commit, cache.path()).unwrap_err();
            assert!(error.starts_with("id: ") && error.contains(expected), "{error}");
        };
        check("/no/such/directory", "", "is not a directory here");
        check("ext::sh -c evil", "abc", "is not a directory here");
        check("a@b::x", "abc", "is not a directory here");
        check("-x@host:path", "abc", "is not a directory here");
        check("https://host.invalid/r.git", "", "base_commit is empty");
        check("https://host.invalid/r.git", "--upload-pack=x", "is not a commit");
    }

    fn git(dir: &Path, args: &[&str]) -> Option<String> {
        let output = Command::new("git")
            .args(["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"])
            .args(args)
            .current_dir(dir)
            .output()
            .ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    #[test]
    fn a_commit_is_checked_out_without_history() {
        let dirs = tempfile::tempdir().unwrap();
        let (repo, cache) = (dirs.path().join("repo"), dirs.path().join("cache"));
        std::fs::create_dir_all(repo.join("pkg")).unwrap();
        if git(&repo, &["init", "-q", "."]).is_none() {
            eprintln!("NOT CHECKED: there is no git on PATH");
            return;
        }
        std::fs::write(repo.join("pkg/a.py"), "x = 1\n").unwrap();
        std::fs::write(repo.join(".gitattributes"), "pkg export-ignore\n").unwrap();
        // A hook of the repository must not run.
        let hook = repo.join(".git/hooks/post-checkout");
        std::fs::write(&hook, format!("#!/bin/sh\ntouch {}/ran\n", dirs.path().display())).unwrap();
        git(&repo, &["add", "-A"]);
        git(&repo, &["commit", "-q", "-m", "first"]);
        let first = git(&repo, &["rev-parse", "HEAD"]).unwrap();
        std::fs::write(repo.join("pkg/a.py"), "x = 2\n").unwrap();
        git(&repo, &["commit", "-q", "-a", "-m", "second"]);
        git(&repo, &["tag", "v2"]);

        let local = repo.to_str().unwrap().to_owned();
        let url = format!("file://{local}");
        for repo in [&local, &url] {
            let tree = prepare(repo, &first, &cache).unwrap();
            assert_eq!(std::fs::read_to_string(tree.join("pkg/a.py")).unwrap(), "x = 1\n");
            assert!(!tree.join(".git").exists(), "no history");
            let second = prepare(repo, "v2", &cache).unwrap();
            assert_eq!(std::fs::read_to_string(second.join("pkg/a.py")).unwrap(), "x = 2\n");
            assert_eq!(prepare(repo, &first, &cache).unwrap(), tree);
            let error = prepare(repo, "0123456789012345678901234567890123456789", &cache);
            assert!(error.unwrap_err().contains("has no commit 0123"));
        }
        assert!(!dirs.path().join("ran").exists(), "a hook ran");
        let names: Vec<_> = std::fs::read_dir(cache.join("trees")).unwrap().collect();
        assert_eq!(names.len(), 4, "two commits of two addresses, nothing half done");
        // With the tree in the cache the repository is not needed again.
        std::fs::remove_dir_all(&repo).unwrap();
        assert!(prepare(&url, &first, &cache).is_ok());
        let gone = prepare(&format!("file://{local}-gone"), &first, &cache).unwrap_err();
        assert!(gone.contains("git fetch"), "{gone}");
    }
}
