//! Speaks the OCI distribution protocol, as far as pulling needs it.

mod auth;
mod client;
mod transfer;

use std::path::PathBuf;

use crate::unpack::UnpackLimits;

pub use client::Registry;

/// User name and password, or a token as the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Logs are read by others.
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Credentials for the registry of the image; without them those of
    /// [`PullOptions::docker_config`].
    pub credentials: Option<Credentials>,
    /// Docker's `config.json`, as `docker login` writes it. Not needed to exist.
    pub docker_config: Option<PathBuf>,
    /// Lets a registry that is not on this machine be spoken to without encryption.
    pub allow_http: bool,
    /// Operating system and architecture, as Go names them.
    pub platform: (String, String),
    /// Layers at once.
    pub parallelism: usize,
    /// How often a request that failed is made again before giving up.
    pub max_retries: u32,
    /// Bounds on each layer.
    pub limits: UnpackLimits,
}

impl Default for PullOptions {
    fn default() -> Self {
        let (os, arch) = crate::documents::host_platform();
        Self {
            credentials: None,
            docker_config: docker_config(),
            allow_http: false,
            platform: (os.to_owned(), arch.to_owned()),
            parallelism: 4,
            max_retries: 5,
            limits: UnpackLimits::default(),
        }
    }
}

/// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
fn docker_config() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))?;
    Some(dir.join("config.json"))
}
