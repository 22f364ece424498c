//! Trees of files as a stream of frames: how a repository gets into a sandbox, how its changes
//! come out, and how a sandbox is copied.
//!
//! Paths are raw bytes relative to the tree's root, `/`-separated. Both sides treat names as
//! hostile: nothing is ever resolved through a symbolic link or out of the root.

mod make;
mod merged;
mod walk;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::wire::{Decoder, Encoder, Kind, Refusal, malformed, receive, send};
pub use make::populate;
pub use merged::{Found, Marks, Merged, Place};
pub use walk::{Walk, names};

/// Deepest directory that is walked or made.
pub const MAX_DEPTH: usize = 200;
/// Marks a directory of a layer that hides what the layers below have under its name.
const OPAQUE: &str = "user.overlay.opaque";

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory; `opaque` hides what the pristine tree has there.
    Dir { path: Vec<u8>, mode: u32, mtime_s: i64, mtime_ns: u32, opaque: bool },
    /// A regular file of `size` bytes; data follows.
    File { path: Vec<u8>, mode: u32, mtime_s: i64, mtime_ns: u32, size: u64 },
    /// Data of the last file at an offset (holes are left out).
    Chunk { offset: u64, data: Vec<u8> },
    /// A symbolic link.
    Symlink { path: Vec<u8>, target: Vec<u8>, mtime_s: i64, mtime_ns: u32 },
    /// A deleted path of the pristine tree.
    Whiteout { path: Vec<u8> },
    /// A FIFO.
    Fifo { path: Vec<u8>, mode: u32, mtime_s: i64, mtime_ns: u32 },
    /// Another name of an earlier file.
    Hardlink { path: Vec<u8>, first: Vec<u8> },
}

impl Entry {
    /// The path, of all but chunks.
    pub fn path(&self) -> Option<&[u8]> {
        match self {
            Self::Dir { path, .. }
            | Self::File { path, .. }
            | Self::Symlink { path, .. }
            | Self::Whiteout { path }
            | Self::Fifo { path, .. }
            | Self::Hardlink { path, .. } => Some(path),
            Self::Chunk { .. } => None,
        }
    }

    /// Sends the entry.
    pub fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let mut body = Encoder::default();
        let kind = match self {
            Self::Dir { path, mode, mtime_s, mtime_ns, opaque } => {
                body.bytes(path).u32(*mode).u64(*mtime_s as u64).u32(*mtime_ns);
                body.u8(u8::from(*opaque));
                Kind::Dir
            }
            Self::File { path, mode, mtime_s, mtime_ns, size } => {
                body.bytes(path).u32(*mode).u64(*mtime_s as u64).u32(*mtime_ns).u64(*size);
                Kind::File
            }
            Self::Chunk { offset, data } => {
                body.u64(*offset).bytes(data);
                Kind::Chunk
            }
            Self::Symlink { path, target, mtime_s, mtime_ns } => {
                body.bytes(path).bytes(target).u64(*mtime_s as u64).u32(*mtime_ns);
                Kind::Symlink
            }
            Self::Whiteout { path } => {
                body.bytes(path);
                Kind::Whiteout
            }
            Self::Fifo { path, mode, mtime_s, mtime_ns } => {
                body.bytes(path).u32(*mode).u64(*mtime_s as u64).u32(*mtime_ns);
                Kind::Fifo
            }
            Self::Hardlink { path, first } => {
                body.bytes(path).bytes(first);
                Kind::Hardlink
            }
        };
        send(to, kind, &body.0)
    }

    /// Reads an entry from a frame; the path is checked.
    pub fn decode(kind: Kind, body: &[u8]) -> io::Result<Self> {
        let mut body = Decoder::new(body);
        if kind == Kind::Chunk {
            return Ok(Self::Chunk { offset: body.u64()?, data: body.bytes()?.to_vec() });
        }
        let path = body.bytes()?.to_vec();
        if !is_clean(&path) {
            return Err(malformed("a path of a tree is absolute, too deep, or has `..`"));
        }
        Ok(match kind {
            Kind::Dir => Self::Dir {
                path,
                mode: body.u32()?,
                mtime_s: body.u64()? as i64,
                mtime_ns: body.u32()?,
                opaque: body.u8()? != 0,
            },
            Kind::File => Self::File {
                path,
                mode: body.u32()?,
                mtime_s: body.u64()? as i64,
                mtime_ns: body.u32()?,
                size: body.u64()?,
            },
            Kind::Symlink => Self::Symlink {
                path,
                target: body.bytes()?.to_vec(),
                mtime_s: body.u64()? as i64,
                mtime_ns: body.u32()?,
            },
            Kind::Whiteout => Self::Whiteout { path },
            Kind::Fifo => Self::Fifo {
                path,
                mode: body.u32()?,
                mtime_s: body.u64()? as i64,
                mtime_ns: body.u32()?,
            },
            Kind::Hardlink => {
                let first = body.bytes()?.to_vec();
                if !is_clean(&first) {
                    return Err(malformed("a link of a tree leads out of it"));
                }
                Self::Hardlink { path, first }
            }
            _ => return Err(malformed("this frame is no part of a tree")),
        })
    }

    /// Receives the next entry; `None` at the end of the tree. A [`Kind::Refused`] frame in its
    /// place is the inner error.
    pub fn receive(from: &mut impl Read) -> io::Result<Result<Option<Self>, Refusal>> {
        match receive(from)?.ok_or(io::ErrorKind::UnexpectedEof)? {
            (Kind::End, _) => Ok(Ok(None)),
            (Kind::Refused, body) => Ok(Err(Refusal::decode(&body)?)),
            (kind, body) => Ok(Ok(Some(Self::decode(kind, &body)?))),
        }
    }
}

