//! Sets one sandbox up, as its PID 1, and gives up every power that was needed for it.
//!
//! A tmpfs holds all that is writable, so that one size bounds it and one walk copies it. It is
//! the topmost layer of the sandbox's stack; the ones below it are sealed: what this sandbox, or
//! the one it was forked from, had written before a fork. A layer holds
//! ```text
//! own/repo   the repository, where it is not an overlay  -> the plan's workdir
//! own/tmp    -> /tmp      own/shm    -> /dev/shm         own/home   -> /home/agent
//! repo       what was written over a host directory      -> the plan's workdir
//! image      what was written over an image's layers     -> /
//! root       the root where there is no image: mount points and links, sealed once all is mounted
//! work       the overlays' own
//! ```
//! In the first life of a sandbox `own` is the tmpfs's directory itself, later an overlay.

use std::ffi::CString;
use std::fs;
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;

use crate::defence::{self, Layer};
use crate::keeper::{Identity, enter_user_namespace};
use crate::links::Index;
use crate::overlay::{Overlay, no_overlay};
use crate::owners::{OwnerMap, show_as_user};
use crate::plan::{Plan, Source};
use crate::slot::{Ground, drain, source};
use crate::sys;
use crate::template::{
    HOME, IMAGE, LOWER, OWN, Parts, STACK, attach, clone_tree, is_reserved, make_dirs, mount_proc,
    read_only, seal,
};
use crate::tree;
use crate::wire::{Context, Kind, Refusal, send, send_descriptor};

/// Parts of `/proc` that are hidden: they speak of the machine.
const MASKED: [&str; 6] = ["kcore", "keys", "kmsg", "sysrq-trigger", "timer_list", "cmdline"];

/// The directories of a layer that hold a sandbox's state, in the order in which they travel.
pub const STATE: [&str; 3] = ["own", "repo", "image"];

/// What a sandbox is served with once it is built.
pub struct Built {
    /// The topmost layer.
    pub writable: OwnedFd,
    /// The whole stack, by number, as a tree of mounts that can be attached elsewhere.
    pub stack: OwnedFd,
    /// The indexes of its overlays.
    pub indexes: Vec<Index>,
}

/// Opens the plan's host directories. Called while the host's files are in view.
pub fn find_sources(
    ground: &mut Ground<'_>,
    overlay: bool,
    owner: &mut Option<OwnerMap>,
) -> Result<(), Refusal> {
    let directory = match &ground.plan.source {
        Source::Directory(path) => Some(path),
        Source::Tree | Source::InRoot => None,
    };
    if !overlay && (directory.is_some() || !ground.plan.layers.is_empty()) {
        return Err(no_overlay("tmpfs has no user attributes (kernel before 6.6)"));
    }
    for path in ground.plan.layers.iter().chain(directory) {
        let tree = source(path)?;
        if ground.identity.privileged {
            show_as_user(&tree, ground.identity, owner)?;
        }
        ground.lowers.push(tree);
    }
    for (from, _) in &ground.plan.read_only {
        let tree = source(from)?;
        let set = read_only() | sys::MOUNT_NO_SUID | sys::MOUNT_NO_DEV;
        sys::mount_setattr(tree.as_fd(), c"", true, set, None).step("make a mount read-only")?;
        ground.read_only.push(tree);
    }
    Ok(())
}

/// Builds the sandbox; its layers are nowhere in view. On return the process has no power over
/// anything outside.
pub fn build(ground: &Ground<'_>, stream: &mut UnixStream) -> Result<Built, Refusal> {
    let plan = ground.plan;
    let identity = ground.identity;
    let mut built = match lay_stack(ground, stream) {
        Ok(built) => built,
        Err(refusal) => {
            // The tree is read whatever happens: the host is sending it.
            let _ = drain(stream);
            return Err(refusal);
        }
    };
    // What is made from here on is the commands' own.
    sys::set_fs_ids(identity.uid, identity.gid);
    fill(ground, &built.writable, stream)?;

    let own = lay_own(ground, &mut built.indexes)?;
    let root = if plan.layers.is_empty() {
        let root = lay_root(plan, ground.parts)?;
        bind_part(&own, "tmp", &root.join("tmp"))?;
        bind_part(&own, "home", &root.join(&HOME[1..]))?;
        root
    } else {
        lay_image(ground, &mut built.indexes)?
    };
    bind_part(&own, "shm", &root.join("dev/shm"))?;
    for (tree, (_, at)) in ground.read_only.iter().zip(&plan.read_only) {
        attach(tree, &mountpoint(plan, &root, at)?)?;
    }
    mount_repository(ground, &own, &root, &mut built.indexes)?;
    let hidden_proc = mount_proc()?;
    show_proc(&root.join("proc"))?;
    if plan.layers.is_empty() && defence::has(Layer::ReadOnly) {
        seal(&root)?;
    }

    rustix::process::chdir(&root).step("enter the root")?;
    rustix::process::pivot_root(".", ".").step("make it the root")?;
    // With the template goes the way to the layers.
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("hide the template")?;
    rustix::process::chdir("/").step("enter the root")?;

    enter_user_namespace(identity, plan.inside_id(), plan.inside_id())?;
    finish(&hidden_proc)?;
    Ok(built)
}

