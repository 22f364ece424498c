//! The store: whole layers by diff-id, images by the digest of their config, names of images.

mod gc;
mod index;
mod jobs;
mod locks;
mod pull;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::Image;
use crate::progress::Progress;
use crate::unpack::{LayerInfo, WhiteoutForm, form_for};

pub use gc::GcReport;
pub use index::ImageSummary;
pub use pull::LoadOptions;

/// `$XDG_CACHE_HOME/patchwright/images` or `~/.cache/patchwright/images`; `None` without a home.
pub fn default_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("patchwright").join("images"))
}

/// Images on this machine. Cheap to open; any number of processes may work on one directory.
#[derive(Debug)]
pub struct ImageStore {
    dir: PathBuf,
    form: OnceLock<WhiteoutForm>,
}

/// What `images/<id>.json` holds. Written once: it depends on nothing but the id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub schema_version: u32,
    pub id: Digest,
    pub config: ImageConfig,
    /// The lowest first.
    pub layers: Vec<Digest>,
}

impl ImageStore {
    /// Opens the store in a directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the directory cannot be made or written.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(ImageError::at(&dir))?;
        // Mounts and leases go by it whatever the working directory becomes.
        let dir = dir.canonicalize().map_err(ImageError::at(&dir))?;
        for part in ["layers/sha256", "staging", "images", "locks", "trash"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(ImageError::at(&path))?;
        }
        Ok(Self { dir, form: OnceLock::new() })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn layer_dir(&self, diff_id: Digest) -> PathBuf {
        self.dir.join("layers/sha256").join(diff_id.hex())
    }

    fn layer_info_path(&self, diff_id: Digest) -> PathBuf {
        self.dir.join("layers/sha256").join(format!("{}.json", diff_id.hex()))
    }

    fn staging_dir(&self, diff_id: Digest) -> PathBuf {
        self.dir.join("staging").join(diff_id.hex())
    }

    fn record_path(&self, id: Digest) -> PathBuf {
        self.dir.join("images").join(format!("{}.json", id.hex()))
    }

    /// How whiteouts are written here.
    pub(crate) fn form(&self) -> Result<WhiteoutForm, ImageError> {
        if let Some(form) = self.form.get() {
            return Ok(*form);
        }
        let form = form_for(&self.dir.join("staging"))?;
        Ok(*self.form.get_or_init(|| form))
    }

    fn has_layer(&self, diff_id: Digest) -> bool {
        self.layer_dir(diff_id).is_dir()
    }

    fn layer_info(&self, diff_id: Digest) -> LayerInfo {
        fs::read(self.layer_info_path(diff_id))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Makes a layer unless it is there. `make` fills `root` in the staging directory that it is
    /// given, which only one process works in at a time.
    pub(crate) fn ensure_layer(
        &self,
        diff_id: Digest,
        progress: &dyn Progress,
        make: impl FnOnce(&Path) -> Result<LayerInfo, ImageError>,
    ) -> Result<(), ImageError> {
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let lock = self.lock_layer(diff_id, progress)?;
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let staging = self.staging_dir(diff_id);
        let root = staging.join("root");
        fs::create_dir_all(&staging).map_err(ImageError::at(&staging))?;
        self.discard(&root)?;
        fs::create_dir(&root).map_err(ImageError::at(&root))?;
        let info = match make(&staging) {
            Ok(info) => info,
            Err(error) => {
                // What was downloaded stays for the next time, what was unpacked does not.
                self.discard(&root)?;
                let _ = fs::remove_dir(&staging);
                return Err(error);
            }
        };
        self.write_atomically(&self.layer_info_path(diff_id), &info)?;
        let to = self.layer_dir(diff_id);
        fs::rename(&root, &to).map_err(ImageError::at(&to))?;
        self.discard(&staging)?;
        drop(lock);
        Ok(())
    }

    /// Removes a file or directory: out of sight at once, then for good.
    fn discard(&self, path: &Path) -> Result<(), ImageError> {
        if let Some(trash) = self.to_trash(path)? {
            fs::remove_dir_all(trash.path()).map_err(ImageError::at(trash.path()))?;
        }
        Ok(())
    }

    /// Moves a path into a directory of its own in the trash; `None` if there is no such path.
    fn to_trash(&self, path: &Path) -> Result<Option<tempfile::TempDir>, ImageError> {
        if fs::symlink_metadata(path).is_err() {
            return Ok(None);
        }
        let trash = self.dir.join("trash");
        let trash = tempfile::tempdir_in(&trash).map_err(ImageError::at(&trash))?;
        match fs::rename(path, trash.path().join("it")) {
            Ok(()) => Ok(Some(trash)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::at(path)(error)),
        }
    }

    fn write_atomically(&self, path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
        use std::io::Write as _;
        let text = serde_json::to_vec_pretty(value).map_err(|error| ImageError::Io {
            context: path.display().to_string(),
            source: error.into(),
        })?;
        let trash = self.dir.join("trash");
        let mut file = tempfile::NamedTempFile::new_in(&trash).map_err(ImageError::at(&trash))?;
        file.write_all(&text).map_err(ImageError::at(path))?;
        file.persist(path).map_err(|error| ImageError::at(path)(error.error))?;
        Ok(())
    }

    /// An image by its record, with a lease on it; `None` unless all its layers are there.
    fn image(&self, record: Record, reference: String, lease: File) -> Option<Image> {
        if !record.layers.iter().all(|layer| self.has_layer(*layer)) {
            return None;
        }
        let mut layers: Vec<Digest> = Vec::new();
        for layer in record.layers.iter().rev() {
            if !layers.contains(layer) {
                layers.push(*layer);
            }
        }
        let bytes = layers.iter().map(|layer| self.layer_info(*layer).bytes).sum();
        // When it was last used.
        let _ = lease.set_modified(std::time::SystemTime::now());
        Some(Image {
            id: record.id,
            reference,
            config: record.config,
            layers: layers.into_iter().map(|layer| self.layer_dir(layer)).collect(),
            bytes,
            _lease: Arc::new(lease),
        })
    }
}
