//! Sets one sandbox up, as its PID 1, and gives up every power that was needed for it.
//!
//! One tmpfs holds all that is writable, so that one size bounds it and one walk copies it:
//! ```text
//! writable/repo   the repository, or the overlay's upper layer   -> the plan's workdir
//! writable/work   the overlay's own
//! writable/root   the root: mount points and links, sealed once all is mounted
//! writable/tmp    -> /tmp          writable/shm   -> /dev/shm      writable/home   -> /home/agent
//! ```

use std::ffi::CString;
use std::fs;
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Signal, WaitOptions};
use rustix::thread::CapabilitySet;

use crate::keeper::{Identity, enter_user_namespace};
use crate::plan::{Plan, Source};
use crate::slot::{Ground, drain, source};
use crate::sys;
use crate::template::{
    HOME, INSIDE_ID, LOWER, Parts, WRITABLE, attach, clone_tree, is_reserved, make_dirs,
    mount_proc, seal,
};
use crate::tree;
use crate::wire::{Cause, Context, Refusal};

/// Parts of `/proc` that are hidden: they speak of the machine.
const MASKED: [&str; 6] = ["kcore", "keys", "kmsg", "sysrq-trigger", "timer_list", "cmdline"];

/// The parts of the writable file system that a copy of a sandbox has, with their modes.
pub const PARTS: [(&str, u32); 4] =
    [("repo", 0o755), ("tmp", 0o1777), ("shm", 0o1777), ("home", 0o755)];

/// Makes one owner's files appear as the commands' own.
pub struct OwnerMap {
    /// User and group.
    owner: (u32, u32),
    /// The user namespace whose map it is.
    users: OwnedFd,
}

/// Opens the plan's host directories. Called while the host's files are in view.
pub fn find_sources(
    ground: &mut Ground<'_>,
    overlay: bool,
    owner: &mut Option<OwnerMap>,
) -> Result<(), Refusal> {
    if let Source::Directory(path) = &ground.plan.source {
        if !overlay {
            return Err(no_overlay("tmpfs has no user attributes (kernel before 6.6)"));
        }
        let tree = source(path)?;
        if ground.identity.privileged {
            show_as_user(&tree, ground.identity, owner)?;
        }
        ground.lower = Some(tree);
    }
    for (from, _) in &ground.plan.read_only {
        let tree = source(from)?;
        let set = sys::MOUNT_READ_ONLY | sys::MOUNT_NO_SUID | sys::MOUNT_NO_DEV;
        sys::mount_setattr(tree.as_fd(), c"", true, set, None).step("make a mount read-only")?;
        ground.read_only.push(tree);
    }
    Ok(())
}

fn no_overlay(why: impl Into<String>) -> Refusal {
    Refusal { cause: Cause::NoOverlay, what: "overlay".to_owned(), why: why.into(), errno: 0 }
}

/// Makes the files of a directory's owner appear as the commands' own: a file whose owner is not
/// known inside cannot be changed through an overlay.
fn show_as_user(
    tree: &OwnedFd,
    identity: Identity,
    held: &mut Option<OwnerMap>,
) -> Result<(), Refusal> {
    let stat = rustix::fs::fstat(tree).step("look at the repository")?;
    if stat.st_uid == identity.uid && stat.st_gid == identity.gid {
        return Ok(());
    }
    let owner = (stat.st_uid, stat.st_gid);
    let map = match held.take() {
        Some(map) if map.owner == owner => map,
        _ => OwnerMap {
            owner,
            users: id_map(
                &format!("{} {} 1", owner.0, identity.uid),
                &format!("{} {} 1", owner.1, identity.gid),
            )?,
        },
    };
    let shown = sys::mount_setattr(tree.as_fd(), c"", false, 0, Some(map.users.as_fd()));
    *held = Some(map);
    shown.map_err(|error| no_overlay(format!("its file system cannot map owners: {error}")))
}

