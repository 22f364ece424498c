//! Commands and the grammar of tools.
//!
//! A tool call is one line of shell-like words (single and double quotes, backslash; nothing is
//! expanded), and the heredocs that the line announces with `<<'WORD'`, in order. A heredoc's
//! text is taken as it is. Whatever is not a tool call is a shell command.

use crate::parse::FormatError;

/// The names of all tools.
pub const TOOLS: [&str; 11] = [
    "open",
    "goto",
    "scroll_up",
    "scroll_down",
    "search_file",
    "search_dir",
    "find_file",
    "create",
    "edit",
    "replace",
    "submit",
];

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A script for bash.
    Shell(String),
    /// A tool with its arguments.
    Tool(ToolCall),
}

/// A tool with its arguments. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolCall {
    /// `open PATH [LINE]`
    Open {
        /// The file.
        path: String,
        /// Line to show.
        line: Option<usize>,
    },
    /// `goto N`
    Goto {
        /// Line to show.
        line: usize,
    },
    /// `scroll_up`
    ScrollUp,
    /// `scroll_down`
    ScrollDown,
    /// `search_file TERM [FILE]`
    SearchFile {
        /// Text to find.
        term: String,
        /// Where; the current file if not given.
        file: Option<String>,
    },
    /// `search_dir TERM [DIR]`
    SearchDir {
        /// Text to find.
        term: String,
        /// Where; the working directory if not given.
        dir: Option<String>,
    },
    /// `find_file NAME [DIR]`
    FindFile {
        /// File name; may hold `*` and `?`.
        name: String,
        /// Where; the working directory if not given.
        dir: Option<String>,
    },
    /// `create FILE`, with the file's text as an optional heredoc.
    Create {
        /// The file.
        path: String,
        /// Its lines.
        body: Vec<String>,
    },
    /// `edit [--file F] A:B <<'EOF' … EOF`
    Edit {
        /// The file; the current one if not given.
        file: Option<String>,
        /// First line replaced, at least 1.
        first: usize,
        /// Last line replaced, at least `first - 1`, which inserts before `first`.
        last: usize,
        /// The new lines.
        body: Vec<String>,
    },
    /// `replace [--replace-all] [--file F] OLD NEW`, as words or as two heredocs.
    Replace {
        /// The file; the current one if not given.
        file: Option<String>,
        /// Whether every occurrence is replaced.
        all: bool,
        /// Text to find, not empty.
        old: String,
        /// What to put there.
        new: String,
    },
    /// `submit`
    Submit,
}

/// Parses a text that is one command. White space around it does not matter; comment lines
/// before a tool's name are skipped.
///
/// # Errors
/// [`FormatError`].
pub fn parse(text: &str) -> Result<Command, FormatError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(FormatError::NoCommand);
    }
    let code = skip_comments(text);
    let name = code.split_whitespace().next().unwrap_or_default();
    if !TOOLS.contains(&name) {
        return Ok(Command::Shell(text.to_owned()));
    }
    let line = lex(code)?;
    tool_call(name, line).map(Command::Tool)
}

/// Splits one line into words as the grammar of tools does. The error is for people.
pub(crate) fn split_words(text: &str) -> Result<Vec<String>, String> {
    match lex(text.trim()) {
        Ok(Line { words, heredocs }) if heredocs.is_empty() => Ok(words),
        Ok(_) | Err(FormatError::SeveralCommands | FormatError::NoCommand) => {
            Err("it must be one simple command".to_owned())
        }
        Err(FormatError::Malformed(reason)) => Err(reason),
    }
}

fn skip_comments(mut text: &str) -> &str {
    while text.starts_with('#') {
        text = text.find('\n').map_or("", |end| text[end..].trim_start());
    }
    text
}

/// The words of a tool's line and the heredocs after it.
struct Line {
    words: Vec<String>,
    heredocs: Vec<Vec<String>>,
}

fn malformed(reason: impl Into<String>) -> FormatError {
    FormatError::Malformed(reason.into())
}

