//! `patchwright models import`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::OnceLock;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use patchwright_agent::ChatTemplate;
use patchwright_engine::{ExportOptions, GgufFile, WeightDtype};

use super::{Shown, error, vocabulary};
use crate::args::{Dtype, ModelsImportArgs};
use crate::error::CliError;
use crate::{output, signals};

/// Turns the file into a directory and shows what it became.
pub fn run(args: &ModelsImportArgs) -> Result<ExitCode, CliError> {
    if args.out.exists() {
        let out = args.out.display();
        return Err(CliError::usage(format!(
            "--out {out}: is there already; name a new directory"
        )));
    }
    let gguf = GgufFile::open(&args.file).map_err(error)?;
    let files = text_files(&gguf)?;
    let options = ExportOptions {
        dtype: match args.dtype {
            Dtype::F32 => WeightDtype::F32,
            Dtype::F16 => WeightDtype::F16,
            Dtype::Bf16 => WeightDtype::Bf16,
        },
        max_shard_bytes: args.shard_mb * 1_000_000,
    };
    let cancel = signals::cancel_token(|| output::note("Stopping; once more stops at once."))?;
    // Nothing is drawn where standard error is no terminal.
    let bar = OnceLock::new();
    let exported = gguf.export(&args.out, &files, &options, &mut |done, total| {
        bar.get_or_init(|| progress_bar(total)).set_position(done);
        !cancel.is_cancelled()
    });
    if let Some(bar) = bar.get() {
        bar.finish_and_clear();
    }
    if cancel.is_cancelled() {
        return Err(CliError::Interrupted);
    }
    exported.map_err(error)?;
    Shown::of(&args.out)?.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Tokenizer, its settings with the chat template, and the tokens that end a text.
fn text_files(gguf: &GgufFile) -> Result<BTreeMap<String, Vec<u8>>, CliError> {
    let context = gguf.config().map_err(error)?.max_position_embeddings;
    let vocabulary = vocabulary(gguf.vocabulary().map_err(error)?, context)?;
    if let Some(template) = &vocabulary.chat_template {
        // A template that cannot be parsed is told now, and not in the middle of a run.
        ChatTemplate::new(template.clone(), BTreeMap::new()).map_err(CliError::usage)?;
    }
    let tokenizer = vocabulary.tokenizer_json().map_err(CliError::usage)?;
    let config = vocabulary.tokenizer_config_json().map_err(CliError::usage)?;
    Ok([
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config.into_bytes()),
        ("generation_config.json", vocabulary.generation_config_json().into_bytes()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into())
}

fn progress_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let style = "Writing weights {wide_bar} {decimal_bytes}/{decimal_total_bytes}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}
