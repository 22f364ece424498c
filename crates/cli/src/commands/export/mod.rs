//! `patchwright export`: rollouts in the formats of others.

mod source;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use patchwright_core::{Rollout, Trajectory};
use patchwright_formats::{
    FormatError, Origin, Written, atif, chat, columns, file_stem, mini_swe_agent, native,
    predictions, swe_agent,
};
use serde::Serialize;

use crate::args::{Attempts, ExportRolloutsArgs, RolloutFormat};
use crate::error::CliError;
use crate::output;
use source::Source;

/// What was written, for `--json`.
#[derive(Serialize)]
struct Exported<'a> {
    schema_version: u32,
    out: &'a Path,
    num_rollouts: usize,
    /// Lines, rows or documents.
    num_rows: usize,
    left_out: LeftOut,
}

/// What was there and is not in what was written.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[expect(clippy::struct_field_names, reason = "counts are named so wherever JSON is printed")]
struct LeftOut {
    /// Attempts that were followed by others.
    num_earlier_attempts: usize,
    /// Rollouts in which nothing was said, where the format is about that.
    num_silent: usize,
    /// Branches, where the format has the main trajectory alone.
    num_branches: usize,
}

/// Reads, filters and writes, a rollout at a time where the format allows it.
pub fn run(args: &ExportRolloutsArgs) -> Result<ExitCode, CliError> {
    let out = args.out.display();
    if args.out.exists() {
        return Err(CliError::usage(format!("--out {out}: is there already; name a new path")));
    }
    let source = Source::open(&args.source, args.stage.as_deref())?;
    let last = match args.attempts {
        Attempts::Last if source.has_attempts => last_attempts(source.clone())?,
        _ => HashMap::new(),
    };
    let parent = match args.out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(|error| CliError::failed(format!("{out}: {error}")))?;
    // Written beside and moved: what is there is whole.
    let partial = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(parent)
        .map_err(|error| CliError::failed(format!("{}: {error}", parent.display())))?;
    let path = partial.path().join("out");
    let (mut left_out, mut num_chosen) = (LeftOut::default(), 0);
    let mut chosen = source.rollouts().filter_map(|sourced| {
        let (scope, rollout) = match sourced {
            Ok(sourced) => sourced,
            Err(error) => return Some(Err(error)),
        };
        if !is_chosen(&rollout, args) {
            return None;
        }
        if last.get(&place(scope, &rollout)).is_some_and(|last| *last > rollout.attempt) {
            left_out.num_earlier_attempts += 1;
            return None;
        }
        left_out.num_branches += rollout.branches.len();
        num_chosen += 1;
        Some(Ok(rollout))
    });
    let written = write(args, &path, &mut chosen)?;
    if written.num_rollouts == 0 {
        return Err(CliError::usage(format!(
            "{}: no rollout is left; look at --stage, --sibling, --instance, --solved and \
             --attempts",
            args.source.display()
        )));
    }
    std::fs::rename(&path, &args.out)
        .map_err(|error| CliError::failed(format!("{out}: {error}")))?;
    left_out.num_silent = num_chosen - written.num_rollouts;
    if args.format.has_branches() || args.format.is_predictions() {
        left_out.num_branches = 0;
    }
    let Written { num_rollouts, num_rows } = written;
    if args.json {
        let exported =
            Exported { schema_version: 1, out: &args.out, num_rollouts, num_rows, left_out };
        output::json(&exported)?;
    } else {
        tell(args, written, left_out);
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what was written and what was not.
fn tell(args: &ExportRolloutsArgs, written: Written, left_out: LeftOut) {
    let Written { num_rollouts, num_rows } = written;
    let rows = if num_rows == num_rollouts { String::new() } else { format!(" ({num_rows} rows)") };
    output::note(format!("Wrote {num_rollouts} rollouts{rows} to {}", args.out.display()));
    for (count, what) in [
        (left_out.num_earlier_attempts, "earlier attempts; --attempts all takes them"),
        (left_out.num_silent, "rollouts in which nothing was said"),
        (left_out.num_branches, "branches; atif, chat, parquet and jsonl have them"),
    ] {
        if count > 0 {
            output::note(format!("Left out: {count} {what}"));
        }
    }
}

/// Where a rollout's attempts are told from those of others: its source, instance, policy version
/// and sibling.
type Place = (usize, String, u64, u32);

fn place(scope: usize, rollout: &Rollout) -> Place {
    (scope, rollout.instance_id.clone(), rollout.policy_version.0, rollout.sibling)
}

/// The last attempt of each that has several.
fn last_attempts(source: Source) -> Result<HashMap<Place, u32>, CliError> {
    let mut last = HashMap::new();
    for sourced in source.rollouts() {
        let (scope, rollout) = sourced?;
        if rollout.attempt > 0 {
            let known = last.entry(place(scope, &rollout)).or_insert(0);
            *known = rollout.attempt.max(*known);
        }
    }
    Ok(last)
}

fn is_chosen(rollout: &Rollout, args: &ExportRolloutsArgs) -> bool {
    args.sibling.is_none_or(|sibling| rollout.sibling == sibling)
        && (!args.solved || rollout.is_solved())
        && (args.instances.is_empty() || args.instances.contains(&rollout.instance_id))
}

type Rollouts<'a> = &'a mut dyn Iterator<Item = Result<Rollout, CliError>>;

/// Writes `path` and says how many.
fn write(args: &ExportRolloutsArgs, path: &Path, rollouts: Rollouts) -> Result<Written, CliError> {
    let origin = Origin {
        agent_name: "patchwright".to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        model_name: args.model_name.clone(),
    };
    if args.format.is_directory() {
        return documents(args, path, rollouts, &origin);
    }
    let file = File::create_new(path).map_err(|error| failed(path, error))?;
    let mut out = BufWriter::new(file);
    let written = match args.format {
        RolloutFormat::Parquet => columns::write(&mut out, rollouts)?,
        RolloutFormat::Jsonl => lines(&mut out, rollouts, |out, rollout| {
            native::write(out, [rollout]).map_err(|error| failed(path, error))?;
            Ok(Written { num_rollouts: 1, num_rows: 1 })
        })?,
        RolloutFormat::Chat => {
            lines(&mut out, rollouts, |out, rollout| Ok(chat::write(out, path, [rollout])?))?
        }
        _ => {
            let rollouts = without_trajectories(rollouts)?;
            let text = match args.format {
                RolloutFormat::Preds => pretty(&predictions::object(&rollouts, &origin)?),
                RolloutFormat::PredsJsonl => predictions::lines(&rollouts, &origin)?,
                _ => pretty(&predictions::report(&rollouts)?),
            };
            out.write_all(text.as_bytes()).map_err(|error| failed(path, error))?;
            Written { num_rollouts: rollouts.len(), num_rows: rollouts.len() }
        }
    };
    let file = out.into_inner().map_err(|error| failed(path, error.into_error()))?;
    file.sync_all().map_err(|error| failed(path, error))?;
    Ok(written)
}

fn lines<W: Write>(
    out: &mut W,
    rollouts: Rollouts,
    line: impl Fn(&mut dyn Write, &Rollout) -> Result<Written, CliError>,
) -> Result<Written, CliError> {
    let mut sum = Written::default();
    for rollout in rollouts {
        let written = line(out, &rollout?)?;
        sum.num_rollouts += written.num_rollouts;
        sum.num_rows += written.num_rows;
    }
    Ok(sum)
}

/// A document a rollout. Two of one name are refused: one would be lost.
fn documents(
    args: &ExportRolloutsArgs,
    dir: &Path,
    rollouts: Rollouts,
    origin: &Origin,
) -> Result<Written, CliError> {
    std::fs::create_dir(dir).map_err(|error| failed(dir, error))?;
    let mut num_rollouts = 0;
    for rollout in rollouts {
        let rollout = rollout?;
        let (document, extension) = match args.format {
            RolloutFormat::Atif => (atif::document(&rollout, origin, args.prompt_ids), "json"),
            RolloutFormat::SweAgent => (swe_agent::document(&rollout), "traj"),
            _ => (mini_swe_agent::document(&rollout, origin), "traj.json"),
        };
        let path = dir.join(format!("{}.{extension}", file_stem(&rollout)));
        let mut file = File::create_new(&path).map_err(|error| {
            let reason = if error.kind() == std::io::ErrorKind::AlreadyExists {
                "two rollouts have this name; of a training run choose one stage with --stage"
                    .to_owned()
            } else {
                error.to_string()
            };
            CliError::failed(format!("{}: {reason}", file_stem(&rollout)))
        })?;
        file.write_all(pretty(&document).as_bytes()).map_err(|error| failed(&path, error))?;
        num_rollouts += 1;
    }
    Ok(Written { num_rollouts, num_rows: num_rollouts })
}

/// Patches and grades are all that predictions need.
fn without_trajectories(rollouts: Rollouts) -> Result<Vec<Rollout>, CliError> {
    let bare =
        |rollout| Rollout { trajectory: Trajectory::default(), branches: Vec::new(), ..rollout };
    rollouts.map(|rollout| rollout.map(bare)).collect()
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

fn failed(path: &Path, error: std::io::Error) -> CliError {
    FormatError::Io { path: PathBuf::from(path), error }.into()
}

impl From<FormatError> for CliError {
    fn from(error: FormatError) -> Self {
        Self::failed(error)
    }
}

impl From<patchwright_formats::columns::ParquetError> for CliError {
    fn from(error: patchwright_formats::columns::ParquetError) -> Self {
        Self::failed(error)
    }
}