/// Path of this sandbox's own layer.
fn layer(plan: &Plan) -> PathBuf {
    Path::new(STACK).join(plan.sealed.layers.to_string())
}

/// A directory of every sealed layer, the topmost first.
fn sealed(plan: &Plan, name: &str) -> impl Iterator<Item = PathBuf> {
    let name = name.to_owned();
    (0..plan.sealed.layers).rev().map(move |n| Path::new(STACK).join(n.to_string()).join(&name))
}

/// Puts the sealed layers in their places and a new one on top.
fn lay_stack(ground: &Ground<'_>, stream: &mut UnixStream) -> Result<Built, Refusal> {
    let plan = ground.plan;
    let stack = Path::new(STACK);
    match &ground.stack {
        None => bind(stack, stack)?,
        Some(handle) => {
            attach(handle, stack)?;
            if plan.lend {
                let again = clone_tree(stack)?;
                send(stream, Kind::Stack, &[])
                    .and_then(|()| send_descriptor(&*stream, &again))
                    .step("hand the sealed layers back")?;
            }
        }
    }
    let at = layer(plan);
    mount_layer(plan, ground.identity, &at)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let writable = rustix::fs::open(&at, flags, Mode::empty()).step("open the writable layer")?;
    Ok(Built { writable, stack: clone_tree(stack)?, indexes: Vec::new() })
}

/// Files, directories and links that a disk may hold: an inode costs about a kilobyte of kernel
/// memory that no size bounds.
pub fn num_inodes(disk_bytes: u64) -> u64 {
    (disk_bytes / 2048).max(4096)
}

fn mount_layer(plan: &Plan, identity: Identity, at: &Path) -> Result<(), Refusal> {
    let disk_bytes = plan.limits.disk_bytes;
    // What is sealed still takes its room: a fork makes no memory. Zero would mean no bound.
    let bytes = disk_bytes.saturating_sub(plan.sealed.bytes).max(1 << 16);
    let inodes = num_inodes(disk_bytes).saturating_sub(plan.sealed.inodes).max(64);
    let (bytes, inodes) = if defence::has(Layer::Disk) { (bytes, inodes) } else { (0, 0) };
    let options = format!(
        "size={bytes},nr_inodes={inodes},mode=0755,uid={},gid={}",
        identity.uid, identity.gid
    );
    let options = CString::new(options).step("options")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, Some(options.as_c_str()))
        .step("mount the writable layer")
}

/// Makes the layer's directories and the tree that the host sends.
fn fill(ground: &Ground<'_>, writable: &OwnedFd, stream: &mut UnixStream) -> Result<(), Refusal> {
    let made = make_layer(ground, writable);
    // The tree is read whatever happened before: the host is sending it.
    let populated = tree::populate(&mut BufReader::new(stream), writable);
    made.step("make the writable layer")?;
    populated
}

fn make_layer(ground: &Ground<'_>, writable: &OwnedFd) -> Result<(), std::io::Error> {
    let plan = ground.plan;
    let make = |path: &str, mode: u32| {
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::mkdirat(writable, path, mode)?;
        // Once more, past the umask.
        rustix::fs::chmodat(writable, path, mode, AtFlags::empty())
    };
    for (path, mode) in [("own", 0o755), ("root", 0o755), ("work", 0o700), ("work/own", 0o700)] {
        make(path, mode)?;
    }
    if plan.sealed.layers == 0 {
        make("own/shm", 0o1777)?;
        if plan.layers.is_empty() {
            make("own/tmp", 0o1777)?;
            make("own/home", 0o755)?;
        }
    }
    let layer = layer(plan);
    for (name, wanted) in
        [("repo", matches!(plan.source, Source::Directory(_))), ("image", !plan.layers.is_empty())]
    {
        if !wanted {
            continue;
        }
        make(name, 0o755)?;
        make(&format!("work/{name}"), 0o700)?;
        if plan.sealed.layers > 0 {
            // An overlay's own directory has the upper's mode and time.
            let below = fs::metadata(
                Path::new(STACK).join((plan.sealed.layers - 1).to_string()).join(name),
            )?;
            like(&below, &layer.join(name))?;
        }
    }
    if let Some(top) = ground.lowers.first()
        && !plan.layers.is_empty()
        && plan.sealed.layers == 0
    {
        let top = fs::File::from(top.try_clone()?).metadata()?;
        like(&top, &layer.join("image"))?;
    }
    Ok(())
}

