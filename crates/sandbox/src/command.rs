//! One command in a sandbox: started, fed, drained, watched, and ended with all it left.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus};
use rustix::thread::{CapabilitySet, CapabilitySets};

use patchwright_core::{ExecOutput, ExecStatus, SandboxLimits};

use crate::defence::{self, Layer};
use crate::helper::Helper;
use crate::plan::LimitsRung;
use crate::seccomp;
use crate::sys::{self, CStringList};
use crate::watch::Watch;
use crate::wire::{Context, Decoder, Encoder, Kind, Refusal, malformed, send};

/// Exit code of a program that was not found, as shells have it.
const NOT_FOUND: i32 = 127;
/// Exit code of a program that could not be started.
const NOT_STARTED: i32 = 126;

/// The streams' numbers, as everywhere.
pub const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Bytes in all POSIX message queues of the commands, as Linux has it by default.
const MESSAGE_BYTES: u64 = 800 << 10;

/// A command as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<CString>,
    /// Absolute working directory.
    pub cwd: String,
    /// The whole environment, `NAME=value`.
    pub env: Vec<CString>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// Wall-clock bound.
    pub timeout: Duration,
    /// Whether its output is sent as it comes, too.
    pub streamed: bool,
}

impl Command {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::default();
        for list in [&self.argv, &self.env] {
            body.u32(list.len() as u32);
            for text in list {
                body.bytes(text.as_bytes());
            }
        }
        body.str(&self.cwd).bytes(&self.stdin);
        body.u64(u64::try_from(self.timeout.as_micros()).unwrap_or(u64::MAX));
        body.u8(u8::from(self.streamed));
        body.0
    }

    /// Reads the message.
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let mut body = Decoder::new(body);
        let argv = strings(&mut body)?;
        let env = strings(&mut body)?;
        if argv.is_empty() {
            return Err(malformed("a command without a program"));
        }
        Ok(Self {
            argv,
            env,
            cwd: body.string()?,
            stdin: body.bytes()?.to_vec(),
            timeout: Duration::from_micros(body.u64()?),
            streamed: body.u8()? != 0,
        })
    }
}

fn strings(body: &mut Decoder<'_>) -> io::Result<Vec<CString>> {
    (0..body.u32()?).map(|_| Ok(CString::new(body.bytes()?)?)).collect()
}

/// How a command ended, as it travels.
#[derive(Debug, Clone)]
pub struct Ended(pub ExecOutput);

impl Ended {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::default();
        match self.0.status {
            ExecStatus::Exited(code) => body.u8(0).u32(code as u32),
            ExecStatus::Signaled(signal) => body.u8(1).u32(signal as u32),
            ExecStatus::TimedOut => body.u8(2).u32(0),
        };
        body.u64(self.0.dropped_bytes).bytes(&self.0.stdout).bytes(&self.0.stderr);
        body.0
    }

    /// Reads the message.
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let mut body = Decoder::new(body);
        let status = match (body.u8()?, body.u32()? as i32) {
            (0, code) => ExecStatus::Exited(code),
            (1, signal) => ExecStatus::Signaled(signal),
            _ => ExecStatus::TimedOut,
        };
        let dropped_bytes = body.u64()?;
        let (stdout, stderr) = (body.bytes()?.to_vec(), body.bytes()?.to_vec());
        Ok(Self(ExecOutput { status, stdout, stderr, dropped_bytes }))
    }
}

/// One output stream: kept up to a limit, then drained and counted.
struct Stream<'a> {
    pipe: Option<OwnedFd>,
    /// Who is told as it comes, and the stream's number.
    listener: Option<(&'a UnixStream, u8)>,
    kept: Vec<u8>,
    limit: usize,
    dropped: u64,
}

impl Stream<'_> {
    /// Reads once; forgets the pipe at its end.
    fn drain(&mut self, buffer: &mut [u8]) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => {
                self.pipe = None;
                false
            }
            Ok(n) => {
                let keep = n.min(self.limit - self.kept.len());
                self.kept.extend_from_slice(&buffer[..keep]);
                if let Some((mut to, number)) = self.listener.filter(|_| keep > 0) {
                    let body = [&[number], &buffer[..keep]].concat();
                    // Without a host there is nobody to tell; `wait` notices that.
                    let _ = send(&mut to, Kind::Output, &body);
                }
                self.dropped += (n - keep) as u64;
                true
            }
            Err(rustix::io::Errno::INTR) => true,
            Err(_) => false,
        }
    }
}

