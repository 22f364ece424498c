//! Gets images in: from registries and from archives.

use std::fs::{self, File};
use std::path::Path;
use std::thread;

use super::{ImageStore, Record, jobs};
use crate::archive::{Archive, ArchivedImage};
use crate::digest::Digest;
use crate::documents::{self, Blob};
use crate::error::ImageError;
use crate::image::Image;
use crate::layer::{GrowingFile, Growth, Making, make_layer};
use crate::progress::{Progress, PullEvent};
use crate::reference::Reference;
use crate::registry::{PullOptions, Registry};
use crate::unpack::{LayerInfo, UnpackLimits};

/// How to load an archive.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// A name for the image, in place of those that the archive has. Only for archives of one.
    pub reference: Option<String>,
    /// Operating system and architecture, where there are several.
    pub platform: (String, String),
    /// Layers at once.
    pub parallelism: usize,
    /// Bounds on each layer.
    pub limits: UnpackLimits,
}

impl Default for LoadOptions {
    fn default() -> Self {
        let pull = PullOptions::default();
        Self {
            reference: None,
            platform: pull.platform,
            parallelism: pull.parallelism,
            limits: pull.limits,
        }
    }
}

/// A layer that is not here.
struct Wanted<S> {
    diff_id: Digest,
    size: u64,
    source: S,
}

impl ImageStore {
    /// Gets an image from its registry: what of it is not here yet. A tag is looked up anew each
    /// time; an image that is named by a digest and is here costs no request. Several processes and
    /// threads may pull at once; a layer is made by one of them.
    ///
    /// # Errors
    /// [`ImageError`]; after one that passes, pulling again goes on where it stopped.
    pub fn pull(
        &self,
        reference: &str,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse()?;
        let name = reference.to_string();
        if reference.digest().is_some()
            && let Some(image) = self.get(&name)?
        {
            return Ok(image);
        }
        let registry = Registry::new(&reference, options, progress)?;
        let (config_blob, blobs) = registry.manifest()?;
        let config_bytes = registry.small_blob(config_blob)?;
        let (config, diff_ids) = documents::config(&config_bytes, &name)?;
        if diff_ids.len() != blobs.len() {
            let reason = format!("{} layers, but {} diff-ids", blobs.len(), diff_ids.len());
            return Err(ImageError::document(name, reason));
        }
        let record =
            Record { schema_version: 1, id: config_blob.digest, config, layers: diff_ids.clone() };
        let lease = self.register(&record)?;
        let wanted = self.wanted(diff_ids.into_iter().zip(blobs.iter().map(|b| (b.size, *b))));
        tell_resolved(&name, blobs.len(), &wanted, progress);
        jobs::run(&wanted, options.parallelism, progress, |layer, progress| {
            self.ensure_layer(layer.diff_id, progress, |staging| {
                let fetch = Fetch {
                    store: self,
                    registry: &registry,
                    limits: &options.limits,
                    progress,
                    staging,
                };
                fetch.layer(layer.source, layer.diff_id)
            })?;
            progress.event(&PullEvent::LayerDone { layer: layer.diff_id });
            Ok(())
        })?;
        self.name(&name, record.id)?;
        self.whole(record, name, lease)
    }

    /// Gets the images of an archive of `docker save` (old and new), plain or compressed, or of an
    /// OCI layout, a directory or a tar.
    ///
    /// # Errors
    /// [`ImageError::Archive`] for what is neither; [`ImageError`].
    pub fn load(
        &self,
        path: &Path,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, ImageError> {
        let archive = Archive::open(path, &self.dir.join("trash"), progress)?;
        let (os, arch) = &options.platform;
        let mut images = archive.images((os, arch))?;
        if let Some(reference) = &options.reference {
            let name = reference.parse::<Reference>()?.to_string();
            match images.as_mut_slice() {
                [image] => image.references = vec![name],
                images => {
                    let reason = format!("{} images: one name is not enough", images.len());
                    return Err(ImageError::Archive { path: path.display().to_string(), reason });
                }
            }
        }
        images.into_iter().map(|image| self.load_one(&archive, image, options, progress)).collect()
    }

    fn load_one(
        &self,
        archive: &Archive,
        image: ArchivedImage,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let record = Record {
            schema_version: 1,
            id: image.id,
            config: image.config,
            layers: image.layers.iter().map(|layer| layer.diff_id).collect(),
        };
        let name = image.references.first().cloned().unwrap_or_else(|| image.id.to_string());
        let lease = self.register(&record)?;
        let wanted =
            self.wanted(image.layers.iter().map(|layer| (layer.diff_id, (layer.size, layer))));
        tell_resolved(&name, image.layers.len(), &wanted, progress);
        jobs::run(&wanted, options.parallelism, progress, |layer, progress| {
            self.ensure_layer(layer.diff_id, progress, |staging| {
                let root = staging.join("root");
                let form = self.form()?;
                let making = Making { root: &root, limits: &options.limits, form, progress };
                archive.with_layer(layer.source, progress, |source| {
                    make_layer(source, layer.diff_id, &making)
                })
            })?;
            progress.event(&PullEvent::LayerDone { layer: layer.diff_id });
            Ok(())
        })?;
        for reference in &image.references {
            self.name(reference, record.id)?;
        }
        self.whole(record, name, lease)
    }

    /// The layers that are not here, each once, the largest first: so that it is not the last.
    fn wanted<S>(&self, layers: impl Iterator<Item = (Digest, (u64, S))>) -> Vec<Wanted<S>> {
        let mut wanted: Vec<Wanted<S>> = Vec::new();
        for (diff_id, (size, source)) in layers {
            if !self.has_layer(diff_id) && wanted.iter().all(|other| other.diff_id != diff_id) {
                wanted.push(Wanted { diff_id, size, source });
            }
        }
        wanted.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        wanted
    }

    fn whole(&self, record: Record, name: String, lease: File) -> Result<Image, ImageError> {
        self.image(record, name.clone(), lease).ok_or(ImageError::Unknown { reference: name })
    }
}

fn tell_resolved<S>(name: &str, num_layers: usize, wanted: &[Wanted<S>], progress: &dyn Progress) {
    progress.event(&PullEvent::Resolved {
        reference: name.to_owned(),
        num_layers,
        num_missing: wanted.len(),
        missing_bytes: wanted.iter().map(|layer| layer.size).sum(),
    });
}

/// Whether the bytes of a layer are wrong, rather than the host or the line.
fn is_bad(error: &ImageError) -> bool {
    matches!(error, ImageError::Mismatch { .. } | ImageError::Layer { .. })
}

/// One layer on its way from a registry.
struct Fetch<'a> {
    store: &'a ImageStore,
    registry: &'a Registry<'a>,
    limits: &'a UnpackLimits,
    progress: &'a dyn Progress,
    staging: &'a Path,
}

