//! `cargo xtask docs` writes the generated references; `cargo xtask check` fails when they are
//! stale; `cargo xtask real-engines [SUITE…]` tests against engines of others. The other checks of the repository are in `tests/`.

use std::process::ExitCode;

mod real_engines;

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    let done = match task.as_deref() {
        Some("docs") => xtask::write_references().map(|paths| {
            for path in paths {
                println!("wrote {path}");
            }
        }),
        Some("check") => xtask::check_references(),
        Some("real-engines") => {
            real_engines::run(&std::env::args().skip(2).collect::<Vec<String>>())
        }
        _ => Err("usage: cargo xtask docs | check | real-engines [SUITE…]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
