//! `patchwright tasks validate`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use patchwright_agent::{Grader, GraderOptions};
use patchwright_core::{RepoSource, SandboxProvider, TaskInstance};
use patchwright_tasks::rows::write_task_set;
use patchwright_tasks::validate::repeat::{Grading, ValidateOptions, validate_tasks};
use patchwright_tasks::validate::report::{TaskVerdict, Verdict, write_report};

use super::real::{Display, cache_dir, limits, provider};
use crate::args::ValidateArgs;
use crate::error::CliError;
use crate::{output, table};

/// The grader of training, as validation asks it.
struct RealGrading {
    grader: Grader,
    fingerprint: String,
}

impl Grading for RealGrading {
    fn run(
        &self,
        task: &TaskInstance,
        repo: &RepoSource,
        patch: &str,
    ) -> Result<BTreeMap<String, bool>, String> {
        self.grader.grade(task, repo, patch).map(|grade| grade.results).map_err(|e| e.to_string())
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// Validates a task set.
pub fn run(args: &ValidateArgs) -> Result<ExitCode, CliError> {
    let tasks = super::read(&args.tasks)?;
    let limits = limits(&args.real);
    let options = GraderOptions {
        timeout: limits.timeout,
        limits: limits.sandbox,
        ..GraderOptions::default()
    };
    let provider: std::sync::Arc<dyn SandboxProvider> = provider(&args.real)?;
    // Another program may grade in another way.
    let fingerprint = format!("{} {options:?}", env!("CARGO_PKG_VERSION"));
    let grading = RealGrading { grader: Grader::new(provider, options), fingerprint };
    let options = ValidateOptions {
        repeats: args.repeats,
        jobs: args.real.jobs,
        cache_dir: cache_dir(&args.real)?,
    };
    let display = Display::start()?;
    let verdicts = validate_tasks(&tasks, &grading, &options, &display);
    display.finish()?;
    let verdicts = verdicts.map_err(CliError::failed)?;
    if let Some(path) = &args.report {
        write_report(path, &verdicts).map_err(CliError::failed)?;
    }
    let is_valid = |verdict: &&TaskVerdict| verdict.verdict == Verdict::Valid;
    let num_valid = verdicts.iter().filter(is_valid).count();
    if let Some(path) = &args.out {
        let valid = tasks.iter().zip(&verdicts).filter(|(_, verdict)| is_valid(verdict));
        let num = write_task_set(path, valid.map(|(task, _)| task)).map_err(CliError::failed)?;
        output::note(format!("Wrote {num} valid tasks to {}", path.display()));
    }
    if args.real.json {
        verdicts.iter().try_for_each(output::json_line)?;
    } else {
        output::data(&page(&verdicts))?;
    }
    output::note(format!("{num_valid} of {} tasks are valid", tasks.len()));
    Ok(if num_valid == tasks.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn page(verdicts: &[TaskVerdict]) -> String {
    let rows = verdicts.iter().map(|verdict| {
        vec![
            verdict.instance_id.clone(),
            verdict.verdict.name().replace('_', " "),
            verdict.num_repeats.to_string(),
            verdict.num_tests.to_string(),
            verdict.flaky_tests.len().to_string(),
            format!("{:.1}", verdict.seconds),
            verdict.reason.lines().next().unwrap_or_default().to_owned(),
        ]
    });
    let header = ["Instance", "Verdict", "Repeats", "Tests", "Flaky", "Seconds", ""];
    table::table(&header, &[2, 3, 4, 5], rows)
}
