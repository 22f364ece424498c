//! From a message to its one command.

use crate::command::{self, Command};
use crate::profile::CommandStyle;

/// A message that is not exactly one command. The observation says so; nothing runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormatError {
    /// There is no command.
    NoCommand,
    /// There are several blocks, or text follows a tool's complete command.
    SeveralCommands,
    /// A tool's arguments cannot be understood, or a block is not closed.
    Malformed(String),
}

/// Finds and parses the command of a message.
///
/// `Fenced`: exactly one block fenced by three or more backticks with the info string `command`
/// (as in `CommonMark`, it ends with a line of at least as many backticks; blocks of other kinds
/// are part of the reasoning). `Bare`: the whole message.
///
/// # Errors
/// [`FormatError`] when there is no, more than one, or a malformed command.
pub fn parse_message(style: CommandStyle, message: &str) -> Result<Command, FormatError> {
    command::parse(&command_text(style, message)?)
}

/// The text of a message's one command.
pub(crate) fn command_text(style: CommandStyle, message: &str) -> Result<String, FormatError> {
    match style {
        CommandStyle::Bare => Ok(message.to_owned()),
        CommandStyle::Fenced => {
            let blocks = command_blocks(message)?;
            let mut blocks = blocks.into_iter().filter(|block| !block.trim().is_empty());
            match (blocks.next(), blocks.next()) {
                (None, _) => Err(FormatError::NoCommand),
                (Some(block), None) => Ok(block),
                (Some(_), Some(_)) => Err(FormatError::SeveralCommands),
            }
        }
    }
}

/// The texts of all `command` blocks.
fn command_blocks(message: &str) -> Result<Vec<String>, FormatError> {
    let mut blocks = Vec::new();
    // Backticks of the block that is open, and its text if it is a command.
    let mut open: Option<(usize, Option<String>)> = None;
    for line in message.split_inclusive('\n') {
        let fence = fence_of(line);
        match (&mut open, fence) {
            (None, Some((ticks, info))) => {
                open = Some((ticks, (info == "command").then(String::new)));
            }
            (Some((ticks, block)), Some((closing, ""))) if closing >= *ticks => {
                blocks.extend(block.take());
                open = None;
            }
            (Some((_, Some(block))), _) => block.push_str(line),
            (Some((_, None)), _) | (None, None) => {}
        }
    }
    match open {
        Some((_, Some(_))) => Err(FormatError::Malformed(
            "the command block is not closed by a line of backticks".to_owned(),
        )),
        _ => Ok(blocks),
    }
}

/// Number of backticks and info string, if the line is a fence (at most three spaces before it).
fn fence_of(line: &str) -> Option<(usize, &str)> {
    let indent = line.len() - line.trim_start_matches(' ').len();
    let rest = &line[indent..];
    let ticks = rest.len() - rest.trim_start_matches('`').len();
    let info = rest[ticks..].trim();
    (indent <= 3 && ticks >= 3 && !info.contains('`')).then_some((ticks, info))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{FormatError, parse_message};
    use crate::command::{Command, ToolCall};
    use crate::profile::CommandStyle::{Bare, Fenced};

    type Parsed = Result<Command, FormatError>;

    fn shell(script: &str) -> Command {
        Command::Shell(script.to_owned())
    }

    #[test]
    fn fenced_messages_hold_exactly_one_command_block() {
        let submit = Ok(Command::Tool(ToolCall::Submit));
        let malformed = |message: &str| {
            matches!(parse_message(Fenced, message), Err(FormatError::Malformed(_)))
        };
        let cases: [(&str, Parsed); 13] = [
            ("I look.\n```command\nls\n```\n", Ok(shell("ls"))),
            ("```command\nls\n```", Ok(shell("ls"))),
            ("```command  \n  submit \n```  \nbye", submit.clone()),
            ("Like\n```python\nx = 1\n```\nthen\n```command\nsubmit\n```", submit.clone()),
            ("```text\n```command\nls\n```\n```command\nsubmit\n```", submit.clone()),
            ("````command\ncat <<'E'\n```\nE\n````", Ok(shell("cat <<'E'\n```\nE"))),
            ("no command", Err(FormatError::NoCommand)),
            ("", Err(FormatError::NoCommand)),
            ("```command\n\n```", Err(FormatError::NoCommand)),
            ("```bash\nls\n```", Err(FormatError::NoCommand)),
            ("text ```command ls```", Err(FormatError::NoCommand)),
            ("```command\nls\n```\n```command\npwd\n```", Err(FormatError::SeveralCommands)),
            ("```command\nsubmit\nls\n```", Err(FormatError::SeveralCommands)),
        ];
        for (message, expected) in cases {
            assert_eq!(parse_message(Fenced, message), expected, "{message:?}");
        }
        assert!(malformed("```command\nls"));
        assert!(malformed("```command\nls\n``"));
    }

    #[test]
    fn a_bare_message_is_its_command() {
        assert_eq!(parse_message(Bare, " ls -l\n"), Ok(shell("ls -l")));
        assert_eq!(parse_message(Bare, "```command\nls\n```"), Ok(shell("```command\nls\n```")));
        assert_eq!(parse_message(Bare, " \n"), Err(FormatError::NoCommand));
    }

    proptest! {
        #[test]
        fn no_message_panics(message in any::<String>()) {
            let _ = parse_message(Bare, &message);
            let _ = parse_message(Fenced, &message);
            let _ = parse_message(Fenced, &format!("```command\n{message}\n```"));
        }

        #[test]
        fn no_tool_call_panics(
            name in prop::sample::select(crate::command::TOOLS.to_vec()),
            rest in "[ a-z0-9:'\"\\\\<E\n-]{0,40}",
        ) {
            let _ = parse_message(Bare, &format!("{name} {rest}"));
        }
    }
}
