//! Measures sandboxes on this machine:
//! `cargo run --release -p patchwright-sandbox --example lives [SECONDS]`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use patchwright_core::{
    ExecRequest, ExecStatus, RepoSource, Sandbox, SandboxError, SandboxLimits, SandboxProvider,
    SandboxSpec,
};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};

fn spec() -> SandboxSpec {
    let files: BTreeMap<_, _> = (0..6)
        .map(|n| (format!("pkg/m{n}.py"), format!("def f{n}(x):\n    return x + {n}\n").repeat(20)))
        .collect();
    SandboxSpec {
        root: patchwright_core::RootFs::Host,
        repo: RepoSource::Files(Arc::new(files)),
        workdir: "/testbed".to_owned(),
        read_only_mounts: Vec::new(),
        env: BTreeMap::new(),
        limits: SandboxLimits::default(),
    }
}

fn exec(sandbox: &mut dyn Sandbox, argv: &[&str]) -> Result<(), SandboxError> {
    let output = sandbox.exec(&ExecRequest::argv(argv, "/testbed", Duration::from_secs(20)))?;
    assert_eq!(output.status, ExecStatus::Exited(0), "{argv:?}");
    Ok(())
}

/// p10 (on a machine that is shared, nearest to what an idle one has), p50 and p99 in milliseconds.
fn quantiles(mut times: Vec<Duration>) -> (f64, f64, f64) {
    times.sort_unstable();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    (at(0.1), at(0.5), at(0.99))
}

fn report(name: &str, times: Vec<Duration>) {
    let n = times.len();
    let (p10, p50, p99) = quantiles(times);
    println!("{name:<44} p10 {p10:7.2}   p50 {p50:7.2}   p99 {p99:7.2} ms   n {n}");
}

fn repeat(
    seconds: f64,
    mut body: impl FnMut() -> Result<(), SandboxError>,
) -> Result<Vec<Duration>, SandboxError> {
    body()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed().as_secs_f64() < seconds {
        let one = Instant::now();
        body()?;
        times.push(one.elapsed());
    }
    Ok(times)
}

fn life(provider: &NativeSandboxes, spec: &SandboxSpec) -> Result<(), SandboxError> {
    let mut sandbox = provider.create(spec)?;
    exec(&mut *sandbox, &["true"])?;
    sandbox.destroy()
}

/// Forks of a sandbox with few files, with many, and a hundred deep. Each is used before and
/// after: what a fork leaves for later is not left out.
fn forks(provider: &NativeSandboxes, spec: &SandboxSpec, seconds: f64) -> Result<(), SandboxError> {
    let mut roomy = spec.clone();
    roomy.limits.disk_bytes = 256 << 20;
    roomy.limits.memory_bytes = 1 << 30;
    for num_files in [100, 20_000] {
        let mut sandbox = provider.create(&roomy)?;
        let script = format!(
            "for d in $(seq 1 {}); do mkdir d$d; for f in 1 2 3 4 5 6 7 8 9 10; do \
             for g in 1 2 3 4 5 6 7 8 9 10; do echo x > d$d/f$f$g; done; done; done",
            num_files / 100
        );
        exec(&mut *sandbox, &["bash", "-c", &script])?;
        let (mut fork, mut next) = (Vec::new(), Vec::new());
        repeat(seconds, || {
            exec(&mut *sandbox, &["true"])?;
            let one = Instant::now();
            let mut copy = sandbox.fork()?;
            fork.push(one.elapsed());
            let one = Instant::now();
            exec(&mut *copy, &["true"])?;
            next.push(one.elapsed());
            copy.destroy()
        })?;
        report(&format!("fork of {num_files} files"), fork);
        report("  first exec in the copy", next);
        sandbox.destroy()?;
    }
    let (mut shallow, mut deep, mut back) = (Vec::new(), Vec::new(), Vec::new());
    repeat(seconds, || {
        let mut sandbox = provider.create(&roomy)?;
        for depth in 1..=100 {
            exec(&mut *sandbox, &["bash", "-c", &format!("echo {depth} > f{depth}")])?;
            let one = Instant::now();
            let copy = sandbox.fork()?;
            if depth <= 10 { &mut shallow } else { &mut deep }.push(one.elapsed());
            if depth == 100 {
                let one = Instant::now();
                exec(&mut *sandbox, &["true"])?;
                back.push(one.elapsed());
            }
            std::mem::replace(&mut sandbox, copy).destroy()?;
        }
        sandbox.destroy()
    })?;
    let last = deep.iter().skip(89).step_by(90).copied().collect();
    report("fork, at depths 1 to 10", shallow);
    report("fork, at depths 11 to 100", deep);
    report("fork, at depth 100", last);
    report("  first exec in the original after it", back);
    Ok(())
}

