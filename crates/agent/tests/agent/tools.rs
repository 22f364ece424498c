//! Tools in real sandboxes: each case is a session of commands with what is seen after each.

use std::time::Duration;

use crate::common::{WORKDIR, files, sandbox};
use patchwright_agent::Profile;
use patchwright_agent::command::{Command, parse};
use patchwright_agent::tools::{Step, Workspace};
use patchwright_core::{RepoSource, Sandbox};

struct Session {
    workspace: Workspace,
    sandbox: Box<dyn Sandbox>,
    profile: Profile,
    timeout: Duration,
}

impl Session {
    fn new(profile: Profile, repo: &RepoSource) -> Self {
        let timeout = Duration::from_secs(20);
        Self { workspace: Workspace::new(WORKDIR), sandbox: sandbox(repo), profile, timeout }
    }

    fn run(&mut self, command: &str) -> String {
        let command: Command = parse(command).unwrap();
        let step = self
            .workspace
            .execute(self.sandbox.as_mut(), &self.profile, self.timeout, &command)
            .unwrap();
        match step {
            Step::Observation(text) => text,
            Step::Submitted => "submitted".to_owned(),
        }
    }

    fn check(&mut self, steps: &[(&str, &str)]) {
        for (command, expected) in steps {
            let seen = self.run(command);
            match expected.strip_suffix(": ") {
                Some(start) => assert!(seen.starts_with(start), "{command}: {seen}"),
                None => assert_eq!(seen, *expected, "{command}"),
            }
        }
    }

    fn file(&mut self, path: &str) -> String {
        String::from_utf8(self.sandbox.read(&format!("{WORKDIR}/{path}"), 1 << 20).unwrap())
            .unwrap()
    }
}

const NUMBERS: &str = "def one():\n    return 1\n\n\ndef two():\n    return 3\n";

#[test]
fn compact_sessions_show_lines_and_nothing_else() {
    let mut session =
        Session::new(Profile::compact(), &files(&[("a.py", NUMBERS), ("empty.py", "")]));
    session.check(&[
        ("open a.py", "1:def one():\n2:    return 1\n3:\n4:\n5:def two():\n6:    return 3"),
        ("edit 6:6 <<'EOF'\n    return 2\nEOF", "6:    return 2"),
        ("edit 1:0 <<'EOF'\n# numbers\n\nEOF", "1:# numbers\n2:"),
        ("edit 7:7", "deleted"),
        ("edit 7:7 <<'EOF'\n\n    return 2\n\nEOF", "7:\n8:    return 2\n9:"),
        ("edit --file empty.py 1:0 <<'EOF'\nx = 1\nEOF", "1:x = 1"),
        ("open empty.py", "1:x = 1"),
        ("edit 9:9", "Error: line 9"),
        ("open none.py", "Error: file none.py"),
        ("true", ""),
        ("echo out; exit 3", "out"),
        ("python3 <<'EOF'\nimport a\nprint(a.one())\nEOF", "1"),
        ("submit", "submitted"),
    ]);
    assert_eq!(session.file("empty.py"), "x = 1\n");
}

#[test]
fn edits_change_what_they_say_and_nothing_else() {
    let mut session = Session::new(
        Profile::compact(),
        &files(&[("crlf.txt", "a\r\nb\r\nc\r\n"), ("open_end.txt", "a\nb"), ("one.txt", "a\n")]),
    );
    session.check(&[
        ("edit --file crlf.txt 2:2 <<'EOF'\nB\nEOF", "2:B"),
        ("replace 'B\nc' 'x\ny'", "2:x\n3:y"),
        ("edit --file open_end.txt 1:1 <<'EOF'\nA\nEOF", "1:A"),
        ("edit 3:2 <<'EOF'\nc\nEOF", "3:c"),
        ("edit --file one.txt 1:1", "deleted"),
    ]);
    assert_eq!(session.file("crlf.txt"), "a\r\nx\r\ny\r\n");
    assert_eq!(session.file("open_end.txt"), "A\nb\nc\n");
    assert_eq!(session.file("one.txt"), "");
}

