//! From changes to the text of a diff.

use std::fmt::Write as _;

use sha1::{Digest, Sha1};
use similar::{Algorithm, DiffOp, capture_diff_slices, group_diff_ops};

use super::{FileChange, path::quote, split_lines};

/// Lines of context around a change, git's default.
const NUM_CONTEXT_LINES: usize = 3;

/// Writes changes as a git-style unified diff with 3 lines of context, in the order given. The
/// same changes give the same text.
///
/// The `index` line holds git's abbreviated blob ids and the mode of a file that stays, so the
/// executable bit of a changed file survives parsing. A change whose `old` and `new` are the same
/// is a change of mode. Content that is not UTF-8 becomes `Binary files … differ`, which cannot be
/// applied.
pub fn render(changes: &[FileChange]) -> String {
    let mut out = String::new();
    for change in changes {
        render_file(&mut out, change);
    }
    out
}

fn render_file(out: &mut String, change: &FileChange) {
    let (old, new) = (change.old.as_deref(), change.new.as_deref());
    if old.is_none() && new.is_none() {
        return;
    }
    let a = quote(&format!("a/{}", change.path));
    let b = quote(&format!("b/{}", change.path));
    let mode = if change.executable { "100755" } else { "100644" };
    let _ = writeln!(out, "diff --git {a} {b}");
    match (old, new) {
        (None, _) => _ = writeln!(out, "new file mode {mode}"),
        (_, None) => _ = writeln!(out, "deleted file mode 100644"),
        (Some(old), Some(new)) if old == new => {
            let before = if change.executable { "100644" } else { "100755" };
            let _ = writeln!(out, "old mode {before}\nnew mode {mode}");
            return;
        }
        _ => {}
    }
    let _ = write!(out, "index {}..{}", blob_id(old), blob_id(new));
    let _ = if old.is_some() && new.is_some() { writeln!(out, " {mode}") } else { writeln!(out) };

    let a = if old.is_none() { "/dev/null".to_owned() } else { a };
    let b = if new.is_none() { "/dev/null".to_owned() } else { b };
    let texts = (std::str::from_utf8(old.unwrap_or(b"")), std::str::from_utf8(new.unwrap_or(b"")));
    let (Ok(old), Ok(new)) = texts else {
        let _ = writeln!(out, "Binary files {a} and {b} differ");
        return;
    };
    if old.is_empty() && new.is_empty() {
        return;
    }
    // A name with a space ends in a tab, so that readers do not take the rest for a timestamp.
    let end = |name: &str| if name.contains(' ') { "\t" } else { "" };
    let _ = writeln!(out, "--- {a}{}\n+++ {b}{}", end(&a), end(&b));
    render_hunks(out, old, new);
}

fn render_hunks(out: &mut String, old: &str, new: &str) {
    let old = split_lines(old.as_bytes());
    let new = split_lines(new.as_bytes());
    // Myers in `similar` bounds its search as git does: no input takes quadratic time.
    let ops = capture_diff_slices(Algorithm::Myers, &old, &new);
    for group in group_diff_ops(ops, NUM_CONTEXT_LINES) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let old_range = range(first.old_range().start, last.old_range().end);
        let new_range = range(first.new_range().start, last.new_range().end);
        let _ = writeln!(out, "@@ -{old_range} +{new_range} @@");
        for op in &group {
            if let DiffOp::Equal { .. } = op {
                push_lines(out, ' ', &old[op.old_range()]);
            } else {
                push_lines(out, '-', &old[op.old_range()]);
                push_lines(out, '+', &new[op.new_range()]);
            }
        }
    }
}

fn push_lines(out: &mut String, sign: char, lines: &[&[u8]]) {
    for line in lines {
        out.push(sign);
        // The lines are cut from a `str` at newlines, so nothing is lost here.
        out.push_str(&String::from_utf8_lossy(line));
        if !line.ends_with(b"\n") {
            out.push_str("\n\\ No newline at end of file\n");
        }
    }
}

/// `start,count` of a half-open range from 0, as hunk headers have it.
fn range(start: usize, end: usize) -> String {
    match end - start {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        count => format!("{},{count}", start + 1),
    }
}

/// Git's id of the blob, abbreviated to 7 digits; zeros where there is no file.
fn blob_id(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "0000000".to_owned() };
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    let digest = hash.finalize();
    digest.iter().take(4).fold(String::new(), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })[..7]
        .to_owned()
}