/// A running command.
struct Running<'a> {
    helper: &'a Helper<'a>,
    pid: Pid,
    stdin: Option<OwnedFd>,
    unwritten: &'a [u8],
    stdout: Stream<'a>,
    stderr: Stream<'a>,
    status: Option<WaitStatus>,
}

/// Runs a command to its end, and ends all that it started.
pub fn run(helper: &Helper<'_>, command: &Command) -> Result<Ended, Refusal> {
    let limited = defence::has(Layer::WallTime);
    let deadline = Instant::now().checked_add(command.timeout).filter(|_| limited);
    let mut watch = Watch::new(helper.limits, helper.rung, helper.writable);
    // Written to now: where the command has just filled the memory of all, a page that is first
    // touched then is one that the kernel kills this process for.
    let mut buffer = vec![b' '; 64 << 10];
    let mut running = start(helper, command)?;
    let forced = running.supervise(deadline, &mut watch, &mut buffer);
    running.end_all(forced.is_some());
    // Every writer is dead: what is in the pipes is all there will be.
    while running.stdout.drain(&mut buffer) {}
    while running.stderr.drain(&mut buffer) {}
    let status = forced.unwrap_or(match running.status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExecStatus::Exited(code),
            (None, signal) => ExecStatus::Signaled(signal.unwrap_or(libc::SIGKILL)),
        },
        None => ExecStatus::Signaled(libc::SIGKILL),
    });
    Ok(Ended(ExecOutput {
        status,
        dropped_bytes: running.stdout.dropped + running.stderr.dropped,
        stdout: running.stdout.kept,
        stderr: running.stderr.kept,
    }))
}

fn start<'a>(helper: &'a Helper<'a>, command: &'a Command) -> Result<Running<'a>, Refusal> {
    let flags = PipeFlags::CLOEXEC;
    let (out_read, out_write) = pipe_with(flags).step("pipe")?;
    let (err_read, err_write) = pipe_with(flags).step("pipe")?;
    let (in_read, in_write) = if command.stdin.is_empty() {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        (rustix::fs::open("/dev/null", flags, Mode::empty()).step("open /dev/null")?, None)
    } else {
        let (read, write) = pipe_with(flags).step("pipe")?;
        nonblocking(&write)?;
        (read, Some(write))
    };
    nonblocking(&out_read)?;
    nonblocking(&err_read)?;
    let argv = CStringList::new(command.argv.clone());
    let env = CStringList::new(command.env.clone());
    let programs = candidates(command);
    let Some(pid) = sys::fork(0).step("start a command")? else {
        let ends = (in_read, out_write, err_write);
        become_command(helper, command, &programs, (&argv, &env), &ends)
    };
    let stream = |pipe, number| Stream {
        pipe: Some(pipe),
        listener: command.streamed.then_some((helper.stream, number)),
        kept: Vec::new(),
        limit: if defence::has(Layer::Output) { helper.limits.output_bytes } else { usize::MAX },
        dropped: 0,
    };
    Ok(Running {
        helper,
        pid,
        stdin: in_write,
        unwritten: &command.stdin,
        stdout: stream(out_read, STDOUT),
        stderr: stream(err_read, STDERR),
        status: None,
    })
}

fn nonblocking(pipe: &OwnedFd) -> Result<(), Refusal> {
    rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK).step("prepare a pipe")
}