fn lex(text: &str) -> Result<Line, FormatError> {
    let mut chars = text.char_indices().peekable();
    let mut words = Vec::new();
    let mut delimiters = Vec::new();
    let mut end = text.len();
    while let Some(&(at, c)) = chars.peek() {
        match c {
            '\n' => {
                end = at + 1;
                break;
            }
            c if c.is_whitespace() => {
                chars.next();
            }
            ';' | '|' | '&' => return Err(FormatError::SeveralCommands),
            '<' if text[at..].starts_with("<<") => {
                chars.next();
                chars.next();
                while chars.next_if(|(_, c)| matches!(c, ' ' | '\t')).is_some() {}
                let delimiter = word(&mut chars)?;
                if delimiter.is_empty() {
                    return Err(malformed("`<<` needs a word that ends the text, as in <<'EOF'"));
                }
                delimiters.push(delimiter);
            }
            '<' | '>' => {
                return Err(malformed(format!("put quotes around a word that holds `{c}`")));
            }
            _ => words.push(word(&mut chars)?),
        }
    }
    let mut rest = text[end..].split_inclusive('\n');
    let mut heredocs = Vec::new();
    for delimiter in delimiters {
        let mut body = Vec::new();
        loop {
            let Some(line) = rest.next() else {
                return Err(malformed(format!("no line `{delimiter}` ends the text")));
            };
            let line = line.strip_suffix('\n').unwrap_or(line);
            if line.trim_end() == delimiter {
                break;
            }
            body.push(line.strip_suffix('\r').unwrap_or(line).to_owned());
        }
        heredocs.push(body);
    }
    if rest.any(|line| !line.trim().is_empty()) {
        return Err(FormatError::SeveralCommands);
    }
    Ok(Line { words, heredocs })
}

type Chars<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

/// One word, from its first character to the white space or operator after it.
fn word(chars: &mut Chars<'_>) -> Result<String, FormatError> {
    let mut word = String::new();
    while let Some((_, c)) =
        chars.next_if(|(_, c)| !c.is_whitespace() && !matches!(c, ';' | '|' | '&' | '<' | '>'))
    {
        match c {
            '\'' => quoted(chars, '\'', &mut word)?,
            '"' => quoted(chars, '"', &mut word)?,
            '\\' => match chars.next() {
                Some((_, '\n')) => {}
                Some((_, c)) => word.push(c),
                None => return Err(malformed("a backslash ends the command")),
            },
            c => word.push(c),
        }
    }
    Ok(word)
}

fn quoted(chars: &mut Chars<'_>, quote: char, word: &mut String) -> Result<(), FormatError> {
    while let Some((_, c)) = chars.next() {
        match c {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => {
                match chars.next_if(|(_, c)| matches!(c, '"' | '\\' | '$' | '`')) {
                    Some((_, escaped)) => word.push(escaped),
                    None => word.push('\\'),
                }
            }
            c => word.push(c),
        }
    }
    Err(malformed(format!("a quote ({quote}) is not closed")))
}

fn tool_call(name: &str, line: Line) -> Result<ToolCall, FormatError> {
    let heredocs = line.heredocs;
    let words = &line.words[1..];
    let num_heredocs = heredocs.len();
    let usage = |usage: &str| malformed(format!("usage: {usage}"));
    let call = match (name, words, num_heredocs) {
        ("open", [path], 0) => ToolCall::Open { path: path.clone(), line: None },
        ("open", [path, line], 0) => {
            ToolCall::Open { path: path.clone(), line: Some(line_number(line)?) }
        }
        ("open", ..) => return Err(usage("open PATH [LINE]")),
        ("goto", [line], 0) => ToolCall::Goto { line: line_number(line)? },
        ("goto", ..) => return Err(usage("goto N")),
        ("scroll_up", [], 0) => ToolCall::ScrollUp,
        ("scroll_down", [], 0) => ToolCall::ScrollDown,
        ("scroll_up" | "scroll_down", ..) => return Err(usage(name)),
        ("search_file", [term], 0) => ToolCall::SearchFile { term: term.clone(), file: None },
        ("search_file", [term, file], 0) => {
            ToolCall::SearchFile { term: term.clone(), file: Some(file.clone()) }
        }
        ("search_file", ..) => return Err(usage("search_file TERM [FILE]")),
        ("search_dir", [term], 0) => ToolCall::SearchDir { term: term.clone(), dir: None },
        ("search_dir", [term, dir], 0) => {
            ToolCall::SearchDir { term: term.clone(), dir: Some(dir.clone()) }
        }
        ("search_dir", ..) => return Err(usage("search_dir TERM [DIR]")),
        ("find_file", [name], 0) => ToolCall::FindFile { name: name.clone(), dir: None },
        ("find_file", [name, dir], 0) => {
            ToolCall::FindFile { name: name.clone(), dir: Some(dir.clone()) }
        }
        ("find_file", ..) => return Err(usage("find_file NAME [DIR]")),
        ("create", [path], 0 | 1) => ToolCall::Create {
            path: path.clone(),
            body: heredocs.into_iter().next().unwrap_or_default(),
        },
        ("create", ..) => return Err(usage("create FILE, its text as a heredoc if you like")),
        ("edit", ..) => return edit_call(words, heredocs),
        ("replace", ..) => return replace_call(words, &heredocs),
        ("submit", [], 0) => ToolCall::Submit,
        ("submit", ..) => return Err(usage("submit")),
        _ => return Err(malformed(format!("{name} is not a tool"))),
    };
    match &call {
        ToolCall::SearchFile { term, .. }
        | ToolCall::SearchDir { term, .. }
        | ToolCall::FindFile { name: term, .. }
            if term.is_empty() =>
        {
            Err(malformed("what to search for is empty"))
        }
        _ => Ok(call),
    }
}