/// A user namespace that exists only for its maps.
fn id_map(uid_map: &str, gid_map: &str) -> Result<OwnedFd, Refusal> {
    use rustix::pipe::{PipeFlags, pipe_with};
    let (name_in, name_out) = pipe_with(PipeFlags::CLOEXEC).step("pipe")?;
    let (hold_in, hold_out) = pipe_with(PipeFlags::CLOEXEC).step("pipe")?;
    let Some(pid) = sys::fork(libc::CLONE_NEWUSER).step("make a user namespace")? else {
        drop(hold_out);
        // Its number in the procfs that is in view, which is another PID namespace's.
        let own = rustix::fs::readlink("/proc/self", Vec::new()).unwrap_or_default();
        let _ = rustix::io::write(&name_out, own.as_bytes());
        drop(name_out);
        let _ = rustix::io::read(&hold_in, &mut [0u8; 1]);
        sys::exit(0);
    };
    drop((name_out, hold_in));
    let made = (|| {
        let mut name = [0u8; 32];
        let n = rustix::io::read(&name_in, &mut name)?;
        let proc = Path::new("/proc").join(String::from_utf8_lossy(&name[..n]).as_ref());
        fs::write(proc.join("uid_map"), uid_map)?;
        fs::write(proc.join("gid_map"), gid_map)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok::<_, std::io::Error>(rustix::fs::open(proc.join("ns/user"), flags, Mode::empty())?)
    })();
    drop(hold_out);
    let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    made.step("map owners")
}

/// Builds the sandbox and gives its writable file system, which is nowhere in view. On return the
/// process has no power over anything outside.
pub fn build(ground: &Ground<'_>, stream: &mut UnixStream) -> Result<OwnedFd, Refusal> {
    let plan = ground.plan;
    let identity = ground.identity;
    let writable = match mount_writable(plan, identity) {
        Ok(writable) => writable,
        Err(refusal) => {
            // The tree is read whatever happens: the host is sending it.
            let _ = drain(stream);
            return Err(refusal);
        }
    };
    // What is made from here on is the commands' own.
    sys::set_fs_ids(identity.uid, identity.gid);
    fill(&writable, stream)?;

    let root = lay_root(ground.parts)?;
    for (part, at) in [("tmp", "tmp"), ("shm", "dev/shm"), ("home", &HOME[1..])] {
        bind(&Path::new(WRITABLE).join(part), &root.join(at))?;
    }
    for (tree, (_, at)) in ground.read_only.iter().zip(&plan.read_only) {
        attach(tree, &mountpoint(&root, at)?)?;
    }
    mount_repository(ground, &root)?;
    let hidden_proc = mount_proc()?;
    show_proc(&root.join("proc"))?;
    seal(&root)?;

    rustix::process::chdir(&root).step("enter the root")?;
    rustix::process::pivot_root(".", ".").step("make it the root")?;
    // With the template goes the way to the writable layer.
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("hide the template")?;
    rustix::process::chdir("/").step("enter the root")?;

    enter_user_namespace(identity, INSIDE_ID, INSIDE_ID)?;
    finish(&hidden_proc)?;
    Ok(writable)
}

fn mount_writable(plan: &Plan, identity: Identity) -> Result<OwnedFd, Refusal> {
    let bytes = plan.limits.disk_bytes;
    // An inode costs about a kilobyte of kernel memory that no size bounds.
    let inodes = (bytes / 2048).max(4096);
    let options = format!(
        "size={bytes},nr_inodes={inodes},mode=0755,uid={},gid={}",
        identity.uid, identity.gid
    );
    let options = CString::new(options).step("options")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", WRITABLE, "tmpfs", flags, Some(options.as_c_str()))
        .step("mount the writable layer")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(WRITABLE, flags, Mode::empty()).step("open the writable layer")
}

/// Makes the parts and the tree that the host sends.
fn fill(writable: &OwnedFd, stream: &mut UnixStream) -> Result<(), Refusal> {
    let made = (|| {
        for (part, mode) in PARTS.into_iter().chain([("work", 0o700), ("root", 0o755)]) {
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::mkdirat(writable, part, mode)?;
            // Once more, past the umask.
            rustix::fs::chmodat(writable, part, mode, rustix::fs::AtFlags::empty())?;
        }
        Ok::<_, rustix::io::Errno>(())
    })();
    // The tree is read whatever happened before: the host is sending it.
    let populated = tree::populate(&mut BufReader::new(stream), writable);
    made.step("make the writable layer")?;
    populated
}

