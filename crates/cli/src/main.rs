//! The `patchwright` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    patchwright_cli::main()
}
