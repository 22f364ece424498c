//! A directory as an overlay shows it, read without one: what several layers have at one place.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::{OPAQUE, READ_DIR, names, open_beneath};

/// Marks an empty regular file of a layer as a whiteout, for layers that were unpacked by a user
/// without the power to make the device that is one.
const WHITEOUT: &str = "user.overlay.whiteout";

/// Who made the layers, which says what in them is a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// A plain directory: nothing is.
    None,
    /// An overlay: devices are whiteouts, an attribute makes a directory opaque.
    Overlay,
    /// An unpacked image: empty files with an attribute are whiteouts too.
    Unpacked,
}

/// Directories of several layers that lie over each other, the topmost first.
#[derive(Debug)]
pub struct Merged {
    dirs: Vec<OwnedFd>,
    marks: Marks,
    hides: bool,
}

/// What stands under a name.
#[derive(Debug)]
pub enum Found<'a> {
    /// Nothing.
    Absent,
    /// A deletion.
    Whiteout,
    /// A directory.
    Dir(Merged),
    /// Something else, in this directory.
    Other(&'a OwnedFd, Stat),
}

/// What stands at a path.
#[derive(Debug)]
pub enum Place {
    /// Nothing: what layers below have there is in view.
    Absent,
    /// Nothing, and what layers below have there is hidden.
    Gone,
    /// A directory.
    Dir(Merged),
    /// Something else: its directory and its name there.
    Other(OwnedFd, Vec<u8>, Stat),
}

impl Merged {
    /// The tops of layers, the topmost first.
    pub fn new(dirs: Vec<OwnedFd>, marks: Marks) -> Self {
        Self { dirs, marks, hides: false }
    }

    /// The directory in its topmost layer.
    pub fn top(&self) -> Option<&OwnedFd> {
        self.dirs.first()
    }

    /// Whether it hides what layers below these have at its place.
    pub fn hides(&self) -> bool {
        self.hides
    }

    /// All names, sorted, with the layers that have each.
    pub fn names(&self) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<usize>>> {
        let mut all: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (layer, dir) in self.dirs.iter().enumerate() {
            for name in names(dir)? {
                all.entry(name).or_default().push(layer);
            }
        }
        Ok(all)
    }

    /// What stands under a name, which `layers` of [`Merged::names`] have.
    pub fn look(&self, name: &[u8], layers: &[usize]) -> rustix::io::Result<Found<'_>> {
        let mut below = Self::new(Vec::new(), self.marks);
        // An opaque parent hides on behalf of all that is in it.
        below.hides = self.hides;
        for dir in layers.iter().filter_map(|layer| self.dirs.get(*layer)) {
            let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => continue,
                other => other?,
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if is_dir {
                let child = open_beneath(dir, name, READ_DIR, Mode::empty())?;
                let opaque = self.marks != Marks::None && is_opaque(&child);
                below.dirs.push(child);
                if !opaque {
                    continue;
                }
            } else if below.dirs.is_empty() {
                let gone = is_whiteout(dir, name, &stat, self.marks);
                return Ok(if gone { Found::Whiteout } else { Found::Other(dir, stat) });
            }
            below.hides = true;
            break;
        }
        Ok(if below.dirs.is_empty() { Found::Absent } else { Found::Dir(below) })
    }

    /// What stands under a name.
    pub fn find(&self, name: &[u8]) -> rustix::io::Result<Found<'_>> {
        let all: Vec<_> = (0..self.dirs.len()).collect();
        self.look(name, &all)
    }

    /// What stands at a clean path; at the empty one, these directories themselves.
    pub fn at(&self, path: &[u8]) -> rustix::io::Result<Place> {
        let mut held: Option<Self> = None;
        let mut names = path.split(|b| *b == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            let here = held.as_ref().unwrap_or(self);
            let below = match here.find(name)? {
                Found::Dir(below) => below,
                Found::Absent if here.hides => return Ok(Place::Gone),
                Found::Absent => return Ok(Place::Absent),
                Found::Other(dir, stat) if names.peek().is_none() => {
                    let dir = rustix::io::fcntl_dupfd_cloexec(dir, 3)?;
                    return Ok(Place::Other(dir, name.to_vec(), stat));
                }
                Found::Whiteout | Found::Other(..) => return Ok(Place::Gone),
            };
            held = Some(below);
        }
        let Some(here) = held else {
            let dup = |dir| rustix::io::fcntl_dupfd_cloexec(dir, 3);
            let dirs = self.dirs.iter().map(dup).collect::<Result<_, _>>()?;
            return Ok(Place::Dir(Self { dirs, marks: self.marks, hides: self.hides }));
        };
        Ok(Place::Dir(here))
    }
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    matches!(rustix::fs::fgetxattr(dir, OPAQUE, &mut value[..]), Ok(1) if value[0] == b'y')
}

fn is_whiteout(dir: &OwnedFd, name: &[u8], stat: &Stat, marks: Marks) -> bool {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => stat.st_rdev == 0,
        FileType::RegularFile if stat.st_size == 0 && marks == Marks::Unpacked => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
            open_beneath(dir, name, flags, Mode::empty()).is_ok_and(|file| {
                rustix::fs::fgetxattr(&file, WHITEOUT, &mut [0u8; 16][..]).is_ok()
            })
        }
        _ => false,
    }
}
