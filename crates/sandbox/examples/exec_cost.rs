//! What the filter of system calls costs a command, in one run:
//! `cargo run --release -p patchwright-sandbox --example exec_cost [SECONDS]`.
//!
//! Two sandboxes take turns, one as programs have it, one without the layer. On a machine that does
//! other work too, the fastest tenth tells them apart better than the median does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchwright_core::{
    ExecRequest, ExecStatus, RepoSource, RootFs, Sandbox, SandboxError, SandboxLimits,
    SandboxProvider, SandboxSpec,
};
use patchwright_sandbox::{Defences, Layer, NativeOptions, NativeSandboxes};

fn sandbox(layers_off: &[Layer]) -> Result<Box<dyn Sandbox>, SandboxError> {
    let defences = Defences::without(layers_off);
    let provider = NativeSandboxes::new(NativeOptions { defences, ..NativeOptions::default() })?;
    provider.create(&SandboxSpec {
        root: RootFs::Host,
        repo: RepoSource::Files(Arc::new(BTreeMap::new())),
        workdir: "/testbed".to_owned(),
        read_only_mounts: Vec::new(),
        env: BTreeMap::new(),
        limits: SandboxLimits::default(),
    })
}

fn exec_ms(sandbox: &mut dyn Sandbox, argv: &[&str]) -> Result<f64, SandboxError> {
    let request = ExecRequest::argv(argv, "/testbed", Duration::from_secs(20));
    let start = Instant::now();
    let output = sandbox.exec(&request)?;
    let time = start.elapsed();
    assert_eq!(output.status, ExecStatus::Exited(0), "{argv:?}");
    Ok(time.as_secs_f64() * 1e3)
}

/// The fastest tenth's bound, and the median.
fn quantiles(times: &mut [f64]) -> (f64, f64) {
    times.sort_unstable_by(f64::total_cmp);
    (times[times.len() / 10], times[times.len() / 2])
}

fn main() -> Result<(), SandboxError> {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(3.0);
    let layers: [&[Layer]; 2] = [&[], &[Layer::Seccomp]];
    let mut sandboxes =
        layers.iter().map(|off| sandbox(off)).collect::<Result<Vec<_>, SandboxError>>()?;
    for argv in [&["true"][..], &["bash", "-c", ":"], &["python3", "-I", "-S", "-c", "pass"]] {
        let mut times = vec![Vec::new(); sandboxes.len()];
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < seconds {
            for (sandbox, times) in sandboxes.iter_mut().zip(&mut times) {
                times.push(exec_ms(&mut **sandbox, argv)?);
            }
        }
        let n = times[0].len();
        println!("{} (n {n})", argv.join(" "));
        let quantiles: Vec<_> = times.iter_mut().map(|times| quantiles(times)).collect();
        let (with, without) = (quantiles[0], quantiles[1]);
        for (name, with, without) in [("p10", with.0, without.0), ("p50", with.1, without.1)] {
            let more = with - without;
            println!("  {name} {with:.3} ms; without the filter {without:.3} ms ({more:+.3} ms)");
        }
    }
    Ok(())
}
