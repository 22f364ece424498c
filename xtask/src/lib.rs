//! Checks of the repository itself, and references generated from the code.

mod cli_reference;
mod recipe_reference;

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// The generated references: path below the root, and what they must say.
///
/// # Errors
/// When the code that they are made of cannot be read.
pub fn references() -> Result<Vec<(&'static str, String)>, String> {
    Ok(vec![
        ("docs/cli-reference.md", cli_reference::render()),
        ("docs/recipe-reference.md", recipe_reference::render(&root())?),
    ])
}

/// Writes the references and gives their paths.
///
/// # Errors
/// When one cannot be made or written.
pub fn write_references() -> Result<Vec<&'static str>, String> {
    let mut written = Vec::new();
    for (path, text) in references()? {
        std::fs::write(root().join(path), text).map_err(|error| format!("{path}: {error}"))?;
        written.push(path);
    }
    Ok(written)
}

/// Says whether the references are as the code is.
///
/// # Errors
/// When one is missing or stale.
pub fn check_references() -> Result<(), String> {
    for (path, text) in references()? {
        let found = std::fs::read_to_string(root().join(path)).unwrap_or_default();
        if found != text {
            return Err(format!("{path} is not what the code says: run `cargo xtask docs`"));
        }
    }
    Ok(())
}
