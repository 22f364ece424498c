//! Tools: a command in, an observation out, through [`Sandbox`].
//!
//! The [`Workspace`] is what an agent carries from one command to the next, since commands
//! themselves are stateless: working directory, exported variables, the current file and its
//! window. Viewing and editing go through the sandbox's `read` and `write`; only shell commands
//! and the two searches over directories start a process.

mod files;
mod search;
mod shell;

use std::collections::BTreeMap;
use std::time::Duration;

use minijinja::Value;
use patchwright_core::{Sandbox, SandboxError};

use crate::command::{Command, ToolCall};
use crate::profile::{Profile, say};

/// Largest file that the tools read or change, in bytes.
pub const FILE_BYTES_MAX: usize = 2 << 20;

/// What an agent carries from one command to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Root of the repository inside the sandbox.
    workdir: String,
    /// Working directory of the next command, absolute.
    directory: String,
    /// Variables that commands have exported.
    env: BTreeMap<String, String>,
    /// The current file.
    open: Option<OpenFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct OpenFile {
    /// Absolute path.
    path: String,
    /// First line of the window, from 1.
    top: usize,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It ran; this is what is to be seen (not yet cut, nor closed by the suffix).
    Observation(String),
    /// The agent submitted.
    Submitted,
}

/// Why a tool has no result.
enum Fault {
    /// The agent's affair: it is told.
    Said(String),
    /// The sandbox is broken: infrastructure.
    Broken(SandboxError),
}

type Told = Result<String, Fault>;

/// Everything a tool works with.
struct Tool<'a> {
    workspace: &'a mut Workspace,
    sandbox: &'a mut dyn Sandbox,
    profile: &'a Profile,
    timeout: Duration,
}

impl Workspace {
    /// At the root of the repository, with no file open.
    pub fn new(workdir: &str) -> Self {
        Self {
            workdir: workdir.to_owned(),
            directory: workdir.to_owned(),
            env: BTreeMap::new(),
            open: None,
        }
    }

    /// The working directory of the next command.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// The current file as it is shown: relative to the repository's root if it lies in it.
    pub fn open_file(&self) -> Option<&str> {
        self.open.as_ref().map(|file| self.shown(&file.path))
    }

    /// Runs one command to its end.
    ///
    /// # Errors
    /// Only when the sandbox failed. What the agent did wrong is an observation.
    pub fn execute(
        &mut self,
        sandbox: &mut dyn Sandbox,
        profile: &Profile,
        timeout: Duration,
        command: &Command,
    ) -> Result<Step, SandboxError> {
        if *command == Command::Tool(ToolCall::Submit) {
            return Ok(Step::Submitted);
        }
        let mut tool = Tool { workspace: self, sandbox, profile, timeout };
        match tool.run(command) {
            Ok(text) | Err(Fault::Said(text)) if text.is_empty() => {
                Ok(Step::Observation(profile.texts.empty_output.clone()))
            }
            Ok(text) | Err(Fault::Said(text)) => Ok(Step::Observation(text)),
            Err(Fault::Broken(error)) => Err(error),
        }
    }

    /// An absolute path without `.` and `..`.
    fn resolve(&self, path: &str) -> String {
        let whole = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("{}/{path}", self.directory)
        };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        format!("/{}", parts.join("/"))
    }

    fn shown<'a>(&self, path: &'a str) -> &'a str {
        path.strip_prefix(self.workdir.as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .filter(|rest| !rest.is_empty())
            .unwrap_or(path)
    }
}

impl Tool<'_> {
    fn run(&mut self, command: &Command) -> Told {
        match command {
            Command::Shell(script) => self.shell(script),
            Command::Tool(call) => match call {
                ToolCall::Open { path, line } => self.open(path, *line),
                ToolCall::Goto { line } => self.goto(*line),
                ToolCall::ScrollUp => self.scroll(false),
                ToolCall::ScrollDown => self.scroll(true),
                ToolCall::SearchFile { term, file } => self.search_file(term, file.as_deref()),
                ToolCall::SearchDir { term, dir } => self.search_dir(term, dir.as_deref()),
                ToolCall::FindFile { name, dir } => self.find_file(name, dir.as_deref()),
                ToolCall::Create { path, body } => self.create(path, body),
                ToolCall::Edit { file, first, last, body } => {
                    self.edit(file.as_deref(), *first, *last, body)
                }
                ToolCall::Replace { file, all, old, new } => {
                    self.replace(file.as_deref(), *all, old, new)
                }
                ToolCall::Submit => Ok(String::new()),
            },
        }
    }

    /// The path of `file`, or of the current file.
    fn path_of(&self, file: Option<&str>) -> Result<String, Fault> {
        match (file, &self.workspace.open) {
            (Some(file), _) => Ok(self.workspace.resolve(file)),
            (None, Some(open)) => Ok(open.path.clone()),
            (None, None) => Err(Fault::Said(self.profile.texts.nothing_open.clone())),
        }
    }

    fn read(&mut self, path: &str) -> Result<Vec<u8>, Fault> {
        let texts = &self.profile.texts;
        let shown = self.workspace.shown(path);
        match self.sandbox.read(path, FILE_BYTES_MAX + 1) {
            Ok(bytes) if bytes.len() > FILE_BYTES_MAX => Err(Fault::Said(say(
                &texts.too_large,
                &[("path", shown.into()), ("num_bytes_max", FILE_BYTES_MAX.into())],
            ))),
            Ok(bytes) => Ok(bytes),
            Err(SandboxError::Path { reason, .. } | SandboxError::Limit(reason)) => {
                Err(Fault::Said(say(
                    &texts.no_file,
                    &[("path", shown.into()), ("reason", reason.into())],
                )))
            }
            Err(error) => Err(Fault::Broken(error)),
        }
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<(), Fault> {
        match self.sandbox.write(path, bytes) {
            Ok(()) => Ok(()),
            Err(SandboxError::Path { reason, .. } | SandboxError::Limit(reason)) => {
                let variables: [(&str, Value); 2] =
                    [("path", self.workspace.shown(path).into()), ("reason", reason.into())];
                Err(Fault::Said(say(&self.profile.texts.not_written, &variables)))
            }
            Err(error) => Err(Fault::Broken(error)),
        }
    }
}

/// Joins the parts that say something.
fn lines_of(parts: &[String]) -> String {
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
    parts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::Workspace;

    #[test]
    fn paths_are_resolved_and_shown() {
        let mut workspace = Workspace::new("/testbed");
        workspace.directory = "/testbed/src".to_owned();
        assert_eq!(workspace.resolve("a.py"), "/testbed/src/a.py");
        assert_eq!(workspace.resolve("../a//./b"), "/testbed/a/b");
        assert_eq!(workspace.resolve("../../../.."), "/");
        assert_eq!(workspace.resolve("/etc/x"), "/etc/x");
        assert_eq!(workspace.shown("/testbed/src/a.py"), "src/a.py");
        assert_eq!(workspace.shown("/testbed2/a.py"), "/testbed2/a.py");
        assert_eq!(workspace.shown("/testbed"), "/testbed");
    }
}
