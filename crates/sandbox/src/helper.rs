//! PID 1 of a sandbox: serves the host's requests, one at a time, until it is told to end or the
//! host is gone. Between two requests no other process is alive inside.

use std::io::{BufReader, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use patchwright_core::SandboxLimits;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};

use crate::command;
use crate::links::Index;
use crate::plan::{LimitsRung, Plan, Source};
use crate::setup::{Built, STATE};
use crate::sys;
use crate::tree::{Marks, Merged, Place, READ_DIR, Skip, Walk};
use crate::wire::{
    Context, Decoder, Encoder, Kind, MAX_FRAME, Refusal, receive, send, send_descriptor,
};

/// Bytes of file data that one diff may take out.
pub const MAX_DIFF: u64 = 64 << 20;
/// What a [`Kind::Snapshot`] request asks for.
pub const SNAPSHOT_CHANGES: u8 = 1;
/// Everything writable.
pub const SNAPSHOT_ALL: u8 = 2;

const PROC_MAGIC: i64 = 0x9fa0;

/// What requests are served with.
pub struct Helper<'a> {
    /// The socket to the host.
    pub stream: &'a UnixStream,
    /// The writable file system.
    pub writable: &'a OwnedFd,
    /// All layers, by number.
    pub stack: &'a OwnedFd,
    /// The indexes of its overlays.
    pub indexes: &'a [Index],
    /// What the sandbox is made of.
    pub plan: &'a Plan,
    /// Bounds.
    pub limits: &'a SandboxLimits,
    /// How memory is bounded.
    pub rung: LimitsRung,
    /// Readable when a child has ended.
    pub signals: OwnedFd,
}

/// Serves until the end.
pub fn serve(stream: &UnixStream, built: &Built, plan: &Plan, rung: LimitsRung) -> ! {
    let Ok(signals) = sys::child_signals() else { sys::exit(1) };
    let (writable, stack) = (&built.writable, &built.stack);
    let mut limits = plan.limits.clone();
    if rung == LimitsRung::Watchdog {
        // It sums what it sees, and of the layers it sees the topmost.
        limits.memory_bytes = limits.memory_bytes.saturating_sub(plan.sealed.bytes);
    }
    let limits = &limits;
    let indexes = &built.indexes;
    let helper = Helper { stream, writable, stack, indexes, plan, limits, rung, signals };
    if send(&mut &*stream, Kind::Ready, &[]).is_err() {
        sys::exit(1);
    }
    let mut from = BufReader::new(stream);
    loop {
        let Ok(Some((kind, body))) = receive(&mut from) else { sys::exit(1) };
        let answer = match kind {
            Kind::Exec => helper.exec(&body),
            Kind::Read => read(&body),
            Kind::Write => write(&body).map(|()| Vec::new()),
            Kind::Snapshot => match helper.snapshot(&body) {
                Ok(()) => continue,
                Err(refusal) => Err(refusal),
            },
            Kind::Seal => match helper.settle() {
                Ok(()) => sys::exit(i32::from(helper.seal().is_err())),
                Err(refusal) => Err(refusal),
            },
            Kind::Destroy => sys::exit(0),
            _ => sys::exit(1),
        };
        let sent = match answer {
            Ok(body) => send(&mut &*stream, Kind::Done, &body),
            Err(refusal) => send(&mut &*stream, Kind::Refused, &refusal.encode()),
        };
        if sent.is_err() {
            sys::exit(1);
        }
    }
}

impl Helper<'_> {
    fn exec(&self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let command = command::Command::decode(body).step("read a command")?;
        let ended = command::run(self, &command)?;
        Ok(ended.encode())
    }

    /// Makes the layers say all that is in view.
    fn settle(&self) -> Result<(), Refusal> {
        self.indexes.iter().try_for_each(|index| index.settle(self.writable))
    }

    /// Hands the layers over.
    fn seal(&self) -> std::io::Result<()> {
        let stat = rustix::fs::fstatvfs(self.writable)?;
        let mut body = Encoder::default();
        body.u64((stat.f_blocks - stat.f_bfree) * stat.f_frsize).u64(stat.f_files - stat.f_ffree);
        send(&mut &*self.stream, Kind::Done, &body.0)?;
        send_descriptor(self.stream, self.stack)
    }

    fn snapshot(&self, body: &[u8]) -> Result<(), Refusal> {
        self.settle()?;
        let mut to = BufWriter::with_capacity(256 << 10, self.stream);
        let scope = Decoder::new(body).u8().step("read a request")?;
        if scope == SNAPSHOT_CHANGES {
            self.send_changes(&mut to)?;
        } else {
            let mut walk = Walk::new(&mut to, Skip::Nothing, self.limits.disk_bytes);
            for name in STATE {
                walk.set_alone(name == "own");
                walk.send_merged(&self.layers(name)?, name.as_bytes())?;
            }
        }
        send(&mut to, Kind::End, &[]).step("send a tree")?;
        to.flush().step("send a tree")
    }

    /// Sends what was written at the repository's place, after a byte that says whether it stands
    /// alone or lies over the pristine tree.
    fn send_changes(&self, to: &mut BufWriter<&UnixStream>) -> Result<(), Refusal> {
        let place = match &self.plan.source {
            Source::Tree => self.layers("own")?.at(b"repo").step("repo")?,
            Source::Directory(_) => Place::Dir(self.layers("repo")?),
            Source::InRoot => {
                let workdir = self.plan.workdir.as_bytes();
                self.layers("image")?.at(workdir).step(&self.plan.workdir)?
            }
        };
        let (alone, written) = match place {
            Place::Dir(written) => {
                let alone = self.plan.source == Source::Tree || written.hides();
                (alone, Some(written))
            }
            Place::Absent => (false, None),
            Place::Gone | Place::Other(..) => (true, None),
        };
        send(to, Kind::Done, &[u8::from(alone)]).step("send a tree")?;
        written.map_or(Ok(()), |dir| Walk::new(to, Skip::Unversioned, MAX_DIFF).send(&dir, b""))
    }

    /// A directory of all layers that have it.
    fn layers(&self, name: &str) -> Result<Merged, Refusal> {
        let mut dirs = Vec::new();
        for number in (0..=self.plan.sealed.layers).rev() {
            let path = format!("{number}/{name}");
            match rustix::fs::openat(self.stack, &path, READ_DIR, Mode::empty()) {
                Ok(dir) => dirs.push(dir),
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error).step(&path),
            }
        }
        Ok(Merged::new(dirs, Marks::Overlay))
    }
}