fn line_number(word: &str) -> Result<usize, FormatError> {
    match word.parse() {
        // The bound keeps sums of line numbers far from overflow.
        Ok(line @ 1..=1_000_000_000) => Ok(line),
        _ => Err(malformed(format!("`{word}` is not a line number"))),
    }
}

/// Takes `--file F` and, if `all` is allowed, `--replace-all` off the front.
fn options(mut words: &[String], all: bool) -> (Option<String>, bool, &[String]) {
    let (mut file, mut replace_all) = (None, false);
    loop {
        match words {
            [flag, path, rest @ ..] if flag == "--file" => {
                file = Some(path.clone());
                words = rest;
            }
            [flag, rest @ ..] if all && flag == "--replace-all" => {
                replace_all = true;
                words = rest;
            }
            _ => return (file, replace_all, words),
        }
    }
}

fn edit_call(words: &[String], heredocs: Vec<Vec<String>>) -> Result<ToolCall, FormatError> {
    let usage = || malformed("usage: edit [--file F] A:B <<'EOF', the new lines, EOF");
    let (file, _, rest) = options(words, false);
    let [range] = rest else { return Err(usage()) };
    if heredocs.len() > 1 {
        return Err(usage());
    }
    let body = heredocs.into_iter().next().unwrap_or_default();
    let (first, last) = match range.split_once(':') {
        None => (line_number(range)?, line_number(range)?),
        Some((first, "0")) => (line_number(first)?, 0),
        Some((first, last)) => (line_number(first)?, line_number(last)?),
    };
    if last + 1 < first {
        return Err(malformed(format!("the range {range} ends before it starts")));
    }
    if last + 1 == first && body.is_empty() {
        return Err(malformed("there is nothing to insert"));
    }
    Ok(ToolCall::Edit { file, first, last, body })
}

fn replace_call(words: &[String], heredocs: &[Vec<String>]) -> Result<ToolCall, FormatError> {
    let (file, all, rest) = options(words, true);
    let (old, new) = match (rest, heredocs) {
        ([old, new], []) => (old.clone(), new.clone()),
        ([], [old, new]) => (old.join("\n"), new.join("\n")),
        _ => {
            return Err(malformed(
                "usage: replace [--replace-all] [--file F] 'old' 'new', or <<'OLD' <<'NEW' and \
                 the two texts",
            ));
        }
    };
    if old.is_empty() {
        return Err(malformed("the text to replace is empty"));
    }
    Ok(ToolCall::Replace { file, all, old, new })
}

#[cfg(test)]
mod tests {
    use super::{Command, ToolCall, parse};
    use crate::parse::FormatError;

    fn edit(first: usize, last: usize, body: &[&str]) -> ToolCall {
        let body = body.iter().map(ToString::to_string).collect();
        ToolCall::Edit { file: None, first, last, body }
    }

