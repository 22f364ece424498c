//! Which calls there are, and what becomes of each.

use super::program::Verdict;
use crate::plan::LimitsRung;

/// Every number that is not simply refused.
pub fn verdicts(rung: LimitsRung) -> Vec<(u32, Verdict)> {
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
