//! What a model is, told from headers alone.

use std::path::Path;

use patchwright_core::TrainerError;

use super::{CONFIG, ModelFiles, fail, open_model};
use crate::config::ModelConfig;
use crate::gguf::GgufFile;
use crate::params::ParamLayout;

/// A model in files: a Hugging Face directory or a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSummary {
    /// The architecture.
    pub config: ModelConfig,
    /// Number of weights; a head that is the embedding counts once.
    pub num_parameters: usize,
    /// `safetensors` or `gguf`.
    pub format: &'static str,
    /// How the weights are stored, such as `BF16` or `Q4_1`, the names in order.
    pub dtypes: Vec<String>,
    /// Number of files with weights.
    pub num_files: usize,
}

impl ModelSummary {
    /// Reads headers and checks that every tensor is there with its shape. No weight is read.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming the file and what is wrong with it.
    pub fn of(path: &Path) -> Result<Self, TrainerError> {
        if path.is_file() {
            let file = GgufFile::open(path)?;
            let config = file.config()?;
            file.check_tensors(&config)?;
            let dtypes = file.formats().into_keys().collect();
            return Ok(Self::new(config, "gguf", dtypes, 1));
        }
        if !path.is_dir() {
            return Err(fail(path, "is neither a directory nor a file"));
        }
        let config = ModelConfig::read(&path.join(CONFIG))?;
        let files: ModelFiles = open_model(path, &config, &ParamLayout::new(&config))?;
        Ok(Self::new(config, "safetensors", files.dtypes(), files.num_files()))
    }

    fn new(
        config: ModelConfig,
        format: &'static str,
        dtypes: Vec<String>,
        num_files: usize,
    ) -> Self {
        Self { num_parameters: config.num_parameters(), config, format, dtypes, num_files }
    }
}
