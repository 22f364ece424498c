//! `patchwright export`: rollouts in the formats of others.

mod source;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use patchwright_core::{Rollout, Trajectory};
use patchwright_formats::{
    FormatError, Origin, atif, chat, columns, file_stem, mini_swe_agent, native, predictions,
    swe_agent,
};
use serde::Serialize;

use crate::args::{ExportRolloutsArgs, RolloutFormat};
use crate::error::CliError;
use crate::output;
use source::Source;

/// What was written, for `--json`.
#[derive(Serialize)]
struct Exported<'a> {
    schema_version: u32,
    out: &'a Path,
    num_rollouts: usize,
}

/// Reads, filters and writes, a rollout at a time where the format allows it.
pub fn run(args: &ExportRolloutsArgs) -> Result<ExitCode, CliError> {
    let out = args.out.display();
    if args.out.exists() {
        return Err(CliError::usage(format!("--out {out}: is there already; name a new path")));
    }
    let source = Source::open(&args.source, args.stage.as_deref())?;
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
    let mut chosen = source.rollouts().filter(|rollout| match rollout {
        Ok(rollout) => is_chosen(rollout, args),
        Err(_) => true,
    });
    let num_rollouts = write(args, &path, &mut chosen)?;
    if num_rollouts == 0 {
        return Err(CliError::usage(format!(
            "{}: no rollout is left; look at --stage, --sibling, --instance and --solved",
            args.source.display()
        )));
    }
    std::fs::rename(&path, &args.out)
        .map_err(|error| CliError::failed(format!("{out}: {error}")))?;
    if args.json {
        output::json(&Exported { schema_version: 1, out: &args.out, num_rollouts })?;
    } else {
        output::note(format!("Wrote {num_rollouts} rollouts to {out}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn is_chosen(rollout: &Rollout, args: &ExportRolloutsArgs) -> bool {
    args.sibling.is_none_or(|sibling| rollout.sibling == sibling)
        && (!args.solved || rollout.is_solved())
        && (args.instances.is_empty() || args.instances.contains(&rollout.instance_id))
}

type Rollouts<'a> = &'a mut dyn Iterator<Item = Result<Rollout, CliError>>;

/// Writes `path` and gives the number of rollouts.
fn write(args: &ExportRolloutsArgs, path: &Path, rollouts: Rollouts) -> Result<usize, CliError> {
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
    let num_rollouts = match args.format {
        RolloutFormat::Parquet => columns::write(&mut out, rollouts)?,
        RolloutFormat::Jsonl => lines(&mut out, rollouts, |out, rollout| {
            native::write(out, [rollout]).map_err(|error| failed(path, error))
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
            rollouts.len()
        }
    };
    let file = out.into_inner().map_err(|error| failed(path, error.into_error()))?;
    file.sync_all().map_err(|error| failed(path, error))?;
    Ok(num_rollouts)
}

fn lines<W: Write>(
    out: &mut W,
    rollouts: Rollouts,
    line: impl Fn(&mut dyn Write, &Rollout) -> Result<(), CliError>,
) -> Result<usize, CliError> {
    let mut num_rollouts = 0;
    for rollout in rollouts {
        line(out, &rollout?)?;
        num_rollouts += 1;
    }
    Ok(num_rollouts)
}

/// A document a rollout. Two of one name are refused: one would be lost.
fn documents(
    args: &ExportRolloutsArgs,
    dir: &Path,
    rollouts: Rollouts,
    origin: &Origin,
) -> Result<usize, CliError> {
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
                "two rollouts have this name; choose one stage with --stage".to_owned()
            } else {
                error.to_string()
            };
            CliError::failed(format!("{}: {reason}", file_stem(&rollout)))
        })?;
        file.write_all(pretty(&document).as_bytes()).map_err(|error| failed(&path, error))?;
        num_rollouts += 1;
    }
    Ok(num_rollouts)
}

/// Patches and grades are all that predictions need.
fn without_trajectories(rollouts: Rollouts) -> Result<Vec<Rollout>, CliError> {
    rollouts.map(|rollout| Ok(Rollout { trajectory: Trajectory::default(), ..rollout? })).collect()
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
