//! Manifests, indexes and configs: read, bounded, and reduced to what is used.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::ImageError;

/// Bytes of a manifest or index at most. Registries refuse longer ones too.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Bytes of a config at most.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Layers of an image at most: an overlay takes 500.
const MAX_LAYERS: usize = 499;
/// Compressed bytes of a layer at most.
const MAX_BLOB: u64 = 256 << 30;

/// The media types of manifests and indexes that can be used, for `Accept`.
pub const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// The media types of layers that can be used.
const LAYER_TYPES: [&str; 8] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// Digest and size of a document or a compressed layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
}

impl Blob {
    fn new(descriptor: &Descriptor, what: &str, max: u64) -> Result<Self, ImageError> {
        let digest = descriptor.digest().to_string().parse();
        let digest = digest.map_err(|error: String| ImageError::document(what, error))?;
        let size = descriptor.size();
        if size > max {
            let reason = format!("{digest} has {size} bytes; at most {max} are taken");
            return Err(ImageError::document(what, reason));
        }
        Ok(Self { digest, size })
    }
}

/// A manifest or an index.
#[derive(Debug)]
pub enum Manifest {
    /// One image.
    Image {
        config: Blob,
        /// The lowest first.
        layers: Vec<Blob>,
    },
    /// Images for several platforms.
    Index(Vec<IndexEntry>),
}

/// An image of an index.
#[derive(Debug)]
pub struct IndexEntry {
    pub blob: Blob,
    /// Operating system and architecture, as Go names them.
    pub platform: Option<(String, String)>,
    pub annotations: BTreeMap<String, String>,
}

/// Reads a manifest or index. Which one it is, is told by what it holds: headers may say anything.
pub fn manifest(bytes: &[u8], what: &str) -> Result<Manifest, ImageError> {
    let bad = |reason: String| ImageError::document(what, reason);
    let value: serde_json::Value = serde_json::from_slice(bytes)
        .map_err(|error| bad(format!("the manifest is no JSON: {error}")))?;
    if value.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
        return Err(bad("a manifest of schema 1, which Docker has retired: push it again with a \
                        newer client"
            .to_owned()));
    }
    // One that is both would be read differently by others.
    match (value.get("manifests").is_some(), value.get("layers").is_some()) {
        (true, true) => Err(bad("it is both a manifest and an index".to_owned())),
        (false, false) => Err(bad("neither a manifest nor an index".to_owned())),
        (true, false) => {
            let index: ImageIndex =
                serde_json::from_value(value).map_err(|error| bad(format!("index: {error}")))?;
            index_entries(&index, what).map(Manifest::Index)
        }
        (false, true) => {
            let manifest: ImageManifest =
                serde_json::from_value(value).map_err(|error| bad(format!("manifest: {error}")))?;
            image(&manifest, what)
        }
    }
}

fn image(manifest: &ImageManifest, what: &str) -> Result<Manifest, ImageError> {
    let layers = manifest.layers();
    if layers.len() > MAX_LAYERS {
        let reason = format!("{} layers; at most {MAX_LAYERS} can be stacked", layers.len());
        return Err(ImageError::document(what, reason));
    }
    for layer in layers {
        let media_type = layer.media_type().to_string();
        if !LAYER_TYPES.contains(&media_type.as_str()) {
            let reason = format!("a layer of type {media_type}: this is no container image");
            return Err(ImageError::document(what, reason));
        }
    }
    let layers =
        layers.iter().map(|layer| Blob::new(layer, what, MAX_BLOB)).collect::<Result<_, _>>()?;
    Ok(Manifest::Image { config: Blob::new(manifest.config(), what, MAX_CONFIG)?, layers })
}

fn index_entries(index: &ImageIndex, what: &str) -> Result<Vec<IndexEntry>, ImageError> {
    let entry = |descriptor: &Descriptor| {
        Ok(IndexEntry {
            blob: Blob::new(descriptor, what, MAX_MANIFEST)?,
            platform: descriptor
                .platform()
                .as_ref()
                .map(|platform| (platform.os().to_string(), platform.architecture().to_string())),
            annotations: descriptor.annotations().clone().unwrap_or_default().into_iter().collect(),
        })
    };
    index.manifests().iter().map(entry).collect()
}

/// Chooses a platform's image. An entry without a platform is taken where there is no other.
pub fn choose<'a>(
    entries: &'a [IndexEntry],
    platform: (&str, &str),
    what: &str,
) -> Result<&'a IndexEntry, ImageError> {
    let wanted = |entry: &&IndexEntry| {
        entry.platform.as_ref().is_some_and(|(os, arch)| (os.as_str(), arch.as_str()) == platform)
    };
    if let Some(entry) = entries.iter().find(wanted) {
        return Ok(entry);
    }
    if let [entry @ IndexEntry { platform: None, .. }] = entries {
        return Ok(entry);
    }
    let mut there: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .filter(|(os, _)| os != "unknown")
        .map(|(os, arch)| format!("{os}/{arch}"))
        .collect();
    there.dedup();
    let (os, arch) = platform;
    let reason = format!("there is none for {os}/{arch}, only for: {}", there.join(", "));
    Err(ImageError::document(what, reason))
}

/// Reads a config: how commands are run, and the diff-ids of the layers, the lowest first.
pub fn config(bytes: &[u8], what: &str) -> Result<(ImageConfig, Vec<Digest>), ImageError> {
    let read: ImageConfiguration = serde_json::from_slice(bytes)
        .map_err(|error| ImageError::document(what, format!("config: {error}")))?;
    let diff_ids = read.rootfs().diff_ids().iter().map(|id| id.parse()).collect::<Result<_, _>>();
    let diff_ids: Vec<Digest> =
        diff_ids.map_err(|error: String| ImageError::document(what, error))?;
    if diff_ids.len() > MAX_LAYERS {
        let reason = format!("{} layers; at most {MAX_LAYERS} can be stacked", diff_ids.len());
        return Err(ImageError::document(what, reason));
    }
    let mut config = ImageConfig {
        architecture: read.architecture().to_string(),
        os: read.os().to_string(),
        created: read.created().clone().unwrap_or_default(),
        ..ImageConfig::default()
    };
    if let Some(run) = read.config() {
        let env = run.env().iter().flatten();
        // The last of equal names wins, as in a container.
        config.env = env
            .filter_map(|pair| pair.split_once('='))
            .filter(|(name, value)| !name.is_empty() && !pair_has_nul(name, value))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        config.workdir = run.working_dir().clone().unwrap_or_default();
        config.user = run.user().clone().unwrap_or_default();
        config.entrypoint = run.entrypoint().clone().unwrap_or_default();
        config.cmd = run.cmd().clone().unwrap_or_default();
    }
    Ok((config, diff_ids))
}

fn pair_has_nul(name: &str, value: &str) -> bool {
    name.contains('\0') || value.contains('\0')
}

/// This machine's platform, as Go names it.
pub fn host_platform() -> (&'static str, &'static str) {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    ("linux", arch)
}
