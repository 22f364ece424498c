//! The system calls that have no safe form elsewhere, and the hook that diverts a re-executed
//! program to its helper. All `unsafe` code of the crate is here.

#![expect(unsafe_code, reason = "raw system calls; every block says why it is sound")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

use crate::defence::{self, Layer};

/// Environment variable that marks a re-executed program as a helper.
pub const MARK: &CStr = c"PATCHWRIGHT_SANDBOX_HELPER";

/// Runs before `main` of every program that links this crate. It does nothing, unless the program
/// was started by [`crate::NativeSandboxes`] to be its helper: then it never returns.
///
/// A hook before `main` rather than a call in `main`, because test and bench binaries have a
/// `main` that is not ours. It is the only code of the crate that runs unasked.
#[used]
// SAFETY: the loader calls every entry of `.init_array` once, before `main`, on the main thread.
#[unsafe(link_section = ".init_array")]
static HOOK: extern "C" fn() = {
    extern "C" fn divert_helper() {
        if is_helper() {
            crate::keeper::main();
        }
    }
    divert_helper
};

/// Keeps [`HOOK`]'s object file in every program that makes sandboxes.
pub fn hook_is_linked() -> bool {
    std::ptr::from_ref(std::hint::black_box(&HOOK)) as usize != 0
}

/// Whether this process was started as a helper.
pub fn is_helper() -> bool {
    // SAFETY: getenv only reads the environment; at the hook there is one thread, and later
    // callers read a variable that nothing in this program ever sets.
    unsafe { !libc::getenv(MARK.as_ptr()).is_null() }
}

/// Standard input as an owned descriptor. Only for the helper, which is given its control socket
/// there and never uses standard input otherwise.
pub fn take_stdin() -> OwnedFd {
    // SAFETY: called once, first thing in a fresh helper process; nothing else owns descriptor 0.
    unsafe { OwnedFd::from_raw_fd(0) }
}

/// Ends the process at once, without running anything that the host program registered.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit takes no memory and does not return.
    unsafe { libc::_exit(code) }
}

/// Forks, optionally into new namespaces (`CLONE_NEW*`). `None` in the child.
///
/// Only for single-threaded processes (every helper is one): the child may then use all of the
/// standard library.
pub fn fork(namespaces: i32) -> io::Result<Option<Pid>> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    let zero: libc::c_long = 0;
    // SAFETY: without CLONE_VM the child has its own copy of memory and, with a null stack, goes on
    // on the same stack addresses, as fork does; the remaining arguments are unused.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, zero, zero, zero, zero) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(pid as i32))
}

/// Moves this process into new namespaces.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: helpers never unshare the descriptor table, which is what makes unshare unsafe.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Programs that this process and its children start from now on lie at the same addresses every
/// time. `CPython` below 3.12 hashes `None` by its address, so that the order of a set, and with it
/// the names that pytest makes up, differ from run to run in spite of a fixed hash seed. Where it
/// is forbidden (a container's filter) all else is as before.
pub fn fix_addresses() {
    // SAFETY: takes and answers a number only.
    unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) };
}

