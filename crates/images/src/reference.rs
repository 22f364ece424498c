//! Names of images, with Docker's defaults.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference as Parsed;

use crate::digest::Digest;
use crate::error::ImageError;

/// `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`. Without a host it is Docker Hub's, whose one-word names
/// are in `library/`; without tag and digest the tag is `latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as named, such as `docker.io` or `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host to speak to, with its port if it has one: that of `docker.io` is another one.
    pub fn host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }

    /// Such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was given or is the default.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry is asked for: the digest if there is one, else the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Whether the registry is on this machine, so that plain HTTP leaves it not.
    pub fn is_loopback(&self) -> bool {
        is_loopback(self.host())
    }
}

/// Whether a `HOST[:PORT]` is this machine.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost"
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let wrong = |reason: String| ImageError::Reference { text: text.to_owned(), reason };
        // Rows of task sets may say where it comes from.
        let name = text.trim();
        let name = name
            .strip_prefix("docker.io/")
            .map_or(name, |rest| if rest.is_empty() { name } else { rest });
        let name = name.strip_prefix("docker://").unwrap_or(name);
        let parsed: Parsed = name.parse().map_err(|error| wrong(format!("{error}")))?;
        let digest = parsed.digest().map(str::parse).transpose().map_err(wrong)?;
        let registry = match parsed.registry() {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            registry => registry.to_owned(),
        };
        let tag = match (parsed.tag(), digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry, repository: parsed.repository().to_owned(), tag, digest })
    }
}

impl fmt::Display for Reference {
    /// The name in full.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Reference, is_loopback};

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn defaults_are_those_of_docker() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker.io/library/debian:12".to_owned()),
            ("docker.io/debian:12", "docker.io/library/debian:12".to_owned()),
            ("docker://debian:12", "docker.io/library/debian:12".to_owned()),
            (
                "swerebench/sweb.eval.x86_64.a_1776_b-1",
                "docker.io/swerebench/sweb.eval.x86_64.a_1776_b-1:latest".to_owned(),
            ),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest".to_owned()),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest".to_owned()),
            (&format!("ghcr.io/a/b@{digest}"), format!("ghcr.io/a/b@{digest}")),
            (&format!("a/b:t@{digest}"), format!("docker.io/a/b:t@{digest}")),
        ];
        for (text, expected) in cases {
            assert_eq!(full(text), expected);
            assert_eq!(full(&full(text)), expected);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", " ", ":x", "a b", "Upper/Case", "a@sha256:12", "a:", "../x", "a//b"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn loopback_is_told_by_the_host() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.com", "10.0.0.1:5000", "ghcr.io", "127.0.0.1.nip.io"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
