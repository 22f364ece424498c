//! Whiteouts and opaque directories in the form of overlayfs with `userxattr`; see
//! Documentation/filesystems/overlayfs.rst of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, XattrFlags};

use super::walk::{Dir, OPEN_DIR};
use super::{WhiteoutForm, failed};
use crate::error::ImageError;

/// Prefix of a whiteout in a layer's tar.
pub const PREFIX: &[u8] = b".wh.";
/// The name that makes a directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of aufs's own files, which mean nothing here.
pub const INTERNAL: &[u8] = b".wh..wh.";

const OPAQUE_ATTRIBUTE: &str = "user.overlay.opaque";
const WHITEOUT_ATTRIBUTE: &str = "user.overlay.whiteout";

/// The form that can be made in a directory.
///
/// # Errors
/// When the directory cannot be written, or its file system has no user attributes.
pub fn form_for(dir: &Path) -> Result<WhiteoutForm, ImageError> {
    let at = |error: rustix::io::Errno| ImageError::at(dir)(error.into());
    let probe = tempfile::tempdir_in(dir).map_err(ImageError::at(dir))?;
    let fd = rustix::fs::open(probe.path(), OPEN_DIR, Mode::empty()).map_err(at)?;
    rustix::fs::fsetxattr(&fd, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty()).map_err(|error| {
        ImageError::Io {
            context: format!(
                "{}: its file system has no user attributes, which layers need; keep images on \
                 another one (ext4, xfs, btrfs, or tmpfs of kernel 6.6)",
                dir.display()
            ),
            source: error.into(),
        }
    })?;
    let made = make_device(&fd, b"w");
    Ok(if made.is_ok() { WhiteoutForm::Device } else { WhiteoutForm::Attribute })
}

fn make_device(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// The whiteouts and opaque directories of a layer in the making.
pub struct Whiteouts {
    form: WhiteoutForm,
    /// By the real path of their directory.
    made: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
    opaque: BTreeSet<Vec<u8>>,
}

impl Whiteouts {
    pub fn new(form: WhiteoutForm) -> Self {
        Self { form, made: BTreeMap::new(), opaque: BTreeSet::new() }
    }

    /// Hides what lower layers have at a name where this one has nothing.
    pub fn make(&mut self, dir: &Dir, name: &[u8]) -> Result<(), ImageError> {
        let path = dir.join(name);
        match self.form {
            WhiteoutForm::Device => {
                make_device(&dir.fd, name).map_err(|e| failed(&path, "make a whiteout", e))?;
            }
            WhiteoutForm::Attribute => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&*dir.fd, name, flags, Mode::from_raw_mode(0o600));
                file.and_then(|file| {
                    rustix::fs::fsetxattr(&file, WHITEOUT_ATTRIBUTE, b"y", XattrFlags::empty())
                })
                .map_err(|error| failed(&path, "make a whiteout", error))?;
            }
        }
        self.made.entry(dir.path.clone()).or_default().insert(name.to_vec());
        Ok(())
    }

    /// Whether the name is a whiteout that was made here.
    pub fn is(&self, dir: &Dir, name: &[u8]) -> bool {
        self.made.get(&dir.path).is_some_and(|names| names.contains(name))
    }

    /// Forgets a whiteout that was removed.
    pub fn forget(&mut self, dir: &Dir, name: &[u8]) {
        if let Some(names) = self.made.get_mut(&dir.path) {
            names.remove(name);
        }
    }

    /// Hides all that lower layers have in a directory.
    pub fn make_opaque(&mut self, path: Vec<u8>) {
        self.opaque.insert(path);
    }

    /// Forgets all below a directory that was removed.
    pub fn forget_below(&mut self, path: &[u8]) {
        let below = |other: &[u8]| {
            other == path || other.strip_prefix(path).is_some_and(|r| r.first() == Some(&b'/'))
        };
        self.made.retain(|other, _| !below(other));
        self.opaque.retain(|other| !below(other));
    }

    /// Marks the directories, once all is in place. `open` opens one by its real path.
    pub fn finish(
        self,
        open: &dyn Fn(&[u8]) -> Result<OwnedFd, ImageError>,
    ) -> Result<(), ImageError> {
        let mark = |path: &[u8], value: &[u8]| {
            rustix::fs::fsetxattr(open(path)?, OPAQUE_ATTRIBUTE, value, XattrFlags::empty())
                .map_err(|error| failed(path, "mark a directory", error))
        };
        for path in &self.opaque {
            mark(path, b"y")?;
        }
        for (path, names) in self.made {
            if names.is_empty() {
                continue;
            }
            if self.opaque.contains(&path) {
                // Nothing shines through anyway, and overlayfs would list them.
                let dir = open(&path)?;
                for name in names {
                    super::walk::remove(&dir, &name, &path)?;
                }
            } else if self.form == WhiteoutForm::Attribute {
                mark(&path, b"x")?;
            }
        }
        Ok(())
    }
}