/// Kills every process of the PID namespace but PID 1, which must be the caller.
pub fn kill_everything() {
    debug_assert!(std::process::id() == 1 || !defence::has(Layer::PidNamespace));
    // SAFETY: kill takes no memory. From PID 1 of a namespace, -1 is this namespace's processes.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// Removes the System V memory, queues and semaphores of this IPC namespace: they outlive the
/// processes that made them.
pub fn remove_ipc() {
    const INFO: [(libc::c_long, libc::c_int, libc::c_int); 3] = [
        // The call, and its commands that tell the highest index and an index's identifier.
        (libc::SYS_shmctl, 14, 15),
        (libc::SYS_msgctl, 12, 13),
        (libc::SYS_semctl, 19, 20),
    ];
    // As large as the largest structure that these calls fill, and aligned as it is.
    let mut buffer = [0u64; 64];
    for (call, info, stat) in INFO {
        let mut control = |id: libc::c_long, command: libc::c_int| {
            let at = buffer.as_mut_ptr();
            // SAFETY: the kernel writes at most a structure of 128 bytes into the buffer.
            unsafe {
                if call == libc::SYS_semctl {
                    libc::syscall(call, id, 0, command, at)
                } else {
                    libc::syscall(call, id, command, at)
                }
            }
        };
        // With nothing there the highest index is 0, as it is with one.
        let highest = control(0, info);
        for index in 0..=highest {
            let id = control(index, stat);
            if id >= 0 {
                control(id, libc::IPC_RMID);
            }
        }
    }
}

/// CPU time of all children that were waited for, in microseconds.
pub fn children_cpu_us() -> u64 {
    // SAFETY: rusage is plain numbers, for which zero is valid; getrusage writes only into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let us = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

/// Blocks `SIGCHLD` and gives a descriptor that becomes readable when one arrives. Ignores
/// `SIGPIPE`.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; signalfd returns a new descriptor
    // that nobody else owns.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Default disposition for every signal and an empty mask, as a fresh program expects.
pub fn reset_signals() {
    // SAFETY: SIG_DFL installs no code; numbers that cannot be set are refused by the kernel.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Whether seccomp filters can give this answer.
pub fn filter_action_is_known(action: u32) -> io::Result<()> {
    // SAFETY: the kernel reads the one number that the pointer leads to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            libc::c_ulong::from(0u8),
            &raw const action,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts a filter on this process's system calls, for good and for all that it starts. It must
/// have given up gaining powers.
pub fn install_filter(filter: &crate::seccomp::Filter) -> io::Result<()> {
    let instructions = filter.instructions();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
        filter: instructions.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `Instruction` has the layout of `sock_filter`; the kernel copies as many as the
    // length says, which is how many there are, and changes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::c_ulong::from(0u8),
            &raw const program,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) {
    // SAFETY: only helpers call this, at a point where they own nothing from `first` on.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Closes every descriptor from 3 on but this one.
pub fn close_all_but(kept: BorrowedFd<'_>) {
    let kept = kept.as_raw_fd() as u32;
    if kept > 3 {
        // SAFETY: as in `close_from`.
        unsafe { libc::syscall(libc::SYS_close_range, 3, kept - 1, 0) };
    }
    close_from(kept + 1);
}

/// Marks every descriptor from `first` on as closed at exec.
pub fn close_from_at_exec(first: u32) {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: sets a flag of descriptors; closes none.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
}

/// A list of C strings with the terminating null that `execve` wants.
pub struct CStringList {
    pointers: Vec<*const libc::c_char>,
    _owned: Vec<CString>,
}

impl CStringList {
    /// Takes the strings over.
    pub fn new(owned: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = owned.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { pointers, _owned: owned }
    }
}

/// Replaces this process by `path`. Returns only on failure.
pub fn exec(path: &CStr, argv: &CStringList, env: &CStringList) -> io::Error {
    // SAFETY: both lists own their strings and end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Attributes of a mount, as `mount_setattr` takes them.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `MOUNT_ATTR_RDONLY`.
pub const MOUNT_READ_ONLY: u64 = 1;
/// `MOUNT_ATTR_NOSUID`.
pub const MOUNT_NO_SUID: u64 = 2;
/// `MOUNT_ATTR_NODEV`.
pub const MOUNT_NO_DEV: u64 = 4;
const MOUNT_ID_MAP: u64 = 0x0010_0000;
const AT_RECURSIVE: libc::c_long = 0x8000;

/// Sets attributes of the mount at `path` below `dir` (`""` for `dir` itself), and of every mount
/// beneath it when `recursive`. With `userns` the mount also maps ids by that user namespace.
pub fn mount_setattr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attr = MountAttr {
        set: set | if userns.is_some() { MOUNT_ID_MAP } else { 0 },
        clear: 0,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::c_long::from(libc::AT_EMPTY_PATH) | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: path is a C string and attr outlives the call, whose size argument is its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::c_long::from(dir.as_raw_fd()),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes files from now on with this owner, and checks permissions as this owner (root gives up
/// its file capabilities by it).
pub fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: takes numbers only.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// The kernel's version of the Landlock interface; `None` where it has none, or it is switched
/// off.
pub fn landlock_version() -> Option<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with a null pointer, size 0 and this flag the call only answers with a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION)
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

/// Whether the kernel knows the system call `clone3`.
pub fn has_clone3() -> bool {
    // SAFETY: size 0 is refused before the (null) argument is looked at; no process is made.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0) };
    result < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}
