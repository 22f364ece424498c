//! `patchwright sandbox list` and `reap`: the lease registry.

use std::process::ExitCode;
use std::time::Duration;

use patchwright_sandbox::{LeaseError, Leftovers, Living, Registry};
use serde::Serialize;

use crate::args::{SandboxListArgs, SandboxReapArgs};
use crate::error::CliError;
use crate::{numbers, output, table};

#[derive(Serialize)]
struct Listing {
    schema_version: u32,
    sandboxes: Vec<Living>,
    /// Leases that are not believed.
    problems: Vec<String>,
}

/// Lists the sandboxes that live.
pub fn list(args: &SandboxListArgs) -> Result<ExitCode, CliError> {
    let (mut sandboxes, mut problems) = (Vec::new(), Vec::new());
    for registry in Registry::all() {
        let (living, refused) = registry.living().map_err(CliError::failed)?;
        sandboxes.extend(living);
        problems.extend(refused.iter().map(ToString::to_string));
    }
    let code = if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        output::json(&Listing { schema_version: 1, sandboxes, problems })?;
        return Ok(code);
    }
    if sandboxes.is_empty() {
        output::note("No sandbox of this user lives.");
    } else {
        let rows = sandboxes.iter().map(|one| {
            vec![
                one.id.clone(),
                numbers::duration(Duration::from_secs_f64(one.age_seconds)),
                one.limits.clone(),
                one.owner.pid.to_string(),
                one.owner.command.clone(),
            ]
        });
        let header = ["Sandbox", "Age", "Limits", "Owner", "Command"];
        output::data(&table::table(&header, &[1, 3], rows))?;
    }
    tell(&problems);
    Ok(code)
}

#[derive(Serialize)]
struct Report {
    schema_version: u32,
    dry_run: bool,
    /// What each dead owner left.
    dead: Vec<Leftovers>,
    /// Owners that live and were left alone.
    num_living: usize,
    problems: Vec<String>,
}

/// Removes what killed programs have left.
pub fn reap(args: &SandboxReapArgs) -> Result<ExitCode, CliError> {
    let mut report = Report {
        schema_version: 1,
        dry_run: args.dry_run,
        dead: Vec::new(),
        num_living: 0,
        problems: Vec::new(),
    };
    for registry in Registry::all() {
        let reaped = registry.reap(args.dry_run).map_err(CliError::failed)?;
        report.dead.extend(reaped.dead);
        report.num_living += reaped.num_living;
        report.problems.extend(reaped.problems.iter().map(LeaseError::to_string));
    }
    let failures = report.dead.iter().any(|left| !left.failures.is_empty());
    let code =
        if failures || !report.problems.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    if args.json {
        output::json(&report)?;
        return Ok(code);
    }
    if !report.dead.is_empty() {
        let rows = report.dead.iter().map(|left| {
            vec![
                left.lease.clone(),
                left.owner_pid.to_string(),
                left.num_sandboxes.to_string(),
                left.processes.len().to_string(),
                left.cgroups.len().to_string(),
                left.mounts.len().to_string(),
                left.directories.len().to_string(),
            ]
        });
        let header =
            ["Lease", "Owner", "Sandboxes", "Processes", "Cgroups", "Mounts", "Directories"];
        output::data(&table::table(&header, &[1, 2, 3, 4, 5, 6], rows))?;
    }
    let living = match report.num_living {
        0 => String::new(),
        1 => "; 1 provider lives and was left alone".to_owned(),
        n => format!("; {n} providers live and were left alone"),
    };
    let verb = if args.dry_run { "would be removed" } else { "removed" };
    output::note(match report.dead.len() {
        0 => format!("Nothing was left behind{living}."),
        1 => format!("What 1 dead provider left {verb}{living}."),
        n => format!("What {n} dead providers left {verb}{living}."),
    });
    for left in &report.dead {
        tell(&left.failures);
    }
    tell(&report.problems);
    Ok(code)
}

fn tell(problems: &[String]) {
    for problem in problems {
        output::error(problem);
    }
}
