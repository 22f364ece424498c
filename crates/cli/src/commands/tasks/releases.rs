//! `patchwright tasks from-releases`.

use std::path::Path;
use std::process::ExitCode;

use patchwright_tasks::releases::{PairReport, ReleaseOptions, ReleasePair, build_pairs};
use patchwright_tasks::rows::write_task_set;

use super::real::{Display, cache_dir, limits, provider};
use crate::args::FromReleasesArgs;
use crate::error::CliError;
use crate::{output, table};

/// Makes tasks of release pairs.
pub fn run(args: &FromReleasesArgs) -> Result<ExitCode, CliError> {
    let pairs = pairs(args)?;
    let options = ReleaseOptions {
        cache_dir: cache_dir(&args.real)?,
        repeats: args.repeats,
        jobs: args.real.jobs,
        limits: limits(&args.real),
    };
    let provider = provider(&args.real)?;
    let display = Display::start()?;
    let results = build_pairs(&pairs, provider.as_ref(), &options, &display);
    let stopped = display.finish();
    let results = results.map_err(CliError::failed)?;
    stopped?;
    let num = write_task_set(&args.out, results.iter().filter_map(|result| result.task.as_ref()))
        .map_err(CliError::failed)?;
    let reports: Vec<&PairReport> = results.iter().map(|result| &result.report).collect();
    if args.real.json {
        reports.iter().try_for_each(output::json_line)?;
    } else {
        output::data(&page(&reports))?;
    }
    output::note(format!("Wrote {num} of {} tasks to {}", pairs.len(), args.out.display()));
    Ok(if num > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn pairs(args: &FromReleasesArgs) -> Result<Vec<ReleasePair>, CliError> {
    let pairs = match (&args.pairs, &args.package, &args.buggy, &args.fixed) {
        (Some(path), ..) => read(path)?,
        (None, Some(package), Some(buggy), Some(fixed)) => vec![ReleasePair {
            package: package.clone(),
            buggy: buggy.clone(),
            fixed: fixed.clone(),
            ..ReleasePair::default()
        }],
        _ => return Err(CliError::usage("name PACKAGE BUGGY FIXED, or a file with --pairs FILE")),
    };
    for pair in &pairs {
        pair.check().map_err(CliError::usage)?;
    }
    Ok(pairs)
}

fn read(path: &Path) -> Result<Vec<ReleasePair>, CliError> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("--pairs {name}: {error}")))?;
    let mut pairs = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let pair = serde_json::from_str(line).map_err(|error| {
            let line = index + 1;
            CliError::usage(format!(
                "--pairs {name}:{line}: {error}; a line is an object with \
                package, buggy and fixed"
            ))
        })?;
        pairs.push(pair);
    }
    if pairs.is_empty() {
        return Err(CliError::usage(format!("--pairs {name}: there is no pair in it")));
    }
    Ok(pairs)
}

fn page(reports: &[&PairReport]) -> String {
    let rows = reports.iter().map(|report| {
        vec![
            report.package.clone(),
            format!("{} -> {}", report.buggy, report.fixed),
            report.fail_to_pass.to_string(),
            report.fail_to_pass_explicit.to_string(),
            report.pass_to_pass.to_string(),
            report.fail_on_fixed.to_string(),
            format!("{:.1}", report.seconds),
            report.reason.clone(),
        ]
    });
    let header = [
        "Package",
        "Releases",
        "FAIL_TO_PASS",
        "explicit",
        "PASS_TO_PASS",
        "fail on fixed",
        "Seconds",
        "",
    ];
    table::table(&header, &[2, 3, 4, 5, 6], rows)
}
