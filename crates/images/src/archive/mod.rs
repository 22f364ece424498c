//! Images in files: what `docker save` writes, old and new, and OCI layouts.

mod container;
mod docker;
mod oci;

use std::io::{self, Read};
use std::path::Path;

use crate::config::ImageConfig;
use crate::digest::{Digest, Hasher};
use crate::documents::{self, MAX_CONFIG};
use crate::error::ImageError;
use crate::layer::decompressed;
use crate::progress::{Progress, PullEvent};
use crate::tar_entries::layer_error;
use container::Container;

/// An image of an archive.
#[derive(Debug)]
pub struct ArchivedImage {
    pub id: Digest,
    pub config: ImageConfig,
    /// Its names, in full.
    pub references: Vec<String>,
    /// The lowest first.
    pub layers: Vec<ArchivedLayer>,
}

/// A layer of an archive.
#[derive(Debug)]
pub struct ArchivedLayer {
    pub diff_id: Digest,
    /// The path in the archive.
    name: String,
    /// Digest of the bytes as they are, where the archive says it.
    digest: Option<Digest>,
    /// Bytes as they are.
    pub size: u64,
}

/// An archive that was opened.
pub struct Archive {
    container: Container,
}

impl Archive {
    /// Opens a file or directory. A compressed archive is unpacked into `temporary` first.
    ///
    /// # Errors
    /// [`ImageError::Archive`] for what is no archive.
    pub fn open(
        path: &Path,
        temporary: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, ImageError> {
        Ok(Self { container: Container::open(path, temporary, progress)? })
    }

    /// Its images.
    ///
    /// # Errors
    /// [`ImageError::Archive`] when it has none that can be used.
    pub fn images(&self, platform: (&str, &str)) -> Result<Vec<ArchivedImage>, ImageError> {
        // Newer versions of Docker write both; names are in the older one.
        let images = if self.container.has("manifest.json") {
            docker::images(&self.container)?
        } else if self.container.has("index.json") {
            oci::images(&self.container, platform)?
        } else {
            let reason = "neither manifest.json (docker save) nor index.json (OCI layout) is in it";
            return Err(self.container.error(reason));
        };
        if images.is_empty() { Err(self.container.error("no image in it")) } else { Ok(images) }
    }

    /// Lets a layer be read, still compressed.
    ///
    /// # Errors
    /// Those of `read`; [`ImageError::Mismatch`] when its bytes are not what its name says.
    pub fn with_layer<T>(
        &self,
        layer: &ArchivedLayer,
        progress: &dyn Progress,
        read: impl FnOnce(Verified<'_>) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let (inner, _) = self.container.open_member(&layer.name)?;
        read(Verified { inner, hasher: Hasher::default(), expected: layer.digest, progress })
    }
}

/// Fails at its end when its bytes have another digest.
pub struct Verified<'a> {
    inner: Box<dyn Read + Send>,
    hasher: Hasher,
    expected: Option<Digest>,
    progress: &'a dyn Progress,
}

impl Read for Verified<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.progress.event(&PullEvent::Received { bytes: n as u64 });
        let Some(expected) = self.expected else { return Ok(n) };
        if n > 0 {
            self.hasher.update(&buf[..n]);
        } else if !buf.is_empty() {
            let got = self.hasher.clone().finish();
            if got != expected {
                return Err(ImageError::digest("layer", expected, got).into_io());
            }
        }
        Ok(n)
    }
}

/// Reads a config and pairs its diff-ids with the archive's layers.
fn image(
    container: &Container,
    config_name: &str,
    expected: Option<Digest>,
    references: Vec<String>,
    layers: Vec<(String, Option<Digest>)>,
) -> Result<ArchivedImage, ImageError> {
    let bytes = container.read(config_name, MAX_CONFIG)?;
    let id = Digest::of(&bytes);
    if let Some(expected) = expected
        && id != expected
    {
        return Err(ImageError::digest(config_name, expected, id));
    }
    let (config, diff_ids) = documents::config(&bytes, config_name)?;
    if diff_ids.len() != layers.len() {
        let reason = format!("{} layers, but {} diff-ids", layers.len(), diff_ids.len());
        return Err(ImageError::document(config_name, reason));
    }
    let layer = |((name, digest), diff_id): ((String, Option<Digest>), Digest)| {
        let (_, size) = container.open_member(&name)?;
        Ok(ArchivedLayer { diff_id, name, digest, size })
    };
    let layers = layers.into_iter().zip(diff_ids).map(layer).collect::<Result<_, ImageError>>()?;
    Ok(ArchivedImage { id, config, references, layers })
}

/// The digest that a path such as `blobs/sha256/<hex>` promises.
fn promised(name: &str) -> Option<Digest> {
    name.strip_prefix("blobs/sha256/").and_then(Digest::from_hex)
}

/// Copies what a stream decompresses to, at most `max` bytes.
fn decompress_to(
    source: impl Read + Send,
    to: &mut impl io::Write,
    max: u64,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let context = "decompress an archive";
    let mut source = decompressed(source).map_err(ImageError::io(context))?;
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let n = source.read(&mut buffer).map_err(ImageError::io(context))?;
        if n == 0 {
            return Ok(());
        }
        bytes += n as u64;
        if bytes > max {
            return Err(layer_error(b"", format!("an archive of more than {max} bytes")));
        }
        to.write_all(&buffer[..n]).map_err(ImageError::io(context))?;
    }
}
