//! Viewing and editing files. No process is started.

use std::ops::Range;

use super::{Fault, OpenFile, Told, Tool, lines_of};
use crate::profile::{EditView, say};

/// A file as lines, so that it is put together again byte for byte.
struct Text {
    /// Lines without their line breaks.
    lines: Vec<Vec<u8>>,
    /// Whether the last line has a line break.
    closed: bool,
    /// Whether lines end with `\r\n` (the first one does).
    crlf: bool,
}

impl Text {
    fn parse(bytes: &[u8]) -> Self {
        let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        let closed = lines.last().is_some_and(Vec::is_empty);
        if closed {
            lines.pop();
        }
        let crlf = lines.first().is_some_and(|line| line.ends_with(b"\r"));
        Self { lines, closed, crlf }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.lines.join(&b'\n');
        if self.closed && !self.lines.is_empty() {
            bytes.push(b'\n');
        }
        bytes
    }

    fn new_line(&self, text: &str) -> Vec<u8> {
        let mut line = text.as_bytes().to_vec();
        if self.crlf {
            line.push(b'\r');
        }
        line
    }

    /// Numbered lines `range` (from 0), as they are shown.
    fn numbered(&self, range: Range<usize>) -> String {
        let lines: Vec<String> = range
            .filter_map(|at| {
                let line = self.lines.get(at)?;
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                Some(format!("{}:{}", at + 1, String::from_utf8_lossy(line)))
            })
            .collect();
        lines.join("\n")
    }
}