impl Fetch<'_> {
    /// Downloads and unpacks at the same time.
    fn layer(&self, blob: Blob, diff_id: Digest) -> Result<LayerInfo, ImageError> {
        let hex = blob.digest.hex();
        let (whole, partial) =
            (self.staging.join(&hex), self.staging.join(format!("{hex}.partial")));
        if whole.exists() {
            // Checked when it got this name; damaged since, if it fails now.
            match self.unpack_whole(&whole, blob, diff_id) {
                Err(error) if is_bad(&error) => self.start_over(&whole)?,
                other => return other,
            }
        }
        let had = fs::metadata(&partial).map_or(0, |metadata| metadata.len());
        match self.download_and_unpack(blob, diff_id, &partial, &whole) {
            Err(error) if is_bad(&error) => {
                let is_verified = whole.exists();
                self.start_over(if is_verified { &whole } else { &partial })?;
                // What an earlier process left may have been damaged since.
                if had > 0 && !is_verified {
                    return self.download_and_unpack(blob, diff_id, &partial, &whole);
                }
                Err(error)
            }
            other => other,
        }
    }

    /// Removes a blob and what was made of it.
    fn start_over(&self, blob: &Path) -> Result<(), ImageError> {
        self.store.discard(blob)?;
        let root = self.staging.join("root");
        self.store.discard(&root)?;
        fs::create_dir(&root).map_err(ImageError::at(&root))
    }

    fn unpack_whole(
        &self,
        whole: &Path,
        blob: Blob,
        diff_id: Digest,
    ) -> Result<LayerInfo, ImageError> {
        let file = File::open(whole).map_err(ImageError::at(whole))?;
        self.progress.event(&PullEvent::Received { bytes: blob.size });
        self.unpack(file, diff_id)
    }

    fn unpack(
        &self,
        source: impl std::io::Read + Send,
        diff_id: Digest,
    ) -> Result<LayerInfo, ImageError> {
        let root = self.staging.join("root");
        let form = self.store.form()?;
        let making = Making { root: &root, limits: self.limits, form, progress: self.progress };
        make_layer(source, diff_id, &making)
    }

    fn download_and_unpack(
        &self,
        blob: Blob,
        diff_id: Digest,
        partial: &Path,
        whole: &Path,
    ) -> Result<LayerInfo, ImageError> {
        // Made here, so that both sides have the same file.
        let reading = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .open(partial)
            .map_err(ImageError::at(partial))?;
        let growth = Growth::default();
        let (downloaded, unpacked) = thread::scope(|scope| {
            let download = || {
                let done = self.registry.download(blob, partial, &growth, self.progress);
                let done =
                    done.and_then(|()| fs::rename(partial, whole).map_err(ImageError::at(whole)));
                if done.is_ok() {
                    growth.whole();
                } else {
                    growth.fail();
                }
                done
            };
            let named = thread::Builder::new().name("download".to_owned());
            let started = named.spawn_scoped(scope, download);
            let handle = started.map_err(ImageError::io("start a thread"))?;
            let source = GrowingFile { file: reading, position: 0, growth: &growth };
            let unpacked = self.unpack(source, diff_id);
            growth.abandon();
            let downloaded = handle.join().unwrap_or(Err(ImageError::Cancelled));
            Ok::<_, ImageError>((downloaded, unpacked))
        })?;
        match (downloaded, unpacked) {
            (Ok(()), unpacked) => unpacked,
            // It stopped because nobody read any more, or both because they were told to.
            (Err(ImageError::Cancelled), Err(error)) if !self.progress.is_cancelled() => Err(error),
            (Err(error), _) => Err(error),
        }
    }
}
