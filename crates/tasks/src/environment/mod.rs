//! What a package's tests need, built once on the host: source distributions, unpacked, and a
//! directory of installed packages that sandboxes mount read-only.
//!
//! Everything comes from the ordinary pip client of the user's `python3` and follows the user's
//! pip configuration; nothing else here uses the network. **Building a source distribution runs
//! that package's setup code on the host**, as pip always does; it sees an environment of a few
//! named variables (`PATH`, `HOME`, proxies, certificates, `PIP_*`) and none of the caller's
//! others. The tests themselves run in sandboxes, without a network.

mod build;
mod pip;
mod requirements;
mod sdist;

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

pub use build::{Environment, EnvironmentSpec, Metadata};
pub use pip::Pip;
pub use requirements::{declared_test_requirements, is_pinned, requirement_name, unpinned};
pub use sdist::{SdistLimits, unpack_sdist};

/// Hears how far long work is, and may stop it. Called from worker threads.
pub trait Watch: Sync {
    /// Something that lasts, for people.
    fn say(&self, line: &str);

    /// So much of so much is done, and what is being done now.
    fn progress(&self, done: usize, total: usize, doing: &str);

    /// Whether to stop soon.
    fn is_stopped(&self) -> bool;
}

/// Watches nothing and stops nothing.
impl Watch for () {
    fn say(&self, _: &str) {}

    fn progress(&self, _: usize, _: usize, _: &str) {}

    fn is_stopped(&self) -> bool {
        false
    }
}

/// Why sources or an environment could not be had.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// It was asked to stop.
    #[error("stopped")]
    Stopped,
    /// There is no python3 with pip that fits.
    #[error("{0}")]
    Python(String),
    /// pip did not do it.
    #[error("pip {command}: {says}")]
    Pip {
        /// The command, such as `download`.
        command: String,
        /// The last lines of its message.
        says: String,
    },
    /// The distribution is not of a kind that can be used.
    #[error("{0}")]
    Sdist(String),
    /// An operation of the host failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: std::io::Error,
    },
}

pub(crate) fn io(doing: &str, path: &std::path::Path, source: std::io::Error) -> EnvironmentError {
    EnvironmentError::Io { context: format!("{doing} {}", path.display()), source }
}

/// The first 16 bytes of the SHA-256 of length-prefixed parts, in hexadecimal.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A name in the form that package indexes compare: lower case, runs of `-_.` one `-`.
pub fn normalized(name: &str) -> String {
    let parts: Vec<&str> = name.split(['-', '_', '.']).filter(|part| !part.is_empty()).collect();
    parts.join("-").to_lowercase()
}
