//! What the host tells its helpers: how to start ([`Boot`]), what the machine allows
//! ([`Machine`]), and what one sandbox is made of ([`Plan`]).

use std::io;
use std::path::PathBuf;

use patchwright_core::SandboxLimits;

use crate::defence::Defences;
use crate::template::INSIDE_ID;
use crate::wire::{Decoder, Encoder, malformed};

/// How the bound on memory is enforced. The other bounds never depend on it: processes are
/// counted by the kernel per user namespace, CPU time and wall-clock time by PID 1 and rlimits,
/// disk by the size of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsRung {
    /// A cgroup v2 subtree that was delegated to this user: exact.
    CgroupV2,
    /// The v1 `memory` controller, as root: exact.
    CgroupV1,
    /// `RLIMIT_AS` at twice the bound per process, and PID 1 sums the tree's memory every few
    /// milliseconds and kills the command past the bound: a fast allocation overshoots by what
    /// it takes in that time. Memory that no process has mapped is counted (System V, sockets) or
    /// refused (`memfd_create`).
    Watchdog,
}

impl LimitsRung {
    pub(crate) fn from_byte(byte: u8) -> io::Result<Self> {
        match byte {
            1 => Ok(Self::CgroupV2),
            2 => Ok(Self::CgroupV1),
            3 => Ok(Self::Watchdog),
            _ => Err(malformed("unknown rung")),
        }
    }

    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::CgroupV2 => 1,
            Self::CgroupV1 => 2,
            Self::Watchdog => 3,
        }
    }
}

impl std::fmt::Display for LimitsRung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CgroupV2 => "cgroup v2",
            Self::CgroupV1 => "cgroup v1",
            Self::Watchdog => "rlimits and watchdog",
        })
    }
}

/// How the helper starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Demand this rung; `None` takes the best there is.
    pub rung: Option<LimitsRung>,
    /// Directories beside the system's that every sandbox shows read-only at their own path: the
    /// prefixes of the host's python3.
    pub prefixes: Vec<PathBuf>,
    /// Layers of defence in force: all, outside the attack suite.
    pub defences: Defences,
}

impl Boot {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::default();
        body.u8(self.rung.map_or(0, LimitsRung::byte)).u32(self.prefixes.len() as u32);
        for prefix in &self.prefixes {
            body.bytes(path_bytes(prefix));
        }
        for number in self.defences.encode() {
            body.u32(number);
        }
        body.0
    }

    /// Reads the message.
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let mut body = Decoder::new(body);
        let rung = match body.u8()? {
            0 => None,
            byte => Some(LimitsRung::from_byte(byte)?),
        };
        let prefixes = (0..body.u32()?).map(|_| path(&mut body)).collect::<Result<_, _>>()?;
        let defences = Defences::decode([body.u32()?, body.u32()?, body.u32()?])?;
        Ok(Self { rung, prefixes, defences })
    }
}

/// What the helper found when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// The rung in force.
    pub rung: LimitsRung,
    /// Whether it runs with root's powers (they end before a command starts).
    pub privileged: bool,
    /// Whether a directory can be an overlay's lower layer; if not, it is copied.
    pub overlay: bool,
    /// Whether an overlay's layers can be named one by one; if not, forks copy.
    pub stacks: bool,
}

impl Machine {
    /// The message.
    pub fn encode(self) -> Vec<u8> {
        let flags = [self.privileged, self.overlay, self.stacks].map(u8::from);
        [&[self.rung.byte()][..], &flags].concat()
    }

    /// Reads the message.
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let mut body = Decoder::new(body);
        Ok(Self {
            rung: LimitsRung::from_byte(body.u8()?)?,
            privileged: body.u8()? != 0,
            overlay: body.u8()? != 0,
            stacks: body.u8()? != 0,
        })
    }
}

/// Where the repository comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// All of it is in the tree that follows.
    Tree,
    /// A host directory below an overlay; the tree that follows is the upper layer.
    Directory(PathBuf),
    /// It is a part of the root's layers.
    InRoot,
}

