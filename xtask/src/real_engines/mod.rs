//! `cargo xtask real-engines`: other people's engines, installed into a cache under `target/`, and
//! our suites against them. They bring gigabytes, so CI does without; `bench/LOG.md` quotes them.

use std::fmt::Write;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

mod cookbook;
mod python;
mod recipe;
mod skyrl;
mod vllm;

/// Where engines are kept, and what is written down.
pub struct Context {
    /// The checkout.
    pub root: PathBuf,
    /// Engines, one directory each; they stay.
    pub cache: PathBuf,
    /// Name and value, a line each: tests append to it (`PATCHWRIGHT_FIGURES`).
    pub figures: PathBuf,
    /// The suite that runs, and since when.
    suite: &'static str,
    start: Instant,
}

/// An engine's installation, servers and tests.
type Suite = fn(&Context) -> Result<(), String>;

/// The suites by name.
const SUITES: [(&str, Suite); 3] =
    [("vllm", vllm::run), ("skyrl", skyrl::run), ("cookbook", cookbook::run)];

/// Runs the suites of these names, or all, and writes `target/real-engines/figures.md`.
///
/// # Errors
/// What failed, and where its log is.
pub fn run(names: &[String]) -> Result<(), String> {
    let known = SUITES.map(|(name, _)| name).join(", ");
    if let Some(strange) = names.iter().find(|name| SUITES.iter().all(|(known, _)| known != name)) {
        return Err(format!("no suite {strange:?}; there are {known}"));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    let cache = root.join("target/real-engines");
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let figures = cache.join("figures.tsv");
    let mut context = Context { root, cache, figures, suite: "", start: Instant::now() };
    let (mut report, path) = (String::from("# Real engines\n"), context.cache.join("figures.md"));
    println!("caches and logs: {}", context.cache.display());
    let mut failures = Vec::new();
    for (name, suite) in SUITES {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        std::fs::write(&context.figures, "").map_err(|error| error.to_string())?;
        (context.suite, context.start) = (name, Instant::now());
        let result = suite(&context);
        let verdict =
            result.as_ref().map_or_else(|error| format!("FAILED: {error}"), |()| "passed".into());
        let seconds = context.start.elapsed().as_secs();
        let _ = write!(report, "\n## {name}: {verdict} ({seconds} s)\n\n| | |\n|---|---|\n");
        let figures = std::fs::read_to_string(&context.figures).unwrap_or_default();
        for (figure, value) in figures.lines().filter_map(|line| line.split_once('\t')) {
            let _ = writeln!(report, "| {figure} | {value} |");
        }
        // After every suite: they take long, and the next one may be cut off.
        std::fs::write(&path, &report).map_err(|error| format!("{}: {error}", path.display()))?;
        failures.extend(result.err().map(|error| format!("{name}: {error}")));
    }
    print!("{report}");
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

impl Context {
    /// Says what comes next, and how long the suite has been running.
    pub fn stage(&self, what: &str) {
        eprintln!("\n== {}, {} s: {what}", self.suite, self.start.elapsed().as_secs());
    }

    /// Runs a part of the suite that is announced, and writes its seconds down.
    pub fn timed<T>(
        &self,
        what: &str,
        part: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        self.stage(what);
        let start = Instant::now();
        let done = part().map_err(|error| format!("{what}: {error}"))?;
        self.figure(&format!("seconds: {what}"), &start.elapsed().as_secs().to_string())?;
        Ok(done)
    }

    /// Writes a figure down.
    pub fn figure(&self, name: &str, value: &str) -> Result<(), String> {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.figures)
            .map_err(|error| format!("{}: {error}", self.figures.display()))?;
        writeln!(file, "{name}\t{value}").map_err(|error| error.to_string())
    }

    /// Runs our tests with the engines' addresses in the environment.
    pub fn tests(&self, args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(&self.root).arg("test").args(args);
        command.env("PATCHWRIGHT_FIGURES", &self.figures).envs(env.iter().copied());
        run_command(&mut command)
    }
}

/// Runs a command to its end.
pub fn run_command(command: &mut Command) -> Result<(), String> {
    eprintln!("+ {command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// A port that nothing listens on.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// A server with its children; it is stopped when this is dropped.
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a server; what it says goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", log.display());
        let file = std::fs::File::create(log).map_err(failed)?;
        let both = file.try_clone().map_err(failed)?;
        eprintln!("+ {command:?} > {}", log.display());
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(both)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Waits until something listens on a port of loopback.
    pub fn wait_for(&mut self, port: u16, timeout: Duration) -> Result<(), String> {
        let end = Instant::now() + timeout;
        let log = self.log.display();
        loop {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the server ended with {status}; see {log}"));
            }
            if Instant::now() >= end {
                return Err(format!("nothing listens after {} s; see {log}", timeout.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn signal(&self, signal: &str) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args([signal, "--", &group]).stderr(Stdio::null()).status();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("-TERM");
        for _ in 0..60 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        // Whoever of the group is left.
        self.signal("-KILL");
        let _ = self.child.wait();
    }
}
