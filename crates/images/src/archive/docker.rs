//! What `docker save` writes: `manifest.json` names configs and layers.

use serde::Deserialize;

use super::container::Container;
use super::{ArchivedImage, image, promised};
use crate::digest::Digest;
use crate::documents::MAX_MANIFEST;
use crate::error::ImageError;
use crate::reference::Reference;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub fn images(container: &Container) -> Result<Vec<ArchivedImage>, ImageError> {
    let bytes = container.read("manifest.json", MAX_MANIFEST)?;
    let items: Vec<Item> = serde_json::from_slice(&bytes)
        .map_err(|error| container.error(format!("manifest.json: {error}")))?;
    items.into_iter().map(|item| one(container, item)).collect()
}

fn one(container: &Container, item: Item) -> Result<ArchivedImage, ImageError> {
    let references = item.repo_tags.unwrap_or_default();
    let references = references
        .iter()
        .map(|tag| tag.parse::<Reference>().map(|reference| reference.to_string()))
        .collect::<Result<_, _>>()?;
    // `<id>.json` in old archives.
    let expected = promised(&item.config)
        .or_else(|| item.config.strip_suffix(".json").and_then(Digest::from_hex));
    let layers = item.layers.into_iter().map(|name| {
        let digest = promised(&name);
        (name, digest)
    });
    image(container, &item.config, expected, references, layers.collect())
}
