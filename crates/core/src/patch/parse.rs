//! From the text of a diff to its parts.

use super::{Action, FilePatch, Hunk, MAX_FILES, MAX_HUNKS, MAX_PATCH_BYTES, PatchError, path};

/// A file's head while it is being read.
#[derive(Default)]
struct Head {
    /// The name after both `a/` and `b/` in `diff --git`, where it is the same.
    git_name: Option<String>,
    /// A `diff --git` line was seen: names carry `a/` and `b/`.
    is_git: bool,
    /// What the head's words say, if anything.
    action: Option<Action>,
    rename_from: Option<String>,
    rename_to: Option<String>,
    executable: Option<bool>,
    binary: bool,
    /// Names of `---` and `+++`; the inner `None` is `/dev/null`.
    minus_plus: Option<(Option<String>, Option<String>)>,
}

struct Parser<'a> {
    lines: Vec<&'a str>,
    /// Index of the next line.
    at: usize,
    num_hunks: usize,
    files: Vec<FilePatch>,
}

pub(super) fn parse(text: &str) -> Result<Vec<FilePatch>, PatchError> {
    if text.len() > MAX_PATCH_BYTES {
        return Err(PatchError::Parse {
            line: 1,
            reason: format!("{} bytes; at most {MAX_PATCH_BYTES} are read", text.len()),
        });
    }
    let lines = text.split_inclusive('\n').collect();
    let mut parser = Parser { lines, at: 0, num_hunks: 0, files: Vec::new() };
    parser.run()?;
    if parser.files.is_empty() && !text.trim().is_empty() {
        return Err(PatchError::Parse {
            line: 1,
            reason: "no diff found: expected `diff --git …`, or `--- …` and `+++ …`".to_owned(),
        });
    }
    Ok(parser.files)
}

impl<'a> Parser<'a> {
    fn run(&mut self) -> Result<(), PatchError> {
        while let Some(line) = self.head_line(self.at) {
            if let Some(names) = line.strip_prefix("diff --git ") {
                let start = self.at;
                self.at += 1;
                let mut head = Head { is_git: true, git_name: same_name(names), ..Head::default() };
                self.read_git_head(&mut head)?;
                self.finish_file(head, start)?;
            } else if self.at_file_names() {
                let start = self.at;
                let mut head = Head::default();
                self.read_file_names(&mut head)?;
                self.finish_file(head, start)?;
            } else if line.starts_with("@@ -") {
                return Err(parse_error(
                    self.at,
                    "a hunk without a file: `---` and `+++` are missing",
                ));
            } else {
                self.at += 1;
            }
        }
        Ok(())
    }

    /// The lines between `diff --git` and the first hunk.
    fn read_git_head(&mut self, head: &mut Head) -> Result<(), PatchError> {
        while let Some(line) = self.head_line(self.at) {
            if self.at_file_names() {
                return self.read_file_names(head);
            }
            if let Some(mode) = line.strip_prefix("new file mode ") {
                head.action = Some(Action::Create);
                head.executable = Some(self.mode(mode)?);
            } else if let Some(mode) = line.strip_prefix("deleted file mode ") {
                head.action = Some(Action::Delete);
                self.mode(mode)?;
            } else if let Some(mode) = line.strip_prefix("new mode ") {
                head.executable = Some(self.mode(mode)?);
            } else if let Some(name) =
                line.strip_prefix("rename from ").or_else(|| line.strip_prefix("copy from "))
            {
                let copied = line.starts_with("copy");
                head.action = Some(if copied { Action::Copy } else { Action::Rename });
                head.rename_from = Some(self.name(name)?);
            } else if let Some(name) =
                line.strip_prefix("rename to ").or_else(|| line.strip_prefix("copy to "))
            {
                head.rename_to = Some(self.name(name)?);
            } else if let Some(index) = line.strip_prefix("index ") {
                // `index old..new mode`: the mode of a file that stays as it is.
                if let Some((_, mode)) = index.split_once(' ') {
                    let executable = self.mode(mode)?;
                    head.executable.get_or_insert(executable);
                }
            } else if line.starts_with("Binary files ") || line.starts_with("GIT binary patch") {
                head.binary = true;
            } else if line.starts_with("old mode ")
                || line.starts_with("similarity index ")
                || line.starts_with("dissimilarity index ")
            {
            } else {
                return Ok(());
            }
            self.at += 1;
        }
        Ok(())
    }

