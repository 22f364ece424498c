//! Our own: a rollout a line, with tokens and log-probabilities, as JSON; files that end in `.zst`
//! are compressed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use patchwright_core::{Rollout, Trajectory};
use serde::Deserialize;

use crate::{FormatError, MAX_DOCUMENT_BYTES};

/// Writes rollouts, one a line.
///
/// # Errors
/// When `out` cannot be written.
pub fn write<'a>(
    out: &mut dyn Write,
    rollouts: impl IntoIterator<Item = &'a Rollout>,
) -> std::io::Result<()> {
    for rollout in rollouts {
        serde_json::to_writer(&mut *out, rollout)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Reads a file that [`write()`] wrote, a line at a time.
///
/// # Errors
/// Each item is an error for a line that cannot be read, is too long, is not a rollout, or whose
/// numbers contradict one another; it names the line.
pub fn read(
    path: &Path,
) -> Result<impl Iterator<Item = Result<Rollout, FormatError>> + use<>, FormatError> {
    let name = path.to_owned();
    let mut lines = open(path).map_err(FormatError::io(path))?;
    let (mut number, mut has_failed) = (0, false);
    Ok(std::iter::from_fn(move || {
        while !has_failed {
            number += 1;
            let mut line = Vec::new();
            let mut bounded = (&mut lines).take(MAX_DOCUMENT_BYTES);
            match bounded.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => {
                    let place = format!("{}:{number}", name.display());
                    return Some(parse(&line).map_err(|why| FormatError::malformed(place, why)));
                }
                Err(error) => {
                    has_failed = true;
                    return Some(Err(unreadable(&name, number, error)));
                }
            }
        }
        None
    }))
}

/// Why nothing more can be read.
fn unreadable(path: &Path, number: usize, error: io::Error) -> FormatError {
    if error.kind() != io::ErrorKind::UnexpectedEof {
        return FormatError::Io { path: path.to_owned(), error };
    }
    let place = format!("{}:{number}", path.display());
    let reason = "is cut off here, as by a crash; `patchwright gateway --resume` mends what a \
                  gateway kept";
    FormatError::malformed(place, reason)
}

fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let file = File::open(path)?;
    Ok(if path.extension().is_some_and(|extension| extension == "zst") {
        let mut decoder = zstd::Decoder::new(file)?;
        // 128 MiB: what the format's own tools accept.
        decoder.window_log_max(27)?;
        Box::new(BufReader::new(decoder))
    } else {
        Box::new(BufReader::new(file))
    })
}

/// A line of what an evaluation keeps.
#[derive(Deserialize)]
struct Kept {
    rollout: Rollout,
}

fn parse(line: &[u8]) -> Result<Rollout, String> {
    let rollout = if line.starts_with(b"{\"seed\":") {
        serde_json::from_slice(line).map(|Kept { rollout }| rollout)
    } else {
        serde_json::from_slice(line)
    };
    let rollout =
        rollout.map_err(|error| format!("not a rollout: {error}; expected what `--out` writes"))?;
    check(&rollout)?;
    Ok(rollout)
}

/// Refuses a rollout whose parts do not fit together.
fn check(rollout: &Rollout) -> Result<(), String> {
    rollout.trajectories().try_for_each(check_trajectory)
}

fn check_trajectory(trajectory: &Trajectory) -> Result<(), String> {
    let num_tokens = trajectory.tokens.len();
    if trajectory.sampler_logprobs.len() != num_tokens {
        let num_logprobs = trajectory.sampler_logprobs.len();
        return Err(format!("{num_tokens} tokens and {num_logprobs} log-probabilities"));
    }
    let mut end = 0;
    for (index, turn) in trajectory.turns.iter().enumerate() {
        let span = turn.sampled;
        if !(end <= span.start && span.start <= span.end && span.end <= num_tokens) {
            return Err(format!("turn {index} spans {} to {}", span.start, span.end));
        }
        end = span.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{read, write};
    use crate::testing::rollouts;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollouts.jsonl");
        let mut bytes = Vec::new();
        write(&mut bytes, &rollouts()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let read: Vec<_> = read(&path).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(read, rollouts());
        // As an evaluation keeps them.
        let kept = serde_json::json!({"rollout": rollouts()[0]}).to_string();
        std::fs::write(&path, kept.replacen('{', "{\"seed\":7,", 1)).unwrap();
        assert_eq!(super::read(&path).unwrap().next().unwrap().unwrap(), rollouts()[0]);
        let mut bytes = Vec::new();
        write(&mut bytes, &rollouts()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let zst = dir.path().join("rollouts.jsonl.zst");
        std::fs::write(&zst, zstd::encode_all(&*std::fs::read(&path).unwrap(), 3).unwrap())
            .unwrap();
        let read: Vec<_> = super::read(&zst).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(read, rollouts());
        let bytes = std::fs::read(&zst).unwrap();
        std::fs::write(&zst, &bytes[..bytes.len() - 9]).unwrap();
        let read: Vec<_> = super::read(&zst).unwrap().collect();
        let cut = read.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(cut.contains("is cut off here"), "{cut}");
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollouts.jsonl");
        let mut bytes = Vec::new();
        let mut damaged = rollouts().remove(0);
        damaged.trajectory.turns[0].sampled.end = 99;
        write(&mut bytes, [&rollouts()[0], &damaged]).unwrap();
        bytes.extend(b"\n{\"instance_id\": 1}\n");
        std::fs::write(&path, bytes).unwrap();
        let read: Vec<_> = read(&path).unwrap().collect();
        assert!(read[0].is_ok());
        let error = |n: usize| read[n].as_ref().unwrap_err().to_string();
        assert!(error(1).contains("rollouts.jsonl:2: turn 0 spans"), "{}", error(1));
        assert!(error(2).contains("rollouts.jsonl:4: not a rollout"), "{}", error(2));
    }
}
