//! The problem statement of a release pair: what its changelog says about the fixed release, and
//! what goes wrong without it. Never the fix, and never the name or the source of a test.

use super::trees::Tree;

/// Longest changelog entry, in characters.
const MAX_ENTRY_CHARS: usize = 3_000;
/// Most failures that are shown, and lines of each.
const MAX_FAILURES: usize = 3;
const MAX_FAILURE_LINES: usize = 6;

/// Writes the statement. `failures` are messages of the failing tests, in order.
pub(super) fn write(
    package: &str,
    buggy: &str,
    entry: Option<&str>,
    summary: &str,
    failures: &[String],
) -> String {
    let mut text = format!("{package} {buggy} does not behave as it should.\n");
    if !summary.is_empty() {
        text.push_str(&format_args!("\n{package}: {summary}\n").to_string());
    }
    match entry {
        Some(entry) => {
            text.push_str("\nWhat the changelog says of the release that puts it right:\n\n");
            for line in entry.lines() {
                text.push_str(&format_args!("> {line}").to_string());
                text.truncate(text.trim_end().len());
                text.push('\n');
            }
        }
        None => text.push_str("\nThe release has no entry in the package's changelog.\n"),
    }
    let mut shown: Vec<String> = Vec::new();
    for failure in failures {
        let lines: Vec<&str> = failure
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .take(MAX_FAILURE_LINES)
            .collect();
        let failure = lines.join("\n");
        if !failure.is_empty() && !shown.contains(&failure) {
            shown.push(failure);
        }
        if shown.len() == MAX_FAILURES {
            break;
        }
    }
    if !shown.is_empty() {
        text.push_str("\nChecks of the right behaviour fail now, such as with:\n");
        for failure in shown {
            text.push_str(&format_args!("\n```\n{failure}\n```\n").to_string());
        }
    }
    text
}

/// The entry of a version in a release's changelog, without its heading.
pub(super) fn changelog_entry(tree: &Tree, version: &str) -> Option<String> {
    let mut names: Vec<&String> = tree.keys().filter(|path| is_changelog(path)).collect();
    // The root's before the documentation's.
    names.sort_by_key(|path| (path.matches('/').count(), path.len()));
    names.into_iter().find_map(|path| {
        let text = String::from_utf8_lossy(tree.get(path)?);
        entry(&text, version)
    })
}

fn is_changelog(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let name = parts.next().unwrap_or_default().to_lowercase();
    let stem = name.split('.').next().unwrap_or_default();
    let named = ["change", "history", "news", "release", "whatsnew"];
    let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind);
    named.iter().any(|start| stem.starts_with(start))
        && matches!(kind, "" | "md" | "rst" | "txt")
        && path.matches('/').count() <= 2
}

fn entry(text: &str, version: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let start = (0..lines.len()).find(|at| {
        heading_version(&lines, *at).is_some_and(|found| same_version(found, version))
    })?;
    let end = (start + 1..lines.len())
        .find(|at| heading_version(&lines, *at).is_some())
        .unwrap_or(lines.len());
    let is_rule = |line: &str| {
        let line = line.trim();
        line.len() > 2 && line.chars().all(|c| "=-~^*#_".contains(c))
    };
    let mut body: Vec<&str> = lines[start + 1..end].to_vec();
    while body.first().is_some_and(|line| line.trim().is_empty() || is_rule(line)) {
        body.remove(0);
    }
    while body.last().is_some_and(|line| {
        line.trim().is_empty() || is_rule(line) || line.trim_start().starts_with(".. _")
    }) {
        body.pop();
    }
    let text: String = body.join("\n").chars().take(MAX_ENTRY_CHARS).collect();
    (!text.trim().is_empty()).then_some(text)
}

