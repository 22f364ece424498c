//! The bounds that no single kernel limit keeps: CPU time of a whole process tree, and its memory
//! where there is no memory controller.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use patchwright_core::{ExecStatus, SandboxLimits};

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
        let memory = rung == LimitsRung::Watchdog;
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
        let mut memory_bytes = if self.memory { used_bytes(self.writable) } else { 0 };
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
        let bound_us = self.limits.cpu_seconds.saturating_mul(1_000_000);
        (cpu_us > bound_us).then_some(ExecStatus::Signaled(libc::SIGXCPU))
    }
}

/// Bytes that the writable file system holds: it is memory too.
fn used_bytes(writable: &OwnedFd) -> u64 {
    rustix::fs::fstatvfs(writable).map_or(0, |s| (s.f_blocks - s.f_bfree) * s.f_frsize)
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
    use super::{cpu_ticks, own_memory_bytes};

    #[test]
    fn stat_fields_are_found_behind_a_hostile_name() {
        let stat = "7 (a) 9 (b) S 1 7 7 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), 100);
        assert_eq!(cpu_ticks(""), 0);
    }

    #[test]
    fn memory_is_anonymous_and_shared_but_not_files() {
        let status = "VmRSS:\t100 kB\nRssAnon:\t 40 kB\nRssFile:\t 50 kB\nRssShmem:\t 10 kB\n";
        assert_eq!(own_memory_bytes(status), 50 * 1024);
    }
}
