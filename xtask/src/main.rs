//! `cargo xtask docs` writes the generated references; `cargo xtask check` fails when they are
//! stale. The other checks of the repository are in `tests/`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    let done = match task.as_deref() {
        Some("docs") => xtask::write_references().map(|paths| {
            for path in paths {
                println!("wrote {path}");
            }
        }),
        Some("check") => xtask::check_references(),
        _ => Err("usage: cargo xtask docs | check".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