/// Opens a path as commands see it. Links are followed, but not the magic ones of `/proc`, which
/// lead to what only PID 1 has.
fn open_inside(path: &str, flags: OFlags) -> Result<OwnedFd, Refusal> {
    if !path.starts_with('/') {
        return Err(Refusal::path(path, "is not an absolute path"));
    }
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mode =
        if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o644) } else { Mode::empty() };
    let file = rustix::fs::openat2(CWD, path, flags, mode, ResolveFlags::NO_MAGICLINKS)
        .map_err(|error| path_error(path, error))?;
    let stat = rustix::fs::fstat(&file).step(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Refusal::path(path, "is not a regular file"));
    }
    if rustix::fs::fstatfs(&file).step(path)?.f_type as i64 == PROC_MAGIC {
        return Err(Refusal::path(path, "is not a file on disk"));
    }
    Ok(file)
}

fn path_error(path: &str, error: rustix::io::Errno) -> Refusal {
    use rustix::io::Errno;
    let error_text = std::io::Error::from(error).to_string();
    match error {
        Errno::NOSPC | Errno::DQUOT | Errno::NOMEM => Refusal::limit(path, "the disk is full"),
        Errno::ROFS => Refusal::path(path, "is outside what may be written"),
        Errno::NOENT => Refusal::path(path, "does not exist"),
        Errno::LOOP => Refusal::path(path, "leads through too many or forbidden links"),
        _ => Refusal::path(path, error_text),
    }
}

fn read(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut body = Decoder::new(body);
    let path = body.string().step("read a request")?;
    let max = (body.u64().step("read a request")? as usize).min(MAX_FRAME);
    let file = open_inside(&path, OFlags::RDONLY)?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while bytes.len() < max {
        let want = buffer.len().min(max - bytes.len());
        match rustix::io::read(&file, &mut buffer[..want]).step(&path)? {
            0 => break,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(bytes)
}

fn write(body: &[u8]) -> Result<(), Refusal> {
    let mut body = Decoder::new(body);
    let path = body.string().step("read a request")?;
    let bytes = body.bytes().step("read a request")?;
    if let Some((parent, _)) = path.rsplit_once('/')
        && !parent.is_empty()
    {
        make_parents(&path, parent)?;
    }
    let existed = rustix::fs::statat(CWD, path.as_str(), AtFlags::empty()).is_ok();
    let file = open_inside(&path, OFlags::WRONLY | OFlags::CREATE)?;
    let stored = store(&file, bytes);
    if stored.is_err() && !existed {
        let _ = rustix::fs::unlinkat(CWD, path.as_str(), AtFlags::empty());
    }
    stored.map_err(|error| path_error(&path, error))
}

/// Replaces a file's content, or leaves it as it was: the room is taken before a byte changes.
fn store(file: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    let old = rustix::fs::fstat(file)?.st_size as u64;
    if !bytes.is_empty() {
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, flags, 0, bytes.len() as u64) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    let mut at = 0;
    while at < bytes.len() {
        at += rustix::io::pwrite(file, &bytes[at..], at as u64)?;
    }
    if old > bytes.len() as u64 {
        rustix::fs::ftruncate(file, bytes.len() as u64)?;
    }
    Ok(())
}

fn make_parents(path: &str, parent: &str) -> Result<(), Refusal> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(CWD, parent, flags | OFlags::DIRECTORY, Mode::empty(), resolve) {
        Ok(_) => return Ok(()),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(path_error(path, error)),
    }
    if let Some((above, _)) = parent.rsplit_once('/')
        && !above.is_empty()
    {
        make_parents(path, above)?;
    }
    match rustix::fs::mkdirat(CWD, parent, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(path_error(path, error)),
    }
}

/// The body of a [`Kind::Read`] request.
pub fn read_request(path: &str, max_bytes: usize) -> Vec<u8> {
    let mut body = Encoder::default();
    body.str(path).u64(max_bytes as u64);
    body.0
}

/// The body of a [`Kind::Write`] request.
pub fn write_request(path: &str, bytes: &[u8]) -> Vec<u8> {
    let mut body = Encoder::default();
    body.str(path).bytes(bytes);
    body.0
}
