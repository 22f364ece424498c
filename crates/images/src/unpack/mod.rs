//! Unpacks a layer: a hostile tar into a directory that an overlay takes as it stands.
//!
//! - Nothing is followed out: paths are walked a component at a time without following links of
//!   the host; links of the layer are resolved as if the layer were the root.
//! - Everything belongs to who unpacks; set-id bits and capabilities are dropped, and the owner
//!   can read and write all (`u+rw`, directories `u+rwx`), so that it works without root.
//! - Devices, FIFOs and sockets are left out and counted.
//! - `.wh.NAME` becomes an overlayfs whiteout and `.wh..wh..opq` an opaque directory, in the form
//!   that a mount with `userxattr` reads.
//! - A directory that the tar does not name, but puts files into, gets mode 755; in an overlay
//!   that is what it has, whatever the layers below say.

mod place;
mod walk;
mod whiteout;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::tar_entries::{TarEntries, layer_error};

/// Bounds on one layer. The defaults hold the images of SWE-rebench many times over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnpackLimits {
    /// Bytes of the unpacked tar.
    pub max_bytes: u64,
    /// Entries of the tar.
    pub max_entries: u64,
    /// Unpacked bytes for each compressed one, beyond the first [`UnpackLimits::free_bytes`].
    pub max_ratio: u64,
    /// Bytes that may be unpacked at any ratio.
    pub free_bytes: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { max_bytes: 64 << 30, max_entries: 4_000_000, max_ratio: 200, free_bytes: 1 << 30 }
    }
}

/// What a layer weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Bytes of its files.
    pub bytes: u64,
    /// Entries of its tar.
    pub entries: u64,
    /// Devices and FIFOs that were left out.
    pub left_out: u64,
    /// Set-id bits, and attributes that the store does not keep, that were dropped.
    pub stripped: u64,
}

/// How whiteouts are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// A character device 0:0. Every kernel since 5.8 lets everybody make one, unless a filter or
    /// the file system forbids it.
    Device,
    /// An empty file with the attribute `user.overlay.whiteout`, in a directory that says so
    /// (kernel 6.8 and later).
    Attribute,
}

/// Unpacks a tar into an empty directory.
///
/// # Errors
/// [`ImageError::Layer`] for what is malformed, hostile or out of bounds; [`ImageError::Io`].
pub fn unpack<R: Read>(
    tar: R,
    root: &Path,
    limits: &UnpackLimits,
    form: WhiteoutForm,
) -> Result<(LayerInfo, R), ImageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root: OwnedFd = rustix::fs::open(root, flags, Mode::empty())
        .map_err(|error| ImageError::at(root)(error.into()))?;
    // Past the umask: in a sandbox it is another user's root, unless the tar says otherwise.
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))
        .map_err(|error| failed(b"", "set a mode", error))?;
    let mut placer = place::Placer::new(root, form);
    let mut entries = TarEntries::new(tar);
    while let Some(entry) = entries.next_entry()? {
        placer.info.entries += 1;
        if placer.info.entries > limits.max_entries {
            let reason = format!("more than {} entries", limits.max_entries);
            return Err(layer_error(b"", reason));
        }
        placer.place(&entry, &mut entries.data())?;
    }
    let info = placer.finish()?;
    Ok((info, entries.into_inner()))
}

/// A system call's failure, with the entry that it happened at.
fn failed(path: &[u8], doing: &str, error: impl Into<io::Error>) -> ImageError {
    let context = format!("unpack {}: {doing}", String::from_utf8_lossy(path));
    ImageError::from_io(error.into(), context)
}

pub use whiteout::form_for;

#[cfg(test)]
mod tests;
