//! The file system that all sandboxes of a provider start from: the host's system directories,
//! read-only, a made-up `/etc`, a minimal `/dev`. It is built once, in a mount namespace that
//! every sandbox gets a copy of.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::defence::{self, Layer};
use crate::keeper::forbidden;
use crate::overlay::MAX_LAYERS;
use crate::sys;
use crate::wire::{Context, Refusal};

/// User id of commands inside.
pub const INSIDE_ID: u32 = 1000;
/// Home directory of commands inside.
pub const HOME: &str = "/home/agent";
/// Where a sandbox's writable layers are while it is set up, by number, the oldest first.
pub const STACK: &str = "/.stack";
/// Where directories of the host are while overlays over them are set up, by number.
pub const LOWER: &str = "/.lower";
/// Where the overlay of a sandbox's own files is while it is set up.
pub const OWN: &str = "/.own";
/// Where the overlay of an image's files is while it is set up.
pub const IMAGE: &str = "/.image";
/// Writable layers of one sandbox, at most.
pub const MAX_STACK: usize = 192;

const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const SYSTEM: [&str; 8] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix"];

/// Top-level names that a specification may not mount at or below.
pub fn is_reserved(name: &str) -> bool {
    SYSTEM.contains(&name) || ["proc", "dev", "sys", "etc"].contains(&name)
}

/// The two views that slots work with.
pub struct Views {
    /// The host's files, to find sources in.
    pub host: OwnedFd,
    /// The template.
    pub template: OwnedFd,
    /// What every sandbox's root has of the template.
    pub parts: Parts,
}

/// What a sandbox's root is put together from.
pub struct Parts {
    /// Mounts, by their path in the template and in the sandbox.
    pub mounts: Vec<PathBuf>,
    /// Symbolic links at the top and their targets.
    pub links: Vec<(&'static str, PathBuf)>,
}

/// Builds the template and makes it this process's root.
pub fn build(prefixes: &[PathBuf]) -> Result<Views, Refusal> {
    forbidden(sys::unshare(UnshareFlags::NEWNS), "make a mount namespace")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).step("make mounts private")?;
    let host = own_namespace()?;
    forbidden(sys::unshare(UnshareFlags::NEWNS), "make a mount namespace")?;

    // Any directory serves to stand on while the root changes; every machine has this one.
    let root = Path::new("/proc");
    let bound: Vec<_> = SYSTEM
        .iter()
        .map(|name| Path::new("/").join(name))
        .filter(|path| is_real_dir(path))
        .chain(prefixes.iter().cloned())
        .map(|path| Ok((clone_tree(&path)?, path)))
        .collect::<Result<_, Refusal>>()?;
    let devices: Vec<_> = DEVICES
        .iter()
        .map(|name| Ok((clone_tree(&Path::new("/dev").join(name))?, *name)))
        .collect::<Result<_, Refusal>>()?;
    let etc = Etc::read();
    let links = system_links();

    // Still over /proc: a fresh procfs is only allowed while a whole one is in view, so it is
    // mounted before the host's goes.
    let proc = mount_proc()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", root, "tmpfs", flags, Some(c"mode=0755,size=16m"))
        .step("mount the template's root")?;
    layout(root, &etc).step("lay the template out")?;
    attach(&proc, &root.join("proc"))?;
    for (tree, path) in &bound {
        let at = root.join(path.strip_prefix("/").unwrap_or(path));
        make_dirs(&at).step(&format!("make {}", at.display()))?;
        let set = read_only() | sys::MOUNT_NO_SUID | sys::MOUNT_NO_DEV;
        sys::mount_setattr(std::os::fd::AsFd::as_fd(tree), c"", true, set, None)
            .step(&format!("make {} read-only", path.display()))?;
        attach(tree, &at)?;
    }
    for name in ["etc", "dev"] {
        let path = root.join(name);
        rustix::mount::mount_bind(&path, &path).step("make /etc and /dev mounts")?;
        seal(&path)?;
    }
    for (tree, name) in &devices {
        attach(tree, &root.join("dev").join(name))?;
    }

    rustix::process::chdir(root).step("enter the template")?;
    rustix::process::pivot_root(".", ".").step("make the template the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("hide the host's files")?;
    rustix::process::chdir("/").step("enter the template")?;
    let template = own_namespace()?;
    let mounts = bound.into_iter().map(|(_, path)| path).chain(["/etc".into(), "/dev".into()]);
    Ok(Views { host, template, parts: Parts { mounts: mounts.collect(), links } })
}

/// This process's mount namespace, held open.
fn own_namespace() -> Result<OwnedFd, Refusal> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty()).step("open /proc/self/ns/mnt")
}

fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// `/bin -> usr/bin` and its like, to be repeated inside.
fn system_links() -> Vec<(&'static str, PathBuf)> {
    SYSTEM
        .iter()
        .filter_map(|name| Some((*name, fs::read_link(Path::new("/").join(name)).ok()?)))
        .collect()
}

/// A detached copy of the mounts at `path`.
pub fn clone_tree(path: &Path) -> Result<OwnedFd, Refusal> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags).step(&path.display().to_string())
}

/// Puts a detached mount at `path`.
pub fn attach(mount: &OwnedFd, path: &Path) -> Result<(), Refusal> {
    let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", CWD, path, flags)
        .step(&format!("mount at {}", path.display()))
}

/// The attribute of a mount that is only to be read.
pub fn read_only() -> u64 {
    if defence::has(Layer::ReadOnly) { sys::MOUNT_READ_ONLY } else { 0 }
}

/// Makes the mount at `path`, and no mount beneath it, read-only.
pub fn seal(path: &Path) -> Result<(), Refusal> {
    let what = format!("seal {}", path.display());
    let name = CString::new(path.as_os_str().as_bytes()).step(&what)?;
    sys::mount_setattr(CWD, &name, false, sys::MOUNT_READ_ONLY, None).step(&what)
}

/// A detached procfs of the current PID namespace.
pub fn mount_proc() -> Result<OwnedFd, Refusal> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let made = (|| {
        let fs = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&fs)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    })();
    made.step("mount proc")
        .map_err(|refusal| Refusal { cause: crate::wire::Cause::Unsupported, ..refusal })
}

/// Makes a directory and its parents, readable by all.
pub fn make_dirs(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn layout(root: &Path, etc: &Etc) -> io::Result<()> {
    for name in ["proc", "dev/shm", "etc"] {
        make_dirs(&root.join(name))?;
    }
    for path in [STACK, LOWER, OWN, IMAGE] {
        make_dirs(&root.join(&path[1..]))?;
    }
    for (path, count) in [(STACK, MAX_STACK), (LOWER, MAX_LAYERS)] {
        for number in 0..count {
            fs::create_dir(root.join(&path[1..]).join(number.to_string()))?;
        }
    }
    for name in DEVICES {
        fs::write(root.join("dev").join(name), "")?;
    }
    for (name, target) in
        [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        symlink(target, root.join("dev").join(name))?;
    }
    etc.write(&root.join("etc"))
}

/// A made-up `/etc`: nothing of the host's but where its libraries and alternatives are.
struct Etc {
    linker: Vec<(&'static str, Vec<u8>)>,
    alternatives: Vec<(PathBuf, PathBuf)>,
}

impl Etc {
    fn read() -> Self {
        let linker = ["ld.so.cache", "ld.so.conf"]
            .into_iter()
            .filter_map(|name| Some((name, fs::read(Path::new("/etc").join(name)).ok()?)))
            .collect();
        let alternatives = fs::read_dir("/etc/alternatives")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                Some((PathBuf::from(entry.file_name()), fs::read_link(entry.path()).ok()?))
            })
            .collect();
        Self { linker, alternatives }
    }

    fn write(&self, etc: &Path) -> io::Result<()> {
        let passwd = format!(
            "root:x:0:0:root:/root:/bin/sh\n\
             agent:x:{INSIDE_ID}:{INSIDE_ID}:agent:{HOME}:/bin/sh\n\
             nobody:x:65534:65534:nobody:/:/bin/false\n"
        );
        let group = format!("root:x:0:\nagent:x:{INSIDE_ID}:\nnogroup:x:65534:\n");
        for (name, text) in [
            ("passwd", passwd.as_str()),
            ("group", group.as_str()),
            ("hosts", "127.0.0.1 localhost sandbox\n"),
            ("hostname", "sandbox\n"),
            ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
            ("resolv.conf", ""),
        ] {
            fs::write(etc.join(name), text)?;
        }
        for (name, bytes) in &self.linker {
            fs::write(etc.join(name), bytes)?;
        }
        symlink("../usr/lib/os-release", etc.join("os-release"))?;
        make_dirs(&etc.join("alternatives"))?;
        for (name, target) in &self.alternatives {
            symlink(target, etc.join("alternatives").join(name))?;
        }
        for name in ["passwd", "group"] {
            fs::set_permissions(etc.join(name), fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }
}

/// Whether overlays can keep their upper layer on tmpfs as a user: it needs `user.*` attributes
/// there (kernel 6.6).
pub fn tmpfs_has_user_attributes() -> bool {
    let file = Path::new("/.attributes");
    let works = fs::write(file, "").is_ok()
        && rustix::fs::setxattr(file, "user.test", b"y", rustix::fs::XattrFlags::empty()).is_ok();
    let _ = rustix::fs::unlinkat(CWD, file, AtFlags::empty());
    works
}
