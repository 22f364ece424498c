//! `patchwright bench control`: what rollouts cost beside engine and sandboxes.

use std::process::ExitCode;
use std::time::Duration;

use patchwright_train::bench::ControlBench;

use crate::args::BenchControlArgs;
use crate::error::CliError;
use crate::{output, table};

/// Measures and shows the figures.
pub fn run(args: &BenchControlArgs) -> Result<ExitCode, CliError> {
    let bench = ControlBench {
        num_episodes: args.episodes,
        num_turns: args.turns,
        engine_latency: (Duration::from_millis(args.min_ms), Duration::from_millis(args.max_ms)),
        ..ControlBench::default()
    };
    if args.min_ms > args.max_ms {
        return Err(CliError::usage("--min-ms is above --max-ms"));
    }
    let figures = bench.run()?;
    if args.json {
        output::json(&figures)?;
    } else {
        let rows = [
            ("Episodes", figures.num_episodes.to_string()),
            ("In flight at once, at most", figures.num_in_flight_max.to_string()),
            ("Turns", figures.num_turns.to_string()),
            ("Wall clock", format!("{:.1} s", figures.wall_seconds)),
            ("CPU a turn", format!("{:.3} ms", figures.cpu_ms_per_turn)),
            ("Memory an episode", format!("{:.0} kB", figures.memory_bytes_per_episode / 1e3)),
            ("Its tokens, beside", format!("{:.0} kB", figures.token_bytes_per_episode / 1e3)),
        ];
        let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
        output::data(&table::table(&["Control plane", ""], &[1], rows))?;
    }
    Ok(ExitCode::SUCCESS)
}