    /// A `---` line with a `+++` line under it. A removed line of a hunk never gets here: hunks are
    /// read by their counts.
    fn at_file_names(&self) -> bool {
        let is = |at: usize, sign: &str| self.lines.get(at).is_some_and(|l| l.starts_with(sign));
        is(self.at, "--- ") && is(self.at + 1, "+++ ")
    }

    fn read_file_names(&mut self, head: &mut Head) -> Result<(), PatchError> {
        let mut names = [None, None];
        for name in &mut names {
            let text = self.head_line(self.at).unwrap_or_default();
            *name = self.file_name(&text[4..])?;
            self.at += 1;
        }
        let [mut minus, mut plus] = names;
        let has =
            |name: &Option<String>, prefix| name.as_ref().is_none_or(|n| n.starts_with(prefix));
        if head.is_git || (has(&minus, "a/") && has(&plus, "b/")) {
            for name in [&mut minus, &mut plus].into_iter().flatten() {
                if let Some(bare) = name.get(2..)
                    && matches!(&name[..2], "a/" | "b/" | "i/" | "w/" | "c/" | "o/")
                {
                    *name = bare.to_owned();
                }
            }
        }
        head.minus_plus = Some((minus, plus));
        Ok(())
    }

    fn finish_file(&mut self, head: Head, start: usize) -> Result<(), PatchError> {
        let hunks = self.read_hunks()?;
        let (minus, plus) = match head.minus_plus {
            Some(names) => names,
            None => (head.git_name.clone(), head.git_name),
        };
        let action = head.action.unwrap_or(match (&minus, &plus) {
            (None, Some(_)) => Action::Create,
            (Some(_), None) => Action::Delete,
            _ => Action::Modify,
        });
        let (old_path, new_path) = match action {
            Action::Rename | Action::Copy => (head.rename_from, head.rename_to),
            Action::Create => (None, plus),
            Action::Delete => (minus, None),
            // Plain diffs may compare `x.orig` with `x`: the new name is the file.
            Action::Modify => (plus.clone(), plus),
        };
        let file = FilePatch {
            old_path,
            new_path,
            action,
            executable: head.executable,
            binary: head.binary,
            hunks,
        };
        let needs_old = file.action != Action::Create && file.old_path.is_none();
        let needs_new = file.action != Action::Delete && file.new_path.is_none();
        if needs_old || needs_new {
            return Err(parse_error(start, "the file's name cannot be read from this head"));
        }
        for path in file.old_path.iter().chain(&file.new_path) {
            if let Some(refusal) = path::refusal(path) {
                return Err(parse_error(start, &format!("{path:?}: {refusal}")));
            }
        }
        if self.files.len() == MAX_FILES {
            return Err(parse_error(start, &format!("more than {MAX_FILES} files")));
        }
        self.files.push(file);
        Ok(())
    }

    fn read_hunks(&mut self) -> Result<Vec<Hunk>, PatchError> {
        let mut hunks = Vec::new();
        while let Some(line) = self.head_line(self.at) {
            if !line.starts_with("@@ -") {
                break;
            }
            self.num_hunks += 1;
            if self.num_hunks > MAX_HUNKS {
                return Err(parse_error(self.at, &format!("more than {MAX_HUNKS} hunks")));
            }
            let Some(counts) = hunk_counts(line) else {
                return Err(parse_error(self.at, "expected `@@ -start,count +start,count @@`"));
            };
            hunks.push(self.read_hunk(counts)?);
            // Lines past the counts would be lost without a word. (`-- ` opens a mail's signature.)
            if let Some(line) = self.head_line(self.at)
                && (line.starts_with('+') || (line.starts_with('-') && !line.starts_with("--")))
            {
                return Err(parse_error(self.at, "the hunk has more lines than its header says"));
            }
        }
        Ok(hunks)
    }

