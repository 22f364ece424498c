//! Records and references: what images there are, by which names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::locks::try_lock;
use super::{ImageStore, Record};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::Image;
use crate::reference::Reference;

/// What `references.json` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct References {
    schema_version: u32,
    /// By name in full.
    pub references: BTreeMap<String, Digest>,
}

/// One line of `images list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// Its names, in full.
    pub references: Vec<String>,
    /// Its id.
    pub id: Digest,
    /// Number of layers.
    pub num_layers: usize,
    /// Bytes of the files of its layers; layers that images share count in each.
    pub bytes: u64,
    /// When it was built, as it says itself.
    pub created: String,
    /// When it was last used here, seconds since 1970.
    pub last_used: u64,
    /// Whether a living process uses it.
    pub in_use: bool,
    /// Whether all its layers are there; not so while it is being pulled, or after a pull that was
    /// interrupted.
    pub complete: bool,
}

impl ImageStore {
    pub(super) fn references(&self) -> Result<References, ImageError> {
        let path = self.dir.join("references.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(References { schema_version: 1, ..References::default() });
            }
            Err(error) => return Err(ImageError::at(&path)(error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            let reason = format!("{error}; remove it, and pull what it named again");
            ImageError::document(path.display().to_string(), reason)
        })
    }

    /// Changes the references. The index must be locked.
    pub(super) fn write_references(&self, references: &References) -> Result<(), ImageError> {
        self.write_atomically(&self.dir.join("references.json"), references)
    }

    pub(super) fn name(&self, reference: &str, id: Digest) -> Result<(), ImageError> {
        let _index = self.lock_index()?;
        let mut references = self.references()?;
        if references.references.insert(reference.to_owned(), id) != Some(id) {
            self.write_references(&references)?;
        }
        Ok(())
    }

    pub(super) fn record(&self, id: Digest) -> Result<Option<Record>, ImageError> {
        let path = self.record_path(id);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                let reason = format!("{error}; remove it, and pull the image again");
                ImageError::document(path.display().to_string(), reason)
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::at(&path)(error)),
        }
    }

    /// Makes an image known, so that nobody removes layers that come for it, and takes a lease.
    pub(super) fn register(&self, record: &Record) -> Result<File, ImageError> {
        let _index = self.lock_index()?;
        let path = self.record_path(record.id);
        if self.record(record.id).ok().flatten().as_ref() != Some(record) {
            self.write_atomically(&path, record)?;
        }
        self.lease(record.id)
    }

    /// A lease on an image. The index must be locked: else the record could go meanwhile.
    fn lease(&self, id: Digest) -> Result<File, ImageError> {
        let path = self.record_path(id);
        let file = super::locks::open_lock(&path)?;
        // Nobody holds it otherwise, but with the index locked.
        file.lock_shared().map_err(ImageError::at(&path))?;
        Ok(file)
    }

    /// Whether a living process has a lease. The index must be locked.
    pub(super) fn is_in_use(&self, id: Digest) -> Result<bool, ImageError> {
        let path = self.record_path(id);
        match File::open(&path) {
            Ok(file) => Ok(!try_lock(&file, &path)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ImageError::at(&path)(error)),
        }
    }

    /// The image of a reference, or of an id or its first digits (12 at least), if all of it is
    /// here.
    ///
    /// # Errors
    /// [`ImageError::Reference`] for what is neither; [`ImageError::Io`].
    pub fn get(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let _index = self.lock_index()?;
        let Some((name, id)) = self.find(reference)? else { return Ok(None) };
        let Some(record) = self.record(id)? else { return Ok(None) };
        let lease = self.lease(id)?;
        Ok(self.image(record, name, lease))
    }

    /// Name and id of what a user names.
    pub(super) fn find(&self, text: &str) -> Result<Option<(String, Digest)>, ImageError> {
        if let Some(id) = self.find_id(text)? {
            return Ok(Some((id.to_string(), id)));
        }
        let name = text.parse::<Reference>()?.to_string();
        Ok(self.references()?.references.get(&name).map(|id| (name, *id)))
    }

    fn find_id(&self, text: &str) -> Result<Option<Digest>, ImageError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if !(12..=64).contains(&hex.len()) || !hex.bytes().all(is_hex) {
            return Ok(None);
        }
        let mut ids = self.ids()?.into_iter().filter(|id| id.hex().starts_with(hex));
        // Two images that begin the same: neither is meant for sure.
        let first = ids.next();
        Ok(if ids.next().is_some() { None } else { first })
    }

    /// All ids, sorted.
    pub(super) fn ids(&self) -> Result<Vec<Digest>, ImageError> {
        let dir = self.dir.join("images");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(ImageError::at(&dir))? {
            let name = entry.map_err(ImageError::at(&dir))?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".json"));
            ids.extend(hex.and_then(Digest::from_hex));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// All images, those used last first.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::Document`] for a damaged index.
    pub fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let _index = self.lock_index()?;
        let references = self.references()?.references;
        let mut images = Vec::new();
        for id in self.ids()? {
            let Some(record) = self.record(id)? else { continue };
            let mut layers = record.layers.clone();
            layers.sort_unstable();
            layers.dedup();
            images.push(ImageSummary {
                references: references
                    .iter()
                    .filter(|(_, of)| **of == id)
                    .map(|(name, _)| name.clone())
                    .collect(),
                id,
                num_layers: record.layers.len(),
                bytes: layers.iter().map(|layer| self.layer_info(*layer).bytes).sum(),
                created: record.config.created,
                last_used: self.last_used(id),
                in_use: self.is_in_use(id)?,
                complete: layers.iter().all(|layer| self.has_layer(*layer)),
            });
        }
        images.sort_by_key(|image| (std::cmp::Reverse(image.last_used), image.id));
        Ok(images)
    }

    pub(super) fn last_used(&self, id: Digest) -> u64 {
        fs::metadata(self.record_path(id))
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_secs())
    }
}