/// Whether `path` is relative, not empty, not too deep, and made of plain names.
pub fn is_clean(path: &[u8]) -> bool {
    let mut depth = 0;
    path.len() < 4096
        && path.split(|b| *b == b'/').all(|name| {
            depth += 1;
            let plain = !name.is_empty() && name != b"." && name != b"..";
            plain && name.len() < 256 && !name.contains(&0) && depth <= MAX_DEPTH + 8
        })
}

/// Opens `path` beneath `root` without following any symbolic link.
pub fn open_beneath(
    root: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve)
}

/// Which entries a walk leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Nothing.
    Nothing,
    /// `.git`, `__pycache__` and `*.pyc`, wherever they are: no part of a change.
    Unversioned,
    /// `.git` at the top: what a repository's directory does not show inside.
    TopGit,
}

impl Skip {
    /// Whether a name at a depth is left out.
    pub fn skips(self, name: &[u8], depth: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Unversioned => {
                name == b".git" || name == b"__pycache__" || name.ends_with(b".pyc")
            }
            Self::TopGit => depth == 0 && name == b".git",
        }
    }
}

/// Flags to read a directory.
pub const READ_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A path for a message.
pub fn lossy(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}

/// Opens a directory of the host to walk it.
pub fn open_host_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::{Entry, Marks, Merged, Skip, Walk, is_clean, open_host_dir, populate};
    use crate::wire::{Kind, send};
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
    use std::os::unix::fs::PermissionsExt;

    fn entries() -> impl Strategy<Value = Entry> {
        let path = || proptest::collection::vec("[a-z.]{1,8}", 1..4).prop_map(|p| p.join("/"));
        let path = move || path().prop_map(String::into_bytes);
        prop_oneof![
            (path(), 0..0o7777u32, any::<i64>(), 0..1_000_000_000u32, any::<bool>()).prop_map(
                |(path, mode, mtime_s, mtime_ns, opaque)| Entry::Dir {
                    path,
                    mode,
                    mtime_s,
                    mtime_ns,
                    opaque
                }
            ),
            (path(), any::<u64>()).prop_map(|(path, size)| Entry::File {
                path,
                mode: 0o644,
                mtime_s: -1,
                mtime_ns: 5,
                size
            }),
            (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..99))
                .prop_map(|(offset, data)| Entry::Chunk { offset, data }),
            (path(), path()).prop_map(|(path, first)| Entry::Hardlink { path, first }),
            path().prop_map(|path| Entry::Whiteout { path }),
            (path(), Just(b"/../x".to_vec())).prop_map(|(path, target)| Entry::Symlink {
                path,
                target,
                mtime_s: 7,
                mtime_ns: 8
            }),
        ]
    }

    proptest! {
        #[test]
        fn entries_survive_the_wire_or_are_refused_for_their_path(entry in entries()) {
            let mut wire = Vec::new();
            entry.send(&mut wire).unwrap();
            let clean = entry.path().is_none_or(is_clean)
                && !matches!(&entry, Entry::Hardlink { first, .. } if !is_clean(first));
            match Entry::receive(&mut wire.as_slice()) {
                Ok(Ok(Some(back))) => assert!(clean && back == entry),
                other => assert!(!clean && other.is_err(), "{other:?}"),
            }
        }
    }

    #[test]
    fn paths_that_lead_out_are_not_clean() {
        for path in ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/..", "a\0b"] {
            assert!(!is_clean(path.as_bytes()), "{path:?}");
        }
        assert!(!is_clean("a/".repeat(300).trim_end_matches('/').as_bytes()));
        for path in ["a", "a/b", ".git", "...", "a b/c\n", "\u{e9}"] {
            assert!(is_clean(path.as_bytes()), "{path:?}");
        }
    }

    fn make(entries: &[Entry], root: &std::path::Path) -> Result<(), crate::wire::Refusal> {
        let mut wire = Vec::new();
        for entry in entries {
            entry.send(&mut wire).unwrap();
        }
        send(&mut wire, Kind::End, &[]).unwrap();
        populate(&mut wire.as_slice(), &open_host_dir(root).unwrap())
    }

    #[test]
    fn a_link_in_a_tree_is_never_followed() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = outside.path().to_str().unwrap().as_bytes().to_vec();
        let link = Entry::Symlink { path: b"l".to_vec(), target, mtime_s: 0, mtime_ns: 0 };
        let file = |path: &str| Entry::File {
            path: path.as_bytes().to_vec(),
            mode: 0o644,
            mtime_s: 0,
            mtime_ns: 0,
            size: 1,
        };
        let dir = |path: &str| Entry::Dir {
            path: path.as_bytes().to_vec(),
            mode: 0o755,
            mtime_s: 0,
            mtime_ns: 0,
            opaque: false,
        };
        let hard = Entry::Hardlink { path: b"h".to_vec(), first: b"l/secret".to_vec() };
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        for second in [file("l/x"), dir("l/x"), hard, file("l")] {
            std::fs::remove_file(inside.path().join("l")).ok();
            assert!(make(&[link.clone(), second.clone()], inside.path()).is_err(), "{second:?}");
        }
        // A directory entry over a link must not give the link's target a mode.
        std::fs::remove_file(inside.path().join("l")).ok();
        assert!(make(&[link, dir("l")], inside.path()).is_err());
        let left: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_walk_and_what_is_made_of_it_are_the_same() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |p: &str| from.path().join(p);
        std::fs::create_dir_all(at("d/e")).unwrap();
        std::fs::write(at("d/e/f"), vec![7; 3 << 20]).unwrap();
        std::fs::hard_link(at("d/e/f"), at("z")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        std::fs::set_permissions(at("d"), PermissionsExt::from_mode(0o500)).unwrap();
        let send_all = |root: &std::path::Path| {
            let mut wire = Vec::new();
            let dir = Merged::new(vec![open_host_dir(root).unwrap()], Marks::Overlay);
            Walk::new(&mut wire, Skip::Nothing, 1 << 30).send(&dir, b"").unwrap();
            send(&mut wire, Kind::End, &[]).unwrap();
            wire
        };
        let wire = send_all(from.path());
        populate(&mut wire.as_slice(), &open_host_dir(to.path()).unwrap()).unwrap();
        assert!(send_all(to.path()) == wire);
        let dir = Merged::new(vec![open_host_dir(from.path()).unwrap()], Marks::Overlay);
        let mut small = Vec::new();
        assert!(Walk::new(&mut small, Skip::Nothing, 1 << 20).send(&dir, b"").is_err());
    }
}