impl Running<'_> {
    /// Feeds, drains and watches until the command's own process has ended (`None`), or must.
    fn supervise(
        &mut self,
        deadline: Option<Instant>,
        watch: &mut Watch<'_>,
        buffer: &mut [u8],
    ) -> Option<ExecStatus> {
        loop {
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Some(ExecStatus::TimedOut);
            }
            if let Some(status) = watch.look(now) {
                return Some(status);
            }
            let until = deadline.map_or(watch.next(), |deadline| deadline.min(watch.next()));
            self.wait(until.saturating_duration_since(now), buffer);
            if self.status.is_some() {
                return None;
            }
        }
    }

    fn wait(&mut self, at_most: Duration, buffer: &mut [u8]) {
        let mut fds = vec![
            PollFd::new(self.helper.stream, PollFlags::RDHUP),
            PollFd::new(&self.helper.signals, PollFlags::IN),
        ];
        let pipes = [&self.stdout.pipe, &self.stderr.pipe];
        fds.extend(pipes.iter().filter_map(|p| p.as_ref()).map(|p| PollFd::new(p, PollFlags::IN)));
        fds.extend(self.stdin.as_ref().map(|p| PollFd::new(p, PollFlags::OUT)));
        let timeout = rustix::event::Timespec {
            tv_sec: at_most.as_secs() as i64,
            tv_nsec: i64::from(at_most.subsec_nanos()) as _,
        };
        if rustix::event::poll(&mut fds, Some(&timeout)).is_err() {
            return;
        }
        if !fds[0].revents().is_empty() && defence::has(Layer::ParentDeath) {
            // Nobody is left to answer to.
            sys::exit(1);
        }
        let child_ended = !fds[1].revents().is_empty();
        drop(fds);
        self.stdout.drain(buffer);
        self.stderr.drain(buffer);
        self.feed();
        if child_ended {
            let _ = rustix::io::read(&self.helper.signals, &mut *buffer);
            while !self.reap(WaitOptions::NOHANG) {}
        }
    }

    /// Takes one ended child's status; whether there was none.
    fn reap(&mut self, how: WaitOptions) -> bool {
        match rustix::process::wait(how) {
            Ok(Some((pid, status))) => {
                if pid == self.pid && self.status.is_none() {
                    self.status = Some(status);
                }
                false
            }
            Err(rustix::io::Errno::INTR) => false,
            Ok(None) | Err(_) => true,
        }
    }

    fn feed(&mut self) {
        let Some(pipe) = &self.stdin else { return };
        match rustix::io::write(pipe, self.unwritten) {
            Ok(n) => self.unwritten = &self.unwritten[n..],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            // The reader is gone, which is its right.
            Err(_) => self.unwritten = &[],
        }
        if self.unwritten.is_empty() {
            self.stdin = None;
        }
    }

    /// Kills and awaits every process but this one, and removes what outlives processes. New ones
    /// cannot outrun it: a process with a pending kill cannot fork.
    fn end_all(&mut self, forced: bool) {
        if !defence::has(Layer::Remains) || !defence::has(Layer::PidNamespace) {
            if forced {
                let _ = rustix::process::kill_process(self.pid, Signal::KILL);
            }
            while self.status.is_none() && !self.reap(WaitOptions::empty()) {}
            return;
        }
        loop {
            sys::kill_everything();
            if self.reap(WaitOptions::empty()) {
                break;
            }
        }
        sys::remove_ipc();
    }
}

/// Paths to try for the program, in order.
fn candidates(command: &Command) -> Vec<CString> {
    let program = command.argv[0].as_bytes();
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains(&b'/') {
        return vec![command.argv[0].clone()];
    }
    let path = command.env.iter().find_map(|var| var.as_bytes().strip_prefix(b"PATH="));
    let in_path = |program: &[u8]| -> Vec<CString> {
        path.unwrap_or_default()
            .split(|b| *b == b':')
            .filter(|dir| dir.starts_with(b"/"))
            .filter_map(|dir| CString::new([dir, b"/", program].concat()).ok())
            .collect()
    };
    let mut found = in_path(program);
    if program == b"bash" {
        found.extend(in_path(b"sh"));
    }
    found
}

/// Turns the forked child into the command.
fn become_command(
    helper: &Helper<'_>,
    command: &Command,
    programs: &[CString],
    (argv, env): (&CStringList, &CStringList),
    (stdin, stdout, stderr): &(OwnedFd, OwnedFd, OwnedFd),
) -> ! {
    let ready = (|| {
        sys::reset_signals();
        rustix::process::setsid()?;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        if defence::has(Layer::Descriptors) {
            sys::close_from_at_exec(3);
        }
        give_up_powers()?;
        bound(helper.limits, helper.rung)?;
        // Last: what stands above could not be done under it.
        if defence::has(Layer::Seccomp) {
            seccomp::install(helper.rung)?;
        }
        Ok::<_, io::Error>(())
    })();
    if let Err(error) = ready {
        fail(NOT_STARTED, &format!("cannot prepare the command: {error}"));
    }
    if let Err(error) = rustix::process::chdir(command.cwd.as_str()) {
        let error = io::Error::from(error);
        fail(NOT_STARTED, &format!("cannot enter {}: {error}", command.cwd));
    }
    let mut refused = None;
    for program in programs {
        let error = sys::exec(program, argv, env);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            _ => refused = Some(error),
        }
    }
    let name = command.argv[0].to_string_lossy();
    match refused {
        Some(error) => fail(NOT_STARTED, &format!("{name}: {error}")),
        None => fail(NOT_FOUND, &format!("{name}: command not found")),
    }
}

