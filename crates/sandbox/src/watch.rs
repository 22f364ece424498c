//! The bounds that no single kernel limit keeps: CPU time of a whole process tree, and its memory
//! where there is no memory controller.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use patchwright_core::{ExecStatus, SandboxLimits};

use crate::defence::{self, Layer};
use crate::plan::LimitsRung;
use crate::sys;

/// Between two looks where only CPU time is watched.
const CPU_PERIOD: Duration = Duration::from_millis(200);
/// Between two looks where memory is watched.
const MEMORY_PERIOD: Duration = Duration::from_millis(10);

/// Watches one command.
pub struct Watch<'a> {
    limits: &'a SandboxLimits,
    memory: bool,
    writable: &'a OwnedFd,
    reaped_before_us: u64,
    next: Instant,
    period: Duration,
}

impl<'a> Watch<'a> {
    /// A watch over a command that is about to start.
    pub fn new(limits: &'a SandboxLimits, rung: LimitsRung, writable: &'a OwnedFd) -> Self {
        let memory = rung == LimitsRung::Watchdog && defence::has(Layer::Memory);
        let period = if memory { MEMORY_PERIOD } else { CPU_PERIOD };
        let reaped_before_us = sys::children_cpu_us();
        Self { limits, memory, writable, reaped_before_us, next: Instant::now() + period, period }
    }

    /// When to look next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Looks, when it is time; the status of a command that must end.
    pub fn look(&mut self, now: Instant) -> Option<ExecStatus> {
        if now < self.next {
            return None;
        }
        self.next = now + self.period;
        let mut cpu_us = sys::children_cpu_us() - self.reaped_before_us;
        let mut memory_bytes = 0;
        if self.memory {
            memory_bytes = used_bytes(self.writable) + unmapped_bytes();
        }
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            if pid == 1 {
                continue;
            }
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            cpu_us += cpu_ticks(&stat) * 1_000_000 / ticks;
            if self.memory {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                memory_bytes += own_memory_bytes(&status);
            }
        }
        if memory_bytes > self.limits.memory_bytes {
            return Some(ExecStatus::Signaled(libc::SIGKILL));
        }
        if !defence::has(Layer::CpuTime) {
            return None;
        }
        let bound_us = self.limits.cpu_seconds.saturating_mul(1_000_000);
        (cpu_us > bound_us).then_some(ExecStatus::Signaled(libc::SIGXCPU))
    }
}

/// Bytes that the writable file system holds: it is memory too.
fn used_bytes(writable: &OwnedFd) -> u64 {
    rustix::fs::fstatvfs(writable).map_or(0, |s| (s.f_blocks - s.f_bfree) * s.f_frsize)
}

/// Memory that no process needs to have mapped: System V's segments, messages and semaphores, and
/// what sockets may hold. (Files in memory are refused where this is counted; pipes and POSIX
/// queues are bounded by rlimits.)
fn unmapped_bytes() -> u64 {
    let column = |file: &str, columns: &[usize]| -> u64 {
        let text = fs::read_to_string(format!("/proc/sysvipc/{file}")).unwrap_or_default();
        column_sum(&text, columns)
    };
    let sockets = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    column("shm", &[SHM_RESIDENT, SHM_SWAPPED])
        + column("msg", &[MSG_BYTES])
        + column("sem", &[SEM_COUNT]) * SEMAPHORE_BYTES
        + sockets_used(&sockets) * SOCKET_BYTES
}

/// Columns of `/proc/sysvipc/{shm,msg,sem}`.
const SHM_RESIDENT: usize = 14;
const SHM_SWAPPED: usize = 15;
const MSG_BYTES: usize = 3;
const SEM_COUNT: usize = 3;
/// A semaphore in the kernel.
const SEMAPHORE_BYTES: u64 = 64;
/// What is sent into a socket and not received, at most by default (`net.core.wmem_default`).
const SOCKET_BYTES: u64 = 208 << 10;

fn column_sum(table: &str, columns: &[usize]) -> u64 {
    let number = |line: &str, n: usize| line.split_whitespace().nth(n)?.parse::<u64>().ok();
    table
        .lines()
        .skip(1)
        .flat_map(|line| columns.iter().filter_map(move |n| number(line, *n)))
        .fold(0, u64::saturating_add)
}

/// Sockets of this network namespace, from `/proc/net/sockstat`.
fn sockets_used(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("sockets: used "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// CPU time in `/proc/PID/stat`: its own, and that of the children it has waited for.
fn cpu_ticks(stat: &str) -> u64 {
    // The name, in parentheses, may hold anything.
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    fields.split_whitespace().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum()
}

/// Memory in `/proc/PID/status` that is not a file's: what shared memory two processes have in
/// common is counted twice, on the safe side.
fn own_memory_bytes(status: &str) -> u64 {
    status
        .lines()
        .filter(|line| line.starts_with("RssAnon:") || line.starts_with("RssShmem:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum::<u64>()
        * 1024
}

#[cfg(test)]
mod tests {
    use super::{SHM_RESIDENT, SHM_SWAPPED, column_sum, cpu_ticks, own_memory_bytes, sockets_used};

    #[test]
    fn stat_fields_are_found_behind_a_hostile_name() {
        let stat = "7 (a) 9 (b) S 1 7 7 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), 100);
        assert_eq!(cpu_ticks(""), 0);
    }

    #[test]
    fn what_no_process_has_mapped_is_found_in_the_kernel_s_tables() {
        let table = "key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime \
                     rss swap\n\
                     0 1 1666 9000 5 5 0 1000 1000 1000 1000 0 0 17 8192 4096\n\
                     0 2 1666 9000 5 5 1 1000 1000 1000 1000 0 0 17 100 x\n";
        assert_eq!(column_sum(table, &[SHM_RESIDENT, SHM_SWAPPED]), 8192 + 4096 + 100);
        assert_eq!(column_sum("", &[0]), 0);
        assert_eq!(sockets_used("sockets: used 31\nTCP: inuse 5 orphan 0\n"), 31);
        assert_eq!(sockets_used("TCP: inuse 5\n"), 0);
    }

    #[test]
    fn memory_is_anonymous_and_shared_but_not_files() {
        let status = "VmRSS:\t100 kB\nRssAnon:\t 40 kB\nRssFile:\t 50 kB\nRssShmem:\t 10 kB\n";
        assert_eq!(own_memory_bytes(status), 50 * 1024);
    }
}