/// Gives a directory another's mode and time.
fn like(other: &fs::Metadata, dir: &Path) -> std::io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(other.mode() & 0o7777))?;
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ };
    let time = Timespec { tv_sec: other.mtime(), tv_nsec: other.mtime_nsec() as _ };
    let times = Timestamps { last_access: omit, last_modification: time };
    rustix::fs::utimensat(CWD, dir, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Mounts the overlay whose upper is `name` of this sandbox's layer. `views` is where commands
/// will see it, and where that is in the layer.
fn overlay(
    ground: &Ground<'_>,
    (name, base): (&str, &[PathBuf]),
    at: &Path,
    views: &[(&str, &str)],
) -> Result<Option<Index>, Refusal> {
    let plan = ground.plan;
    let lowers: Vec<_> = sealed(plan, name).chain(base.iter().cloned()).collect();
    let layer = layer(plan);
    let overlay = Overlay {
        lowers: &lowers,
        upper: &layer.join(name),
        work: &layer.join("work").join(name),
        links: ground.identity.privileged && plan.sealed.layers > 0,
    };
    let index = overlay.mount(at, ground.identity)?;
    let parts = views.iter().map(|(view, part)| ((*view).to_owned(), (*part).to_owned())).collect();
    Ok(index.map(|dir| Index { dir, parts }))
}

/// The directory with the sandbox's own parts.
fn lay_own(ground: &Ground<'_>, indexes: &mut Vec<Index>) -> Result<PathBuf, Refusal> {
    let plan = ground.plan;
    if plan.sealed.layers == 0 {
        return Ok(layer(plan).join("own"));
    }
    let mut views = vec![("/dev/shm", "own/shm")];
    if plan.layers.is_empty() {
        views.extend([("/tmp", "own/tmp"), (HOME, "own/home")]);
    }
    if plan.source == Source::Tree {
        views.push((&plan.workdir, "own/repo"));
    }
    indexes.extend(overlay(ground, ("own", &[]), Path::new(OWN), &views)?);
    Ok(PathBuf::from(OWN))
}

/// Puts the root together where there is no image: its own directory, so that no two sandboxes
/// have one in common, with the template's mounts.
fn lay_root(plan: &Plan, parts: &Parts) -> Result<PathBuf, Refusal> {
    let root = layer(plan).join("root");
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

/// Puts the root together from an image's layers. What stands in them is not trusted: a link in
/// the place of a directory is refused, never followed.
fn lay_image(ground: &Ground<'_>, indexes: &mut Vec<Index>) -> Result<PathBuf, Refusal> {
    let plan = ground.plan;
    let base: Vec<_> =
        (0..plan.layers.len()).map(|n| Path::new(LOWER).join(n.to_string())).collect();
    for (tree, at) in ground.lowers.iter().zip(&base) {
        attach(tree, at)?;
    }
    let root = PathBuf::from(IMAGE);
    indexes.extend(overlay(ground, ("image", &base), &root, &[("/", "image")])?);
    for name in ["proc", "dev", "tmp"] {
        let fresh = fs::symlink_metadata(root.join(name)).is_err();
        let at = plain_dir(&root, name)
            .map_err(|why| Refusal::path(format!("/{name} of the image"), why))?;
        if fresh && name == "tmp" {
            fs::set_permissions(at, fs::Permissions::from_mode(0o1777)).step("make /tmp")?;
        }
    }
    attach(&clone_tree(Path::new("/dev"))?, &root.join("dev"))?;
    show_hosts(plan, &root)?;
    Ok(root)
}

/// Images come without names of hosts: who runs them is expected to give them.
fn show_hosts(plan: &Plan, root: &Path) -> Result<(), Refusal> {
    if fs::symlink_metadata(root.join("etc")).is_ok_and(|meta| !meta.is_dir()) {
        return Ok(());
    }
    let at = root.join("etc/hosts");
    match fs::symlink_metadata(&at) {
        Ok(meta) if meta.is_file() && meta.len() == 0 => {}
        // Nothing of ours in a diff of the whole image.
        Err(_) if plan.workdir != "/" && make_dirs(&root.join("etc")).is_ok() => {
            fs::write(&at, "").step("make /etc/hosts")?;
        }
        _ => return Ok(()),
    }
    bind(Path::new("/etc/hosts"), &at)
}

fn mount_repository(
    ground: &Ground<'_>,
    own: &Path,
    root: &Path,
    indexes: &mut Vec<Index>,
) -> Result<(), Refusal> {
    let plan = ground.plan;
    match &plan.source {
        Source::Tree => bind_part(own, "repo", &mountpoint(plan, root, &plan.workdir)?),
        Source::Directory(_) => {
            let at = mountpoint(plan, root, &plan.workdir)?;
            let lower = Path::new(LOWER).join(plan.layers.len().to_string());
            let tree = ground.lowers.last().ok_or_else(|| no_overlay("no directory"))?;
            attach(tree, &lower)?;
            let views = [(plan.workdir.as_str(), "repo")];
            indexes.extend(overlay(ground, ("repo", &[lower]), &at, &views)?);
            Ok(())
        }
        Source::InRoot => in_root(root, &plan.workdir),
    }
}

/// Makes sure that the repository of an image is where the plan says.
fn in_root(root: &Path, workdir: &str) -> Result<(), Refusal> {
    let relative = workdir.strip_prefix('/').unwrap_or_default();
    if workdir == "/" {
        return Ok(());
    }
    if !tree::is_clean(relative.as_bytes()) {
        return Err(Refusal::path(workdir, "is not an absolute path of plain names"));
    }
    let mut at = root.to_owned();
    for name in relative.split('/') {
        at.push(name);
        if !fs::symlink_metadata(&at).is_ok_and(|meta| meta.is_dir()) {
            let why = "is not a directory of the image (links are not followed)";
            return Err(Refusal::path(workdir, why));
        }
    }
    Ok(())
}

/// Makes a directory to mount on, which must be the sandbox's own, not the system's.
fn mountpoint(plan: &Plan, root: &Path, path: &str) -> Result<PathBuf, Refusal> {
    let relative = path.strip_prefix('/').unwrap_or_default();
    let first = relative.split('/').next().unwrap_or_default();
    let reserved = if plan.layers.is_empty() {
        is_reserved(first)
    } else {
        ["proc", "dev", "sys"].contains(&first)
    };
    if !tree::is_clean(relative.as_bytes()) || reserved {
        let why = "is no place for a mount: it must be absolute, plain, and not the system's";
        return Err(Refusal::path(path, why));
    }
    plain_dir(root, relative).map_err(|why| Refusal::path(path, why))
}

/// Makes a directory and its parents, none of which may be a link.
fn plain_dir(root: &Path, relative: &str) -> Result<PathBuf, String> {
    let mut at = root.to_owned();
    for name in relative.split('/') {
        at.push(name);
        if fs::symlink_metadata(&at).is_ok_and(|meta| !meta.is_dir()) {
            return Err("cannot be mounted on: it leads through a link or file".to_owned());
        }
    }
    make_dirs(&at).map_err(|error| format!("cannot be mounted on: {error}"))?;
    Ok(at)
}

/// Puts a part of the sandbox's own in its place. It may have arrived in a tree, so it must be
/// what it should be: to mount a link is to mount what it leads to.
fn bind_part(own: &Path, name: &str, to: &Path) -> Result<(), Refusal> {
    let from = own.join(name);
    if !fs::symlink_metadata(&from).is_ok_and(|meta| meta.is_dir()) {
        return Err(Refusal::path(name, "is not a directory of the sandbox"));
    }
    bind(&from, to)
}

fn bind(from: &Path, to: &Path) -> Result<(), Refusal> {
    rustix::mount::mount_bind(from, to).step(&format!("mount at {}", to.display()))
}

/// Puts this PID namespace's processes in view, without what speaks of the machine.
fn show_proc(at: &Path) -> Result<(), Refusal> {
    attach(&mount_proc()?, at)?;
    if !defence::has(Layer::MaskedProc) {
        return Ok(());
    }
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
    let mut kept = CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::KILL
        | CapabilitySet::SETPCAP;
    if !defence::has(Layer::Capabilities) {
        kept = sets.permitted;
    }
    sets.effective = kept;
    sets.permitted = kept;
    sets.inheritable = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets).step("drop capabilities")
}
