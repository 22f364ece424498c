//! Removes what nobody needs.

use std::collections::BTreeSet;
use std::fs;

use serde::Serialize;

use super::{ImageStore, Record};
use crate::digest::Digest;
use crate::error::ImageError;

/// What was removed and what stayed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GcReport {
    /// Ids of images that were removed.
    pub removed_images: Vec<Digest>,
    /// Number of layers that were removed.
    pub removed_layers: usize,
    /// Number of interrupted downloads that were removed.
    pub removed_downloads: usize,
    /// Bytes of the files of the removed layers.
    pub freed_bytes: u64,
    /// Bytes of the files of the layers that stay.
    pub kept_bytes: u64,
    /// Images that stay because living processes use them.
    pub in_use: usize,
}

impl ImageStore {
    /// Removes layers that belong to no image, what interrupted pulls left, and images that are not
    /// whole; with `keep_bytes`, also images, those used longest ago first, until the layers that
    /// stay have at most so many bytes. What a living process uses or is pulling stays, whatever
    /// the bound.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn gc(&self, keep_bytes: Option<u64>) -> Result<GcReport, ImageError> {
        let mut report = GcReport::default();
        let index = self.lock_index()?;
        let mut kept: Vec<Record> = Vec::new();
        let mut idle: Vec<(u64, Record)> = Vec::new();
        for id in self.ids()? {
            match self.record(id) {
                Ok(Some(record)) if self.is_in_use(id)? => {
                    report.in_use += 1;
                    kept.push(record);
                }
                Ok(Some(record)) if record.layers.iter().all(|layer| self.has_layer(*layer)) => {
                    idle.push((self.last_used(id), record));
                }
                // Interrupted, or damaged.
                _ => report.removed_images.push(id),
            }
        }
        idle.sort_by_key(|(last_used, record)| (*last_used, record.id));
        let mut idle: Vec<Record> = idle.into_iter().map(|(_, record)| record).collect();
        while let Some(max) = keep_bytes
            && !idle.is_empty()
            && self.bytes_of(kept.iter().chain(&idle)) > max
        {
            report.removed_images.push(idle.remove(0).id);
        }
        kept.append(&mut idle);
        report.kept_bytes = self.bytes_of(kept.iter());
        for id in &report.removed_images {
            self.remove_record(*id)?;
        }
        let needed = layers_of(kept.iter());
        let mut trash = self.remove_layers(&needed, &mut report)?;
        trash.extend(self.remove_staging(&needed, &mut report)?);
        drop(index);
        // Out of sight already; this may take a while.
        for dir in trash {
            fs::remove_dir_all(dir.path()).map_err(ImageError::at(dir.path()))?;
        }
        self.empty_trash();
        Ok(report)
    }

    /// Forgets a name; the image too, when that was its last one, with the layers that no other
    /// image has. An id removes all names.
    ///
    /// # Errors
    /// [`ImageError::Unknown`]; [`ImageError::InUse`].
    pub fn remove(&self, reference: &str) -> Result<GcReport, ImageError> {
        let index = self.lock_index()?;
        let unknown = || ImageError::Unknown { reference: reference.to_owned() };
        let (name, id) = self.find(reference)?.ok_or_else(unknown)?;
        let mut references = self.references()?;
        let all = name == id.to_string();
        let others =
            references.references.iter().any(|(other, of)| *of == id && !all && *other != name);
        if !others && self.is_in_use(id)? {
            return Err(ImageError::InUse { reference: reference.to_owned() });
        }
        references.references.retain(|other, of| if all { *of != id } else { *other != name });
        self.write_references(&references)?;
        if others {
            return Ok(GcReport::default());
        }
        self.remove_record(id)?;
        drop(index);
        let mut report = self.gc(None)?;
        report.removed_images.push(id);
        Ok(report)
    }

    fn remove_record(&self, id: Digest) -> Result<(), ImageError> {
        let mut references = self.references()?;
        references.references.retain(|_, of| *of != id);
        self.write_references(&references)?;
        let path = self.record_path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ImageError::at(&path)(error))
            }
            _ => Ok(()),
        }
    }

    fn bytes_of<'a>(&self, records: impl Iterator<Item = &'a Record>) -> u64 {
        layers_of(records).into_iter().map(|layer| self.layer_info(layer).bytes).sum()
    }

    fn remove_layers(
        &self,
        needed: &BTreeSet<Digest>,
        report: &mut GcReport,
    ) -> Result<Vec<tempfile::TempDir>, ImageError> {
        let mut trash = Vec::new();
        for layer in self.digests_in("layers/sha256")? {
            if needed.contains(&layer) {
                continue;
            }
            report.freed_bytes += self.layer_info(layer).bytes;
            if let Some(dir) = self.to_trash(&self.layer_dir(layer))? {
                report.removed_layers += 1;
                trash.push(dir);
            }
            let _ = fs::remove_file(self.layer_info_path(layer));
        }
        Ok(trash)
    }

    /// What interrupted pulls left. A pull that lives has its layer's lock, or has the image leased
    /// and so the layer needed.
    fn remove_staging(
        &self,
        needed: &BTreeSet<Digest>,
        report: &mut GcReport,
    ) -> Result<Vec<tempfile::TempDir>, ImageError> {
        let mut trash = Vec::new();
        for layer in self.digests_in("staging")? {
            if needed.contains(&layer) {
                continue;
            }
            let Some(_lock) = self.try_lock_layer(layer)? else { continue };
            if let Some(dir) = self.to_trash(&self.staging_dir(layer))? {
                report.removed_downloads += 1;
                trash.push(dir);
            }
        }
        Ok(trash)
    }

    /// What processes that died left in the trash: only what is old, since others use it now.
    fn empty_trash(&self) {
        let Ok(entries) = fs::read_dir(self.dir.join("trash")) else { return };
        for entry in entries.flatten() {
            let old = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|time| time.elapsed().ok())
                .is_some_and(|age| age.as_secs() > 24 * 3600);
            if old {
                let path = entry.path();
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
    }

    fn digests_in(&self, part: &str) -> Result<Vec<Digest>, ImageError> {
        let dir = self.dir.join(part);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(ImageError::at(&dir))? {
            let name = entry.map_err(ImageError::at(&dir))?.file_name();
            found.extend(name.to_str().and_then(Digest::from_hex));
        }
        found.sort_unstable();
        Ok(found)
    }
}

fn layers_of<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeSet<Digest> {
    records.flat_map(|record| record.layers.iter().copied()).collect()
}