    #[test]
    fn tools_and_their_arguments() {
        let s = str::to_owned;
        for (text, expected) in [
            ("open a.py", ToolCall::Open { path: s("a.py"), line: None }),
            ("open 'a b.py' 12", ToolCall::Open { path: s("a b.py"), line: Some(12) }),
            ("# look\n\n# again\nopen a.py", ToolCall::Open { path: s("a.py"), line: None }),
            ("goto 7", ToolCall::Goto { line: 7 }),
            ("scroll_up", ToolCall::ScrollUp),
            ("search_file foo", ToolCall::SearchFile { term: s("foo"), file: None }),
            (
                r#"search_dir "def f(\"x\")\n" src"#,
                ToolCall::SearchDir { term: s(r#"def f("x")\n"#), dir: Some(s("src")) },
            ),
            ("find_file *.py", ToolCall::FindFile { name: s("*.py"), dir: None }),
            ("create x.py", ToolCall::Create { path: s("x.py"), body: vec![] }),
            (
                "create x.py <<EOF\n$a\n\nEOF",
                ToolCall::Create { path: s("x.py"), body: vec![s("$a"), s("")] },
            ),
            ("edit 3:4 <<'EOF'\n    return 1\nEOF", edit(3, 4, &["    return 1"])),
            ("edit 3:4 << \"END\"\n<<'EOF'\nEOF\nEND  \n", edit(3, 4, &["<<'EOF'", "EOF"])),
            ("edit 3 <<'EOF'\nx\nEOF", edit(3, 3, &["x"])),
            ("edit 1:0 <<'EOF'\nx\nEOF", edit(1, 0, &["x"])),
            ("edit 3:4 <<'EOF'\nEOF", edit(3, 4, &[])),
            ("edit 3:4", edit(3, 4, &[])),
            (
                "edit --file a.py 1:1 <<'EOF'\nx\nEOF",
                ToolCall::Edit { file: Some(s("a.py")), first: 1, last: 1, body: vec![s("x")] },
            ),
            (
                "replace 'a b' ''",
                ToolCall::Replace { file: None, all: false, old: s("a b"), new: s("") },
            ),
            (
                "replace --file f --replace-all <<'OLD' <<'NEW'\na\n b\nOLD\nc\nNEW",
                ToolCall::Replace { file: Some(s("f")), all: true, old: s("a\n b"), new: s("c") },
            ),
            (
                "replace 'a\nb' c",
                ToolCall::Replace { file: None, all: false, old: s("a\nb"), new: s("c") },
            ),
            ("  submit\n", ToolCall::Submit),
        ] {
            assert_eq!(parse(text), Ok(Command::Tool(expected)), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_a_tool_is_for_the_shell() {
        for text in
            ["ls", "opening x", "cd src && open x", "# only a comment", "./submit", "Open x"]
        {
            assert_eq!(parse(text), Ok(Command::Shell(text.to_owned())));
        }
    }

    #[test]
    fn more_than_one_command_is_refused() {
        for text in [
            "open a.py\nopen b.py",
            "submit\nls",
            "open a.py && ls",
            "open a.py; ls",
            "search_file x | head",
            "edit 1:1 <<'EOF'\nx\nEOF\nsubmit",
            "edit 1:1\nx",
        ] {
            assert_eq!(parse(text), Err(FormatError::SeveralCommands), "{text:?}");
        }
    }

    #[test]
    fn malformed_arguments_say_why() {
        for (text, said) in [
            ("open", "usage: open"),
            ("open a b c", "usage: open"),
            ("open a 0", "line number"),
            ("open a -1", "line number"),
            ("goto x", "line number"),
            ("goto 99999999999999999999999", "line number"),
            ("edit 1:18446744073709551615", "line number"),
            ("scroll_up 3", "usage: scroll_up"),
            ("submit now", "usage: submit"),
            ("search_file ''", "empty"),
            ("search_file a > b", "quotes"),
            ("edit <<'EOF'\nx\nEOF", "usage: edit"),
            ("edit 5:3 <<'EOF'\nx\nEOF", "ends before"),
            ("edit 0:3 <<'EOF'\nx\nEOF", "line number"),
            ("edit 3:2", "nothing to insert"),
            ("edit 3:3 <<'EOF'\nx", "no line `EOF`"),
            ("edit 3:3 <<", "ends the text"),
            ("replace 'a'", "usage: replace"),
            ("replace '' b", "empty"),
            ("open 'a", "not closed"),
            ("open a\\", "backslash"),
        ] {
            match parse(text) {
                Err(FormatError::Malformed(reason)) => {
                    assert!(reason.contains(said), "{text:?}: {reason}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }
}
