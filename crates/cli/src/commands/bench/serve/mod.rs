//! `patchwright bench serve`: what the way over our own servers costs, each beside the way without
//! it, in turn, in one run.

mod gateway;
mod wire;

use std::process::ExitCode;
use std::sync::Arc;

use patchwright_engine::bench::{SampleRow, TrainRow};
use patchwright_serve::{Guard, Metrics, Router, Server, ServerLimits, Work};
use serde::Serialize;

use self::gateway::GatewayFigures;
use self::wire::WireFigures;
use crate::args::BenchServeArgs;
use crate::error::CliError;
use crate::{numbers, output, table};

/// Rows that are measured unless others are named.
const ROWS: [&str; 3] = [GATEWAY, "train-5.8m-8x512-f32", "sample-embedded-64"];

const GATEWAY: &str = "gateway";

/// What a row's name asks for.
enum Wanted {
    Gateway,
    Train(TrainRow),
    Sample(SampleRow),
}

/// `--json`.
#[derive(Debug, Default, Serialize)]
struct Bench {
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<GatewayFigures>,
    wire: Vec<WireFigures>,
}

/// Runs the bench.
pub fn run(args: &BenchServeArgs) -> Result<ExitCode, CliError> {
    let names = super::chosen(&args.rows, &ROWS);
    let wanted = names.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
    let options = super::engine_options(args.threads);
    let mut bench = Bench::default();
    for (name, wanted) in names.iter().zip(wanted) {
        output::note(name);
        match wanted {
            Wanted::Gateway => {
                bench.gateway = Some(gateway::measure(args.requests, args.wait_ms)?);
            }
            Wanted::Train(row) => bench.wire.push(wire::train(name, &row, &options, args.steps)?),
            Wanted::Sample(row) => {
                bench.wire.push(wire::sample(name, &row, &options, args.steps)?);
            }
        }
    }
    if args.json {
        output::json(&bench)?;
    } else {
        tell(&bench)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(name: &str) -> Result<Wanted, CliError> {
    let wanted = if name == GATEWAY {
        Ok(Wanted::Gateway)
    } else if name.starts_with("sample") {
        SampleRow::parse(name).map(Wanted::Sample)
    } else {
        TrainRow::parse(name).map(Wanted::Train)
    };
    wanted.map_err(|error| CliError::usage(format!("--rows: {error}; or {GATEWAY}")))
}

/// Routes, served on a free port of the loopback as `patchwright serve` would.
fn host(
    make: impl FnOnce(Work, Arc<Metrics>) -> Result<Router, CliError>,
) -> Result<Server, CliError> {
    let (limits, metrics) = (ServerLimits::default(), Arc::new(Metrics::default()));
    let routes = make(Work::new(limits.max_samples), Arc::clone(&metrics))?;
    let router = Guard::new(None, limits, metrics).protect(routes);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    Server::start(address, None, limits, router).map_err(CliError::failed)
}

fn tell(bench: &Bench) -> Result<(), CliError> {
    if let Some(figures) = &bench.gateway {
        let row = |name: &str, q: super::Quantiles| {
            vec![name.to_owned(), format!("{:.2}", q.p50), format!("{:.2}", q.p99)]
        };
        let rows = [row("engine's server", figures.direct_ms), row("gateway", figures.through_ms)];
        output::data(&table::table(&["Chat completion, ms", "p50", "p99"], &[1, 2], rows))?;
        output::note(format!(
            "The gateway adds {:.2} ms at p50, over {} requests each way, prompts of up to {} tokens.",
            figures.added_p50_ms, figures.num_requests, figures.num_prompt_tokens_max
        ));
    }
    if !bench.wire.is_empty() {
        let rows = bench.wire.iter().map(|row| {
            vec![
                row.name.clone(),
                numbers::count(row.engine_tokens_per_second),
                numbers::count(row.wire_tokens_per_second),
                format!("{:.3}", row.ratio),
            ]
        });
        let header = ["Tokens/s, best", "Engine", "Over the wire", "Ratio, median"];
        output::data(&table::table(&header, &[1, 2, 3], rows))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::gateway::GatewayFigures;
    use super::wire::WireFigures;
    use super::{Bench, ROWS, parse};
    use crate::commands::bench::Quantiles;

    #[test]
    fn every_row_has_a_meaning() {
        for name in ROWS {
            assert!(parse(name).is_ok(), "{name}");
        }
        assert!(parse("train").is_err() && parse("gateways").is_err());
    }

    /// Other programs read this.
    #[test]
    fn the_shape_of_the_json() {
        let q = |p50| Quantiles { p50, p99: 30.0 };
        let gateway = GatewayFigures {
            direct_ms: q(20.5),
            through_ms: q(21.25),
            added_p50_ms: 0.75,
            num_requests: 10,
            num_prompt_tokens_max: 900,
        };
        let wire = WireFigures {
            name: "r".to_owned(),
            engine_tokens_per_second: 100.0,
            wire_tokens_per_second: 95.0,
            ratio: 0.95,
            largest_difference: 0.0,
        };
        let bench = Bench { gateway: Some(gateway), wire: vec![wire] };
        let expected = serde_json::json!({
            "gateway": {
                "direct_ms": {"p50": 20.5, "p99": 30.0},
                "through_ms": {"p50": 21.25, "p99": 30.0},
                "added_p50_ms": 0.75,
                "num_requests": 10,
                "num_prompt_tokens_max": 900,
            },
            "wire": [{
                "name": "r", "engine_tokens_per_second": 100.0, "wire_tokens_per_second": 95.0,
                "ratio": 0.95, "largest_difference": 0.0,
            }],
        });
        assert_eq!(serde_json::to_value(&bench).unwrap(), expected);
    }

    /// The figures are checked as they are made: both ways draw the same.
    #[test]
    fn each_row_is_measured() {
        let options = patchwright_engine::EngineOptions { num_threads: 1, ..Default::default() };
        let figures = super::gateway::measure(24, 1).unwrap();
        assert!(figures.direct_ms.p50 >= 1.0 && figures.num_prompt_tokens_max > 1000);
        let row = patchwright_engine::bench::TrainRow::parse("train-1m-2x8-f32").unwrap();
        let trained = super::wire::train("t", &row, &options, 2).unwrap();
        assert_eq!(trained.largest_difference.to_bits(), 0f32.to_bits());
        let row = patchwright_engine::bench::SampleRow::parse("sample-embedded-2").unwrap();
        let row = patchwright_engine::bench::SampleRow { new: 4, ..row };
        let drawn = super::wire::sample("s", &row, &options, 2).unwrap();
        assert!(drawn.ratio > 0.0 && drawn.largest_difference.to_bits() == 0f32.to_bits());
    }
}
