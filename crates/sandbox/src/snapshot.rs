//! Snapshots: all that was written in a sandbox, in one file that survives the process.
//!
//! ```text
//! magic       8 bytes, with a line end that a text conversion would destroy
//! version     u32, little endian
//! kind        u8: how the repository stood (a tree, over a directory, in the root)
//! pristine    32 bytes: what lies below, see `identity`
//! tree        frames of `tree`, to their end
//! checksum    32 bytes: SHA-256 of all before
//! ```
//! Extended attributes of users and sockets are left out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use patchwright_core::{RepoSource, SandboxError, SandboxSpec};
use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::branch::{Relay, relay};
use crate::diff::Pristine;
use crate::fill::open_repository;
use crate::native::NativeSandbox;
use crate::plan::Source;
use crate::provider::{Inner, died, from_refusal, host_error};
use crate::setup::{STATE, num_inodes};
use crate::tree::{Entry, Found, MAX_DEPTH, Marks, Merged, Skip, open_beneath};
use crate::wire::{Kind, malformed, send};

const MAGIC: [u8; 8] = *b"PWSNAP\r\n";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 1 + 32;
const CHECKSUM: usize = 32;
/// Bytes that one entry may take beside its data, on average over a snapshot.
const ENTRY: u64 = 4096 + 64;

type Sum = [u8; 32];

impl NativeSandbox {
    /// Writes a snapshot to `to`.
    pub(crate) fn save(&mut self, to: &Path) -> Result<(), SandboxError> {
        self.wake()?;
        let identity = identity(self)?;
        if to.file_name().is_none() {
            return Err(SandboxError::Path {
                path: to.display().to_string(),
                reason: "is not the name of a file".to_owned(),
            });
        }
        // Recorded, so that what a program leaves here when it is killed is found and removed.
        let place = self.inner.directory_in(parent(to), ".patchwright-snapshot")?;
        let temporary = place.path().join("snapshot");
        self.write_snapshot(&temporary, identity)?;
        fs::rename(&temporary, to)
            .and_then(|()| File::open(parent(to))?.sync_all())
            .map_err(|error| host_error(&format!("write {}", to.display()), error))
    }

    fn write_snapshot(&mut self, at: &Path, identity: Sum) -> Result<(), SandboxError> {
        let failed = |error| host_error(&format!("write {}", at.display()), error);
        let Some(slot) = &self.slot else { return Err(died("it was used after its end")) };
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(at).map_err(failed)?;
        let mut to =
            Summing { inner: BufWriter::with_capacity(256 << 10, file), sum: Sha256::new() };
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.push(kind(&self.plan.source));
        header.extend_from_slice(&identity);
        let mut outcome = to.write_all(&header);
        let taken = relay(&slot.stream, |kind, body| {
            if outcome.is_ok() {
                outcome = send(&mut to, kind, body);
            }
            Ok(())
        });
        match taken {
            Ok(()) => {}
            Err(Relay::Refused(refusal)) => return Err(from_refusal(refusal)),
            Err(Relay::Broken(error)) => return Err(self.dead(&error.to_string())),
        }
        outcome
            .and_then(|()| send(&mut to, Kind::End, &[]))
            .and_then(|()| {
                let sum = to.sum.finalize();
                to.inner.write_all(&sum)?;
                to.inner.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
            })
            .map_err(failed)
    }

    /// Makes a sandbox with the files of a snapshot.
    pub(crate) fn restore(
        inner: &Arc<Inner>,
        spec: &SandboxSpec,
        from: &Path,
    ) -> Result<Self, SandboxError> {
        let mut sandbox = Self::plan(inner, spec)?;
        let refuse =
            |reason: String| SandboxError::Path { path: from.display().to_string(), reason };
        let mut file = open(from).map_err(|error| refuse(error.to_string()))?;
        let disk_bytes = spec.limits.disk_bytes;
        let most = disk_bytes.saturating_add(num_inodes(disk_bytes) * ENTRY);
        let saved = verify(&mut file, most).map_err(|error| refuse(describe(&error)))?;
        match (&sandbox.plan.source, saved.kind) {
            // It was copied where it was taken, and is a whole tree.
            (Source::Directory(_), 0) => sandbox.plan.source = Source::Tree,
            (source, saved) if kind(source) == saved => {}
            _ => return Err(refuse("is a snapshot of another kind of sandbox".to_owned())),
        }
        if identity(&sandbox)? != saved.identity {
            return Err(refuse(
                "is a snapshot over other files than the specification's: the repository or the \
                 image has changed"
                    .to_owned(),
            ));
        }
        let mut bad = None;
        let (launch, _) = sandbox.start(None, |to| {
            let mut from = BufReader::with_capacity(256 << 10, &file);
            let sent = each_entry(&mut from, |entry| entry.send(to));
            // What was sent so far makes a sandbox, which goes when this returns.
            bad = sent.err();
            Ok(())
        });
        if let Some(error) = bad {
            return Err(refuse(describe(&error)));
        }
        launch.into_result().map(|()| sandbox)
    }
}

fn kind(source: &Source) -> u8 {
    match source {
        Source::Tree => 0,
        Source::Directory(_) => 1,
        Source::InRoot => 2,
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "is cut short, or no snapshot".to_owned(),
        _ => error.to_string(),
    }
}

