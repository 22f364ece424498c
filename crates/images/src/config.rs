//! What an image says about how its commands are to be run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The part of an image's config that running its commands needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Working directory; empty where the image names none.
    pub workdir: String,
    /// `user[:group]`, names or numbers. Sandboxes run everything as their own user.
    pub user: String,
    /// Arguments that stand before the command's.
    pub entrypoint: Vec<String>,
    /// The default command.
    pub cmd: Vec<String>,
    /// Such as `amd64`.
    pub architecture: String,
    /// Such as `linux`.
    pub os: String,
    /// When it was built, RFC 3339; empty where the image does not say.
    pub created: String,
}
