//! Overlays, put together layer by layer, so that their number has no bound but the kernel's.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::keeper::Identity;
use crate::sys;
use crate::template::{LOWER, attach};
use crate::tree::READ_DIR;
use crate::wire::{Cause, Refusal};

/// Layers of one overlay that the kernel takes.
pub const MAX_LAYERS: usize = 500;

/// One overlay. Paths are short, in the mount namespace that it is made in.
pub struct Overlay<'a> {
    /// What is only read, the topmost first.
    pub lowers: &'a [PathBuf],
    /// What is written.
    pub upper: &'a Path,
    /// The overlay's own, beside the upper.
    pub work: &'a Path,
    /// Whether several names of one file stay one file when it is written. The kernel does it for
    /// root only.
    pub links: bool,
}

/// The refusal of a machine that has no overlays of the kind asked for.
pub fn no_overlay(why: impl Into<String>) -> Refusal {
    Refusal { cause: Cause::NoOverlay, what: "overlay".to_owned(), why: why.into(), errno: 0 }
}

/// Whether layers can be named one by one (Linux 6.7), rather than in one text of limited length.
pub fn takes_single_layers() -> bool {
    rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .and_then(|fs| rustix::mount::fsconfig_set_string(&fs, "lowerdir+", LOWER))
        .is_ok()
}

impl Overlay<'_> {
    /// Mounts it at `at`, and gives its index if it has one.
    pub fn mount(&self, at: &Path, identity: Identity) -> Result<Option<OwnedFd>, Refusal> {
        // An overlay works on its layers with the powers of whoever mounts it: it must be able to
        // change the files of its work directory, whose mode is 0.
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        sys::set_fs_ids(own.0, own.1);
        let made = self.make();
        let index = rustix::fs::open(self.work.join("index"), READ_DIR, Mode::empty()).ok();
        sys::set_fs_ids(identity.uid, identity.gid);
        let made = made.map_err(|(step, error)| {
            no_overlay(format!("{step}: {}", std::io::Error::from(error)))
        })?;
        attach(&made, at)?;
        Ok(index.filter(|_| self.links))
    }

    fn make(&self) -> Result<OwnedFd, (&'static str, rustix::io::Errno)> {
        use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string};
        let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|error| ("fsopen", error))?;
        fsconfig_set_string(&fs, "source", "overlay").map_err(|error| ("source", error))?;
        if let [lower] = self.lowers {
            fsconfig_set_string(&fs, "lowerdir", lower).map_err(|error| ("lowerdir", error))?;
        } else {
            for lower in self.lowers {
                fsconfig_set_string(&fs, "lowerdir+", lower)
                    .map_err(|error| ("lowerdir+ (Linux 6.7)", error))?;
            }
        }
        fsconfig_set_string(&fs, "upperdir", self.upper).map_err(|error| ("upperdir", error))?;
        fsconfig_set_string(&fs, "workdir", self.work).map_err(|error| ("workdir", error))?;
        let links = if self.links { "on" } else { "off" };
        fsconfig_set_string(&fs, "index", links).map_err(|error| ("index", error))?;
        for flag in ["userxattr", "volatile"] {
            fsconfig_set_flag(&fs, flag).map_err(|error| ("userxattr, volatile", error))?;
        }
        fsconfig_create(&fs).map_err(|error| ("mount", error))?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
            .map_err(|error| ("fsmount", error))
    }
}
