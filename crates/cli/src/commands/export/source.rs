//! Where rollouts come from.

use std::path::{Path, PathBuf};

use patchwright_core::Rollout;
use patchwright_formats::{atif, native, swe_agent};

use crate::commands::{eval, gateway};
use crate::error::CliError;

/// Files that say what a directory is.
const GATEWAY: &str = gateway::PLAN;
const EVAL: &str = eval::PLAN;

/// What a file's name says of its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Native,
    Atif,
    SweAgent,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let ends = |suffix: &str| name.ends_with(suffix) && !name.starts_with('.');
        if ends(".jsonl") || ends(".jsonl.zst") {
            Some(Self::Native)
        } else if ends(".traj") {
            Some(Self::SweAgent)
        } else if ends(".json") && !ends(".traj.json") {
            Some(Self::Atif)
        } else {
            None
        }
    }
}

/// Files of rollouts, in order of their names.
#[derive(Debug, Clone)]
pub struct Source {
    files: Vec<(PathBuf, Kind)>,
    /// Whether failed attempts may stand beside those that came of them; a training run keeps
    /// the last ones alone.
    pub has_attempts: bool,
}

/// A rollout and where its attempts are to be looked for: a file, or all documents together.
pub type Sourced = (usize, Rollout);

impl Source {
    /// Looks what there is.
    ///
    /// # Errors
    /// Wrong use when there is nothing that can be read.
    pub fn open(path: &Path, stage: Option<&str>) -> Result<Self, CliError> {
        let wrong = |reason: &str| CliError::usage(format!("{}: {reason}", path.display()));
        if path.join("journal.jsonl").is_file() {
            return Self::of_run(path, stage);
        }
        if stage.is_some() {
            return Err(wrong("is no run directory; --stage is for those"));
        }
        if path.join(GATEWAY).is_file() {
            let kept = path.join(gateway::ROLLOUTS);
            return Ok(Self { files: vec![(kept, Kind::Native)], has_attempts: true });
        }
        if path.join(EVAL).is_file() {
            return Self::of_evaluation(path);
        }
        if path.is_dir() {
            let files = files(path)?;
            return if files.is_empty() {
                Err(wrong("has no .jsonl, .jsonl.zst, .json or .traj file"))
            } else {
                Ok(Self { files, has_attempts: true })
            };
        }
        match Kind::of(path) {
            _ if !path.exists() => Err(wrong("is not there")),
            Some(kind) => Ok(Self { files: vec![(path.to_owned(), kind)], has_attempts: true }),
            None => Err(wrong("ends in none of .jsonl, .jsonl.zst, .json and .traj")),
        }
    }

    fn of_run(path: &Path, stage: Option<&str>) -> Result<Self, CliError> {
        let wrong = |reason: String| CliError::usage(format!("{}: {reason}", path.display()));
        let dir = path.join("rollouts");
        let all = if dir.is_dir() { files(&dir)? } else { Vec::new() };
        if all.is_empty() {
            return Err(wrong(
                "this run kept no rollouts; start one with --set run.keep_rollouts=true".to_owned(),
            ));
        }
        let Some(stage) = stage else { return Ok(Self { files: all, has_attempts: false }) };
        let files: Vec<_> =
            all.iter().filter(|(file, _)| stage_of(file) == Some(stage)).cloned().collect();
        if files.is_empty() {
            let mut stages: Vec<&str> = all.iter().filter_map(|(file, _)| stage_of(file)).collect();
            stages.dedup();
            return Err(wrong(format!(
                "no rollouts of stage {stage}; it has {}",
                stages.join(", ")
            )));
        }
        Ok(Self { files, has_attempts: false })
    }

    /// What `eval --out` kept of its one model.
    fn of_evaluation(path: &Path) -> Result<Self, CliError> {
        let wrong = |reason: String| CliError::usage(format!("{}: {reason}", path.display()));
        let mut kept = Vec::new();
        for (dir, _) in
            (0..).map(|n| (path.join(format!("model-{n}")), n)).take_while(|(dir, _)| dir.is_dir())
        {
            kept.push(dir.join(eval::ROLLOUTS));
        }
        match &kept[..] {
            [] => Err(wrong("nothing was measured yet".to_owned())),
            [file] => Ok(Self { files: vec![(file.clone(), Kind::Native)], has_attempts: false }),
            several => Err(wrong(format!(
                "it has {} models; name the directory of one, such as {}",
                several.len(),
                path.join("model-0").display()
            ))),
        }
    }

    /// The rollouts, read as they are asked for.
    pub fn rollouts(self) -> impl Iterator<Item = Result<Sourced, CliError>> {
        self.files.into_iter().enumerate().flat_map(|(index, (path, kind))| {
            let scope = if kind == Kind::Native { index } else { usize::MAX };
            read(&path, kind).map(move |rollout| Ok((scope, rollout?)))
        })
    }
}

fn read(path: &Path, kind: Kind) -> Box<dyn Iterator<Item = Result<Rollout, CliError>>> {
    let one =
        |rollout: Result<Rollout, _>| Box::new(std::iter::once(rollout.map_err(CliError::failed)));
    match kind {
        Kind::Atif => one(atif::read(path)),
        Kind::SweAgent => one(swe_agent::read(path)),
        Kind::Native => match native::read(path) {
            Ok(rollouts) => Box::new(rollouts.map(|rollout| rollout.map_err(CliError::failed))),
            Err(error) => one(Err(error)),
        },
    }
}

/// The readable files of a directory.
fn files(dir: &Path) -> Result<Vec<(PathBuf, Kind)>, CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("{}: {error}", dir.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(kind) = Kind::of(&path).filter(|_| path.is_file()) {
            files.push((path, kind));
        }
    }
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(files)
}

/// The stage of a file `STAGE-ITERATION[-PART].jsonl.zst`.
fn stage_of(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let digits = |text: &str| text.len() >= 5 && text.bytes().take(5).all(|b| b.is_ascii_digit());
    let dash = name.match_indices('-').find(|(at, _)| digits(&name[at + 1..]))?.0;
    Some(&name[..dash])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::stage_of;

    #[test]
    fn stages_of_file_names() {
        for (name, stage) in [
            ("rl-1-00012.jsonl.zst", Some("rl-1")),
            ("eval-rl-2-00000-held-out.jsonl.zst", Some("eval-rl-2")),
            ("rl-1-00003-round-2.jsonl.zst", Some("rl-1")),
            ("mine.jsonl", None),
        ] {
            assert_eq!(stage_of(Path::new(name)), stage, "{name}");
        }
    }
}
