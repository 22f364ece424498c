//! Unified diffs: making, parsing and applying them, in memory.
//!
//! The format is git's (`diff --git a/… b/…`, `new file mode`, `/dev/null`), as SWE-bench rows
//! have it. Applying follows `git apply`: context lines must match exactly, a hunk may have moved.

/// One file's change between two trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// Path relative to the repository's root, `/`-separated.
    pub path: String,
    /// Bytes before; `None` for a new file.
    pub old: Option<Vec<u8>>,
    /// Bytes after; `None` for a deleted file.
    pub new: Option<Vec<u8>>,
    /// Whether the file after is executable.
    pub executable: bool,
}

/// A parsed unified diff over several files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patch {}

/// A diff that cannot be read or applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The text is not a unified diff.
    #[error("line {line} of the patch: {reason}")]
    Parse {
        /// Line number from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A hunk does not fit.
    #[error("{path}: {reason}")]
    Apply {
        /// The file.
        path: String,
        /// Which hunk and why.
        reason: String,
    },
}
