//! `patchwright pretrain`: makes the base policy.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use patchwright_train::events::{Observer, RunEvent, StageKind, StagePlan};
use patchwright_train::pretrain::{PretrainConfig, PretrainError, Progress, pretrain};

use crate::args::PretrainArgs;
use crate::error::CliError;
use crate::numbers::{count, duration};
use crate::progress::Progress as Display;
use crate::{output, signals};

/// Optimizer steps between two lines about the loss.
const STEPS_PER_LINE: usize = 200;

/// Makes a checkpoint.
pub fn run(args: &PretrainArgs) -> Result<ExitCode, CliError> {
    let config = config(args)?;
    if args.out.join("config.json").exists() {
        return Err(CliError::usage(format!(
            "--out {}: there is a checkpoint in it already",
            args.out.display()
        )));
    }
    let provider = NativeSandboxes::new(NativeOptions::default())?;
    let start = Instant::now();
    let display = Arc::new(Display::to_stderr());
    let cancel = {
        let display = Arc::clone(&display);
        signals::cancel_token(move || display.say("Stopping; nothing is written."))?
    };
    display.event(&RunEvent::StageStarted {
        plan: StagePlan {
            name: "pretrain".to_owned(),
            kind: StageKind::Setup,
            num_rollouts: 0,
            num_iterations: 1,
        },
        first_iteration: 0,
    });
    let tell = |progress: Progress| {
        let (part, unit, num_done, num_wanted) = match progress {
            Progress::Tasks(done, of) => ("task set".to_owned(), "instances", done, of),
            Progress::Sessions(done, of) => ("explorer".to_owned(), "sessions", done, of),
            Progress::Steps(done, of, loss, num_tokens) => {
                if done % STEPS_PER_LINE == 0 || done == of {
                    let (done, of) = (count(done as f64), count(of as f64));
                    let num_tokens = count(num_tokens as f64);
                    display
                        .say(&format!("step {done} of {of}, loss {loss:.3}, {num_tokens} tokens"));
                }
                ("training".to_owned(), "steps", done, of)
            }
        };
        display.event(&RunEvent::Progress { part, unit, num_done, num_wanted });
    };
    let made = pretrain(&config, &args.out, &provider, &tell, cancel);
    display.finish();
    let path = made.map_err(|error| match error {
        PretrainError::Cancelled => CliError::Interrupted,
        error => CliError::failed(error),
    })?;
    output::note(format!("Wrote {} in {}", path.display(), duration(start.elapsed())));
    Ok(ExitCode::SUCCESS)
}

/// The defaults, a file's values, `--set`, `--seed`; each over the one before.
fn config(args: &PretrainArgs) -> Result<PretrainConfig, CliError> {
    let default = PretrainConfig::default();
    let mut config = match &args.recipe {
        None => default,
        Some(path) => {
            let refused = |error: &dyn std::fmt::Display| {
                CliError::usage(format!("--recipe {}: {error}", path.display()))
            };
            let text = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
            if path.extension().is_some_and(|extension| extension == "json") {
                serde_json::from_str(&text).map_err(|error| refused(&error))?
            } else {
                toml::from_str(&text).map_err(|error| refused(&error))?
            }
        }
    };
    for text in &args.overrides {
        config = overridden(&config, text)?;
    }
    config.seed = args.seed.unwrap_or(config.seed);
    Ok(config)
}

fn overridden(config: &PretrainConfig, text: &str) -> Result<PretrainConfig, CliError> {
    let refused =
        |reason: &dyn std::fmt::Display| CliError::usage(format!("--set {text}: {reason}"));
    let Some((key, value)) = text.split_once('=') else {
        return Err(refused(&"expected key=value, such as num_sessions=100"));
    };
    let value = value.trim();
    let value: toml::Table = toml::from_str(&format!("value = {value}"))
        .or_else(|_| toml::from_str(&format!("value = {value:?}")))
        .map_err(|error| refused(&error.message()))?;
    let mut document = toml::Value::try_from(config).map_err(|error| refused(&error))?;
    let mut node = &mut document;
    for part in key.trim().split('.') {
        node = node.get_mut(part).ok_or_else(|| refused(&format!("unknown key {}", key.trim())))?;
    }
    *node = value["value"].clone();
    document.try_into().map_err(|error: toml::de::Error| refused(&error.message()))
}