/// The version that a line is the heading of: a short line that starts with one (behind marks,
/// `Version`, `Release`, the package's name), and is marked or underlined as a heading.
fn heading_version<'a>(lines: &[&'a str], at: usize) -> Option<&'a str> {
    let line = lines[at];
    if line.len() > 90 || line.starts_with([' ', '\t']) {
        return None;
    }
    let marks = line.starts_with('#') || line.starts_with('=') || line.starts_with("**");
    let underlined = lines.get(at + 1).is_some_and(|next| {
        let next = next.trim();
        next.len() > 2 && next.chars().all(|c| "=-~^*#".contains(c))
    });
    let mut words = line
        .trim_start_matches(['#', '=', '*', ' ', '-'])
        .split([' ', '\t', '(', ')', ',', ':', '[', ']', '*'])
        .filter(|word| !word.is_empty());
    let (position, word) = words.by_ref().take(4).enumerate().find(|(_, word)| is_version(word))?;
    // Some changelogs have plain lines: `1.2.3 (2024-01-01)`, `v1.2`, `Release 0.5.1 (Jul 15)`.
    let dated = position <= 1 && !line.starts_with(['-', '*']) && line.contains(['(', '/', '–'])
        || line.trim() == word;
    (marks || underlined || dated).then_some(word)
}

fn is_version(word: &str) -> bool {
    let word = word.trim_start_matches(['v', 'V']);
    word.starts_with(|c: char| c.is_ascii_digit())
        && word.contains('.')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
        // A date is none.
        && !(word.len() == 10 && word.starts_with("20") && word.matches('.').count() == 2)
}

/// `1.2` is `1.2.0`, and `v1.2` as well.
fn same_version(a: &str, b: &str) -> bool {
    let plain = |v: &str| {
        let v = v.trim_start_matches(['v', 'V']).to_lowercase();
        let mut v = v.as_str();
        while let Some(shorter) = v.strip_suffix(".0") {
            v = shorter;
        }
        v.to_owned()
    };
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::{changelog_entry, entry, write};

    #[test]
    fn entries_end_where_the_next_version_starts() {
        let markdown = "# Changelog\n\n## [1.3.0] - 2024-05-01\n\n* new\n\n## 1.2.1\n\nFixed x\n\
                        for 1.0 users.\n\n## 1.2.0\n\nold\n";
        assert_eq!(entry(markdown, "1.2.1").as_deref(), Some("Fixed x\nfor 1.0 users."));
        assert_eq!(entry(markdown, "1.3").as_deref(), Some("* new"));
        assert_eq!(entry(markdown, "9.9"), None);
        let rst = "Version 3.1.5\n-------------\n\nReleased 2024-12-21\n\n-   Fix a. :issue:`1`\n\n\n\
                   .. _x:\n\nVersion 3.1.4\n-------------\n";
        assert_eq!(
            entry(rst, "3.1.5").as_deref(),
            Some("Released 2024-12-21\n\n-   Fix a. :issue:`1`")
        );
        let plain = "Release 0.5.1 (Jul 15, 2024)\n----------------------------\n\nBug Fixes\n\n\
                     * One\n\nRelease 0.5.0 (Apr 13, 2024)\n-----\n";
        assert_eq!(entry(plain, "0.5.1").as_deref(), Some("Bug Fixes\n\n* One"));
        let bare = "= 4.11.2 (20230131)\n\n* Fixed test\n\n= 4.11.1 (20220408)\n\nx\n";
        assert_eq!(entry(bare, "4.11.2").as_deref(), Some("* Fixed test"));
    }

    #[test]
    fn the_roots_changelog_comes_first() {
        let tree = [("docs/changes.rst", "1.0\n===\nb\n"), ("CHANGES.md", "## 1.0\na\n")]
            .map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()))
            .into();
        assert_eq!(changelog_entry(&tree, "1.0").as_deref(), Some("a"));
    }

    #[test]
    fn statements_show_failures_once() {
        let failures = ["ValueError: x\n\n  at y".to_owned(), "ValueError: x\n  at y".to_owned()];
        let text = write("p", "1.0", Some("Fixed."), "does things", &failures);
        assert_eq!(
            text,
            "p 1.0 does not behave as it should.\n\np: does things\n\nWhat the changelog says of \
             the release that puts it right:\n\n> Fixed.\n\nChecks of the right behaviour fail \
             now, such as with:\n\n```\nValueError: x\n  at y\n```\n"
        );
    }
}