fn fail(code: i32, why: &str) -> ! {
    let _ = rustix::io::write(rustix::stdio::stderr(), format!("{why}\n").as_bytes());
    sys::exit(code)
}

/// The attack suite's: what PID 1 has comes along over `execve`.
fn keep_powers() -> rustix::io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.inheritable = sets.permitted;
    rustix::thread::set_capabilities(None, sets)?;
    for capability in sets.permitted.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    rustix::thread::set_no_new_privs(true)
}

/// Every capability out of every set, and none can come back through a program's file.
fn give_up_powers() -> rustix::io::Result<()> {
    if !defence::has(Layer::Capabilities) {
        return keep_powers();
    }
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // Numbers beyond the kernel's last capability are refused, which ends the list.
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)
}

fn bound(limits: &SandboxLimits, rung: LimitsRung) -> rustix::io::Result<()> {
    let set = |resource, soft: u64, hard: u64| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) })
    };
    if defence::has(Layer::CpuTime) {
        set(Resource::Cpu, limits.cpu_seconds, limits.cpu_seconds + 1)?;
    }
    if defence::has(Layer::Processes) {
        // PID 1 counts as one of this user.
        set(Resource::Nproc, limits.num_processes + 1, limits.num_processes + 1)?;
    }
    set(Resource::Core, 0, 0)?;
    set(Resource::Msgqueue, MESSAGE_BYTES, MESSAGE_BYTES)?;
    if rung == LimitsRung::Watchdog {
        // Descriptors are what pipes are counted by, whose buffers no sum of memory shows.
        set(Resource::Nofile, 256, 256)?;
        if defence::has(Layer::Memory) {
            let bytes = limits.memory_bytes.saturating_mul(2);
            set(Resource::As, bytes, bytes)?;
        }
    } else {
        set(Resource::Nofile, 1024, 1024)?;
        // When memory runs out PID 1 is spared, as far as the machine lets it; what it starts goes first.
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open("/proc/self/oom_score_adj", flags, Mode::empty())?;
        rustix::io::write(&file, b"1000")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Command, Ended, candidates};
    use patchwright_core::{ExecOutput, ExecStatus};
    use std::ffi::CString;
    use std::time::Duration;

    fn command(program: &str, path: &str) -> Command {
        Command {
            argv: vec![CString::new(program).unwrap()],
            cwd: "/".to_owned(),
            env: vec![CString::new(format!("PATH={path}")).unwrap()],
            stdin: vec![0, 255],
            timeout: Duration::from_millis(1500),
            streamed: true,
        }
    }

    #[test]
    fn messages_round_trip() {
        let sent = command("ls", "/bin");
        assert_eq!(Command::decode(&sent.encode()).unwrap(), sent);
        for status in [ExecStatus::Exited(-1), ExecStatus::Signaled(9), ExecStatus::TimedOut] {
            let output = ExecOutput {
                status,
                stdout: vec![1, 200],
                stderr: Vec::new(),
                dropped_bytes: 1 << 40,
            };
            let back = Ended::decode(&Ended(output.clone()).encode()).unwrap().0;
            assert_eq!(back.status, output.status);
            assert_eq!((back.stdout, back.dropped_bytes), (output.stdout, output.dropped_bytes));
        }
    }

    #[test]
    fn programs_are_looked_up_in_the_command_s_path() {
        let paths = |program, path| -> Vec<String> {
            candidates(&command(program, path))
                .iter()
                .map(|c| c.to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(paths("ls", "/a:/b:.:"), ["/a/ls", "/b/ls"]);
        assert_eq!(paths("./x", "/a"), ["./x"]);
        assert_eq!(paths("bash", "/a"), ["/a/bash", "/a/sh"]);
    }
}