fn numbered(word: &str, numbers: std::ops::RangeInclusive<usize>) -> String {
    let lines: Vec<String> = numbers.map(|n| format!("{word} {n}")).collect();
    lines.join("\n") + "\n"
}

#[test]
fn the_window_moves_over_the_file() {
    let text = numbered("line", 1..=250);
    let mut session = Session::new(Profile::full(), &files(&[("long.txt", &text)]));
    let ends = |seen: &str| {
        let lines: Vec<&str> = seen.lines().collect();
        (lines[0].to_owned(), lines[1].to_owned(), lines[lines.len() - 1].to_owned())
    };
    let header = "[File: long.txt (250 lines total)]";
    for (command, second, last) in [
        ("open long.txt", "1:line 1", "(150 more lines below)"),
        ("scroll_up", "1:line 1", "(150 more lines below)"),
        ("scroll_down", "(100 more lines above)", "(50 more lines below)"),
        ("scroll_down", "(150 more lines above)", "250:line 250"),
        ("goto 60", "(9 more lines above)", "(141 more lines below)"),
        ("open long.txt 250", "(150 more lines above)", "250:line 250"),
        ("edit 120:121 <<'EOF'\nnew\nEOF", "", ""),
    ] {
        let seen = session.run(command);
        if second.is_empty() {
            assert!(seen.starts_with("Changed long.txt.\n[File: long.txt (249 lines total)]\n"));
            assert!(seen.contains("\n119:line 119\n120:new\n121:line 122\n"), "{seen}");
        } else {
            assert_eq!(ends(&seen), (header.to_owned(), second.to_owned(), last.to_owned()));
        }
    }
    session.check(&[("goto 251", "There is no line 251: the file has 249 lines.")]);
}

#[test]
fn replace_wants_one_place_unless_told_otherwise() {
    let mut session = Session::new(Profile::full(), &files(&[("a.py", "x = 1\ny = x + x\n")]));
    session.check(&[
        ("replace x z", "No file is open. Open one first, or name it."),
        (
            "replace --file a.py x z",
            "a.py holds the text 3 times (lines 1, 2, 2). Give more of the text around it, or use \
             --replace-all.",
        ),
        (
            "replace --file a.py 'x + x' '2 * x'",
            "Changed a.py.\n[File: a.py (2 lines total)]\n1:x = 1\n2:y = 2 * x",
        ),
        (
            "replace nothing z",
            "a.py does not hold the text. It must match exactly, spaces and line breaks too.",
        ),
        (
            "replace --replace-all <<'OLD' <<'NEW'\nx\nOLD\nz\nNEW",
            "Changed a.py.\n[File: a.py (2 lines total)]\n1:z = 1\n2:y = 2 * z",
        ),
    ]);
    assert_eq!(session.file("a.py"), "z = 1\ny = 2 * z\n");
}

#[test]
fn searches_are_sorted_and_bounded() {
    let many = numbered("needle", 0..=149);
    let repo = files(&[
        ("b/x.py", "needle\n"),
        ("a/y.py", "hay\nneedle(\"a\")\n"),
        ("a/b c.txt", "no\n"),
        ("many.txt", &many),
    ]);
    let mut session = Session::new(Profile::full(), &repo);
    session.check(&[
        ("search_dir 'needle(\"'", "Lines with needle(\" in /testbed (1):\na/y.py:2:needle(\"a\")"),
        ("search_dir needle b", "Lines with needle in b (1):\nb/x.py:1:needle"),
        ("search_dir absent", "No matches for absent in /testbed."),
        ("search_file hay a/y.py", "Lines with hay in a/y.py (1):\n1:hay"),
        ("search_file hay", "No file is open. Open one first, or name it."),
        ("find_file *.py", "Lines with *.py in /testbed (2):\na/y.py\nb/x.py"),
        ("find_file 'b c.txt'", "Lines with b c.txt in /testbed (1):\na/b c.txt"),
        ("cd a", "(no output)"),
        ("search_dir needle", "Lines with needle in a (1):\ny.py:2:needle(\"a\")"),
        ("search_dir needle .. ", &session_many()),
    ]);
    assert!(session.run("search_dir x nowhere").starts_with("The search failed: "));
}

