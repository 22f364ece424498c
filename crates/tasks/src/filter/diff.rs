//! The lines of a unified diff, told apart by the counts of its hunks.

/// What happens to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is new.
    Added,
    /// It goes.
    Removed,
    /// It stays.
    Context,
}

/// A file in a diff.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FileDiff<'a> {
    /// Its name after the change, or before it where it goes.
    pub path: &'a str,
    /// It is not there before.
    pub new: bool,
    /// The lines of its hunks, without their first character.
    pub lines: Vec<(Change, &'a str)>,
}

impl FileDiff<'_> {
    /// Lines that are added or removed.
    pub fn num_changed(&self) -> usize {
        self.lines.iter().filter(|(change, _)| *change != Change::Context).count()
    }
}

/// The files of a diff, in its order. Text that is no diff has none.
pub(super) fn files(text: &str) -> Vec<FileDiff<'_>> {
    let mut files: Vec<FileDiff<'_>> = Vec::new();
    // Lines that the current hunk still has on each side.
    let (mut old, mut new) = (0_u64, 0_u64);
    let mut from_git = false;
    for line in text.lines() {
        if old > 0 || new > 0 {
            let (change, rest) = match line.as_bytes().first() {
                Some(b'+') => (Change::Added, &line[1..]),
                Some(b'-') => (Change::Removed, &line[1..]),
                Some(b' ') => (Change::Context, &line[1..]),
                Some(b'\\') => continue,
                // Some tools take the space from empty lines.
                None => (Change::Context, ""),
                Some(_) => {
                    (old, new) = (0, 0);
                    continue;
                }
            };
            old = old.saturating_sub(u64::from(change != Change::Added));
            new = new.saturating_sub(u64::from(change != Change::Removed));
            if let Some(file) = files.last_mut() {
                file.lines.push((change, rest));
            }
        } else if let Some(rest) = line.strip_prefix("diff --git ") {
            let path = rest.split_once(" b/").map_or("", |(_, path)| path);
            files.push(FileDiff { path, ..FileDiff::default() });
            from_git = true;
        } else if let Some(rest) = line.strip_prefix("--- ") {
            if !from_git {
                files.push(FileDiff::default());
            }
            from_git = false;
            if let Some(file) = files.last_mut() {
                file.new = rest.starts_with("/dev/null");
                if !file.new {
                    file.path = path_of(rest);
                }
            }
        } else if let Some(rest) = line.strip_prefix("+++ ") {
            if let Some(file) = files.last_mut()
                && !rest.starts_with("/dev/null")
            {
                file.path = path_of(rest);
            }
        } else if line.starts_with("@@ ") {
            (old, new) = hunk_sizes(line).unwrap_or_default();
        }
    }
    files
}

fn path_of(rest: &str) -> &str {
    let path = rest.split('\t').next().unwrap_or(rest).trim_end();
    path.strip_prefix("a/").or_else(|| path.strip_prefix("b/")).unwrap_or(path)
}

/// The sizes in `@@ -1,4 +1,6 @@`; one that is not stated is 1.
fn hunk_sizes(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split(' ').skip(1);
    let mut size = |sign: char| -> Option<u64> {
        let range = words.next()?.strip_prefix(sign)?;
        range.split_once(',').map_or(Some(1), |(_, size)| size.parse().ok())
    };
    Some((size('-')?, size('+')?))
}

#[cfg(test)]
mod tests {
    use super::{Change, files};

    #[test]
    fn lines_that_look_like_headers_are_lines() {
        let text = "diff --git a/x.sql b/x.sql\nindex 1..2 100644\n--- a/x.sql\n+++ b/x.sql\n\
            @@ -1,2 +1,2 @@\n--- a comment\n+++ b\n rest\n@@ -9 +9,0 @@ f\n-gone\n\
            diff --git a/new.py b/new.py\nnew file mode 100644\n--- /dev/null\n+++ b/new.py\n\
            @@ -0,0 +1 @@\n+x = 1\n\\ No newline at end of file\n";
        let files = files(text);
        assert_eq!(files.iter().map(|f| f.path).collect::<Vec<_>>(), ["x.sql", "new.py"]);
        assert_eq!((files[0].new, files[1].new), (false, true));
        assert_eq!(files[0].num_changed(), 3);
        assert_eq!(files[0].lines[0], (Change::Removed, "-- a comment"));
        assert_eq!(files[1].lines, [(Change::Added, "x = 1")]);
    }

    #[test]
    fn other_tools_and_other_text() {
        let files_of = |text| files(text).iter().map(|f| f.path.to_owned()).collect::<Vec<_>>();
        assert_eq!(files_of("--- a.py\t2020\n+++ a.py\t2021\n@@ -1 +1 @@\n-a\n+b\n"), ["a.py"]);
        assert_eq!(
            files_of(
                "diff --git a/i.png b/i.png\nBinary files differ\ndiff --git a/o b/n\nrename to n\n"
            ),
            ["i.png", "n"]
        );
        assert!(files_of("no diff").is_empty());
        assert!(files_of("@@ -1 +1 @@\n+lost\n").is_empty());
    }
}
