//! `patchwright models`: what a model is, and GGUF files turned into Hugging Face directories.

mod import;

use std::path::Path;
use std::process::ExitCode;

use patchwright_agent::{BpeVocabulary, ChatTemplate};
use patchwright_core::TrainerError;
use patchwright_engine::{GgufFile, GgufVocabulary, ModelConfig, ModelSummary, RopeScaling};
use serde::Serialize;

use crate::args::{ModelsCommand, ModelsShowArgs};
use crate::error::CliError;
use crate::{numbers, output, table};

/// Does what was asked.
pub fn dispatch(command: &ModelsCommand) -> Result<ExitCode, CliError> {
    match command {
        ModelsCommand::Show(args) => show(args),
        ModelsCommand::Import(args) => import::run(args),
    }
}

/// A path that is no model is wrong use; a full disk is not.
fn error(error: TrainerError) -> CliError {
    match error {
        TrainerError::Checkpoint { .. } => CliError::usage(error),
        other => CliError::failed(other),
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Shown {
    schema_version: u32,
    path: String,
    format: &'static str,
    dtypes: Vec<String>,
    num_files: usize,
    num_parameters: usize,
    config: ModelConfig,
    /// Name of the tokenizer's kind, of a GGUF file, or `tokenizer.json`; null without one.
    tokenizer: Option<String>,
    has_chat_template: bool,
}

impl Shown {
    fn of(path: &Path) -> Result<Self, CliError> {
        let ModelSummary { config, num_parameters, format, dtypes, num_files } =
            ModelSummary::of(path).map_err(error)?;
        let (tokenizer, has_chat_template) = if path.is_file() {
            let vocabulary = GgufFile::open(path).and_then(|file| file.vocabulary());
            let vocabulary = vocabulary.map_err(error)?;
            let kind = format!("{}, {}", vocabulary.model, vocabulary.pre);
            (Some(kind), vocabulary.chat_template.is_some())
        } else {
            let template = ChatTemplate::from_dir(path).map_err(CliError::usage)?;
            let name = "tokenizer.json";
            (path.join(name).is_file().then(|| name.to_owned()), template.is_some())
        };
        Ok(Self {
            schema_version: 1,
            path: path.display().to_string(),
            format,
            dtypes,
            num_files,
            num_parameters,
            config,
            tokenizer,
            has_chat_template,
        })
    }

    /// The table.
    fn text(&self) -> String {
        let config = &self.config;
        let count = |number: usize| numbers::count(number as f64);
        let rope = match config.rope_scaling {
            None => String::new(),
            Some(RopeScaling::Linear { factor }) => format!(", linear x {factor}"),
            Some(RopeScaling::Yarn { factor, .. }) => format!(", YaRN x {factor}"),
            Some(RopeScaling::Llama3 { factor, .. }) => format!(", Llama 3 x {factor}"),
        };
        let head = if config.tie_word_embeddings { "tied" } else { "of its own" };
        let files = if self.num_files == 1 { "file" } else { "files" };
        let rows = [
            ("Architecture", format!("{:?}", config.model_type).to_lowercase()),
            ("Parameters", count(self.num_parameters)),
            (
                "Weights",
                format!("{}, {} {} {files}", self.dtypes.join(" "), self.num_files, self.format),
            ),
            ("Layers", count(config.num_hidden_layers)),
            (
                "Width",
                format!(
                    "{}, {} inside",
                    count(config.hidden_size),
                    count(config.intermediate_size)
                ),
            ),
            (
                "Heads",
                format!(
                    "{} of {}, {} for keys and values",
                    config.num_attention_heads, config.head_dim, config.num_key_value_heads
                ),
            ),
            ("Vocabulary", format!("{}, head {head}", count(config.vocab_size))),
            ("Context", format!("{} tokens{rope}", count(config.max_position_embeddings))),
            ("Tokenizer", self.tokenizer.clone().unwrap_or_else(|| "none".to_owned())),
            ("Chat template", if self.has_chat_template { "yes" } else { "no" }.to_owned()),
        ];
        let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
        table::table(&["Model", self.path.as_str()], &[], rows)
    }

    fn print(&self, as_json: bool) -> Result<(), CliError> {
        if as_json { output::json(self) } else { output::data(&self.text()) }
    }
}

fn show(args: &ModelsShowArgs) -> Result<ExitCode, CliError> {
    Shown::of(&args.path)?.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// The agent's view of what a GGUF file says.
fn vocabulary(found: GgufVocabulary, max_length: usize) -> Result<BpeVocabulary, CliError> {
    if found.model != "gpt2" {
        return Err(CliError::usage(format!(
            "tokenizer.ggml.model is {:?}; tokenizers of the kind gpt2 (byte-level BPE) can be \
             imported",
            found.model
        )));
    }
    Ok(BpeVocabulary {
        pre: found.pre,
        tokens: found.tokens,
        special: found.control,
        added: found.user_defined,
        merges: found.merges,
        bos: found.bos,
        eos: found.eos,
        unk: found.unk,
        pad: found.pad,
        add_bos: found.add_bos,
        chat_template: found.chat_template,
        max_length,
    })
}
