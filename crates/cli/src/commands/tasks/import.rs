//! `patchwright tasks import` and `export`.

use std::process::ExitCode;

use patchwright_tasks::harbor;
use patchwright_tasks::import::{
    BadRow, Format, ImportSummary, TaskReader, import as import_tasks,
};

use super::meter::Meter;
use crate::args::{ExportArgs, ImportArgs, InputFormat, OutputFormat};
use crate::error::CliError;
use crate::numbers::count;
use crate::{output, signals};

/// Bad rows that are told one by one.
const NUM_TOLD: usize = 20;

/// `tasks import`.
pub fn import(args: &ImportArgs) -> Result<ExitCode, CliError> {
    let cancel = signals::cancel_token(|| output::note("Stopping; nothing is written."))?;
    let reader = TaskReader::open(&args.inputs, format(args.format)).map_err(CliError::usage)?;
    let mut meter = Meter::to_stderr();
    let summary = import_tasks(reader, &args.out, args.strict, |done, total, summary| {
        meter.update(done, total, || rows(summary.num_read));
        !cancel.is_cancelled()
    })?;
    drop(meter);
    tell(&summary.problems, summary.num_bad + summary.num_duplicates + summary.num_broken_files);
    if args.json {
        output::json(&summary)?;
    }
    if cancel.is_cancelled() {
        return Err(CliError::Interrupted);
    }
    output::note(sentence(&summary, &args.out.display().to_string()));
    let good = !summary.stopped && summary.num_bad == 0 && summary.num_broken_files == 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `tasks export`.
pub fn export(args: &ExportArgs) -> Result<ExitCode, CliError> {
    let OutputFormat::Harbor = args.format;
    let cancel = signals::cancel_token(|| output::note("Stopping."))?;
    let mut reader = TaskReader::open(&args.inputs, Format::Auto).map_err(CliError::usage)?;
    let mut meter = Meter::to_stderr();
    let (mut num_written, mut problems, mut num_problems) = (0, Vec::new(), 0);
    while let Some(item) = reader.next() {
        if cancel.is_cancelled() {
            return Err(CliError::Interrupted);
        }
        match item {
            Ok(instance) => {
                harbor::write_task(&args.out, &instance).map_err(CliError::failed)?;
                num_written += 1;
            }
            Err(bad) => {
                num_problems += 1;
                if problems.len() < NUM_TOLD {
                    problems.push(bad);
                }
            }
        }
        let (done, total) = reader.progress();
        meter.update(done, total, || format!("{num_written} tasks written"));
    }
    drop(meter);
    tell(&problems, num_problems);
    output::note(format!(
        "Wrote {} tasks to {}",
        count(f64::from(num_written)),
        args.out.display()
    ));
    Ok(if num_problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn format(format: InputFormat) -> Format {
    match format {
        InputFormat::Auto => Format::Auto,
        InputFormat::Jsonl => Format::Jsonl,
        InputFormat::Json => Format::Json,
        InputFormat::Parquet => Format::Parquet,
        InputFormat::Harbor => Format::Harbor,
    }
}

/// Says what was wrong with rows, the first of many.
pub fn tell(problems: &[BadRow], num: usize) {
    for bad in problems.iter().take(NUM_TOLD) {
        output::error(bad);
    }
    if num > NUM_TOLD {
        output::note(format!("and {} more (--json lists them)", count((num - NUM_TOLD) as f64)));
    }
}

fn rows(num: usize) -> String {
    format!("{} rows", count(num as f64))
}

fn sentence(summary: &ImportSummary, out: &str) -> String {
    let number = |num: usize| count(num as f64);
    let mut text = format!("{} rows read, ", number(summary.num_read));
    if summary.stopped {
        text += &format!("stopped at a bad one: {out} is not written");
        return text;
    }
    text += &format!("{} written to {out}", number(summary.num_written));
    let counts = [
        (summary.num_bad, "bad"),
        (summary.num_duplicates, "duplicates left out"),
        (summary.num_broken_files, "files broken"),
        (summary.num_without_environment, "without image and test command (they cannot be run)"),
    ];
    for (num, what) in counts {
        if num > 0 {
            text += &format!(", {} {what}", number(num));
        }
    }
    text
}
