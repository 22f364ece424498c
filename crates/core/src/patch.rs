//! Unified diffs: making, parsing and applying them, in memory.
//!
//! The format is git's (`diff --git a/… b/…`, `new file mode`, `/dev/null`), as SWE-bench rows
//! have it; plain unified diffs (`---`, `+++`, `@@`) are read too. Applying follows `git apply`:
//! context lines must match exactly, a hunk may have moved, and there is no fuzz.
//!
//! ```
//! use patchwright_core::patch::{FileChange, Patch, render};
//! let change = FileChange {
//!     path: "a.py".into(), old: Some(b"x = 1\n".into()), new: Some(b"x = 2\n".into()),
//!     executable: false,
//! };
//! let text = render(std::slice::from_ref(&change));
//! let patch = Patch::parse(&text)?;
//! assert_eq!(patch.apply(&mut |_| Some(b"x = 1\n".to_vec()))?, [change]);
//! # Ok::<(), patchwright_core::PatchError>(())
//! ```

mod apply;
mod parse;
mod path;
mod render;
#[cfg(test)]
mod tests;

pub use render::render;

/// Longest patch that is read, in bytes.
pub const MAX_PATCH_BYTES: usize = 64 << 20;
/// Most hunks in one patch.
pub const MAX_HUNKS: usize = 100_000;
/// Most files in one patch.
pub const MAX_FILES: usize = 50_000;

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
pub struct Patch {
    files: Vec<FilePatch>,
}

/// What a patch does to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FilePatch {
    /// Name before; `None` for a new file.
    old_path: Option<String>,
    /// Name after; `None` for a deleted file.
    new_path: Option<String>,
    action: Action,
    /// The mode after, where the patch states one.
    executable: Option<bool>,
    /// The content is not in the patch (`Binary files … differ`).
    binary: bool,
    hunks: Vec<Hunk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Modify,
    Create,
    Delete,
    Rename,
    Copy,
}

/// A run of lines to find and what replaces them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hunk {
    /// Line of the patch that holds the header, from 1.
    line: usize,
    /// Line of the old file that the hunk starts at, from 1; 0 for an empty old side.
    old_start: usize,
    /// The same in the new file: where the search starts, since earlier hunks are applied by then.
    new_start: usize,
    /// Context and removed lines, each with its newline if it has one.
    old_lines: Vec<Vec<u8>>,
    /// Context and added lines.
    new_lines: Vec<Vec<u8>>,
    /// Number of context lines at the end; without any, the hunk must match at the end of the file.
    num_trailing_context: usize,
}

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

impl Patch {
    /// Reads a git or plain unified diff. Text around the diffs (a mail's head, `index` lines) is
    /// skipped as git does; an empty or blank text is the empty patch.
    ///
    /// # Errors
    /// [`PatchError::Parse`] for text without a diff, a hunk that is cut off, a path that leads
    /// out of the repository or into `.git`, or a patch past [`MAX_PATCH_BYTES`],
    /// [`MAX_FILES`] or [`MAX_HUNKS`].
    pub fn parse(text: &str) -> Result<Self, PatchError> {
        Ok(Self { files: parse::parse(text)? })
    }

    /// The touched paths in the order of the patch: the new name, or the old one of a deleted file.
    pub fn paths(&self) -> Vec<&str> {
        self.files.iter().map(FilePatch::path).collect()
    }

    /// Whether the patch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Applies the patch to the tree that `read` shows (`None`: there is no such file), all of it
    /// or nothing. The result has one change for each file that differs, sorted by path; a rename
    /// is a deletion and a creation. `executable` is what the patch states, else false.
    ///
    /// # Errors
    /// [`PatchError::Apply`] when a hunk's lines are not found, a file to create exists, a file to
    /// change or delete does not, a deletion leaves lines, or the content is not in the patch.
    pub fn apply(
        &self,
        read: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
    ) -> Result<Vec<FileChange>, PatchError> {
        apply::apply(&self.files, read)
    }
}

impl FilePatch {
    fn path(&self) -> &str {
        self.new_path.as_deref().or(self.old_path.as_deref()).unwrap_or_default()
    }
}

/// Splits after each `\n`, and nowhere else; the last line may lack it.
fn split_lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|b| *b == b'\n').collect()
}
