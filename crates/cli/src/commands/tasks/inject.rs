//! `patchwright tasks inject`.

use std::process::ExitCode;

use patchwright_tasks::impossible::mix_impossible;
use patchwright_tasks::inject::InjectOptions;
use patchwright_tasks::inject::packages::{
    PackageOptions, PackageReport, PackageSpec, inject_packages,
};
use patchwright_tasks::rows::write_task_set;

use super::real::{Display, cache_dir, limits, provider};
use crate::args::InjectArgs;
use crate::error::CliError;
use crate::{output, table};

/// Makes tasks of bugs in real packages.
pub fn run(args: &InjectArgs) -> Result<ExitCode, CliError> {
    if args.num == 0 || args.bugs == 0 {
        return Err(CliError::usage("--num and --bugs must be above 0"));
    }
    if !(0.0..=1.0).contains(&args.impossible) {
        return Err(CliError::usage("--impossible is a share between 0 and 1"));
    }
    let specs: Vec<PackageSpec> = args
        .packages
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, String>>()
        .map_err(CliError::usage)?;
    let options = PackageOptions {
        cache_dir: cache_dir(&args.real)?,
        num: args.num,
        num_bugs: args.bugs,
        seed: args.seed,
        inject: InjectOptions::default(),
        jobs: args.real.jobs,
        limits: limits(&args.real),
    };
    let provider = provider(&args.real)?;
    let display = Display::start()?;
    let made = inject_packages(&specs, provider.as_ref(), &options, &display);
    display.finish()?;
    let (mut tasks, reports) = made.map_err(CliError::failed)?;
    let num_impossible = mix_impossible(&mut tasks, args.impossible, args.seed);
    let num = write_task_set(&args.out, &tasks).map_err(CliError::failed)?;
    if args.real.json {
        reports.iter().try_for_each(output::json_line)?;
    } else {
        output::data(&page(&reports))?;
    }
    output::note(format!("Wrote {num} tasks to {}", args.out.display()));
    if args.impossible > 0.0 {
        output::note(format!("{num_impossible} of them are canaries"));
    }
    if num < args.num {
        output::note(format!("The packages give no more than {num}"));
    }
    Ok(if num > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn page(reports: &[PackageReport]) -> String {
    let rows = reports.iter().map(|report| {
        vec![
            report.package.clone(),
            report.version.clone(),
            report.num_tests.to_string(),
            report.num_reached.to_string(),
            report.num_tried.to_string(),
            report.num_instances.to_string(),
            format!("{:.0}", report.seconds_prepare),
            format!("{:.0}", report.seconds_run),
            format!("{:.0}", report.per_minute()),
            report.reason.clone(),
        ]
    });
    let header = [
        "Package",
        "Version",
        "Tests",
        "Places",
        "Tried",
        "Tasks",
        "Prepare s",
        "Run s",
        "Tasks/min",
        "",
    ];
    table::table(&header, &[2, 3, 4, 5, 6, 7, 8], rows)
}
