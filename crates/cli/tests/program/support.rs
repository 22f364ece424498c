//! The program as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program in `dir`, without colours.
pub fn patchwright(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_patchwright"))
        .args(args)
        .current_dir(dir)
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .output()
        .expect("the program starts")
}

/// Exit code, standard output and standard error as one text.
pub fn shown(output: &Output) -> String {
    format!(
        "exit code {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().map_or_else(|| "none".into(), |code| code.to_string()),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}
