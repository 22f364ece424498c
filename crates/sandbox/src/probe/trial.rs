//! Tries the kernel's features one by one, each in a process of its own, with the powers that a
//! sandbox would be made with. Run in a helper, which is single-threaded and may fork.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::net::SendFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use crate::keeper::{HOST_ID, Identity, enter_user_namespace, take_identity};
use crate::owners::id_map;
use crate::sys;
use crate::template::{clone_tree, mount_proc};
use crate::wire::{Context, Decoder, Encoder, Refusal};

/// The first message of a host that asks for trials instead of sandboxes.
pub const REQUEST: &[u8] = b"trials";

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// A user namespace in which this user is all there is.
    Users,
    /// Mount, PID, IPC, UTS and network namespaces.
    Namespaces,
    /// A procfs of its own.
    Proc,
    /// A tmpfs with `user.*` attributes.
    Attributes,
    /// An overlay whose upper layer is on tmpfs, mounted with no more than a sandbox's powers.
    Overlay,
    /// A mount that shows other owners.
    IdMap,
    /// Handles of processes.
    PidFd,
}

/// All, in the order in which they are tried and told.
pub const TRIALS: [Trial; 7] = [
    Trial::Users,
    Trial::Namespaces,
    Trial::Proc,
    Trial::Attributes,
    Trial::Overlay,
    Trial::IdMap,
    Trial::PidFd,
];

/// Tries all and answers: for each an empty text, or a [`Refusal`].
pub fn answer(control: &OwnedFd) {
    let mut message = Encoder(vec![0]);
    for trial in TRIALS {
        let refusal = apart(|| attempt(trial)).err();
        message.bytes(&refusal.map(|refusal| refusal.encode()).unwrap_or_default());
    }
    let _ = rustix::net::send(control, &message.0, SendFlags::NOSIGNAL);
}

/// Reads the answer, in the order of [`TRIALS`].
pub fn read(answer: &[u8]) -> std::io::Result<Vec<Option<Refusal>>> {
    let mut answer = Decoder::new(answer);
    TRIALS
        .iter()
        .map(|_| match answer.bytes()? {
            [] => Ok(None),
            refusal => Refusal::decode(refusal).map(Some),
        })
        .collect()
}

/// Runs `body` in a child, which its changes of namespaces and ids end with.
fn apart(body: impl FnOnce() -> Result<(), Refusal>) -> Result<(), Refusal> {
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).step("pipe")?;
    let Some(child) = sys::fork(0).step("fork")? else {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        let message = match body() {
            Ok(()) => b"ok".to_vec(),
            Err(refusal) => refusal.encode(),
        };
        let _ = rustix::io::write(&to, &message);
        sys::exit(0);
    };
    drop(to);
    let mut message = vec![0; 4096];
    let n = rustix::io::read(&from, &mut message).unwrap_or(0);
    let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
    match &message[..n] {
        b"ok" => Ok(()),
        [] => Err(Refusal::io("try it", &std::io::Error::other("the trial was killed"))),
        refusal => Err(Refusal::decode(refusal).step("read the trial's answer")?),
    }
}

fn attempt(trial: Trial) -> Result<(), Refusal> {
    match trial {
        Trial::Users => {
            let identity = take_identity()?;
            if identity.privileged {
                enter_user_namespace(identity, HOST_ID, HOST_ID)?;
            }
            Ok(())
        }
        Trial::PidFd => {
            let own = rustix::process::getpid();
            rustix::process::pidfd_open(own, PidfdFlags::empty()).step("pidfd_open").map(drop)
        }
        Trial::Namespaces => {
            take_identity()?;
            let flags = UnshareFlags::NEWNS
                | UnshareFlags::NEWPID
                | UnshareFlags::NEWIPC
                | UnshareFlags::NEWUTS
                | UnshareFlags::NEWNET;
            sys::unshare(flags).step("make namespaces")
        }
        Trial::Proc => {
            with_own_mounts(UnshareFlags::NEWPID)?;
            // A procfs shows the PID namespace of who mounts it, which is the next child's.
            apart(|| mount_proc().map(drop))
        }
        Trial::Attributes => {
            with_own_mounts(UnshareFlags::empty())?;
            let at = tmpfs()?;
            let file = at.join("file");
            fs::write(&file, "").step("write to tmpfs")?;
            rustix::fs::setxattr(&file, "user.test", b"y", XattrFlags::empty())
                .step("set an attribute on tmpfs")
        }
        Trial::Overlay => {
            with_own_mounts(UnshareFlags::empty())?;
            overlay(tmpfs()?)
        }
        Trial::IdMap => {
            let identity = take_identity()?;
            sys::unshare(UnshareFlags::NEWNS).step("make a mount namespace")?;
            id_mapped(identity)
        }
    }
}

fn with_own_mounts(more: UnshareFlags) -> Result<(), Refusal> {
    take_identity()?;
    sys::unshare(UnshareFlags::NEWNS | more).step("make a mount namespace")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).step("make mounts private")
}

/// A tmpfs on a directory that every machine has; only this process sees it.
fn tmpfs() -> Result<&'static Path, Refusal> {
    let at = Path::new("/tmp");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, Some(c"size=1m")).step("mount tmpfs")?;
    Ok(at)
}

fn overlay(at: &Path) -> Result<(), Refusal> {
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(at.join(name)).step("write to tmpfs")?;
    }
    fs::write(at.join("lower/gone"), "x").step("write to tmpfs")?;
    let options = c"lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr";
    let merged = at.join("merged");
    rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), Some(options))
        .step("mount an overlay")?;
    fs::remove_file(merged.join("gone")).step("delete below an overlay")?;
    fs::write(merged.join("new"), "y").step("write to an overlay")
}

fn id_mapped(identity: Identity) -> Result<(), Refusal> {
    if !identity.privileged {
        return Ok(());
    }
    let users = id_map(&format!("0 {} 1", identity.uid), &format!("0 {} 1", identity.gid))?;
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&here, flags, Mode::empty()).step("open a directory")?;
    let tree = clone_tree(&here)?;
    sys::mount_setattr(tree.as_fd(), c"", false, 0, Some(users.as_fd())).step("map owners")
}
