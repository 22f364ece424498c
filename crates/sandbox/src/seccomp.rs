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

mod calls;
mod program;

use std::io;
use std::sync::OnceLock;

pub use program::Instruction;

use crate::plan::LimitsRung;
use crate::wire::Refusal;

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Vec<Instruction>);

impl Filter {
    /// Compiles the filter for commands. Where memory is bounded by the watchdog alone, files in
    /// memory that no process needs to have mapped (`memfd_create`) are refused too: it could not
    /// see them.
    pub fn compile(rung: LimitsRung) -> Self {
        Self(program::assemble(&calls::verdicts(rung)))
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

#[cfg(test)]
mod tests {
    use super::Filter;
    use super::program::{
        AND, ARCHITECTURE, IF_ANY_BIT, IF_AT_LEAST, IF_EQUAL, JUMP, LOAD, NUMBER, RETURN,
        THIS_ARCHITECTURE, UNKNOWN, Verdict, X32, argument,
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
            let list = super::calls::verdicts(rung);
            let numbers: std::collections::BTreeSet<_> = list.iter().map(|(n, _)| *n).collect();
            assert_eq!(numbers.len(), list.len(), "a number is listed twice");
            for number in (0..2000).chain([0x3fff_ffff, X32, X32 + 1, u32::MAX]) {
                let (got, steps) = run(&filter, THIS_ARCHITECTURE, number, [0; 6]);
                let listed = list.iter().find(|(n, _)| *n == number).map(|(_, v)| *v);
                let expected = match listed {
                    Some(Verdict::Fail(errno)) => fails(errno),
                    // With arguments of zero.
                    Some(Verdict::SocketFamily | Verdict::PairFamily) => fails(libc::EAFNOSUPPORT),
                    Some(_) => ALLOW,
                    None if number >= X32 => KILL,
                    None if number >= UNKNOWN => fails(libc::ENOSYS),
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
        assert_eq!(verdict(libc::SYS_personality, first(0x0004_0000)), ALLOW, "it is so anyway");
        assert_eq!(verdict(libc::SYS_personality, first(0x0040_0000)), fails(libc::EPERM));
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
