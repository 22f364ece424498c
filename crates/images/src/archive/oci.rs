//! OCI image layouts: `index.json` names manifests, `blobs/` has everything by digest.

use super::container::Container;
use super::{ArchivedImage, image};
use crate::digest::Digest;
use crate::documents::{Blob, IndexEntry, MAX_MANIFEST, Manifest, choose, manifest};
use crate::error::ImageError;
use crate::reference::Reference;

/// Annotations that may hold an image's name; the first is containerd's, and a whole one.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

pub fn images(
    container: &Container,
    platform: (&str, &str),
) -> Result<Vec<ArchivedImage>, ImageError> {
    let bytes = container.read("index.json", MAX_MANIFEST)?;
    let Manifest::Index(entries) = manifest(&bytes, "index.json")? else {
        return Err(container.error("index.json is no index"));
    };
    // Several for one name are one image for several platforms.
    let with_name = |entry: &IndexEntry| name(entry).is_some();
    if entries.len() > 1 && !entries.iter().any(with_name) {
        let entry = choose(&entries, platform, "index.json")?;
        return Ok(vec![one(container, entry, platform)?]);
    }
    entries
        .iter()
        .filter(|entry| match &entry.platform {
            Some((os, arch)) => (os.as_str(), arch.as_str()) == platform,
            None => true,
        })
        .map(|entry| one(container, entry, platform))
        .collect()
}

/// A whole name: a bare tag, which the standard allows too, names nothing.
fn name(entry: &IndexEntry) -> Option<String> {
    let texts = NAMES.iter().filter_map(|key| entry.annotations.get(*key));
    texts
        .filter(|text| text.contains(['/', ':']))
        .find_map(|text| text.parse::<Reference>().ok())
        .map(|reference| reference.to_string())
}

fn one(
    container: &Container,
    entry: &IndexEntry,
    platform: (&str, &str),
) -> Result<ArchivedImage, ImageError> {
    let mut blob = entry.blob;
    for _ in 0..3 {
        match manifest(&document(container, blob)?, &blob.digest.to_string())? {
            Manifest::Index(entries) => {
                blob = choose(&entries, platform, &blob.digest.to_string())?.blob;
            }
            Manifest::Image { config, layers } => {
                let layers = layers.iter().map(|layer| (path(layer.digest), Some(layer.digest)));
                let references = name(entry).into_iter().collect();
                let digest = Some(config.digest);
                return image(
                    container,
                    &path(config.digest),
                    digest,
                    references,
                    layers.collect(),
                );
            }
        }
    }
    Err(container.error("an index of indexes of indexes"))
}

fn path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn document(container: &Container, blob: Blob) -> Result<Vec<u8>, ImageError> {
    let name = path(blob.digest);
    let bytes = container.read(&name, MAX_MANIFEST)?;
    if bytes.len() as u64 != blob.size {
        return Err(ImageError::size(name, blob.size, bytes.len() as u64));
    }
    let got = Digest::of(&bytes);
    if got == blob.digest { Ok(bytes) } else { Err(ImageError::digest(name, blob.digest, got)) }
}
