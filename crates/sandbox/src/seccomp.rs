//! The system calls that a command may make: everything that is not listed is refused.
//!
//! The list is what compilers, interpreters, test runners and servers use. Not on it: what reaches
//! other processes' memory (`ptrace`, `process_vm_*`, `pidfd_getfd`, `kcmp`), what makes or joins
//! namespaces and mounts, the kernel's own programs and keys (`bpf`, `io_uring`, `userfaultfd`,
//! `perf_event_open`, `keyctl`), file handles, and all of the machine's administration. A call
//! that is refused fails with `EPERM`; one that is newer than the list fails with `ENOSYS`, and
//! so does `clone3`, whose flags a filter cannot see, so that libraries fall back on what can be
//! checked. A system call of another architecture (32-bit, x32) kills the process: its numbers
//! mean something else.
//!
//! The program is assembled here rather than by a library because the kernel tries a new filter on
//! every system call number when it is installed, which is at every command: with a search tree
//! over ranges of numbers that takes 40 microseconds, with a list of a thousand comparisons, as
//! libraries make it, 2 milliseconds (measured on the same kernel). And more than one error code
//! can be told apart.

use std::io;
use std::sync::OnceLock;

use crate::plan::LimitsRung;
use crate::wire::Refusal;

/// One instruction of the kernel's classic packet filter machine, as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has the number, the architecture and an argument's low half.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

#[cfg(target_arch = "x86_64")]
const THIS_ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const THIS_ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("sandboxes need this architecture's system calls: add its audit number here");

/// Bit that marks the x32 calls of x86-64; no other architecture has numbers that large.
const X32: u32 = 0x4000_0000;
/// The first number that this list knows nothing of.
const UNKNOWN: u32 = 470;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// Fails with this error; 0 succeeds without doing anything.
    Fail(i32),
    Kill,
    /// No namespaces among the flags, which are the first argument.
    CloneFlags,
    /// A family of sockets that stays inside.
    SocketFamily,
    /// Pairs of `AF_UNIX`.
    PairFamily,
    /// No typing into, or changing, somebody's terminal.
    TerminalRequest,
    /// An execution domain that differs in harmless ways.
    Domain,
    /// No device nodes; the mode is this argument. Overlay takes one for a deletion.
    NodeMode(u32),
}

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Vec<Instruction>);

impl Filter {
    /// Compiles the filter for commands. Where memory is bounded by the watchdog alone, files in
    /// memory that no process needs to have mapped (`memfd_create`) are refused too: it could not
    /// see them.
    pub fn compile(rung: LimitsRung) -> Self {
        let mut program = vec![
            load(ARCHITECTURE),
            jump(IF_EQUAL, THIS_ARCHITECTURE, 1, 0),
            verdict(Verdict::Kill),
            load(NUMBER),
        ];
        program.extend(search(&ranges(&verdicts(rung))));
        Self(program)
    }

    /// The program, for the kernel.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }
}

/// Compiles the filter of this helper and its children, once, and makes sure that the kernel
/// takes filters: without them no sandbox is made.
pub fn prepare(rung: LimitsRung) -> Result<(), Refusal> {
    let what = "filter system calls (seccomp)";
    crate::keeper::forbidden(is_available(), what)?;
    let _ = FILTER.set(Filter::compile(rung));
    Ok(())
}

/// Puts the filter on this process.
pub fn install(rung: LimitsRung) -> io::Result<()> {
    crate::sys::install_filter(FILTER.get_or_init(|| Filter::compile(rung)))
}

static FILTER: OnceLock<Filter> = OnceLock::new();

fn is_available() -> io::Result<()> {
    crate::sys::filter_action_is_known(libc::SECCOMP_RET_ERRNO)?;
    crate::sys::filter_action_is_known(libc::SECCOMP_RET_KILL_PROCESS)
}

const fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, k }
}

const fn load(offset: u32) -> Instruction {
    instruction(LOAD, offset)
}

const fn jump(code: u16, k: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, k }
}

