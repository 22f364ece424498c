//! `patchwright bench engine`: training steps, sampling rounds, and the peak of matrix products.

use std::path::Path;
use std::process::ExitCode;

use patchwright_engine::bench::{
    SampleBench, SampleRow, TrainBench, TrainRow, gemm_peak_gflops, peak_bytes, reset_peak_bytes,
};
use patchwright_engine::{EngineOptions, Precision};
use serde::Serialize;

use crate::args::BenchEngineArgs;
use crate::error::CliError;
use crate::{numbers, output, table};

/// Rows that are measured unless others are named.
const ROWS: [&str; 11] = [
    "train-5.8m-8x512-f32",
    "train-5.8m-8x512-bf16",
    "train-5.8m-1x2048-f32",
    "train-5.8m-1x8192-f32",
    "train-smollm2-1x2048-f32",
    "sample-embedded-64",
    "sample-embedded-64-bf16",
    "sample-smollm2-1-f32",
    "sample-smollm2-1-bf16",
    "sample-smollm2-16-f32",
    "sample-smollm2-16-bf16",
];

/// Rounds of products, of which the best counts.
const GEMM_ROUNDS: usize = 10;

/// Best of a row's steps.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    tokens_per_second: f64,
    peak_bytes: u64,
    /// Of training: what is computed again does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    gflops: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Peak {
    f32: f64,
    bf16: f64,
}

/// `--json`.
#[derive(Debug, Serialize)]
struct Bench {
    rows: Vec<Row>,
    gemm_peak_gflops: Peak,
}

/// What a row's name asks for.
enum Wanted {
    Train(TrainRow),
    Sample(SampleRow),
}

/// Runs the bench.
pub fn engine(args: &BenchEngineArgs) -> Result<ExitCode, CliError> {
    let names = super::chosen(&args.rows, &ROWS);
    let wanted = names.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
    let options = super::engine_options(args.threads);
    output::note("peak of matrix products");
    let peak = |precision| round(gemm_peak_gflops(precision, options.num_threads, GEMM_ROUNDS));
    let gemm_peak_gflops = Peak { f32: peak(Precision::F32), bf16: peak(Precision::Bf16) };
    let mut rows = Vec::new();
    for (name, wanted) in names.iter().zip(wanted) {
        output::note(name);
        reset_peak_bytes();
        let (tokens_per_second, gflops) = match wanted {
            Wanted::Train(row) => {
                let rate = train(&row, &options, args.steps)?;
                (rate, Some(round(rate * row.operations_per_token() / 1e9)))
            }
            Wanted::Sample(row) => {
                (sample(&row, args.base.as_deref(), &options, args.steps)?, None)
            }
        };
        let tokens_per_second = round(tokens_per_second);
        let name = (*name).to_owned();
        rows.push(Row { name, tokens_per_second, peak_bytes: peak_bytes(), gflops });
    }
    let bench = Bench { rows, gemm_peak_gflops };
    if args.json {
        output::json(&bench)?;
    } else {
        tell(&bench)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(name: &str) -> Result<Wanted, CliError> {
    let wanted = if name.starts_with("sample") {
        SampleRow::parse(name).map(Wanted::Sample)
    } else {
        TrainRow::parse(name).map(Wanted::Train)
    };
    wanted.map_err(|error| CliError::usage(format!("--rows: {error}")))
}

/// Tokens a second of the best step. The first warms up.
fn train(row: &TrainRow, options: &EngineOptions, steps: usize) -> Result<f64, CliError> {
    let mut bench = TrainBench::new(row, options).map_err(CliError::failed)?;
    let mut best = 0.0f64;
    for _ in 0..=steps {
        let seconds = bench.step().map_err(CliError::failed)?.as_secs_f64();
        best = best.max(row.tokens() as f64 / seconds);
    }
    Ok(best)
}

/// Tokens a second of the best round. The first warms up.
fn sample(
    row: &SampleRow,
    base: Option<&Path>,
    options: &EngineOptions,
    rounds: usize,
) -> Result<f64, CliError> {
    let dir = base.filter(|_| row.shape == "1m");
    let mut bench = SampleBench::new(row, dir, options).map_err(CliError::failed)?;
    let mut best = 0.0f64;
    for _ in 0..=rounds {
        let (time, tokens) = bench.round().map_err(CliError::failed)?;
        best = best.max(tokens as f64 / time.as_secs_f64());
    }
    Ok(best)
}

/// One digit behind the point.
fn round(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

fn tell(bench: &Bench) -> Result<(), CliError> {
    let rows = bench.rows.iter().map(|row| {
        vec![
            row.name.clone(),
            numbers::count(row.tokens_per_second),
            format!("{}", row.peak_bytes >> 20),
            row.gflops.map_or("-".to_owned(), |gflops| format!("{gflops:.1}")),
        ]
    });
    output::data(&table::table(&["Row", "Tokens/s", "Peak MiB", "GFLOP/s"], &[1, 2, 3], rows))?;
    let Peak { f32, bf16 } = bench.gemm_peak_gflops;
    output::note(format!("Matrix products alone: {f32} GFLOP/s in f32, {bf16} in bf16."));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_meaning() {
        for name in ROWS {
            assert!(parse(name).is_ok(), "{name}");
        }
        assert!(parse("train").is_err() && parse("sample-x").is_err());
    }

    /// Other programs read this.
    #[test]
    fn the_shape_of_the_json() {
        let row =
            |gflops| Row { name: "r".to_owned(), tokens_per_second: 1.5, peak_bytes: 7, gflops };
        let gemm_peak_gflops = Peak { f32: 2.0, bf16: 3.0 };
        let bench = Bench { rows: vec![row(Some(4.0)), row(None)], gemm_peak_gflops };
        let expected = serde_json::json!({
            "rows": [
                {"name": "r", "tokens_per_second": 1.5, "peak_bytes": 7, "gflops": 4.0},
                {"name": "r", "tokens_per_second": 1.5, "peak_bytes": 7},
            ],
            "gemm_peak_gflops": {"f32": 2.0, "bf16": 3.0},
        });
        assert_eq!(serde_json::to_value(&bench).unwrap(), expected);
    }
}