/// The directory that a file is in.
fn parent(to: &Path) -> &Path {
    to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A writer that sums what passes.
struct Summing<W> {
    inner: W,
    sum: Sha256,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sum.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The head of a snapshot.
struct Saved {
    kind: u8,
    identity: Sum,
}

/// Opens a regular file, and waits for nothing.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(malformed("is not a regular file")) }
}

/// Checks a snapshot from end to end, and leaves the file at the first entry.
fn verify(file: &mut File, most: u64) -> io::Result<Saved> {
    let size = file.metadata()?.len();
    if size > most {
        return Err(malformed("is larger than the sandbox's disk limit allows"));
    }
    let mut header = [0; HEADER];
    let mut from = BufReader::with_capacity(256 << 10, &*file);
    from.read_exact(&mut header)?;
    let (magic, rest) = header.split_at(8);
    let (version, rest) = rest.split_at(4);
    if magic != MAGIC {
        return Err(malformed("is not a snapshot of a sandbox"));
    }
    if version != VERSION.to_le_bytes() {
        return Err(malformed("is a snapshot of another version of this program"));
    }
    let mut sum = Sha256::new();
    sum.update(header);
    let mut left = size.saturating_sub((HEADER + CHECKSUM) as u64);
    let mut buffer = vec![0; 256 << 10];
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        from.read_exact(&mut buffer[..want])?;
        sum.update(&buffer[..want]);
        left -= want as u64;
    }
    let mut expected = [0; CHECKSUM];
    from.read_exact(&mut expected)?;
    if sum.finalize()[..] != expected {
        return Err(malformed("is damaged: its checksum is not that of its content"));
    }
    let mut identity = [0; 32];
    identity.copy_from_slice(&rest[1..]);
    file.seek(io::SeekFrom::Start(HEADER as u64))?;
    Ok(Saved { kind: rest[0], identity })
}

/// Reads the entries to their end. They are checked as if nobody had summed them: whoever can
/// write a file can also write its checksum.
fn each_entry(
    from: &mut impl Read,
    mut to: impl FnMut(&Entry) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let entry = match Entry::receive(from)? {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(()),
            Err(_) => return Err(malformed("has something that is no part of a tree")),
        };
        if let Some(path) = entry.path() {
            let mut names = path.split(|b| *b == b'/');
            let top = names.next().unwrap_or_default();
            if !STATE.iter().any(|state| state.as_bytes() == top) {
                return Err(malformed("has files outside of what a sandbox writes"));
            }
            let depth = 1 + names.count();
            let is_part = depth == 1 || depth == 2 && top == b"own";
            if is_part && !matches!(entry, Entry::Dir { .. }) {
                return Err(malformed("has something else in the place of a directory"));
            }
        }
        to(&entry)?;
    }
}

/// A sum of what lies below a sandbox's own files. Times do not count in a repository, so that it
/// may be checked out anew; of an image's layers the content does not, which would take as long
/// as pulling them, but sizes and times do.
fn identity(sandbox: &NativeSandbox) -> Result<Sum, SandboxError> {
    let mut sum = Sha256::new();
    let plan = &sandbox.plan;
    let failed = |error: io::Error| host_error("read the pristine files", error);
    field(&mut sum, plan.workdir.as_bytes());
    for layer in &plan.layers {
        let dir = Merged::new(vec![open_repository(layer)?], Marks::None);
        field(&mut sum, b"layer");
        listing(&mut sum, &dir, false, 0).map_err(failed)?;
    }
    match (&sandbox.repo, sandbox.pristine()?) {
        (RepoSource::InRoot, _) => {}
        (_, Pristine::Files(files)) => {
            for (path, text) in files.iter() {
                field(&mut sum, path.as_bytes());
                field(&mut sum, text.as_bytes());
            }
        }
        (_, Pristine::Merged(dir)) => listing(&mut sum, &dir, true, 0).map_err(failed)?,
    }
    Ok(sum.finalize().into())
}

fn field(sum: &mut Sha256, bytes: &[u8]) {
    sum.update((bytes.len() as u64).to_le_bytes());
    sum.update(bytes);
}

/// Sums a directory up: a repository's with content and without times, a layer's the other way.
fn listing(sum: &mut Sha256, dir: &Merged, is_repo: bool, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(malformed("directories are nested too deeply"));
    }
    for (name, layers) in dir.names()? {
        if is_repo && Skip::TopGit.skips(&name, depth) {
            continue;
        }
        field(sum, &name);
        match dir.look(&name, &layers)? {
            Found::Dir(below) => {
                field(sum, b"dir");
                listing(sum, &below, is_repo, depth + 1)?;
                field(sum, b"end");
            }
            Found::Other(dir, stat) => {
                sum.update(stat.st_mode.to_le_bytes());
                let file_type = FileType::from_raw_mode(stat.st_mode);
                if file_type == FileType::Symlink {
                    let target = rustix::fs::readlinkat(dir, name.as_slice(), Vec::new())?;
                    field(sum, target.as_bytes());
                } else if is_repo && file_type == FileType::RegularFile {
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
                    let file = open_beneath(dir, &name, flags, Mode::empty())?;
                    sum.update((stat.st_size as u64).to_le_bytes());
                    io::copy(&mut File::from(file), sum)?;
                } else if !is_repo {
                    sum.update((stat.st_size as u64).to_le_bytes());
                    sum.update((stat.st_mtime as u64).to_le_bytes());
                }
            }
            Found::Absent | Found::Whiteout => {}
        }
    }
    Ok(())
}
