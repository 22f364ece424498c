//! Names of one file, kept together in the layers.
//!
//! An overlay with an index keeps the names of a lower file together when it is written, but what
//! it puts in the upper layer is only the name that was written; the others it finds by the index,
//! which no reader of the layers has and which does not outlive the overlay. So before layers are
//! read or sealed, the other names of such files are put there too.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, RawDir, SeekFrom};

use crate::tree::{MAX_DEPTH, READ_DIR, names, open_beneath};
use crate::wire::{Context, Refusal};

/// The index of one overlay.
pub struct Index {
    /// Its directory, which nobody may open any more.
    pub dir: OwnedFd,
    /// Where the overlay is in view, and where this is in the writable layer.
    pub parts: Vec<(String, String)>,
}

/// Regular files by device and number: those with several names, by path.
type Files = HashMap<(u64, u64), Vec<Vec<u8>>>;

impl Index {
    /// Puts into the writable layer every name of a file that is there under another.
    pub fn settle(&self, writable: &OwnedFd) -> Result<(), Refusal> {
        if self.is_empty().step("read an index")? {
            return Ok(());
        }
        for (view, layer) in &self.parts {
            let top = rustix::fs::openat(CWD, view, READ_DIR, Mode::empty()).step(view)?;
            let layer = rustix::fs::openat(writable, layer, READ_DIR, Mode::empty());
            // Nothing there was written.
            let Ok(layer) = layer else { continue };
            let mut files = Files::new();
            gather(&top, &mut Vec::new(), 0, &mut files).step(view)?;
            for names in files.values().filter(|names| names.len() > 1) {
                let is_written = |name: &Vec<u8>| {
                    rustix::fs::statat(&layer, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
                };
                let (written, not): (Vec<_>, Vec<_>) = names.iter().partition(|n| is_written(n));
                for name in not.iter().filter(|_| !written.is_empty()) {
                    put_there(&top, name).step(view)?;
                }
            }
        }
        Ok(())
    }

    fn is_empty(&self) -> rustix::io::Result<bool> {
        rustix::fs::seek(&self.dir, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let mut entries = RawDir::new(&self.dir, &mut buffer);
        while let Some(entry) = entries.next() {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A change that changes nothing, but takes the file up.
fn put_there(top: &OwnedFd, path: &[u8]) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(top, path, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    rustix::fs::chmodat(top, path, mode, AtFlags::empty())
}

fn gather(
    dir: &OwnedFd,
    path: &mut Vec<u8>,
    depth: usize,
    files: &mut Files,
) -> rustix::io::Result<()> {
    let device = rustix::fs::fstat(dir)?.st_dev;
    for name in names(dir)? {
        let stat = rustix::fs::statat(dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if stat.st_nlink > 1 => {
                files.entry((stat.st_dev, stat.st_ino)).or_default().push(path.clone());
            }
            // Not into what is mounted there.
            FileType::Directory if stat.st_dev == device && depth < MAX_DEPTH => {
                let below = open_beneath(dir, &name, READ_DIR, Mode::empty())?;
                gather(&below, path, depth + 1, files)?;
            }
            _ => {}
        }
        path.truncate(before);
    }
    Ok(())
}
