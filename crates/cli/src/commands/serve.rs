//! `patchwright serve`: a checkpoint behind OpenAI-compatible endpoints and the Tinker API.

pub(super) mod embedded;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use patchwright_agent::ChatTemplate;
use patchwright_core::Sampler;
use patchwright_engine::EngineOptions;
use patchwright_serve::tinker::{self, TinkerOptions};
use patchwright_serve::{
    BearerToken, Guard, Metrics, ModelText, Server, ServerLimits, Work, openai,
};
use patchwright_train::world::find_checkpoint;

use crate::args::ServeArgs;
use crate::error::CliError;
use crate::{output, signals};

/// How often a running server is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Variable with the bearer token.
const TOKEN: &str = "PATCHWRIGHT_TOKEN";

/// Serves until it is told to stop.
pub fn run(args: &ServeArgs) -> Result<ExitCode, CliError> {
    let token = token(args.token_file.as_deref())?;
    let dir = find_checkpoint(&args.checkpoint).map_err(CliError::usage)?;
    let name = args.name.clone().unwrap_or_else(|| {
        let last = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        last.unwrap_or_else(|| args.checkpoint.clone())
    });
    let text = Arc::new(text(&dir, args.chat_template.as_deref())?);
    let mut options = EngineOptions::default();
    options.num_threads = args.threads.unwrap_or(options.num_threads);
    let engine = embedded::load(&dir, &options, &text).map_err(CliError::failed)?;
    let sampler: Arc<dyn Sampler> = engine.sampler();
    drop(engine);
    let limits = ServerLimits {
        max_samples: args.max_samples.clamp(1, 1 << 12),
        max_body_bytes: args.max_body.clamp(1, 1 << 12) << 20,
        ..ServerLimits::default()
    };
    let (work, metrics) = (Work::new(limits.max_samples), Arc::new(Metrics::default()));
    let served = openai::Served::new(Arc::clone(&sampler), Arc::clone(&text));
    let models = [(name.clone(), served)].into();
    // Removed with the server.
    let scratch = tempfile::tempdir().map_err(CliError::failed)?;
    let store = args.store.clone().unwrap_or_else(|| scratch.path().to_owned());
    let tinker_options = TinkerOptions {
        max_models: args.max_models.max(1),
        max_store_bytes: args.max_store.clamp(1, 1 << 20) << 30,
        ..TinkerOptions::new(store)
    };
    let tell = |said: &str| output::note(said);
    let backend =
        embedded::EmbeddedBackend { dir, name: name.clone(), text, options, sampler, tell };
    let routes = tinker::router(Arc::new(backend), tinker_options, work.clone(), metrics.clone())
        .map_err(CliError::failed)?
        .merge(openai::router(models, work, metrics.clone()));
    let router = Guard::new(token.clone(), limits, metrics).protect(routes);
    let cancel = signals::cancel_token(|| output::note("Stopping; requests in work may finish."))?;
    let server = Server::start(args.bind, token.as_ref(), limits, router)
        .map_err(|error| CliError::failed(error.to_string()))?;
    let address = server.address();
    output::note(format!("Serving {name} at http://{address} (OpenAI: /v1, Tinker: /api/v1)"));
    while !cancel.is_cancelled() && server.is_running() {
        std::thread::sleep(LOOK);
    }
    if !cancel.is_cancelled() {
        return Err(CliError::failed("the server ended by itself"));
    }
    server.stop();
    Ok(ExitCode::SUCCESS)
}

/// The token of a file, or else of the environment.
pub(super) fn token(file: Option<&Path>) -> Result<Option<BearerToken>, CliError> {
    if let Some(path) = file {
        return BearerToken::from_file(path).map(Some).map_err(CliError::usage);
    }
    match std::env::var(TOKEN) {
        Ok(token) => BearerToken::new(&token)
            .map(Some)
            .map_err(|error| CliError::usage(format!("{TOKEN}: {error}"))),
        Err(_) => Ok(None),
    }
}

fn text(dir: &Path, template: Option<&Path>) -> Result<ModelText, CliError> {
    let Some(path) = template else { return ModelText::from_dir(dir).map_err(CliError::usage) };
    let refused = |error: &dyn std::fmt::Display| {
        CliError::usage(format!("--chat-template {}: {error}", path.display()))
    };
    let source = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
    let template = ChatTemplate::new(source, [].into()).map_err(|error| refused(&error))?;
    ModelText::with_template(dir, Some(template)).map_err(CliError::usage)
}