fn verdict(verdict: Verdict) -> Instruction {
    instruction(
        RETURN,
        match verdict {
            Verdict::Allow => libc::SECCOMP_RET_ALLOW,
            Verdict::Fail(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
            _ => libc::SECCOMP_RET_KILL_PROCESS,
        },
    )
}

/// `found` for these values of an argument (its bits under `mask`), `other` for the rest.
fn among(offset: u32, mask: u32, values: &[u32], (found, other): (Verdict, Verdict)) -> Program {
    let mut program = vec![load(offset)];
    if mask != u32::MAX {
        program.push(instruction(AND, mask));
    }
    for (n, value) in values.iter().enumerate() {
        program.push(jump(IF_EQUAL, *value, (values.len() - n) as u8, 0));
    }
    program.extend([verdict(other), verdict(found)]);
    program
}

type Program = Vec<Instruction>;

/// What is done once a number is known. Ends in a return on every way.
fn leaf(what: Verdict) -> Program {
    let family = (Verdict::Allow, Verdict::Fail(libc::EAFNOSUPPORT));
    let unless = (Verdict::Fail(libc::EPERM), Verdict::Allow);
    match what {
        Verdict::Allow | Verdict::Fail(_) | Verdict::Kill => vec![verdict(what)],
        Verdict::CloneFlags => vec![
            load(argument(0)),
            jump(IF_ANY_BIT, NAMESPACES as u32, 0, 1),
            verdict(Verdict::Fail(libc::EPERM)),
            verdict(Verdict::Allow),
        ],
        Verdict::SocketFamily => {
            let inside = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(|f| f as u32);
            let mut program =
                vec![load(argument(0)), jump(IF_EQUAL, libc::AF_NETLINK as u32, 0, 4)];
            // Netlink only of the kind that lists interfaces and addresses.
            program.extend(among(argument(2), u32::MAX, &[0], family));
            program.extend(among(argument(0), u32::MAX, &inside, family));
            program
        }
        Verdict::PairFamily => among(argument(0), u32::MAX, &[libc::AF_UNIX as u32], family),
        Verdict::TerminalRequest => {
            let refused = [libc::TIOCSTI as u32, TIOCLINUX, TIOCCONS, TIOCSETD];
            among(argument(1), u32::MAX, &refused, unless)
        }
        Verdict::Domain => {
            let harmless = [0, 8, 0x2_0000, 0x2_0008, u32::MAX];
            among(argument(0), u32::MAX, &harmless, (Verdict::Allow, Verdict::Fail(libc::EPERM)))
        }
        Verdict::NodeMode(at) => {
            among(argument(at), libc::S_IFMT, &[libc::S_IFCHR, libc::S_IFBLK], unless)
        }
    }
}

const TIOCLINUX: u32 = 0x541C;
const TIOCCONS: u32 = 0x541D;
const TIOCSETD: u32 = 0x5423;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// First numbers of ranges with one verdict, in order, from 0 to the end of all numbers.
fn ranges(known: &[(u32, Verdict)]) -> Vec<(u32, Verdict)> {
    let mut known = known.to_vec();
    known.sort_by_key(|(number, _)| *number);
    let mut out: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |number: u32, verdict: Verdict| {
        if out.last().is_none_or(|(_, last)| *last != verdict) {
            out.push((number, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in known {
        if number > next {
            push(next, Verdict::Fail(libc::EPERM));
        }
        push(number, verdict);
        next = number + 1;
    }
    if next < UNKNOWN {
        push(next, Verdict::Fail(libc::EPERM));
    }
    push(UNKNOWN, Verdict::Fail(libc::ENOSYS));
    push(X32, Verdict::Kill);
    out
}

/// A binary search for the range that the loaded number is in.
fn search(ranges: &[(u32, Verdict)]) -> Program {
    let [first, .., _] = ranges else {
        return ranges.first().map_or_else(|| vec![verdict(Verdict::Kill)], |(_, v)| leaf(*v));
    };
    let middle = ranges.len() / 2;
    debug_assert!(first.0 < ranges[middle].0);
    let (below, above) = (search(&ranges[..middle]), search(&ranges[middle..]));
    let start = ranges[middle].0;
    let mut program = match u8::try_from(below.len()) {
        Ok(over) => vec![jump(IF_AT_LEAST, start, over, 0)],
        // Conditions jump no further than a byte says.
        Err(_) => {
            vec![jump(IF_AT_LEAST, start, 0, 1), instruction(JUMP, below.len() as u32)]
        }
    };
    program.extend(below);
    program.extend(above);
    program
}

/// Every number that is not simply refused.
fn verdicts(rung: LimitsRung) -> Vec<(u32, Verdict)> {
    let mut out: Vec<_> = ALLOWED
        .iter()
        .chain(OF_THIS_ARCHITECTURE)
        .chain(NEW)
        .map(|number| (*number as u32, Verdict::Allow))
        .collect();
    let mut special = vec![
        (libc::SYS_clone, Verdict::CloneFlags),
        (libc::SYS_clone3, Verdict::Fail(libc::ENOSYS)),
        (libc::SYS_socket, Verdict::SocketFamily),
        (libc::SYS_socketpair, Verdict::PairFamily),
        (libc::SYS_ioctl, Verdict::TerminalRequest),
        (libc::SYS_personality, Verdict::Domain),
        (libc::SYS_mknodat, Verdict::NodeMode(2)),
        // It would write out the whole machine's files; a sandbox has none that last.
        (libc::SYS_sync, Verdict::Fail(0)),
    ];
    #[cfg(target_arch = "x86_64")]
    special.push((libc::SYS_mknod, Verdict::NodeMode(1)));
    let files_in_memory = match rung {
        LimitsRung::Watchdog => Verdict::Fail(libc::ENOSYS),
        _ => Verdict::Allow,
    };
    special.push((libc::SYS_memfd_create, files_in_memory));
    out.extend(special.into_iter().map(|(number, verdict)| (number as u32, verdict)));
    out
}

/// A list of `libc::SYS_*` by their names.
macro_rules! calls {
    ($($name:ident)*) => {{
        use libc::*;
        &[$($name),*]
    }};
}

/// Calls that every architecture has.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = calls![
    // Files.
    SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_read SYS_write SYS_readv SYS_writev
    SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2 SYS_lseek
    SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_faccessat SYS_faccessat2
    SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_readlinkat SYS_umask
    SYS_mkdirat SYS_unlinkat SYS_linkat SYS_symlinkat SYS_renameat2
    SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat SYS_truncate SYS_ftruncate
    SYS_fallocate SYS_fadvise64 SYS_readahead SYS_fsync SYS_fdatasync SYS_syncfs
    SYS_copy_file_range SYS_sendfile SYS_splice SYS_tee SYS_vmsplice SYS_flock SYS_fcntl
    SYS_dup SYS_dup3 SYS_pipe2
    SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr SYS_fgetxattr
    SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr
    SYS_fremovexattr SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
    SYS_io_setup SYS_io_destroy SYS_io_submit SYS_io_cancel SYS_io_getevents
    // Waiting.
    SYS_pselect6 SYS_ppoll SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2
    SYS_eventfd2 SYS_signalfd4 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
    SYS_futex SYS_futex_waitv SYS_set_robust_list SYS_get_robust_list
    SYS_nanosleep SYS_clock_nanosleep SYS_restart_syscall
    // Memory.
    SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_msync SYS_madvise SYS_mincore SYS_brk
    SYS_mlock SYS_mlock2 SYS_munlock SYS_mlockall SYS_munlockall SYS_remap_file_pages
    SYS_pkey_mprotect SYS_pkey_alloc SYS_pkey_free SYS_mseal SYS_membarrier SYS_rseq
    // Processes, threads and signals.
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_set_tid_address
    SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn
    SYS_rt_sigpending SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_sigqueueinfo
    SYS_rt_tgsigqueueinfo SYS_sigaltstack SYS_pidfd_open SYS_pidfd_send_signal
    SYS_getpid SYS_getppid SYS_gettid SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid
    SYS_prctl SYS_prlimit64 SYS_getrusage SYS_times SYS_getcpu SYS_getpriority SYS_setpriority
    SYS_ioprio_get SYS_ioprio_set SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity
    SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler SYS_sched_setscheduler
    SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval
    SYS_sched_getattr SYS_sched_setattr SYS_seccomp
    SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
    // Users: there is one, so that the setters change nothing.
    SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getgroups SYS_getresuid SYS_getresgid
    SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid
    SYS_setfsuid SYS_setfsgid SYS_setgroups SYS_capget SYS_capset
    // Time.
    SYS_clock_gettime SYS_clock_getres SYS_gettimeofday SYS_getitimer SYS_setitimer
    SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete
    // Sockets, once made, and messages between processes.
    SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername
    SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg
    SYS_setsockopt SYS_getsockopt SYS_shutdown
    SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify
    SYS_mq_getsetattr SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl SYS_semget SYS_semop
    SYS_semctl SYS_semtimedop SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl
    // The machine, to look at.
    SYS_uname SYS_sysinfo SYS_getrandom
];

/// Calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OF_THIS_ARCHITECTURE: &[libc::c_long] = calls![
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_getdents SYS_readlink SYS_mkdir
    SYS_rmdir SYS_link SYS_unlink SYS_symlink SYS_rename SYS_renameat SYS_chmod SYS_chown
    SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_sync_file_range SYS_dup2 SYS_pipe
    SYS_inotify_init SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd
    SYS_signalfd SYS_pause SYS_alarm SYS_time SYS_fork SYS_vfork SYS_getpgrp SYS_getrlimit
    SYS_setrlimit SYS_arch_prctl SYS_set_thread_area SYS_get_thread_area
];
/// Calls that only this architecture has: `renameat`, `sync_file_range`, `getrlimit` and
/// `setrlimit`.
#[cfg(target_arch = "aarch64")]
const OF_THIS_ARCHITECTURE: &[libc::c_long] = &[38, 84, 163, 164];

/// Calls whose number is the same everywhere: `cachestat`, `fchmodat2`, `map_shadow_stack`,
/// `futex_wake`, `futex_wait`, `futex_requeue`, `setxattrat`, `getxattrat`, `listxattrat`,
/// `removexattrat`, `file_getattr`, `file_setattr`.
const NEW: &[libc::c_long] = &[451, 452, 453, 454, 455, 456, 463, 464, 465, 466, 468, 469];

#[cfg(test)]
mod tests {
    use super::{
        AND, ARCHITECTURE, Filter, IF_ANY_BIT, IF_AT_LEAST, IF_EQUAL, JUMP, LOAD, NUMBER, RETURN,
        THIS_ARCHITECTURE, argument,
    };
    use crate::plan::LimitsRung;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    fn fails(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno as u32
    }

    /// What the kernel's machine would do, and in how many steps.
    fn run(filter: &Filter, arch: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let mut data = [0u32; 16];
        (data[NUMBER as usize / 4], data[ARCHITECTURE as usize / 4]) = (number, arch);
        for (n, value) in arguments.iter().enumerate() {
            let at = argument(n as u32) as usize / 4;
            (data[at], data[at + 1]) = (*value as u32, (*value >> 32) as u32);
        }
        let program = filter.instructions();
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let one = program[at];
            at += 1;
            steps += 1;
            let condition = match one.code {
                LOAD => {
                    accumulator = data[one.k as usize / 4];
                    continue;
                }
                AND => {
                    accumulator &= one.k;
                    continue;
                }
                JUMP => {
                    at += one.k as usize;
                    continue;
                }
                RETURN => return (one.k, steps),
                IF_EQUAL => accumulator == one.k,
                IF_AT_LEAST => accumulator >= one.k,
                IF_ANY_BIT => accumulator & one.k != 0,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if condition { one.if_true } else { one.if_false });
        }
    }

    fn verdict(number: libc::c_long, arguments: [u64; 6]) -> u32 {
        let filter = Filter::compile(LimitsRung::CgroupV2);
        run(&filter, THIS_ARCHITECTURE, number as u32, arguments).0
    }

    #[test]
    fn the_tree_answers_every_number_as_the_list_does() {
        for rung in [LimitsRung::CgroupV1, LimitsRung::Watchdog] {
            let filter = Filter::compile(rung);
            let list = super::verdicts(rung);
            let numbers: std::collections::BTreeSet<_> = list.iter().map(|(n, _)| *n).collect();
            assert_eq!(numbers.len(), list.len(), "a number is listed twice");
            for number in (0..2000).chain([0x3fff_ffff, super::X32, super::X32 + 1, u32::MAX]) {
                let (got, steps) = run(&filter, THIS_ARCHITECTURE, number, [0; 6]);
                let listed = list.iter().find(|(n, _)| *n == number).map(|(_, v)| *v);
                let expected = match listed {
                    Some(super::Verdict::Fail(errno)) => fails(errno),
                    // With arguments of zero.
                    Some(super::Verdict::SocketFamily | super::Verdict::PairFamily) => {
                        fails(libc::EAFNOSUPPORT)
                    }
                    Some(_) => ALLOW,
                    None if number >= super::X32 => KILL,
                    None if number >= super::UNKNOWN => fails(libc::ENOSYS),
                    None => fails(libc::EPERM),
                };
                assert_eq!(got, expected, "{number}");
                assert!(steps < 24, "{steps} steps for {number}");
            }
            assert!(filter.instructions().len() < 4096, "the kernel's bound");
        }
    }

    #[test]
    fn what_leads_out_is_refused() {
        for number in [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_reboot,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_syslog,
            libc::SYS_fanotify_init,
            libc::SYS_clock_settime,
            libc::SYS_settimeofday,
            libc::SYS_adjtimex,
            libc::SYS_sethostname,
            libc::SYS_memfd_secret,
            libc::SYS_process_madvise,
            libc::SYS_move_pages,
        ] {
            assert_eq!(verdict(number, [0; 6]), fails(libc::EPERM), "{number}");
        }
        assert_eq!(verdict(libc::SYS_clone3, [0; 6]), fails(libc::ENOSYS));
    }

    #[test]
    fn arguments_are_looked_at() {
        let first = |a: u64| [a, 0, 0, 0, 0, 0];
        let second = |a: u64| [0, a, 0, 0, 0, 0];
        let third = |a: u64| [0, 0, a, 0, 0, 0];
        let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_THREAD;
        assert_eq!(verdict(libc::SYS_clone, first(thread as u64)), ALLOW);
        assert_eq!(verdict(libc::SYS_clone, first(libc::SIGCHLD as u64)), ALLOW);
        for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID] {
            let flags = (namespace | libc::SIGCHLD) as u64;
            assert_eq!(verdict(libc::SYS_clone, first(flags)), fails(libc::EPERM));
        }
        for (family, allowed) in [(1, true), (2, true), (10, true), (40, false), (38, false)] {
            let expected = if allowed { ALLOW } else { fails(libc::EAFNOSUPPORT) };
            assert_eq!(verdict(libc::SYS_socket, first(family)), expected, "family {family}");
        }
        assert_eq!(verdict(libc::SYS_socket, first(16)), ALLOW, "NETLINK_ROUTE");
        assert_eq!(verdict(libc::SYS_socket, [16, 3, 12, 0, 0, 0]), fails(libc::EAFNOSUPPORT));
        assert_eq!(verdict(libc::SYS_socketpair, first(1)), ALLOW);
        assert_eq!(verdict(libc::SYS_socketpair, first(2)), fails(libc::EAFNOSUPPORT));
        // The kernel reads the lower half of a request: what stands above must not hide it.
        for request in [libc::TIOCSTI, libc::TIOCSTI | 1 << 32] {
            assert_eq!(verdict(libc::SYS_ioctl, second(request)), fails(libc::EPERM));
        }
        assert_eq!(verdict(libc::SYS_ioctl, second(libc::TIOCGWINSZ)), ALLOW);
        assert_eq!(verdict(libc::SYS_personality, first(0x0004_0000)), fails(libc::EPERM));
        assert_eq!(verdict(libc::SYS_personality, first(0xffff_ffff)), ALLOW);
        for (kind, expected) in [
            (libc::S_IFIFO, ALLOW),
            (libc::S_IFREG, ALLOW),
            (libc::S_IFCHR, fails(libc::EPERM)),
            (libc::S_IFBLK, fails(libc::EPERM)),
        ] {
            assert_eq!(verdict(libc::SYS_mknodat, third(u64::from(kind | 0o644))), expected);
        }
        assert_eq!(verdict(libc::SYS_sync, [0; 6]), fails(0), "succeeds and does nothing");
    }

    #[test]
    fn another_architecture_s_calls_kill() {
        let filter = Filter::compile(LimitsRung::CgroupV1);
        for arch in [0x4000_0003, 0x4000_0028, 0, THIS_ARCHITECTURE ^ 1] {
            assert_eq!(run(&filter, arch, libc::SYS_read as u32, [0; 6]).0, KILL);
        }
    }

    #[test]
    fn files_in_memory_are_for_rungs_that_count_them() {
        for (rung, expected) in [
            (LimitsRung::CgroupV1, ALLOW),
            (LimitsRung::CgroupV2, ALLOW),
            (LimitsRung::Watchdog, fails(libc::ENOSYS)),
        ] {
            let number = libc::SYS_memfd_create as u32;
            let filter = Filter::compile(rung);
            assert_eq!(run(&filter, THIS_ARCHITECTURE, number, [0; 6]).0, expected);
        }
    }
}
