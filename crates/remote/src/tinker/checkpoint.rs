//! What a run directory keeps of weights that live at a server: their name, and how to know them
//! again.

use std::path::Path;

use patchwright_core::{PolicyVersion, TrainerError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The file in a checkpoint's directory.
pub(super) const FILE: &str = "tinker.json";

/// Largest change of a fingerprint's log-probability between saving and loading: servers may compute
/// in half precision and in another order.
const TOLERANCE: f32 = 0.05;

/// Names weights at a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoint {
    /// Of this file's form.
    pub(super) schema_version: u32,
    /// The server.
    pub(super) url: String,
    /// `tinker://…`, weights and optimizer state.
    pub(super) path: String,
    /// Base model.
    pub(super) base_model: String,
    /// Rank of the adapter.
    pub(super) lora_rank: u32,
    /// The version that these weights are.
    pub(super) policy_version: PolicyVersion,
    /// What the weights make of a few tokens.
    pub(super) fingerprint: Fingerprint,
}

/// Log-probabilities of a fixed sequence: a checksum that another computation of the same weights
/// passes and other weights do not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fingerprint {
    pub(super) tokens: Vec<u32>,
    /// `[n - 1]`, of all tokens but the first.
    pub(super) logprobs: Vec<f32>,
}

/// The file: the checkpoint and the digest of its JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    checkpoint: Checkpoint,
    sha256: String,
}

impl Fingerprint {
    /// Refuses other weights' log-probabilities.
    pub(super) fn check(&self, logprobs: &[f32]) -> Result<(), String> {
        let difference = self
            .logprobs
            .iter()
            .zip(logprobs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most });
        if logprobs.len() == self.logprobs.len() && difference <= TOLERANCE {
            return Ok(());
        }
        Err(format!(
            "the server loaded other weights than were saved: a log-probability of the fingerprint \
             differs by {difference}"
        ))
    }
}

fn digest(checkpoint: &Checkpoint) -> Result<String, String> {
    let json = serde_json::to_vec(checkpoint).map_err(|error| error.to_string())?;
    Ok(format!("{:x}", Sha256::digest(json)))
}

fn fail(path: &Path, reason: impl Into<String>) -> TrainerError {
    TrainerError::Checkpoint { path: path.display().to_string(), reason: reason.into() }
}

impl Checkpoint {
    /// Writes the file into a new directory, which appears whole or not at all.
    pub(super) fn write(&self, dir: &Path) -> Result<(), TrainerError> {
        let error = |error: std::io::Error| fail(dir, error.to_string());
        if dir.exists() {
            return Err(fail(dir, "it exists already"));
        }
        let sealed = Sealed {
            checkpoint: self.clone(),
            sha256: digest(self).map_err(|reason| fail(dir, reason))?,
        };
        let mut json = serde_json::to_vec_pretty(&sealed).map_err(|e| fail(dir, e.to_string()))?;
        json.push(b'\n');
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = dir.with_file_name(name);
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(error)?;
        }
        std::fs::create_dir_all(&partial).map_err(error)?;
        let file = partial.join(FILE);
        std::fs::write(&file, json).map_err(error)?;
        std::fs::File::open(&file).and_then(|file| file.sync_all()).map_err(error)?;
        std::fs::rename(&partial, dir).map_err(error)
    }

    /// Reads and checks the file of a directory.
    pub(super) fn read(dir: &Path) -> Result<Self, TrainerError> {
        let path = dir.join(FILE);
        let text = std::fs::read(&path).map_err(|error| {
            fail(&path, format!("{error}; only runs with trainer = \"tinker\" have this file"))
        })?;
        let sealed: Sealed =
            serde_json::from_slice(&text).map_err(|error| fail(&path, error.to_string()))?;
        let checkpoint = sealed.checkpoint;
        if checkpoint.schema_version != 1 {
            let version = checkpoint.schema_version;
            return Err(fail(&path, format!("schema version {version} is not known here")));
        }
        if digest(&checkpoint).map_err(|reason| fail(&path, reason))? != sealed.sha256 {
            return Err(fail(&path, "the checksum does not fit: the file was changed"));
        }
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use patchwright_core::PolicyVersion;

    use super::{Checkpoint, FILE, Fingerprint};

    #[test]
    fn a_changed_file_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("3");
        let checkpoint = Checkpoint {
            schema_version: 1,
            url: "http://h:1".to_owned(),
            path: "tinker://m/weights/v3-1".to_owned(),
            base_model: "b".to_owned(),
            lora_rank: 8,
            policy_version: PolicyVersion(3),
            fingerprint: Fingerprint { tokens: vec![1, 2], logprobs: vec![-0.1] },
        };
        checkpoint.write(&dir).unwrap();
        assert_eq!(Checkpoint::read(&dir).unwrap(), checkpoint);
        assert!(checkpoint.write(&dir).unwrap_err().to_string().contains("exists"));

        let file = dir.join(FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("v3-1", "v3-2")).unwrap();
        assert!(Checkpoint::read(&dir).unwrap_err().to_string().contains("checksum"));
        std::fs::remove_file(&file).unwrap();
        let error = Checkpoint::read(&dir).unwrap_err().to_string();
        assert!(error.contains("tinker"), "{error}");
    }

    #[test]
    fn a_fingerprint_knows_its_weights() {
        let print = Fingerprint { tokens: vec![1, 2, 3], logprobs: vec![-1.0, -2.0] };
        assert!(print.check(&[-1.001, -2.0]).is_ok());
        for other in [&[-1.0, -2.5][..], &[-1.0], &[-1.0, f32::NAN]] {
            assert!(print.check(other).is_err(), "{other:?}");
        }
    }
}
