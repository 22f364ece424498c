//! `patchwright pretrain`: makes the base policy.

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use patchwright_train::pretrain::{PretrainConfig, Progress, pretrain};

use crate::args::PretrainArgs;
use crate::error::CliError;
use crate::numbers::{count, duration};
use crate::output;

/// Least time between two lines of progress.
const QUIET: Duration = Duration::from_secs(5);

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
    let last = Mutex::new(None::<Instant>);
    let tell = |progress: Progress| {
        let Ok(mut last) = last.lock() else { return };
        let (done, of) = match progress {
            Progress::Sessions(done, of) | Progress::Steps(done, of, ..) => (done, of),
        };
        if done < of && last.is_some_and(|last| last.elapsed() < QUIET) {
            return;
        }
        *last = Some(Instant::now());
        output::note(match progress {
            Progress::Sessions(done, of) => {
                format!("explorer sessions {} of {}", count(done as f64), count(of as f64))
            }
            Progress::Steps(done, of, loss, tokens) => format!(
                "step {} of {}, loss {loss:.3}, {} tokens",
                count(done as f64),
                count(of as f64),
                count(tokens as f64)
            ),
        });
    };
    let path = pretrain(&config, &args.out, &provider, &tell).map_err(CliError::failed)?;
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
