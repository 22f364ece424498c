//! Applying a parsed patch to files in memory, as `git apply` would.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, FileChange, FilePatch, Hunk, PatchError, split_lines};

/// Bound on the line comparisons of one patch: a patch of many hunks that nearly match everywhere
/// must not take hours.
const MAX_COMPARISONS: u64 = 200_000_000;

type Read<'a> = &'a mut dyn FnMut(&str) -> Option<Vec<u8>>;

/// The tree as far as it was looked at: each path's content before and now.
struct Tree<'a> {
    read: Read<'a>,
    files: BTreeMap<String, Entry>,
}

struct Entry {
    old: Option<Vec<u8>>,
    new: Option<Vec<u8>>,
    executable: Option<bool>,
    /// Some file of the patch has written `new`.
    written: bool,
}

impl Tree<'_> {
    fn entry(&mut self, path: &str) -> &mut Entry {
        if !self.files.contains_key(path) {
            let old = (self.read)(path);
            let entry = Entry { new: old.clone(), old, executable: None, written: false };
            self.files.insert(path.to_owned(), entry);
        }
        // Just inserted where it was missing.
        self.files.get_mut(path).expect("the entry is there")
    }
}

pub(super) fn apply(files: &[FilePatch], read: Read<'_>) -> Result<Vec<FileChange>, PatchError> {
    let mut tree = Tree { read, files: BTreeMap::new() };
    let mut comparisons = 0;
    // Names that the patch itself frees may be created again (two files that swap their names).
    let freed: BTreeSet<&str> = files
        .iter()
        .filter(|f| matches!(f.action, Action::Delete | Action::Rename))
        .filter_map(|f| f.old_path.as_deref())
        .collect();
    for file in files {
        apply_file(file, &mut tree, &freed, &mut comparisons)?;
    }
    let mut changes = Vec::new();
    for (path, entry) in tree.files {
        let mode_only = entry.written && entry.old == entry.new && entry.executable.is_some();
        if entry.old != entry.new || (mode_only && entry.new.is_some()) {
            let executable = entry.new.is_some() && entry.executable.unwrap_or(false);
            changes.push(FileChange { path, old: entry.old, new: entry.new, executable });
        }
    }
    Ok(changes)
}

fn apply_file(
    file: &FilePatch,
    tree: &mut Tree<'_>,
    freed: &BTreeSet<&str>,
    comparisons: &mut u64,
) -> Result<(), PatchError> {
    let path = file.path();
    let fail =
        |reason: &str| Err(PatchError::Apply { path: path.to_owned(), reason: reason.to_owned() });
    if file.binary {
        return fail("a binary change: its content is not in the patch");
    }
    let old = match (file.action, &file.old_path) {
        (Action::Create, _) | (_, None) => Vec::new(),
        // Git's patches do not depend on the order of their files: a rename reads the tree before.
        (Action::Rename | Action::Copy, Some(old)) => match &tree.entry(old).old {
            Some(bytes) => bytes.clone(),
            None => {
                return fail(&format!("{old} does not exist, so it cannot be renamed or copied"));
            }
        },
        (_, Some(old)) => match &tree.entry(old).new {
            Some(bytes) => bytes.clone(),
            None => return fail("the file does not exist"),
        },
    };
    let new = apply_hunks(file, &old, comparisons)?;

    let moved =
        matches!(file.action, Action::Rename | Action::Copy) && file.old_path != file.new_path;
    if file.action == Action::Create || moved {
        let entry = tree.entry(path);
        if entry.new.is_some() && (entry.written || !freed.contains(path)) {
            return fail("the file to create already exists");
        }
    }
    if file.action == Action::Delete && !new.is_empty() {
        return fail("the patch deletes the file but leaves lines in it");
    }
    if let (Action::Delete | Action::Rename, Some(old)) = (file.action, &file.old_path)
        && !tree.entry(old).written
    {
        tree.entry(old).new = None;
    }
    let entry = tree.entry(path);
    entry.new = (file.action != Action::Delete).then_some(new);
    entry.written = file.action != Action::Delete;
    entry.executable = file.executable.or(entry.executable);
    Ok(())
}

/// The file's lines while hunks are applied.
struct Image<'a> {
    lines: Vec<&'a [u8]>,
    /// Lines that an earlier hunk has put there; they are not matched again.
    patched: Vec<bool>,
}

fn apply_hunks(file: &FilePatch, old: &[u8], comparisons: &mut u64) -> Result<Vec<u8>, PatchError> {
    let lines = split_lines(old);
    let mut image = Image { patched: vec![false; lines.len()], lines };
    for (index, hunk) in file.hunks.iter().enumerate() {
        let fail = |reason: String| PatchError::Apply {
            path: file.path().to_owned(),
            reason: format!("hunk {} (line {} of the patch) {reason}", index + 1, hunk.line),
        };
        let found = find(&image, hunk, comparisons)
            .map_err(|()| fail("takes too many comparisons to place".to_owned()))?;
        let Some(at) = found else {
            return Err(fail(format!(
                "does not apply: its {} old lines are not found around line {}",
                hunk.old_lines.len(),
                hunk.old_start
            )));
        };
        // Moving the lines behind the hunk is work too, though cheaper.
        *comparisons += image.lines.len() as u64 / 8;
        let range = at..at + hunk.old_lines.len();
        image.lines.splice(range.clone(), hunk.new_lines.iter().map(Vec::as_slice));
        image.patched.splice(range, hunk.new_lines.iter().map(|_| true));
    }
    // A line without a newline is only right at the end.
    let inner = image.lines.len().saturating_sub(1);
    if let Some(at) = image.lines[..inner].iter().position(|l| !l.ends_with(b"\n")) {
        return Err(PatchError::Apply {
            path: file.path().to_owned(),
            reason: format!("line {} would lose its newline in the middle of the file", at + 1),
        });
    }
    Ok(image.lines.concat())
}

/// Where the hunk fits: at its own line, else at the nearest one, looking down before up, as git.
/// `Err` when the bound on comparisons is reached.
fn find(image: &Image<'_>, hunk: &Hunk, comparisons: &mut u64) -> Result<Option<usize>, ()> {
    // A hunk that starts the file, or has no context behind it, says where the file starts or ends.
    let at_start = hunk.old_start <= 1;
    let at_end = hunk.num_trailing_context == 0;
    let Some(last) = image.lines.len().checked_sub(hunk.old_lines.len()) else {
        return Ok(None);
    };
    let mut fits = |at: usize| -> Result<bool, ()> {
        if (at_start && at != 0) || (at_end && at != last) {
            return Ok(false);
        }
        for (offset, line) in hunk.old_lines.iter().enumerate() {
            *comparisons += 1;
            if *comparisons > MAX_COMPARISONS {
                return Err(());
            }
            if image.patched[at + offset] || image.lines[at + offset] != line.as_slice() {
                return Ok(false);
            }
        }
        Ok(true)
    };
    if at_start || at_end {
        let at = if at_start { 0 } else { last };
        return Ok(fits(at)?.then_some(at));
    }
    let start = hunk.new_start.saturating_sub(1).min(last);
    for distance in 0..=last {
        let down = start + distance;
        if down <= last && fits(down)? {
            return Ok(Some(down));
        }
        if distance > 0 && distance <= start && fits(start - distance)? {
            return Ok(Some(start - distance));
        }
    }
    Ok(None)
}