fn io(source: std::io::Error) -> SandboxError {
    SandboxError::Io { context: "prepare a directory".to_owned(), source }
}

fn main() -> Result<(), SandboxError> {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let start = Instant::now();
    let provider = NativeSandboxes::new(NativeOptions::default())?;
    println!("limits by {}", provider.limits_rung());
    println!("provider started in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let spec = spec();

    report("create + exec true + destroy", repeat(seconds, || life(&provider, &spec))?);
    let (mut create, mut destroy) = (Vec::new(), Vec::new());
    repeat(seconds, || {
        let one = Instant::now();
        let sandbox = provider.create(&spec)?;
        create.push(one.elapsed());
        let one = Instant::now();
        sandbox.destroy()?;
        destroy.push(one.elapsed());
        Ok(())
    })?;
    report("  create", create);
    report("  destroy", destroy);

    let mut sandbox = provider.create(&spec)?;
    report("exec true", repeat(seconds, || exec(&mut *sandbox, &["true"]))?);
    report("exec bash -c :", repeat(seconds, || exec(&mut *sandbox, &["bash", "-c", ":"]))?);
    let python = ["python3", "-I", "-S", "-c", "pass"];
    report("exec python3 -I -S -c pass", repeat(seconds, || exec(&mut *sandbox, &python))?);
    report("diff", repeat(seconds, || sandbox.diff().map(drop))?);
    sandbox.destroy()?;
    forks(&provider, &spec, seconds)?;

    let directory = tempfile::tempdir().map_err(io)?;
    for n in 0..2000 {
        let at = directory.path().join(format!("d{}", n % 50));
        std::fs::create_dir_all(&at).map_err(io)?;
        std::fs::write(at.join(format!("f{n}.py")), "x = 1\n".repeat(200)).map_err(io)?;
    }
    let over =
        SandboxSpec { repo: RepoSource::Directory(directory.path().to_owned()), ..spec.clone() };
    report(
        "2,000 files on disk: create + true + destroy",
        repeat(seconds, || life(&provider, &over))?,
    );

    for num_threads in [1, 8, 32] {
        let stop = AtomicBool::new(false);
        let start = Instant::now();
        let times: Result<Vec<Vec<_>>, SandboxError> = std::thread::scope(|scope| {
            let work = || {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let one = Instant::now();
                    life(&provider, &spec)?;
                    times.push(one.elapsed());
                }
                Ok(times)
            };
            let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
            std::thread::sleep(Duration::from_secs_f64(seconds));
            stop.store(true, Ordering::Relaxed);
            threads
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|_| {
                        Err(SandboxError::Died("a thread of the benchmark panicked".to_owned()))
                    })
                })
                .collect()
        });
        let times: Vec<_> = times?.into_iter().flatten().collect();
        let per_second = times.len() as f64 / start.elapsed().as_secs_f64();
        let (p10, p50, p99) = quantiles(times);
        println!(
            "{num_threads:>2} threads: {per_second:6.1} sandboxes/s   p10 {p10:7.2}   \
             p50 {p50:7.2}   p99 {p99:7.2} ms"
        );
    }
    Ok(())
}
