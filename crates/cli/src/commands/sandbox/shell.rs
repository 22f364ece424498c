//! `patchwright sandbox shell`: a look around, line by line.
//!
//! A line is a stateless command like any other. What a shell would keep is kept in two files
//! inside: the exported variables, which the next line reads back, and the working directory,
//! which the prompt shows.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

use patchwright_core::ExecRequest;
use patchwright_core::patch::render;

use super::conclude;
use super::setting::{self, Setting};
use crate::args::SandboxShellArgs;
use crate::error::CliError;
use crate::output;

/// Where a line's state is left.
const CWD_FILE: &str = "/tmp/.patchwright-shell-cwd";

/// Runs a line (`$1`) with what the last one left, in bash or whatever `sh` there is.
const SCRIPT: &str = r#"
if [ -r /tmp/.patchwright-shell ]; then . /tmp/.patchwright-shell; cd -- "$PWD"; fi
trap 'patchwright_code=$?
export PWD
export -p > /tmp/.patchwright-shell
pwd > /tmp/.patchwright-shell-cwd
exit "$patchwright_code"' EXIT
eval "$1"
"#;

/// Longest path that the prompt shows.
const MAX_CWD: usize = 4096;

/// Reads lines and runs them until the end of input.
pub fn run(args: &SandboxShellArgs) -> Result<ExitCode, CliError> {
    // The input is waited for where no signal is noticed, so the handler itself ends the program;
    // the sandbox is gone by then.
    let mut setting = Setting::make(&args.sandbox, || std::process::exit(130))?;
    let done = lines(&mut setting, args.sandbox.timeout);
    match done {
        Ok(code) => {
            setting.end()?;
            Ok(ExitCode::from(code))
        }
        Err(error) => {
            drop(setting);
            setting::close();
            Err(error)
        }
    }
}

fn lines(setting: &mut Setting, timeout_s: u64) -> Result<u8, CliError> {
    let prompts = std::io::stdin().is_terminal();
    if prompts {
        output::note("each line is a command of its own; `exit` ends, `:diff` shows the changes");
    }
    let mut input = std::io::stdin().lock();
    let (mut code, mut cwd) = (0, setting.cwd.clone());
    loop {
        let Some(line) = read_line(&mut input, prompts.then_some(cwd.as_str()))? else {
            return Ok(code);
        };
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (None, _) => continue,
            (Some(":diff"), _) => {
                output::data(&render(&setting.sandbox.diff()?))?;
                continue;
            }
            (Some("exit" | "logout"), given) => {
                return Ok(given.and_then(|code| code.parse().ok()).unwrap_or(code));
            }
            _ => {}
        }
        let argv = ["bash", "-c", SCRIPT, "shell", line.as_str()];
        let result = setting.exec(&ExecRequest::argv(&argv, &setting.cwd, setting.timeout))?;
        code = conclude(&result, timeout_s);
        if prompts && let Ok(found) = setting.sandbox.read(CWD_FILE, MAX_CWD) {
            String::from_utf8_lossy(&found).trim_end_matches('\n').clone_into(&mut cwd);
        }
    }
}

/// The next line, with those that a backslash at the end joins to it; `None` at the end of input.
fn read_line(input: &mut impl BufRead, prompt: Option<&str>) -> Result<Option<String>, CliError> {
    let mut line = String::new();
    loop {
        if let Some(cwd) = prompt {
            // A directory's name is the sandbox's: no control characters reach the terminal.
            let cwd: String = cwd.chars().filter(|c| !c.is_control()).collect();
            let mark = if line.is_empty() { format!("sandbox:{cwd}$ ") } else { "> ".to_owned() };
            super::write(&mut std::io::stderr().lock(), mark.as_bytes())?;
        }
        let n = input
            .read_line(&mut line)
            .map_err(|error| CliError::failed(format!("standard input: {error}")))?;
        if n == 0 {
            if prompt.is_some() {
                output::note("");
            }
            return Ok((!line.is_empty()).then_some(line));
        }
        let text = line.trim_end_matches(['\n', '\r']).len();
        line.truncate(text);
        if !line.ends_with('\\') {
            return Ok(Some(line));
        }
        line.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::read_line;

    #[test]
    fn a_backslash_joins_lines() {
        let mut input = b"a \\\nb\n\nlast".as_slice();
        let mut next = || read_line(&mut input, None).unwrap();
        assert_eq!(next().as_deref(), Some("a \\\nb"));
        assert_eq!(next().as_deref(), Some(""));
        assert_eq!(next().as_deref(), Some("last"));
        assert_eq!(next(), None);
    }
}
