//! How fast task sets are read and filtered:
//! `cargo run --release -p patchwright-tasks --example import -- INPUT OUT [VALIDATION]`.
//!
//! Without a validation report the input is imported, with one it is filtered by the reference's
//! rules. Run it under `/usr/bin/time -v` for the peak of its memory.

use std::path::PathBuf;
use std::time::Instant;

use patchwright_tasks::filter::{Filter, FilterRecipe, Selection, filter};
use patchwright_tasks::import::{Format, TaskReader, import};
use patchwright_tasks::validate::report::read_report;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [input, out, rest @ ..] = paths.as_slice() else {
        return Err("usage: import INPUT OUT [VALIDATION]".into());
    };
    let start = Instant::now();
    let reader = TaskReader::open(std::slice::from_ref(input), Format::Auto)?;
    let num_rows = match rest.first() {
        None => {
            let summary = import(reader, out, false, |_, _, _| true)?;
            println!("{}", serde_json::to_string(&summary)?);
            summary.num_read
        }
        Some(report) => {
            let verdicts = Some(read_report(report)?);
            let rules = Filter::new(FilterRecipe::default(), Selection::default(), verdicts)?;
            let summary = filter(reader, &rules, None, Some(out), |_, _, _| true)?;
            println!("{}", serde_json::to_string_pretty(&summary)?);
            summary.funnel.num_in
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    println!("{num_rows} rows in {seconds:.2} s: {:.0} rows/s", num_rows as f64 / seconds);
    Ok(())
}
