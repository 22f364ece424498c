//! Shell commands, with the working directory and exported variables carried from one to the next.

use std::collections::BTreeMap;

use patchwright_core::{ExecOutput, ExecRequest, ExecStatus};

use super::{Fault, Told, Tool, lines_of};
use crate::profile::say;

/// Runs the command `$1` in the directory `$3` and reports where it ended.
///
/// The command's stdout and stderr become one stream, in the order in which they were written;
/// the real stderr is kept as descriptor 3, which the command does not get, and carries only the
/// report: the working directory, then (if `$2` is `env`) the exported variables, each ended by
/// NUL. So nothing that a command prints can be taken for a report, and no second exec is needed.
/// The trap is for commands that end with `exit`. The report of a directory that is gone is `gone`.
const WRAPPER: &str = r#"exec 3>&2 2>&1
cd -- "$3" 2>/dev/null || { printf 'gone\0' >&3; exit; }
unset OLDPWD
__pw_report() {
  builtin printf '%s\0' "$PWD" >&3
  if [[ $1 == env ]]; then command -p env -0 >&3; fi
}
trap "__pw_report '$2'" EXIT
eval "$1" 3>&-
set -- "$?" "$2"
__pw_report "$2"
exit "$1""#;

/// Bounds on what is carried: variables and their bytes altogether.
const NUM_VARIABLES_MAX: usize = 256;
const ENV_BYTES_MAX: usize = 64 << 10;

/// What the shell sets by itself.
const SHELLS_OWN: [&str; 4] = ["_", "PWD", "OLDPWD", "SHLVL"];

impl Tool<'_> {
    pub(super) fn shell(&mut self, script: &str) -> Told {
        // `env` starts a process: only where the script can have exported anything.
        let exports = ["export", "declare", "typeset", "source", "unset", "set ", ". "];
        let env = if exports.iter().any(|word| script.contains(word)) { "env" } else { "" };
        let mut request = ExecRequest::shell(WRAPPER, "/", self.timeout);
        let arguments = ["bash", script, env, &self.workspace.directory];
        request.argv.extend(arguments.map(str::to_owned));
        request.env.clone_from(&self.workspace.env);
        let output = self.sandbox.exec(&request).map_err(Fault::Broken)?;
        if output.stderr == b"gone\0" {
            return Err(self.directory_gone());
        }
        self.take_report(&output.stderr);
        Ok(self.printed(&output))
    }

    /// Puts the agent back into the root of the repository, and tells it.
    fn directory_gone(&mut self) -> Fault {
        let gone = std::mem::take(&mut self.workspace.directory);
        self.workspace.directory.clone_from(&self.workspace.workdir);
        Fault::Said(say(&self.profile.texts.no_directory, &[("path", gone.into())]))
    }

    /// Takes over the directory and the variables of the last whole report, if there is one.
    fn take_report(&mut self, report: &[u8]) {
        let Some(whole) = report.iter().rposition(|b| *b == 0) else { return };
        let records: Vec<&[u8]> = report[..whole].split(|b| *b == 0).collect();
        // A name of a variable never starts with a slash; a working directory always does.
        let Some(at) = records.iter().rposition(|record| record.starts_with(b"/")) else { return };
        if let Ok(directory) = std::str::from_utf8(records[at]) {
            directory.clone_into(&mut self.workspace.directory);
        }
        let variables: BTreeMap<String, String> = records[at + 1..]
            .iter()
            .filter_map(|record| std::str::from_utf8(record).ok()?.split_once('='))
            .filter(|(name, _)| !SHELLS_OWN.contains(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let num_bytes: usize = variables.iter().map(|(k, v)| k.len() + v.len()).sum();
        let bounded = variables.len() <= NUM_VARIABLES_MAX && num_bytes <= ENV_BYTES_MAX;
        if !variables.is_empty() && bounded {
            self.workspace.env = variables;
        }
    }

    /// What a command printed, and how it ended if not well.
    fn printed(&self, output: &ExecOutput) -> String {
        let texts = &self.profile.texts;
        let text = String::from_utf8_lossy(&output.stdout);
        let dropped = if output.dropped_bytes == 0 {
            String::new()
        } else {
            say(&texts.output_dropped, &[("num_bytes", output.dropped_bytes.into())])
        };
        let end = match output.status {
            ExecStatus::Exited(0) => String::new(),
            ExecStatus::Exited(code) => say(&texts.exit_code, &[("code", code.into())]),
            ExecStatus::Signaled(number) => say(&texts.signal, &[("number", number.into())]),
            ExecStatus::TimedOut => {
                say(&texts.timed_out, &[("seconds", self.timeout.as_secs().into())])
            }
        };
        lines_of(&[text.trim_end_matches('\n').to_owned(), dropped, end])
    }
}