fn session_many() -> String {
    let mut lines = vec![
        "Lines with needle in /testbed (152):".to_owned(),
        "../a/y.py:2:needle(\"a\")".to_owned(),
        "../b/x.py:1:needle".to_owned(),
    ];
    lines.extend((0..98).map(|n| format!("../many.txt:{}:needle {n}", n + 1)));
    lines.push("(52 more matches are not shown; be more specific)".to_owned());
    lines.join("\n")
}

#[test]
fn create_makes_new_files_only() {
    let mut session = Session::new(Profile::full(), &files(&[("a.py", "x\n")]));
    session.check(&[
        ("create a.py", "a.py exists already. Open it, or edit it."),
        ("create new/b.py", "Created new/b.py."),
        (
            "edit 1:0 <<'EOF'\ny = 1\nEOF",
            "Changed new/b.py.\n[File: new/b.py (1 lines total)]\n1:y = 1",
        ),
        ("create c.sh <<'EOF'\necho $HOME\nEOF", "Created c.sh."),
        ("cat c.sh new/b.py", "echo $HOME\ny = 1"),
    ]);
    assert!(session.run("create a.py/b").starts_with("Cannot write a.py/b: "));
    assert!(session.run("open .").starts_with("Cannot read "));
}

#[test]
fn the_shell_keeps_directory_and_variables() {
    let mut session = Session::new(Profile::full(), &files(&[("src/a.py", "x\n")]));
    session.check(&[
        ("cd src && pwd", "/testbed/src"),
        ("pwd", "/testbed/src"),
        ("export WHO='a b'; OTHER=1", "(no output)"),
        ("echo \"$WHO|$OTHER\"", "a b|"),
        ("open a.py", "[File: src/a.py (1 lines total)]\n1:x"),
        ("cd /; exit 4", "(exit code 4)"),
        ("pwd", "/"),
        ("cd /testbed; false", "(exit code 1)"),
        ("pwd", "/testbed"),
        // What is printed is never taken for the report of the working directory.
        ("printf '/etc\\0'; printf '/etc\\0' >&2", "/etc\0/etc\0"),
        ("(echo /etc >&3) 2>/dev/null; pwd", "/testbed"),
        ("set -e; false; echo no", "(exit code 1)"),
        ("trap 'echo bye' EXIT; cd src", "bye"),
        ("pwd", "/testbed/src"),
        ("unset WHO", "(no output)"),
        ("echo \"<$WHO>\"", "<>"),
        ("echo out; echo err >&2; echo out2", "out\nerr\nout2"),
        ("kill -9 $$", "(ended by signal 9)"),
        ("cat", "(no output)"),
        ("printf '\\377ok'", "\u{fffd}ok"),
    ]);
    assert!(session.run("echo 'open").contains("unexpected EOF"));
    session.check(&[("mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone", "(no output)")]);
    session.check(&[
        ("search_dir x", "The search failed: "),
        ("pwd", "The directory /tmp/gone is gone; you are back in the root of the repository."),
        ("pwd", "/testbed"),
    ]);
}

#[test]
fn time_and_output_are_bounded() {
    let mut session = Session::new(Profile::full(), &files(&[("a", "b")]));
    session.timeout = Duration::from_secs(1);
    assert_eq!(session.run("echo start; sleep 30"), "start\n(stopped: it ran for more than 1 s)");
    let seen = session.run("head -c 1000000 /dev/zero | tr '\\0' x; cd /");
    assert!(seen.contains("more bytes of output were thrown away"), "{}", &seen[seen.len() - 99..]);
    // The report does not share the bound of the output.
    session.check(&[("pwd", "/")]);
}
