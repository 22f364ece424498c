//! Processes by an identity that is never used again: pid and start time.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// How long a killed process may take to end.
const END: Duration = Duration::from_secs(5);

/// One process of this boot and PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessId {
    /// Its number, which the kernel gives to another process some day.
    pub pid: u32,
    /// When it was started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has the number `pid` now, unless it has ended.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = state_and_start(&stat)?;
        // A zombie holds nothing but its number.
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, started })
    }

    /// This process.
    pub fn this() -> io::Result<Self> {
        Self::of(std::process::id())
            .ok_or_else(|| io::Error::other("/proc does not show this process: mount it"))
    }

    /// Whether it has not ended.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Kills it and awaits its end. `false` when it was not there any more.
    ///
    /// # Errors
    /// When it may not be killed, or does not end.
    pub fn kill(self) -> io::Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid as i32) else { return Ok(false) };
        let handle = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        // The handle was opened first: if the number is this process's now, it was so then.
        if !self.is_alive() {
            return Ok(false);
        }
        match rustix::process::pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let mut fds = [PollFd::new(&handle, PollFlags::IN)];
        let timeout = Timespec { tv_sec: END.as_secs() as i64, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(io::Error::other("was killed and has not ended after 5 s")),
            Ok(_) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// The state and start time in `/proc/PID/stat`, behind a name that may hold anything.
fn state_and_start(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Every process that was started under the name `name`, as its first argument has it.
pub(super) fn bearing(name: &str) -> Vec<ProcessId> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The identity first: if the number is given away in between, it does not match later.
        let Some(process) = ProcessId::of(pid) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
            found.push(process);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{ProcessId, state_and_start};
    use std::process::Command;

    #[test]
    fn stat_is_read_behind_a_hostile_name() {
        let stat = "7 (a) Z 9 (b) S 1 7 7 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 555 6 7";
        assert_eq!(state_and_start(stat), Some(('S', 555)));
        assert_eq!(state_and_start("7 (a) S 1"), None);
        assert_eq!(state_and_start(""), None);
    }

    #[test]
    fn a_number_that_was_given_away_is_another_process() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        let recycled = ProcessId { started: process.started + 1, ..process };
        assert!(!recycled.kill().unwrap(), "nothing to kill");
        assert!(process.is_alive());
        assert!(process.kill().unwrap());
        assert!(!process.is_alive(), "a zombie is dead");
        child.wait().unwrap();
        assert!(!process.kill().unwrap());
    }
}