    fn read_hunk(
        &mut self,
        [old_start, old, new_start, new]: [usize; 4],
    ) -> Result<Hunk, PatchError> {
        let line = self.at + 1;
        self.at += 1;
        let mut hunk = Hunk {
            line,
            old_start,
            new_start,
            old_lines: Vec::new(),
            new_lines: Vec::new(),
            num_trailing_context: 0,
        };
        while hunk.old_lines.len() < old || hunk.new_lines.len() < new {
            let Some(text) = self.lines.get(self.at) else {
                return Err(parse_error(self.at, "the patch ends inside a hunk"));
            };
            // Editors strip the space of an empty context line.
            let (sign, body) = if *text == "\n" {
                (b' ', "\n")
            } else {
                (text.as_bytes()[0], &text[char_len(text)..])
            };
            if !matches!(sign, b' ' | b'-' | b'+') {
                return Err(parse_error(
                    self.at,
                    "expected ` `, `-` or `+` at the start of a hunk's line",
                ));
            }
            self.at += 1;
            let no_newline = self.lines.get(self.at).is_some_and(|l| l.starts_with('\\'));
            if no_newline {
                self.at += 1;
            }
            let body = if no_newline {
                body.strip_suffix('\n').unwrap_or(body).as_bytes().to_vec()
            } else if body.ends_with('\n') {
                body.as_bytes().to_vec()
            } else {
                // The patch itself lost its last newline; the file's line has one.
                [body.as_bytes(), b"\n"].concat()
            };
            hunk.num_trailing_context =
                if sign == b' ' { hunk.num_trailing_context + 1 } else { 0 };
            if sign != b'+' {
                hunk.old_lines.push(body.clone());
            }
            if sign != b'-' {
                hunk.new_lines.push(body);
            }
        }
        if hunk.old_lines.len() != old || hunk.new_lines.len() != new {
            return Err(parse_error(
                line - 1,
                &format!(
                    "the hunk's header says {old} old and {new} new lines, its body has {} and {}",
                    hunk.old_lines.len(),
                    hunk.new_lines.len()
                ),
            ));
        }
        Ok(hunk)
    }

    /// A line of a head, without its line ending.
    fn head_line(&self, at: usize) -> Option<&'a str> {
        self.lines.get(at).map(|l| l.trim_end_matches(['\n', '\r']))
    }

    /// The name in a `---` or `+++` line; `None` for `/dev/null`.
    fn file_name(&self, text: &str) -> Result<Option<String>, PatchError> {
        let name = if text.starts_with('"') {
            self.name(text)?
        } else {
            // Behind a tab stands a timestamp, or nothing.
            text.split('\t').next().unwrap_or_default().trim_end().to_owned()
        };
        Ok((name != "/dev/null").then_some(name))
    }

    fn name(&self, text: &str) -> Result<String, PatchError> {
        if !text.starts_with('"') {
            return Ok(text.to_owned());
        }
        match path::unquote(text) {
            Some((name, _)) => Ok(name),
            None => Err(parse_error(self.at, "the quoted file name cannot be read")),
        }
    }

    /// Whether a mode is that of an executable file.
    fn mode(&self, text: &str) -> Result<bool, PatchError> {
        match text.trim() {
            "100644" | "100664" => Ok(false),
            "100755" => Ok(true),
            mode => Err(parse_error(
                self.at,
                &format!("mode {mode:?}: only regular files (100644, 100755) are supported"),
            )),
        }
    }
}

fn parse_error(at: usize, reason: &str) -> PatchError {
    PatchError::Parse { line: at + 1, reason: reason.to_owned() }
}

fn char_len(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

/// `a/NAME b/NAME` where both names are the same: the only case where the line alone decides.
fn same_name(names: &str) -> Option<String> {
    let (a, b) = if names.starts_with('"') {
        let (a, rest) = path::unquote(names)?;
        let rest = rest.strip_prefix(' ')?;
        let b = if rest.starts_with('"') { path::unquote(rest)?.0 } else { rest.to_owned() };
        (a, b)
    } else {
        let middle = names.len() / 2;
        if names.as_bytes().get(middle) != Some(&b' ') {
            return None;
        }
        (names[..middle].to_owned(), names[middle + 1..].to_owned())
    };
    // The prefixes are one letter and a slash, whatever the letter (`diff.mnemonicPrefix`).
    let bare = |name: &str| match name.as_bytes() {
        [letter, b'/', ..] if letter.is_ascii_lowercase() => name.get(2..).map(str::to_owned),
        _ => None,
    };
    let (a, b) = (bare(&a)?, bare(&b)?);
    (a == b).then_some(a)
}

/// `[old_start, old_count, new_start, new_count]` of a hunk's header.
fn hunk_counts(line: &str) -> Option<[usize; 4]> {
    let (ranges, _) = line.strip_prefix("@@ -")?.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let pair = |text: &str| -> Option<(usize, usize)> {
        // `parse` takes a sign; a hunk's header has none.
        let number = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse().ok())?;
        match text.split_once(',') {
            Some((start, count)) => Some((number(start)?, number(count)?)),
            None => Some((number(text)?, 1)),
        }
    };
    let ((old_start, old), (new_start, new)) = (pair(old)?, pair(new)?);
    Some([old_start, old, new_start, new])
}