/// Puts the root together: its own directory, so that no two sandboxes have one in common, with
/// the template's mounts.
fn lay_root(parts: &Parts) -> Result<PathBuf, Refusal> {
    let root = Path::new(WRITABLE).join("root");
    bind(&root, &root)?;
    (|| {
        for name in ["proc", "tmp", "run", "var", &HOME[1..]] {
            make_dirs(&root.join(name))?;
        }
        symlink("../tmp", root.join("var/tmp"))?;
        for (name, target) in &parts.links {
            symlink(target, root.join(name))?;
        }
        Ok::<_, std::io::Error>(())
    })()
    .step("lay the root out")?;
    for path in &parts.mounts {
        let at = root.join(path.strip_prefix("/").unwrap_or(path));
        make_dirs(&at).step("lay the root out")?;
        attach(&clone_tree(path)?, &at)?;
    }
    Ok(root)
}

fn mount_repository(ground: &Ground<'_>, root: &Path) -> Result<(), Refusal> {
    let at = mountpoint(root, &ground.plan.workdir)?;
    let Some(lower) = &ground.lower else {
        return bind(&Path::new(WRITABLE).join("repo"), &at);
    };
    attach(lower, Path::new(LOWER))?;
    let options = format!(
        "lowerdir={LOWER},upperdir={WRITABLE}/repo,workdir={WRITABLE}/work,userxattr,volatile"
    );
    let options = CString::new(options).step("options")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    // An overlay works on its layers with the powers of whoever mounts it: it must be able to
    // change the files of its work directory, whose mode is 0.
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    sys::set_fs_ids(own.0, own.1);
    let mounted = rustix::mount::mount("overlay", &at, "overlay", flags, Some(options.as_c_str()));
    sys::set_fs_ids(ground.identity.uid, ground.identity.gid);
    mounted.map_err(|error| no_overlay(format!("mount: {error}")))
}

/// Makes a directory to mount on, which must be the sandbox's own, not the system's.
fn mountpoint(root: &Path, path: &str) -> Result<PathBuf, Refusal> {
    let relative = path.strip_prefix('/').unwrap_or_default();
    let first = relative.split('/').next().unwrap_or_default();
    if !tree::is_clean(relative.as_bytes()) || is_reserved(first) {
        let why = "is no place for a mount: it must be absolute, plain, and not the system's";
        return Err(Refusal::path(path, why));
    }
    let mut at = root.to_owned();
    for name in relative.split('/') {
        at.push(name);
        if fs::symlink_metadata(&at).is_ok_and(|meta| !meta.is_dir()) {
            return Err(Refusal::path(
                path,
                "cannot be mounted on: it leads through a link or file",
            ));
        }
    }
    make_dirs(&at)
        .map_err(|error| Refusal::path(path, format!("cannot be mounted on: {error}")))?;
    Ok(at)
}

fn bind(from: &Path, to: &Path) -> Result<(), Refusal> {
    rustix::mount::mount_bind(from, to).step(&format!("mount at {}", to.display()))
}

/// Puts this PID namespace's processes in view, without what speaks of the machine.
fn show_proc(at: &Path) -> Result<(), Refusal> {
    attach(&mount_proc()?, at)?;
    for name in MASKED {
        match rustix::mount::mount_bind("/dev/null", at.join(name)) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error).step(&format!("mask /proc/{name}")),
        }
    }
    let sys = at.join("sys");
    bind(&sys, &sys)?;
    seal(&sys)
}

/// The last steps, inside the user namespace.
fn finish(proc: &OwnedFd) -> Result<(), Refusal> {
    // No user namespace below this one: most ways out of a sandbox start with making one.
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(proc, "sys/user/max_user_namespaces", flags, Mode::empty())
        .and_then(|file| rustix::io::write(&file, b"0"))
        .step("forbid user namespaces")?;
    // Cleared by the change of ids, so set last.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step("die with parent")?;
    let mut sets = rustix::thread::capabilities(None).step("read capabilities")?;
    let kept = CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::KILL
        | CapabilitySet::SETPCAP;
    sets.effective = kept;
    sets.permitted = kept;
    sets.inheritable = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets).step("drop capabilities")
}
