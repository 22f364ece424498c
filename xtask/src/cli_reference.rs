//! `docs/cli-reference.md`: the help of every command, as the program prints it.

#![expect(clippy::format_push_string, reason = "one page of text")]

use clap::{Command, CommandFactory};

/// The whole page.
pub fn render() -> String {
    let mut page = String::from(
        "# Command line reference\n\n\
         Generated from the program by `cargo xtask docs`.\n\n\
         Data goes to standard output, progress and errors to standard error. Exit codes: 0 done, \
         1 failed, 2 wrong use, 130 interrupted.\n",
    );
    let mut program =
        patchwright_cli::args::Cli::command().term_width(100).disable_help_subcommand(true);
    program.build();
    commands(&program, &mut page);
    page
}

fn commands(command: &Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let help = command.clone().term_width(100).render_long_help().to_string();
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    *page += &format!("\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n"));
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        commands(below, page);
    }
}
