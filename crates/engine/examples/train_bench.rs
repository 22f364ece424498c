//! Measures training, one row of the table at a time, in steps that another program may ask for.
//!
//! ```text
//! cargo run --release -p patchwright-engine --example train_bench -- train-5.8m-8x512-f32 --steps 5
//! cargo run --release -p patchwright-engine --example train_bench -- gemm
//! cargo run --release -p patchwright-engine --example train_bench -- long 8192,32768,65536,131072
//! ```
//! Without `--steps` it reads lines from its input: `step` trains one step and prints its seconds
//! and CPU-seconds, `gemm` prints the peak of products, `end` prints the peak memory and stops;
//! `bench/engine_train_peers.py` alternates it so with `PyTorch`.

use std::io::BufRead;

use patchwright_engine::bench::{
    TrainBench, TrainRow, cpu_seconds, gemm_peak_gflops, peak_bytes, reset_peak_bytes,
};
use patchwright_engine::{EngineOptions, Precision};

/// Threads of every contender.
const THREADS: usize = 2;

/// One step on a single sequence of each length with the embedded model's shape: time, peak memory,
/// and the line through the peaks.
fn long(lengths: &str, options: &EngineOptions) -> Result<(), Box<dyn std::error::Error>> {
    let mut points = Vec::new();
    for length in lengths.split(',') {
        let row = TrainRow::parse(&format!("train-1m-1x{length}-f32"))?;
        reset_peak_bytes();
        let seconds = TrainBench::new(&row, options)?.step()?.as_secs_f64();
        let mib = peak_bytes() as f64 / f64::from(1 << 20);
        println!("{length} tokens: {seconds:.1} s, peak {mib:.0} MiB");
        points.push((row.length as f64, mib * 1024.0));
    }
    let n = points.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let covariance: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let variance: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    if variance > 0.0 {
        println!("fitted slope: {:.1} KiB a token", covariance / variance);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("train-5.8m-8x512-f32", String::as_str);
    if name == "gemm" {
        for precision in [Precision::F32, Precision::Bf16] {
            let best = gemm_peak_gflops(precision, THREADS, 20);
            println!("{precision:?}: {best:.1} GFLOP/s");
        }
        return Ok(());
    }
    let options = EngineOptions { num_threads: THREADS, ..EngineOptions::default() };
    if name == "long" {
        let lengths = arguments.get(1).map_or("8192,32768", String::as_str);
        return long(lengths, &options);
    }
    let row = TrainRow::parse(name)?;
    let mut bench = TrainBench::new(&row, &options)?;
    if let Some(at) = arguments.iter().position(|a| a == "--steps") {
        let steps: usize = arguments.get(at + 1).ok_or("--steps takes a number")?.parse()?;
        let (mut best, mut least) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..steps {
            let cpu = cpu_seconds();
            best = best.min(bench.step()?.as_secs_f64());
            least = least.min(cpu_seconds() - cpu);
        }
        println!(
            "{name}: {:.0} tokens/s ({:.0} a CPU-second), peak {} MiB, weights {:016x}",
            row.tokens() as f64 / best,
            row.tokens() as f64 / least,
            peak_bytes() >> 20,
            bench.checksum()
        );
        return Ok(());
    }
    println!("ready {}", row.tokens());
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "step" => {
                let cpu = cpu_seconds();
                let seconds = bench.step()?.as_secs_f64();
                println!("{seconds} {}", cpu_seconds() - cpu);
            }
            "gemm" => println!("{}", gemm_peak_gflops(row.precision, THREADS, 3)),
            _ => break,
        }
    }
    println!("{}", peak_bytes());
    Ok(())
}
