//! The agent's git repository: the base commit, and nothing else.
//!
//! A repository's history may hold the fix: in later commits, tags, remotes' branches, the reflog,
//! stashes, and objects that nothing names any more. So it is replaced by a new one whose only
//! commit is the tree that the agent starts from, with fixed names and dates: the same tree gives
//! the same commit. `git diff`, `git log` and `git stash` work for the agent.
//!
//! Nothing of ours reads it: an agent's diff is taken by the host from its own copy
//! ([`Sandbox::diff`]), so what the agent does to its git has no say.

use std::time::Duration;

use patchwright_core::{ExecRequest, ExecStatus, Sandbox, SandboxError};

/// Long enough for a repository of many thousand files.
const TIMEOUT: Duration = Duration::from_mins(5);

/// Any `.git` below the working directory goes, whether or not git is there to make a new one;
/// no configuration of the root or the home is read, no template, hook or filter runs. A small
/// image may have no `find`.
const SCRIPT: &str = "
if command -v find >/dev/null 2>&1; then
    find . -name .git -prune -exec rm -rf -- {} + || exit 1
else
    shopt -s globstar nullglob dotglob || exit 1
    set -- **/.git
    test $# = 0 || rm -rf -- \"$@\" || exit 1
fi
command -v git >/dev/null 2>&1 || exit 3
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_SYSTEM=/dev/null GIT_CONFIG_GLOBAL=/dev/null
export GIT_AUTHOR_NAME=base GIT_AUTHOR_EMAIL=base@localhost GIT_AUTHOR_DATE='946684800 +0000'
export GIT_COMMITTER_NAME=base GIT_COMMITTER_EMAIL=base@localhost
export GIT_COMMITTER_DATE='946684800 +0000' GIT_OPTIONAL_LOCKS=0
set -e
git init -q --template= .
git symbolic-ref HEAD refs/heads/main
quiet='-c core.logAllRefUpdates=false -c core.autocrlf=false -c core.safecrlf=false -c gc.auto=0'
quiet=\"$quiet -c core.hooksPath=/dev/null -c core.attributesFile=/dev/null -c core.fsmonitor=false\"
git $quiet add -A
commit=$(git commit-tree -m base $(git write-tree))
git $quiet update-ref refs/heads/main $commit
git $quiet repack -a -d -q
git config user.name agent
git config user.email agent@localhost
";

/// Replaces the repository's history at `workdir` by the base commit, in a sandbox in which nothing
/// has run yet. Whether there is a git now: `false` where the sandbox has none.
///
/// # Errors
/// When the sandbox failed, or history could not be removed.
pub fn base_commit_only(sandbox: &mut dyn Sandbox, workdir: &str) -> Result<bool, SandboxError> {
    let output = sandbox.exec(&ExecRequest::shell(SCRIPT, workdir, TIMEOUT))?;
    match output.status {
        ExecStatus::Exited(0) => Ok(true),
        ExecStatus::Exited(3) => Ok(false),
        status => Err(SandboxError::Died(format!(
            "the history of {workdir} could not be replaced ({status:?}): {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        ))),
    }
}