impl Tool<'_> {
    pub(super) fn open(&mut self, path: &str, line: Option<usize>) -> Told {
        let path = self.workspace.resolve(path);
        let text = Text::parse(&self.read(&path)?);
        let top = match line {
            None => 1,
            Some(line) => self.top_around(&text, line)?,
        };
        self.workspace.open = Some(OpenFile { path, top });
        Ok(self.listing(&text))
    }

    pub(super) fn goto(&mut self, line: usize) -> Told {
        let path = self.path_of(None)?;
        let text = Text::parse(&self.read(&path)?);
        let top = self.top_around(&text, line)?;
        self.workspace.open = Some(OpenFile { path, top });
        Ok(self.listing(&text))
    }

    pub(super) fn scroll(&mut self, down: bool) -> Told {
        let path = self.path_of(None)?;
        let text = Text::parse(&self.read(&path)?);
        let window = self.profile.listing.window_lines;
        let top = self.workspace.open.as_ref().map_or(1, |open| open.top);
        let top = if down { top + window } else { top.saturating_sub(window) };
        let top = top.clamp(1, self.last_top(&text));
        self.workspace.open = Some(OpenFile { path, top });
        Ok(self.listing(&text))
    }

    pub(super) fn create(&mut self, path: &str, body: &[String]) -> Told {
        let path = self.workspace.resolve(path);
        let shown = self.workspace.shown(&path).to_owned();
        match self.sandbox.read(&path, 1) {
            Ok(_) => {
                let said = say(&self.profile.texts.exists, &[("path", shown.into())]);
                return Err(Fault::Said(said));
            }
            // Whatever else stands there, `write` will say.
            Err(
                patchwright_core::SandboxError::Path { .. }
                | patchwright_core::SandboxError::Limit(_),
            ) => {}
            Err(error) => return Err(Fault::Broken(error)),
        }
        let mut text = body.join("\n");
        if !body.is_empty() {
            text.push('\n');
        }
        self.write(&path, text.as_bytes())?;
        self.workspace.open = Some(OpenFile { path, top: 1 });
        Ok(say(&self.profile.texts.created, &[("path", shown.into())]))
    }

    pub(super) fn edit(
        &mut self,
        file: Option<&str>,
        first: usize,
        last: usize,
        body: &[String],
    ) -> Told {
        let path = self.path_of(file)?;
        let mut text = Text::parse(&self.read(&path)?);
        let num_lines = text.lines.len();
        // One past the end is a line only for an insertion before it.
        if first > num_lines + 1 || last > num_lines || (first > num_lines && last >= first) {
            let line = if first > num_lines { first } else { last };
            return Err(self.bad_line(line, num_lines));
        }
        if first > num_lines && num_lines > 0 {
            // What is added behind a last line without a line break is a line of its own.
            text.closed = true;
        }
        let new: Vec<Vec<u8>> = body.iter().map(|line| text.new_line(line)).collect();
        text.lines.splice(first - 1..last, new);
        self.write(&path, &text.bytes())?;
        let range = first - 1..first - 1 + body.len();
        Ok(self.changed(path, &text, std::slice::from_ref(&range)))
    }

    pub(super) fn replace(&mut self, file: Option<&str>, all: bool, old: &str, new: &str) -> Told {
        let path = self.path_of(file)?;
        let bytes = self.read(&path)?;
        let breaks = |text: &str| {
            let crlf = Text::parse(&bytes).crlf;
            if crlf { text.replace('\n', "\r\n").into_bytes() } else { text.as_bytes().to_vec() }
        };
        let (old, new) = (breaks(old), breaks(new));
        let found = occurrences(&bytes, &old);
        let shown = self.workspace.shown(&path);
        let line_at = |at: usize| num_breaks(&bytes[..at]) + 1;
        if found.is_empty() {
            let said = say(&self.profile.texts.not_found, &[("path", shown.into())]);
            return Err(Fault::Said(said));
        }
        if found.len() > 1 && !all {
            let lines: Vec<String> =
                found.iter().take(20).map(|at| line_at(*at).to_string()).collect();
            let said = say(
                &self.profile.texts.not_unique,
                &[
                    ("path", shown.into()),
                    ("num_matches", found.len().into()),
                    ("lines", lines.join(", ").into()),
                ],
            );
            return Err(Fault::Said(said));
        }
        let mut result = Vec::with_capacity(bytes.len());
        let mut changed: Vec<Range<usize>> = Vec::new();
        let mut line = 0;
        let mut rest = 0;
        for at in found {
            result.extend_from_slice(&bytes[rest..at]);
            line += num_breaks(&bytes[rest..at]);
            let start = line;
            result.extend_from_slice(&new);
            line += num_breaks(&new);
            // A line on which two replacements meet is shown once.
            match changed.last_mut() {
                Some(last) if last.end > start => last.end = line + 1,
                _ => changed.push(start..line + 1),
            }
            rest = at + old.len();
        }
        result.extend_from_slice(&bytes[rest..]);
        self.write(&path, &result)?;
        Ok(self.changed(path, &Text::parse(&result), &changed))
    }

    /// What is shown after a change of lines `ranges` (from 0, in the new text).
    fn changed(&mut self, path: String, text: &Text, ranges: &[Range<usize>]) -> String {
        let texts = &self.profile.texts;
        let first = ranges.first().map_or(0, |range| range.start);
        let window = self.profile.listing.window_lines;
        let middle = first + 1 + ranges.first().map_or(0, ExactSizeIterator::len) / 2;
        let top = middle.saturating_sub(window / 2).clamp(1, self.last_top(text));
        let edited = say(&texts.edited, &[("path", self.workspace.shown(&path).into())]);
        self.workspace.open = Some(OpenFile { path, top });
        let gone = ranges.iter().all(Range::is_empty);
        let deleted = if gone { texts.deleted.clone() } else { String::new() };
        let shown = match self.profile.listing.edit_view {
            EditView::Window => self.listing(text),
            EditView::NewLines => {
                let lines: Vec<String> =
                    ranges.iter().map(|range| text.numbered(range.clone())).collect();
                lines_of(&lines)
            }
        };
        lines_of(&[edited, deleted, shown])
    }

    /// The window of the current file, with what the profile puts around it.
    fn listing(&self, text: &Text) -> String {
        let listing = &self.profile.listing;
        let Some(open) = &self.workspace.open else { return String::new() };
        let num_lines = text.lines.len();
        let start = (open.top - 1).min(num_lines);
        let end = (start + listing.window_lines).min(num_lines);
        let more = |template: &str, num: usize| {
            if num == 0 { String::new() } else { say(template, &[("num_lines", num.into())]) }
        };
        let path = self.workspace.shown(&open.path);
        lines_of(&[
            say(&listing.header, &[("path", path.into()), ("num_lines", num_lines.into())]),
            more(&listing.above, start),
            text.numbered(start..end),
            more(&listing.below, num_lines - end),
        ])
    }

    /// First line of a window with `line` in its middle.
    fn top_around(&self, text: &Text, line: usize) -> Result<usize, Fault> {
        let num_lines = text.lines.len();
        if line > num_lines.max(1) {
            return Err(self.bad_line(line, num_lines));
        }
        let half = self.profile.listing.window_lines / 2;
        Ok(line.saturating_sub(half).clamp(1, self.last_top(text)))
    }

    /// First line of the last whole window.
    fn last_top(&self, text: &Text) -> usize {
        (text.lines.len() + 1).saturating_sub(self.profile.listing.window_lines).max(1)
    }

    fn bad_line(&self, line: usize, num_lines: usize) -> Fault {
        let variables = [("line", line.into()), ("num_lines", num_lines.into())];
        Fault::Said(say(&self.profile.texts.bad_line, &variables))
    }
}

/// Number of line breaks.
fn num_breaks(bytes: &[u8]) -> usize {
    bytes.split(|b| *b == b'\n').count() - 1
}

/// Where `needle` (not empty) stands in `hay`, without overlaps.
fn occurrences(hay: &[u8], needle: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + needle.len() <= hay.len() {
        if hay[at..].starts_with(needle) {
            found.push(at);
            at += needle.len();
        } else {
            at += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Text, occurrences};

    #[test]
    fn occurrences_do_not_overlap() {
        assert_eq!(occurrences(b"aaaa", b"aa"), [0, 2]);
        assert_eq!(occurrences(b"abc", b"abcd"), [0; 0]);
    }

    proptest! {
        #[test]
        fn a_file_is_put_together_byte_for_byte(bytes in prop::collection::vec(
            prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..40,
        )) {
            prop_assert_eq!(Text::parse(&bytes).bytes(), bytes);
        }
    }
}