/// The writable layers of earlier lives of a sandbox, which are only read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sealed {
    /// How many; without any there is no handle to them either.
    pub layers: u32,
    /// Bytes that they hold.
    pub bytes: u64,
    /// Files, directories and links that they hold.
    pub inodes: u64,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Host directories that the root is made of, the topmost first; none for the host's own.
    pub layers: Vec<PathBuf>,
    /// Absolute path of the repository inside.
    pub workdir: String,
    /// The repository.
    pub source: Source,
    /// Host directories and where they appear, read-only.
    pub read_only: Vec<(PathBuf, String)>,
    /// Bounds.
    pub limits: SandboxLimits,
    /// What it starts from.
    pub sealed: Sealed,
    /// Whether the handle to the sealed layers is wanted back: it serves once.
    pub lend: bool,
    /// Whether its slot must count its memory anew: files of the last sandbox there live on.
    pub renew: bool,
}

impl Plan {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::default();
        body.u32(self.layers.len() as u32);
        for layer in &self.layers {
            body.bytes(path_bytes(layer));
        }
        body.str(&self.workdir);
        match &self.source {
            Source::Tree => body.u8(0),
            Source::Directory(path) => body.u8(1).bytes(path_bytes(path)),
            Source::InRoot => body.u8(2),
        };
        body.u32(self.read_only.len() as u32);
        for (from, to) in &self.read_only {
            body.bytes(path_bytes(from)).str(to);
        }
        let limits = &self.limits;
        body.u64(limits.memory_bytes).u64(limits.num_processes).u64(limits.cpu_seconds);
        body.u64(limits.output_bytes as u64).u64(limits.disk_bytes);
        body.u32(self.sealed.layers).u64(self.sealed.bytes).u64(self.sealed.inodes);
        body.u8(u8::from(self.lend)).u8(u8::from(self.renew));
        body.0
    }

    /// Reads the message.
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let mut body = Decoder::new(body);
        let layers = (0..body.u32()?).map(|_| path(&mut body)).collect::<Result<_, _>>()?;
        let workdir = body.string()?;
        let source = match body.u8()? {
            0 => Source::Tree,
            1 => Source::Directory(path(&mut body)?),
            _ => Source::InRoot,
        };
        let mut read_only = Vec::new();
        for _ in 0..body.u32()? {
            read_only.push((path(&mut body)?, body.string()?));
        }
        let limits = SandboxLimits {
            memory_bytes: body.u64()?,
            num_processes: body.u64()?,
            cpu_seconds: body.u64()?,
            output_bytes: body.u64()? as usize,
            disk_bytes: body.u64()?,
        };
        let sealed = Sealed { layers: body.u32()?, bytes: body.u64()?, inodes: body.u64()? };
        let (lend, renew) = (body.u8()? != 0, body.u8()? != 0);
        Ok(Self { layers, workdir, source, read_only, limits, sealed, lend, renew })
    }

    /// User and group id that commands see as their own. An image's programs expect to be root;
    /// with no power of root's it is a name and nothing else.
    pub fn inside_id(&self) -> u32 {
        if self.layers.is_empty() { INSIDE_ID } else { 0 }
    }
}

fn path_bytes(path: &std::path::Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

fn path(body: &mut Decoder<'_>) -> io::Result<PathBuf> {
    let bytes = body.bytes()?.to_vec();
    Ok(PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::{Boot, LimitsRung, Machine, Plan, Sealed, Source};
    use std::path::PathBuf;

    #[test]
    fn messages_round_trip() {
        let boot = Boot {
            rung: Some(LimitsRung::CgroupV1),
            prefixes: vec![PathBuf::from("/opt/py")],
            defences: crate::defence::Defences::default(),
        };
        assert_eq!(Boot::decode(&boot.encode()).unwrap(), boot);
        let machine =
            Machine { rung: LimitsRung::Watchdog, privileged: true, overlay: false, stacks: true };
        assert_eq!(Machine::decode(&machine.encode()).unwrap(), machine);
        let plan = Plan {
            layers: vec![PathBuf::from("/l1"), PathBuf::from("/l0")],
            workdir: "/testbed".to_owned(),
            source: Source::Directory(PathBuf::from("/r")),
            read_only: vec![(PathBuf::from("/a"), "/b".to_owned())],
            limits: patchwright_core::SandboxLimits::default(),
            sealed: Sealed { layers: 3, bytes: 1 << 40, inodes: 9 },
            lend: true,
            renew: true,
        };
        assert_eq!(Plan::decode(&plan.encode()).unwrap(), plan);
        assert!(Plan::decode(&plan.encode()[..20]).is_err());
    }
}
